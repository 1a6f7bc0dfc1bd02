import keras
import pytest
import tensorflow as tf

from lc_keras.model.signatures import input_signature_of, named, named_outputs, packed

SPEC = tf.TensorSpec([None, 3], "float32")


def names(structure):
    return [spec.name for spec in named(structure)]


def test_names_of_inputs():
    x = tf.TensorSpec([None, 3], "float32", "pixels/left:0")
    assert names([SPEC]) == ["inputs"]
    assert names([x]) == ["pixels_left_0"]
    assert names([[SPEC, SPEC]]) == names([SPEC, SPEC]) == ["inputs_0", "inputs_1"]
    assert names([{"b": SPEC, "a": x}]) == ["a", "b"]
    assert names([{"a": {"b": SPEC}, "c": [SPEC, SPEC]}]) == ["a_b", "c_0", "c_1"]
    given = ["24h_mean", "größe", "_id", "self", "a b", "class"]
    served = ["arg_24h_mean", "arg__id", "a_b", "arg_class", "gr__e", "arg_self"]
    assert names([dict.fromkeys(given, SPEC)]) == served
    assert named([{"a": x}])[0].shape == x.shape and named([{"a": x}])[0].dtype == x.dtype


def test_inputs_that_cannot_be_named():
    x = tf.TensorSpec([None], "float32", "x")
    with pytest.raises(ValueError, match="different names. Received: x, x, served as x, x"):
        named([x, x])
    with pytest.raises(TypeError, match="`input_signature` to be a list"):
        named(x)
    with pytest.raises(TypeError, match="tf.TensorSpec, .*Received: 3"):
        named([SPEC, 3])


def test_the_inputs_of_a_model():
    left, right = keras.Input((3,), name="left"), keras.Input((4, None), dtype="int32")
    joined = keras.layers.Concatenate()([left, keras.layers.Flatten()(keras.ops.cast(right, "float32"))])
    (signature,) = input_signature_of(keras.Model([left, right], joined))
    assert signature == [
        tf.TensorSpec([None, 3], "float32", "left"),
        tf.TensorSpec([None, 4, None], "int32"),
    ]


class Pair(keras.Model):
    def __init__(self):
        super().__init__()
        self.dense = keras.layers.Dense(2)

    def build(self, left_shape, right_shape):
        self.dense.build(left_shape)

    def call(self, left, right):
        return self.dense(left) + self.dense(right)


class Needy(keras.Model):
    def __init__(self):
        super().__init__()
        self.dense = keras.layers.Dense(2)

    def call(self, left, right, third=None, training=None):
        return self.dense(left) + self.dense(right)


def test_arguments_of_subclassed_models():
    x = tf.zeros([2, 3])
    recorded, needy = Pair(), Needy()
    recorded(x, x)
    needy(x, x)
    assert input_signature_of(recorded) == [SPEC, SPEC]
    # Keras records the shape of the first.
    with pytest.raises(ValueError, match="'needy' is called with left, right, and records .* 1 of these"):
        input_signature_of(needy)


def test_names_of_outputs():
    def names(*outputs, pack=None):
        model = keras.Model(x, list(outputs))
        named = named_outputs(model)(pack(*model.outputs) if pack else model.outputs)
        return {name: next(i for i, t in enumerate(model.outputs) if t is own) for name, own in named.items()}

    x = keras.Input((3,))
    plain, logits = keras.layers.Dense(2), keras.layers.Dense(2, name="logits")
    for layer, name in ((plain, "output_0"), (logits, "logits")):
        stack = keras.Sequential([x, layer])
        assert list(named_outputs(stack)(stack.outputs[0])) == [name]
    assert names(plain(x), logits(x)) == {"output_0": 0, "logits": 1}
    both = keras.layers.Dense(1, name="head")(x), logits(x)
    assert names(*both) == {"head": 0, "logits": 1}
    assert names(*both, pack=lambda one, other: {"b": one, "a": {"c": other}}) == {"b": 0, "a_c": 1}
    # Their shapes differ from the model's: it is not known whose they are.
    assert names(*both, pack=lambda one, other: [other, one]) == {"output_0": 1, "output_1": 0}
    some = plain(x), keras.layers.Dense(1)(x), logits(x)
    assert names(*some) == {"output_0": 0, "output_1": 1, "logits": 2}
    misleading = keras.layers.Dense(1, name="output_1")(x), plain(x)
    assert names(*misleading) == {"output_0": 0, "output_1": 1}
    # Names that Keras makes from class names differ from run to run.
    for made_up in ("My_Head", "Block_2", "EinsumDenser"):
        head = type(made_up, (keras.layers.Dense,), {})
        assert names(head(2)(x)) == names(head(2)(x)) == {"output_0": 0}
    assert names(keras.layers.Dense(2, name="dense2")(x)) == {"dense2": 0}
    # One layer, called twice: its name does not tell the outputs apart.
    assert names(logits(x), logits(x)) == {"output_0": 0, "output_1": 1}


