"""What the page of a trace is made of: the story of each run, and what became of each node."""

from __future__ import annotations

import json

import pytest
from viewer.made_traces import as_lines, drafted_run

import outlay
from outlay.errors import UsageError
from outlay.testing import tiny_lm
from outlay.viewer.trace_file import read_trace
from outlay.viewer.trace_page import COMMITTED, OPEN, PROMPT, PRUNED, TEXT, page_data


def traced(folder, method, **options):
    """Runs a method on the tiny model; returns its result, its prompt's tokens and the data of its trace's page."""
    lm, events = tiny_lm(), []
    result = lm.generate("Once Ω", method=method, max_tokens=12, ignore_eos=True, trace=events.append, **options)
    return result, lm.encode("Once Ω"), data_of(folder, as_lines(events))


def data_of(folder, lines):
    (folder / "trace.jsonl").write_text(lines, encoding="utf-8")
    return page_data(read_trace(folder / "trace.jsonl"), "trace.jsonl")


@pytest.mark.parametrize(
    ("method", "options"),
    [("greedy", {}), ("beam:width=3", {}), ("best_of:n=3", {"temperature": 1.0}), ("sample", {"temperature": 1.0})],
)
def test_the_path_of_the_text_holds_the_tokens_that_the_run_returned(tmp_path, method, options):
    result, prompt, data = traced(tmp_path, method, **options)
    (run,) = data["runs"]
    assert [run["nodes"]["token"][node] for node in run["path"]] == result.tokens
    assert run["nodes"]["token"][: run["prompt"]] == prompt
    assert sum(run["passes"]["rows"]) == result.ledger.target_tokens
    assert run["nodes"]["fate"].count(PROMPT) == len(prompt)
    assert run["nodes"]["fate"].count(TEXT) == len(result.tokens)
    kept = {"best_of:n=3": 2 * len(result.tokens)}
    assert run["nodes"]["fate"].count(COMMITTED) == kept.get(method, 0), "the texts that were not the best"
    assert (run["nodes"]["fate"].count(PRUNED) > 0) == method.startswith("beam")


def test_a_memory_is_told_with_the_rows_that_the_encoder_read(tmp_path):
    (run,) = data_of(tmp_path, as_lines(drafted_run(nodes=20, memory=415)))["runs"]
    assert run["memory"] == {"rows": 415, "kind": "sound", "bytes": 640 * 415}
    assert (run["passes"]["model"][0], run["passes"]["rows"][0], run["passes"]["nodes"][0]) == ("encoder", 415, [])
    assert data_of(tmp_path, as_lines(drafted_run(nodes=20)))["runs"][0]["memory"] is None


def test_of_two_nodes_with_the_same_token_the_one_that_was_kept_is_in_the_text(tmp_path):
    twins = [{"node": n, "parent": 1, "token": 7, "text": "a", "position": 1} for n in (2, 3)]
    events = [
        {"event": "start", "time": 0, "method": "made", "model": "tiny", "prompt": [1]},
        {"event": "grow", "time": 0, "nodes": [{"node": 1, "parent": None, "token": 1, "text": "x", "position": 0}]},
        {"event": "grow", "time": 1, "nodes": twins},
        {"event": "free", "time": 2, "nodes": [2]},
        {"event": "keep", "time": 2, "nodes": [3]},
        {"event": "finish", "time": 3, "reason": "length", "tokens": [7]},
    ]
    (run,) = data_of(tmp_path, as_lines(events))["runs"]
    assert run["path"] == [2], "the third node that grew"
    assert run["nodes"]["fate"] == [PROMPT, PRUNED, TEXT]


def test_spellings_join_to_the_text(tmp_path):
    result, _, data = traced(tmp_path, "greedy")
    (run,) = data["runs"]
    spelled = [data["spellings"][run["nodes"]["spelling"][node]] for node in run["path"]]
    written = b"".join(bytes.fromhex(each["bytes"]) if "bytes" in each else each["text"].encode() for each in spelled)
    assert written.decode(errors="replace") == result.text
    omega = [data["spellings"][number] for number in run["nodes"]["spelling"][5:7]]
    assert omega == [{"bytes": "ce"}, {"bytes": "a9"}], "Ω is two tokens of one byte each"


def test_special_tokens_have_their_names(tmp_path):
    lm, events = tiny_lm(), []
    lm.generate("Once", max_tokens=3, logit_bias={256: 1e9}, trace=events.append)
    data = data_of(tmp_path, as_lines(events))
    assert {"name": "<end>"} in data["spellings"]


def test_runs_that_share_a_pass_give_it_the_same_number(tmp_path):
    lm, events = tiny_lm(), ([], [])
    with lm.engine.together():
        handles = [lm.submit(f"Prompt {run}", max_tokens=5, trace=events[run].append) for run in (0, 1)]
    for handle in handles:
        handle.result(60)
    lines = as_lines([{"run": run, **event} for run in (0, 1) for event in events[run]])
    first, second = data_of(tmp_path, lines)["runs"]
    assert first["passes"]["number"] == second["passes"]["number"]
    assert set(first["passes"]["runs"]) == {2}


