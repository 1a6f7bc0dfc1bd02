import collections
import math

import numpy as np
import pytest

from lc_keras.algorithm.schedules import Automatic, Exponential, Geometric, values


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


def automatic(steps=21, rate=1.0, batches=1000, gap=1e-9):
    schedule = Automatic(steps)
    return np.array([schedule(i, rate, batches, gap) for i in range(steps)])


def test_automatic_grows_geometrically_while_the_gap_is_small():
    mus = automatic()
    np.testing.assert_allclose(np.diff(np.log(mus)), np.log(mus[-1] / mus[0]) / 20)
    assert 10 < mus[-1] / mus[0] < 1000


def test_automatic_is_scaled_by_the_rate_and_the_length_of_the_run():
    np.testing.assert_allclose(automatic(rate=0.1), 10 * automatic())
    np.testing.assert_allclose(automatic(batches=4000), automatic() / 4)
    # Beyond 5,000 batches it is no slower.
    np.testing.assert_array_equal(automatic(batches=20_000), automatic(batches=5000))


def test_automatic_grows_faster_where_the_gap_lags():
    lagging, small = automatic(gap=0.9), automatic()
    np.testing.assert_array_equal(lagging[:10], small[:10])
    assert (np.diff(lagging / small) > -1e-9).all()
    assert lagging[-1] / small[-1] == pytest.approx(30)


@pytest.mark.parametrize("steps", [21, 81])
def test_automatic_grows_as_much_faster_in_however_many_steps(steps):
    faster = automatic(steps, gap=0.1)[-1] / automatic(steps)[-1]
    # 10 times the integral of log(gap / expected) where that is positive.
    assert faster == pytest.approx(np.exp(10 * np.log(25) / 16), rel=0.4)


def test_automatic_stays_finite_where_the_rate_decays_to_zero():
    schedule = Automatic(5)
    rates = [1.0, 0.1, 1e-3, 1e-9, 0.0]
    assert np.isfinite([schedule(i, rate, 100, 0.9) for i, rate in enumerate(rates)]).all()


def test_automatic_grows_even_where_the_rate_does():
    schedule = Automatic(5)
    assert (np.diff([schedule(i, 10.0**i, 100, math.nan) for i in range(5)]) > 0).all()


def test_automatic_of_one_step():
    assert automatic(steps=1)[0] == automatic()[0]


def test_automatic_is_not_held_near_a_guess():
    guessed, known = Automatic(5), Automatic(5)
    guessed(0, 1.0, 100, 0.1, guessed=True)
    known(0, 1e-4, 100, 0.1)
    assert guessed(1, 1e-4, 100, 0.1) == known(1, 1e-4, 100, 0.1)
