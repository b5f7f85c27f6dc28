"""Colour, tables and progress, on a terminal and off it."""

from __future__ import annotations

import io

import pytest

from outlay.cli import terminal


class Screen(io.StringIO):
    """A terminal that keeps what is written to it."""

    encoding = "utf-8"

    def isatty(self):
        return True


@pytest.fixture(autouse=True)
def plain_environment(monkeypatch):
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("COLUMNS", "80")


def test_colour_is_for_terminals_that_want_it(monkeypatch):
    assert terminal.dim("x", Screen()) == "\x1b[2mx\x1b[0m"
    assert terminal.dim("x", io.StringIO()) == "x"
    monkeypatch.setenv("NO_COLOR", "1")
    assert terminal.dim("x", Screen()) == "x"
    monkeypatch.delenv("NO_COLOR")
    monkeypatch.setenv("TERM", "dumb")
    assert terminal.dim("x", Screen()) == "x"


def test_a_table_wraps_its_last_column():
    text = terminal.table(("name", "what"), [("a", "word " * 30), ("bcdef", "short")], io.StringIO())
    lines = text.splitlines()
    assert lines[0] == "name   what"
    assert lines[1].startswith("a      word word")
    assert lines[2].startswith("       word")
    assert lines[-1] == "bcdef  short"
    assert max(map(len, lines)) <= 80


@pytest.mark.parametrize(
    ("amount", "text"), [(0, "0 B"), (999, "999 B"), (1000, "1 kB"), (98_362_432, "98.4 MB"), (135e6, "135 MB")]
)
def test_sizes(amount, text):
    assert terminal.size(amount) == text


def test_a_bar_grows_on_one_line_and_is_taken_away(monkeypatch):
    monkeypatch.setattr(terminal, "REDRAW", 0)
    screen = Screen()
    with terminal.Progress(screen) as progress:
        for done in range(5):
            progress("loading", done, 4)
    pictures = screen.getvalue().split("\r\x1b[K")
    assert "\n" not in screen.getvalue()
    assert pictures[0] == pictures[-1] == ""
    assert pictures[1].endswith("  0%")
    assert pictures[5].endswith("100%")
    assert pictures[3].partition("\x1b[2m")[0] == "loading " + 20 * "━"


def test_a_bar_is_not_redrawn_for_every_byte():
    screen = Screen()
    with terminal.Progress(screen) as progress:
        for done in range(10_000):
            progress("loading", done, 10_000)
    assert screen.getvalue().count("loading") < 20


def test_a_fetch_says_how_much(monkeypatch):
    screen = Screen()
    with terminal.Progress(screen) as progress:
        progress("fetching it", 20_000_000, 92_000_000)
    assert "22%  20 MB of 92 MB" in screen.getvalue()


def test_a_bar_fits_a_narrow_terminal(monkeypatch):
    monkeypatch.setenv("COLUMNS", "20")
    monkeypatch.setenv("NO_COLOR", "1")
    screen = Screen()
    with terminal.Progress(screen) as progress:
        progress("fetching something with a long name", 1_000_000, 2_000_000)
    assert all(len(picture) < 20 for picture in screen.getvalue().split("\r\x1b[K"))


def test_off_a_terminal_a_fetch_gets_one_line_and_loading_none():
    stream = io.StringIO()
    with terminal.Progress(stream) as progress:
        for done in range(5):
            progress("fetching it", done, 92_000_000)
        progress("loading", 1, 2)
    assert stream.getvalue() == "outlay: fetching it (92 MB)\n"


def test_quiet_shows_nothing():
    screen = Screen()
    with terminal.Progress(screen, quiet=True) as progress:
        progress("fetching it", 1, 2)
    assert screen.getvalue() == ""


def test_on_a_terminal_there_is_a_bar_then_the_text_a_rule_and_the_ledger(start, on_a_terminal, tiny):
    written = on_a_terminal("run", "Hi", "--model", tiny, "--max-tokens", 5, start=start)
    before, _, after = written.rpartition("\r\x1b[K")
    assert "starting" in before
    assert "loading ━" in before
    text, rule, *ledger = after.splitlines()
    assert text.isalpha()
    assert rule == "\x1b[2m" + 60 * "─" + "\x1b[0m"
    assert ledger[0] == "tiny · auto · finished: length"
    assert ledger[1].startswith("\x1b[2mtarget passes")


def test_no_color_leaves_the_bar_and_takes_the_colour(on_a_terminal, tiny, monkeypatch):
    monkeypatch.setenv("NO_COLOR", "1")
    written = on_a_terminal("run", "Hi", "--model", tiny, "--max-tokens", 5)
    assert "loading ━" in written
    assert "\x1b[2m" not in written
