"""Hold what a report says, and show it."""

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

from lc_keras.showing import Bar, Drawn, Table, listed

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_HEAD = ("shape", "kept", "density", "dense B", "packed", "gzip", "MACs", "left")


@dataclass(frozen=True)
class VariableReport:
    """The figures for what is left of one variable.

    Attributes:
        path: String, the variable's path in the model.
        shape: Tuple of ints.
        weights: Int, how many weights it has.
        kept: Int, how many of them are not zero.
        encoding: String, how `export_saved_model` stores the variable to be computed dense, or has stored
            it: `"dense"`, `"bitmask"`, `"gaps4"`, `"gaps8"` or `"gaps16"`. If the values are coded, the bits
            of each follow a slash, as in `"gaps8/4"`. In `"dense/1+gaps8"`, some weights have values of
            their own, which are stored separately.
        dense_bits: Int, its size with every weight stored.
        bits: Int, its size in that encoding.
        gzip_bits: Int, the size of the dense weight compressed by gzip at its fastest setting, or
            uncompressed if that is smaller; `None` if it was not measured.
        macs: Int, multiply-adds with its weights for one example, or `None` if not known.
        remaining_macs: Int, those with nonzero weights, or `None`.
        finite: Bool, whether all its weights are finite.
        frozen: Bool, whether it is a kernel that a `Task` leaves alone because it is not
            trainable.
        density: Float, the fraction of its weights that are kept.
    """

    path: str
    shape: tuple[int, ...]
    weights: int
    kept: int
    encoding: str
    dense_bits: int
    bits: int
    gzip_bits: int | None
    macs: int | None
    remaining_macs: int | None
    finite: bool
    frozen: bool = False

    @property
    def density(self) -> float:
        return _density(self)


