"""Random nets of the layers that units can be followed through, with dead units in them."""

import keras
import numpy as np
from hypothesis import strategies as st
from keras import layers

ACTIVATIONS = ["linear", "relu", "sigmoid", "tanh", "softplus"]
PADDINGS = ["valid", "same"]


class Builder:
    """Puts together a graph, layer by layer, as `choose` decides.

    Args:
        choose: Function that takes a list and picks one of its elements.
    """

    def __init__(self, choose):
        self.choose = choose
        self.tensors = []
        # Called again and again, at whatever sizes come along.
        self.shared = [
            layers.ReLU(),
            layers.Dropout(0.5),
            layers.Activation("sigmoid"),
            layers.UnitNormalization(),
        ]

    def again(self):
        return self.choose(self.shared)

    def options(self):
        return dict(activation=self.choose(ACTIVATIONS), use_bias=self.choose([True, False]))

    def width(self):
        return self.choose([2, 4, 6])

    def image(self, x):
        one = layers.Conv2D(4, 1)
        return [
            lambda: layers.Conv2D(
                self.width(), self.choose([1, 3]), padding=self.choose(PADDINGS), **self.options()
            ),
            lambda: layers.Conv2D(4, 3, strides=2, padding="same", **self.options()),
            lambda: layers.Conv2D(4, 3, dilation_rate=2, padding=self.choose(PADDINGS), **self.options()),
            lambda: layers.Conv2DTranspose(
                4, 3, strides=self.choose([1, 2]), padding="same", **self.options()
            ),
            lambda: layers.DepthwiseConv2D(
                3, padding=self.choose(PADDINGS), depth_multiplier=self.choose([1, 2]), **self.options()
            ),
            lambda: layers.SeparableConv2D(
                self.width(),
                3,
                padding=self.choose(PADDINGS),
                depth_multiplier=self.choose([1, 2]),
                **self.options(),
            ),
            lambda: keras.Sequential(
                [layers.Conv2D(6, 1), layers.Conv2D(6, 3, groups=3, padding="same", **self.options())]
            ),
            lambda: layers.BatchNormalization(scale=self.choose([True, False])),
            lambda: layers.GroupNormalization(self.choose([1, 2, -1])),
            lambda: layers.LayerNormalization(),
            lambda: layers.RMSNormalization(),
            lambda: layers.UnitNormalization(),
            lambda: layers.Activation(self.choose(["relu", "gelu", "softmax"])),
            lambda: layers.ReLU(negative_slope=0.1, threshold=self.choose([0.0, 0.5])),
            lambda: layers.PReLU(shared_axes=self.choose([None, [1, 2]])),
            lambda: layers.MaxPooling2D(padding="same"),
            lambda: layers.AveragePooling2D(3, 1, padding="same"),
            lambda: layers.ZeroPadding2D(),
            lambda: layers.UpSampling2D(interpolation=self.choose(["nearest", "bilinear"])),
            lambda: layers.Cropping2D(1),
            lambda: layers.Dropout(0.5),
            lambda: layers.SpatialDropout2D(0.5),
            lambda: layers.Rescaling(2.0, self.choose([0.0, 1.0])),
            lambda: layers.Permute((2, 1, 3)),
            lambda: layers.Lambda(lambda t: t + 1),
            lambda: self.operation(x.shape[-1]),
            lambda: self.nested(x.shape[1:]),
            lambda: self.merged(one),
            lambda: self.squeezed(),
            lambda: self.again(),
        ]

    def sequence(self, x):
        return [
            lambda: layers.Conv1D(
                self.width(), 3, padding=self.choose(["valid", "same", "causal"]), **self.options()
            ),
            lambda: layers.Dense(self.width(), **self.options()),
            lambda: layers.LSTM(4, return_sequences=True, use_bias=self.choose([True, False])),
            lambda: layers.GRU(4, return_sequences=True, reset_after=self.choose([True, False])),
            lambda: layers.SimpleRNN(4, return_sequences=True),
            lambda: layers.Bidirectional(
                layers.LSTM(4, return_sequences=True), self.choose(["concat", "sum", "ave", "mul"])
            ),
            lambda: self.attention(),
            lambda: layers.LayerNormalization(),
            lambda: layers.BatchNormalization(),
            lambda: layers.RMSNormalization(),
            lambda: layers.Dropout(0.5),
            lambda: layers.MaxPooling1D(padding="same"),
            lambda: layers.UpSampling1D(),
            lambda: layers.ZeroPadding1D(),
            lambda: layers.TimeDistributed(layers.Dense(4, **self.options())),
            lambda: self.operation(x.shape[-1]),
            lambda: layers.SeparableConv1D(4, 3, padding="same"),
            lambda: layers.DepthwiseConv1D(3, padding="same"),
            lambda: layers.Conv1DTranspose(4, 3),
            lambda: self.merged(layers.Dense(4)),
            lambda: self.nested(x.shape[1:]),
            lambda: self.again(),
        ]

    def vector(self, x):
        return [
            lambda: layers.Dense(self.width(), **self.options()),
            lambda: layers.Dense(self.width(), activation="softmax"),
            lambda: layers.BatchNormalization(),
            lambda: layers.LayerNormalization(),
            lambda: layers.UnitNormalization(),
            lambda: layers.ELU(),
            lambda: self.operation(x.shape[-1]),
            lambda: layers.PReLU(),
            lambda: layers.Dropout(0.5),
            lambda: self.merged(layers.Dense(4)),
            lambda: self.nested(x.shape[1:]),
            lambda: self.again(),
        ]

    def merged(self, change):
        """Adds a tensor, multiplies by it, or appends it, after `change` where it does not fit."""
        kind = self.choose(
            [layers.Add, layers.Multiply, layers.Concatenate, layers.Average, layers.Maximum, layers.Subtract]
        )
        picked = self.choose([0, 1, 2, 3])

        def call(x):
            alike = [t for t in self.tensors if t.shape[:-1] == x.shape[:-1]]
            other = alike[picked % len(alike)] if alike else x
            if kind is not layers.Concatenate and other.shape != x.shape:
                change_other = type(change).from_config(change.get_config() | {"name": None})
                x, other = change(x), change_other(other)
            return kind()([x, other])

        return call

    def operation(self, width):
        if width % 2:
            return keras.activations.relu
        return self.choose(
            [
                keras.activations.relu,
                lambda x: x * keras.ops.sigmoid(x) + 0.5,
                lambda x: x[..., : x.shape[-1] // 2] - x[..., x.shape[-1] // 2 :],
                lambda x: keras.ops.concatenate(keras.ops.split(x, 2, -1)[::-1], -1),
                lambda x: keras.ops.reshape(
                    keras.ops.swapaxes(
                        keras.ops.reshape(x, (-1, *x.shape[1:-1], 2, x.shape[-1] // 2)), -1, -2
                    ),
                    (-1, *x.shape[1:]),
                ),
            ]
        )

    def squeezed(self):
        def call(x):
            gate = layers.GlobalAveragePooling2D()(x)
            gate = layers.Reshape((1, 1, x.shape[-1]))(gate)
            gate = layers.Conv2D(x.shape[-1], 1, activation="sigmoid")(gate)
            return layers.Multiply()([x, gate])

        return call

    def attention(self):
        heads, other = self.choose([2, 3]), self.choose([True, False])

        def call(x):
            kwargs = {"output_shape": 4} if other else {}
            return layers.MultiHeadAttention(heads, 2, value_dim=3, **kwargs)(x, x)

        return call

    def nested(self, shape):
        """A small model, called once or twice with the same weights."""
        kind = layers.Conv2D if len(shape) == 3 else layers.Conv1D if len(shape) == 2 else layers.Dense
        size = () if kind is layers.Dense else (3,)
        same = {} if kind is layers.Dense else {"padding": "same"}
        inner = layers.Dense(4, **self.options())
        back = kind(shape[-1], *size, **same, **self.options())
        if self.choose([True, False]):
            model = keras.Sequential([keras.Input(shape), inner, back])
        else:
            x = keras.Input(shape)
            model = keras.Model(x, back(inner(x)))
        twice = self.choose([True, False])
        return lambda x: model(model(x)) if twice else model(x)

    def step(self, x):
        rank = len(x.shape)
        steps = {4: self.image, 3: self.sequence, 2: self.vector}[rank](x)
        return self.choose(steps)()(x)

    def down(self, x):
        """From images or sequences to vectors."""
        if len(x.shape) == 4:
            ways = [layers.Flatten, layers.GlobalAveragePooling2D, layers.GlobalMaxPooling2D]
        else:
            ways = [layers.Flatten, layers.GlobalAveragePooling1D, layers.GlobalMaxPooling1D]
        return self.choose(ways)()(x)

    def build(self):
        start = self.choose(["image", "tokens", "sequence", "vector"])
        inputs = {
            "image": keras.Input((8, 8, 2)),
            "tokens": keras.Input((5,), dtype="int32"),
            "sequence": keras.Input((5, 3)),
            "vector": keras.Input((6,)),
        }[start]
        x = layers.Embedding(10, 6)(inputs) if start == "tokens" else inputs
        for _ in range(self.choose([1, 2, 3, 4, 5, 6])):
            # The widest kernel spans five pixels of an image and three steps of a sequence.
            if len(x.shape) > 2 and min(x.shape[1:-1]) < {4: 5, 3: 3}[len(x.shape)]:
                break
            y = self.step(x)
            if y.shape[1] is None or np.prod(y.shape[1:]) > 6000:
                break
            self.tensors.append(x)
            x = y
        if len(x.shape) > 2:
            x = self.down(x)
        for _ in range(self.choose([0, 1, 2])):
            self.tensors.append(x)
            x = self.step(x)
        return keras.Model(inputs, layers.Dense(3, name="output")(x))


def model(data):
    """A model with random weights, some of its units dead, as drawn from hypothesis' `data`."""
    built = Builder(lambda options: data.draw(st.sampled_from(options))).build()
    randomize(built, data.draw(st.integers(0, 999)))
    return built


def randomize(model, seed):
    """Sets random weights; in many layers, those into some units are zero, as are some biases, scales and
    shifts.

    Layers of the same width often lose the same units, so that tied units die together.
    """
    generator = np.random.default_rng(seed)
    dead = {}
    for layer in model._flatten_layers():
        if isinstance(layer, keras.Model) or layer.name == "output":
            continue
        for variable in layer._trainable_variables + layer._non_trainable_variables:
            if not variable.dtype.startswith("float"):
                continue
            shape = variable.shape
            value = generator.normal(size=shape) * (
                1 if len(shape) < 2 else max(np.prod(shape[:-1]), 1) ** -0.5
            )
            if variable.name == "moving_variance":
                value = generator.uniform(0.5, 2, shape)
            elif generator.random() < 0.8:
                value = value * _mask(generator, dead, layer, variable)
            variable.assign(value)


def _mask(generator, dead, layer, variable):
    axis = -2 if "Transpose" in type(layer).__name__ and variable.name == "kernel" else -1
    axis = (
        -2
        if "depthwise" in variable.name or ("Depthwise" in type(layer).__name__ and variable.name == "kernel")
        else axis
    )
    if len(variable.shape) == 3 and variable.name == "kernel" and layer.name in ("query", "key", "value"):
        axis = 1
    count = variable.shape[axis]
    tiles = {"lstm_cell": 4, "gru_cell": 3}.get(layer.name, 1)
    units = count // tiles
    if units not in dead or generator.random() < 0.2:
        dead[units] = generator.random(units) < 0.4
    alive = np.tile(~dead[units], tiles)
    return (
        alive
        if axis == -1
        else alive.reshape([-1] + [1] * (-1 - axis if axis < 0 else len(variable.shape) - 1 - axis))
    )
