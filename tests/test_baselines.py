import itertools

import keras
import numpy as np
import pytest
import tensorflow as tf

from lc_keras import L0Constraint, L1Penalty, Neurons, Task
from lc_keras.baselines import (
    DirectCompression,
    GradualPruning,
    MagnitudePruning,
    compress_directly,
)
from lc_keras.macs import macs
from lc_keras.shrink import shrink
from test_callback import KEPT, WEIGHTS, X, Y, fit, kernels, largest, lc, net, nonzeros, same, spy

BUDGET = L0Constraint(KEPT)
BASELINES = {
    "direct": lambda tasks=BUDGET: DirectCompression(tasks),
    "magnitude": lambda tasks=BUDGET: MagnitudePruning(tasks),
    "rounds": lambda tasks=BUDGET: MagnitudePruning(tasks, rounds=3),
    "gradual": lambda tasks=BUDGET: GradualPruning(tasks, until=0.5),
}
PRUNING = ["magnitude", "rounds", "gradual"]


@pytest.mark.parametrize("name", BASELINES)
@pytest.mark.parametrize(
    "options",
    [{}, {"steps_per_execution": 3}, {"jit_compile": True}, {"run_eagerly": True}],
    ids=["graph", "several batches", "jit", "eager"],
)
def test_the_budget_is_kept_and_nothing_is_left(name, options):
    model = net(**options)
    own = [v.constraint for v in model.weights]
    fit(model, [BASELINES[name]()], epochs=3)
    assert nonzeros(model) == KEPT
    assert [v.constraint for v in model.weights] == own
    # A later fit trains pruned weights again, but for those between dead units.
    fit(model, epochs=1)
    assert nonzeros(model) > 2 * KEPT


@pytest.mark.parametrize("name", PRUNING)
def test_what_is_removed_stays_so_and_the_others_train(name):
    model, seen = net(keras.optimizers.SGD(0.1, momentum=0.9)), []
    look = spy(on_train_batch_end=lambda batch, logs: seen.append(kernels(model)))
    fit(model, [BASELINES[name](), look], epochs=4)
    for before, after in itertools.pairwise(seen):
        for one, two in zip(before, after, strict=True):
            assert not np.any(two[one == 0])
    alive = [two != 0 for two in seen[-1]]
    assert sum(map(np.sum, alive)) == KEPT
    assert all(np.any(a[m] != b[m]) for a, b, m in zip(seen[-2], seen[-1], alive, strict=True))


def test_magnitude_pruning_keeps_the_largest_of_the_start():
    model = net()
    start = largest(kernels(model))
    fit(model, [MagnitudePruning(BUDGET)])
    for kernel, kept in zip(kernels(model), start, strict=True):
        np.testing.assert_array_equal(kernel != 0, kept != 0)


@pytest.mark.parametrize("name", PRUNING)
def test_retraining_mends_what_pruning_broke(name):
    trained = net()
    fit(trained, epochs=30)
    direct, retrained = net(), net()
    for model in direct, retrained:
        model.set_weights(trained.get_weights())
    compress_directly(direct, BUDGET)
    fit(retrained, [BASELINES[name]()], epochs=20)
    assert retrained.evaluate(X, Y, verbose=0) < 0.9 * direct.evaluate(X, Y, verbose=0)


def test_rounds_remove_equal_fractions():
    logs = fit(net(), [MagnitudePruning(L0Constraint(9), rounds=3)], epochs=3).history
    wanted = [int(WEIGHTS * (9 / WEIGHTS) ** (r / 3)) for r in (1, 2)] + [9]
    np.testing.assert_allclose(logs["density"], np.array(wanted) / WEIGHTS, rtol=1e-6)


def test_gradual_pruning_follows_the_cubic():
    seen = []
    look = spy(on_train_batch_end=lambda batch, logs: seen.append(logs["density"]))
    fit(net(), [GradualPruning(BUDGET, until=0.5, every=0.5), look], epochs=4)
    time = np.minimum(1, np.repeat(np.arange(8) / 2, 4) / 2)
    wanted = WEIGHTS - ((WEIGHTS - KEPT) * (1 - (1 - time) ** 3)).astype(int)
    np.testing.assert_allclose(seen, wanted / WEIGHTS, rtol=1e-6)


