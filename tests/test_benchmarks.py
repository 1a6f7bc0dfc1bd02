"""Each benchmark, run once with little of everything."""

import importlib
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from benchmarks import nets, pictures, record, results
from benchmarks.serving import writing
from benchmarks.training import error, sizes, strength, whole_run
from lc_keras.algorithm.steps import Steps

ROOT = Path(__file__).parent.parent

SCRIPTS = """
serving.milliseconds serving.saved_model training.l_step
"""
# Tests of `fit` cover their training.
UNTRAINED = "training.automatic_mu training.error training.step_length training.tune"
# What the library does in them has a test of its own.
SLOW = """
robustness.any_model robustness.kill serving.on_device serving.shrink serving.writing
training.c_step training.error training.neurons training.resnet training.sizes training.smallest
training.startup training.whole_run
"""
DATASETS = {"training.resnet": "cifar10_dir", "training.neurons": "mnist_dir"}


@pytest.fixture
def passed(monkeypatch, tmp_path, capsys):
    """Runs a script in this process and returns its rows, what it printed and its folder."""

    def run(script):
        name = script.split(".")[1]
        output = tmp_path / f"{name}.json"
        monkeypatch.setattr(sys, "argv", [script, "--tiny", "--output", str(output)])
        importlib.import_module(f"benchmarks.{script}").main()
        result = json.loads(output.read_text())
        assert result["environment"]["tensorflow"] and result["environment"]["cores"] > 0
        check(name, result["rows"], capsys.readouterr().out, tmp_path)

    return run


@pytest.mark.parametrize("script", SCRIPTS.split())
def test_a_tiny_pass(script, passed):
    passed(script)


@pytest.mark.parametrize("script", UNTRAINED.split())
def test_a_tiny_pass_without_training(script, passed, monkeypatch):
    monkeypatch.setattr(nets.Net, "fit", lambda *args, **settings: None)
    passed(script)


def test_runs_are_compared_in_time_and_memory(passed, monkeypatch):
    monkeypatch.setattr(Steps, "c_step", Steps.c_step)  # which a run replaces

    def child(name, kind, epochs):
        return whole_run.one_run(whole_run.CHOICES[name], kind == "LC", epochs)

    monkeypatch.setattr(whole_run, "_child", child)
    passed("training.whole_run")


