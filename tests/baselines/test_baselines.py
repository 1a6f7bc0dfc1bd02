import itertools

import keras
import numpy as np
import pytest
import tensorflow as tf

from helpers import KEPT, WEIGHTS, X, Y, fit, kernels, largest, lc, loss, net, nonzeros, same, spy
from lc_keras import Blocks, L0Constraint, L1Penalty, Neurons, Task
from lc_keras.baselines import (
    DirectCompression,
    GradualPruning,
    MagnitudePruning,
    compress_directly,
)
from lc_keras.baselines.masks import Masked
from lc_keras.model.macs import macs
from lc_keras.shrinking.rebuilding import shrink

BUDGET = L0Constraint(KEPT)
BASELINES = {
    "direct": lambda tasks=BUDGET: DirectCompression(tasks),
    "magnitude": lambda tasks=BUDGET: MagnitudePruning(tasks),
    "rounds": lambda tasks=BUDGET: MagnitudePruning(tasks, rounds=3),
    "gradual": lambda tasks=BUDGET: GradualPruning(tasks, until=0.5),
}
PRUNING = ["magnitude", "rounds", "gradual"]


def often(names):
    """For everyday runs, one of two methods that share their code is enough."""
    return [pytest.param(name, marks=[pytest.mark.slow] * (name == "rounds")) for name in names]


@pytest.mark.parametrize(
    "options, name",
    [
        ({}, "direct"),
        ({}, "magnitude"),
        ({"steps_per_execution": 3}, "gradual"),
        ({"jit_compile": True}, "rounds"),
        ({"run_eagerly": True}, "gradual"),
        *(
            pytest.param(options, name, marks=pytest.mark.slow)
            for options in ({}, {"steps_per_execution": 3}, {"jit_compile": True}, {"run_eagerly": True})
            for name in BASELINES
        ),
    ],
    ids=str,
)
def test_the_budget_is_kept_and_nothing_is_left(options, name):
    model = net(**options)
    own = [v.constraint for v in model.weights]
    fit(model, [BASELINES[name]()], epochs=3)
    assert nonzeros(model) == KEPT
    assert [v.constraint for v in model.weights] == own
    # A later fit trains pruned weights again, except those between dead units.
    fit(model, epochs=1)
    assert nonzeros(model) > 2 * KEPT


@pytest.mark.parametrize("name", often(PRUNING))
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


@pytest.fixture(scope="module")
def trained():
    model = net()
    fit(model, epochs=30)
    return model.get_weights()


@pytest.mark.parametrize("name", ["magnitude", "gradual", pytest.param("rounds", marks=pytest.mark.slow)])
def test_retraining_mends_what_pruning_broke(name, trained):
    direct, retrained = net(), net()
    for model in direct, retrained:
        model.set_weights(trained)
    compress_directly(direct, BUDGET)
    fit(retrained, [BASELINES[name]()], epochs=20)
    assert loss(retrained) < 0.9 * loss(direct)


def test_rounds_remove_equal_fractions():
    logs = fit(net(), [MagnitudePruning(L0Constraint(9), rounds=3)], epochs=3).history
    wanted = [int(WEIGHTS * (9 / WEIGHTS) ** (r / 3)) for r in (1, 2)] + [9]
    np.testing.assert_allclose(logs["density"], np.array(wanted) / WEIGHTS, rtol=1e-6)


def test_groups_that_cost_nothing_stay():
    assert MagnitudePruning(BUDGET, rounds=3).kept(0, 0, 0.5) == 0


def test_gradual_pruning_follows_the_cubic():
    seen = []
    look = spy(on_train_batch_end=lambda batch, logs: seen.append(logs["density"]))
    fit(net(), [GradualPruning(BUDGET, until=0.5, every=0.5), look], epochs=4)
    time = np.minimum(1, np.repeat(np.arange(8) / 2, 4) / 2)
    wanted = WEIGHTS - ((WEIGHTS - KEPT) * (1 - (1 - time) ** 3)).astype(int)
    np.testing.assert_allclose(seen, wanted / WEIGHTS, rtol=1e-6)


