"""The strength of the pull in each L step of a run, by itself."""

import dataclasses
import itertools
import json
import math
from types import SimpleNamespace

import numpy as np
import pytest

from lc_keras import Geometric
from lc_keras.algorithm.beside import Reach
from lc_keras.fit.mu import Beside, Carrying, Scheduled, Sliding, ThroughLoss, Together, is_automatic
from lc_keras.fit.plan import Plan

RATE, BATCHES, EPOCHS = 0.2, 50, 4
TINY, LENGTH = 1e-9, EPOCHS * BATCHES


def plan(steps, batches=BATCHES, epochs=EPOCHS):
    return Plan(steps, epochs / steps, epochs / steps, epochs, batches)


def through_loss(guessed=False, rates=(), steps=11, **options):
    rates, seen = iter(rates), []
    rate = SimpleNamespace(effective=lambda: next(rates, RATE), guessed=guessed, look_ahead=seen.append)
    return ThroughLoss(plan(steps, **options), rate), seen


def restored(state):
    """A state, as it is after being written and read."""
    return json.loads(json.dumps(state))


def test_what_is_automatic():
    assert is_automatic("auto")
    assert not any(map(is_automatic, (Geometric(1.0, 2.0), [1.0, 2.0], np.array([1.0, 2.0]))))


# Through the loss.


@pytest.mark.parametrize("batches, counted", [(BATCHES, BATCHES), (None, 100)])
def test_through_the_loss_the_rate_and_the_length_of_the_run_set_mu(batches, counted):
    pull, seen = through_loss(batches=batches, rates=(RATE, 1.5 * RATE, RATE / 1000))
    pull.begin()
    assert seen == [EPOCHS * counted] and pull.given == "auto"
    mu, reach = pull.next(0, np.nan)
    assert reach is None and mu == pytest.approx(1.5 / (RATE * EPOCHS * counted))
    middle, _ = pull.next(5, TINY)
    assert middle == pytest.approx((1.5 * 80) ** 0.5 / (1.5 * RATE * EPOCHS * counted))
    # A thousandth of the first rate counts as a tenth.
    assert pull.next(10, TINY)[0] == pytest.approx(80 / (RATE / 10 * EPOCHS * counted))


def test_through_the_loss_mu_grows_faster_where_the_gap_lags():
    pull, _ = through_loss()
    pull.next(0, np.nan)
    pull.next(5, 0.9)
    progress, gap = 0.8, 0.3
    expected = 0.5 * (0.02 / 0.5) ** (2 * progress - 1)
    found, _ = pull.next(8, gap)
    strength = 1.5 * (80 / 1.5) ** progress * (gap / expected) ** (10 / 11)
    assert found == pytest.approx(strength / (RATE * LENGTH)) and gap > expected


def test_a_rate_that_was_guessed_holds_no_later_one():
    pull, _ = through_loss(guessed=True, rates=(RATE, RATE / 1000))
    pull.next(0, np.nan)
    assert pull.next(5, TINY)[0] == pytest.approx((1.5 * 80) ** 0.5 / (RATE / 1000 * LENGTH))


def test_a_schedule_is_followed():
    pull = Scheduled(plan(11), Geometric(1.0, 1024.0))
    pull.begin()
    assert [pull.next(step, 0.9) for step in (0, 5, 10)] == [
        (pytest.approx(mu), None) for mu in (1, 32, 1024)
    ]
    assert pull.given == pytest.approx([2.0**i for i in range(11)])
    assert pull.state() == {}


def test_through_the_loss_another_run_goes_on_from_its_state():
    one, two, fresh = (through_loss()[0] for _ in range(3))
    for step in range(8):
        one.next(step, 0.5)
    two.load(restored(one.state()))
    expected = one.next(8, 0.05)
    assert two.next(8, 0.05) == expected != fresh.next(8, 0.05)


def automatic(steps=21, rate=1.0, batches=1000, gap=1e-9):
    pull, _ = through_loss(steps=steps, rates=itertools.repeat(rate), batches=batches, epochs=1)
    return np.array([pull.next(i, gap)[0] for i in range(steps)])


def test_automatic_grows_geometrically_while_the_gap_is_small():
    mus = automatic()
    np.testing.assert_allclose(np.diff(np.log(mus)), np.log(mus[-1] / mus[0]) / 20)
    assert 10 < mus[-1] / mus[0] < 1000


def test_automatic_is_scaled_by_the_rate_and_the_length_of_the_run():
    np.testing.assert_allclose(automatic(rate=0.1), 10 * automatic())
    np.testing.assert_allclose(automatic(batches=4000), automatic() / 4)
    # Beyond 5,000 batches, it is no slower.
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


