"""Describe what exports wrote."""

import os
from collections.abc import Iterator
from dataclasses import dataclass, field

import keras
import numpy as np
import tensorflow as tf

from lc_keras.export.stored import StoredSparse, StoredWeight
from lc_keras.measuring.packing import Packed
from lc_keras.model.flow.graph import Graph, is_graph
from lc_keras.model.kernels import default_kernels, frozen_kernels, output_axes, owners_of
from lc_keras.showing import Bar, Shown, Table, listed


@dataclass(frozen=True)
class ExportedWeight:
    """The encoding and the size of one variable in a SavedModel.

    Attributes:
        path: String, the variable's path in the model.
        encoding: String, `"dense"`, `"gaps4"`, `"gaps8"`, `"gaps16"` or `"bitmask"`. If the values are
            coded, the bits of each follow a slash, as in `"gaps8/4"`. In `"dense/1+gaps8"`, some weights
            have values of their own, which are stored separately.
        compute: String, `"dense"` or `"sparse"`.
        nbytes: Int, the bytes of its values and places in the file.
        dense_nbytes: Int, its bytes in the model.
        error: Float, the largest distance of a stored value from the model's: 0 unless the values are
            stored in fewer bits.
    """

    path: str
    encoding: str
    compute: str
    nbytes: int
    dense_nbytes: int
    error: float


class _Export(Shown):
    """Show an export: as a table in a notebook, and as text by the notes below that table."""

    def __str__(self) -> str:
        return "\n".join(self._table().notes)


@dataclass(frozen=True)
class LiteRTExport(_Export):
    """The size and the error of a LiteRT file; see `export_litert`.

    Attributes:
        path: String, the file.
        nbytes: Int, its size.
        dense_nbytes: Int, the size it would have without sparse weights.
        sparse: Bool, whether weights are stored sparse.
        error: Float, how far its outputs are from those of the Keras model, relative to the largest
            output, on some 200 examples of `representative_data`, at least a batch, or on made-up inputs.
        refused: String, why the sparse encoding was not used though it would have been smaller, or why it
            could not be tried, or empty.
        answered: String, the inputs on which `error` was measured.
        slow: Bool, whether its weights are sparse in int8, which LiteRT multiplies slowly.
        dead: Int, how many units `shrink` would have taken out of the model.
    """

    path: str
    nbytes: int
    dense_nbytes: int
    sparse: bool
    error: float
    refused: str
    answered: str = "made-up inputs"
    dead: int = 0
    slow: bool = False

    def _table(self) -> Table:
        size, dense = f"{self.nbytes / 1000:,.0f} kB", f"{self.dense_nbytes / 1000:,.0f} kB"
        notes = [
            (
                f"Wrote '{self.path}': {size}, {'sparse' if self.sparse else 'dense'} ({dense} if dense), "
                f"outputs within {self.error:.1g} of Keras, relative to the largest, on {self.answered}."
            )
        ]
        if self.refused:
            notes.append(f"Dense, since the sparse file does not work here: {self.refused}")
        if self.slow:
            notes.append(
                "LiteRT computes with sparse int8 weights about three times slower than with dense ones: "
                "`export_litert` with sparse=False makes a larger file that is faster."
            )
        notes += _hint(self.dead)
        rows = [("this", Bar(size, self.nbytes / self.dense_nbytes)), ("dense", Bar(dense, 1.0))]
        return Table(("LiteRT file", "size"), rows, notes=notes)