def test_a_layer_that_is_used_inside_names_no_output():
    embed, ids = (
        keras.layers.ReversibleEmbedding(9, 4, name="token_embedding"),
        keras.Input((5,), dtype="int32"),
    )
    body = keras.Model(ids, keras.layers.Dense(4, name="body")(embed(ids)))
    inner = keras.Input((5,), dtype="int32")
    # This is how a language model ends: with the embedding of the net inside it, or with its own.
    for model in (
        keras.Model(inner, embed(body(inner), reverse=True)),
        keras.Model(ids, embed(embed(ids), reverse=True)),
    ):
        assert list(named_outputs(model)(model(tf.zeros((1, 5), tf.int32)))) == ["output_0"]
    assert list(named_outputs(body)(body(tf.zeros((1, 5), tf.int32)))) == ["body"]


def test_parts_of_ragged_and_sparse_tensors():
    tokens, words = (
        keras.Input((None,), ragged=True, dtype="int64", name="tokens"),
        keras.Input((7,), sparse=True),
    )
    y = keras.layers.Concatenate()(
        [keras.layers.CategoryEncoding(9, output_mode="multi_hot")(tokens), keras.layers.Dense(2)(words)]
    )
    model = keras.Model([tokens, words], y)
    (structure,) = input_signature_of(model)
    assert [type(spec) for spec in structure] == [tf.RaggedTensorSpec, tf.SparseTensorSpec]
    ends = ["indices", "values", "dense_shape"]
    assert [spec.name for spec in named([structure], model)] == [
        "tokens_values",
        "tokens_row_splits",
        *(f"inputs_1_{end}" for end in ends),
    ]
    parts = [tf.constant(part, tf.int64) for part in ([1, 2, 3], [0, 1, 2], [0, 2, 3])]
    (twice,) = packed([tf.RaggedTensorSpec([None, None, None], tf.int64, 2)], parts)
    assert twice.to_list() == [[[1, 2]], [[3]]]
    assert names([{"x": tf.RaggedTensorSpec([None, None, None], tf.int32, 2)}]) == [
        "x_values",
        "x_row_splits_0",
        "x_row_splits_1",
    ]
    outputs = named_outputs(model)({"y": tf.ragged.constant([[1, 2], [3]])})
    assert list(outputs) == ["y_values", "y_row_splits"]


def batch_of(model):
    return input_signature_of(model)[0].shape[0]


def test_a_batch_that_the_graph_fixes():
    def net(batch, *layers):
        x = keras.Input((6,), batch_size=batch)
        y = keras.layers.Dense(6)(x)
        for layer in layers:
            y = layer(y)
        return keras.Model(x, y)

    def reshape(*shape):
        return lambda y: keras.ops.reshape(y, shape)

    assert batch_of(net(None)) is batch_of(net(4)) is None
    assert batch_of(net(4, reshape(4, -1, 3))) == batch_of(net(None, reshape(4, -1, 3))) == 4
    # Batches of other sizes are mixed inside, and the outputs do not show it.
    assert batch_of(net(4, reshape(4, -1, 2), reshape(-1, 6))) == 4
    assert batch_of(net(4, reshape(-1, 2, 3), lambda y: keras.ops.transpose(y, (1, 0, 2)))) is None
    inner = net(4, reshape(4, 6))
    assert batch_of(keras.Sequential([keras.Input((6,), batch_size=4), inner])) == 4
    # Outputs of the same size are not always a batch.
    assert batch_of(net(None, lambda y: keras.ops.mean(y, axis=0))) is None
    assert batch_of(net(None, reshape(-1, 2, 3), lambda y: keras.ops.transpose(y, (1, 0, 2)))) is None