@dataclass(frozen=True)
class PruningReport(Drawn):
    """The figures for what is left of a model; see `report`.

    `str()` returns a table of at most 100 columns, and `plot()` draws the density of each kernel as a bar.

    Attributes:
        rows: Tuple of `VariableReport`, one for each kernel and each embedding table with zeros.
        others: Tuple of `VariableReport`, one for each other variable: biases,
            normalisation, embeddings without zeros, frozen kernels.
        attention_macs: Int, the multiply-adds of activations with one another, as in attention, or with
            constants; `None` if not known.
        file_bits: Int, the size of the SavedModel that was read, or `None`.
        weights: Int, how many weights all kernels have.
        kept: Int, how many of them are not zero.
        density: Float, the fraction of the kernels' weights that are kept.
        dense_bits: Int, the size of all variables with every weight stored.
        bits: Int, the size of all variables in their encodings.
        gzip_bits: Int, the size of all variables, each compressed by gzip, or `None` if not measured.
        macs: Int, the multiply-adds for one example, without those of `unknown_macs`, or
            `None` if nothing is known.
        remaining_macs: Int, those that are left with the nonzero weights, or `None`.
        macs_density: Float, the fraction of the multiply-adds that are left, or `None`.
        unknown_macs: Tuple of strings, what these figures leave out: the paths of variables, and
            `"attention"` for activations multiplied by one another.
        frozen: Tuple of the entries of `others` that are kernels and were left out because they
            are not trainable: frozen, quantised, or under LoRA.
        largest: `VariableReport` of the variable that takes the most bits as stored: pruning elsewhere
            gains less. `None` if there is no variable.
    """

    rows: tuple[VariableReport, ...]
    others: tuple[VariableReport, ...]
    attention_macs: int | None = 0
    file_bits: int | None = None

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
        return sum(row.dense_bits for row in self._all)

    @property
    def bits(self) -> int:
        return sum(row.bits for row in self._all)

    @property
    def gzip_bits(self) -> int | None:
        return _sum(row.gzip_bits for row in self._all)

    @property
    def macs(self) -> int | None:
        known = sum(row.macs or 0 for row in self._all) + (self.attention_macs or 0)
        return known if known or not self.unknown_macs else None

    @property
    def remaining_macs(self) -> int | None:
        known = sum(row.remaining_macs or 0 for row in self._all) + (self.attention_macs or 0)
        return None if self.macs is None else known

    @property
    def macs_density(self) -> float | None:
        if self.macs is None or self.remaining_macs is None:
            return None
        return self.remaining_macs / self.macs if self.macs else 1.0

    @property
    def unknown_macs(self) -> tuple[str, ...]:
        paths = tuple(row.path for row in self._all if row.macs is None)
        return paths if self.attention_macs is not None else (*paths, "attention")

    @property
    def largest(self) -> VariableReport | None:
        return max(self._all, key=lambda row: row.bits, default=None)

    @property
    def frozen(self) -> tuple[VariableReport, ...]:
        return tuple(row for row in self.others if row.frozen)

    @property
    def _all(self) -> tuple[VariableReport, ...]:
        return (*self.rows, *self.others)

    def _table(self) -> Table:
        return Table(
            head=("kernel", *_HEAD),
            rows=[(row.path, "×".join(map(str, row.shape)), *_cells([row])) for row in self.rows],
            totals=[("all kernels", "", *_cells(self.rows)), ("all else", "", *_cells(self.others))],
            notes=tuple(self._summary()),
        )

    def _summary(self) -> Iterator[str]:
        size = f"{self.dense_bits / 8000:,.1f} kB dense, {self.bits / 8000:,.1f} kB packed"
        if self.gzip_bits is not None:
            size += f", {self.gzip_bits / 8000:,.1f} kB by gzip"
        if self.file_bits is not None:
            rest = (self.file_bits - self.bits) / 8000
            size += f"; the SavedModel {self.file_bits / 8000:,.1f} kB, "
            size += f"with {rest:,.1f} kB of graph, warm-up requests and files beside it"
        yield size
        if self.bits and self.largest:
            share = f"{100 * self.largest.bits / self.bits:.0f} %"
            where = "" if self.largest in self.rows else ', in "all else"'
            yield f"{share} of what is packed: {self.largest.path}{where}"
        if self.macs:
            known = "known " if self.unknown_macs else ""
            left = f"{self.remaining_macs:,} by weights that are left"
            yield f"{self.macs:,} {known}multiply-adds an example, {left}"
        if self.rows and self.kept == self.weights and all(r.bits >= r.dense_bits for r in self.rows):
            yield "No kernel has zeros, and none is smaller packed."
        for title, paths in (
            ("Left out, as not trainable", [row.path for row in self.frozen]),
            ("Multiply-adds not known", self.unknown_macs),
            ("Not finite", [row.path for row in self._all if not row.finite]),
        ):
            if paths:
                yield f"{title}: {listed(paths)}"

    def to_json(self) -> str:
        """Return the report as JSON.

        Returns:
            String: a JSON object with `rows` and `others`, which have the attributes of each
            `VariableReport`, and `totals`, which has those of the whole.

        Example:

        ```python
        totals = json.loads(lc_keras.report(model).to_json())["totals"]
        ```
        """
        names = (
            "weights kept density dense_bits bits gzip_bits macs remaining_macs macs_density unknown_macs "
            "attention_macs file_bits"
        ).split()
        totals: dict[str, object] = {name: getattr(self, name) for name in names}
        totals["largest"] = self.largest.path if self.largest else None
        content = {
            "rows": [{**asdict(row), "density": row.density} for row in self.rows],
            "others": [{**asdict(row), "density": row.density} for row in self.others],
            "totals": totals,
        }
        return json.dumps(content, indent=2)

    @property
    def _height(self) -> float:
        return 1.2 + 0.35 * len(self.rows)

    def _draw(self, ax: "Axes") -> None:
        positions = range(len(self.rows))
        bars = ax.barh(positions, [100 * row.density for row in self.rows])
        ax.bar_label(bars, [f"{100 * r.density:.3g} % of {r.weights:,}" for r in self.rows], padding=3)
        ax.set_yticks(positions, [row.path for row in self.rows])
        ax.invert_yaxis()
        ax.set_xlim(0, 135)
        ax.set_xticks(range(0, 101, 20))
        ax.set_xlabel(f"kept, % of a kernel's weights ({100 * self.density:.3g} % of all)")


def _cells(rows: Sequence[VariableReport]) -> tuple[str | Bar, ...]:
    """Return the cells of a table row that sums up some variables."""
    kept, weights = (sum(getattr(row, name) for row in rows) for name in ("kept", "weights"))
    density = Bar(f"{100 * kept / weights:.2f} %", kept / weights) if weights else ""
    sizes = (_sum(getattr(row, f"{kind}bits") for row in rows) for kind in ("dense_", "", "gzip_"))
    multiplied = (_sum(getattr(row, name) for row in rows) for name in ("macs", "remaining_macs"))
    return (
        f"{kept:,}",
        density,
        *(_short(None if size is None else size // 8) for size in sizes),
        *map(_short, multiplied),
    )


def _sum(values: Iterable[int | None]) -> int | None:
    total = 0
    for value in values:
        if value is None:
            return None
        total += value
    return total


def _density(counts: VariableReport | PruningReport) -> float:
    # From nothing, nothing was removed.
    return counts.kept / counts.weights if counts.weights else 1.0


def _short(number: float | None) -> str:
    if number is None:
        return "-"
    for unit in ("", "k", "M", "G"):
        if number < 999.5:
            return f"{number:.3g}{unit}"
        number /= 1000
    return f"{number:.3g}T"
