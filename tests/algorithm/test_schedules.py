import collections
import math

import numpy as np
import pytest

from lc_keras.algorithm.schedules import Exponential, Geometric, values


def test_exponential_grows_by_its_factor():
    schedule = Exponential(9e-5, 1.1)
    assert schedule(0) == 9e-5
    np.testing.assert_allclose([schedule(i) for i in range(1, 5)], [9e-5 * 1.1**i for i in range(1, 5)])


@pytest.mark.parametrize("steps", [2, 3, 40])
def test_geometric_spans_its_range_in_equal_ratios(steps):
    mus = Geometric(1e-3, 1e-1).over(steps)
    assert len(mus) == steps
    np.testing.assert_allclose([mus[0], mus[-1]], [1e-3, 1e-1])
    np.testing.assert_allclose(np.diff(np.log(mus)), math.log(100) / (steps - 1))


def test_geometric_of_one_step_is_its_first_value():
    assert Geometric(1e-3, 1e-1).over(1) == [1e-3]


@pytest.mark.parametrize(
    "schedule",
    [
        Exponential(0.5, 2.0),
        Geometric(0.5, 4.0),
        lambda step: 0.5 * 2**step,
        [0.5, 1.0, 2.0, 4.0],
        (0.5, 1, 2, 4),
        [0.5, 1.0, 2.0, 4.0, 8.0],
        np.array([0.5, 1.0, 2.0, 4.0]),
        collections.deque([0.5, 1.0, 2.0, 4.0]),
    ],
)
def test_values_of_each_kind_of_schedule(schedule):
    mus = values(schedule, 4)
    np.testing.assert_allclose(mus, [0.5, 1.0, 2.0, 4.0])
    assert all(type(mu) is float for mu in mus)


def test_values_asks_a_function_for_each_step_once():
    asked = []
    values(lambda step: asked.append(step) or 1.0 + step, 3)
    assert asked == [0, 1, 2]


@pytest.mark.parametrize("initial", [0.0, -1.0, math.inf, math.nan])
def test_exponential_rejects_its_initial(initial):
    with pytest.raises(ValueError, match="`initial`"):
        Exponential(initial, 1.1)


@pytest.mark.parametrize("factor", [1.0, 0.9, -2.0, math.inf, math.nan])
def test_exponential_rejects_its_factor(factor):
    with pytest.raises(ValueError, match="`factor`"):
        Exponential(1e-3, factor)


@pytest.mark.parametrize("first", [0.0, -1.0, math.inf, math.nan])
def test_geometric_rejects_its_first(first):
    with pytest.raises(ValueError, match="`first`"):
        Geometric(first, 1.0)


@pytest.mark.parametrize("last", [0.1, 0.01, 0.0, -1.0, math.inf, math.nan])
def test_geometric_rejects_its_last(last):
    with pytest.raises(ValueError, match="`last`"):
        Geometric(0.1, last)


@pytest.mark.parametrize("bad", [0.0, -1.0, math.inf, math.nan])
@pytest.mark.parametrize("kind", [list, lambda mus: lambda step: mus[step]])
def test_values_rejects_mu_that_is_not_positive_and_finite(kind, bad):
    with pytest.raises(ValueError, match=r"positive and finite.*at L step 1"):
        values(kind([0.5, bad, 2.0]), 3)


@pytest.mark.parametrize("mus", [[0.5, 1.0, 1.0], [0.5, 1.0, 0.9]])
def test_values_rejects_mu_that_does_not_grow(mus):
    with pytest.raises(ValueError, match=r"grow.*at L step 2 after μ=1.0"):
        values(mus, 3)


def test_values_of_nothing():
    with pytest.raises(ValueError, match=r"a value for each L step. Received: mu=\[\]"):
        values([], 2)


def test_values_ignores_what_comes_after_the_last_step():
    assert values([0.5, 1.0, 0.0], 2) == [0.5, 1.0]


@pytest.mark.parametrize("bad", ["2", None, True])
@pytest.mark.parametrize("kind", [list, lambda mus: mus.__getitem__], ids=["list", "function"])
def test_values_rejects_mu_that_is_no_number(kind, bad):
    with pytest.raises(TypeError, match="every μ to be a number.*at L step 1"):
        values(kind([1.0, bad]), 2)


def test_steps_of_geometric():
    assert Geometric(1.0, 4.0).over(2.0) == [1.0, 4.0]
    for steps, error in ((0, ValueError), (1.5, ValueError), ("2", TypeError)):
        with pytest.raises(error, match="`steps` to be a whole number"):
            Geometric(1.0, 4.0).over(steps)


def test_values_rejects_a_short_sequence():
    with pytest.raises(ValueError, match=r"each of 3 L steps.*2 values"):
        values([0.5, 1.0], 3)


@pytest.mark.parametrize("schedule", [0.5, "fast", None, np.array(0.5), np.ones((2, 2))], ids=str)
def test_values_rejects_other_types(schedule):
    with pytest.raises(TypeError, match="`mu`"):
        values(schedule, 3)