def test_a_run_that_was_cut_off_goes_on_where_it_was(tmp_path):
    class CutOff(Exception):
        pass

    def cut_off(epoch, logs):
        if epoch == 2:
            raise CutOff

    def densities(*others):
        backup = keras.callbacks.BackupAndRestore(tmp_path)
        return fit(net(), [backup, GradualPruning(BUDGET), *others], epochs=6).history["density"]

    whole = fit(net(), [GradualPruning(BUDGET)], epochs=6).history["density"]
    with pytest.raises(CutOff):
        densities(spy(on_epoch_begin=cut_off))
    assert densities() == whole[2:]


@pytest.mark.parametrize("name", often(PRUNING))
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
    # A bias starts at zero; the bias of a neuron that is kept trains.
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
    # No weight that makes a filter is zero by itself.
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
            return 35 if progress < 0.5 else kappa

    one, ten = keras.Input((1,)), keras.Input((10,))
    cheap, costly = keras.layers.Dense(3), keras.layers.Dense(3)
    joined = keras.layers.Concatenate()([cheap(one), costly(ten)])
    model = keras.Model([one, ten], keras.layers.Dense(1)(joined))
    # A unit of `cheap` takes 2 multiply-adds, a unit of `costly` 11. At first four units fit, with nothing
    # left over; then three, with 5 left over.
    cheap.kernel.assign([[5.0, 0.01, 0.01]])
    costly.kernel.assign(np.ones((10, 3)) * [9, 8, 7])
    x = [np.random.default_rng(0).normal(size=(8, n)).astype("float32") for n in (1, 10)]
    model.compile(keras.optimizers.SGD(1e-3), "mse")
    prune = Steps(L0Constraint(29, Neurons(), measure="macs", keep_at_least=1))
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


def test_the_last_removal_is_validated():
    model, seen = net(), []
    look = spy(on_epoch_end=lambda epoch, logs: seen.append(nonzeros(model)))
    with pytest.warns(UserWarning, match="not trained after that"):
        fit(model, [GradualPruning(BUDGET, until=1.0, every=1.0), look], epochs=2)
    assert seen[0] > seen[1] == KEPT


def test_averaged_weights_are_pruned():
    model = net(keras.optimizers.SGD(0.1, use_ema=True, ema_momentum=0.9))
    with pytest.warns(UserWarning, match="or averaged weights were put"):
        fit(model, [GradualPruning(BUDGET, until=1.0)], epochs=2)
    assert nonzeros(model) == KEPT


def test_training_that_stops_early_keeps_the_budget():
    model = net()
    stop = spy(on_epoch_end=lambda epoch, logs: setattr(model, "stop_training", True))
    with pytest.warns(UserWarning, match="not trained after that"):
        fit(model, [GradualPruning(BUDGET), stop], epochs=9)
    assert nonzeros(model) == KEPT


