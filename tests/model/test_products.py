import keras
import numpy as np
import pytest
import tensorflow as tf

from lc_keras.model.macs import macs

L, K = keras.layers, keras.ops


class Times(L.Layer):
    """A custom matrix under a name other than kernel."""

    def build(self, shape):
        self.w = self.add_weight(shape=(shape[-1], 5), name="w")

    def call(self, x):
        return x @ self.w


class Decorated(L.Layer):
    """A layer whose `call` was traced for a batch of any size."""

    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def build(self, shape):
        self.inner.build(shape)

    @tf.function
    def call(self, x):
        return self.inner(x)

    def compute_output_shape(self, shape):
        return self.inner.compute_output_shape(shape)


class Cell(L.Layer):
    state_size = output_size = 4

    def __init__(self):
        super().__init__()
        self.dense = L.Dense(4)

    def build(self, shape):
        self.dense.build((None, shape[-1] + 4))

    def call(self, x, states):
        out = self.dense(K.concatenate([x, states[0]], axis=-1))
        return out, [out]


class Branches(L.Layer):
    def build(self, shape):
        self.few, self.many = (
            self.add_weight(shape=(8, 2), name="few"),
            self.add_weight(shape=(8, 2), name="many"),
        )

    def call(self, x):
        return tf.cond(tf.reduce_sum(x) > 0, lambda: x @ self.few, lambda: (x @ self.many) + (x @ self.many))

    def compute_output_shape(self, shape):
        return (*shape[:-1], 2)


class Numpy(L.Layer):
    """A layer that TensorFlow cannot see into; nor can it see the shape of the output."""

    def call(self, x):
        return tf.py_function(lambda x: x * 2, [x], tf.float32)

    def compute_output_spec(self, x):
        return keras.KerasTensor(x.shape, "float32")


def words():
    layer = L.TextVectorization(output_sequence_length=5)
    layer.adapt(["a b c d"])
    return layer


def low_rank():
    layer = L.Dense(6)
    layer.build((None, 5))
    layer.enable_lora(2)
    return layer


def in_8_bits():
    layer = L.Dense(6)
    layer.build((None, 5))
    layer.quantize("float8")  # has more numbers about the kernel than the kernel has
    return layer


# The shape of one example, the layers, the uses of each weight in a product, all multiply-adds.
CHAINS = {
    "own layer": ((3, 8), [Times()], [3], 3 * 40),
    "text": (
        (),
        [words(), L.Embedding(8, 4), L.Conv1D(6, 3, padding="same"), L.GlobalMaxPooling1D()],
        [5],
        360,
    ),
    "decorated": ((7, 5), [Decorated(L.Dense(3)), L.Flatten(), L.Dense(2)], [7, 1], 7 * 15 + 42),
    "decorated loop": ((7, 5), [Decorated(L.LSTM(3)), L.Dense(2)], [7, 7, 1], 7 * (5 + 3) * 12 + 6),
    "cell": ((10, 5), [L.RNN([L.GRUCell(3), Cell()]), L.Dense(2)], [10, 10, 10, 1], 10 * (72 + 28) + 8),
    "unrolled cell": ((10, 5), [L.RNN(Cell(), unroll=True)], [10], 360),
    "branches": ((8,), [Branches()], [2], 32),
    "mask": ((7,), [L.Embedding(9, 4, mask_zero=True), L.LSTM(3)], [7, 7], 7 * 84),
    "map": ((7, 5), [L.Lambda(lambda x: K.map(lambda y: y @ K.ones((5, 3)), x))], [], 105),
    "low rank": ((5,), [low_rank()], [1, 5], 30 + 5 * 2 * 6),
    "float8": ((5,), [in_8_bits()], [1], 30),
    "normalised": ((5,), [L.SpectralNormalization(L.Dense(6))], [1], 30),
    "a vector": ((8,), [Times(), L.Lambda(lambda x: K.dot(x, K.ones((5,))))], [1], 40 + 5),
}


