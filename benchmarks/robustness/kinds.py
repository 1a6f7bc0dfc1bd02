"""Small models of many kinds, each with data to train it on for a moment. Only Keras is needed here."""

from collections.abc import Callable
from dataclasses import dataclass, field

import keras
import numpy as np
import tensorflow as tf
from keras import layers


@dataclass
class Kind:
    """A model that is ready for `fit`.

    Attributes:
        model: Compiled `keras.Model`.
        x: Its inputs, an array or a dictionary of arrays.
        y: Its targets, or `None`.
        compressed: The part of the model that is compressed: one of its layers, or `None` for the default
            kernels.
        shipped: The `keras.Model` that is saved; `model` itself if `None`.
        served: Inputs of that model; `x` if `None`.
        left_out: Names of the layers whose kernels are reported as frozen.
        served_too: Whether the model is also exported and shrunk.
    """

    model: keras.Model
    x: object
    y: object = None
    compressed: keras.Layer | None = None
    shipped: keras.Model | None = None
    served: object = None
    left_out: tuple[str, ...] = field(default=())
    served_too: bool = False

    def __post_init__(self):
        self.shipped = self.shipped or self.model


@keras.saving.register_keras_serializable("kinds")
class TokensAndPositions(layers.Layer):
    """The embedding of each token plus that of its position."""

    def __init__(self, length, tokens, width, **options):
        super().__init__(**options)
        self.length, self.tokens, self.width = length, tokens, width
        self.of_token = layers.Embedding(tokens, width)
        self.of_position = layers.Embedding(length, width)

    def build(self, shape):
        self.of_token.build(shape)
        self.of_position.build(shape)

    def call(self, x):
        return self.of_token(x) + self.of_position(keras.ops.arange(keras.ops.shape(x)[-1]))

    def get_config(self):
        return {**super().get_config(), "length": self.length, "tokens": self.tokens, "width": self.width}


