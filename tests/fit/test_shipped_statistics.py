"""The statistics of batch normalisation that `fit` leaves and shows are those of the compressed weights."""

import warnings

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

from helpers import XENT, X, Y, spy
from lc_keras import L0Constraint, LearningCompression, baselines, estimate_statistics
from lc_keras.fit.statistics import Statistics
from lc_keras.model.statistics import BATCHES

pytestmark = pytest.mark.filterwarnings("ignore:(Training was|The weights that were removed|`shuffle=True`)")


def net(kind=keras.Sequential, **options):
    keras.utils.set_random_seed(1)
    hidden = [layers.Dense(8, "relu"), layers.BatchNormalization(name="norm"), layers.Dropout(0.1)]
    model = kind([keras.Input((6,)), *hidden, layers.Dense(3)])
    model.compile(keras.optimizers.SGD(0.1), XENT, **options)
    return model


def dataset(size=8, repeat=1):
    return tf.data.Dataset.from_tensor_slices((X, Y)).batch(size).repeat(repeat)


def fit(model, *callbacks, data=None, method=LearningCompression, epochs=2, **options):
    method = method(L0Constraint(20))
    data = dataset() if data is None else data
    return model.fit(data, epochs=epochs, verbose=0, callbacks=[*callbacks, method], **options).history


def moving(model):
    norm = model.get_layer("norm")
    return norm.moving_mean.numpy(), norm.moving_variance.numpy()


def assert_of_what_it_holds(model, size=8, x=X):
    seen = [model.layers[0](x[i : i + size]).numpy() for i in range(0, len(X), size)]
    expected = np.mean([s.mean(0) for s in seen], 0), np.mean([s.var(0) for s in seen], 0)
    for one, other in zip(moving(model), expected, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    "method, kind",
    [
        (LearningCompression, "arrays"),
        (LearningCompression, "from_generator"),
        *(
            pytest.param(*case, marks=pytest.mark.slow)
            for case in [(LearningCompression, "dataset"), (baselines.MagnitudePruning, "arrays")]
        ),
        (baselines.MagnitudePruning, "unknown length"),
    ],
)
def test_what_ships_and_what_is_validated(method, kind):
    model, checked = net(), []

    def check(*_):
        assert_of_what_it_holds(model)
        checked.append(np.count_nonzero(model.layers[0].kernel))

    known, looks = dataset(), spy(on_test_begin=check, on_epoch_end=check)
    data = {
        "dataset": {},
        "arrays": {"data": X, "y": Y, "batch_size": 8, "shuffle": False},
        "from_generator": {
            "data": tf.data.Dataset.from_generator(lambda: iter(known), output_signature=known.element_spec)
        },
        "unknown length": {"data": known.filter(lambda x, y: True)},
    }[kind]
    history = fit(model, looks, method=method, validation_data=dataset(), **data, epochs=3)
    assert len(checked) == 6 and max(checked) <= 20
    check()
    assert history["val_loss"][-1] == pytest.approx(model.evaluate(dataset(), verbose=0), rel=1e-6)


def test_training_goes_on_with_its_own(monkeypatch):
    def statistics():
        model, seen = net(), []
        fit(model, spy(on_train_batch_end=lambda batch, logs: seen.append(moving(model))))
        return seen, moving(model)

    (seen, shipped), nothing = statistics(), monkeypatch.setattr(Statistics, "estimate", lambda self: None)
    (plain, of_w), _ = statistics(), nothing
    assert len(seen) == len(plain) == 16
    for batch in [*range(7), *range(8, 15)]:  # in the last batch of an epoch they are those of θ
        np.testing.assert_array_equal(seen[batch], plain[batch])
    assert np.abs(shipped[0] - of_w[0]).max() > 0.1


class Tempered(layers.Layer):
    """Divides by a number that a callback sets, and training does not."""

    def __init__(self):
        super().__init__()
        self.temperature = self.add_weight(shape=(), initializer="ones", trainable=False)

    def call(self, inputs):
        return inputs / self.temperature


def test_what_another_callback_sets_stays():
    tempered, seen = Tempered(), []
    model = keras.Sequential([keras.Input((6,)), *net().layers, tempered])
    model.compile(keras.optimizers.SGD(0.1), XENT)

    def cool(epoch, logs):
        tempered.temperature.assign(0.5**epoch)

    look = spy(on_train_batch_end=lambda batch, logs: seen.append(float(tempered.temperature)))
    fit(model, spy(on_epoch_begin=cool), look)
    assert seen == 8 * [1.0] + 8 * [0.5] and float(tempered.temperature) == 0.5


