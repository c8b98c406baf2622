"""Tables: fitted to a terminal for people, tab-separated for programs."""

from __future__ import annotations

import io

import pytest
from rich.text import Text

from builder.tables import write_rows

NAMES = ("model_id", "title", "n_filters", "share", "robust", "ratios", "source")
ROWS = [
    ("cifar10-robust-a", "One\ttab and\na break", 1200, 0.1 + 0.2, True, [0.5, 0.25], None),
    ("cifar10-robust-b", "[red]no markup[/red]", 7, None, False, [], "https://example.org/"),
]


class Terminal(io.StringIO):
    """What a terminal shows: text that says it is one; its width is COLUMNS."""

    def isatty(self) -> bool:
        return True


def shown(width: int, monkeypatch: pytest.MonkeyPatch, **options: int) -> tuple[list[str], str]:
    monkeypatch.setenv("COLUMNS", str(width))
    out = Terminal()
    said = write_rows(out, NAMES, ROWS, **options)
    return Text.from_ansi(out.getvalue()).plain.splitlines(), said


def test_a_pipe_gets_every_row_column_and_digit_one_line_each():
    out = io.StringIO()
    assert write_rows(out, NAMES, iter(ROWS), limit=1) == ""
    lines = [line.split("\t") for line in out.getvalue().split("\n")]
    assert lines == [
        list(NAMES),
        ["cifar10-robust-a", "One tab and a break", "1200", "0.30000000000000004", "true",
         "[0.5, 0.25]", ""],
        ["cifar10-robust-b", "[red]no markup[/red]", "7", "", "false", "[]",
         "https://example.org/"],
        [""],
    ]  # fmt: skip


def test_a_wide_terminal_shows_all_of_it_numbers_flush_right(monkeypatch: pytest.MonkeyPatch):
    lines, said = shown(200, monkeypatch)
    assert said == "" and len(lines) == 3
    assert [line.rstrip() for line in lines] == [
        "model_id          title                 n_filters  share  robust  ratios       source",
        "cifar10-robust-a  One tab and a break        1200    0.3  true    [0.5, 0.25]",
        "cifar10-robust-b  [red]no markup[/red]          7         false   []           "
        "https://example.org/",
    ]


@pytest.mark.parametrize("width", [80, 40, 24, 10])
def test_a_narrow_terminal_says_how_many_columns_it_hides(
    width: int, monkeypatch: pytest.MonkeyPatch
):
    lines, said = shown(width, monkeypatch)
    assert all(len(line) <= width for line in lines), lines
    assert len(lines) == 3, "a row takes one line"
    assert "of 7 columns do not fit" in said
    assert lines[0].startswith("model_id"[: max(1, width - 8)])


def test_a_terminal_shows_the_first_rows_and_says_so(monkeypatch: pytest.MonkeyPatch):
    lines, said = shown(200, monkeypatch, limit=1)
    assert len(lines) == 2 and said == "the first 1 rows"


def test_a_cell_cannot_move_the_cursor_or_take_the_whole_screen(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("COLUMNS", "200")
    out = Terminal()
    write_rows(out, ("name", "text"), [("\x1b[2J\x07evil", "x" * 500), ("网络网络", "y")])
    assert "\x1b[2J" not in out.getvalue() and "\x07" not in out.getvalue()
    assert out.getvalue().count("x") <= 45


def test_no_row_is_a_line_of_names(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("COLUMNS", "80")
    for out in (io.StringIO(), Terminal()):
        assert write_rows(out, ("a", "b"), []) == ""
        assert len(out.getvalue().splitlines()) == 1
