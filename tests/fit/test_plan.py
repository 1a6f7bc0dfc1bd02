"""Where L steps end, in epochs and in batches."""

import pytest

from lc_keras.fit.plan import Plan


@pytest.mark.parametrize(
    "epochs, batches, execution, steps, length",
    [
        (20, 234, 1, 80, 0.25),  # a quarter of an epoch
        (60, 234, 1, 240, 0.25),
        (10, 234, 1, 80, 0.125),  # short enough to make 80 of them
        (1, 234, 1, 16, 15 / 234),  # but no shorter than 15 batches
        (1, 234, 39, 6, 39 / 234),  # or than an execution
        (5, 10, 1, 4, 1.5),
        (30, 5, 1, 10, 3.0),
        (2, 5, 1, 1, 3.0),
        (5, None, 1, 20, 0.25),  # in epochs of unknown length, all that is known is a quarter
    ],
)
def test_default_length(epochs, batches, execution, steps, length):
    plan = Plan.of(None, None, None, epochs, batches, execution)
    assert plan.steps == steps
    assert plan.length == plan.first_length == pytest.approx(length)


@pytest.mark.parametrize(
    "epochs, batches, execution, steps, length",
    [
        (20, 234, 1, 160, 0.125),  # short enough to make 160 of them
        (60, 234, 1, 240, 0.25),  # no longer than a quarter of an epoch
        (10, 234, 1, 156, 15 / 234),  # no shorter than 15 batches
        (2, 234, 1, 40, 2 / 40),  # or, in a short run, than a 40th of it
        (30, 5, 1, 40, 30 / 40),
        (1, 234, 39, 6, 39 / 234),  # no shorter than an execution
        (2, 8, 1, 16, 1 / 8),  # or than a batch
        (5, None, 1, 20, 0.25),
    ],
)
def test_default_length_beside_the_optimizer(epochs, batches, execution, steps, length):
    plan = Plan.of(None, None, None, epochs, batches, execution, beside=True)
    assert plan.steps == steps
    assert plan.length == plan.first_length == pytest.approx(length)


@pytest.mark.parametrize("beside", [True, False])
def test_steps_that_are_given_have_the_usual_length(beside):
    assert Plan.of(7, None, None, epochs=1, batches=100, beside=beside).length == 0.25
    assert Plan.of(None, 2.0, 3.0, epochs=9, batches=100, beside=beside).steps == 4


def test_a_run_ends_with_its_l_steps_or_its_epochs():
    assert Plan.of(8, 1.0, None, epochs=160, batches=10).end == 8
    assert Plan.of(8, 1.0, None, epochs=5, batches=10).end == 5
    assert Plan.of(30, 0.1, None, epochs=3, batches=10).end == 3
    assert Plan.of(None, 0.7, None, epochs=3, batches=10).end == 3


def test_what_is_given_stays():
    plan = Plan.of(None, 2.0, 3.0, epochs=9, batches=100)
    assert (plan.steps, plan.length, plan.first_length) == (4, 2.0, 3.0)
    assert Plan.of(7, None, None, epochs=1, batches=100).length == 0.25


@pytest.mark.parametrize(
    "steps, length, first_length, epochs",
    # The last case adds up to a little more than 3.
    [(40, 0.25, None, 10), (3, 1.0, 4.0, 6), (5, 0.3, None, 2), (30, 0.1, None, 3)],
)
def test_epochs_needed(steps, length, first_length, epochs):
    assert Plan.of(steps, length, first_length).epochs_needed == epochs


