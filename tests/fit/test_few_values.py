"""Few values, low rank, sums and norms, through `fit`."""

import shutil

import keras
import numpy as np
import pytest

import lc_keras
from lc_keras import (
    Binary,
    Codebook,
    Geometric,
    Grid,
    L0Constraint,
    L1Constraint,
    L2Constraint,
    LowRank,
    RankSelection,
    Sum,
    Task,
)
from lc_keras.model.latency import remember


def data():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(64, 12)).astype("float32")
    return x, np.argmax(x[:, :4], 1)


def net(seed=0):
    keras.utils.set_random_seed(seed)
    layers = [keras.Input((12,)), keras.layers.Dense(10, "tanh"), keras.layers.Dense(4)]
    model = keras.Sequential(layers)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.Adam(0.01), loss, metrics=["accuracy"])
    return model


def kernels(model):
    return [layer.kernel.numpy() for layer in model.layers]


def is_first(variable):
    return tuple(variable.shape) == (12, 10)


def is_second(variable):
    return tuple(variable.shape) == (10, 4)


def norm(model, order):
    return np.linalg.norm(np.concatenate([k.ravel() for k in kernels(model)]), order)


def distinct(model):
    return len(np.unique(np.concatenate([k.ravel() for k in kernels(model)])))


CASES = {
    "codebook": (Codebook(3), lambda m: distinct(m) <= 3),
    "sparse": (
        L0Constraint(40, values=Codebook(4)),
        lambda m: distinct(m) <= 5 and sum(map(np.count_nonzero, kernels(m))) <= 40,
    ),
    "grid": (Grid(3), lambda m: all(len(np.unique(c)) <= 7 for k in kernels(m) for c in k.T)),
    "rank": (LowRank(2), lambda m: all(np.linalg.matrix_rank(k, 1e-4) <= 2 for k in kernels(m))),
    "sum of magnitudes": (L1Constraint(15.0), lambda m: norm(m, 1) < 15.001),
    "length": (L2Constraint(2.5), lambda m: norm(m, 2) < 2.5001),
    "each in its way": (
        [Task(LowRank(1), weights=is_first), Task(Codebook(3), weights=is_second)],
        lambda m: np.linalg.matrix_rank(kernels(m)[0], 1e-4) <= 1 and len(np.unique(kernels(m)[1])) <= 3,
    ),
    "sum": (
        [Task(Sum(LowRank(1), L0Constraint(5)), weights=r"dense(_\d+)?/kernel")],
        lambda m: np.linalg.matrix_rank(kernels(m)[0], 1e-4) <= 6,
    ),
}


# One of the other cases combines a rank with a codebook, and a grid goes the way of a codebook. Norms go the
# way of other budgets, which `test_any_optimizer.py` tests with an ℓ1 budget, too.
LIKE_OTHERS = "codebook", "sparse", "grid", "rank", "sum of magnitudes", "length"


@pytest.mark.parametrize(
    "case", [pytest.param(case, marks=[pytest.mark.slow] * (case in LIKE_OTHERS)) for case in CASES]
)
def test_fit_leaves_a_model_that_is_under_its_cost(case):
    tasks, is_under = CASES[case]
    model, seen = net(), []
    compress = lc_keras.LearningCompression(tasks)
    shown = keras.callbacks.LambdaCallback(on_epoch_end=lambda *_: seen.append(is_under(model)))
    history = model.fit(*data(), batch_size=4, epochs=8, verbose=0, callbacks=[compress, shown]).history
    # From the first epoch on, other callbacks see the compressed model.
    assert seen == [True] * 8 and is_under(model)
    assert history["gap"][-1] < 0.1 and history["accuracy"][-1] > 0.5


def test_the_rank_that_pays_goes_through_the_loss():
    model = net()
    compress = lc_keras.LearningCompression(RankSelection(0.2), mu=Geometric(0.1, 30.0), steps=8)
    model.fit(*data(), batch_size=4, epochs=compress.epochs, verbose=0, callbacks=[compress])
    assert all(0 < np.linalg.matrix_rank(k, 1e-4) < min(k.shape) + (k.shape[1] == 4) for k in kernels(model))


@pytest.mark.parametrize(
    "measure, message", [("parameters", "a larger α.*smaller.$"), ("milliseconds", "no α")]
)
def test_ranks_of_which_none_pays_are_said_to_take_nothing_away(measure, message):
    model, compress = net(), lc_keras.LearningCompression(RankSelection(1e-9, measure))
    paths = [kernel.path for kernel in model.weights[::2]]
    slower, sizes = dict.fromkeys(paths, (1.0, 2.0, 0.1)), dict.fromkeys(paths, ())
    remember(model, lc_keras.Latency(1, 2.0, 0.0, slower, 0.0, 0.0, 9, sizes, "here", of="ranks"))
    with pytest.warns(UserWarning, match=f"removed nothing at μ = .*{message}"):
        model.fit(*data(), batch_size=4, epochs=7, verbose=0, callbacks=[compress])
    assert [np.linalg.matrix_rank(k) for k in kernels(model)] == [10, 4]


@pytest.mark.parametrize("cost", [Binary(), pytest.param(LowRank(2), marks=pytest.mark.slow)], ids=repr)
def test_a_small_gap_is_no_end_where_weights_are_at_their_cost_from_the_start(cost):
    model, compress = net(), lc_keras.LearningCompression(cost, tolerance=0.9)
    history = model.fit(*data(), batch_size=4, epochs=8, verbose=0, callbacks=[compress]).history
    assert len(history["gap"]) == 8 and min(history["gap"]) < 0.9


def test_a_loop_of_ones_own():
    model = net()
    alternation = lc_keras.Alternation(model, Codebook(2), mu=1.0)
    alternation.c_step()
    with alternation.compressed():
        assert distinct(model) == 2
    assert distinct(model) > 2
    alternation.finish()
    assert distinct(model) == 2


@pytest.mark.parametrize(
    "cost",
    [
        pytest.param(Grid(3), marks=pytest.mark.slow),
        pytest.param(L1Constraint(15.0), marks=pytest.mark.slow),
        LowRank(2),
        pytest.param(L0Constraint(40, values=Codebook(4)), marks=pytest.mark.slow),
        (Task(Codebook(3), weights=is_first), Task(L0Constraint(20), weights=is_second)),
    ],
    ids=repr,
)
def test_a_restart_goes_on_bit_for_bit(tmp_path, cost):
    class Keep(keras.callbacks.Callback):
        """Keeps what a killed process leaves."""

        def on_epoch_begin(self, epoch, logs=None):
            if epoch == 2:
                shutil.copytree(tmp_path / "whole", tmp_path / "cut")

    def fit(model, folder, *more):
        compress = lc_keras.LearningCompression(cost, checkpoint_dir=folder)
        model.fit(*data(), batch_size=4, epochs=4, shuffle=False, verbose=0, callbacks=[compress, *more])

    whole, resumed = net(), net(seed=1)
    fit(whole, tmp_path / "whole", Keep())
    fit(resumed, tmp_path / "cut")
    for a, b in zip(kernels(whole), kernels(resumed), strict=True):
        np.testing.assert_array_equal(a, b)
