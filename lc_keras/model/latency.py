"""Hold the time of models at other widths, as it was fitted, for them and their copies."""

import dataclasses
import json
import math
from collections.abc import Mapping

import keras

from lc_keras.showing import Shown, Table

# By the paths and shapes of all weights, which copies of a model have in common.
_KNOWN: dict[tuple[object, ...], "Latency"] = {}


@dataclasses.dataclass(frozen=True)
class Latency(Shown):
    r"""The time of a batch at any widths, fitted to timed ones; see `latency`. `str()` of it is a table.

    $$t = c + \sum_k \bigl(a_k \rho_k \sigma_k + b_k \rho_k\bigr)$$

    with ρ and σ the fractions of what kernel k makes and reads that are kept.

    Attributes:
        batch_size: Int, the examples of a batch.
        milliseconds: Float, the time of the whole model.
        fixed: Float, c, in milliseconds.
        kernels: Dict from the path of a kernel to a and b, in milliseconds.
        error: Float, by which part of the time a net is misjudged that was left out of the fit, in the mean.
        largest_error: Float, the same at most.
        nets: Int, how many nets were timed.
        sizes: Dict from the path of a kernel to its shape, and for how many places of an example it is used.
        machine: String, where they were timed.
    """

    batch_size: int
    milliseconds: float
    fixed: float
    kernels: Mapping[str, tuple[float, float]]
    error: float
    largest_error: float
    nets: int
    sizes: Mapping[str, tuple[int, ...]]
    machine: str

    def _table(self) -> Table:
        rows = [(path, f"{a:.4f}", f"{b:.4f}") for path, (a, b) in self.kernels.items()]
        head = ("kernel", "ms by both widths", "ms by its own")
        whole = f"{self.milliseconds:.3f} ms for a batch of {self.batch_size} on {self.machine}"
        error = f"{100 * self.error:.1f} % in the mean, by {100 * self.largest_error:.1f} % at most"
        said = (
            f"{whole}, {self.fixed:.3f} ms of it at any widths.",
            f"Of {self.nets} nets each was left out of the fit once, and misjudged by {error}.",
        )
        return Table(head, rows, notes=said)

    def to_json(self) -> str:
        """Return all attributes as JSON."""
        return json.dumps(dataclasses.asdict(self), indent=1)

    @classmethod
    def from_json(cls, text: str) -> "Latency":
        """Return what `to_json` made a text of, or raise a ValueError."""
        try:
            content = json.loads(text)
            for name in ("milliseconds", "fixed", "error", "largest_error"):
                content[name] = float(content[name])
            content["kernels"] = {path: (float(a), float(b)) for path, (a, b) in content["kernels"].items()}
            content["sizes"] = {path: tuple(map(int, size)) for path, size in content["sizes"].items()}
            found = cls(**content)
            times = [
                found.milliseconds,
                found.fixed,
                *(time for pair in found.kernels.values() for time in pair),
            ]
            if found.kernels.keys() != found.sizes.keys() or not all(0 <= time < math.inf for time in times):
                raise ValueError("kernels of no size, or times that are negative or no numbers")
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            names = ", ".join(field.name for field in dataclasses.fields(cls))
            raise ValueError(
                f"Expected what `Latency.to_json` returns, an object with {names}. "
                f"Received: {text[:80]!r} ({type(error).__name__}: {error})"
            ) from error
        return found


def remember(model: keras.Model, latency: Latency) -> None:
    """Note what was fitted of a model, for it and its copies."""
    _KNOWN[_signature(model)] = latency


def known(model: keras.Model) -> Latency | None:
    """Return what was fitted of a model, or of one that it is a copy of, last."""
    return _KNOWN.get(_signature(model))


def _signature(model: keras.Model) -> tuple[object, ...]:
    return tuple((v.path, tuple(v.shape)) for v in model.weights)
