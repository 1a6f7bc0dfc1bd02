import functools
import gc
import weakref

import keras
import numpy as np
import pytest
import tensorflow as tf

from helpers import KEPT, WEIGHTS, XENT, X, Y, fit, lc, loss, net, nonzeros, same, spy
from lc_keras import Exponential, Geometric, L0Constraint, LearningCompression, Task
from lc_keras.baselines import MagnitudePruning

pytestmark = [
    pytest.mark.filterwarnings("ignore:Training was interrupted"),
    pytest.mark.filterwarnings("error:Training stopped"),
]


def all_finite(values):
    return all(np.isfinite(np.asarray(value)).all() for value in values)


@functools.cache
def untouched(**options):
    """A model that never sees the callback, for all tests: its functions are traced once."""
    return net(**options)


def is_clean(model, **options):
    """Asserts that a model evaluates and trains like one that never saw the callback."""
    clean = untouched(**options)
    clean.set_weights(model.get_weights())
    for variable in clean.optimizer.variables:
        variable.assign(0 if variable.name == "iteration" else 0.1)
    assert all(v.regularizer is None for v in model.weights)
    assert model.optimizer.get_config() == clean.optimizer.get_config()
    assert loss(model) == loss(clean)
    assert fit(model, epochs=1).history == fit(clean, epochs=1).history
    same(model, clean)
    if model.test_function:
        assert model.evaluate(X, Y, verbose=0) == clean.evaluate(X, Y, verbose=0)


# Arguments


@pytest.mark.parametrize(
    "options, error, message",
    [
        ({"steps": 0}, ValueError, "steps=0"),
        ({"steps": -3}, ValueError, "steps=-3"),
        ({"steps": 2.5}, ValueError, "steps=2.5"),
        ({"steps": True}, TypeError, "steps=True"),
        ({"steps": "a"}, TypeError, "steps='a'"),
        ({"steps": float("inf")}, ValueError, "steps=inf"),
        ({"limit_learning_rate": 0.01}, TypeError, "`limit_learning_rate` to be True or False"),
        ({"multipliers": "no"}, TypeError, "multipliers='no'"),
        ({"reset_optimizer": None}, TypeError, "reset_optimizer=None"),
        ({"epochs_per_step": 0}, ValueError, "epochs_per_step=0"),
        ({"epochs_per_step": -1.0}, ValueError, "epochs_per_step=-1.0"),
        ({"epochs_per_step": float("nan")}, ValueError, "epochs_per_step=nan"),
        ({"epochs_per_step": float("inf")}, ValueError, "epochs_per_step=inf"),
        ({"first_step_epochs": 0}, ValueError, "first_step_epochs=0"),
        ({"tolerance": -0.1}, ValueError, "tolerance=-0.1"),
        ({"tolerance": float("nan")}, ValueError, "tolerance=nan"),
        ({"tolerance": True}, TypeError, "tolerance=True"),
        ({"checkpoint_dir": "lr[0.1]"}, ValueError, "takes for a pattern"),
        ({"mu": "big"}, TypeError, "mu='big'"),
        ({"mu": b"12"}, TypeError, "mu=b'12'"),
        ({"mu": 0.1}, TypeError, "mu=0.1"),
        ({"mu": None}, TypeError, "mu=None"),
        ({"mu": Exponential}, TypeError, "mu=<class"),
        ({"mu": ["a", "b"]}, TypeError, "μ='a' at L step 0"),
        ({"mu": [0.1, 1e39]}, ValueError, "single precision.*μ=1e\\+39 at L step 1"),
        ({"mu": [1e-50, 1.0]}, ValueError, "single precision.*μ=1e-50"),
        ({"mu": Exponential(1.0, 1.1), "steps": 8000}, ValueError, "single precision"),
        ({"mu": Geometric(1e-200, 1e200), "steps": 3}, ValueError, "single precision"),
        ({"mu": []}, ValueError, r"Received: mu=\[\]"),
        ({"mu": [1.0, 2.0], "steps": 3}, ValueError, "3 L steps.*2 values"),
        ({"mu": [1.0, 1.0]}, ValueError, "Expected μ to grow.*μ=1.0 at L step 1"),
        ({"mu": [1.0, 3.0, 2.0]}, ValueError, "Expected μ to grow.*μ=2.0 at L step 2"),
        ({"mu": [0.0, 1.0]}, ValueError, "positive.*μ=0.0"),
        ({"mu": [1.0, float("nan")]}, ValueError, "positive.*μ=nan"),
        ({"mu": [1.0, float("inf")]}, ValueError, "positive.*μ=inf"),
        ({"mu": lambda step: 1.0}, ValueError, "Expected μ to grow"),
        ({"mu": lambda step: -1.0}, ValueError, "positive"),
        ({"mu": lambda step: min(step + 1, 4), "steps": 5}, ValueError, "Expected μ to grow.*L step 4"),
    ],
    ids=str,
)
def test_arguments(options, error, message):
    with pytest.raises(error, match=message):
        LearningCompression(L0Constraint(KEPT), **options)


