"""Measures, tabulates, plots and saves error against what is kept."""

import json
from dataclasses import asdict, dataclass

import keras
import numpy as np

import lc_keras


@dataclass(frozen=True)
class Point:
    """One model's point on the trade-off.

    Attributes:
        method: String, how the model was made; each method is one curve of the plot.
        density: Float, the fraction of the kernels' weights that is kept.
        kept: Int, the number of these weights that are kept.
        kilobytes: Float, the size of all the model's parameters, compressed.
        error: Float, the % of the test (or validation) images that the model gets wrong.
    """

    method: str
    density: float
    kept: int
    kilobytes: float
    error: float


def outputs(model, images, size=1000):
    """Returns the model's outputs for an array of images, computed `size` at a time."""
    parts = [model(images[i : i + size]) for i in range(0, len(images), size)]
    return np.concatenate([keras.ops.convert_to_numpy(part) for part in parts])


def measure(method, model, part):
    """Counts a model's weights and its errors on `part`, a tuple of images and labels."""
    images, labels = part
    report = lc_keras.report(model)
    error = 100 * float(np.mean(np.argmax(outputs(model, images), axis=-1) != labels))
    return Point(method, report.density, report.kept, report.bits / 8000, error)


def table(points, measured_on="test"):
    """Returns the points as an aligned text table."""
    lines = [f"{'':30}{'density':>10}{'kept':>10}{'kB':>10}{measured_on + ' error':>18}"]
    lines += [
        f"{p.method:30}{100 * p.density:>8.2f} %{p.kept:>10,}{p.kilobytes:>10,.1f}{p.error:>16.2f} %"
        for p in points
    ]
    return "\n".join(lines)


def plot(points, path, measured_on="test"):
    """Draws error against density, a curve for each method, both axes logarithmic."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import LogLocator

    axes = Figure(figsize=(6, 4), layout="constrained").subplots()
    for method in dict.fromkeys(p.method for p in points):
        curve = sorted((100 * p.density, p.error) for p in points if p.method == method)
        if method == "reference":
            axes.axhline(curve[0][1], color="black", linestyle=":", label=method)
        else:
            axes.plot(*zip(*curve, strict=True), marker="o", label=method)
    axes.set(xscale="log", yscale="log")
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axis.set_major_formatter("{x:g}")
        axis.set_minor_formatter("")
    axes.set_xlabel("kept, % of the kernels' weights")
    axes.set_ylabel(f"{measured_on} error, %")
    axes.grid(which="both", alpha=0.3)
    axes.legend()
    axes.figure.savefig(path, dpi=150)


def save(points, folder, measured_on="test", **settings):
    """Writes `tradeoff.txt`, `.json` and `.png` into a folder and prints the table."""
    folder.mkdir(parents=True, exist_ok=True)
    text = table(points, measured_on)
    (folder / "tradeoff.txt").write_text(text + "\n")
    content = {"settings": settings, "points": [asdict(point) for point in points]}
    (folder / "tradeoff.json").write_text(json.dumps(content, indent=2) + "\n")
    plot(points, folder / "tradeoff.png", measured_on)
    print(f"\n{text}\n")


def copy_of(model):
    """Returns an uncompiled model with the same weights."""
    copy = keras.models.clone_model(model)
    copy.set_weights(model.get_weights())
    return copy