def test_what_is_undecided_when_a_trace_breaks_off_is_open(tmp_path):
    lines = as_lines(drafted_run(nodes=60)).splitlines(keepends=True)
    last = max(i for i, line in enumerate(lines) if '"free"' in line)
    data = data_of(tmp_path, "".join(lines[:last]) + lines[last][:20])
    (run,) = data["runs"]
    assert data["cut"] == last + 1
    assert run["reason"] is None
    assert OPEN in run["nodes"]["fate"]
    before = [json.loads(line) for line in lines[:last]]
    numbers = [row["node"] for event in before if event["event"] == "grow" for row in event["nodes"]]
    kept = [event["nodes"] for event in before if event["event"] == "keep" and event["nodes"]]
    assert numbers[run["path"][-1]] == kept[-1][-1], "the text ends with what was kept last"


def test_events_that_are_not_known_are_counted_and_left_out(tmp_path):
    events = drafted_run(nodes=30)
    events.insert(5, {"run": 0, "event": "sketch", "time": 0.01, "filled": 3})
    (run,) = data_of(tmp_path, as_lines(events))["runs"]
    assert run["unknown"] == {"sketch": 1}


def test_a_mark_that_json_lacks_becomes_a_word(tmp_path):
    events = drafted_run(nodes=30)
    events.append({"run": 0, "event": "mark", "node": 1, "time": 9, "score": float("-inf")})
    (run,) = data_of(tmp_path, as_lines(events))["runs"]
    assert "-inf" in run["marks"]["score"]["values"]


START = '{"event": "start", "time": 0, "method": "m", "model": "t", "prompt": []}\n'


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("", "is empty; a trace is what `outlay run PROMPT --trace FILE` writes"),
        ("\n\n", "is empty"),
        ("# Notes\n", "line 1 of .* is not JSON"),
        ('{"prompt": "Hi"}\n', "line 1 of .* is not an event of a run"),
        ("[1, 2]\n", "line 1 of .* is not an event of a run"),
        (START + "{\n" + START, "line 2 of .* is not JSON"),
        ('\n{"event": "start", "time": 0}\n', "line 2 of .*: the 'start' event lacks 'method'"),
        (START + '{"event": "keep", "time": 0, "nodes": [7]}\n', "line 2 of .*: the 'keep' event lacks 7"),
        (START + '{"event": "grow", "time": "soon", "nodes": []}\n', "line 2 of .*: the 'grow' event is not as traces"),
    ],
)
def test_what_is_no_trace_is_refused_by_its_line(tmp_path, text, complaint):
    (tmp_path / "file").write_text(text)
    with pytest.raises(UsageError, match=complaint):
        read_trace(tmp_path / "file")


def test_a_canvas_is_the_chain_of_its_positions_and_the_proposals_of_its_rounds(tmp_path):
    events = []
    lm = outlay.load("exact-phrase")
    result = lm.generate("^ab", method="ete:block=8", max_tokens=24, trace=events.append)
    (run,) = data_of(tmp_path, as_lines(events))["runs"]
    assert [run["nodes"]["token"][node] for node in run["path"]] == result.tokens
    assert run["prompt"] == run["nodes"]["fate"].count(PROMPT) == 3
    origins = [run["origins"][run["nodes"]["origin"][node]] for node in run["path"]]
    assert origins == [f"round {number}" for number in result.facts["filled_in_round"]]
    assert len(run["canvas"]["rounds"]) == result.ledger.rounds
    assert [sum(each["filled"]) for each in run["canvas"]["rounds"]] == [
        result.facts["filled_in_round"].count(number) for number in range(1, result.ledger.rounds + 1)
    ]
    assert sum(run["passes"]["rows"]) == result.ledger.target_tokens


def test_a_canvas_that_is_cut_off_shows_its_text_up_to_the_first_gap(tmp_path):
    cell = {"token": 5, "text": "x", "confidence": 0.5}
    events = [
        {"event": "start", "time": 0, "method": "made", "model": "tiny", "prompt": [1]},
        {"event": "canvas", "time": 0, "begin": 1, "length": 4, "prompt": [{"position": 0, "token": 1, "text": "^"}]},
        {"event": "fill", "time": 1, "round": 1, "cells": [
            {"position": place, "filled": place != 2, **cell} for place in (1, 2, 3)
        ]},
    ]  # fmt: skip
    (run,) = data_of(tmp_path, as_lines(events))["runs"]
    assert (run["path"], run["reason"]) == ([1], None)
    with pytest.raises(UsageError, match=r"line 2 .* the 'fill' event .* no canvas before it"):
        data_of(tmp_path, as_lines([events[0], events[2]]))
