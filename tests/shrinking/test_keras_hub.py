"""Heads, feed-forward units and filters of KerasHub's models."""

import keras
import numpy as np
import pytest

import lc_keras
from helpers import outputs_of
from lc_keras import L0Constraint, Neurons, Task
from lc_keras.baselines import compress_directly
from lc_keras.model.macs import macs
from lc_keras.shrinking.rebuilding import shrink

hub = pytest.importorskip("keras_hub")
SIZES = {"num_layers": 1, "num_heads": 4, "hidden_dim": 8}
TEXT = SIZES | {"vocabulary_size": 20, "intermediate_dim": 16, "max_sequence_length": 9}


def vit():
    backbone = hub.models.ViTBackbone((8, 8, 3), patch_size=4, mlp_dim=16, **SIZES)
    return hub.models.ViTImageClassifier(backbone, 3)


def bert():
    return hub.models.BertTextClassifier(hub.models.BertBackbone(**TEXT), 3)


def gpt2():
    return hub.models.GPT2CausalLM(hub.models.GPT2Backbone(**TEXT))


def llama(key_value_heads=1, **options):
    sizes = {"vocabulary_size": 20, "num_layers": 1, "num_query_heads": 2}
    sizes["num_key_value_heads"] = key_value_heads
    return hub.models.LlamaCausalLM(
        hub.models.LlamaBackbone(hidden_dim=8, intermediate_dim=16, **sizes, **options)
    )


def resnet():
    backbone = hub.models.ResNetBackbone([64], [3], [64], [1], [1], "basic_block", image_shape=(16, 16, 3))
    return hub.models.ResNetImageClassifier(backbone, 3)


def under_a_mask(hidden=False):
    """A classifier of sequences: the mask of the tokens passes the encoders by itself."""
    words = keras.Input((6,), dtype="int32")
    if hidden:
        x = hub.layers.TokenAndPositionEmbedding(20, 6, 8, mask_zero=True)(words)
    else:
        x = keras.layers.Embedding(20, 8, mask_zero=True)(words)
    for normalize_first in (False, True):
        x = hub.layers.TransformerEncoder(16, 4, normalize_first=normalize_first)(x)
    return keras.Model(words, [keras.layers.Dense(3)(keras.layers.GlobalAveragePooling1D()(x)), x])


def under_a_hidden_mask():
    return under_a_mask(hidden=True)


def filled(model):
    generator = np.random.default_rng(0)
    for v in model.trainable_variables:
        v.assign(v + 0.2 * generator.normal(size=v.shape))
    return model


def given(model):
    generator = np.random.default_rng(1)

    def values(tensor):
        shape = (3, *(n or 6 for n in tensor.shape[1:]))
        if "float" in tensor.dtype:
            return generator.normal(size=shape).astype("float32")
        if "mask" in tensor.name:
            return np.int32([[1] * 6, [1] * 4 + [0] * 2, [1] + [0] * 5])
        words = generator.integers(1, 2 if "segment" in tensor.name else 20, shape, "int32")
        return words * np.int32([[1] * 6, [1] * 4 + [0] * 2, [1] + [0] * 5])

    return keras.tree.map_structure(values, model.input)


def assert_same(model, small):
    x = given(model)
    for one, other in zip(outputs_of(model, [x]), outputs_of(small, [x]), strict=True):
        np.testing.assert_allclose(other, one, rtol=1e-4, atol=1e-5 * np.abs(one).max())


def kill(model):
    """Take two of four heads and a quarter of the inner units from each block; return how many weights go."""
    gone = 0
    for layer in model._flatten_layers():
        if isinstance(layer, keras.layers.MultiHeadAttention):
            kernel = layer.output_dense.kernel
            kernel.assign(kernel * np.float32([0, 1, 0, 1])[:, None, None])
            gone += 2 * (4 * 8 * 2 + 3 * 2)
        elif getattr(layer, "units", None) == 16:
            for v in layer.weights:
                v.assign(v * np.float32(np.arange(16) > 3))
            gone += 4 * (8 + 1 + 8)
    return gone


@pytest.mark.parametrize(
    "build", [vit, bert, gpt2, pytest.param(under_a_mask, marks=pytest.mark.slow), under_a_hidden_mask]
)
def test_heads_and_units_go_and_the_rest_loads(build, tmp_path):
    model = filled(build())
    gone = kill(model)
    small = shrink(model)
    class_token = 8 if build is vit else 0  # it is part of the first position
    assert small.count_params() == model.count_params() - gone - class_token
    assert_same(model, small)
    small.save(tmp_path / "small.keras")
    assert_same(model, keras.saving.load_model(tmp_path / "small.keras"))


