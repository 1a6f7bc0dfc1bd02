"""Show results to people: tables in a terminal, a pipe or a notebook, and pictures.

This module knows nothing of models. Results with a table derive from `Shown`, those that also have a picture
from `Drawn`.
"""

import html
import io
import os
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple, cast

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from rich.console import Console, ConsoleOptions, RenderableType

# The width of a table that is not shown in a terminal.
_WIDTH = 100


class Bar(NamedTuple):
    """A table cell that a notebook shows with a bar.

    Attributes:
        text: String.
        part: Float, the length of the bar, from 0 to 1.
    """

    text: str
    part: float

    def __str__(self) -> str:
        return self.text


Row = Sequence[str | Bar]


@dataclass(frozen=True)
class Table:
    """Rows of cells under a head. The first column is aligned left, the others right.

    Attributes:
        head: Sequence of strings.
        rows: Sequence of rows, each a sequence of strings and bars.
        totals: Sequence of rows that are set apart below.
        notes: Sequence of strings, the lines of text below the table.
    """

    head: Sequence[str]
    rows: Sequence[Row]
    totals: Sequence[Row] = ()
    notes: Sequence[str] = ()


class Shown:
    """Base class of results that are shown as a table. A subclass overrides `_table`."""

    def _table(self) -> Table:
        raise NotImplementedError

    def __rich_console__(self, console: "Console", options: "ConsoleOptions") -> "Iterator[RenderableType]":
        from rich import box
        from rich.table import Table as RichTable
        from rich.text import Text

        table = self._table()
        if table.head:
            drawn = RichTable(box=box.SIMPLE, show_edge=False, padding=(0, 1, 0, 0))
            for i, title in enumerate(table.head):
                drawn.add_column(
                    Text(title), justify="right" if i else "left", overflow="fold", no_wrap=i > 0
                )
            for part in (table.rows, table.totals):
                for row in part:
                    drawn.add_row(*(Text(str(cell)) for cell in row))
                drawn.add_section()
            yield drawn
        yield Text("\n".join(table.notes))

    def __str__(self) -> str:
        from rich.console import Console

        # In a notebook it would write into the notebook.
        console = Console(file=io.StringIO(), width=_WIDTH, color_system=None, force_jupyter=False)
        console.print(self)
        return "\n".join(line.rstrip() for line in console.file.getvalue().splitlines())  # type: ignore[attr-defined]

    def _repr_html_(self) -> str:
        table = self._table()
        rows = "".join(map(_html_row, table.rows)) + "".join(
            _html_row(row, "border-top: 1px solid" if i == 0 else "") for i, row in enumerate(table.totals)
        )
        head = "".join(
            f'<th style="text-align: {"right" if i else "left"}">{html.escape(title)}</th>'
            for i, title in enumerate(table.head)
        )
        shown = f"<table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table>" if table.head else ""
        return shown + "".join(f"<div>{html.escape(note)}</div>" for note in table.notes)


class Drawn(Shown):
    """Base class of results that can also be drawn. A subclass overrides `_height` and `_draw`."""

    @property
    def _height(self) -> float:
        """The height of a new figure, in inches."""
        raise NotImplementedError

    def _draw(self, ax: "Axes") -> None:
        raise NotImplementedError

    def plot(self, path: str | os.PathLike[str] | None = None, ax: "Axes | None" = None) -> "Figure":
        """Draw the result; its class says how.

        Args:
            path: String or path-like, the image to write, or `None` (default).
            ax: Matplotlib axes to draw in. `None` (default): those of a new figure.

        Returns:
            The matplotlib figure.

        Raises:
            ImportError: If matplotlib is not installed.
        """
        if ax is None:
            ax = cast("Axes", new_axes(self._height))
        self._draw(ax)
        figure = cast("Figure", ax.figure)
        if path is not None:
            figure.savefig(path)
        return figure


def _html_row(row: Row, style: str = "") -> str:
    cells = ""
    for i, cell in enumerate(row):
        look = f"text-align: {'right' if i else 'left'}"
        if isinstance(cell, Bar):
            end = f"{100 * cell.part:.1f}%"
            look += f"; background: linear-gradient(to right, #3f51b540 {end}, transparent {end})"
        cells += f'<td style="{look}">{html.escape(str(cell))}</td>'
    return f'<tr style="{style}">{cells}</tr>'


def listed(names: Sequence[str], between: str = ", ") -> str:
    """Return the first three names as text, and how many more there are."""
    more = [f"and {len(names) - 3} more"] if len(names) > 3 else []
    return between.join([*names[:3], *more])


def show(result: Shown) -> None:
    """Print a result: in the width and style of the terminal, or as plain text into a pipe."""
    from rich.console import Console

    if sys.stdout.isatty():
        Console().print(result)
    else:
        print(result)


def new_axes(height: float, width: float = 7, rows: int = 1, columns: int = 1) -> Any:
    """Return the axes of a new matplotlib figure, which a notebook shows if it is the value of a cell.

    Args:
        height: Float, in inches.
        width: Float, in inches.
        rows: Int, rows of axes.
        columns: Int, columns of axes.

    Returns:
        Matplotlib axes, or an array of axes if there are several rows or columns.

    Raises:
        ImportError: If matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError(
            'A plot needs matplotlib, which is not installed: pip install "lc_keras[plot]".'
        ) from error

    class Picture(Figure):
        """A figure that Jupyter shows like those of pyplot."""

        def _repr_png_(self) -> bytes:
            content = io.BytesIO()
            self.savefig(content, format="png")
            return content.getvalue()

    return Picture(figsize=(width, height), layout="constrained").subplots(rows, columns)
