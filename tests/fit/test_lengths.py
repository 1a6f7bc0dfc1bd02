"""The number of L steps of a fit, and the strength of the pull in each."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from helpers import (
    BATCHES,
    KEPT,
    RANGE,
    XENT,
    X,
    Y,
    fit,
    kernels,
    lc,
    net,
    nonzeros,
    same,
    spy,
)
from lc_keras import L0Constraint, LearningCompression
from lc_keras.fit.mu import Beside

# A fit that runs to its end has nothing to warn about.
pytestmark = pytest.mark.filterwarnings(
    "error:Training (stopped|was interrupted)", "error:An L step of", "error:.* L steps need"
)


@pytest.mark.parametrize(
    "options, epochs",
    [
        ({}, 20),
        ({"steps": 40, "epochs_per_step": 20}, 800),
        ({"steps": 10}, 3),
        ({"steps": 4}, 1),
        ({"steps": 10, "epochs_per_step": 0.3}, 3),
        ({"steps": 5, "epochs_per_step": 0.3, "first_step_epochs": 1}, 3),
        ({"mu": [1.0, 2.0, 3.0], "epochs_per_step": 2}, 6),
        ({"mu": range(1, 4), "epochs_per_step": 2}, 6),
    ],
    ids=str,
)
def test_epochs(options, epochs):
    assert LearningCompression(L0Constraint(KEPT), **options).epochs == epochs


@pytest.mark.parametrize(
    "options, fitted, ends",
    [
        # tests/fit/test_plan.py shows, without a fit, where L steps end.
        ({}, {"epochs": 3, "initial_epoch": 1}, [2, 4, 6, 8, 10, 12, 14, 16]),
        ({"epochs_per_step": 0.3, "first_step_epochs": 1}, {}, [8, 10, 13, 15, 16]),
        ({"steps": 3, "epochs_per_step": 0.5}, {"epochs": 9}, [4, 8, 12]),
        *(
            pytest.param(*case, marks=pytest.mark.slow)
            for case in [
                ({"epochs_per_step": 2}, {"epochs": 5}, [16, 32, 40]),
                ({"epochs_per_step": 9.5}, {}, [16]),
                # Quarters of an epoch would be 4 L steps.
                ({"epochs_per_step": None}, {"epochs": 1, "batch_size": 1}, [15, 30, 45, 60, 64]),
                ({"steps": 2}, {"epochs": 1, "batch_size": 1}, [16, 32]),
            ]
        ),
    ],
    ids=str,
)
def test_schedule(options, fitted, ends):
    seen = []
    look = spy(on_train_batch_end=lambda batch, logs: seen.append(logs["l_step"]))
    model, compress = net(), lc(**options)
    logs = fit(model, [compress, look], **fitted).history
    # Nothing is kept of the batch that Keras runs after the end.
    seen = seen[: ends[-1]]
    assert [seen.count(step + 1) for step in range(len(ends))] == list(np.diff([0, *ends]))
    assert logs["l_steps"][-1] == logs["l_step"][-1] == len(ends)
    np.testing.assert_allclose(logs["mu"][-1], 50.0 if len(ends) > 1 else 2.0)
    assert nonzeros(model) == KEPT


def test_fewer_epochs_than_the_schedule():
    model = net()
    with (
        pytest.warns(UserWarning, match="8 L steps need 2 epochs. Received: 1 epochs"),
        pytest.warns(UserWarning, match="Training stopped in L step 5 of 8"),
    ):
        fit(model, [lc(steps=8)], epochs=1)
    assert nonzeros(model) == KEPT


@pytest.mark.parametrize(
    "optimizer",
    [
        lambda: keras.optimizers.Adam(0.02),
        lambda: keras.optimizers.SGD(
            keras.optimizers.schedules.CosineDecay(0.0, 32, warmup_target=0.1, warmup_steps=8)
        ),
    ],
    ids=["adam", "warm-up from 0"],
)
def test_automatic_schedule(optimizer):
    model, compress = net(optimizer()), lc(mu="auto", epochs_per_step=0.5)
    mus = fit(model, [compress], epochs=5).history["mu"]
    assert np.isfinite(mus).all() and mus[0] > 0 and np.all(np.diff(mus) > 0)
    assert mus[-1] > 4 * mus[0]
    assert nonzeros(model) == KEPT


def test_automatic_schedule_is_of_the_rate_of_the_user():
    # Limiting the rate in training must not make μ grow.
    mus = [
        fit(net(), [lc(mu="auto", limit_learning_rate=limit)], epochs=2).history["mu"][0]
        for limit in (True, False)
    ]
    assert mus[0] == mus[1]


@pytest.mark.parametrize("norms", [[], [keras.layers.BatchNormalization]])
def test_where_weights_move_far_the_budget_is_fixed_but_for_batch_normalisation(norms, monkeypatch):
    monkeypatch.setattr(Beside, "_MADE_UP", 0)  # or it would take hundreds of batches
    keras.utils.set_random_seed(1)
    hidden = [keras.layers.Dense(8, "tanh"), *(norm() for norm in norms), keras.layers.Dense(3)]
    model = keras.Sequential([keras.Input((6,)), *hidden])
    model.compile(keras.optimizers.SGD(1.0), XENT)
    logs = fit(model, [LearningCompression(L0Constraint(KEPT))], epochs=5).history
    batches = 5 * BATCHES  # each is an L step
    fixed = 1.5 * (80 / 1.5) ** ((batches - 1) / batches) / batches
    loosened = 300 / (0.75 * batches)
    assert logs["mu"][-1] == pytest.approx(loosened if norms else fixed)
    assert nonzeros(model) == KEPT


def dataset():
    return tf.data.Dataset.from_tensor_slices((X, Y)).batch(8)


def unknown():
    return tf.data.Dataset.from_generator(lambda: iter(dataset()), output_signature=dataset().element_spec)


@pytest.fixture(scope="module")
def of_arrays():
    model = net()
    fit(model, [lc()], x=X.copy(), epochs=3)
    return model


@pytest.mark.filterwarnings("ignore:Your input ran out of data")
@pytest.mark.parametrize(
    "options",
    [
        {"x": dataset().repeat(), "steps_per_epoch": BATCHES},
        {"x": unknown().repeat(), "steps_per_epoch": BATCHES},
        {"x": unknown()},
    ],
    ids=["repeated", "repeated unknown", "unknown"],
)
def test_data(options, of_arrays):
    model = net()
    logs = fit(model, [lc()], epochs=3, **options).history
    assert nonzeros(model) == KEPT
    assert logs["l_step"][-1] == logs["l_steps"][-1] == 12
    assert logs["mu"][-1] == 50.0
    assert np.isfinite(logs["loss"]).all()
    if "steps_per_epoch" in options:
        same(model, of_arrays)


@pytest.mark.filterwarnings("ignore:Your input ran out of data")
@pytest.mark.parametrize(
    "epochs, options, warns",
    [
        (3, {}, True),
        (4, {}, False),
        pytest.param(3, {"epochs_per_step": 1}, False, marks=pytest.mark.slow),
        (1, {"known": True}, False),
    ],
)
def test_few_epochs_of_unknown_length(epochs, options, warns, recwarn):
    x = dataset() if options.pop("known", False) else unknown()
    fit(net(), [lc(**options)], epochs=epochs, x=x)
    assert any("an epoch has is not known" in str(w.message) for w in recwarn) == warns


def test_a_single_callback_that_is_not_in_a_list():
    # Keras then runs the hooks at the end of batches in other threads.
    model, listed = net(), net()
    logs = fit(model, lc()).history
    assert fit(listed, [lc()]).history == logs
    same(model, listed)


def test_a_callback_serves_again():
    model, compress = net(), lc()
    fit(model, [compress])
    before, logs = kernels(model), fit(model, [compress], epochs=3).history
    assert logs["l_step"] == [4, 8, 12]
    assert nonzeros(model) == KEPT
    assert any(np.any(a != b) for a, b in zip(before, kernels(model), strict=True))
    other = net()
    fit(other, [compress])
    fresh = net()
    fit(fresh, [lc()])
    same(other, fresh)


def test_what_train_functions_read_is_freed(lagrangians):
    # TensorFlow keeps their graphs and, with them, what the graphs read.
    seen = []
    fit(net(), [lc(), spy(on_epoch_end=lambda epoch, logs: seen.append(lagrangians[0].targets))])
    assert [target.numpy().size for target in seen[0]] == [1, 1]


def test_the_gap_of_an_earlier_fit_does_not_count():
    compress = lc(mu="auto")

    def mu():
        model = net(keras.optimizers.Adam(0.01), steps_per_execution=BATCHES)
        with pytest.warns(UserWarning, match="An L step of 2 batches"):
            return fit(model, [compress], epochs=1).history["mu"]

    assert mu() == mu()


@pytest.mark.filterwarnings("ignore:Your input ran out of data")
def test_epochs_of_unknown_length_end_and_log_as_those_of_known_length():
    known, open_ended, steps = net(), net(), []
    expected = fit(known, [lc(epochs_per_step=1)], epochs=4).history
    logs = fit(open_ended, [lc(epochs_per_step=1)], epochs=4, x=unknown()).history
    for name in ("mu", "l_step", "gap", "density"):
        assert logs[name] == expected[name]
    same(known, open_ended)
    look = spy(on_train_batch_end=lambda batch, logs: steps.append(logs["l_step"]))
    fit(net(), [lc(), look], epochs=4, x=unknown())
    assert steps == 8 * [1] + [step for step in range(5, 17) for _ in range(2)]


def test_an_evaluation_with_it_is_as_without():
    model, compress = net(), lc()
    assert model.evaluate(X, Y, verbose=0, callbacks=[compress]) == model.evaluate(X, Y, verbose=0)
    fit(model, [compress])
    assert model.evaluate(X, Y, verbose=0, callbacks=[compress]) == model.evaluate(X, Y, verbose=0)


def test_a_gap_of_zero_stops_no_training():
    logs = fit(net(), [LearningCompression(L0Constraint(1.0), mu=RANGE, epochs_per_step=0.25)]).history
    assert logs["gap"] == [0, 0] and logs["l_step"] == [4, 8]