def test_mu_stays_finite_where_the_rate_decays_to_zero():
    pull, _ = through_loss(steps=5, rates=[1.0, 0.1, 1e-3, 1e-9, 0.0])
    assert np.isfinite([pull.next(i, 0.9)[0] for i in range(5)]).all()


def test_mu_grows_even_where_the_rate_does():
    pull, _ = through_loss(steps=5, rates=[10.0**i for i in range(5)])
    assert (np.diff([pull.next(i, np.nan)[0] for i in range(5)]) > 0).all()


def test_automatic_of_one_step():
    assert automatic(steps=1)[0] == automatic()[0]


# Beside the optimizer.

STEPS, LONG = 40, 1000


def cost(**kind):
    """What the rule asks about a cost."""
    pruning = {"can_loosen": True, "keeps_values": True, "close_values": False, "shrinks": False}
    return SimpleNamespace(**pruning | {"needs_units": False} | kind)


def growing(step, length=LENGTH, units=False):
    """The strength in a batch, and the slack, while the reach grows."""
    removed = step / STEPS / 0.75
    strength = 50 * (max(300, 0.75 * length) / 50) ** min(removed, 1) / (0.75 * length)
    later = 0.25 if length >= 400 else 0.1
    return strength, (1 if units else later) * max(0, 1 - removed / 0.9) ** 3


def fixed(step, length=LENGTH, first=1.5):
    return first * (80 / first) ** (step / STEPS) / length