@pytest.mark.parametrize("tasks", [None, 0.05, "dense", [L0Constraint(3), 7]], ids=str)
def test_tasks_of_another_type(tasks):
    with pytest.raises(TypeError, match="compression"):
        LearningCompression(tasks)


def test_a_model_is_not_wrapped():
    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
    for make in (LearningCompression, MagnitudePruning):
        with pytest.raises(TypeError, match="no model is wrapped: the callback goes into `model.fit"):
            make(model)


def test_no_tasks():
    with pytest.raises(ValueError, match="at least one task"):
        LearningCompression([])


@pytest.mark.parametrize("arguments", [(0.0, 2.0), (-1.0, 2.0), (1.0, 1.0), (1.0, 0.5), (1.0, np.nan)])
def test_exponential(arguments):
    with pytest.raises(ValueError, match="Received: (initial|factor)="):
        Exponential(*arguments)


# Before the training starts


@pytest.mark.parametrize(
    "compress, message",
    [
        (
            lambda: LearningCompression(L0Constraint(WEIGHTS + 1)),
            f"at most {WEIGHTS}.*Received: {WEIGHTS + 1}",
        ),
        (lambda: LearningCompression([L0Constraint(3), L0Constraint(4)]), "belongs to two tasks"),
    ],
    ids=["κ too large", "two tasks"],
)
def test_a_task_that_does_not_fit_changes_nothing(compress, message):
    model = net()
    fit(model, epochs=1)
    before, function = model.get_weights(), model.train_function
    with pytest.raises(ValueError, match=message):
        fit(model, [compress()])
    assert model.train_function is function
    assert all(v.regularizer is None for v in model.weights)
    for one, two in zip(before, model.get_weights(), strict=True):
        np.testing.assert_array_equal(one, two)
    is_clean(model)


def test_a_schedule_that_stops_growing_in_fit():
    model = net()
    before = model.get_weights()
    with pytest.raises(ValueError, match="Expected μ to grow.*L step 4"):
        fit(model, [lc(mu=lambda step: min(step + 1, 4))])
    for one, two in zip(before, model.get_weights(), strict=True):
        np.testing.assert_array_equal(one, two)
    is_clean(model)


def test_a_model_that_is_not_built():
    model = keras.Sequential([keras.layers.Dense(8, activation="tanh"), keras.layers.Dense(3)])
    model.compile("sgd", XENT)
    with pytest.raises(ValueError, match="is not built.*model.build"):
        fit(model, [lc()])
    model.build((None, 6))
    fit(model, [lc()])
    assert nonzeros(model) == KEPT


@pytest.mark.parametrize("name, value", [("kernel", np.nan), ("bias", np.inf)])
def test_weights_that_are_not_finite(name, value):
    model = net()
    variable = getattr(model.layers[1], name)
    good, bad = variable.numpy(), variable.numpy()
    bad.flat[2] = value
    variable.assign(bad)
    before = model.get_weights()
    with pytest.raises(ValueError, match=f"finite.*{variable.path}"):
        fit(model, [lc()])
    for one, two in zip(before, model.get_weights(), strict=True):
        np.testing.assert_array_equal(one, two)
    variable.assign(good)
    is_clean(model)


def test_two_callbacks():
    # One callback takes both tasks.
    model = net()
    with pytest.raises(ValueError, match="one LearningCompression"):
        fit(model, [lc(), lc()])
    is_clean(model)


# L steps that diverge


def nan_at(batch):
    """The data, with a NaN in one batch."""
    x = X.copy()
    x[8 * batch + 3, 1] = np.nan
    return x


def is_recovered(model):
    assert all_finite(model.get_weights())
    assert all_finite(variable.numpy() for variable in model.optimizer.variables)
    assert nonzeros(model) == KEPT
    assert all(v.regularizer is None for v in model.weights)
    losses = fit(model, epochs=5).history["loss"]
    assert losses[-1] < losses[0]


