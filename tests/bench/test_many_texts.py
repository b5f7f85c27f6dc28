"""The hydragen suite: both sides write the same texts and hold what the closed forms say; the report tells all."""

from __future__ import annotations

import json
from argparse import ArgumentParser
from pathlib import Path

import pytest

from outlay import UsageError
from outlay.bench.hydragen.ours import Ours
from outlay.bench.hydragen.peers import IkLlamaCppCopies, TorchAttention, TransformersCopies
from outlay.bench.hydragen.plot import lines, write_plot
from outlay.bench.hydragen.report import TABLES, report, texts
from outlay.bench.hydragen.suite import SUITE, participants
from outlay.bench.hydragen.tasks import AttentionAlone, Planting, Sharing, Texts, decode_values
from outlay.bench.interleave import Measurements
from outlay.engine.sharing import ROWS
from outlay.models import hub
from outlay.tree.cache import KV_DTYPES

MODEL = "outlay/tiny-reasoner"
RESULT = Path(__file__).parents[2] / "benchmarks" / "results" / "hydragen.json"


def settings(*words):
    parser = ArgumentParser()
    SUITE.add_arguments(parser)
    return SUITE.settings(parser.parse_args(words))


@pytest.fixture(scope="module")
def sides():
    found = {kv: [Ours(MODEL, kv), Ours(MODEL, kv, copies=True)] for kv in KV_DTYPES}
    for side in (each for pair in found.values() for each in pair):
        side.load()
    return found


@pytest.mark.parametrize("kv", KV_DTYPES)
def test_both_sides_write_the_same_texts_and_hold_what_the_closed_forms_say(sides, kv):
    task = Texts(rows=5, prefix=40, new=6)
    shared, copies = (side.measure(task) for side in sides[kv])
    assert shared["tokens"] == copies["tokens"]
    assert shared["alone"]
    assert shared["held_bytes"] * 5 * (40 + 5) == copies["held_bytes"] * (40 + 5 * 5)
    assert shared["tokens_per_second"] > 0


def test_only_the_steps_after_the_first_are_counted():
    task = Texts(rows=3, prefix=9, new=4)
    times = [0.0, 50.0, 51.0, 53.0, 57.0]  # the prompt, and four steps, of which two lie between three
    assert decode_values(times, task)["step_ms"] == pytest.approx(1000 * (57 - 51) / 2)
    assert decode_values(times, task)["tokens_per_second"] == pytest.approx(3 / 3)


def test_the_other_tasks_give_what_the_report_shows(sides):
    ours = sides["bfloat16"][0]
    assert ours.measure(AttentionAlone(3, 50))["ms"] > 0
    assert set(ours.measure(Planting(60, 2))) == {"held_ms", "found_ms", "fork_ms"}
    assert list(ours.measure(Sharing())) == [str(rows) for rows in ROWS]
    assert not sides["bfloat16"][1].takes(Sharing())
    torchs = TorchAttention(MODEL, "bfloat16")
    torchs.load()
    assert torchs.measure(AttentionAlone(3, 50))["ms"] > 0


def test_transformers_decodes_after_a_cache_that_is_repeated():
    pytest.importorskip("transformers")
    peer = TransformersCopies(str(hub.resolve(MODEL)), "float32", 20)
    peer.load()
    values = peer.measure(Texts(rows=3, prefix=20, new=5))
    config = peer._model.config
    per_token = 2 * 4 * config.num_hidden_layers * config.num_key_value_heads * config.head_dim
    assert values["held_bytes"] == 3 * (20 + 4) * per_token
    assert values["tokens_per_second"] > 0


def test_a_fork_of_llama_cpp_copies_its_sequences(default_path):
    pytest.importorskip("ik_llama_cpp")
    peer = IkLlamaCppCopies(default_path)
    peer.load()
    assert peer.measure(Texts(rows=3, prefix=20, new=5))["tokens_per_second"] > 0


def test_every_peer_takes_part_by_name():
    for name in ("llama-cpp-python", "ik-llama-cpp-python"):
        everyone = [each.name for each in participants(settings("--peers", name), hub.resolve(MODEL))]
        assert name in everyone


