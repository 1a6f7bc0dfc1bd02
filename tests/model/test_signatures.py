import keras
import pytest
import tensorflow as tf

from lc_keras.model.signatures import input_signature_of, named, named_outputs

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
    with pytest.raises(TypeError, match="tf.TensorSpec. Received: 3"):
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
    # Of other shapes than the model's: it is not known whose they are.
    assert names(*both, pack=lambda one, other: [other, one]) == {"output_0": 1, "output_1": 0}
    some = plain(x), keras.layers.Dense(1)(x), logits(x)
    assert names(*some) == {"output_0": 0, "output_1": 1, "logits": 2}
    misleading = keras.layers.Dense(1, name="output_1")(x), plain(x)
    assert names(*misleading) == {"output_0": 0, "output_1": 1}
    # Names that Keras makes of those of classes differ from run to run.
    for made_up in ("My_Head", "Block_2", "EinsumDenser"):
        head = type(made_up, (keras.layers.Dense,), {})
        assert names(head(2)(x)) == names(head(2)(x)) == {"output_0": 0}
    assert names(keras.layers.Dense(2, name="dense2")(x)) == {"dense2": 0}
    # One layer, twice: its name does not tell the outputs apart.
    assert names(logits(x), logits(x)) == {"output_0": 0, "output_1": 1}