@keras.saving.register_keras_serializable("kinds")
class TransformerBlock(layers.Layer):
    def __init__(self, width, heads, inner, **options):
        super().__init__(**options)
        self.width, self.heads, self.inner = width, heads, inner
        self.attention = layers.MultiHeadAttention(heads, width // heads)
        self.feed_forward = keras.Sequential([layers.Dense(inner, "relu"), layers.Dense(width)])
        self.norms = [layers.LayerNormalization(), layers.LayerNormalization()]
        self.dropout = layers.Dropout(0.1)

    def build(self, shape):
        self.attention.build(shape, shape)
        self.feed_forward.build(shape)
        for norm in self.norms:
            norm.build(shape)

    def call(self, x, training=None):
        x = self.norms[0](x + self.dropout(self.attention(x, x), training=training))
        return self.norms[1](x + self.feed_forward(x))

    def get_config(self):
        return {**super().get_config(), "width": self.width, "heads": self.heads, "inner": self.inner}


def transformer():
    inputs = keras.Input((12,), dtype="int32")
    x = TransformerBlock(16, 2, 32)(TokensAndPositions(12, 50, 16)(inputs))
    outputs = layers.Dense(2, "softmax")(layers.GlobalAveragePooling1D()(x))
    return _classifier(keras.Model(inputs, outputs), _tokens(16, 12), _labels(16, 2))


def lstm_tagger():
    inputs = keras.Input((None,), dtype="int32")
    x = layers.Embedding(50, 8, mask_zero=True)(inputs)
    x = layers.Bidirectional(layers.LSTM(8, return_sequences=True))(x)
    outputs = layers.TimeDistributed(layers.Dense(5, "softmax"))(x)
    return _classifier(keras.Model(inputs, outputs), _tokens(16, 9), _labels((16, 9), 5))


def u_net():
    inputs = keras.Input((16, 16, 3))
    x, skipped = inputs, []
    for width in (8, 16):
        x = layers.ReLU()(layers.BatchNormalization()(layers.Conv2D(width, 3, padding="same")(x)))
        skipped.append(x)
        x = layers.MaxPooling2D()(layers.SeparableConv2D(width, 3, padding="same")(x))
    for width, skip in zip((16, 8), reversed(skipped), strict=True):
        x = layers.Conv2DTranspose(width, 3, strides=2, padding="same", activation="relu")(x)
        x = layers.Concatenate()([x, skip])
    outputs = layers.Conv2D(3, 1, activation="softmax")(x)
    return _classifier(keras.Model(inputs, outputs), _floats(8, 16, 16, 3), _labels((8, 16, 16), 3))


class GAN(keras.Model):
    """Two nets with an optimizer each, and a training step that says what is added to which loss.

    Args:
        generator_losses: Function of this model that returns the losses of the generator besides its own.
        discriminator_losses: The same for the discriminator.
    """

    def __init__(self, generator_losses: Callable, discriminator_losses: Callable = lambda gan: []):
        super().__init__()
        self.generator = keras.Sequential(
            [
                keras.Input((6,)),
                layers.Dense(32, "leaky_relu"),
                layers.Reshape((4, 4, 2)),
                layers.Conv2DTranspose(4, 3, strides=2, padding="same", activation="leaky_relu"),
                layers.Conv2D(1, 3, padding="same"),
            ],
            name="generator",
        )
        self.discriminator = keras.Sequential(
            [
                keras.Input((8, 8, 1)),
                layers.Conv2D(4, 3, strides=2, activation="leaky_relu"),
                layers.Flatten(),
                layers.Dense(1),
            ],
            name="discriminator",
        )
        self.generator_losses = generator_losses
        self.discriminator_losses = discriminator_losses
        self.seed = keras.random.SeedGenerator(1)

    def compile(self, generator_optimizer, discriminator_optimizer):
        super().compile()
        self.generator_optimizer = generator_optimizer
        self.discriminator_optimizer = discriminator_optimizer

    def train_step(self, images):
        loss = keras.losses.BinaryCrossentropy(from_logits=True)
        noise = keras.random.normal((tf.shape(images)[0], 6), seed=self.seed)
        with tf.GradientTape(persistent=True) as tape:
            made = self.generator(noise, training=True)
            on_made, on_real = (self.discriminator(x, training=True) for x in (made, images))
            ones = tf.ones_like(on_made)
            of_generator = loss(ones, on_made) + sum(self.generator_losses(self))
            of_discriminator = loss(ones, on_real) + loss(tf.zeros_like(ones), on_made)
            of_discriminator += sum(self.discriminator_losses(self))
        for net, its_loss, optimizer in (
            (self.generator, of_generator, self.generator_optimizer),
            (self.discriminator, of_discriminator, self.discriminator_optimizer),
        ):
            gradients = tape.gradient(its_loss, net.trainable_weights)
            optimizer.apply_gradients(zip(gradients, net.trainable_weights, strict=True))
        return {"g_loss": of_generator, "d_loss": of_discriminator}


def gan(generator_losses=lambda gan: gan.generator.losses, discriminator_losses=lambda gan: []):
    model = GAN(generator_losses, discriminator_losses)
    model.compile(keras.optimizers.Adam(1e-3), keras.optimizers.SGD(0.01))
    images, noise = _floats(8, 8, 8, 1), _floats(8, 6)
    return Kind(model, images, compressed=model.generator, shipped=model.generator, served=noise)


def several_inputs_and_outputs():
    image, words = keras.Input((8, 8, 1), name="image"), keras.Input((5,), dtype="int32", name="words")
    seen = layers.Flatten()(layers.Conv2D(4, 3, activation="relu")(image))
    read = layers.GRU(8)(layers.Embedding(50, 8)(words))
    x = layers.Dense(16, "relu")(layers.Concatenate()([seen, read]))
    topic, score = layers.Dense(3, "softmax", name="topic"), layers.Dense(1, name="score")
    outputs = {"topic": topic(x), "score": score(x)}
    model = keras.Model({"image": image, "words": words}, outputs)
    losses = {"topic": "sparse_categorical_crossentropy", "score": "mse"}
    model.compile("adam", losses, loss_weights={"topic": 1.0, "score": 0.5})
    x = {"image": _floats(16, 8, 8, 1), "words": _tokens(16, 5)}
    return Kind(model, x, {"topic": _labels(16, 3), "score": _floats(16, 1)})


def nested_three_deep():
    def inside(x, depth):
        shape = x.shape[1:]
        inputs = keras.Input(shape)
        y = layers.Dense(8, "relu")(inside(inputs, depth - 1) if depth else inputs)
        outputs = layers.Add()([inputs, layers.Dense(shape[-1])(y)])
        return keras.Model(inputs, outputs, name=f"depth_{depth}")(x)

    inputs = keras.Input((6,))
    model = keras.Model(inputs, layers.Dense(3, "softmax")(inside(inputs, 2)))
    return _classifier(model, _floats(16, 6), _labels(16, 3))


def shared_weights():
    left, right = keras.Input((6,), name="left"), keras.Input((6,), name="right")
    again = layers.Dense(8, "relu")
    encoder = keras.Sequential([keras.Input((6,)), layers.Dense(8, "relu"), again, again])
    distance = layers.Subtract()([encoder(left), encoder(right)])
    model = keras.Model([left, right], layers.Dense(1, "sigmoid")(distance))
    model.compile("adam", "binary_crossentropy")
    return Kind(model, {"left": _floats(16, 6), "right": _floats(16, 6)}, _labels(16, 2))


def frozen_layers():
    base = keras.Sequential(
        [keras.Input((8, 8, 3)), layers.Conv2D(8, 3, name="edges"), layers.BatchNormalization()], name="base"
    )
    base.trainable = False
    fixed = layers.Dense(16, "relu", name="fixed", trainable=False)
    head = [layers.Flatten(), fixed, layers.Dense(4, "softmax")]
    model = keras.Sequential([keras.Input((8, 8, 3)), base, *head])
    return _classifier(model, _floats(8, 8, 8, 3), _labels(8, 4), left_out=("edges", "fixed"))


def quantised():
    model = _mixed_net()
    model.quantize("int8", filters="fixed")
    return _classifier(model, _floats(8, 8, 8, 3), _labels(8, 4), left_out=("fixed",))


def with_lora():
    model = _mixed_net()
    model.get_layer("fixed").enable_lora(4)
    return _classifier(model, _floats(8, 8, 8, 3), _labels(8, 4), left_out=("fixed",))


def lora_alone():
    kind = with_lora()
    kind.compressed = kind.model.get_layer("fixed")
    return kind


def _mixed_net():
    return keras.Sequential(
        [
            keras.Input((8, 8, 3)),
            layers.Conv2D(8, 3, strides=2, activation="relu"),
            layers.Flatten(),
            layers.Dense(16, "relu", name="fixed"),
            layers.Dense(4, "softmax"),
        ]
    )


def _classifier(model, x, y, **options):
    model.compile("adam", "sparse_categorical_crossentropy")
    return Kind(model, x, y, **options)


def _floats(*shape):
    return np.random.default_rng(0).normal(size=shape).astype("float32")


def _labels(shape, classes):
    return np.random.default_rng(1).integers(0, classes, shape)


def _tokens(*shape):
    return np.random.default_rng(2).integers(0, 50, shape).astype("int32")


KINDS = (
    transformer,
    lstm_tagger,
    u_net,
    gan,
    several_inputs_and_outputs,
    nested_three_deep,
    shared_weights,
    frozen_layers,
    quantised,
    with_lora,
    lora_alone,
)
