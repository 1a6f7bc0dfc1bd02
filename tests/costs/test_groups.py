import dataclasses

import numpy as np
import pytest
import tensorflow as tf

from lc_keras.costs.groups import Blocks, Groups, Neurons, Weights, norm
from lc_keras.costs.layout import Layout

CASES = [
    ((6, 4), (-1,)),
    ((3, 3, 2, 5), (-1,)),
    ((3, 3, 2, 5), (2,)),
    ((2, 3, 4), (1, 2)),
    ((4, 3, 2), (0, 2)),
]


def random(shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def matrix(x, axes):
    axes = sorted(a % x.ndim for a in axes)
    rows = [a for a in range(x.ndim) if a not in axes]
    return x.transpose(rows + axes).reshape(-1, int(np.prod([x.shape[a] for a in axes])))


@pytest.mark.parametrize(
    "groups", [Weights(), Neurons(), Blocks((1, 1)), Blocks((2, 3)), Blocks((100, 1))], ids=str
)
@pytest.mark.parametrize("shape, axes", CASES)
def test_spread_partitions_the_weights(groups, shape, axes):
    x = random(shape)
    layout = Layout(shape, axes)
    magnitudes = groups.magnitudes(tf.constant(x), layout)
    count = groups.count(layout)
    assert tf.size(magnitudes) == count
    label = tf.reshape(tf.range(count), magnitudes.shape)
    labels = np.broadcast_to(groups.spread(label, layout), shape)
    # The magnitude of a group is the norm of just the weights that its value is spread to.
    norms = [np.linalg.norm(x[labels == g].astype(float)) for g in range(count)]
    np.testing.assert_allclose(np.abs(magnitudes).ravel(), norms, rtol=1e-6)


@pytest.mark.parametrize("shape, axes", CASES)
def test_neurons_are_columns(shape, axes):
    x = random(shape)
    np.testing.assert_allclose(
        np.ravel(Neurons().magnitudes(tf.constant(x), Layout(shape, axes))),
        np.linalg.norm(matrix(x, axes), axis=0),
        rtol=1e-6,
    )


@pytest.mark.parametrize("shape, axes", CASES)
@pytest.mark.parametrize("block", [(1, 2), (2, 3), (4, 1)])
def test_blocks_tile_the_matrix(shape, axes, block):
    x = random(shape)
    m = matrix(x, axes)
    r, c = block
    tiles = [
        [np.linalg.norm(m[i : i + r, j : j + c]) for j in range(0, m.shape[1], c)]
        for i in range(0, m.shape[0], r)
    ]
    np.testing.assert_allclose(
        Blocks(block).magnitudes(tf.constant(x), Layout(shape, axes)), tiles, rtol=1e-6
    )


def test_weights_are_not_copied():
    x = tf.constant([-1.0, 2.0])
    assert Weights().magnitudes(x, Layout((2,))) is x


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64"])
@pytest.mark.parametrize("jit", [False, True])
def test_norm_of_types(dtype, jit):
    x = tf.cast(random((5, 7)), dtype)
    result = tf.function(lambda t: norm(t, [0]), jit_compile=jit)(x)
    assert result.dtype == (tf.float64 if dtype == "float64" else tf.float32)
    np.testing.assert_allclose(result, np.linalg.norm(tf.cast(x, tf.float64).numpy(), axis=0), rtol=1e-6)


@pytest.mark.parametrize("jit", [False, True])
def test_norm_of_extreme_values(jit):
    columns = np.float32(
        [[3e38, 4e37], [3e-42, 4e-42], [0, 0], [3, 4], [1e-38, 0], [3e-30, 1e-44], [1e-45, 0], [3e20, 4e20]]
    ).T
    result = tf.function(lambda t: norm(t, [0]), jit_compile=jit)(tf.constant(columns)).numpy()
    wanted = np.linalg.norm(columns.astype(np.float64), axis=0)
    np.testing.assert_allclose(result.astype(np.float64), wanted, rtol=1e-6, atol=1e-45)
    assert (result.view(np.int32)[wanted > 0] > 0).all() and result[2] == 0
    alone = tf.function(lambda t: norm(t, [0]), jit_compile=jit)(tf.constant(columns[:, 1:3])).numpy()
    assert alone.view(np.int32).tolist() == result[1:3].view(np.int32).tolist() != [0, 0]


def test_norm_beyond_the_largest_float_is_the_largest_float():
    result = norm(tf.fill([100, 2], 3e38), [0]).numpy()
    assert (result == np.finfo(np.float32).max).all()


def test_norm_of_extreme_doubles():
    x = np.array([[3e300, 3e-320], [4e300, 4e-320]])
    np.testing.assert_allclose(norm(tf.constant(x), [0]).numpy(), [5e300, 5e-320], rtol=1e-3)


def test_values():
    assert Neurons() == Neurons() != Weights() and Blocks([2, 3]) == Blocks((2, 3)) != Blocks((3, 2))
    assert repr(Blocks((np.int64(2), 3))) == "Blocks(shape=(2, 3))"
    assert len({Neurons(), Neurons(), Weights()}) == 2
    for groups in (Weights(), Neurons(), Blocks((2, 3))):
        assert type(groups)(**dataclasses.asdict(groups)) == groups and isinstance(groups, Groups)


@pytest.mark.parametrize("shape", [2, (2,), (2, 0), (2, -1), (2, 2.0), (True, 2), (1, 2, 3), "ab", None])
def test_bad_block_shape(shape):
    with pytest.raises(ValueError, match="two whole numbers"):
        Blocks(shape)


def test_bad_tensors():
    with pytest.raises(ValueError, match="rank ≥ 2"):
        Blocks((2, 2)).count(Layout((4,)))
    with pytest.raises(ValueError, match="static"):
        Layout((None, 3))
    for axes in ((2,), (0, -2), ()):
        with pytest.raises(ValueError, match="output axes"):
            Neurons().count(Layout((4, 3), axes))
    with pytest.raises(ValueError, match="output axes"):
        Neurons().count(Layout(()))