@pytest.mark.parametrize("name", CHAINS)
def test_multiply_adds_of(name):
    shape, layers, uses, total = CHAINS[name]
    dtype = {"text": "string", "mask": "int32"}.get(name)
    counted = macs(keras.Sequential([keras.Input(shape, dtype=dtype), *layers]))
    assert [k.uses for k in counted.kernels] == uses and counted.dense == total and not counted.unknown


def test_products_of_activations():
    x, z = keras.Input((6, 8)), keras.Input((9, 8))
    for y in (
        K.matmul(x, K.transpose(z, (0, 2, 1))),
        L.Dot(axes=2)([x, z]),
        K.einsum("...ij,...kj->...ik", x, z),
    ):
        counted = macs(keras.Model([x, z], y))
        assert counted.attention == counted.dense == 6 * 9 * 8 and not counted.kernels


def test_an_embedding_that_is_used_both_ways():
    embed, ids = L.ReversibleEmbedding(10, 4), keras.Input((5,), dtype="int32")
    (weights,) = macs(keras.Model(ids, embed(embed(ids), reverse=True))).kernels
    assert (weights.uses, weights.dense) == (5, 200)


def test_learned_queries_are_not_kernels():
    class Queries(L.Layer):
        def build(self, shape):
            self.tokens = self.add_weight(shape=(30, 4), name="tokens")
            self.dense = L.Dense(shape[-1], use_bias=False)
            self.dense.build((None, 4))

        def call(self, x):
            return K.matmul(self.dense(self.tokens), K.transpose(x, (0, 2, 1)))

    counted = macs(keras.Sequential([keras.Input((7, 3)), Queries()]))
    assert [k.uses for k in counted.kernels] == [30] and counted.attention == 30 * 7 * 3


def test_kernels_side_by_side():
    class Fused(L.Layer):
        def build(self, shape):
            self.a, self.b = (self.add_weight(shape=(shape[-1], n), name=f"w{n}") for n in (2, 3))

        def call(self, x):
            return x @ K.concatenate([self.a, self.b], axis=1)

    assert [k.uses for k in macs(keras.Sequential([keras.Input((7, 4)), Fused()])).kernels] == [7, 7]


def test_sparse_inputs_count_as_dense_ones():
    assert macs(keras.Sequential([keras.Input((10,), sparse=True), L.Dense(3)])).dense == 30


def test_what_nobody_can_see_is_said_to_be_unknown():
    counted = macs(keras.Sequential([keras.Input((7, 5)), Numpy(), L.Dense(2)]))
    assert counted.dense == 70 and counted.unknown == ("attention",)

    class Gate(L.Layer):
        def build(self, shape):
            self.kernel = self.add_weight(shape=(2, shape[-1]), name="kernel")

        def call(self, x):
            return x * self.kernel[0]

    counted = macs(keras.Sequential([keras.Input((8,)), Gate(), L.Dense(2)]))
    assert counted.unknown == (counted.kernels[0].path,) and counted.dense == 16
    alone = macs(keras.Sequential([keras.Input((8,)), Gate()]))
    assert alone.dense is alone.remaining is None


def test_a_loop_without_an_end_is_unknown():
    class Halving(L.Layer):
        def build(self, shape):
            self.kernel = self.add_weight(shape=(4, 4), name="kernel")

        def call(self, x):
            return tf.while_loop(lambda x: tf.reduce_max(x) > 1, lambda x: (x @ self.kernel,), (x,))[0]

        def compute_output_shape(self, shape):
            return shape

    assert [k.uses for k in macs(keras.Sequential([keras.Input((4,)), Halving()])).kernels] == [None]


def test_zeros_of_whatever_is_multiplied_by():
    model = keras.Sequential([keras.Input((8,)), Times()])
    model.layers[0].w.assign(np.eye(8, 5))
    assert (macs(model).dense, macs(model).remaining) == (40, 5)
