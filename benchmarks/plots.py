"""The curves of the training benchmarks."""

import statistics

from matplotlib import colormaps
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter


def errors(rows, stem):
    """Draws what rows of `error.py` show: error against what is kept, against epochs, and layer by layer.

    Args:
        rows: List of dicts, of one net, optimizer and measured part.
        stem: Path; what a plot shows and `.png` are added to its name.

    Returns:
        List of paths, of the plots for which there was enough to draw.
    """
    paths = []
    budgets, epochs = ({row[name] for row in rows} for name in ("keep", "epochs"))
    if len(budgets) > 1:
        paths.append(_of(stem, "kept"))
        _curves(paths[-1], _by_epochs(rows), "density", "kept, % of the kernels' weights", 100)
    if len(epochs) > 1:
        paths.append(_of(stem, "epochs"))
        panels = {
            f"{100 * keep:g} % kept": [row for row in rows if row["keep"] == keep]
            for keep in sorted(budgets, reverse=True)
        }
        _curves(paths[-1], panels, "epochs", "epochs", 1)
    for name in ("LC", "LC, tuned"):
        own = [row for row in rows if row["contender"] == name]
        if len({row["keep"] for row in own}) > 1:
            paths.append(_of(stem, "layers" if name == "LC" else "layers-tuned"))
            layers(own, paths[-1])
    return paths


def step_length(rows, path):
    """Draws error against the length of an L step, a panel for each budget."""
    panels = {}
    for row in rows:
        label = f"{100 * row['keep']:g} % kept, {row['epochs']} epochs"
        panels.setdefault(label, []).append({**row, "contender": "LC"})
    _curves(path, panels, "epochs_per_step", "length of an L step, epochs", 1)


def layers(rows, path):
    """Draws the fraction kept in each layer against that of the whole net."""
    epochs = max(row["epochs"] for row in rows)
    rows = [row for row in rows if row["epochs"] == epochs]
    # A layer's name differs from seed to seed, its place does not.
    names = [name.split("/")[-2] for name in rows[0]["density_by_layer"]]
    axes, shades = Figure(figsize=(6, 4), layout="constrained").subplots(), colormaps["viridis"]
    for i, name in enumerate(names):
        label = name if len(names) < 12 else None
        own = [{"kept": 100 * r["keep"], "own": 100 * list(r["density_by_layer"].values())[i]} for r in rows]
        axes.plot(*_means(own, "kept", "own"), ".-", label=label, color=shades(i / max(1, len(names) - 1)))
    _logarithmic(axes, "kept, % of all weights", f"kept, % of a layer's, LC in {epochs} epochs")
    if len(names) < 12:
        axes.legend()
    else:
        axes.set_title(f"dark: {names[0]}, light: {names[-1]}", fontsize="medium")
    axes.figure.savefig(path, dpi=100)


# The contenders of the picture in README.md, and what it calls them.
SHOWN = {
    "LC": "LC",
    "gradual": "gradual pruning",
    "TensorFlow's toolkit": "TensorFlow's toolkit",
    "magnitude": "magnitude pruning, retrained",
}


def headline(rows, path):
    """Draws error against size: LC beside what one would use instead, each with its defaults."""
    rows = [row for row in rows if row["epochs"] == 20 and not row["settings"]]
    axes = Figure(figsize=(6.4, 4), layout="constrained").subplots()
    for name, label in SHOWN.items():
        own = [{**row, "kept": 100 * row["keep"]} for row in rows if row["contender"] == name]
        if not own:
            continue
        first = name == "LC"
        kept, errors = _means(own, "kept", "error")
        axes.plot(kept, errors, "o-", label=label, linewidth=3 if first else 1.5, zorder=3 if first else 2)
    reference = statistics.mean(row["reference_error"] for row in rows)
    axes.axhline(reference, color="black", linestyle=":", label="the net before it was pruned")
    _logarithmic(axes, "size: weights kept, % of 266,200", "test error, %")
    axes.set(xlim=(6, 0.85), ylim=(1.8, 8))
    direct = [{**row, "kept": 100 * row["keep"]} for row in rows]
    for kept, error in zip(*_means(direct, "kept", "direct_error"), strict=True):
        axes.annotate(f"{error:.0f} % ↑", (kept, 7.2), ha="center", color="C4")
    axes.plot([], [], color="C4", label="magnitude pruning, not retrained ↑")
    axes.set_title("LeNet-300 on MNIST, 20 epochs each, mean of three seeds", fontsize="medium")
    axes.set_yticks([2, 3, 4, 5, 6])
    axes.legend(fontsize="small", loc="upper left", bbox_to_anchor=(0, 0.9))
    axes.figure.savefig(path, dpi=130)