@pytest.mark.parametrize("epoch", [0, pytest.param(8, marks=pytest.mark.slow)])
@pytest.mark.parametrize("first", [False, pytest.param(True, marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", often(BASELINES))
def test_weights_of_another_epoch_keep_the_budget(name, first, epoch, recwarn):
    model, best, history = net(), [], keras.callbacks.History()
    note = spy(on_epoch_end=lambda e, logs: best.append(model.get_weights()))
    restore = spy(on_train_end=lambda logs: model.set_weights(best[epoch]))
    callbacks = [note, restore, BASELINES[name]()] if first else [note, BASELINES[name](), restore]
    fit(model, [*callbacks, history], epochs=9)
    assert nonzeros(model) == KEPT
    assert "on_train_end" not in vars(history)
    late = any("not trained after that" in str(warning.message) for warning in recwarn)
    assert late == (epoch == 0 and name in ("rounds", "gradual"))
    if epoch == 8 and name != "direct":
        for one, two in zip(model.get_weights(), best[8], strict=True):
            np.testing.assert_array_equal(one, two)


def test_a_penalty_is_applied_once():
    trained, model, penalised = net(), net(), L1Penalty(0.01)
    fit(trained)
    compress_directly(trained, penalised)
    fit(model, [DirectCompression(penalised)])
    same(model, trained)


@pytest.mark.parametrize("name", often(BASELINES))
def test_a_fit_without_an_epoch_keeps_the_budget(name, recwarn):
    model = net()
    fit(model, [BASELINES[name]()], epochs=3, initial_epoch=3)
    assert nonzeros(model) == KEPT
    assert any("no epoch" in str(w.message) for w in recwarn) == (name in PRUNING)


@pytest.mark.parametrize("name", often(BASELINES))
def test_a_history_in_front_of_it_prunes_no_later_fit(name):
    model, history = net(), keras.callbacks.History()
    fit(model, [history, BASELINES[name]()])
    assert nonzeros(model) == KEPT
    fit(model, [history])
    assert nonzeros(model) > KEPT


# Other orders and hooks are in `tests/fit/test_callback_failures.py`.
@pytest.mark.parametrize("hook, first", [("on_train_batch_end", True), ("on_train_end", False)])
def test_a_batch_that_another_callback_trains(hook, first):
    model, prune = net(), GradualPruning(BUDGET)
    batch = spy(**{hook: lambda *_, **__: model.train_on_batch(X[:8], Y[:8])})
    if hook == "on_train_end" and not first:
        fit(model, [prune, batch])
        assert nonzeros(model) == KEPT
        return
    with pytest.raises(ValueError, match="Expected `fit` alone to train the model"):
        fit(model, [batch, prune] if first else [prune, batch])
    fit(model, [prune])
    assert nonzeros(model) == KEPT


@pytest.mark.parametrize("epochs", [1, 2])
@pytest.mark.parametrize("name", often(PRUNING))
def test_an_epoch_of_unknown_length(name, epochs, recwarn):
    data = tf.data.Dataset.from_tensor_slices((X, Y)).batch(8).filter(lambda x, y: True)
    model = net()
    fit(model, [BASELINES[name]()], x=data, epochs=epochs)
    assert nonzeros(model) == KEPT
    warned = any("number of batches" in str(w.message) for w in recwarn)
    assert warned == (epochs == 1 and name != "magnitude")


@pytest.mark.parametrize("make", [GradualPruning, MagnitudePruning])
def test_zeros_train_while_the_budget_has_room(make):
    model, seen = net(), []
    head = model.layers[1].kernel
    head.assign(tf.zeros(head.shape))
    all_but_two = L0Constraint(WEIGHTS - 2)
    fit(model, [make(L0Constraint(1.0))], epochs=1)
    assert nonzeros(model) == WEIGHTS
    head.assign(tf.zeros(head.shape))
    look = spy(on_train_batch_end=lambda batch, logs: seen.append(nonzeros(model)))
    fit(model, [make(all_but_two), look], epochs=3)
    assert seen[-1] == nonzeros(model) == WEIGHTS - 2


def test_groups_of_zeros_train_while_the_budget_has_room():
    model, seen = net(), []
    kernel = model.layers[1].kernel
    kernel.assign(tf.zeros(kernel.shape))
    task = Task(L0Constraint(2, groups=Blocks((8, 1))), weights=kernel)
    look = spy(on_train_batch_end=lambda batch, logs: seen.append(np.any(kernel.numpy(), axis=0).sum()))
    fit(model, [MagnitudePruning(task, rounds=2), look], epochs=2)
    assert seen == [2] * len(seen)


@pytest.mark.parametrize(
    "name, optimizer",
    [
        ("magnitude", "averaging"),
        ("gradual", "adam"),
        *(
            pytest.param(name, optimizer, marks=pytest.mark.slow)
            for name in PRUNING
            for optimizer in ("sgd", "adam", "averaging")
        ),
    ],
)
def test_a_training_that_diverges_leaves_the_budget_and_finite_weights(name, optimizer):
    averaging = keras.optimizers.SGD(0.1, use_ema=True, ema_momentum=0.5)
    model = net(averaging if optimizer == "averaging" else optimizer)
    spoilt = X.copy()

    def spoil(epoch, logs):
        spoilt[30] = np.nan if epoch == 1 else X[30]

    data = tf.data.Dataset.from_generator(
        lambda: ((spoilt[i : i + 8], Y[i : i + 8]) for i in range(0, len(X), 8)),
        output_signature=(tf.TensorSpec((None, 6)), tf.TensorSpec((None,), tf.int64)),
    ).apply(tf.data.experimental.assert_cardinality(len(X) // 8))
    with pytest.raises(ValueError, match="diverged: NaN.*kernel"):
        fit(model, [BASELINES[name](), spy(on_epoch_begin=spoil)], x=data, epochs=4)
    assert nonzeros(model) <= KEPT
    assert all(np.all(np.isfinite(w)) for w in model.get_weights())
    assert all(np.all(np.isfinite(v.numpy())) for v in model.optimizer.variables)
    fit(model, epochs=1)
    assert all(np.all(np.isfinite(w)) for w in model.get_weights()) and nonzeros(model) > KEPT


@pytest.mark.parametrize("name", often(PRUNING))
def test_weights_that_are_not_finite_at_the_start(name):
    model = net()
    model.layers[1].bias.assign([0, np.inf, 0])
    before = model.get_weights()
    with pytest.raises(ValueError, match="finite weights.*bias"):
        fit(model, [BASELINES[name]()])
    for one, two in zip(before, model.get_weights(), strict=True):
        np.testing.assert_array_equal(one, two)


class ByHand(keras.Sequential):
    def train_step(self, data):
        x, y = data
        with tf.GradientTape() as tape:
            loss = self.compute_loss(x, y, self(x, training=True))
        trained = self.trainable_variables[self.skip :]
        for variable, gradient in zip(trained, tape.gradient(loss, trained), strict=True):
            variable.assign_sub(0.1 * gradient)
        return {"loss": loss}

    skip = 0


@pytest.mark.parametrize("name, eager", [("magnitude", False), ("gradual", True)])
def test_a_train_step_without_constraints_is_refused(name, eager):
    model = net(kind=ByHand, run_eagerly=eager)
    with pytest.raises(ValueError, match="leaves out the constraints.*kernel.*train_step"):
        fit(model, [BASELINES[name]()])
    # Where this is found at once, nothing has been removed.
    assert name != "magnitude" or nonzeros(model) == WEIGHTS
    model = net(kind=ByHand, run_eagerly=eager)
    model.skip = 2
    # Nothing trains the pruned weights here.
    fit(model, [BASELINES[name](Task(BUDGET, weights=model.layers[0]))])
    assert np.count_nonzero(kernels(model)[0]) == KEPT


@pytest.mark.parametrize("hook", ["on_epoch_begin", "on_train_batch_end"])
def test_an_interrupt_leaves_a_model_that_trains_all_weights(hook):
    def interrupt(*arguments, **options):
        raise KeyboardInterrupt

    model, clean = net(), net()
    with pytest.raises(KeyboardInterrupt):
        fit(model, [MagnitudePruning(BUDGET), spy(**{hook: interrupt})])
    assert all(v.constraint is None for v in model.weights)
    clean.set_weights(model.get_weights())
    model.reset_metrics()  # Keras 3.14 goes on with the metrics of the interrupted epoch
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


def test_a_layer_that_direct_compression_empties_is_told():
    for compress in (
        lambda model: compress_directly(model, BUDGET),
        lambda model: fit(model, [DirectCompression(BUDGET)], epochs=1),
    ):
        model = net()
        first, second = (layer.kernel for layer in model.layers)
        second.assign(1e-4 * second)
        with pytest.warns(UserWarning, match=f"may be bad: {second.path} lost all weights: keep more"):
            compress(model)
        assert np.any(first) and not np.any(second)


def test_direct_compression_of_weights_that_are_not_finite_changes_nothing():
    model = net()
    kernel = model.layers[1].kernel
    kernel.assign(np.where(np.arange(24).reshape(8, 3) == 5, np.nan, kernel.numpy()))
    before = model.get_weights()
    with pytest.raises(ValueError, match=f"finite.*{kernel.path}"):
        compress_directly(model, BUDGET)
    for one, two in zip(before, model.get_weights(), strict=True):
        np.testing.assert_array_equal(one, two)


@pytest.mark.parametrize("mu", [0, -1, np.nan, np.inf, True, "x", None])
def test_a_weight_of_the_distance_that_is_none_changes_nothing(mu):
    model, unchanged = net(), net()
    with pytest.raises((TypeError, ValueError), match="`mu`.*mu="):
        compress_directly(model, L1Penalty(0.5), mu=mu)
    same(model, unchanged)


@pytest.mark.parametrize("value", [True, np.nan, np.inf, "x", None, -1])
@pytest.mark.parametrize(
    "make", [lambda **n: MagnitudePruning(BUDGET, **n), lambda **n: GradualPruning(BUDGET, **n)]
)
def test_numbers(make, value):
    for name in ("rounds",) if isinstance(make(), MagnitudePruning) else ("until", "every"):
        with pytest.raises((TypeError, ValueError), match=f"`{name}`.*{name}="):
            make(**{name: value})


def test_direct_compression_of_what_is_no_model():
    with pytest.raises(TypeError, match="keras.Model.*None"):
        compress_directly(None, BUDGET)


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


@pytest.mark.parametrize("name", often(BASELINES))
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


@pytest.mark.parametrize("name", often(PRUNING))
def test_a_fit_that_begins_with_a_later_epoch_prunes_as_any(name):
    one, other = net(), net()
    logs = fit(one, [BASELINES[name]()], epochs=3).history
    assert fit(other, [BASELINES[name]()], epochs=5, initial_epoch=2).history == logs
    same(one, other)


class AtLeast(keras.constraints.Constraint):
    def __call__(self, w):
        return keras.ops.maximum(w, 0.01)


def test_what_is_removed_stays_zero_whatever_a_constraint_of_the_user_makes_of_it():
    model, seen = net(), []
    model.layers[0].kernel.constraint = AtLeast()
    look = spy(on_train_batch_end=lambda batch, logs: seen.append(nonzeros(model)))
    fit(model, [BASELINES["magnitude"](), look], epochs=1)
    assert seen == [KEPT] * 8


def test_weights_that_make_no_unit_are_not_shrunk():
    model = net()
    before = kernels(model)
    compress_directly(model, L1Penalty(0.1, Neurons()))
    factors = 1 - 0.1 / np.linalg.norm(before[0], axis=0)
    np.testing.assert_allclose(kernels(model)[0], before[0] * factors, rtol=1e-5)
    np.testing.assert_array_equal(kernels(model)[1], before[1])


def test_weights_that_are_not_finite_where_no_epoch_is_trained():
    model = net()
    model.layers[1].bias.assign([0, np.inf, 0])
    with pytest.raises(ValueError, match="finite weights.*bias"):
        fit(model, [BASELINES["magnitude"]()], epochs=3, initial_epoch=3)


def test_the_memory_of_masks_is_freed(monkeypatch):
    masks, init = [], Masked.__init__
    monkeypatch.setattr(Masked, "__init__", lambda self, v: init(self, v) or masks.append(self.mask))
    fit(net(), [BASELINES["magnitude"]()], epochs=1)
    assert [mask.numpy().shape for mask in masks] == [(), ()]