@pytest.mark.parametrize(
    "plan, steps_given, execution, caveat",
    [
        ((8, 0.25, 0.25, 1, 100), True, 1, "8 L steps need 2 epochs. Received: 1 epochs"),
        ((4, 0.25, 0.25, 1, 100), True, 1, None),
        ((4, 0.25, 0.25, 20, 100), True, 1, "4 L steps of 0.25 epochs end after 1 of 20 epochs, and `fit`"),
        ((4, 0.25, 0.25, 20, 100), False, 1, None),
        # The last of the steps that a plan made itself may be cut off.
        ((4, 0.3, 0.25, 1, 100), False, 1, None),
        ((12, 0.25, 0.25, 3, None), False, 1, "no C step runs in the first of 3 epochs"),
        ((16, 0.25, 0.25, 4, None), False, 1, None),
        ((3, 0.25, 1.0, 2, None), False, 1, None),
        ((1, 0.25, 0.25, 1, None), True, 1, None),
        ((8, 0.25, 0.5, 7, 16), False, 5, "An L step of 4 batches is shorter than steps_per_execution=5"),
        ((8, 0.25, 0.5, 7, 16), False, 4, None),
        ((4, 0.25, 0.25, 1, 99), False, 1, "This `fit` has 99 batches in all. Expected at least 100"),
    ],
)
def test_caveats(plan, steps_given, execution, caveat):
    found = list(Plan(*plan).caveats(steps_given, execution))
    assert len(found) == (caveat is not None)
    assert all(caveat in text for text in found)


def ends(plan, execution, epochs):
    """The position, in batches, of each C step, and which L step begins there."""
    step, found = 0, {}
    for epoch in range(epochs):
        for batch in range(0, plan.batches, execution):
            now = plan.step_at(step, epoch, batch, execution)
            if now > step:
                found[epoch * plan.batches + batch] = now
            step = now
    return found


def test_steps_end_where_they_should():
    plan = Plan.of(None, 0.5, 1.0, epochs=3, batches=4)
    assert ends(plan, 1, 3) == {4: 1, 6: 2, 8: 3, 10: 4}
    assert plan.step_at(4, 2, 4, 1) == plan.steps == 5


def test_steps_end_at_boundaries_of_executions():
    # Steps of 3 batches, in executions of 2: a step that ends within one ends where the next begins.
    plan = Plan.of(None, 3 / 8, None, epochs=2, batches=8)
    # The last, cut off by the end, shares an execution with the one before.
    assert ends(plan, 2, 2) == {4: 1, 6: 2, 10: 3, 12: 4, 14: 5}


def test_several_steps_in_one_execution_share_a_c_step():
    plan = Plan.of(None, 1 / 8, None, epochs=1, batches=8)
    assert plan.step_at(0, 0, 0, 4) == 3
    assert ends(plan, 4, 1) == {0: 3, 4: 7}


def test_an_execution_ends_with_its_epoch():
    # The third execution of 4 batches has only 2 left: a step that ends 2 batches later does not end in it.
    plan = Plan.of(None, 0.3, None, epochs=2, batches=10)
    assert plan.step_at(2, 0, 8, 4) == 2
    assert plan.step_at(2, 1, 0, 4) == 3


def test_lengths_that_do_not_add_up_exactly_end_where_they_should():
    plan = Plan.of(None, 0.1, None, epochs=3, batches=10)
    assert ends(plan, 1, 3) == {batch: batch for batch in range(1, 30)}


def test_what_runs_when_the_epochs_end_ends_there():
    plan = Plan.of(10, 1.5, None, epochs=2, batches=4)
    assert plan.step_at(1, 1, 3, 1) == 1
    assert plan.step_at(1, 1, 4, 1) == 2


def test_what_runs_in_the_last_execution_ends_with_it():
    """The second to last of 86 L steps ends within the last execution of 8 batches."""
    plan = Plan.of(None, None, None, 40, 32, 8, beside=True)
    assert plan.steps == 86
    assert plan.step_at(84, 39, 24, 8) == 85 and plan.step_at(85, 40, 0, 8) == 86


def test_shortest():
    assert Plan.of(4, 0.5, 0.25, batches=8).shortest == 2
    assert Plan.of(4, 0.5, 0.25).shortest == float("inf")