def test_the_picture_has_a_line_for_each_side_and_number_of_texts(tmp_path):
    found = json.loads(RESULT.read_text())
    sides = lines(found)
    assert {name.rpartition(", ")[0] for name in sides} == {
        each["name"] for each in found["values"] if each["task"] == "Texts" and any(each["values"])
    }
    for name, points in sides.items():
        assert [prefix for prefix, _ in points] == sorted({prefix for prefix, _ in points}), name
    pytest.importorskip("matplotlib")
    write_plot(found, tmp_path / "hydragen.svg")
    assert "tokens of the prefix" in (tmp_path / "hydragen.svg").read_text()


def measured(monkeypatch, answers):
    def interleave(everyone, tasks, rounds, **_):
        found = Measurements(failures={"llama-cpp-python": "not installed"})
        for each in everyone:
            if each.name == "llama-cpp-python":
                continue
            found.facts[each.name] = {}
            for task in tasks:
                if each.takes(task):
                    found.values[each.name, task] = [answers(each, task)] * rounds
        return found

    monkeypatch.setattr("outlay.bench.hydragen.suite.interleave", interleave)
    chosen = settings("--prefix", "8,16,32", "--batch", "4", "--rounds", "2")
    found = json.loads(json.dumps(SUITE.measure(chosen, "m.gguf", lambda *_: None)))
    return found | {"machine": {"model": "m.gguf", "processor": "p", "cores": 2, "date": "d", "versions": {}}}


def answers(each, task):
    slow = 3.0 if "copy" in each.name else 1.0
    length = getattr(task, "prefix", 0)
    if isinstance(task, Texts):
        step = slow * (1 + slow * length / 32)
        values = {"tokens_per_second": 4000 / step, "step_ms": step, "held_bytes": slow * 1e6, "tokens": 7.0}
        return values if "copy" in each.name else values | {"alone": float("int8" not in each.name)}
    if isinstance(task, AttentionAlone):
        return {"ms": 6.0 if "torch" in each.name else 1.0}
    if isinstance(task, Planting):
        return {"held_ms": 0.1, "found_ms": 0.4, "fork_ms": 0.01}
    return {str(rows): float(1 << 62 if rows == 2 else 64) for rows in ROWS}


def test_the_report_compares_side_by_side_and_names_who_is_missing(monkeypatch):
    found = measured(monkeypatch, answers)
    said = report(found)
    for words in (
        "5.00x (5.00-5.00)",  # 3 x (1 + 3 x 16 / 32) over 1 + 16 / 32
        "6.00x (6.00-6.00)",
        "0.70x (0.70-0.70)",  # (1 + 1) / (1 + 1 / 4) over (1 + 3) / (1 + 3 / 4)
        "as alone",
        "1/3.0",
        "yes",
        "never",
        "a token after 32 over one after 8",
    ):
        assert words in said
    assert "llama-cpp-python: not measured: not installed" in said
    ends = {tuple(row[0].split(", ")): row[-2:] for row in texts(found)[1] if row[2] == "16"}
    assert ends["hydragen", "float32"] == ["yes", "yes"]
    assert ends["hydragen", "int8"] == ["yes", "no"]
    assert ends["a copy for each", "int8"] == ["", ""]
    assert SUITE.failure(found) is None
    assert all(table(found).startswith("|") for table in TABLES.values())
    assert SUITE.failure(found | {"failures": {"hydragen, int8": "no memory"}}) == "no memory"


def test_other_formats_than_the_first_are_measured_at_the_middle_prefix_alone():
    chosen = settings("--prefix", "8,16,32", "--peers", "none")
    lengths = {
        each.name: {task.prefix for task in chosen.tasks() if isinstance(task, Texts) and each.takes(task)}
        for each in participants(chosen, "m")
    }
    assert lengths.pop("hydragen, bfloat16") == lengths.pop("a copy for each, bfloat16") == {1, 8, 16, 32}
    assert set(map(frozenset, lengths.values())) == {frozenset({16})}
    assert len(lengths) == 4


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--batch", "1"), "--batch must be 2 or more, not 1"),
        (("--prefix", "a"), "--prefix takes numbers"),
        (("--new", "2"), "--new must be 3 or more"),
        (("--rounds", "0"), "--rounds must be 1 or more"),
        (("--kv", "float8"), "there is no cache format 'float8'"),
        (("--kv", ""), "--kv needs a cache format"),
        (("--peers", "vllm"), "there is no peer 'vllm'"),
    ],
)
def test_what_can_not_be_measured_is_refused(words, message):
    with pytest.raises(UsageError, match=message):
        settings(*words)