@pytest.mark.parametrize("batch, validated", [(0, False), (7, True)])
def test_a_loss_that_becomes_nan(batch, validated):
    model = net(keras.optimizers.SGD(0.1, momentum=0.9))
    data = {"validation_data": (X, Y)} if validated else {}
    with pytest.raises(ValueError, match=f"L step {batch // 2 + 1} of 8 diverged"):
        fit(model, [lc()], x=nan_at(batch), **data)
    is_recovered(model)


def test_averages_begin_anew_where_a_loss_became_nan():
    model = net(keras.optimizers.Adam(0.01, use_ema=True))
    with pytest.raises(ValueError, match="diverged"):
        fit(model, [lc()], x=nan_at(2))
    assert all_finite(variable.numpy() for variable in model.optimizer.variables)
    fit(model, [lc()], epochs=2)
    assert all_finite(model.get_weights()) and nonzeros(model) == KEPT


def test_optimizers_of_other_weights_begin_anew_where_a_loss_became_nan():
    class Two(keras.Sequential):
        def __init__(self, layers):
            super().__init__(layers)
            self.other = keras.optimizers.SGD(0.1, momentum=0.9)

        def train_step(self, data):
            with tf.GradientTape() as tape:
                loss = self.compute_loss(data[0], data[1], self(data[0], training=True))
            weights = self.trainable_weights
            pairs = list(zip(tape.gradient(loss, weights), weights, strict=True))
            self.optimizer.apply_gradients(pairs[:2])
            self.other.apply_gradients(pairs[2:])
            return {"loss": loss}

    model = net(kind=Two)
    compress = LearningCompression(Task(L0Constraint(0.5), weights=model.layers[0]))
    with pytest.raises(ValueError, match="diverged"):
        fit(model, [compress], x=nan_at(2))
    fit(model, [compress], epochs=2)
    assert all_finite(model.get_weights())


def test_a_loss_that_becomes_nan_in_a_later_epoch():
    model, best = net(keras.optimizers.Adam(0.01)), []
    keep = spy(on_epoch_end=lambda epoch, logs: best.append(model.get_weights()))
    poison = spy(on_epoch_begin=lambda epoch, logs: epoch == 1 and model.layers[1].bias.assign(3 * [np.nan]))
    with pytest.raises(ValueError, match="L step 5 of 8 diverged"):
        fit(model, [lc(), keep, poison])
    for one, two in zip(best[0], model.get_weights(), strict=True):
        np.testing.assert_array_equal(one, two)
    is_recovered(model)


@pytest.mark.parametrize("first", [pytest.param(True, marks=pytest.mark.slow), False])
def test_terminate_on_nan_ends_the_epoch_at_once(first):
    model, ended = net(keras.optimizers.SGD(0.1, momentum=0.9)), []
    stop = keras.callbacks.TerminateOnNaN()
    callbacks = [lc(), stop] if first else [stop, lc()]
    count = spy(on_train_batch_end=lambda batch, logs: ended.append(batch))
    with pytest.raises(ValueError, match="L step 2 of 8 diverged"):
        fit(model, [*callbacks, count], x=nan_at(2))
    assert ended == [0, 1, 2]
    is_recovered(model)


def test_a_learning_rate_far_too_high():
    model = net(keras.optimizers.SGD(1e20))
    with pytest.raises(ValueError, match="diverged.*lower learning rate"):
        fit(model, [lc(limit_learning_rate=False)])
    model.optimizer.learning_rate = 0.1
    is_recovered(model)


def test_a_loss_that_is_nan_while_weights_are_finite():
    def loss(goal, output):
        return XENT(goal, output) + tf.stop_gradient(tf.constant(float("nan")))

    model = net()
    model.compile(keras.optimizers.SGD(0.1), loss)
    with pytest.raises(ValueError, match="diverged: the loss is NaN"):
        fit(model, [lc()])
    model.compile(keras.optimizers.SGD(0.1), XENT)
    is_recovered(model)


# Elsewhere

MORE_BATCHES = [("on_epoch_end", False), ("on_train_batch_end", True)]


