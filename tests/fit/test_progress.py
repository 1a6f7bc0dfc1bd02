"""A `fit` that is cut off and started again ends where an uninterrupted one ends, bit for bit."""

import contextlib
import shutil

import keras
import numpy as np
import pytest
import tensorflow as tf

import lc_keras
from lc_keras.algorithm.lagrangian import Lagrangian
from lc_keras.algorithm.tasks import as_tasks, bind_tasks
from lc_keras.fit.averages import Averages
from lc_keras.fit.checkpoints import Checkpoints
from lc_keras.fit.progress import Saved
from lc_keras.fit.statistics import Statistics

pytestmark = pytest.mark.filterwarnings("ignore:Training (was interrupted|stopped)")

SAMPLES, BATCH = 64, 8


def net(optimizer=None, units=16):
    """A model that draws random numbers and has weights that are not trained."""
    keras.utils.set_random_seed(1)
    layers = keras.layers
    model = keras.Sequential(
        [
            keras.Input((12,)),
            layers.Dense(units, "relu"),
            layers.BatchNormalization(),
            layers.Dropout(0.2),
            layers.Dense(4),
        ]
    )
    model.compile(
        optimizer or keras.optimizers.Adam(0.01),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
    )
    return model


class Data(keras.callbacks.Callback):
    """Batches in an order that depends on the epoch alone."""

    def __init__(self):
        super().__init__()
        x = np.random.default_rng(0).normal(size=(SAMPLES, 12)).astype("float32")
        y = x[:, :4].argmax(axis=1)
        self.epoch = tf.Variable(0)

        def shuffled(_):
            order = tf.random.experimental.stateless_shuffle(tf.range(SAMPLES), seed=[0, self.epoch])
            return tf.data.Dataset.from_tensor_slices((tf.gather(x, order), tf.gather(y, order)))

        self.batches = tf.data.Dataset.range(1).flat_map(shuffled).batch(BATCH)

    def on_epoch_begin(self, epoch, logs=None):
        self.epoch.assign(epoch)


class CutOff(keras.callbacks.Callback):
    def __init__(self, epoch, hook="on_epoch_begin"):
        super().__init__()
        self.epoch = epoch
        setattr(self, hook, self.stop)

    def stop(self, epoch, logs=None):
        if epoch == self.epoch:
            raise RuntimeError("cut off")


