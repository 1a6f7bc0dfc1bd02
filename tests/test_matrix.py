"""The matrix of `benchmarks/robustness`: how its cells are made, run, resumed and summed up."""

import inspect
import itertools

import keras
import numpy as np
import pytest

from benchmarks.robustness import cells, matrix, optimizers, running, summary
from benchmarks.robustness.nets import NETS


def row(contender, error, cell="a", seed=0, gap=0.01, warnings=(), label="new", is_fit=False):
    return {
        "cell": cell,
        "net": cell,
        "setting": "SGD",
        "is_fit": is_fit,
        "seed": seed,
        "error": error,
        "contender": contender,
        "label": label if contender == "LC" else None,
        "measured_on": "test",
        "gap": gap if contender == "LC" else None,
        "warnings": list(warnings),
    }


def case(lc, direct, magnitude, gradual, **options):
    others = {name: options[name] for name in options.keys() & {"cell", "seed", "is_fit"}}
    errors = {"direct": direct, "magnitude": magnitude, "gradual": gradual}
    return [row("LC", lc, **options), *(row(name, error, **others) for name, error in errors.items())]


def of(*cases, label="new", measured_on="test"):
    return summary.results(list(itertools.chain(*cases)), label, measured_on)


@pytest.mark.parametrize(
    "lc, best, within",
    [(2.29, 2.0, True), (2.31, 2.0, False), (41.1, 40.0, True), (41.3, 40.0, False), (1.9, 2.0, True)],
)
def test_lc_may_be_behind_by_points_or_by_a_part_of_the_error(lc, best, within):
    (result,) = of(case(lc, 90.0, best + 3, best))
    assert result.best == "gradual" and result.behind == pytest.approx(lc - best)
    assert result.is_within == within and result.is_below == (lc < best)


def test_the_best_of_the_others_is_that_of_the_means_and_seeds_are_averaged():
    (result,) = of(case(5, 90, 2, 4, seed=0), case(6, 90, 8, 5, seed=1))
    assert result.best == "gradual" and result.behind == pytest.approx(1.0)
    assert result.by_chance == 0 and not result.is_within


def test_what_is_chance_between_three_seeds_is_no_lag():
    lags = (2.0, -1.0, 1.1)  # 0.7 on average, with a standard error of 0.89
    (result,) = of(*(case(5 + lag, 90, 8, 5, seed=seed) for seed, lag in enumerate(lags)))
    assert result.by_chance == pytest.approx(2 * np.std(lags, ddof=1) / 3**0.5)
    assert result.is_within
    (result,) = of(*(case(5 + lag, 90, 8, 5, seed=seed) for seed, lag in enumerate((0.7, 0.6, 0.8))))
    assert not result.is_within


def test_silence_is_a_large_gap_without_a_word():
    silent = [
        of(case(9, 90, 8, 5, gap=gap, warnings=said))[0].is_silent
        for gap, said in ((0.06, ()), (0.06, ("few batches",)), (0.04, ()))
    ]
    assert silent == [True, False, False]
    # One seed that warns does not speak for the other.
    loud = case(9, 90, 8, 5, gap=0.3, warnings=["few batches"])
    assert of(loud, case(9, 90, 8, 5, gap=0.3, seed=1))[0].is_silent
    assert not of(loud, case(9, 90, 8, 5, gap=0.01, seed=1))[0].is_silent


def test_cells_are_counted_for_each_kind_of_net():
    found = of(
        case(1, 90, 3, 2, cell="a", is_fit=True),
        case(95, 90, 3, 2, cell="b", gap=0.5),
        case(2.1, 90, 3, 2, cell="c"),
    )
    expected = {"cells": 3, "within": 2, "below": 1, "worse than direct": 1, "gap in silence": 1}
    assert summary.counts(found) == expected
    lines = [line.split() for line in summary.counted(found).splitlines()]
    assert "| all | 3 | 2 | 1 | 1 | 1 |".split() in lines
    assert "| fit | 1 | 1 | 1 | 0 | 0 |".split() in lines
    assert "| shown | 2 | 1 | 0 | 1 | 1 |".split() in lines
    table = summary.cells_table(found).splitlines()
    assert table[2].split()[1] == "b" and "behind, worse than direct, silent" in table[2]
    assert "**95.00** (2.00)" in summary.settings_table(found) and "1.00 (2.00)" in summary.settings_table(
        found
    )


def test_a_cell_counts_when_all_have_run_it_with_this_state_of_lc():
    rows = case(1, 90, 3, 2)
    assert of(rows[:3]) == [] and of(rows, label="old") == [] and of(rows, measured_on="validation") == []
    later = row("LC", 5, label="old")
    assert [result.errors["LC"] for result in of(rows, [later], label="old")] == [5]
    assert [result.errors["LC"] for result in of(rows, [later])] == [1]