@dataclass(frozen=True)
class SavedModelExport(_Export):
    """The size and the weights of a SavedModel; see `export_saved_model`.

    `str()` summarises it in a few lines.

    Attributes:
        path: String, the directory of the SavedModel.
        nbytes: Int, the size of all its files.
        weights: Tuple of `ExportedWeight`, one for each variable of the model.
        signatures: Tuple of strings.
        inputs: Tuple of strings, the name, type and shape of each input of `serving_default`.
        litert: `LiteRTExport` of the LiteRT file beside it, or `None`.
        dense_nbytes: Int, roughly the size it would have with every weight stored.
        dead: Int, how many units `shrink` would have taken out of the model.
        storage: String, `"packed"` or `"dense"`, as requested.
        warmup_nbytes: Int, the size of the warm-up requests in it.
        declined: Dict from the path of each kernel that stays dense though sparse compute promised to be
            faster, to the promised speed over that of dense compute: the least over the expected batch sizes.
    """

    path: str
    nbytes: int
    weights: tuple[ExportedWeight, ...]
    signatures: tuple[str, ...]
    inputs: tuple[str, ...]
    litert: LiteRTExport | None = None
    dead: int = 0
    storage: str = "packed"
    warmup_nbytes: int = 0
    declined: dict[str, float] = field(default_factory=dict)

    @property
    def dense_nbytes(self) -> int:
        return self.nbytes + sum(weight.dense_nbytes - weight.nbytes for weight in self.weights)

    def _table(self) -> Table:
        rows = [
            (
                weight.path,
                weight.encoding,
                weight.compute,
                f"{weight.dense_nbytes / 1000:,.1f}",
                Bar(f"{weight.nbytes / 1000:,.1f}", weight.nbytes / max(1, weight.dense_nbytes)),
            )
            for weight in self.weights
        ]
        return Table(("weight", "stored", "computed", "kB dense", "kB"), rows, notes=tuple(self._notes()))

    def _notes(self) -> Iterator[str]:
        packed = [weight for weight in self.weights if weight.encoding != "dense"]
        sparse = [weight for weight in self.weights if weight.compute == "sparse"]
        size = f"{self.nbytes / 1000:,.0f} kB"
        dense = f", about {self.dense_nbytes / 1000:,.0f} kB if every weight were stored" if packed else ""
        parts = {
            "warm-up requests": self.warmup_nbytes,
            "model.tflite": self.litert.nbytes if self.litert else 0,
        }
        some = ", ".join(f"{name} {nbytes / 1000:,.0f} kB" for name, nbytes in parts.items() if nbytes)
        yield f"Wrote '{self.path}': {size}{dense}{f'; of these {some}' if some else ''}."
        yield (
            f"Weights packed: {len(packed)}; multiplied sparse: {len(sparse)}; "
            f"signatures: {', '.join(self.signatures)}."
        )
        yield f"Inputs: {'; '.join(self.inputs)}."
        if not os.path.basename(self.path).isdecimal():
            first = os.path.join(self.path, "1")
            yield (
                f"A model server looks for numbers: remove '{self.path}' and export with version=\"next\", "
                f"which writes '{first}'."
            )
        if self.declined:
            gains = listed([f"{path} ({times:.2g})" for path, times in self.declined.items()])
            yield (
                f"Multiplied dense, though sparse may be this many times as fast: {gains}. The gain is too "
                'small to rely on; measure it with compute="sparse".'
            )
        if grown := [weight.path for weight in sparse if weight.nbytes > weight.dense_nbytes]:
            yield (
                f"Larger sparse than dense, with too few zeros: {', '.join(grown)}. Prune further, or export "
                'with compute="auto".'
            )
        if not packed:
            why = "as requested" if self.storage == "dense" else "that would make nothing smaller"
            yield f"No weight is packed: {why}."
        rounded = max(self.weights, key=lambda weight: weight.error, default=None)
        if rounded is not None and rounded.error:
            yield f"Stored values are off by at most {rounded.error:.2g} ({rounded.path})."
        if self.litert:
            yield str(self.litert)
        else:
            yield from _hint(self.dead)


def _hint(dead: int) -> list[str]:
    some = f"{dead} unit{' is' if dead == 1 else 's are'} dead"
    return [f"{some}: `lc_keras.shrink` makes a smaller model with the same outputs."] if dead else []


def count_dead_units(model: keras.Model) -> int:
    """Return how many units `shrink` would take out of a model, tied ones as one; 0 if it cannot.

    They are looked for only if in some kernel all weights that make a unit, or that read one, are zero.
    """
    owners = owners_of(model)

    def has_dead(kernel: keras.Variable) -> bool:
        rank = len(kernel.shape)
        made = {axis % rank for axis in output_axes(owners.get(id(kernel)), kernel)}
        there = keras.ops.convert_to_numpy(kernel) != 0
        sides = [made, *({axis} for axis in range(rank) if axis not in made)]
        others = (tuple(axis for axis in range(rank) if axis not in side) for side in sides)
        return not all(there.any(axis=axes).all() for axes in others)

    kernels = [*default_kernels(model), *frozen_kernels(model)]
    if not (is_graph(model) and any(map(has_dead, kernels))):
        return 0
    graph = Graph(model)
    return len(np.unique(graph.units.groups()[~graph.kept()]))


def described(spec: tf.TensorSpec) -> str:
    """Return the name, the type and the shape of an input as text."""
    shape = ", ".join("any" if size is None else str(size) for size in spec.shape)
    return f"{spec.name} {spec.dtype.name} ({shape})"


def exported_as(
    variable: keras.Variable, array: np.ndarray, stored: tuple[Packed, StoredWeight | StoredSparse] | None
) -> ExportedWeight:
    """Return the encoding and the size of a variable with the value `array`.

    `stored` is what is written and what reads it back, or `None` if the variable is written as it is.
    """
    if stored is None:
        return ExportedWeight(variable.path, "dense", "dense", array.nbytes, array.nbytes, 0.0)
    packed, weight = stored
    error = 0.0
    if packed.values.dtype != array.dtype:
        finite = array[np.isfinite(array)]
        error = float(np.abs(finite - finite.astype(packed.values.dtype).astype(array.dtype)).max(initial=0))
    compute = "sparse" if isinstance(weight, StoredSparse) else "dense"
    return ExportedWeight(variable.path, packed.name, compute, packed.nbytes, array.nbytes, error)