@pytest.mark.parametrize(
    "hook, first",
    [
        ("on_epoch_end", True),
        ("on_train_batch_end", False),
        pytest.param("on_train_end", True, marks=pytest.mark.slow),
        ("on_train_end", False),
        *(pytest.param(*case, marks=pytest.mark.slow) for case in MORE_BATCHES),
    ],
)
def test_a_batch_that_another_callback_trains(hook, first):
    model, compress = net(), lc()
    batch = spy(**{hook: lambda *_, **__: model.train_on_batch(X[:8], Y[:8])})
    if hook == "on_train_end" and not first:
        # It trains the compressed model, as after `fit`.
        fit(model, [compress, batch])
        return
    with pytest.raises(ValueError, match="Expected `fit` alone to train the model"):
        fit(model, [batch, compress] if first else [compress, batch])
    assert all(v.regularizer is None for v in model.weights)
    fit(model, [compress])
    assert nonzeros(model) == KEPT


def test_a_train_function_that_another_callback_makes_anew():
    plain, renewed = net(), net()
    renew = spy(on_epoch_begin=lambda epoch, logs: renewed.make_train_function(force=True))
    same_logs = [fit(model, [lc(), *more]).history for model, more in ((plain, []), (renewed, [renew]))]
    assert same_logs[0] == same_logs[1]
    same(plain, renewed)


def test_what_another_callback_puts_around_the_train_function():
    model, calls = net(), []

    def wrap(logs):
        inner = model.train_function
        model.train_function = lambda iterator: calls.append(1) or inner(iterator)

    fit(model, [lc(), spy(on_train_begin=wrap)], epochs=2)
    assert len(calls) == 2 * len(X) // 8 and nonzeros(model) == KEPT


def test_a_training_step_that_is_a_tf_function():
    class Decorated(keras.Sequential):
        @tf.function
        def train_step(self, data):
            return super().train_step(data)

    model = net(kind=Decorated)
    for callback in (lc(), MagnitudePruning(L0Constraint(KEPT))):
        with pytest.raises(ValueError, match="tf.function itself"):
            fit(model, [callback])


class Traced(keras.Sequential):
    """Updates its weights in a function that stays traced from one `fit` to the next."""

    @tf.function
    def update(self, x, y):
        with tf.GradientTape() as tape:
            loss = self.compute_loss(x, y, self(x, training=True))
        self.optimizer.apply(tape.gradient(loss, self.trainable_variables), self.trainable_variables)
        return loss

    def train_step(self, data):
        return {"loss": self.update(*data)}


@pytest.mark.parametrize("make", [lc, lambda: MagnitudePruning(L0Constraint(KEPT))], ids=["lc", "magnitude"])
def test_what_a_training_step_has_traced_by_itself_is_let_go(make):
    model = net(kind=Traced)
    fit(model, [make()])
    assert nonzeros(model) == KEPT
    is_clean(model, kind=Traced)
    assert nonzeros(model) > KEPT


def test_what_a_training_step_has_traced_before_is_refused():
    model = net(kind=Traced)
    fit(model)
    with pytest.raises(ValueError, match="tf.function of its own"):
        fit(model, [lc()])


def test_a_training_step_that_sets_the_learning_rate():
    class Sets(keras.Sequential):
        def train_step(self, data):
            self.optimizer.learning_rate = 0.05
            return super().train_step(data)

    model, other = net(kind=Sets), net(keras.optimizers.SGD(0.05))
    for trained in (model, other):
        fit(trained, [lc(limit_learning_rate=False)])
    same(model, other)


def test_a_loss_that_is_a_vector():
    class Vector(keras.Sequential):
        def train_step(self, data):
            return {"loss": super().train_step(data)["loss"] * [1.0, self.factor]}

    model = net(kind=Vector)
    model.factor = 2.0
    fit(model, [lc()])
    assert nonzeros(model) == KEPT
    model.factor = np.nan
    with pytest.raises(ValueError, match="diverged: the loss is NaN"):
        fit(model, [lc()])


def test_an_optimizer_that_cannot_be_made_anew():
    class Scaled(keras.optimizers.SGD):
        def __init__(self, scale, **options):
            super().__init__(scale * 0.1, **options)

    model, untouched = net(Scaled(1.0)), net(Scaled(1.0))
    with pytest.raises(ValueError, match="Scaled: .*scale"):
        fit(model, [lc(reset_optimizer=True)])
    same(model, untouched)
    fit(model, [lc()])
    assert nonzeros(model) == KEPT