def test_cells_are_unlike_and_the_dear_ones_come_last():
    found = cells.cells(seeds=(0, 1))
    names = [cell.name for cell in found]
    assert len(set(names)) == len(names) and len({(c.net, c.setting, c.seed) for c in found}) == len(names)
    half = len(found) // 2
    assert {cell.seed for cell in found[:half]} == {0}
    assert {cell.net for cell in found[: len(NETS)]} == set(NETS)
    assert {cell.optimizer for cell in found} == set(optimizers.OPTIMIZERS)
    assert {1, 5, 25, 100, 400} <= {cell.batches for cell in found}
    for cell in found:
        size, examples = NETS[cell.net].batch(cell.batches)
        assert size >= 2 and -(-examples // size) == cell.batches
    seen = [
        cell.epochs * NETS[cell.net].batch(cell.batches)[1] for cell in found[:half] if cell.net == "unet"
    ]
    assert seen[-1] == max(seen) == 60 * 800


def test_every_optimizer_of_keras_has_a_usual_rate():
    exported = {
        name
        for name, value in vars(keras.optimizers).items()
        if inspect.isclass(value) and issubclass(value, keras.optimizers.Optimizer)
    }
    assert exported - {"Optimizer"} <= set(optimizers.OPTIMIZERS)


@pytest.mark.parametrize("name", optimizers.OPTIMIZERS)
def test_an_optimizer_goes_downhill(name):
    variable = keras.Variable(np.full((4, 3), 0.5, "float32"), name="kernel")
    optimizer = optimizers.make(name, 0.1, 1.0, "falling", 30)
    for _ in range(30):
        scale = optimizer.dynamic_scale if name == "LossScaleOptimizer" and optimizer.built else 1.0
        scale = 2.0**15 if name == "LossScaleOptimizer" and not optimizer.built else scale
        optimizer.apply([2 * variable.value * scale], [variable])
    assert np.all(variable.numpy() < 0.5 - 1e-4) and np.all(variable.numpy() > -0.5)


def test_rates_go_as_their_schedules_say():
    def rates(name):
        optimizer = optimizers.make("SGD", 0.1, 0.5, name, 100)
        found = []
        for batch in (0, 20, 60, 100):
            optimizer.iterations.assign(batch)
            found.append(float(optimizer.learning_rate))
        return found

    assert rates("constant") == pytest.approx([0.05] * 4)
    assert rates("falling") == pytest.approx([0.05 * 0.98 ** (0.4 * batch) for batch in (0, 20, 60, 100)])
    assert rates("cosine") == pytest.approx([0.05, 0.05 * 0.904508, 0.05 * 0.345492, 0], abs=1e-6)
    assert rates("warm-up") == pytest.approx([0, 0.05, 0.05, 0.05])
    assert rates("warm-up, cosine") == pytest.approx([0, 0.05, 0.025, 0], abs=1e-6)


def test_batches_come_in_another_order_each_epoch_and_in_the_same_for_all():
    def orders(seed):
        data = running.batches((np.arange(12), np.arange(12)), 4, seed)
        return [np.concatenate([x.numpy() for x, _ in data]).tolist() for _ in range(2)]

    first, second = orders(0)
    assert first != second and sorted(first) == list(range(12))
    assert orders(0) == [first, second] and orders(1) != [first, second]


def test_a_tiny_matrix_is_run_resumed_and_drawn(tmp_path, capsys, monkeypatch):
    pytest.importorskip("matplotlib")
    monkeypatch.setattr(cells, "TINY", cells.TINY[1:])
    output = tmp_path / "matrix.json"
    run = ["--tiny", "--output", str(output)]
    matrix.main([*run, "--budget-minutes", "0"])
    assert running.Store(output).rows() == [] and "The time is over" in capsys.readouterr().out
    matrix.main([*run, "--label", "old"])
    rows = running.Store(output).rows()
    assert [row["contender"] for row in rows] == ["LC", "direct", "magnitude", "gradual"]
    assert all(abs(row["kept"] - 0.05) < 1e-3 and row["error"] > row["reference_error"] for row in rows)
    assert "| all" in capsys.readouterr().out

    # Another state of LC: only LC runs, and from the same reference.
    matrix.main([*run, "--label", "new", "--options", '{"multipliers": false}'])
    again = running.Store(output).rows()
    assert again[:4] == rows and [row["label"] for row in again[4:]] == ["new"]
    assert {row["reference_error"] for row in again} == {rows[0]["reference_error"]}

    monkeypatch.setattr(matrix, "measure", None)  # nothing is left to measure
    matrix.main(
        [*run, "--label", "new", "--picture", str(tmp_path / "a.png"), "--docs", str(tmp_path / "a.md")]
    )
    assert (tmp_path / "a.png").stat().st_size > 5000
    assert "SignMomentum, 5 × 2 epochs" in (tmp_path / "a.md").read_text()


def test_an_error_of_a_contender_is_a_result(tmp_path, monkeypatch):
    def fails(budget):
        def stop(epoch, logs):
            raise ValueError("Training diverged")

        return keras.callbacks.LambdaCallback(on_epoch_end=stop)

    monkeypatch.setitem(running._BASELINES, "magnitude", fails)
    found = running.measure(
        cells.TINY[0], "magnitude", label="new", validation=True, folder=tmp_path / "references"
    )
    assert found["warnings"] == ["ValueError: Training diverged"] and found["error"] > 0
    assert found["measured_on"] == "validation"