def test_what_another_callback_sets_stays_after_a_restart(tmp_path):
    def run(*callbacks):
        tempered, seen = Tempered(), []
        model = keras.Sequential([keras.Input((6,)), *net().layers, tempered])
        model.compile(keras.optimizers.SGD(0.1), XENT)
        cool = spy(on_epoch_begin=lambda epoch, logs: tempered.temperature.assign(0.5**epoch))
        look = spy(on_train_batch_end=lambda batch, logs: seen.append(float(tempered.temperature)))
        compress = LearningCompression(L0Constraint(20), checkpoint_dir=tmp_path)
        model.fit(dataset(), epochs=2, verbose=0, callbacks=[compress, cool, look, *callbacks])
        return seen

    def stop(epoch, logs):
        if epoch == 1:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(spy(on_epoch_begin=stop))
    assert run() == 8 * [0.5]


def test_a_restart_goes_on_with_those_of_the_trained_weights(tmp_path):
    def run(*callbacks):
        model, seen = net(), []
        look = spy(on_train_batch_end=lambda batch, logs: seen.append(moving(model)))
        compress = LearningCompression(L0Constraint(20), checkpoint_dir=tmp_path)
        model.fit(dataset(), epochs=2, verbose=0, callbacks=[compress, look, *callbacks])
        return [*seen, moving(model)]

    def stop(epoch, logs):
        if epoch == 1:
            raise KeyboardInterrupt

    whole = run()
    with pytest.raises(KeyboardInterrupt):
        run(spy(on_epoch_begin=stop))
    resumed = run()
    assert len(resumed) == 9
    np.testing.assert_array_equal(resumed, whole[8:])


@pytest.mark.parametrize("known", [True, False])
def test_no_more_batches_than_an_epoch_has(known):
    model = net()
    if known:
        fit(model, data=dataset(repeat=None), steps_per_epoch=3)
        expected = [moving(model), estimate_statistics(model, dataset(), 3), moving(model)]
    else:
        fit(model, data=dataset(1, repeat=2).filter(lambda x, y: True))
        expected = [moving(model), estimate_statistics(model, dataset(1), BATCHES), moving(model)]
    assert expected[1] == (3 if known else 20)
    np.testing.assert_array_equal(expected[0], expected[2])


class Sequence(keras.utils.PyDataset):
    """Batches that are counted as they are read."""

    def __init__(self):
        super().__init__()
        self.read = []

    def __len__(self):
        return 8

    def __getitem__(self, i):
        self.read.append(i)
        return X[8 * i : 8 * i + 8], Y[8 * i : 8 * i + 8]


@pytest.mark.parametrize(
    "method, kind", [(LearningCompression, "generator"), (baselines.MagnitudePruning, "sequence")]
)
def test_a_generator_loses_no_batch_and_is_warned_of(method, kind):
    read = []

    def batches():
        for i in range(16):
            read.append(i)
            yield X[:8] + i, Y[:8]

    data, options = batches(), {"steps_per_epoch": 8}
    if kind == "sequence":
        data, options = Sequence(), {"shuffle": False}
        read = data.read
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        model = net()
        fit(model, data=data, method=method, **options)
    said = [str(w.message) for w in seen if "estimate_statistics" in str(w.message)]
    assert len(said) == 1 and "norm/moving_mean" in said[0] and "generator" in said[0]
    if kind == "sequence":
        # Keras looks at some of them first.
        net().fit(plain := Sequence(), epochs=2, shuffle=False, verbose=0)
        assert sorted(read) == sorted(plain.read)
    else:
        assert read == [*range(16)]


class Moved(keras.Sequential):
    """A model that trains on other data than it is given."""

    def train_step(self, data):
        x, y = data
        return super().train_step((x + 3, y))


class ByLayers(keras.Sequential):
    """A model that trains without being called itself."""

    def train_step(self, data):
        x, y = data
        with tf.GradientTape() as tape:
            for layer in self.layers:
                x = layer(x, training=True)
            loss = self.compute_loss(y=y, y_pred=x)
        self.optimizer.apply(tape.gradient(loss, self.trainable_weights), self.trainable_weights)
        return {"loss": loss}


