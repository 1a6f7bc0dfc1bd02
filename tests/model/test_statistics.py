"""Statistics of batch normalisation, estimated anew for the weights that a model has."""

import itertools

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

from helpers import sequential
from lc_keras import estimate_statistics

X = 3 * np.random.default_rng(0).normal(size=(42, 5)).astype("float32")
BATCHED = [X[i : i + 8] for i in range(0, 42, 8)]


class Own(layers.BatchNormalization):
    """A class that inherits from the normalisation."""


def net(kind=layers.BatchNormalization, dtype=None, **options):
    keras.utils.set_random_seed(1)
    return sequential(
        (5,),
        layers.Dense(8, "relu", dtype=dtype),
        kind(dtype=dtype, name="norm", **options),
        layers.Dropout(0.5),
        layers.Dense(2, dtype=dtype),
    )


def means(model, parts):
    """The plain means, over the parts, of the statistics that the normalisation sees of each part."""
    seen = [model.layers[0](part).numpy().astype("float64") for part in parts]
    return np.mean([s.mean(0) for s in seen], 0), np.mean([s.var(0) for s in seen], 0)


def assert_means(model, parts, **tolerance):
    norm = model.get_layer("norm")
    for variable, mean in zip((norm.moving_mean, norm.moving_variance), means(model, parts), strict=True):
        np.testing.assert_allclose(variable.numpy(), mean, **({"rtol": 1e-5, "atol": 1e-6} | tolerance))


def changed(model, before):
    return [v.name for v, b in zip(model.variables, before, strict=True) if not np.array_equal(v.numpy(), b)]


def values(model):
    return [v.numpy() for v in model.variables]


@pytest.mark.parametrize(
    "options, tolerance",
    [
        ({}, {}),
        ({"kind": Own, "momentum": 0.5}, {}),
        ({"synchronized": True}, {}),
        ({"dtype": "mixed_float16"}, {"rtol": 1e-3, "atol": 1e-3}),
        ({"dtype": "float64"}, {"rtol": 1e-12}),
    ],
    ids=str,
)
def test_the_plain_mean_over_the_batches(options, tolerance):
    model = net(**options)
    before, norm = values(model), model.get_layer("norm")
    momentum = norm.momentum
    norm.moving_mean.assign(norm.moving_mean + np.nan)  # as diverged training leaves them
    assert estimate_statistics(model, BATCHED) == 6
    assert_means(model, BATCHED, **tolerance)
    assert changed(model, before) == ["moving_mean", "moving_variance"]
    assert norm.momentum == momentum and not {"call"} & vars(norm).keys()


def test_kinds_of_data():
    class Batches(keras.utils.PyDataset):
        def __len__(self):
            return 4

        def __getitem__(self, i):
            return BATCHED[i], np.ones(len(BATCHED[i]))

    class Endless(Batches):
        num_batches = None

    dataset = tf.data.Dataset.from_tensor_slices((X, X, X)).batch(8)
    endless = itertools.cycle([(b, b) for b in BATCHED])
    given = [(dataset, 3, 3), (dataset, 9, 6), (endless, 7, 7), (Batches(), 20, 4), (Endless(), 3, 3)]
    for data, batches, used in given:
        model = net()
        assert estimate_statistics(model, data, batches) == used
        assert_means(model, list(itertools.islice(itertools.cycle(BATCHED), used)))
    assert estimate_statistics(net(), endless) == 20


def test_each_call_of_a_shared_layer_counts():
    norm, inputs = layers.BatchNormalization(), [keras.Input((5,)), keras.Input((5,))]
    model = keras.Model(inputs, keras.layers.add([norm(i) for i in inputs]))
    estimate_statistics(model, [((a, 10 * a + 1), a) for a in BATCHED])
    expected = np.mean([[a.mean(0), 10 * a.mean(0) + 1] for a in BATCHED], (0, 1))
    np.testing.assert_allclose(norm.moving_mean.numpy(), expected, rtol=1e-4, atol=1e-5)


def test_frozen_layers_stay():
    model = net()
    model.get_layer("norm").trainable = False
    before = values(model)

    def data():
        raise AssertionError("read")
        yield

    assert estimate_statistics(model, data()) == 0 and not changed(model, before)
    assert estimate_statistics(sequential((5,), layers.Normalization(), layers.Dense(2)), data()) == 0


