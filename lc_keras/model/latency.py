"""Hold the fitted time of models at other widths, for the models and their copies."""

import collections
import dataclasses
import json
import math
from collections.abc import Mapping
from typing import Literal, TypeAlias

import keras

from lc_keras.internals.keras import layers_in
from lc_keras.showing import Shown, Table

Of: TypeAlias = Literal["widths", "ranks"]

# What decides, besides weights, how many places a layer has.
_SPACING = "strides", "padding", "dilation_rate", "pool_size", "size"
# By what copies of a model have in common: the kinds of layers, the paths and shapes of all weights.
_KNOWN: dict[tuple[object, ...], "Latency"] = {}


@dataclasses.dataclass(frozen=True)
class Latency(Shown):
    r"""The time of a batch at any widths or ranks, fitted to timed nets; see `latency`. `str()` is a table.

    For widths it is

    $$t = c + \sum_k \bigl(a_k \rho_k \sigma_k + b_k \rho_k\bigr)$$

    where ρ and σ are the kept fractions of what kernel k makes and of what it reads. For ranks it is $t = c +
    \sum_k t_k$, with $t_k = w_k$ where kernel k stays whole, and $t_k = a_{kj} + b_{kj} r$ where two layers
    of rank r replace it. A two-dimensional convolution can be replaced in two ways j: by layers over the
    window and 1 × 1, or by layers along one axis each.

    Attributes:
        batch_size: Int, the number of examples in a batch.
        milliseconds: Float, the time of the whole model.
        fixed: Float, c, in milliseconds.
        kernels: Dict from the path of a kernel to a and b, or to w and then a and b for each way, in
            milliseconds.
        error: Float, the relative error in the time of a net that was left out of the fit, on average.
        largest_error: Float, the largest of these relative errors.
        nets: Int, how many nets were timed.
        sizes: Dict from the path of a kernel to its shape, followed by the number of places of an example
            at which it is used.
        machine: String, where the nets were timed.
        of: `"widths"` (default) or `"ranks"`.
    """

    batch_size: int
    milliseconds: float
    fixed: float
    kernels: Mapping[str, tuple[float, ...]]
    error: float
    largest_error: float
    nets: int
    sizes: Mapping[str, tuple[int, ...]]
    machine: str
    of: Of = "widths"

    def _table(self) -> Table:
        ways = max((len(times) // 2 for times in self.kernels.values()), default=1)
        head: tuple[str, ...] = ("kernel", "ms by both widths", "ms by its own")
        if self.of == "ranks":
            head = ("kernel", "ms whole", *("ms as two", "ms a rank") * ways)
        rows = [(path, *(f"{time:.4f}" for time in times)) for path, times in self.kernels.items()]
        whole = f"{self.milliseconds:.3f} ms for a batch of {self.batch_size} on {self.machine}"
        error = f"{100 * self.error:.1f} % on average, and by {100 * self.largest_error:.1f} % at most"
        said = (
            f"{whole}, {self.fixed:.3f} ms of it at any {self.of}.",
            f"Each of {self.nets} nets was left out of the fit once; its time was then off by {error}.",
        )
        rows = [(*row, *[""] * (len(head) - len(row))) for row in rows]
        return Table(head, rows, notes=said)

    def to_json(self) -> str:
        """Return all attributes as JSON."""
        return json.dumps(dataclasses.asdict(self), indent=1)

    @classmethod
    def from_json(cls, text: str) -> "Latency":
        """Return the `Latency` that `to_json` made into text, or raise a ValueError."""
        try:
            content = json.loads(text)
            for name in ("milliseconds", "fixed", "error", "largest_error"):
                content[name] = float(content[name])
            kernels = content["kernels"].items()
            content["kernels"] = {path: tuple(map(float, times)) for path, times in kernels}
            content["sizes"] = {path: tuple(map(int, size)) for path, size in content["sizes"].items()}
            found = cls(**content)
            times = [
                found.milliseconds,
                found.fixed,
                *(time for times in found.kernels.values() for time in times),
            ]
            lengths = {"widths": (2,), "ranks": (3, 5)}[found.of]
            fits = all(len(some) in lengths for some in found.kernels.values())
            if not fits or found.kernels.keys() != found.sizes.keys():
                raise ValueError("kernels of no size, or of other times than these")
            if not all(0 <= time < math.inf for time in times):
                raise ValueError("times that are negative or no numbers")
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            names = ", ".join(field.name for field in dataclasses.fields(cls))
            raise ValueError(
                f"Expected what `Latency.to_json` returns, an object with {names}. "
                f"Received: {repr(text)[:80]} ({type(error).__name__}: {error})"
            ) from error
        return found


def remember(model: keras.Model, latency: Latency) -> None:
    """Note what was fitted for a model, for the model and its copies."""
    _KNOWN[latency.of, *_signature(model)] = latency


def known(model: keras.Model, of: Of = "widths") -> Latency | None:
    """Return what was last fitted for a model, or for one that it is a copy of."""
    return _KNOWN.get((of, *_signature(model)))


def names_in(model: keras.Model) -> dict[int, str]:
    """Return a name for each weight of a model, by its id: its path, numbered if others have the same."""
    seen = collections.Counter[str]()
    names = {}
    for variable in model.weights:
        seen[variable.path] += 1
        number = seen[variable.path]
        names[id(variable)] = variable.path if number == 1 else f"{variable.path} ({number})"
    return names


def _signature(model: keras.Model) -> tuple[object, ...]:
    given = [tuple(t.shape) for t in getattr(model, "inputs", None) or []]
    layers = [
        (type(layer).__name__, *(str(getattr(layer, name, None)) for name in _SPACING))
        for layer in layers_in(model, include_self=False)
    ]
    return (*given, *layers, *((v.path, tuple(v.shape)) for v in model.weights))
