"""`outlay run` with a model that fills masks on a terminal: its canvas fills in place."""

from __future__ import annotations

import os
import re

import pytest
from cli.test_terminal import Screen

from outlay.cli import canvas_view
from outlay.cli.canvas_view import CanvasView, window, wrapped
from outlay.engine.session import TextChunk

WORDS = ("run", "^", "--model", "exact-phrase", "--max-tokens", "24", "--method", "threshold:block=8", "--quiet")
COLOUR = re.compile(r"\x1b\[\d*m")


@pytest.fixture(autouse=True)
def plain_environment(monkeypatch):
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("COLUMNS", "20")
    monkeypatch.setenv("LINES", "6")
    monkeypatch.setattr(canvas_view, "REDRAW", 0)


def fill(number, *cells):
    rows = [{"position": place, "token": 1, "confidence": 0.5, "filled": True, **spelling} for place, spelling in cells]
    return {"event": "fill", "round": number, "cells": rows}


def test_each_round_is_drawn_in_place_of_the_one_before():
    screen = Screen()
    view = CanvasView(screen)
    view({"event": "canvas", "begin": 3, "length": 4, "prompt": []})
    view(fill(1, (4, {"text": "b"})))
    view({"event": "pass"})
    view(fill(2, (3, {"text": "a"}), (6, {"name": "<end>"})))
    pictures = screen.getvalue().split("\x1b[1A\r\x1b[J")
    assert [COLOUR.sub("", picture) for picture in pictures] == ["░░░░\n", "░b░░\n", "ab░·\n"]
    assert pictures[1] == "\x1b[2m░\x1b[0m\x1b[32mb\x1b[0m\x1b[2m░\x1b[0m\x1b[2m░\x1b[0m\n"
    assert "\x1b[36ma\x1b[0m\x1b[32mb\x1b[0m" in pictures[2], "the second round has a colour of its own"
    view.write([TextChunk("a", "", (1,)), TextChunk("b", "", (1,))])
    assert screen.getvalue().endswith("\x1b[1A\r\x1b[J\x1b[36ma\x1b[0m\x1b[32mb\x1b[0m\n")


def test_nothing_but_a_newline_moves_the_cursor():
    screen = Screen()
    view = CanvasView(screen)
    view({"event": "canvas", "begin": 0, "length": 3, "prompt": []})
    view(fill(1, (0, {"text": "a\x1b[2J\tb"}), (1, {"text": "\n"}), (2, {"bytes": "f09f"})))
    assert COLOUR.sub("", screen.getvalue()).split("\x1b[J")[1] == "a [2J b\n\N{REPLACEMENT CHARACTER}\n"


def test_lines_break_at_the_width_of_the_terminal_and_wide_letters_take_two_columns():
    lines = [["".join(letter for letter, _ in line)] for line in wrapped(iter([(c, 1) for c in "ab漢字e\u0301\nx"]), 4)]
    assert lines == [["ab漢"], ["字e\u0301"], ["x"]]


def test_of_a_long_canvas_the_lines_around_the_first_mask_are_shown():
    lines = [[("x", 1)]] * 6 + [[("░", 0)]] * 4
    assert window(lines, 4) == lines[4:8]
    assert window(lines, 20) == lines
    assert window([[("x", 1)]] * 9, 4) == [[("x", 1)]] * 4


def test_the_text_stands_there_at_the_end_and_elsewhere_it_is_plain(on_a_terminal, outlay):
    status, out, _ = outlay(*WORDS)
    assert status == 0
    assert "\x1b" not in out
    written = on_a_terminal(*WORDS)
    assert "░" in written
    assert COLOUR.sub("", written.rpartition("\x1b[J")[2]).replace("\r", "") == out


def test_a_trace_is_written_beside_it(on_a_terminal, tmp_path):
    trace = tmp_path / "run.jsonl"
    on_a_terminal(*WORDS, "--trace", os.fspath(trace))
    assert '"event": "fill"' in trace.read_text()