def test_masks_that_no_graph_shows_keep_encoders_closed():
    words = keras.Input((6,), dtype="int32")
    embedding = hub.layers.TokenAndPositionEmbedding(20, 6, 8, mask_zero=True)
    encoder = hub.layers.TransformerEncoder(16, 4)
    model = filled(keras.Model(words, encoder(keras.Model(words, embedding(words))(words))))
    kill(model)
    small = shrink(model)
    assert small.count_params() == model.count_params()
    assert_same(model, small)


def test_filters_and_residual_widths_of_a_resnet_go(tmp_path):
    model = filled(resnet())
    layers = [
        layer
        for layer in model._flatten_layers()
        if isinstance(layer, (keras.layers.Conv2D, keras.layers.BatchNormalization))
    ]
    for layer in layers:
        for v in layer.trainable_weights:
            v.assign(v * np.float32(np.arange(v.shape[-1]) % 8 > 1))
    small = shrink(model)
    widths = {layer.filters for layer in small._flatten_layers() if isinstance(layer, keras.layers.Conv2D)}
    assert widths == {48}
    assert_same(model, small)
    small.save(tmp_path / "small.keras")
    assert_same(model, keras.saving.load_model(tmp_path / "small.keras"))


@pytest.mark.parametrize("block_type, count", [("basic_block", 2), ("bottleneck_block", 3)])
def test_residual_blocks_of_a_resnet_whose_inside_is_dead_go(block_type, count, tmp_path):
    backbone = hub.models.ResNetBackbone([64], [3], [64], [2], [1], block_type, image_shape=(16, 16, 3))
    model = filled(backbone)
    last = [x for x in model._flatten_layers() if isinstance(x, keras.layers.BatchNormalization)][-1]
    last.gamma.assign(np.zeros(last.gamma.shape))
    last.beta.assign(np.zeros(last.beta.shape))
    small = shrink(model)
    convolutions, left = (
        [x for x in one._flatten_layers() if isinstance(x, keras.layers.Conv2D)] for one in (model, small)
    )
    assert len(left) == len(convolutions) - count
    assert_same(model, small)
    small.save(tmp_path / "small.keras")
    assert_same(model, keras.saving.load_model(tmp_path / "small.keras"))


@pytest.mark.slow
@pytest.mark.parametrize("build", [vit, bert, gpt2, resnet])
def test_a_budget_holds_in_the_smaller_model(build):
    model = filled(build())
    cost = L0Constraint(0.6, Neurons(), measure="macs" if build is vit else "parameters")
    (shared,) = Task(cost).bind(model)
    compress_directly(model, cost)
    small = shrink(model)
    counted = sum(int(np.prod(v.shape)) for v in shared.variables)
    assert small.count_params() <= model.count_params() - 0.3 * counted
    if build is vit:
        before, after = macs(model), macs(small)
        assert after.dense - after.attention <= 0.6 * (before.dense - before.attention)
        assert lc_keras.shrink_report(model).macs == (before.dense, after.dense)


# The others go through `test_heads_and_units_go_and_the_rest_loads` each time.
@pytest.mark.parametrize(
    "build", [*(pytest.param(b, marks=pytest.mark.slow) for b in (vit, bert)), gpt2, llama]
)
def test_a_model_in_which_nothing_goes_keeps_its_class_and_loads(build, tmp_path):
    model = filled(build())
    small = shrink(model)
    assert type(small) is type(model) and small is not model
    small.save(tmp_path / "small.keras")
    assert_same(model, keras.saving.load_model(tmp_path / "small.keras"))


@pytest.mark.parametrize("key_value_heads", [1, 2])
def test_feed_forward_units_of_llama_go(key_value_heads, tmp_path):
    model = filled(llama(key_value_heads))
    gate = next(v for v in model.trainable_variables if "feedforward_gate_dense" in v.path)
    gate.assign(gate * np.float32(np.arange(16) > 5))
    small = shrink(model)
    assert small.count_params() == model.count_params() - 6 * 3 * 8
    assert_same(model, small)
    small.save(tmp_path / "small.keras")
    assert_same(model, keras.saving.load_model(tmp_path / "small.keras"))


def test_positions_that_no_other_layer_embeds_are_in_both_models():
    model = filled(llama(rope_position_scaling_factor=2.0))
    gate = next(v for v in model.trainable_variables if "feedforward_gate_dense" in v.path)
    gate.assign(gate * np.float32(np.arange(16) > 5))
    with pytest.warns(UserWarning, match="'llama_rotary_embedding.*' cannot be rebuilt"):
        assert_same(model, shrink(model))