class Follows(layers.Layer):
    """A layer whose state follows its inputs, counts its calls and draws random numbers."""

    def build(self, shape):
        new = {"shape": (), "initializer": "zeros", "trainable": False}
        self.peak, self.calls = (self.add_weight(**new, name=n, dtype=d) for n, d in PAIRS)
        self.metric = keras.metrics.Mean()

    def call(self, x, training=False):
        if training:
            self.peak.assign(keras.ops.maximum(self.peak, keras.ops.max(x)))
            self.calls.assign_add(1)
            self.metric.update_state(x)
            x = x + keras.random.normal(keras.ops.shape(x))
        return x


PAIRS = [("peak", "float32"), ("calls", "int32")]


def test_states_of_other_kinds_move_and_nothing_else_does():
    recurrent = layers.LSTM(3, stateful=True)
    inputs = keras.Input(batch_shape=(8, 5))
    hidden = layers.SpectralNormalization(layers.Dense(6))(layers.Dropout(0.5)(Follows()(inputs)))
    model = keras.Model(inputs, recurrent(keras.layers.Reshape((2, 3))(hidden)))
    model(X[:8], training=True)
    keras.utils.set_random_seed(0)
    before, after = values(model), keras.random.normal((4,))
    keras.utils.set_random_seed(0)
    estimate_statistics(model, BATCHED[:4])
    assert changed(model, before) == ["peak", "vector_u"]
    np.testing.assert_array_equal(keras.random.normal((4,)), after)
    follows = model.layers[1]
    assert follows.peak.numpy() == max(b.max() for b in BATCHED[:4])
    assert float(follows.metric.count) == len(X[:8])


def test_the_same_seed_gives_the_same():
    def estimated():
        keras.utils.set_random_seed(1)
        hidden = [layers.Dropout(0.5), layers.Dense(4), layers.BatchNormalization(), layers.Dense(2)]
        model = sequential((5,), *hidden)
        for _ in range(2):
            estimate_statistics(model, BATCHED)
            yield model.layers[2].moving_variance.numpy()

    first, *others = [*estimated(), *estimated()]
    for other in others:
        np.testing.assert_array_equal(first, other)


def test_a_model_that_runs_eagerly():
    class Eager(layers.Layer):
        def call(self, x):
            return x + float(keras.ops.convert_to_numpy(x)[0, 0])

    model = keras.Sequential([Eager(), layers.BatchNormalization(name="norm")])
    model(X)
    model.compile("sgd", "mse", run_eagerly=True)
    assert estimate_statistics(model, BATCHED) == 6
    assert_means(model, BATCHED)


@pytest.mark.parametrize(
    "model, data, error, message",
    [
        (lambda: 3, BATCHED, TypeError, "`model` to be a keras.Model. Received: 3"),
        (lambda: keras.Sequential([layers.BatchNormalization()]), BATCHED, ValueError, "is built"),
        (net, X, TypeError, "iterable of batches.*type ndarray"),
        (net, (X, X), TypeError, "type tuple"),
        (net, 3, TypeError, "type int"),
        (net, [], ValueError, "no batch"),
        (net, [X[:0]], ValueError, "no batch"),
        (net, [X, X * np.inf], ValueError, "finite.*norm/moving_mean.*as they were"),
        (net, [X[:, :3]], ValueError, "(?s)expected.*shape"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_is_refused_leaves_all_as_it_was(model, data, error, message):
    model = model()
    before = values(model) if isinstance(model, keras.Model) else []
    with pytest.raises(error, match=message):
        estimate_statistics(model, data)
    assert not before or not changed(model, before)


def test_replicas_share_each_batch():
    with tf.distribute.MirroredStrategy(["CPU:1", "CPU:2"]).scope():
        model = net()
    assert estimate_statistics(model, [*BATCHED[:4], X[:1]]) == 4
    assert_means(model, [half for b in BATCHED[:4] for half in (b[:4], b[4:])])
    for variable in model.get_layer("norm").non_trainable_variables:
        one, other = (v.numpy() for v in variable.value.values)
        np.testing.assert_array_equal(one, other)
