"""What sets μ, scales and portions of a run, each by itself."""

from types import SimpleNamespace

import keras
import numpy as np
import pytest

from lc_keras import Geometric, L0Constraint, Neurons, Task
from lc_keras.algorithm.lagrangian import Lagrangian
from lc_keras.algorithm.tasks import bind_tasks
from lc_keras.fit import mu as pace
from lc_keras.fit.mu import Pull

RATE, BATCHES = 0.2, 50


def made(mu="auto", neurons=True, batches=BATCHES, guessed=False):
    """A `Pull` of three variables, of which a kernel and its bias make neurons."""
    widths = {"first": 5, "second": 4, "third": 3}
    layers = [keras.layers.Dense(width, name=name) for name, width in widths.items()]
    model = keras.Sequential([keras.Input((6,)), *layers])
    first = L0Constraint(0.5, Neurons()) if neurons else L0Constraint(0.5)
    tasks = [Task(first, "first/kernel"), Task(L0Constraint(0.5), "second/kernel")]
    plan = SimpleNamespace(steps=11, epochs=4, batches=batches, length=0.25, first_length=1.5)
    seen = []
    rate = SimpleNamespace(effective=lambda: RATE, guessed=guessed, updating=["it"], look_ahead=seen.append)
    return Pull(mu, plan, Lagrangian(bind_tasks(tasks, model)), rate), seen


def test_a_gap_of_neurons_counts_ten_times():
    (neurons, _), (weights, _) = made(), made(neurons=False)
    for step, gap in ((0, 0.9), (7, 0.4), (10, 0.3)):
        assert neurons.mu(step, gap) == pytest.approx(weights.mu(step, 10 * gap))
    assert made()[0].mu(10, 0.3) > 1.5 * made(neurons=False)[0].mu(10, 0.3)


@pytest.mark.parametrize("batches, counted", [(BATCHES, BATCHES), (None, 100)])
def test_a_run_is_as_long_as_its_batches(batches, counted):
    run, seen = made(batches=batches)
    run.look_ahead()
    assert seen == [4 * counted]
    assert run.mu(0, 1.0) == pytest.approx(1.5 / (RATE * 4 * counted))


def test_a_schedule_is_followed():
    run, _ = made(Geometric(1.0, 1024.0))
    assert [run.mu(step, 0.9) for step in (0, 5, 10)] == pytest.approx([1, 32, 1024])
    assert run.given == pytest.approx([2.0**i for i in range(11)]) and run.state() is None
    assert run.scales(1) is None and run.portions(1, 1.0) is None


def test_multipliers_of_neurons_move_as_far_as_the_l_step_closed():
    run, _ = made()
    assert len(run.portions(0, 1.0)) == 3
    for step, epochs in ((0, 1.5), (3, 0.25)):
        closed = 1 - np.exp(-RATE * 0.1 * epochs * BATCHES)
        np.testing.assert_allclose(run.portions(step, 0.1), [closed, closed, 1])
    assert made(neurons=False)[0].portions(3, 0.1) is None


def test_scales_of_neurons_go_by_their_gradients(monkeypatch):
    asked = []

    def gradients(optimizer, variables):
        asked.append((optimizer, [v.name for v in variables]))
        return found

    monkeypatch.setattr(pace, "relative_gradients", gradients)
    run, _ = made()
    found = None
    assert run.scales(0) is None
    found = [4.0, 0.5]
    np.testing.assert_allclose(run.scales(0), [4, 0.5, 1])
    assert asked == 2 * [("it", ["kernel", "bias"])]
    # What is measured late is the pull itself.
    np.testing.assert_allclose(run.scales(10), [1, 1, 1])
    assert made(neurons=False)[0].scales(0) is None


def test_another_run_goes_on_from_its_state():
    (one, _), (two, _) = made(), made()
    for step in range(8):
        one.mu(step, 0.05)
    fresh = made()[0]
    two.load(one.state())
    expected = one.mu(8, 0.05)
    assert two.mu(8, 0.05) == expected != fresh.mu(8, 0.05)
