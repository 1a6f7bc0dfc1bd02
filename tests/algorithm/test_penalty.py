import math

import keras
import numpy as np
import pytest
import tensorflow as tf

from lc_keras.algorithm.penalty import LCPenalty
from lc_keras.internals import tensorflow as of_tensorflow

SHAPES = [(3,), (4, 3), (2, 3, 2, 4)]


def pair(shape, dtype="float32"):
    return np.random.normal(size=(2, *shape)).astype(dtype)


def gradient(penalty, weight):
    weight = tf.convert_to_tensor(weight)
    with tf.GradientTape() as tape:
        tape.watch(weight)
        value = penalty(weight)
    return value, tape.gradient(value, weight)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("mu", [0.0, 0.3, 40.0])
def test_value_and_gradient(shape, mu):
    weight, target = pair(shape)
    value, slope = gradient(LCPenalty(target, mu), weight)
    np.testing.assert_allclose(value, mu / 2 * np.sum((weight - target) ** 2), rtol=1e-6)
    np.testing.assert_allclose(slope, mu * (weight - target), rtol=1e-6)


@pytest.mark.parametrize("many", [1, 2**17], ids=["one pass", "operations"])
def test_gradient_is_that_of_the_plain_expression(many, monkeypatch):
    """Also where something else multiplies it, as with the gradients of a scaled loss."""
    monkeypatch.setattr(of_tensorflow, "_MANY", many)
    weight, target = map(tf.constant, pair((4, 3)))
    penalty = LCPenalty(target, 0.7)
    with tf.GradientTape(persistent=True) as tape:
        tape.watch(weight)
        given = tf.exp(0.1 * penalty(2 * weight))
        plain = tf.exp(0.1 * 0.7 / 2 * tf.reduce_sum((2 * weight - target) ** 2))
    np.testing.assert_allclose(given, plain, rtol=1e-6)
    np.testing.assert_allclose(tape.gradient(given, weight), tape.gradient(plain, weight), rtol=1e-5)


@pytest.mark.parametrize("regularizer", [keras.regularizers.L1(0.2), keras.regularizers.L2(0.2), "l2"])
def test_the_weights_own_regularizer_counts_too(regularizer):
    weight, target = pair((4, 3))
    value, slope = gradient(LCPenalty(target, 0.7, regularizer), weight)
    pull_value, pull_slope = gradient(LCPenalty(target, 0.7), weight)
    own_value, own_slope = gradient(keras.regularizers.get(regularizer), weight)
    np.testing.assert_allclose(value, pull_value + own_value, rtol=1e-6)
    np.testing.assert_allclose(slope, pull_slope + own_slope, rtol=1e-6)


@pytest.mark.parametrize("jit_compile", [False, True])
def test_new_mu_and_target_retrace_nothing(jit_compile):
    weight, target = pair((4, 3))
    penalty = LCPenalty(target, 0.7)
    traces = []

    @tf.function(jit_compile=jit_compile)
    def value_and_gradient(weight):
        traces.append(1)
        return gradient(penalty, weight)

    for mu, scale in [(0.7, 1), (5.0, 1), (5.0, 2)]:
        penalty.mu.assign(mu)
        penalty.target.assign(scale * target)
        value, slope = value_and_gradient(tf.constant(weight))
        np.testing.assert_allclose(value, mu / 2 * np.sum((weight - scale * target) ** 2), rtol=1e-5)
        np.testing.assert_allclose(slope, mu * (weight - scale * target), rtol=1e-5)
    assert len(traces) == 1


def test_given_variables_are_used_and_not_copied():
    mu, target = tf.Variable(1.0), tf.Variable([1.0, 2.0])
    penalty = LCPenalty(target, mu)
    assert penalty.mu is mu and penalty.target is target
    mu.assign(3.0)
    target.assign([0.0, 1.0])
    assert penalty(tf.constant([2.0, 1.0])).numpy() == 6.0


@pytest.mark.parametrize("dtype", [tf.float16, tf.bfloat16])
def test_half_precision_weights_are_pulled_in_float32(dtype):
    """The squares would overflow float16, and bfloat16 could not tell the target from the weight."""
    weight = tf.cast([300.0, 1.0], dtype)
    penalty = LCPenalty(np.array([0.0, 1.001], "float32"), 0.5)
    value, slope = gradient(penalty, weight)
    assert value.dtype == tf.float32 and slope.dtype == dtype
    np.testing.assert_allclose(value, 0.25 * (300**2 + 0.001**2), rtol=1e-6)
    np.testing.assert_allclose(tf.cast(slope, tf.float32), [150.0, -0.0005], rtol=5e-3)