@pytest.mark.parametrize("name", PRUNING)
def test_neurons_and_per_layer_budgets(name):
    model = net()
    tasks = [
        Task(L0Constraint(3, groups=Neurons()), weights=model.layers[0]),
        Task(L0Constraint(0.5), weights=model.layers[1], per_layer=True),
    ]
    fit(model, [BASELINES[name](tasks)], epochs=3)
    first, second = kernels(model)
    assert np.sum(np.any(first, axis=0)) == 3 and np.all(first[:, np.any(first, axis=0)])
    assert np.count_nonzero(second) == 12
    # A bias starts at zero; that of a neuron which is kept trains.
    np.testing.assert_array_equal(model.layers[0].bias.numpy() != 0, np.any(first, axis=0))


def test_filters_go_for_good_with_all_that_makes_them():
    inputs = keras.Input((6, 6, 2))
    trunk = keras.layers.Conv2D(6, 3, padding="same", name="trunk")(inputs)
    inner = keras.layers.Conv2D(8, 3, padding="same", name="inner")(trunk)
    inner = keras.layers.ReLU()(keras.layers.BatchNormalization(name="norm")(inner))
    added = keras.layers.Add()([trunk, keras.layers.Conv2D(6, 3, padding="same", name="back")(inner)])
    model = keras.Model(inputs, keras.layers.Dense(3)(keras.layers.GlobalAveragePooling2D()(added)))
    x = np.random.default_rng(0).normal(size=(32, 6, 6, 2)).astype("float32")
    y = x.mean(axis=(1, 2))[:, :1].repeat(3, 1)
    model.compile(keras.optimizers.Adam(1e-2), "mse")
    model.fit(x, y, batch_size=8, verbose=0)
    full = macs(model).dense
    # None of what makes a filter is zero by itself.
    for v in model.trainable_variables:
        v.assign_add(tf.fill(v.shape, 0.01))

    seen = []

    def look(batch, logs):
        weights = {layer.name: layer.trainable_weights for layer in model.layers}
        parts = weights["trunk"] + weights["back"], weights["inner"] + weights["norm"]
        alive = [[np.any(v.numpy().reshape(-1, v.shape[-1]), axis=0) for v in part] for part in parts]
        assert all(np.array_equal(one, part[0]) for part in alive for one in part)
        seen.append(np.concatenate([part[0] for part in alive]))

    prune = GradualPruning(L0Constraint(0.4, Neurons(), measure="macs"), until=0.75)
    model.fit(x, y, batch_size=8, epochs=3, verbose=0, callbacks=[prune, spy(on_train_batch_end=look)])
    assert len({kept.sum() for kept in seen}) > 2
    assert not any(np.any(b & ~a) for a, b in itertools.pairwise(seen))
    small = shrink(model)
    assert macs(small).dense <= 0.4 * full and small.get_layer("inner").filters == seen[-1][6:].sum()
    np.testing.assert_allclose(model(x), small(x), rtol=1e-5, atol=1e-6)


def test_what_is_removed_does_not_come_back_into_what_is_left_over():
    class Steps(MagnitudePruning):
        def kept(self, total, kappa, progress):
            return 30 if progress < 0.5 else kappa

    one, ten = keras.Input((1,)), keras.Input((10,))
    cheap, costly = keras.layers.Dense(3), keras.layers.Dense(3)
    joined = keras.layers.Concatenate()([cheap(one), costly(ten)])
    model = keras.Model([one, ten], keras.layers.Dense(1)(joined))
    # A unit of `cheap` takes 2 multiply-adds, one of `costly` 11: three fit at first, with 6 left over, then
    # with 5.
    cheap.kernel.assign([[5.0, 0.01, 0.01]])
    costly.kernel.assign(np.ones((10, 3)) * [9, 8, 7])
    x = [np.random.default_rng(0).normal(size=(8, n)).astype("float32") for n in (1, 10)]
    model.compile(keras.optimizers.SGD(1e-3), "mse")
    prune = Steps(L0Constraint(29, Neurons(), measure="macs"))
    model.fit(x, np.ones((8, 1)), epochs=2, verbose=0, callbacks=[prune])
    assert (cheap.kernel.numpy() != 0).tolist() == [[True, False, False]]
    assert (costly.kernel.numpy() != 0).all(axis=0).tolist() == [True, True, False]


