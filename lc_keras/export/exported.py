"""Say what `export_saved_model` wrote."""

from dataclasses import dataclass

import keras
import numpy as np

from lc_keras.export.stored import StoredSparse, StoredWeight
from lc_keras.measuring.packing import Packed


@dataclass(frozen=True)
class ExportedWeight:
    """The encoding and the size of one variable of a SavedModel.

    Attributes:
        path: String, the variable's path in the model.
        encoding: String, `"dense"`, `"gaps8"`, `"gaps16"` or `"bitmask"`.
        compute: String, `"dense"` or `"sparse"`.
        nbytes: Int, the bytes of its values and places in the file.
        dense_nbytes: Int, its bytes in the model.
        error: Float, how far the stored values are from the model's at most: 0 unless
            they are stored in fewer bits.
    """

    path: str
    encoding: str
    compute: str
    nbytes: int
    dense_nbytes: int
    error: float


@dataclass(frozen=True)
class SavedModelExport:
    """The size and the weights of a SavedModel; see `export_saved_model`.

    `str()` of it says it in a few lines.

    Attributes:
        path: String, the directory of the SavedModel.
        nbytes: Int, the size of all its files.
        weights: Tuple of `ExportedWeight`, one for each variable of the model.
        signatures: Tuple of strings.
    """

    path: str
    nbytes: int
    weights: tuple[ExportedWeight, ...]
    signatures: tuple[str, ...]

    def __str__(self) -> str:
        dense = sum(weight.dense_nbytes for weight in self.weights)
        packed = [weight for weight in self.weights if weight.encoding != "dense"]
        sparse = [weight for weight in self.weights if weight.compute == "sparse"]
        lines = [
            (
                f"Wrote '{self.path}': {self.nbytes / 1000:,.0f} kB, of weights that take "
                f"{dense / 1000:,.0f} kB dense."
            ),
            (
                f"Weights packed: {len(packed)}; multiplied sparse: {len(sparse)}; "
                f"signatures: {', '.join(self.signatures)}."
            ),
        ]
        if not packed:
            lines.append("Nothing is gained by packing: no weight has enough zeros.")
        rounded = max(self.weights, key=lambda weight: weight.error, default=None)
        if rounded is not None and rounded.error:
            lines.append(f"Stored values are off by at most {rounded.error:.2g} ({rounded.path}).")
        return "\n".join(lines)


def exported_as(
    variable: keras.Variable, array: np.ndarray, stored: tuple[Packed, StoredWeight | StoredSparse] | None
) -> ExportedWeight:
    """Return the encoding and the size of a variable of some value.

    `stored` is what is written and what reads it back, or `None`: written as it is.
    """
    if stored is None:
        return ExportedWeight(variable.path, "dense", "dense", array.nbytes, array.nbytes, 0.0)
    packed, weight = stored
    error = 0.0
    if packed.values.dtype != array.dtype:
        finite = array[np.isfinite(array)]
        error = float(np.abs(finite - finite.astype(packed.values.dtype).astype(array.dtype)).max(initial=0))
    compute = "sparse" if isinstance(weight, StoredSparse) else "dense"
    return ExportedWeight(variable.path, packed.encoding, compute, packed.nbytes, array.nbytes, error)
