"""Layers whose kernels are of low rank become two."""

import subprocess
import sys

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

import lc_keras
from helpers import assert_same_outputs, kill, sequential, widths
from lc_keras import LowRank, RankSelection, Task, shrink, shrink_report
from lc_keras.baselines import compress_directly
from lc_keras.shrinking import factoring
from lc_keras.shrinking.factoring import _has_rank


def dense(*sizes):
    *inside, last = sizes
    names = "abcdef"
    stack = [layers.Dense(n, "relu", name=name) for n, name in zip(inside[1:], names, strict=False)]
    return sequential((sizes[0],), *stack, layers.Dense(last, name="out"))


def set_rank(variable, rank, seed=0):
    """Give a kernel a matrix of the given rank, with a column for each output unit."""
    generator = np.random.default_rng(seed)
    left = generator.normal(size=(*variable.shape[:-1], rank))
    variable.assign(left @ generator.normal(size=(rank, variable.shape[-1])))


def test_a_dense_layer_becomes_two_that_do_the_same():
    model = dense(20, 12, 9)
    compress_directly(model, LowRank(2))
    small = shrink(model)
    assert type(small) is keras.Sequential
    assert widths(small) == {"a_factor": 2, "a": 12, "out_factor": 2, "out": 9}
    assert [layer.use_bias for layer in small.layers] == [False, True] * 2
    assert_same_outputs(model, small)
    found = shrink_report(model)
    # 2 (20 + 12) + 12 and 2 (12 + 9) + 9.
    assert found.parameters == (369, small.count_params()) == (369, 127)
    assert found.macs == (348, 106) and [row.rank for row in found.rows] == [2, 2]
    assert "a: of rank 2, it becomes two layers" in str(found)
    again = shrink(small)
    assert widths(again) == widths(small)
    assert lc_keras.report(small).bits < lc_keras.report(model).bits / 2


CONVOLUTIONS = {
    "strides": ((9, 8, 6), layers.Conv2D(10, 3, (2, 1), "same", activation="relu", name="a")),
    "dilation": ((9, 8, 6), layers.Conv2D(10, (3, 2), dilation_rate=(1, 2), use_bias=False, name="a")),
    "causal": ((9, 6), layers.Conv1D(10, 3, padding="causal", dilation_rate=2, name="a")),
    "volumes": ((5, 6, 4, 6), layers.Conv3D(10, 2, (1, 2, 1), padding="same", name="a")),
    "in time": ((2, 9, 8, 6), layers.TimeDistributed(layers.Conv2D(10, 3, name="a"), name="t")),
}


@pytest.mark.parametrize("case", CONVOLUTIONS)
def test_a_convolution_becomes_two_that_do_the_same(case):
    shape, layer = CONVOLUTIONS[case]
    model = sequential(shape, type(layer).from_config(layer.get_config()))
    kernel = next(v for v in model.weights if v.path.endswith("kernel"))
    set_rank(kernel, 2)
    small = shrink(model)
    first, second, *_ = (v.shape for v in small.weights if v.path.endswith("kernel"))
    assert first == (*kernel.shape[:-1], 2) and set(second[:-2]) == {1}
    assert_same_outputs(model, small)


@pytest.mark.parametrize("case", ["strides", "dilation"])
def test_a_convolution_becomes_one_along_each_axis_where_that_is_smaller(case):
    shape, layer = CONVOLUTIONS[case]
    model = sequential(shape, type(layer).from_config(layer.get_config()))
    kernel, generator = model.layers[0].kernel, np.random.default_rng(0)
    high, wide, read, made = kernel.shape
    halves = generator.normal(size=(high, read, 2)), generator.normal(size=(wide, 2, made))
    kernel.assign(np.einsum("air,brm->abim", *halves))
    small = shrink(model)
    assert [layer.kernel.shape for layer in small.layers] == [(high, 1, read, 2), (1, wide, 2, made)]
    assert_same_outputs(model, small)


def test_only_what_gets_smaller_becomes_two():
    model = dense(20, 12, 12, 9)
    # 12 · 12 weights and 6 (12 + 12) are the same.
    set_rank(model.get_layer("b").kernel, 6)
    # Of rank 2, with 2 weights other than zero.
    kernel = np.zeros((20, 12))
    kernel[:2, :] = np.eye(12)[:2] * 3
    model.get_layer("a").kernel.assign(kernel)
    # Rank 0.
    model.get_layer("out").kernel.assign(np.zeros((12, 9)))
    assert "a_factor" not in widths(shrink(model)) and "b_factor" not in widths(shrink(model))
    compress_directly(model := dense(20, 12, 9), RankSelection(1e-9))
    assert widths(shrink(model)) == widths(model)