def serving(rows, path):
    """Draws the size and time of an exported net before and after pruning."""
    before, after = ([row for row in rows if row["variant"] == name] for name in ("dense", "auto"))
    figure = Figure(figsize=(7, 2.9), layout="constrained")
    sizes, times = figure.subplots(1, 2, width_ratios=(1, 2.2))
    megabytes = [part[0]["bytes"] / 1e6 for part in (before, after)]
    bars = sizes.bar(["before", "after"], megabytes, color=["C7", "C0"])
    sizes.bar_label(bars, [f"{size:.3g} MB" for size in megabytes], padding=2)
    sizes.set(title="size of the SavedModel", ylim=(0, 1.15 * megabytes[0]), yticks=[])
    for part, shift, label in ((before, -0.2, "before"), (after, 0.2, "after")):
        places = [i + shift for i in range(len(part))]
        parts = [100 / row["ratio"] for row in part]
        bars = times.bar(places, parts, 0.4, color="C7" if label == "before" else "C0", label=label)
        times.bar_label(bars, [f"{value:.0f} %" for value in parts], padding=2, fontsize="small")
    times.set(title="time of a call", ylim=(0, 118), yticks=[])
    times.set_xticks(range(len(after)), [f"batch {row['batch']}" for row in after])
    times.legend(fontsize="small", loc="upper center", bbox_to_anchor=(0.5, -0.12), ncols=2)
    for axes in (sizes, times):
        axes.spines[["top", "right", "left"]].set_visible(False)
    figure.savefig(path, dpi=130)


def lost(rows, published, path):
    """Draws how far our own and published errors are above the reference's, in percentage points.

    Args:
        rows: List of dicts, of one net and length of a run.
        published: Dict of curves by name; each has errors by % kept, the reference's at 100.
        path: Path.
    """
    axes = Figure(figsize=(6, 4), layout="constrained").subplots()
    for name in dict.fromkeys(row["contender"] for row in rows):
        own = [row | {"lost": row["error"] - row["reference_error"]} for row in rows]
        kept, means = _means([row for row in own if row["contender"] == name], "density", "lost")
        axes.plot([100 * k for k in kept], means, ".-", label=name)
    for name, errors in published.items():
        kept = sorted(errors.keys() - {100})
        axes.plot(kept, [errors[k] - errors[100] for k in kept], "x--", label=f"{name} (other images)")
    axes.axhline(0, color="black", linestyle=":")
    axes.set(
        xscale="log", xlabel="kept, % of the kernels' weights", ylabel="error above the reference's, points"
    )
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter("{x:g}")
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.legend(fontsize="small")
    axes.figure.savefig(path, dpi=100)


def _of(stem, what):
    return stem.with_name(f"{stem.name}_{what}.png")


def _by_epochs(rows):
    panels = {}
    for row in sorted(rows, key=lambda row: row["epochs"]):
        panels.setdefault(f"{row['epochs']} epochs", []).append(row)
    return panels


def _curves(path, panels, x, label, factor):
    """Draws mean errors, a panel for each list of rows and a curve for each contender."""
    figure = Figure(figsize=(1 + 4.2 * len(panels), 4), layout="constrained")
    names = list(dict.fromkeys(row["contender"] for rows in panels.values() for row in rows))
    curves = {}
    drawn = figure.subplots(1, len(panels), squeeze=False)[0]
    for axes, (title, rows) in zip(drawn, panels.items(), strict=True):
        for i, name in enumerate(names):
            own = [row for row in rows if row["contender"] == name]
            if own:
                positions, means = _means(own, x, "error")
                style = {"color": f"C{i % 10}", "linestyle": "-" if i < 10 else "--"}
                (curves[name],) = axes.plot([factor * v for v in positions], means, marker=".", **style)
        reference = statistics.mean(row["reference_error"] for row in rows)
        curves["reference"] = axes.axhline(reference, color="black", linestyle=":")
        axes.set_title(title, fontsize="medium")
        _logarithmic(axes, label, f"{rows[0]['measured_on']} error, %")
        if x != "density":
            axes.set_xticks(sorted({row[x] for row in rows}))
    figure.legend(curves.values(), curves, loc="outside right center", fontsize="small")
    figure.savefig(path, dpi=100)


def _means(rows, x, y):
    """Returns the mean of y over the seeds, at the mean of x where a search found it."""
    groups = {}
    for row in rows:
        groups.setdefault(row["keep" if x == "density" else x], []).append(row)
    means = [[statistics.mean(row[name] for row in group) for name in (x, y)] for group in groups.values()]
    return zip(*sorted(means), strict=True)


def _logarithmic(axes, x, y):
    axes.set(xscale="log", yscale="log", xlabel=x, ylabel=y)
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axis.set_major_formatter("{x:g}")
        axis.set_minor_formatter(NullFormatter())
    axes.grid(which="both", alpha=0.3)
