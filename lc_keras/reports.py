"""What pruning left of a model: layer by layer, and in bits."""

import json
import math
from dataclasses import asdict, dataclass

import keras
import numpy as np

from lc_keras.tasks import default_kernels


@dataclass(frozen=True)
class KernelReport:
    """What is left of one kernel.

    Attributes:
        path: String, the variable's path in the model.
        shape: Tuple of ints.
        weights: Int, how many weights it has.
        kept: Int, how many of them are not zero.
        encoding: String, `"dense"`, `"bitmask"` or `"index"`: the cheapest of the
            encodings described in `report`.
        dense_bits: Int, its size with every weight stored.
        bits: Int, its size in that encoding.
        density: Float, the fraction of its weights that is kept.
    """

    path: str
    shape: tuple[int, ...]
    weights: int
    kept: int
    encoding: str
    dense_bits: int
    bits: int

    @property
    def density(self) -> float:
        return _density(self)


@dataclass(frozen=True)
class PruningReport:
    """What is left of a model; see `report`.

    `str()` of it is a table.

    Attributes:
        rows: Tuple of `KernelReport`, one for each kernel.
        other_bits: Int, the size of what is not a kernel: biases, normalisation,
            embeddings.
        weights: Int, how many weights all kernels have.
        kept: Int, how many of them are not zero.
        density: Float, the fraction of the kernels' weights that is kept.
        dense_bits: Int, the size of all parameters, each stored.
        bits: Int, the size of all parameters, each kernel in its cheapest encoding.
    """

    rows: tuple[KernelReport, ...]
    other_bits: int

    @property
    def weights(self) -> int:
        return sum(row.weights for row in self.rows)

    @property
    def kept(self) -> int:
        return sum(row.kept for row in self.rows)

    @property
    def density(self) -> float:
        return _density(self)

    @property
    def dense_bits(self) -> int:
        return sum(row.dense_bits for row in self.rows) + self.other_bits

    @property
    def bits(self) -> int:
        return sum(row.bits for row in self.rows) + self.other_bits

    def __str__(self):
        head = ("kernel", "shape", "weights", "kept", "density", "encoding", "kB")
        body = [
            (r.path, str(r.shape), *_counts(r), r.encoding, _kilobytes(r.bits)) for r in self.rows
        ]
        total = ("all kernels", "", *_counts(self), "", _kilobytes(self.bits - self.other_bits))
        lines = [head, *body, total]
        widths = [max(map(len, column)) for column in zip(*lines)]
        left = {"kernel", "shape", "encoding"}
        text = [
            "  ".join(
                cell.ljust(width) if name in left else cell.rjust(width)
                for name, cell, width in zip(head, line, widths)
            ).rstrip()
            for line in lines
        ]
        rule = "-" * max(map(len, text))
        size = (
            f"{_kilobytes(self.dense_bits)} kB dense, {_kilobytes(self.bits)} kB compressed, "
            f"{_kilobytes(self.other_bits)} kB of it not kernels"
        )
        return "\n".join([text[0], rule, *text[1:-1], rule, text[-1], size])

    def to_json(self) -> str:
        """Returns the report as JSON.

        Returns:
            String: an object with `rows`, the attributes of each `KernelReport`, and
            `totals`, those of the whole.

        Example:

        ```python
        totals = json.loads(lc_keras.report(model).to_json())["totals"]
        ```
        """
        rows = [{**asdict(row), "density": row.density} for row in self.rows]
        names = ("weights", "kept", "density", "dense_bits", "bits", "other_bits")
        return json.dumps({"rows": rows, "totals": {n: getattr(self, n) for n in names}}, indent=2)

    def plot(self, path=None, ax=None):
        """Draws the density of each kernel as a bar.

        Args:
            path: String or path-like, the image to write, or `None` (default).
            ax: Matplotlib axes to draw in. `None` (default): those of a new figure.

        Returns:
            The matplotlib figure.

        Raises:
            ImportError: If matplotlib is not installed.

        Example:

        ```python
        lc_keras.report(model).plot("density.png")
        ```
        """
        if ax is None:
            ax = _new_axes(height=1.2 + 0.35 * len(self.rows))
        positions = range(len(self.rows))
        bars = ax.barh(positions, [100 * row.density for row in self.rows])
        ax.bar_label(bars, [f"{100 * r.density:.3g} % of {r.weights:,}" for r in self.rows], padding=3)
        ax.set_yticks(positions, [row.path for row in self.rows])
        ax.invert_yaxis()
        ax.set_xlim(0, 135)
        ax.set_xticks(range(0, 101, 20))
        ax.set_xlabel(f"kept, % of a kernel's weights ({100 * self.density:.3g} % of all)")
        if path is not None:
            ax.figure.savefig(path)
        return ax.figure


def report(model: keras.Model) -> PruningReport:
    r"""Counts what is left of a model's kernels, and what that takes to store.

    Any model with zeros in it will do, however they came there. The kernels are those
    that a `Task` takes by default. Sizes are sums over parameters, at their own
    types. With $n$ weights of $b$ bits, $k$ of them kept, a kernel takes the least of

    - `"dense"`: $n b$ bits;
    - `"bitmask"`: $n + k b$, a bit for each weight and the values kept;
    - `"index"`: $k (b + \lceil \log_2 n \rceil)$, each value kept and its place.

    All else (biases, normalisation, embeddings) counts dense.

    Args:
        model: Built `keras.Model`.

    Returns:
        `PruningReport`.

    Raises:
        TypeError: If `model` is not a `keras.Model`.
        ValueError: If the model is not built.

    Example:

    ```python
    report = lc_keras.report(model)
    print(report)
    report.plot("density.png")
    ```
    """
    if not isinstance(model, keras.Model):
        raise TypeError(
            "Expected `model` to be a keras.Model. "
            f"Received: {model!r} (of type {type(model).__name__})"
        )
    if not model.built or not model.weights:
        raise ValueError(
            f"Expected a built model with weights. Received: model '{model.name}', which "
            f"{'has no weights' if model.built else 'is not built'}; call it on data, or "
            "`model.build(input_shape)`, first."
        )
    kernels = default_kernels(model)
    prunable = {id(variable) for variable in kernels}
    others = [variable for variable in model.weights if id(variable) not in prunable]
    return PruningReport(
        rows=tuple(map(_kernel_report, kernels)),
        other_bits=sum(8 * keras.ops.convert_to_numpy(variable).nbytes for variable in others),
    )


def _kernel_report(variable):
    value = keras.ops.convert_to_numpy(variable)
    weights, kept = value.size, int(np.count_nonzero(value))
    bits = 8 * value.itemsize
    sizes = {
        "dense": weights * bits,
        "bitmask": weights + kept * bits,
        "index": kept * (bits + math.ceil(math.log2(max(weights, 1)))),
    }
    cheapest = min(sizes, key=sizes.get)
    return KernelReport(
        path=variable.path,
        shape=tuple(value.shape),
        weights=weights,
        kept=kept,
        encoding=cheapest,
        dense_bits=sizes["dense"],
        bits=sizes[cheapest],
    )


def _density(counts):
    # Of nothing, nothing was removed.
    return counts.kept / counts.weights if counts.weights else 1.0


def _counts(counts):
    return f"{counts.weights:,}", f"{counts.kept:,}", f"{100 * counts.density:.2f} %"


def _kilobytes(bits):
    return f"{bits / 8000:,.1f}"


def _new_axes(height):
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError(
            'A plot needs matplotlib, which is not installed: pip install "lc_keras[plot]".'
        ) from error
    return Figure(figsize=(7, height), layout="constrained").subplots()