def test_units_go_first_and_then_ranks_count_inside_of_models_too():
    inner = dense(20, 16, 12)
    x = keras.Input((20,))
    model = keras.Model(x, layers.Dense(3, name="last")(layers.ReLU()(inner(x))))
    compress_directly(model, Task(LowRank(2), weights=["a/kernel", "out/kernel"]))
    kill(inner.get_layer("a"), [1, 5, 7])
    small = shrink(model)
    nested = next(layer for layer in small.layers if isinstance(layer, keras.Sequential))
    assert widths(nested) == {"a_factor": 2, "a": 13, "out_factor": 2, "out": 12}
    assert_same_outputs(model, small)


def test_a_layer_that_is_called_twice_is_shared_as_two():
    shared, x = layers.Dense(20, "tanh", name="a", kernel_constraint="non_neg"), keras.Input((20,))
    model = keras.Model(x, shared(shared(x)))
    set_rank(shared.kernel, 3)
    small = shrink(model)
    assert widths(small) == {"a_factor": 3, "a": 20}
    assert small.get_layer("a").kernel_constraint is None
    assert_same_outputs(model, small)


def test_layers_that_share_a_kernel_and_dense_layers_of_half_precision():
    first, second, x = layers.Dense(20, name="a"), layers.Dense(20, name="b"), keras.Input((20,))
    model = keras.Model(x, second(first(x)))
    second._tracker.unlock()
    second._trainable_variables.clear()
    second._kernel, second.bias = first._kernel, first.bias
    set_rank(first._kernel, 2)
    assert "a_factor" not in widths(shrink(model))
    half = sequential((64,), layers.Dense(48, name="a", dtype="bfloat16"))
    set_rank(half.layers[0].kernel, 2)
    small = shrink(half)
    assert small.layers[0].kernel.shape == (64, 2) and small.dtype == half.dtype


@pytest.mark.slow  # a model of ordinary layers loads, as test_rebuilding checks
def test_it_loads_without_lc_keras_and_serves_as_any_model(tmp_path):
    model = sequential(
        (6, 6, 4), layers.Conv2D(12, 3, name="a"), layers.Flatten(), layers.Dense(10, name="b")
    )
    compress_directly(model, LowRank(2))
    small, x = shrink(model), np.random.default_rng(0).normal(size=(3, 6, 6, 4)).astype("float32")
    small.save(tmp_path / "small.keras")
    np.save(tmp_path / "x.npy", x)
    code = (
        "import sys, keras, numpy as np; folder = sys.argv[1]; x = np.load(folder + '/x.npy'); "
        "np.save(folder + '/y.npy', keras.models.load_model(folder + '/small.keras')(x)); "
        "assert not any(name.startswith('lc_keras') for name in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=True)
    y = np.load(tmp_path / "y.npy")
    np.testing.assert_allclose(y, model(x), rtol=1e-4, atol=1e-4)
    lc_keras.export_saved_model(small, tmp_path / "1")
    lc_keras.export_litert(small, tmp_path / "small.tflite")
    assert lc_keras.report(tmp_path / "1").dense_bits < lc_keras.report(model).dense_bits


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("rank", [3, 20, 40])
def test_projections_tell_a_rank_from_the_next(rank, dtype):
    draw = np.random.default_rng(rank).normal
    matrix = (draw(size=(50, rank)) @ draw(size=(rank, 41))).astype(dtype)
    noise = 2 * np.finfo(dtype).eps * np.abs(matrix).max() * sum(np.sqrt(matrix.shape))
    found = [_has_rank(matrix.astype("float64"), asked, noise) for asked in (1, rank, rank + 1)]
    assert found == [True, True, False]


@pytest.mark.parametrize("largest", [30, 200])
def test_a_weight_that_is_much_larger_than_the_others_makes_no_rank(largest):
    kernel = np.random.default_rng(0).normal(size=(100, 100))
    kernel[5, 7] = largest
    assert factoring.split(kernel.astype(tf.bfloat16.as_numpy_dtype), [()]) is None


def test_high_ranks_are_not_looked_for(monkeypatch):
    model = dense(60, 50)
    set_rank(model.layers[0].kernel, 9)
    monkeypatch.setattr(factoring, "_HIGH", 9)
    assert len(shrink(model).layers) == 1
    monkeypatch.setattr(factoring, "_HIGH", 10)
    assert len(shrink(model).layers) == 2