def test_a_fit_without_an_epoch():
    model = net()
    before = model.get_weights()
    with pytest.raises(ValueError, match="at least one epoch"):
        model.fit(X, Y, epochs=3, initial_epoch=3, verbose=0, callbacks=[lc()])
    for weight, expected in zip(model.get_weights(), before, strict=True):
        np.testing.assert_array_equal(weight, expected)


def test_a_metric_of_the_same_name():
    model = net(metrics=[keras.metrics.SparseCategoricalAccuracy(name="gap")])
    with pytest.warns(UserWarning, match="the model's metrics gap are hidden"):
        fit(model, [lc()])


# Interrupted


class Constant(keras.optimizers.schedules.LearningRateSchedule):
    def __call__(self, step):
        return tf.constant(0.01)


@pytest.mark.parametrize(
    "rate",
    [Constant(), pytest.param(lambda: tf.constant(0.01), marks=pytest.mark.slow)],
    ids=["schedule", "function"],
)
def test_a_rate_that_keras_cannot_write_down(rate):
    model = net(keras.optimizers.Adam(rate))
    fit(model, [lc(reset_optimizer=True)], epochs=2)
    assert nonzeros(model) == KEPT
    with pytest.raises(ValueError, match="diverged"):
        fit(model, [lc()], x=nan_at(2), epochs=3)
    assert nonzeros(model) <= KEPT and all_finite(model.get_weights())
    assert fit(model, epochs=1).history["loss"][0] > 0


@pytest.mark.filterwarnings("ignore:Your input ran out of data")
@pytest.mark.parametrize("known", [True, False])
def test_no_data(known):
    data = tf.data.Dataset.from_tensor_slices((X, Y)).batch(8).take(0)
    if not known:
        data = data.filter(lambda x, y: True)
    model = net()
    with pytest.raises(ValueError, match="Expected data to train on"):
        fit(model, [lc()], x=data)
    is_clean(model)


def test_an_end_at_the_first_batch_where_the_length_is_unknown():
    def unknown(x):
        return tf.data.Dataset.from_tensor_slices((x, Y)).batch(8).filter(lambda x, y: True)

    model = net()

    def stop(batch, logs):
        model.stop_training = True

    with pytest.warns(UserWarning, match="Training stopped"):
        fit(model, [spy(on_train_batch_end=stop), lc()], x=unknown(X))
    assert nonzeros(model) == KEPT
    with pytest.raises(ValueError, match="diverged"):
        fit(model, [keras.callbacks.TerminateOnNaN(), lc()], x=unknown(nan_at(0)))


class Interrupted(keras.Sequential):
    """Raises an error in a training step."""

    def train_step(self, data):
        if self.optimizer.iterations == self.at and self.error:
            raise self.error
        return super().train_step(data)


@pytest.mark.parametrize(
    "error", [KeyboardInterrupt(), pytest.param(MemoryError("full"), marks=pytest.mark.slow)], ids=repr
)
@pytest.mark.parametrize("at", [pytest.param(1, marks=pytest.mark.slow), 8, 15])
def test_an_error_in_the_training_step(error, at):
    options = {"kind": Interrupted, "run_eagerly": True}
    model, compress = net(**options), lc()
    model.at, model.error = at, error
    Interrupted.at, Interrupted.error = at, None
    with (
        pytest.warns(
            UserWarning, match=rf"interrupted \({type(error).__name__}\) in L step {at // 2 + 1} of 8"
        ),
        pytest.raises(type(error)),
    ):
        fit(model, [compress])
    assert nonzeros(model) == KEPT
    assert np.isfinite(compress.gap)
    model.error = None
    is_clean(model, **options)


HOOKS = [
    "on_train_begin",
    pytest.param("on_epoch_begin", marks=pytest.mark.slow),
    "on_train_batch_begin",
    pytest.param("on_train_batch_end", marks=pytest.mark.slow),
    "on_test_begin",
    pytest.param("on_test_batch_end", marks=pytest.mark.slow),
    pytest.param("on_test_end", marks=pytest.mark.slow),
    "on_epoch_end",
    "on_train_end",
]


