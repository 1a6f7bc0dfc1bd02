# ---
# jupyter:
#   jupytext:
#     text_representation: {extension: .py, format_name: percent}
#   kernelspec: {display_name: Python 3, language: python, name: python3}
# ---

# %% [markdown]
# # A text classifier, sparse and in int8
#
# A small BERT from KerasHub learns which package a sentence documents. The text is what the packages ship: their own docstrings. Then the net keeps a tenth of its weights and is written for phones in int8.

# %% tags=["hide_output"]
import ast
from importlib.util import find_spec
from pathlib import Path

import keras
import keras_hub
import numpy as np
import tensorflow as tf

import lc_keras

keras.utils.set_random_seed(0)
folder = Path("outputs/text")
folder.mkdir(parents=True, exist_ok=True)

# %% [markdown]
# ## The data
#
# The data are the first paragraphs of docstrings, from four packages that are installed here.

# %%
packages = ["numpy", "sklearn", "matplotlib", "keras"]


def sentences(package, most=900):
    """Return the first paragraphs of a package's docstrings."""
    found = set()
    for file in sorted(Path(find_spec(package).origin).parent.rglob("*.py")):
        if "tests" in file.parts or len(found) >= most:
            continue
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, (ast.FunctionDef, ast.ClassDef)) and (text := ast.get_docstring(node)):
                words = text.split("\n\n")[0].lower().replace(package, "it").split()
                if len(words) > 5:
                    found.add(" ".join(words))
    return sorted(found)


texts, labels = [], []
for label, package in enumerate(packages):
    found = sentences(package)
    texts += found
    labels += [label] * len(found)
order = np.random.default_rng(0).permutation(len(texts))
texts, labels = np.array(texts)[order], np.array(labels)[order]
split = len(texts) * 4 // 5
print(len(texts), "sentences, such as:", texts[0], "→", packages[labels[0]])

# %% [markdown]
# ## A small BERT
#
# Its vocabulary is computed from the sentences. With `keras_hub.models.BertTextClassifier.from_preset`, you would start from a pretrained BERT, which KerasHub downloads.

# %%
pieces = keras_hub.tokenizers.compute_word_piece_vocabulary(
    tf.data.Dataset.from_tensor_slices(texts[:split]),
    vocabulary_size=2000,
    lowercase=True,
    reserved_tokens=["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"],
)
tokenizer = keras_hub.tokenizers.BertTokenizer(vocabulary=pieces, lowercase=True)
preprocessor = keras_hub.models.BertTextClassifierPreprocessor(tokenizer, sequence_length=32)
model = keras_hub.models.BertTextClassifier(
    backbone=keras_hub.models.BertBackbone(
        vocabulary_size=len(pieces),
        num_layers=2,
        num_heads=4,
        hidden_dim=64,
        intermediate_dim=256,
        max_sequence_length=32,
    ),
    num_classes=len(packages),
    preprocessor=None,
)
tokens = preprocessor(texts)
token_arrays = {name: np.array(value) for name, value in tokens.items()}


def part(start, stop):
    inputs = {name: value[start:stop] for name, value in token_arrays.items()}
    return tf.data.Dataset.from_tensor_slices((inputs, labels[start:stop])).cache()


train = part(0, split).shuffle(split, seed=0).batch(32)
test = part(split, None).batch(256)


def train_for(epochs, callbacks=()):
    falling = keras.optimizers.schedules.CosineDecay(1e-3, epochs * len(train), alpha=0.2)
    model.compile(
        keras.optimizers.Adam(falling),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
    )
    model.fit(train, validation_data=test, epochs=epochs, callbacks=callbacks, shuffle=False, verbose=0)


train_for(6)
print(f"accuracy {model.evaluate(test, verbose=0)[1]:.3f}")

# %% [markdown]
# ## Keep a tenth of the weights
#
# The budget counts the kernels of attention and dense layers. Embeddings stay as they are.

# %%
compress = lc_keras.LearningCompression(lc_keras.L0Constraint(keep=0.1))
train_for(12, [compress])
print(f"accuracy {model.evaluate(test, verbose=0)[1]:.3f}")

# %%
compress.plot()

# %%
lc_keras.report(model)

# %% [markdown]
# ## Write it for phones
#
# int8 stores a byte for each weight and computes with integers where the runtime can. `representative_data` shows the export the range of the activations. The export runs each file before writing it.

# %% tags=["hide_output"]
examples = [{name: value[:64] for name, value in token_arrays.items()}]
files = {}
for name, options in (
    ("float32", {"sparse": False}),
    ("float32, sparse", {}),
    ("int8", {"quantize": "int8", "representative_data": examples}),
):
    files[name] = lc_keras.export_litert(
        model, folder / f"{name.replace(', ', '-')}.tflite", overwrite=True, **options
    )

# %%
for name, file in files.items():
    print(f"{name}: {file.nbytes / 1000:.0f} kB, largest difference from Keras {file.error:.2g}")

# %% [markdown]
# Do the files still know their packages? The runtime classifies sentences that the net has not seen. Where int8 loses accuracy, as it does in attention, ship the sparse file: measure before you choose.

# %%
from ai_edge_litert.interpreter import Interpreter


def accuracy(file, most=200):
    interpreter = Interpreter(model_path=str(file))
    answer = interpreter.get_signature_runner("serving_default")
    wanted = answer.get_input_details()
    right = 0
    for i in range(split, min(split + most, len(texts))):
        row = {name: token_arrays[name][i : i + 1].astype(wanted[name]["dtype"]) for name in wanted}
        right += int(np.argmax(next(iter(answer(**row).values()))) == labels[i])
    return right / most


scores = {name: accuracy(file.path) for name, file in files.items()}
print(scores)

# %%
from matplotlib import pyplot as plt

figure, axes = plt.subplots(figsize=(6, 2.6), layout="constrained")
bars = axes.barh(list(files), [file.nbytes / 1000 for file in files.values()])
axes.bar_label(
    bars, [f"{f.nbytes / 1000:.0f} kB, accuracy {scores[n]:.2f}" for n, f in files.items()], padding=3
)
axes.set_xlim(0, 1.5 * max(file.nbytes for file in files.values()) / 1000)
axes.invert_yaxis()
axes.set_xlabel("size of the LiteRT file, kB")
plt.show()