def test_a_constraint_of_the_user_counts_too():
    model = net()
    kernel = model.layers[0].kernel
    kernel.constraint = own = keras.constraints.NonNeg()
    fit(model, [GradualPruning(BUDGET)], epochs=3)
    assert kernel.constraint is own
    assert np.all(kernels(model)[0] >= 0)
    assert nonzeros(model) <= KEPT


def test_averaged_weights_are_pruned():
    model = net(keras.optimizers.SGD(0.1, use_ema=True, ema_momentum=0.9))
    fit(model, [GradualPruning(BUDGET, until=1.0)], epochs=2)
    assert nonzeros(model) == KEPT


def test_training_that_stops_early_keeps_the_budget():
    model = net()
    stop = spy(on_epoch_end=lambda epoch, logs: setattr(model, "stop_training", True))
    fit(model, [GradualPruning(BUDGET), stop], epochs=9)
    assert nonzeros(model) == KEPT


@pytest.mark.parametrize("hook", ["on_epoch_begin", "on_train_batch_end"])
def test_an_interrupt_leaves_a_model_that_trains_all_weights(hook):
    def interrupt(*arguments, **options):
        raise KeyboardInterrupt

    model, clean = net(), net()
    with pytest.raises(KeyboardInterrupt):
        fit(model, [MagnitudePruning(BUDGET), spy(**{hook: interrupt})])
    assert all(v.constraint is None for v in model.weights)
    clean.set_weights(model.get_weights())
    model.reset_metrics()  # Keras 3.14 goes on with those of the interrupted epoch
    assert model.train_on_batch(X, Y) == clean.train_on_batch(X, Y)
    same(model, clean)


def test_direct_compression_of_a_model():
    model = net()
    expected = largest(kernels(model))
    compress_directly(model, BUDGET)
    for kernel, kept in zip(kernels(model), expected, strict=True):
        np.testing.assert_array_equal(kernel, kept)
    penalised = net()
    before = kernels(penalised)
    compress_directly(penalised, L1Penalty(0.5), mu=2.0)
    for kernel, weight in zip(kernels(penalised), before, strict=True):
        np.testing.assert_allclose(kernel, np.sign(weight) * np.maximum(np.abs(weight) - 0.25, 0), atol=1e-6)


def test_direct_compression_of_weights_that_are_not_finite_changes_nothing():
    model = net()
    kernel = model.layers[1].kernel
    kernel.assign(np.where(np.arange(24).reshape(8, 3) == 5, np.nan, kernel.numpy()))
    before = model.get_weights()
    with pytest.raises(ValueError, match=f"finite.*{kernel.path}"):
        compress_directly(model, BUDGET)
    for one, two in zip(before, model.get_weights(), strict=True):
        np.testing.assert_array_equal(one, two)


@pytest.mark.parametrize(
    "make, error, message",
    [
        (lambda: MagnitudePruning(L1Penalty(0.1)), TypeError, "L0Constraint.*L1Penalty"),
        (lambda: GradualPruning([BUDGET, Task(L1Penalty(0.1))]), TypeError, "L0Constraint.*L1Penalty"),
        (lambda: MagnitudePruning(BUDGET, rounds=0), ValueError, "rounds=0"),
        (lambda: MagnitudePruning(BUDGET, rounds=1.5), ValueError, "rounds=1.5"),
        (lambda: GradualPruning(BUDGET, until=0), ValueError, "until=0"),
        (lambda: GradualPruning(BUDGET, until=1.5), ValueError, "until=1.5"),
        (lambda: GradualPruning(BUDGET, every=0), ValueError, "every=0"),
        (lambda: DirectCompression("dense"), TypeError, "compression"),
    ],
    ids=["penalty", "second task", "no round", "half a round", "until 0", "until 1.5", "every 0", "no task"],
)
def test_arguments(make, error, message):
    with pytest.raises(error, match=message):
        make()


@pytest.mark.parametrize("name", BASELINES)
def test_a_budget_that_does_not_fit_changes_nothing(name):
    model = net()
    before = model.get_weights()
    with pytest.raises(ValueError, match=f"at most {WEIGHTS}"):
        fit(model, [BASELINES[name](L0Constraint(WEIGHTS + 1))])
    for one, two in zip(before, model.get_weights(), strict=True):
        np.testing.assert_array_equal(one, two)


def test_not_beside_lc():
    with pytest.raises(ValueError, match="one LearningCompression, or one baseline"):
        fit(net(), [lc(), MagnitudePruning(BUDGET)])
