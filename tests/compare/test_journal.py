"""The journal: what is in it counts once, whatever happened to the process that wrote it."""

from __future__ import annotations

import json
from contextlib import closing

import pytest

from outlay.compare.journal import Journal, lines
from outlay.errors import FailureError


def run(prompt=0, repeat=0, text="abc", method="greedy"):
    return {"method": method, "budget": "", "prompt": prompt, "seed": 0, "repeat": repeat, "text": text,
            "tokens": list(text.encode()), "pieces": list(text), "origins": [], "error": None}  # fmt: skip


@pytest.fixture
def path(tmp_path):
    return tmp_path / "runs.jsonl"


def fill(path, *rows):
    with closing(Journal(path)) as journal:
        journal.add(rows)


def test_runs_are_read_back(path):
    fill(path, run(0), run(1))
    assert list(lines(path)) == [run(0), run(1)]
    with closing(Journal(path)) as journal:
        assert journal.done == {("greedy", "", 0, 0, 0), ("greedy", "", 1, 0, 0)}


def test_a_run_counts_once(path):
    fill(path, run(0), run(0, text="other"))
    fill(path, run(0), run(1))
    assert list(lines(path)) == [run(0), run(1)]


@pytest.mark.parametrize("cut", [1, 7, 50])
def test_a_half_written_last_line_is_cut_off_and_its_run_done_again(path, cut):
    fill(path, run(0), run(1))
    path.write_bytes(path.read_bytes()[:-cut])
    assert list(lines(path)) == [run(0)]
    fill(path, run(1), run(2))
    assert list(lines(path)) == [run(0), run(1), run(2)]


def test_a_repeat_says_whether_it_wrote_the_same(path):
    fill(path, run(repeat=0), run(repeat=1), run(repeat=2, text="abd"))
    fill(path, run(repeat=3))
    _, second, third, fourth = lines(path)
    assert second["same"]
    assert fourth["same"]
    assert "text" not in second
    assert third == run(repeat=2, text="abd")


def test_a_damaged_line_is_named(path):
    fill(path, run(0), run(1))
    whole = path.read_text().splitlines()
    path.write_text("\n".join([whole[0], "{oops", whole[1]]) + "\n")
    with pytest.raises(FailureError, match=r"line 2 of .*runs.jsonl is damaged"):
        Journal(path)


def test_text_of_any_language_is_written_as_it_is(path):
    fill(path, run(text="Ω漢字"))
    assert "Ω漢字" in path.read_text()
    assert json.loads(path.read_text())["text"] == "Ω漢字"