class Taught(keras.Sequential):
    """A model that is called on other data first, not to train on them."""

    def train_step(self, data):
        x, y = data
        y = y + 0 * tf.argmax(self(x - 3, training=False), -1)
        return super().train_step((x + 3, y))


class Counted(keras.Sequential):
    """A model whose training step counts itself, and trains on its data."""

    moves = False

    def train_step(self, data):
        if not hasattr(self, "count"):
            self.count = tf.Variable(0)
        self.count.assign_add(1)
        x, y = data
        return super().train_step((x + 3 if self.moves else x, y))


class CountedAndMoved(Counted):
    moves = True


@pytest.mark.parametrize(
    "kind, x, run_eagerly",
    [
        (Moved, X + 3, False),
        (Moved, X + 3, True),
        (ByLayers, X, False),
        pytest.param(ByLayers, X, True, marks=pytest.mark.slow),
        (Taught, X + 3, False),
        (Counted, X, False),
    ],
)
def test_they_are_of_what_a_train_step_calls_the_model_on(kind, x, run_eagerly):
    model = net(kind, run_eagerly=run_eagerly)
    fit(model)
    assert_of_what_it_holds(model, x=x)
    assert model.optimizer.iterations == 16 and "call" not in vars(model)
    assert getattr(model, "count", 16) == 16


def test_a_train_step_that_would_change_more_is_not_run_for_them():
    model = net(CountedAndMoved)
    with pytest.warns(UserWarning, match="changes variables of its own.*estimate_statistics"):
        fit(model)
    assert model.count == 16


def test_nothing_is_said_of_a_net_without_statistics():
    model = keras.Sequential([keras.Input((6,)), layers.Dense(3)])
    model.compile("sgd", XENT)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", "This `fit` has 16 batches|The compressed model may be bad")
        LearningCompression(L0Constraint(10)).set_model(model)
        model.fit(
            ((X[:8], Y[:8]) for _ in range(16)),
            steps_per_epoch=8,
            epochs=2,
            shuffle=False,
            verbose=0,
            callbacks=[LearningCompression(L0Constraint(10))],
        )


@pytest.mark.parametrize("method", [baselines.GradualPruning])
def test_baselines_ship_their_own(method):
    model = net()
    fit(model, method=method)
    assert_of_what_it_holds(model)


@pytest.mark.parametrize("method", [LearningCompression, baselines.GradualPruning])
def test_weights_that_break_the_budget_as_training_ends(method):
    model = net()
    put = spy(on_train_end=lambda logs: model.set_weights([w + 0.1 for w in model.get_weights()]))
    with pytest.warns(UserWarning, match="As training ended"):
        model.fit(dataset(), epochs=2, verbose=0, callbacks=[method(L0Constraint(20)), put])
    assert_of_what_it_holds(model)


def test_averages_that_are_put_into_the_model():
    model = net()
    model.compile(keras.optimizers.SGD(0.1, use_ema=True, ema_momentum=0.9), XENT)
    fit(model)
    assert_of_what_it_holds(model)


def test_an_interrupted_run():
    class Own(keras.Sequential):
        def train_step(self, data):
            logs = super().train_step(data)
            tf.debugging.assert_less(tf.cast(self.optimizer.iterations, "int32"), 6, "interrupted")
            return logs

    model = net(Own)
    with pytest.raises(tf.errors.InvalidArgumentError, match="interrupted"):
        fit(model)
    assert_of_what_it_holds(model)


def test_a_model_that_cannot_be_called_on_its_data():
    class Own(ByLayers):
        def train_step(self, data):
            return super().train_step((data[0][:, :6], data[1]))

    model = net(Own)
    wide = dataset().map(lambda x, y: (tf.concat([x, x], 1), y))
    with pytest.warns(UserWarning, match="(?s)cannot be called on them .*estimate_statistics") as seen:
        fit(model, data=wide)
    assert len([w for w in seen if "estimate_statistics" in str(w.message)]) == 1
    assert np.isfinite(moving(model)).all()


@pytest.mark.parametrize("method", [LearningCompression, baselines.MagnitudePruning])
def test_several_replicas(method):
    with tf.distribute.MirroredStrategy(["CPU:1", "CPU:2"]).scope():
        model = net()
    fit(model, method=method)
    assert_of_what_it_holds(model, size=4)
    for variable in model.get_layer("norm").non_trainable_variables:
        one, other = (v.numpy() for v in variable.value.values)
        np.testing.assert_array_equal(one, other)