def asking():
    """A pull that asks how far weights move, in a run of 40 L steps of 25 batches."""
    return Beside(plan(STEPS, LONG // EPOCHS), True, [cost()])


def far(pull, steps, moved=1.0):
    for step in steps:
        pull.look(step, moved, 25)


def same_reach(reach, **expected):
    for name, value in expected.items():
        assert getattr(reach, name) == pytest.approx(value, rel=1e-9), name


@pytest.mark.parametrize("by_gradient, units", [(False, False), (True, False), (False, True)])
@pytest.mark.parametrize("batches, counted", [(BATCHES, BATCHES), (None, 100), (99, 99)])
def test_beside_the_reach_grows(batches, counted, by_gradient, units):
    pull, before = Beside(plan(STEPS, batches), by_gradient, [cost(needs_units=units)]), 0.0
    pull.begin()
    for step in range(30):
        strength, reach = pull.next(step, np.nan)
        expected, slack = growing(step, EPOCHS * counted, units=units)
        assert strength == pytest.approx(expected)
        if by_gradient and step * EPOCHS * counted / STEPS < 5:
            assert reach == Reach(part=1.0, slack=pytest.approx(slack), frees=True)
        else:
            same_reach(reach, part=1 - np.exp(-expected), ratio=before / expected, slack=slack, frees=True)
        before = expected
    assert slack == 0 and growing(26)[1] > 0
    for step in range(30, STEPS):
        strength, reach = pull.next(step, np.nan)
        assert strength == pytest.approx(300 / (0.75 * EPOCHS * counted))
        assert reach == Reach(part=1.0, ratio=0.0, slack=0.0, frees=True)
    assert pull.given == "auto"


@pytest.mark.parametrize("units", [False, True])
@pytest.mark.parametrize("batches", [BATCHES, 100, 2000])
def test_however_long_the_run_the_removal_ends_with_a_strong_pull(batches, units):
    """Else weights that the loss wants hold out, and go together when few batches remain."""
    pull, removal = Beside(plan(STEPS, batches), False, [cost(needs_units=units)]), 0.75 * EPOCHS * batches
    parts = [pull.next(step, np.nan)[1].part for step in range(30)]
    assert parts[0] == pytest.approx(1 - np.exp(-50 / removal)) and parts == sorted(parts)
    # Growth ends with the step after these.
    assert 0.5 < parts[-1] < 1 and pull.next(30, np.nan)[0] == pytest.approx(max(1, 300 / removal))


@pytest.mark.parametrize("by_gradient", [False, True])
@pytest.mark.parametrize("units", [False, True])
def test_with_batch_normalisation_single_weights_go_at_once_under_sgd(by_gradient, units):
    pulls = [Beside(plan(STEPS), by_gradient, [cost(needs_units=units)], normal) for normal in (True, False)]
    normalized, plain = ([pull.next(step, np.nan)[1] for step in range(STEPS)] for pull in pulls)
    if by_gradient and not units:
        assert all(reach.part == 1 and reach.ratio == 0 and reach.frees for reach in normalized)
        assert [reach.slack for reach in normalized] == [reach.slack for reach in plain]
        assert plain[10].part < 1
    else:
        assert normalized == plain


def test_where_weights_move_far_three_times_in_a_row_the_budget_is_fixed():
    pull = asking()
    for step in range(4):
        pull.next(step, np.nan)
        assert pull.looks(step) == (step > 0)
        if step:
            far(pull, [step])
    assert not pull.looks(4)
    before = 0.0
    for step in range(4, STEPS):
        strength, reach = pull.next(step, np.nan)
        expected = fixed(step, LONG)
        assert strength == pytest.approx(expected)
        # λ begins from 0, because the λ before belonged to a stronger pull.
        same_reach(reach, part=1 - np.exp(-expected), ratio=before / expected, frees=False)
        assert reach.slack is None
        before = expected


def test_a_fixed_budget_counts_five_thousand_batches_at_most():
    pull = Beside(plan(STEPS, epochs=200), True, [cost()])
    far(pull, range(3), 10.0)
    assert pull.next(3, np.nan)[0] == pytest.approx(fixed(3, 5000))


def test_far_is_what_the_rest_of_the_run_comes_to():
    # After step 2 of 40, 925 of 1,000 batches are left: 37 times 25.
    just = 1 / 37
    for moved, is_fixed in ((1.01 * just, True), (0.99 * just, False)):
        pull = asking()
        far(pull, [0, 1])
        far(pull, [2], moved)
        assert pull.looks(3) != is_fixed
    far(pull, [3, 4])
    assert pull.looks(5)  # two in a row
    far(pull, [5])
    assert not pull.looks(6)


@pytest.mark.parametrize("batches, first", [(250, 1), (50, 5), (10, 25)])
def test_it_looks_in_the_first_part_of_the_run_once_what_went_at_once_is_made_up_for(batches, first):
    pull = Beside(plan(STEPS, batches), True, [cost()])
    assert [step for step in range(STEPS) if pull.looks(step)] == list(range(first, 7))


@pytest.mark.parametrize("looks", [1, 2, 3])
def test_beside_another_run_goes_on_from_its_state(looks):
    one, two = asking(), asking()
    for step in range(3):
        one.next(step, np.nan)
        far(one, range(step, min(step + 1, looks)))
    two.load(restored(one.state()))
    for pull in (one, two):
        far(pull, range(looks, 3))
    assert two.next(3, np.nan) == one.next(3, np.nan)
    assert one.next(4, np.nan)[1].ratio > 0 and two.looks(4) == one.looks(4) is False


def test_it_looks_at_optimizers_alone_whose_steps_go_by_the_gradient():
    assert not any(map(Beside(plan(STEPS), False, [cost()]).looks, range(STEPS)))


def test_with_batch_normalisation_it_does_not_look():
    pull, other = (Beside(plan(STEPS), True, [cost()], normalizes) for normalizes in (True, False))
    assert not any(map(pull.looks, range(STEPS))) and any(map(other.looks, range(STEPS)))


def test_an_epoch_that_is_longer_than_it_was_taken_to_be():
    unknown = plan(STEPS, None)
    pull = Beside(unknown, True, [cost()])
    pull.next(2, np.nan)
    unknown.batches = 1000
    strength, reach = pull.next(4, np.nan)
    assert strength == pytest.approx(growing(4, EPOCHS * 1000)[0]) and reach.ratio == 1


def test_nothing_is_seen_of_no_batch():
    pull = asking()
    far(pull, [1, 2])
    pull.look(3, 1.0, 0)
    assert pull.looks(4)


def test_units_of_a_fixed_budget_go_in_three_quarters_of_the_run():
    pull, weights = (
        Beside(plan(STEPS), True, [cost(can_loosen=False), cost(needs_units=True)]),
        Beside(plan(STEPS), True, [cost(can_loosen=False)]),
    )
    last = math.ceil(0.75 * STEPS)
    for step in range(STEPS):
        (strength, reach), (gentle, _) = pull.next(step, np.nan), weights.next(step, np.nan)
        if step < last:
            assert reach.slack is None and not reach.frees and strength > gentle
        else:
            assert reach == Reach(part=1.0, slack=0.0, frees=True)


def test_a_budget_that_cannot_be_loosened_is_fixed_from_the_start():
    pull = Beside(plan(STEPS), True, [cost(can_loosen=False)])
    assert not pull.looks(0)
    for step in (0, STEPS - 1):
        strength, reach = pull.next(step, np.nan)
        assert strength == pytest.approx(fixed(step))
        assert reach.slack is None and not reach.frees


@pytest.mark.parametrize("by_gradient", [False, True])
def test_what_is_kept_comes_to_other_values_in_the_last_quarter_and_is_put_there_at_the_end(by_gradient):
    pull, path = (
        Beside(plan(STEPS), by_gradient, [cost(keeps_values=False), cost()]),
        Beside(plan(STEPS), False, [cost()]),
    )
    if by_gradient:
        # With a fixed budget, values do not count yet: all weights are pulled as if there were no values.
        far(pull, range(3))
    for step in range(STEPS):
        strength, reach = pull.next(step, np.nan)
        if step >= 0.9 * STEPS:
            assert reach == Reach(part=1.0, frees=True, puts=True)
        elif step >= 0.75 * STEPS:
            grown = 1.5 * (80 / 1.5) ** ((step / STEPS - 0.75) / 0.15) / (EPOCHS * BATCHES / 4)
            assert strength == pytest.approx(grown)
            assert reach.slack is None and not reach.frees and 0 < reach.part < 1 and reach.ratio > 0
        elif by_gradient:
            assert strength == pytest.approx(fixed(step / 0.75, 0.75 * LENGTH))
            assert reach.slack == 0 and not reach.frees and reach.part < 1
        else:
            assert (strength, reach) == path.next(step, np.nan)


@pytest.mark.parametrize("is_far", [False, True])
def test_values_that_are_close_are_left_to_the_last_c_step(is_far):
    pull, path = (
        Beside(plan(STEPS), True, [kind]) for kind in (cost(keeps_values=False, close_values=True), cost())
    )
    for each in (pull, path):
        far(each, range(3 * is_far))
    for step in range(STEPS):
        strength, reach = path.next(step, np.nan)
        # Without the values, θ is that of a budget that is not loosened.
        assert pull.next(step, np.nan) == (strength, dataclasses.replace(reach, slack=reach.slack or 0.0))


def test_a_budget_that_shrinks_what_is_kept_falls_while_all_are_pulled():
    pull = Beside(plan(STEPS), True, [cost(keeps_values=False, shrinks=True)])
    assert not pull.looks(0)
    for step in range(STEPS):
        strength, reach = pull.next(step, np.nan)
        assert strength == pytest.approx(fixed(step, first=5)) and not reach.frees and 0 < reach.part < 1
        assert (reach.slack or 0) == pytest.approx(max(0, 1 - step / STEPS / 0.4) ** 3)
    # If a cost does not loosen to itself, θ is that of the cost.
    assert reach.slack is None and reach.ratio > 0.9
    rigid = Beside(plan(STEPS), True, [cost(can_loosen=False), cost(keeps_values=False, shrinks=True)])
    assert rigid.next(0, np.nan)[1].slack is None


# Of few values.


def test_what_the_optimizer_moves_is_carried_in_full_and_then_less():
    pull, batches = Carrying(plan(STEPS)), LENGTH / STEPS
    for step in range(STEPS):
        strength, reach = pull.next(step, np.nan)
        assert strength == pytest.approx(5 / batches) and reach.slack is None
        # A weight that moves by 1 in each batch.
        away = 0.0
        for _ in range(1000):
            away = (1 - reach.part) * (away + 1)
        counted = reach.ratio * away
        assert counted == pytest.approx(batches * max(0, 1 - step / STEPS / 0.9), abs=1e-9)


def test_low_rank_is_put_onto_theta_by_each_c_step_and_pulled_there_in_the_last_quarter():
    pull = Sliding(plan(STEPS))
    for step in range(STEPS):
        strength, reach = pull.next(step, np.nan)
        assert strength == pytest.approx(0.3 * max(0, step / STEPS - 0.75) / 0.25)
        assert reach == Reach(strength, puts=True)


# Several at once.


def test_each_of_several_pulls_goes_its_own_way_and_on_from_its_state():
    def pulls():
        laid = plan(STEPS)
        return Together(laid, [Beside(laid, True, [cost()]), Carrying(laid)])

    one, beside, carrying = pulls(), Beside(plan(STEPS), True, [cost()]), Carrying(plan(STEPS))
    for step in range(STEPS):
        assert one.looks(step) == beside.looks(step)
        if one.looks(step):
            for pull in (one, beside):
                far(pull, [step])
        strength, reaches = one.next(step, np.nan)
        assert (strength, reaches[0]) == beside.next(step, np.nan)
        assert reaches[1] == carrying.next(step, np.nan)[1]
    two = pulls()
    two.load(restored(one.state()))
    assert not two.looks(1)