@pytest.mark.slow
@pytest.mark.parametrize("script", SLOW.split())
def test_a_tiny_pass_in_a_process(script, tmp_path, request):
    if script in DATASETS:
        request.getfixturevalue(DATASETS[script])
    name = script.split(".")[1]
    output = tmp_path / f"{name}.json"
    done = subprocess.run(
        [sys.executable, "-m", f"benchmarks.{script}", "--tiny", "--output", output],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert done.returncode == 0, done.stderr
    check(name, json.loads(output.read_text())["rows"], done.stdout, tmp_path)


def check(script, rows, printed, folder):
    """Checks what a script has written and shown."""
    if script == "error":
        assert [row["contender"] for row in rows] == ["LC", "gradual", "magnitude", "LC ℓ1 constraint"]
        assert len({row["kept"] for row in rows[:3]}) == 1
        assert rows[3]["strength"] == 0.1 and f"@{100 * rows[3]['density']:.3g}" in printed
        assert all(0 <= row["error"] < 90 and row["contender"] in printed for row in rows)
    elif script == "resnet":
        assert [row["contender"] for row in rows] == ["LC", "gradual", "magnitude, retrained"]
        assert [row["kept"] for row in rows] == [7480] * 3
        assert "ResNet-8, 74,800 prunable weights, 128 images" in printed
    elif script == "neurons":
        methods = "reference", "direct compression 0.25", "magnitude 0.25", "LC 0.25"
        assert tuple(row["method"] for row in rows) == methods
        assert all(0.2 < row["macs_fraction"] <= 0.25 for row in rows[1:])
        assert all(f"{row['error']:.2f}" in printed and row["seed"] == 0 for row in rows)
        # LeNet-5's own minimum at this budget.
        assert all(row["keep_at_least"] == 0.4 and row["widths"]["conv1"] >= 8 for row in rows[1:])
        assert all(row["ms_per_batch_of_32"] > 0 and row["ms_of_reference"] > 0 for row in rows)
        assert (folder / "neurons/lenet5/filters-0.25.png").stat().st_size > 1000
    elif script == "tune":
        assert [row["settings"] for row in rows] == [{"rate": 1.0, "rounds": 1}, {"rate": 1.0, "rounds": 5}]
        best = min(rows, key=lambda row: row["error"])
        assert best["measured_on"] == "validation" and f"{best['error']:.2f} *" in printed
    elif script == "step_length":
        assert [row["settings"]["epochs_per_step"] for row in rows] == [0.25, 1.0]
        assert (folder / f"{script}.png").stat().st_size > 5000
    elif script == "whole_run":
        assert rows[0]["c_steps"] >= 8 and 0 < rows[0]["c_step_fraction"] < 1
        assert rows[0]["ratio"] > 0 and rows[0]["lc_peak_mb"] > rows[0]["weights_mb"] > 0
    elif script == "startup":
        assert [row["contender"] for row in rows] == ["plain", "LC", "LC, neurons", "keras", "and lc_keras"]
        assert all(row["seconds"] > 0 and f"{row['ratio']:.2f} x" in printed for row in rows)
        assert rows[0]["ratio"] == 1 and rows[0]["more"] == 0 < rows[-1]["more"]
    elif script == "writing":
        assert [row["contender"] for row in rows] == list(writing.CONTENDERS)
        keras_own, dense, packed, report = rows
        assert keras_own["ratio"] == 1 and all(row["seconds"] > 0 and row["mb"] >= 0 for row in rows)
        assert packed["written_mb"] < dense["written_mb"] < keras_own["written_mb"] + 0.5
        assert report["written_mb"] == 0 < report["model_mb"]
    elif script == "any_model":
        assert [row["model"] for row in rows] == ["nested three deep"]
        assert all(row["outcome"] == "ok" and 0 < row["kept"] < row["compressed"] for row in rows)
    elif script == "automatic_mu":
        assert [row["mu"] for row in rows] == ["auto", "0.0001 … 0.01"]
    elif script == "c_step":
        assert [row["tensors"] for row in rows] == [1, 50]
        assert all(time > 0 for row in rows for time in row["median_ms"].values())
    elif script == "kill":
        killed_in = [phase for row in rows for phase in row["killed_in"]]
        assert len(killed_in) >= 3 and set(killed_in) == {"L step", "C step", "checkpoint"}
        assert all(row["same"] for row in rows)
    elif script == "on_device":
        assert rows[0]["smaller"] > 2
    elif script == "saved_model":
        assert {row["variant"] for row in rows} == {"dense", "packed", "sparse", "auto"}
        assert all(row["ratio"] > 0 for row in rows)
    elif script == "shrink":
        assert rows[0]["macs_fraction"] <= 0.5
    elif script == "smallest":
        assert [(row["net"], row["contender"], row["units"]) for row in rows] == [
            ("tabular", "magnitude", "weights")
        ]
        assert f"{100 * rows[0]['budget']:.2f} %" in printed
        assert (folder / f"{script}.png").stat().st_size > 5000
    elif script == "sizes":
        kilobytes = {row["method"]: row["kilobytes"] for row in rows}
        assert list(kilobytes) == ["reference", *sizes.METHODS]
        assert all(kilobytes[method] < kilobytes["reference"] for method in sizes.METHODS)
        assert (folder / f"{script}.png").stat().st_size > 5000
    elif script == "milliseconds":
        assert all(row["part_of_the_time"] > 0 and row["error_of_the_fit"] >= 0 for row in rows)
    else:
        assert rows[0]["l_step_ratio"] > 0 and rows[0]["c_step_ms"] > 0


def test_the_page_of_results_says_what_the_figures_do():
    page = (ROOT / "docs/results.md").read_text()
    assert page.startswith(results.HEAD)
    for name, title, said, table, _ in results.SECTIONS:
        rows = record.read(ROOT / f"benchmarks/results/{name}.json")
        assert f"\n## {title}\n{said}\n```\n{table(rows)}\n```\n" in page


def test_the_readme_says_what_the_figures_do():
    rows = record.read(ROOT / "benchmarks/results/error.json")
    rows = [row for row in rows if row["epochs"] == 20 and not row["settings"]]
    for keep in (0.05, 0.02, 0.01):
        own = [row for row in rows if row["keep"] == keep]
        means = [
            f"{np.mean([row['error'] for row in own if row['contender'] == name]):.2f}"
            for name in ("LC", "gradual", "magnitude", "TensorFlow's toolkit")
        ]
        cells = [
            f"{keep:.0%}".replace("%", " %"),
            f"**{means[0]}**",
            *means[1:],
            f"{own[0]['direct_error']:.2f}",
        ]
        assert f"| {' | '.join(cells)} |" in (ROOT / "README.md").read_text()


def test_results_are_written_from_what_there_is(tmp_path, monkeypatch):
    case = {"net": "lenet300", "optimizer": "sgd", "measured_on": "test", "settings": {}, "strength": None}
    rows = [
        case
        | {"contender": name, "keep": keep, "density": density, "epochs": epochs, "seed": seed}
        | {"error": error + seed + 1 / epochs, "reference_error": 2.125 + seed, "direct_error": 45.5 + seed}
        | {"density_by_layer": {f"net/dense_{seed}/kernel": keep, f"net/dense_{seed + 1}/kernel": 2 * keep}}
        for name, error in (("LC", 2), ("gradual", 3))
        for keep, density in ((0.05, 0.05), (0.02, 0.021 if name == "LC" else 0.02))
        for epochs in (5, 20)
        for seed in (0, 1)
    ]
    moved = [
        row | {"settings": {"rate": 2.0, "shift": 0.3}, "error": 1.5}
        for row in rows
        if (row["contender"], row["keep"], row["epochs"]) == ("LC", 0.05, 20)
    ]
    figures = {"environment": {"cores": 2}, "rows": rows + moved}
    (tmp_path / "error.json").write_text(json.dumps(figures))
    arguments = ["--figures", str(tmp_path), "--docs", str(tmp_path)]
    monkeypatch.setattr(sys, "argv", ["results", *arguments])
    results.main()
    text = (tmp_path / "results.md").read_text()
    assert text.count("\n## ") == 1 and "On: cores 2." in text
    cells = [line.split() for line in text.splitlines()]
    assert "seeds 0, 1; reference 2.62\n" in text
    assert ["direct", "compression", "0", "46.00", "46.00"] in cells
    assert ["LC", "20", "2.55", "(3.05)", "2.55", "(3.05)", "@2.1"] in cells
    assert ["gradual", "5", "3.70", "(4.20)", "3.70", "(4.20)"] in cells
    assert ["LC,", "tuned,", "moved", "images", "20", "1.50", "(1.50)"] in cells
    assert "LC, tuned, moved images at 5 %: rate 2, shift 0.3\n" in text
    for what in ("kept", "epochs", "layers"):
        name = f"plots/error_lenet300_sgd_{what}.png"
        assert f"({name})" in text and (tmp_path / name).stat().st_size > 5000


@pytest.mark.parametrize("slope", [-1, 1])
@pytest.mark.parametrize("target", [0.05, 0.01])
def test_a_strength_is_found_in_few_runs(slope, target):
    def kept(value):
        # Steep in the middle, flat where nearly all or hardly any weights are kept.
        return 1 / (1 + 300 * (value / 1e-4) ** (-2.5 * slope))

    points = []
    while not points or not strength.near(points[-1][1], target):
        value = strength.propose(points, target, first=1e-5, slope=slope)
        points.append((value, kept(value)))
        assert len(points) <= 6
    assert strength.propose([(1e-4, 0.5), (1e-4 * 10 ** (-slope), 0.6)], target, 1e-5, slope) is None
    # What is kept goes up and down: the point in between was tried and is no nearer.
    above, below = (1e-4, 2 * target), (1e-4 * 4 ** (-slope), target / 2)
    between = (strength.propose([above, below], target, 1e-5, slope), target / 4)
    assert strength.propose([above, below, between], target, 1e-5, slope) is None
    # Another seed takes over what was found.
    assert strength.propose(points, target, first=1.0, slope=slope) == pytest.approx(points[-1][0])


def test_the_best_settings_have_the_least_mean_error():
    rows = [
        {"net": net, "optimizer": "sgd", "contender": "LC", "keep": keep, "error": percent}
        | {"settings": {"rate": rate}}
        for net, keep, rate, errors in (
            ("a", 0.01, 1.0, (1, 5)),
            ("a", 0.01, 0.5, (2, 3)),
            ("a", 0.01, 2.0, (1,)),  # with one seed only
            ("a", 0.1, 1.0, (0, 0)),
            ("b", 0.01, 2.0, (0, 0)),
        )
        for percent in errors
    ]
    assert error.best_settings(rows, "a", "sgd", 0.01) == {"LC": {"rate": 0.5}}
    # The nearer of two budgets, as a ratio.
    assert error.best_settings(rows, "a", "sgd", 0.03) == {"LC": {"rate": 0.5}}
    assert error.best_settings(rows, "a", "sgd", 0.04) == {"LC": {"rate": 1.0}}


def test_the_two_weights_of_the_picture_end_on_the_better_axis():
    w, theta = pictures.pulled()
    assert theta[0, 1] == 0 and theta[-1, 0] == 0
    assert w[-1].tolist() == pytest.approx(theta[-1].tolist(), abs=0.01)
    # Along each axis, the loss is least where its gradient is 0.
    best = [pictures.HESSIAN[i] @ pictures.BEST / pictures.HESSIAN[i, i] for i in range(2)]
    losses = [float(pictures.loss(np.float32(point))) for point in ([best[0], 0], [0, best[1]])]
    assert losses[1] < losses[0] and theta[-1, 1] == pytest.approx(best[1], abs=0.02)
