"""`outlay trace`: a page beside the trace, and one line for what is none."""

from __future__ import annotations

import pytest


@pytest.fixture
def trace(outlay, tiny, tmp_path):
    """The trace of two runs, in one file."""
    path = tmp_path / "run.jsonl"
    outlay("run", "--lines", "--model", tiny, "--max-tokens", 4, "--trace", path, stdin=b"One\nTwo\n")
    return path


def test_the_page_lies_beside_the_trace_and_loads_nothing(outlay, trace):
    status, out, err = outlay("trace", trace)
    page = trace.with_suffix(".html")
    assert (status, out, err) == (0, f"{page}\n", "")
    text = page.read_text(encoding="utf-8")
    assert text.count("<!doctype html>") == 1
    assert "default-src 'none'" in text
    assert not any(word in text for word in ("src=", "@import", "url(", "fetch(", "https://"))


def test_the_page_goes_where_it_is_told(outlay, trace, tmp_path):
    status, out, _ = outlay("trace", trace, "-o", tmp_path / "page.html")
    assert (status, out) == (0, f"{tmp_path / 'page.html'}\n")
    assert (tmp_path / "page.html").exists()


def test_a_last_line_that_is_broken_off_is_said(outlay, trace):
    trace.write_text(trace.read_text()[:-30])
    status, _, err = outlay("trace", trace)
    assert status == 0
    assert "is broken off; the page shows what is before it" in err


def test_what_cannot_be_done_is_said_in_a_line(refusal, trace, tmp_path):
    (tmp_path / "notes.txt").write_text("some notes\n")
    for words, status, complaint in (
        (["trace"], 2, "FILE is missing"),
        (["trace", tmp_path / "nowhere"], 2, "can't read"),
        (["trace", tmp_path], 2, "can't read"),
        (["trace", tmp_path / "notes.txt"], 2, "line 1 of"),
        (["trace", trace, "-o", trace], 2, "would take the place of the trace"),
        (["trace", trace, "-o", tmp_path / "no" / "page.html"], 1, "can't write"),
    ):
        assert refusal(*words)[0] == status
        assert complaint in refusal(*words)[1]
    assert trace.read_text().startswith('{"run": 0')
