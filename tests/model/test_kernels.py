"""Kernels as entries of the table of layer kinds describe them, and the code that asks for them."""

import inspect
import re

import keras
import numpy as np
import pytest
from keras import layers

from helpers import kill, randomized, sequential, widths
from lc_keras import report, shrink
from lc_keras.model.flow.kinds import KINDS, describes, kind_of
from lc_keras.model.flow.linear import Dense
from lc_keras.model.kernels import default_kernels, frozen_kernels, output_axes, owners_of
from lc_keras.model.macs import macs

NAMES = {"kernel", "recurrent_kernel", "depthwise_kernel", "pointwise_kernel"}


def weights_named_kernels(kind):
    """The weights that the source of a Keras layer names kernels."""
    bases = [base for base in kind.__mro__ if issubclass(base, layers.Layer) and base is not layers.Layer]
    source = "".join(map(inspect.getsource, bases))
    return set(re.findall(r'name="(\w*kernel)"', source))


def axes(layer, shape):
    """The output axes of each variable of a layer, by name."""
    model = keras.Sequential([keras.Input(shape), layer])
    owners = owners_of(model)
    return {v.name: output_axes(owners[id(v)], v) for v in model.trainable_variables}


def paths(variables):
    return [variable.path for variable in variables]


def spectrogram(**options):
    return layers.STFTSpectrogram(frame_length=32, frame_step=16, fft_length=32, **options)


def test_no_other_layer_of_keras_has_a_weight_that_is_named_a_kernel_and_is_none():
    kinds = {getattr(layers, name) for name in dir(layers) if not name.startswith("_")}
    kinds = {kind for kind in kinds if isinstance(kind, type) and issubclass(kind, layers.Layer)}
    named = {kind.__name__: weights_named_kernels(kind) for kind in kinds}
    assert {"Dense", "GRUCell", "SeparableConv2D"} <= {name for name, found in named.items() if found & NAMES}
    others = {name: found - NAMES for name, found in named.items() if found - NAMES}
    assert others == {"STFTSpectrogram": {"real_kernel", "imag_kernel"}}


@pytest.mark.parametrize("trainable", [True, False])
def test_the_waves_of_a_spectrogram_are_no_kernels(trainable):
    model = sequential((256, 1), spectrogram(trainable=trainable), layers.Flatten(), layers.Dense(4))
    assert paths(default_kernels(model)) == paths([model.layers[-1].kernel]) and not frozen_kernels(model)
    counted = report(model)
    # 15 positions, 32 by 17 weights, twice.
    assert counted.macs == 2 * 15 * 32 * 17 + 15 * 17 * 4
    assert not macs(model).unknown and not counted.frozen and len(counted.rows) == 1


def test_a_kernel_in_a_layer_that_derives_from_a_spectrogram():
    class Weighted(layers.STFTSpectrogram):
        def build(self, shape):
            super().build(shape)
            self.kernel = self.add_weight(shape=(17, 2), name="mel_kernel")

        def call(self, x):
            return super().call(x) @ self.kernel

    model = sequential((256, 1), Weighted(frame_length=32, frame_step=16, fft_length=32))
    assert paths(default_kernels(model)) == paths([model.layers[0].kernel])


@pytest.mark.parametrize("options", [{"mode": "stft"}, {"mode": "imag"}, {"expand_dims": True}], ids=str)
def test_uses_of_a_spectrogram_of_two_channels(options):
    model = sequential((256, 2), spectrogram(**options))
    assert {kernel.uses for kernel in macs(model).kernels} == {2 * 15}


@pytest.mark.parametrize(
    "layer, shape, expected",
    [
        (layers.Dense(3), (5,), {"kernel": (-1,), "bias": (-1,)}),
        (layers.Conv2D(3, 2), (5, 5, 2), {"kernel": (-1,), "bias": (-1,)}),
        (layers.Conv1DTranspose(3, 2), (5, 2), {"kernel": (-2,), "bias": (-1,)}),
        (layers.DepthwiseConv1D(2), (5, 2), {"kernel": (-2, -1), "bias": (-1,)}),
        (
            layers.SeparableConv1D(3, 2),
            (5, 2),
            {"depthwise_kernel": (-2, -1), "pointwise_kernel": (-1,), "bias": (-1,)},
        ),
        (layers.LSTM(3), (5, 2), {"kernel": (-1,), "recurrent_kernel": (-1,), "bias": (-1,)}),
        (
            layers.EinsumDense("abc,cde->abde", (5, 3, 4), bias_axes="de"),
            (5, 2),
            {"kernel": (-2, -1), "bias": (-2, -1)},
        ),
        (layers.EinsumDense("...c,dc->...d", (5, 4)), (5, 2), {"kernel": (-2,)}),
        (layers.BatchNormalization(), (5,), {"gamma": (-1,), "beta": (-1,)}),
    ],
    ids=lambda value: getattr(value, "name", None),
)
def test_output_axes(layer, shape, expected):
    assert axes(layer, shape) == expected


def test_a_layer_of_an_unknown_kind_goes_by_names():
    class Own(layers.Layer):
        def build(self, shape):
            self.by_place = self.add_weight(shape=(3, shape[-1], 2), name="depthwise_kernel")
            self.table = self.add_weight(shape=(3, 2), name="table")
            self.scale = self.add_weight(shape=(3,), name="scale_kernel")

        def call(self, x):
            return x

    own = Own()
    assert axes(own, (4,)) == {"depthwise_kernel": (-2, -1), "table": (-1,), "scale_kernel": (-1,)}
    assert paths(default_kernels(keras.Sequential([keras.Input((4,)), own]))) == paths([own.by_place])


def test_a_subclass_has_the_kernels_of_its_base_but_its_units_are_not_known():
    class Own(layers.Conv1DTranspose):
        pass

    layer = Own(3, 2, name="own")
    assert axes(layer, (5, 2))["kernel"] == (-2,)
    model = sequential((5, 2), layers.Dense(4, name="a"), Own(3, 2), layers.Flatten(), layers.Dense(2))
    kill(model.get_layer("a"), [0])
    assert [kernel.uses for kernel in macs(model).kernels] == [5, 5, 1]
    assert widths(shrink(model))["a"] == 4


class Halved(layers.Layer):
    """A dense layer of another kind, whose weight has a name that no weight in Keras has."""

    def __init__(self, units, **options):
        super().__init__(**options)
        self.units = units

    def build(self, shape):
        self.kernel = self.add_weight(shape=(shape[-1], self.units), name="matrix")

    def call(self, x):
        return x @ self.kernel / 2

    def get_config(self):
        return super().get_config() | {"units": self.units}


def test_a_new_kind_of_layer_is_one_entry(monkeypatch):
    monkeypatch.setitem(KINDS, Halved, None)  # removed after the test

    @describes(Halved)
    class Entry(Dense):
        @staticmethod
        def is_kernel(variable):
            return variable.name == "matrix"

        @staticmethod
        def uses(layer, inputs, outputs):
            return [(layer.kernel, 1)]

        def totals(self, where):
            return super().totals(where) / 2

    assert kind_of(Halved(3)) is Entry
    model = randomized(sequential((5,), Halved(6, name="a"), layers.Dense(2)))
    assert paths(default_kernels(model)) == paths(layer.kernel for layer in model.layers)
    assert macs(model).dense == 5 * 6 + 6 * 2
    model.get_layer("a").kernel.assign(np.ones((5, 6)) * [1, 0, 1, 1, 0, 1])
    assert shrink(model).get_layer("a").units == 4