def test_keras_variable_and_layer_losses():
    weight, target = pair((4, 3))
    layer = keras.layers.Dense(3, kernel_regularizer=LCPenalty(target, 0.7))
    layer.build((None, 4))
    layer.kernel.assign(weight)
    (loss,) = layer.losses
    np.testing.assert_allclose(loss, 0.35 * np.sum((weight - target) ** 2), rtol=1e-6)


@pytest.mark.parametrize("shape", [(3, 4), (4, 2), (4,), (4, 3, 1)])
def test_another_shape_is_an_error(shape):
    """Some of these would broadcast silently."""
    with pytest.raises(ValueError, match=r"\(4, 3\)"):
        LCPenalty(np.zeros((4, 3), "float32"))(tf.zeros(shape))


@pytest.mark.parametrize("mu", [-1.0, -1e-9, math.nan, 1e39])
def test_bad_mu_is_an_error(mu):
    with pytest.raises(ValueError, match="`mu`"):
        LCPenalty(np.zeros(3, "float32"), mu)


@pytest.mark.parametrize("regularizer", [None, keras.regularizers.L1(0.25)])
def test_serialization(regularizer):
    weight, target = pair((4, 3))
    penalty = LCPenalty(target, 0.75, regularizer)
    again = keras.regularizers.deserialize(keras.regularizers.serialize(penalty))
    assert isinstance(again, LCPenalty)
    np.testing.assert_array_equal(again.target.numpy(), target)
    assert again.mu.numpy() == 0.75
    assert again(weight) == penalty(weight)


def test_model_is_saved_and_loaded_with_its_penalty(tmp_path):
    weight, target = pair((4, 3))
    penalty = LCPenalty(target, 0.75, "l2")
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3, kernel_regularizer=penalty)])
    model.layers[0].kernel.assign(weight)
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    np.testing.assert_array_equal(loaded.layers[0].kernel, weight)
    (loss,) = loaded.losses
    np.testing.assert_allclose(loss, penalty(weight), rtol=1e-6)


def test_whether_it_pulls():
    """A gradient that is computed and thrown away moves nothing."""
    used, unused, left_out = (LCPenalty(np.zeros(3), 1.0) for _ in range(3))
    weights = [tf.Variable(np.ones(3, "float32")) for _ in range(3)]

    @tf.function
    def step(rate):
        with tf.GradientTape(persistent=True) as tape:
            left_out(weights[2])
            loss = used(weights[0]) + unused(weights[1]) + tf.reduce_sum(weights[0] * weights[1])
        weights[0].assign_sub(rate * tape.gradient(loss, weights[0]))

    assert not used.pulls
    step(0.1)
    assert used.pulls and not unused.pulls and not left_out.pulls


def test_whether_it_pulls_eagerly():
    used, left_out = LCPenalty(np.zeros(3), 1.0), LCPenalty(np.zeros(3), 1.0)
    for _ in range(3):
        gradient(used, np.ones(3, "float32"))
    left_out(np.ones(3, "float32"))
    assert used.pulls and not left_out.pulls
    assert used._gradients == [None], "holds gradients"


def test_the_pull_leaves_the_own_regularizer_out():
    penalty = LCPenalty(np.zeros(3), 2.0, keras.regularizers.L2(10.0))
    weight = np.ones(3, "float32")
    assert float(penalty.pull(weight)) == 3.0 and float(penalty(weight)) == 33.0


def test_config():
    third = tf.Variable([1 / 3], dtype=tf.float64)
    for target in (np.zeros((2, 2)), third):
        penalty = LCPenalty(target, 0.1)
        config = penalty.get_config()
        for given in (config, keras.saving.serialize_keras_object(config)):
            copy = LCPenalty.from_config(given)
            assert copy.target.dtype == penalty.target.dtype
            np.testing.assert_array_equal(copy.target, penalty.target)
            assert copy.mu == penalty.mu


def test_a_gradient_that_a_function_returns_is_used():
    penalty, weight = LCPenalty(np.zeros(3), 1.0), tf.Variable(np.ones(3, "float32"))

    @tf.function
    def slope():
        with tf.GradientTape() as tape:
            loss = penalty(weight)
        return tape.gradient(loss, weight)

    weight.assign_sub(0.1 * slope())
    assert penalty.pulls
