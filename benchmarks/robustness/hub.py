"""Models of KerasHub in the smallest configurations, with random weights. Needs `pip install keras-hub`."""

import functools
import inspect

import keras
import keras_hub
import numpy as np

from benchmarks.robustness.kinds import Kind

LENGTH, TOKENS, SIZE = 8, 60, 32
# What the builders call their sizes; each takes those that it knows.
SIZES = dict(
    **dict.fromkeys(("vocabulary_size", "vocab_size"), TOKENS),
    **dict.fromkeys(("hidden_dim", "embedding_dim"), 16),
    **dict.fromkeys(("intermediate_dim", "mlp_dim"), 32),
    **dict.fromkeys(("num_heads", "num_attention_heads", "num_query_heads"), 4),
    num_layers=2,
    num_key_value_heads=2,
    head_dim=4,
    max_sequence_length=LENGTH,
    bucket_size=4,
    image_shape=(SIZE, SIZE, 3),
    patch_size=8,
    input_conv_filters=[64],
    input_conv_kernel_sizes=[3],
    stackwise_num_filters=[64, 64],
    stackwise_num_blocks=[2, 2],
    stackwise_num_strides=[1, 2],
    stackwise_num_repeats=[1, 2],
    block_type="basic_block",
    growth_rate=8,
    rotary_percentage=0.5,
    layerwise_depths=[1, 1],
    layerwise_num_heads=[1, 2],
    layerwise_sr_ratios=[2, 1],
    layerwise_patch_sizes=[7, 3],
    layerwise_strides=[4, 2],
    hidden_dims=[8, 16],
    max_drop_path_rate=0.0,
)
CLASSIFIERS = "AlbertText BertText DistilBertText RobertaText FNetText DebertaV3Text".split()
CLASSIFIERS += "ResNetImage ViTImage DeiTImage DenseNetImage MiTImage".split()
DECODERS = "GPT2 GPTNeoX OPT Bloom Falcon Llama Mistral Qwen Gemma Phi3".split()
BACKBONES = "Electra Bart T5 VGG".split()


def kinds():
    """Returns a dict from the name of each model to a function that builds it, as a `Kind`."""
    heads = {f"{name}Classifier": {"num_classes": 3} for name in CLASSIFIERS}
    heads |= {f"{name}CausalLM": {"preprocessor": None} for name in DECODERS}
    heads |= {f"{name}Backbone": None for name in BACKBONES}
    return {name: functools.partial(kind, name, head) for name, head in heads.items()}


def kind(name, head):
    """Returns a compiled model of KerasHub, with data.

    Args:
        name: String, its class.
        head: Dictionary of the arguments besides the backbone; `None` if the model is a backbone.

    Returns:
        `Kind`.
    """
    model_class = getattr(keras_hub.models, name)
    model = backbone(model_class if head is None else model_class.backbone_cls)
    loss = "mse"
    if head is not None:
        model = model_class(backbone=model, **head)
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.SGD(1e-3, global_clipnorm=1.0), loss)
    random = np.random.default_rng(0)
    x = {tensor.name: values(tensor, random) for tensor in model.inputs}
    outputs = model(x if len(x) > 1 or isinstance(model.input, dict) else next(iter(x.values())))
    if head is None:
        y = keras.tree.map_structure(lambda z: random.normal(size=z.shape).astype("float32"), outputs)
    else:
        y = random.integers(0, outputs.shape[-1], outputs.shape[:-1])
    return Kind(model, x if isinstance(model.input, dict) else x[model.inputs[0].name], y, served_too=True)


def backbone(backbone_class):
    known = inspect.signature(backbone_class.__init__).parameters
    return backbone_class(**{key: size for key, size in SIZES.items() if key in known})


def values(tensor, random):
    """Returns two examples of an input: images, tokens, a mask of ones, or segments of zeros."""
    shape = (2, *(size or LENGTH for size in tensor.shape[1:]))
    if "token" in tensor.name:
        return random.integers(1, TOKENS, shape).astype("int32")
    if tensor.dtype.startswith("float"):
        return random.uniform(0, 1, shape).astype("float32")
    return np.full(shape, "mask" in tensor.name, "int32")
