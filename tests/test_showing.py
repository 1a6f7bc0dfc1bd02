import builtins
import sys

import pytest

from lc_keras.showing import Bar, Shown, Table, new_axes, show

TABLE = Table(
    head=("layer [red]", "kept"),
    rows=[("a<b>" * 40, Bar("12 %", 0.125)), ("c", "7")],
    totals=[("all", Bar("19", 1.0))],
    notes=("one & two", "[bold]three"),
)


class Result(Shown):
    def _table(self):
        return TABLE


def test_a_table_in_a_pipe_is_plain_and_loses_nothing(capsys):
    text = str(Result())
    show(Result())
    assert capsys.readouterr().out == text + "\n"
    assert "\x1b" not in text and max(map(len, text.splitlines())) <= 100
    assert text.endswith("one & two\n[bold]three") and "layer [red]" in text
    assert "".join(line.split("  ")[0] for line in text.splitlines()[2:5]).startswith("a<b>" * 40)


def test_a_table_in_a_terminal_has_its_width(monkeypatch, capsys):
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    monkeypatch.setenv("COLUMNS", "60")
    monkeypatch.setenv("TERM", "xterm")
    show(Result())
    printed = capsys.readouterr().out
    assert "\x1b[1m" in printed and max(map(len, printed.splitlines()[2:])) <= 60


def test_a_table_in_a_notebook_has_bars_and_no_markup_of_its_cells():
    shown = Result()._repr_html_()
    assert "a&lt;b&gt;" in shown and "a<b>" not in shown and "one &amp; two" in shown
    assert shown.count("linear-gradient") == 2 and "12.5%, transparent 12.5%" in shown
    assert shown.count("<tr") == 4 and shown.count("border-top") == 1


def test_text_is_text_in_a_notebook_too(monkeypatch):
    plain = str(Result())
    # What rich looks for.
    shell = type("ZMQInteractiveShell", (), {})
    monkeypatch.setattr(builtins, "get_ipython", shell, raising=False)
    assert str(Result()) == plain != ""


def test_a_figure_is_a_picture_in_a_notebook():
    pytest.importorskip("matplotlib")
    axes = new_axes(2, rows=1, columns=2)
    assert axes.shape == (2,)
    assert axes[0].figure._repr_png_().startswith(b"\x89PNG")