@pytest.mark.parametrize("hook", HOOKS)
@pytest.mark.parametrize("first", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_an_interrupt_in_another_callback(hook, first):
    def interrupt(*arguments, **options):
        raise KeyboardInterrupt

    other = keras.callbacks.Callback()
    setattr(other, hook, interrupt)
    model = net()
    with pytest.raises(KeyboardInterrupt):
        fit(model, [other, lc()] if first else [lc(), other], epochs=1, validation_data=(X, Y))
    assert all_finite(model.get_weights())
    is_clean(model)


def test_an_interrupted_model_is_compressed_again():
    def interrupt(batch, logs):
        if batch == 5:
            raise KeyboardInterrupt

    model, compress = net(), lc()
    with pytest.raises(KeyboardInterrupt):
        fit(model, [compress, spy(on_train_batch_end=interrupt)])
    other = net()
    other.set_weights(model.get_weights())
    assert fit(model, [compress]).history == fit(other, [lc()]).history
    same(model, other)
    is_clean(model)


def test_the_next_fit_frees_what_an_interrupted_one_left(lagrangians):
    def interrupt(batch, logs):
        raise KeyboardInterrupt

    model, compress = net(), lc()
    with pytest.raises(KeyboardInterrupt):
        fit(model, [compress, spy(on_train_batch_end=interrupt)])
    thetas = [weakref.ref(theta) for theta in lagrangians[-1].thetas]
    fit(model, [lc()], epochs=1)
    gc.collect()
    assert len(thetas) == 2 and all(theta() is None for theta in thetas)


class Counting(keras.layers.Layer):
    """A layer with a weight that is not a floating-point number."""

    def build(self, shape):
        self.seen = self.add_weight(shape=(), dtype="int32", initializer="zeros", trainable=False)

    def call(self, inputs):
        self.seen.assign_add(1)
        return inputs


def test_a_weight_that_is_an_integer_goes_back_with_the_others():
    model = keras.Sequential([keras.Input((6,)), *net().layers, Counting()])
    model.compile(keras.optimizers.SGD(0.1), XENT)
    model.layers[-1].seen.assign(0)
    with pytest.raises(ValueError, match="L step 4 of 4 diverged"):
        model.fit(nan_at(6), Y, batch_size=8, epochs=1, shuffle=False, verbose=0, callbacks=[lc()])
    assert model.layers[-1].seen.numpy() == 6
    assert all_finite(model.get_weights())


@pytest.mark.parametrize(
    "hook", [pytest.param("on_train_batch_begin", marks=pytest.mark.slow), "on_train_batch_end"]
)
def test_a_batch_after_an_interrupt_has_no_penalty(hook):
    def interrupt(batch, logs):
        raise KeyboardInterrupt

    model, clean = net(), net()
    with pytest.raises(KeyboardInterrupt):
        fit(model, [lc(), spy(**{hook: interrupt})])
    clean.set_weights(model.get_weights())
    model.reset_metrics()  # Keras 3.14 goes on with the metrics of the interrupted epoch
    assert model.train_on_batch(X, Y) == clean.train_on_batch(X, Y)
    same(model, clean)


def test_an_interrupted_model_saves_without_the_package(tmp_path):
    def interrupt(batch, logs):
        raise KeyboardInterrupt

    rate = keras.optimizers.schedules.ExponentialDecay(0.1, 4, 0.5)
    model = net(keras.optimizers.SGD(rate))
    with pytest.raises(KeyboardInterrupt):
        fit(model, [lc(), spy(on_train_batch_end=interrupt)])
    config = keras.saving.serialize_keras_object(model.get_compile_config())
    assert "lc_keras" not in repr(config)


@pytest.mark.parametrize("batch", [0, 5])
def test_an_error_in_the_data(batch, recwarn):
    def batches():
        for i in range(8):
            if i == batch:
                raise OSError("disk failed")
            yield X[8 * i : 8 * i + 8], Y[8 * i : 8 * i + 8]

    signature = (tf.TensorSpec((8, 6), tf.float32), tf.TensorSpec((8,), tf.int64))
    data = tf.data.Dataset.from_generator(batches, output_signature=signature)
    data = data.apply(tf.data.experimental.assert_cardinality(8))
    model = net()
    with pytest.raises(tf.errors.OpError, match="disk failed"):
        fit(model, [lc()], x=data)
    if batch:
        assert nonzeros(model) == KEPT
        assert any("interrupted" in str(w.message) and "L step 3 of 8" in str(w.message) for w in recwarn)
    else:
        same(model, net())
    is_clean(model)


class LeavesOutLosses(keras.Sequential):
    def train_step(self, data):
        x, y = data
        with tf.GradientTape() as tape:
            loss = XENT(y, self(x, training=True))
        gradients = tape.gradient(loss, self.trainable_variables)
        self.optimizer.apply_gradients(zip(gradients, self.trainable_variables, strict=True))
        return {"loss": loss}


@pytest.mark.parametrize("validated", [pytest.param(False, marks=pytest.mark.slow), True])
def test_a_training_step_that_leaves_out_the_losses(validated):
    model = net(kind=LeavesOutLosses)
    data = {"validation_data": (X, Y)} if validated else {}
    with pytest.raises(ValueError, match="leaves out `model.losses`"):
        fit(model, [lc()], **data)
    # Nothing has been compressed yet.
    assert all_finite(model.get_weights()) and nonzeros(model) == WEIGHTS
    is_clean(model, kind=LeavesOutLosses)


def test_a_fit_that_another_callback_runs():
    model, compress = net(), lc()
    inner = spy(on_epoch_end=lambda epoch, logs: model.fit(X, Y, batch_size=8, verbose=0))
    with pytest.raises(ValueError, match="Expected `fit` alone to train the model"):
        fit(model, [compress, inner])
    assert all(v.regularizer is None for v in model.weights)
    fit(model, [compress])
    assert nonzeros(model) == KEPT


def test_statistics_that_become_infinite_while_the_loss_is_finite():
    norm = keras.layers.BatchNormalization()
    model = keras.Sequential([keras.Input((6,)), keras.layers.Dense(8), norm, keras.layers.Dense(3)])
    model.compile(keras.optimizers.SGD(0.1), XENT)
    poison = spy(
        on_train_batch_end=lambda batch, logs: batch == 2 and norm.moving_variance.assign(8 * [np.inf])
    )
    with pytest.raises(ValueError, match="L step 2 of 8 diverged: NaN or .*moving_variance"):
        fit(model, [lc(), poison])
    assert all_finite(model.get_weights()) and nonzeros(model) == KEPT


def test_weights_that_are_not_finite_as_training_ends():
    model = net()
    poison = spy(on_train_end=lambda logs: model.layers[0].kernel.assign(np.full((6, 8), np.nan)))
    with pytest.raises(ValueError, match="Expected callbacks to put finite weights .*kernel"):
        fit(model, [lc(), poison])


@pytest.mark.parametrize("history", ["in front", "none"])
def test_a_history_that_does_not_come_last(history, tmp_path):
    model = net()
    fit(model, epochs=1)
    compress = LearningCompression(L0Constraint(1), checkpoint_dir=tmp_path / "checkpoints")
    if history == "in front":
        callbacks = [keras.callbacks.History(), compress]
    else:
        callbacks = keras.callbacks.CallbackList([compress], model=model, epochs=2, steps=8, verbose=0)
    with pytest.warns(UserWarning, match="The compressed model may be bad.*lost all weights") as seen:
        fit(model, callbacks)
    said = any("A History precedes LearningCompression" in str(w.message) for w in seen)
    assert said == (history == "in front")
    assert nonzeros(model) == 1 and not any(tmp_path.iterdir())
    assert "on_train_end" not in vars(model.history)


@pytest.mark.parametrize("prune", [lc, lambda: MagnitudePruning(L0Constraint(KEPT))])
def test_callbacks_of_which_nothing_is_known(prune):
    model = net()
    before = model.get_weights()
    with pytest.raises(ValueError, match="Expected a list of callbacks.*CallbackList"):
        fit(model, keras.callbacks.CallbackList([prune()], add_history=True, model=model))
    for weight, expected in zip(model.get_weights(), before, strict=True):
        np.testing.assert_array_equal(weight, expected)


def test_checks_of_numerics():
    tf.debugging.enable_check_numerics()
    try:
        model = net()
        fit(model, [lc()])
        assert nonzeros(model) == KEPT
    finally:
        tf.debugging.disable_check_numerics()


@pytest.mark.parametrize("multipliers", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_weights_that_are_not_finite_between_epochs(multipliers):
    def put(epoch, logs):
        if epoch == 1:
            model.layers[0].kernel.assign(np.full((6, 8), np.nan))

    model = net()
    diverged = pytest.raises(ValueError, match="diverged: NaN or infinite values in .*kernel")
    with pytest.warns(UserWarning, match="Between epochs"), diverged:
        fit(model, [lc(multipliers=multipliers), spy(on_epoch_end=put)], epochs=3)
    assert all_finite(model.get_weights()) and nonzeros(model) == KEPT
    fit(model, [lc()])
    assert nonzeros(model) == KEPT