def prune(folder, epochs=4, extra=(), model=None, known=True, tasks=None, **options):
    model, data = model or net(), Data()
    options = {"epochs_per_step": 0.25, "checkpoint_dir": folder} | options
    compress = lc_keras.LearningCompression(tasks or lc_keras.L0Constraint(0.2), **options)
    batches = data.batches
    if known:
        batches = batches.apply(tf.data.experimental.assert_cardinality(SAMPLES // BATCH))
    history = model.fit(batches, epochs=epochs, verbose=0, shuffle=False, callbacks=[data, *extra, compress])
    return model, history.history


def cut_off(folder, epoch=2, hook="on_epoch_begin", **options):
    with pytest.raises(RuntimeError, match="cut off"):
        prune(folder, extra=[CutOff(epoch, hook)], **options)


@pytest.fixture(scope="module")
def cut_once(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cut off")
    cut_off(folder)
    return folder


@pytest.fixture
def begun(cut_once, tmp_path):
    """The checkpoints of a run that was cut off before the third of 4 epochs, a copy for each test."""
    return shutil.copytree(cut_once, tmp_path / "begun")


def same(model, other):
    for one, two in zip(model.variables, other.variables, strict=True):
        np.testing.assert_array_equal(one.numpy(), two.numpy(), err_msg=one.path)


OPTIMIZERS = {
    "momentum": lambda: keras.optimizers.SGD(0.05, momentum=0.9),
    # μ depends on the highest rate ahead, which a restart in the warm-up has to know.
    "warm-up": lambda: keras.optimizers.SGD(
        keras.optimizers.schedules.CosineDecay(0.0, 60, warmup_target=0.05, warmup_steps=20), momentum=0.9
    ),
    "loss scale": lambda: keras.optimizers.LossScaleOptimizer(keras.optimizers.Nadam(0.01)),
    "accumulation": lambda: keras.optimizers.SGD(0.05, gradient_accumulation_steps=3),
    "averages": lambda: keras.optimizers.SGD(0.05, use_ema=True, ema_momentum=0.9),
}


@pytest.mark.filterwarnings("ignore:Your input ran out of data")
@pytest.mark.parametrize(
    "optimizer, options",
    [
        pytest.param("momentum", {"multipliers": False}, marks=pytest.mark.slow),
        pytest.param(
            "momentum", {"tasks": lc_keras.L0Constraint(0.5, lc_keras.Neurons())}, marks=pytest.mark.slow
        ),
        ("warm-up", {"epochs_per_step": 0.3}),
        pytest.param("loss scale", {"mu": lc_keras.Geometric(0.01, 1.0)}, marks=pytest.mark.slow),
        pytest.param("accumulation", {"known": False}, marks=pytest.mark.slow),
        ("averages", {"reset_optimizer": True, "epochs_per_step": 1}),
    ],
    ids=str,
)
def test_a_restarted_fit_ends_where_an_uninterrupted_one_does(tmp_path, optimizer, options):
    cuts = {"warm-up": [CutOff(1)], "averages": [CutOff(2, "on_epoch_end")]}
    cuts = cuts.get(optimizer, [CutOff(1), CutOff(2, "on_epoch_end")])

    def run(**more):
        return prune(tmp_path / "run", model=net(OPTIMIZERS[optimizer]()), **options, **more)

    whole, expected = run()
    for cut in cuts:
        with pytest.raises(RuntimeError, match="cut off"):
            run(extra=[cut])
    resumed, history = run()
    assert {name: values[cuts[-1].epoch :] for name, values in expected.items()} == history
    same(whole, resumed)
    assert not (tmp_path / "run").exists()
    assert resumed._initial_epoch is None


@pytest.mark.parametrize("known", [pytest.param(True, marks=pytest.mark.slow), False])
@pytest.mark.filterwarnings("ignore:Your input ran out of data")
def test_numbers_of_epochs_and_batches_from_numpy(tmp_path, known):
    def run(folder, number, **options):
        return prune(tmp_path / folder, number(3), known=known, **options)[1]

    with pytest.raises(RuntimeError, match="cut off"):
        run("cut off", np.int64, extra=[CutOff(2)])
    assert len(run("cut off", np.int64)["loss"]) == 1


@pytest.mark.parametrize("optimizer", [pytest.param("momentum", marks=pytest.mark.slow), "averages"])
def test_cut_off_after_the_last_epoch(tmp_path, optimizer):
    whole, _ = prune(tmp_path / "whole", epochs=2, model=net(OPTIMIZERS[optimizer]()))
    end = keras.callbacks.LambdaCallback(on_train_end=lambda logs: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        prune(tmp_path / "run", epochs=2, model=net(OPTIMIZERS[optimizer]()), extra=[end])
    # Averages are in the model when `fit` ends, and their statistics need data.
    warned = (
        pytest.warns(UserWarning, match="has read no data")
        if optimizer == "averages"
        else contextlib.nullcontext()
    )
    with warned:
        resumed, history = prune(tmp_path / "run", epochs=2, model=net(OPTIMIZERS[optimizer]()))
    assert history == {}
    if optimizer == "averages":
        for mine, estimated in zip(resumed.variables, whole.variables, strict=True):
            if "moving_" in mine.path:
                mine.assign(estimated)
    same(whole, resumed)


def test_a_run_that_had_stopped_trains_no_further(tmp_path):
    def stop():
        return keras.callbacks.EarlyStopping("loss", min_delta=1e9, patience=1)

    whole, history = prune(tmp_path / "whole", extra=[stop()])
    assert len(history["loss"]) == 2
    end = keras.callbacks.LambdaCallback(on_train_end=lambda logs: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        prune(tmp_path / "run", extra=[stop(), end])
    resumed, history = prune(tmp_path / "run", extra=[stop()])
    assert history == {}
    same(whole, resumed)


def test_a_damaged_checkpoint(begun):
    whole, _ = prune(None)
    latest = max(begun.glob("*.data*"))
    latest.write_bytes(latest.read_bytes()[:-1])
    with pytest.warns(UserWarning, match="is damaged"):
        resumed, history = prune(begun)
    assert len(history["loss"]) == 3
    same(whole, resumed)


def test_what_is_in_a_checkpoint_of_this_format(begun):
    """What is read back by name: other names need another format number, since they are not understood."""
    facts = Checkpoints(begun).latest().facts
    assert facts["format"] == 5
    assert {part: set(state) for part, state in facts["state"].items()} == {
        "run": {"first_epoch", "step", "mu", "finished", "stopped", "logs"},
        "plan": {"batches"},
        "pull": {"_is_fixed", "_far", "_strength"},
        "rate": {"_ahead"},
        "lagrangian": {"shown", "reach", "is_aside"},
        "statistics": {"_replaced"},
    }


def test_a_later_fit_begins_anew(begun):
    model, history = prune(begun)
    assert len(history["loss"]) == 2
    assert len(prune(begun, model=model)[1]["loss"]) == 4
    # As if another callback had resumed an earlier `fit`, which Keras does not forget.
    model._initial_epoch = 3
    assert len(prune(begun, model=model)[1]["loss"]) == 4


# What is refused


@pytest.fixture(scope="module")
def interrupted(tmp_path_factory):
    folder = tmp_path_factory.mktemp("interrupted")
    cut_off(folder, epoch=1)
    return folder


L0 = lc_keras.L0Constraint


def in_twos():
    model = net()
    model.steps_per_execution = 2
    return model


@pytest.mark.parametrize(
    "options, difference",
    [
        ({"model": lambda: net(units=8)}, r"model\[0\]: expected .*dense/kernel \(12, 8\) float32, rec.*16"),
        ({"model": lambda: net(keras.optimizers.SGD(0.1))}, r"s\[0\].class: expected SGD, received Adam"),
        ({"tasks": L0(0.3)}, r"tasks\[0\].cost: expected L0Constraint\(keep=0.3.*received.*0.2"),
        ({"tasks": lc_keras.Task(L0(0.2), lambda v: v.shape == (12, 16))}, "expected 1 of them, received 2"),
        ({"epochs": 7}, "epochs: expected 7, received 4"),
        ({"steps": 9}, "L steps: expected 9, received 16"),
        ({"mu": lc_keras.Geometric(0.1, 1.0)}, r"mu: expected \[0.1, .*received auto"),
        ({"multipliers": False}, "multipliers: expected False, received True"),
        ({"first_step_epochs": 1}, "first_step_epochs: expected 1.0, received 0.25"),
        ({"limit_learning_rate": False}, "limit_learning_rate: expected False, received True"),
        ({"reset_optimizer": True}, "reset_optimizer: expected True, received False"),
        ({"tolerance": 0.1}, "tolerance: expected 0.1, received 0.0"),
        (
            {"epochs_per_step": 0.5, "first_step_epochs": 0.25, "steps": 16},
            "epochs_per_step: expected 0.5, received 0.25",
        ),
        ({"model": in_twos}, "steps_per_execution: expected 2, received 1"),
        (
            {"model": lambda: net(keras.optimizers.Adam(0.01, amsgrad=True))},
            r"optimizers\[0\].variables: expected 20 of them, received 14",
        ),
        ({"known": False}, "batches in an epoch: expected None, received 8"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_a_checkpoint_of_another_run_is_refused(interrupted, options, difference):
    model = options.pop("model", net)()
    before, files = [v.numpy() for v in model.variables], sorted(interrupted.iterdir())
    function = model.train_function
    with pytest.raises(ValueError, match=f"(?s)'{interrupted}/epoch-000001'.*this run.*{difference}"):
        prune(interrupted, model=model, **options)
    for one, variable in zip(before, model.variables, strict=True):
        np.testing.assert_array_equal(one, variable.numpy())
    assert sorted(interrupted.iterdir()) == files
    assert model._initial_epoch is None
    assert function is None and not isinstance(model.train_function, lc_keras.fit.attachment.Attachment)


class Scaled(keras.Sequential):
    """Trains a variable that Keras does not know of."""

    scale = (tf.Variable(1.0, name="scale"),)

    def train_step(self, data):
        x, y = data
        with tf.GradientTape() as tape:
            loss = self.compute_loss(y=y, y_pred=self(x, training=True) * self.scale[0])
        weights = [*self.trainable_variables, *self.scale]
        self.optimizer.apply(tape.gradient(loss, weights), weights)
        return {"loss": loss}


def test_a_variable_that_checkpoints_leave_out_is_an_error(tmp_path):
    model = Scaled(net().layers)
    model.compile("adam", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    with pytest.raises(ValueError, match="`model.variables` alone.*Received: scale"):
        prune(tmp_path / "run", model=model)
    assert np.isfinite(model.predict(np.zeros((1, 12)), verbose=0)).all()


@pytest.mark.parametrize(
    "first, alone",
    [
        pytest.param(first, alone, marks=[pytest.mark.slow] * ((first, alone) != (True, False)))
        for first in (True, False)
        for alone in (True, False)
    ],
)
def test_backup_and_restore_beside_it_is_refused_and_needless(tmp_path, first, alone):
    def fit(keep, cut=()):
        model, data = net(), Data()
        batches = data.batches.apply(tf.data.experimental.assert_cardinality(SAMPLES // BATCH))
        compress = lc_keras.LearningCompression(L0(0.2), checkpoint_dir=None if alone else tmp_path / "lc")
        pair = ([keep, compress] if first else [compress, keep]) if keep else [compress]
        history = model.fit(batches, epochs=3, verbose=0, shuffle=False, callbacks=[data, *cut, *pair])
        return model, history.history

    with pytest.raises(RuntimeError, match="cut off"):
        fit(keras.callbacks.BackupAndRestore(tmp_path / "keras"), [CutOff(2)])
    with pytest.raises(ValueError, match="BackupAndRestore, has taken to epoch 2. Pass `checkpoint_dir`"):
        fit(keras.callbacks.BackupAndRestore(tmp_path / "keras"))
    if not alone:
        model, history = fit(None)
        assert len(history["loss"]) == 1
        same(model, prune(tmp_path / "whole", epochs=3, epochs_per_step=None)[0])


# What a state holds


@pytest.mark.parametrize("keep", [lambda o: o, lambda o: [o], lambda o: {"other": o}])
def test_the_state_of_several_optimizers(tmp_path, keep):
    def model_with_two():
        model, second = net(), keras.optimizers.SGD(0.1, momentum=0.9)
        model.second = keep(second)
        lagrangian = Lagrangian(bind_tasks(as_tasks(L0(0.2)), model))
        return (
            model,
            second,
            Saved(model, lagrangian, Averages(model.optimizer, lagrangian), Statistics(model, None)),
        )

    model, second, state = model_with_two()
    second.build(model.layers[-1].trainable_variables)
    for variable in [*model.variables, *second.variables]:
        variable.assign(tf.ones_like(variable) * 3)
    Checkpoints(tmp_path).save(1, {"run": state.description()}, state.tensors())
    other, second, restored = model_with_two()
    saved = Checkpoints(tmp_path).latest()
    restored.restore(saved, saved.facts["run"])
    assert not other.optimizer.built
    assert [tuple(v.shape) for v in second.variables] == [(), (), (16, 4), (4,)]
    for variable in [*other.variables, *second.variables]:
        assert np.all(variable.numpy() == 3)


def test_an_interrupt_outside_of_the_training_leaves_no_epoch_behind(begun):
    def interrupt(epoch, logs):
        raise KeyboardInterrupt

    model = net()
    with pytest.raises(KeyboardInterrupt):
        prune(begun, model=model, extra=[keras.callbacks.LambdaCallback(on_epoch_end=interrupt)])
    assert model._initial_epoch is None


def test_what_a_run_that_was_over_says_of_itself(tmp_path):
    def run(*extra):
        data = Data()
        batches = data.batches.apply(tf.data.experimental.assert_cardinality(SAMPLES // BATCH))
        compress = lc_keras.LearningCompression(L0(0.2), checkpoint_dir=tmp_path)
        with contextlib.suppress(ZeroDivisionError):
            net().fit(batches, epochs=2, verbose=0, shuffle=False, callbacks=[data, *extra, compress])
        return compress

    cut = run(keras.callbacks.LambdaCallback(on_train_end=lambda logs: 1 / 0))
    again = run()
    assert (again.gap, again.density) == (cut.gap, cut.density)


@pytest.mark.filterwarnings("ignore:Between epochs")
def test_weights_that_are_put_between_epochs_are_there_after_a_restart(tmp_path):
    # As the first callback, at the end of a validated epoch: the model is compressed then.
    def run(folder, *extra):
        def put(epoch, logs):
            if epoch == 1:
                model.set_weights([np.full_like(weight, 3.0) for weight in model.get_weights()])

        data, model = Data(), net()
        batches = data.batches.apply(tf.data.experimental.assert_cardinality(SAMPLES // BATCH))
        compress = lc_keras.LearningCompression(L0(0.2), checkpoint_dir=folder)
        callbacks = [keras.callbacks.LambdaCallback(on_epoch_end=put), data, *extra, compress]
        options = {"epochs": 4, "verbose": 0, "shuffle": False}
        model.fit(batches, validation_data=batches, callbacks=callbacks, **options)
        return model

    def keep(epoch, logs):
        """Keeps what a killed process leaves."""
        if epoch == 2:
            shutil.copytree(tmp_path / "whole", tmp_path / "killed")

    whole = run(tmp_path / "whole", keras.callbacks.LambdaCallback(on_epoch_begin=keep))
    resumed = run(tmp_path / "killed")
    assert resumed.history.epoch == [2, 3]
    same(whole, resumed)
