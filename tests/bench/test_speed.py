"""The speed suite: its options, its tasks, its report over an measured made by hand, and our own contender."""

from __future__ import annotations

import argparse
import json
import os
from dataclasses import replace

import pytest
import torch

from outlay import kernels
from outlay.bench.interleave import Measurements
from outlay.bench.speed.busy import busy_cores
from outlay.bench.speed.llamacpp import IkLlamaCpp, LlamaCpp
from outlay.bench.speed.memory import MachineLimit
from outlay.bench.speed.openvino import OpenVino
from outlay.bench.speed.ours import Ours, Stamped, own_ms, products, products_of
from outlay.bench.speed.report import overview, report
from outlay.bench.speed.result import as_dict
from outlay.bench.speed.suite import PEERS, SUITE, participants
from outlay.bench.speed.tasks import (
    Decode,
    Likelihood,
    PassCost,
    PeakProducts,
    Prompt,
    ReadMemory,
    decode_values,
    prompts,
)
from outlay.bench.speed.transformers import Transformers
from outlay.bench.speed.xllamacpp import XLlamaCpp
from outlay.decode.greedy import Greedy
from outlay.errors import UsageError
from outlay.machine import describe
from outlay.score import Score
from outlay.spread import Spread
from outlay.tables import number, table, times
from outlay.testing import tiny_model

MACHINE = {"versions": {"torch": "1"}, "model": "m.gguf", "processor": "p", "cores": 2, "date": "d", "seconds": 9.0}


def settings(*words):
    parser = argparse.ArgumentParser()
    SUITE.add_arguments(parser)
    return SUITE.settings(parser.parse_args(words))


def test_by_default_everything_is_measured_with_one_and_two_threads():
    chosen = settings()
    assert chosen.formats == ("auto", "int8", "bfloat16", "float32", "auto/torch")
    assert chosen.peers == PEERS
    decodes = [task for task in chosen.tasks() if isinstance(task, Decode)]
    assert [(task.batch, task.threads) for task in decodes] == [(1, 1), (4, 1), (16, 1), (1, 2), (4, 2), (16, 2)]
    widths = [1, 2, 4, 8, 16, 32, 64, 128]
    assert [task.widths for task in chosen.tasks() if isinstance(task, PassCost)] == [widths, widths]
    assert [task.threads for task in chosen.tasks() if isinstance(task, Prompt)] == [1, 2]


def test_a_quick_run_measures_large_batches_with_one_thread_only():
    decodes = [task for task in settings("--quick").tasks() if isinstance(task, Decode)]
    assert [(task.batch, task.threads) for task in decodes] == [(1, 1), (16, 1), (1, 2)]


def test_a_shared_core_is_measured_with_the_most_threads_where_it_is_asked_for():
    tasks = settings("--busy", "--threads", "1,2").tasks()
    assert [task.threads for task in tasks if isinstance(task, Decode) and task.busy] == [2]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--formats", "int5"], "no format 'int5' .did you mean 'int"),
        (["--peers", "llama"], "no peer 'llama'"),
        (["--threads", "0"], "numbers from 1 on"),
        (["--threads", "two"], "numbers from 1 on"),
        (["--rounds", "0"], "--rounds must be 1 or more"),
    ],
)
def test_options_that_cannot_be_used_are_refused_in_one_line(words, message):
    with pytest.raises(UsageError, match=message):
        settings(*words)


def test_an_output_file_in_no_folder_is_refused_before_anything_runs(tmp_path):
    parser = argparse.ArgumentParser()
    SUITE.add_arguments(parser)
    with pytest.raises(UsageError, match="no folder"):
        SUITE.run(parser.parse_args(["--model", "nothing", "--out", str(tmp_path / "none" / "a.json")]))


def test_without_peers_we_are_alone(tmp_path):
    names = [one.name for one in participants(settings("--peers", "none", "--quick"), tmp_path, 100)]
    assert names == ["memory", "outlay auto", "outlay bfloat16"]


def test_the_decode_phase_is_where_all_sequences_have_begun_and_none_has_ended():
    early, late = [0.0, 1.0, 2.0, 3.0], [1.0, 2.0, 3.0, 4.0]
    values = decode_values([early, late])
    assert values["tokens_per_second"] == pytest.approx(2)
    assert values["step_ms"] == pytest.approx(1000)


def test_prompts_differ_from_each_other_and_by_seed():
    batch = prompts(4, 8, 1000, seed=1) + prompts(4, 8, 1000, seed=2)
    assert len({tuple(prompt) for prompt in batch}) == 8
    assert batch[:4] == prompts(4, 8, 1000, seed=1)
    assert all(0 <= token < 1000 for prompt in batch for token in prompt)


def test_numbers_have_three_digits_and_ratios_their_range():
    assert [number(value) for value in (None, 1.2345, 12.345, 1234.5)] == ["-", "1.23", "12.3", "1234"]
    assert times(Spread(3.5, 3.0, 4.25)) == "3.50x (3.00-4.25)"
    assert times(None) == "-"


def test_a_table_puts_numbers_to_the_right_and_lets_remarks_run_on():
    lines = table(["", "tok/s", "ms"], [["ours", "200", "5"], ["a longer name", "not measured: a long reason"]])
    assert lines.splitlines() == [
        "               tok/s  ms",
        "ours             200   5",
        "a longer name  not measured: a long reason",
    ]


def made_measurements(chosen):
    measured = Measurements(failures={"llama-cpp-python": "not installed: pip install it"})
    ours = {"weight_bytes": 100_000_000, "products": {"int4": 80_000_000, "int8": 20_000_000}}
    ours["head_products"] = {"int8": 20_000_000}
    measured.facts = {"memory": {}, "outlay auto": ours, "transformers float32": {}}
    measured.facts["transformers bfloat16"] = {}
    one, many = chosen.decode(1, 1), chosen.decode(16, 1)

    def decoded(rate, batch, own=0.25):
        return [{"tokens_per_second": rate, "step_ms": 1000 * batch / rate, "own_ms": own}]

    measured.values = {
        ("memory", ReadMemory(1)): [{"bytes_per_second": 25e9}],
        ("memory", PeakProducts(1)): [{"int4": 80e9, "int8": 40e9}],
        ("outlay auto", one): decoded(200.0, 1),
        ("outlay auto", many): decoded(600.0, 16, 0.75),
        ("outlay auto", chosen.passes(1)): [{f"ms{width}": 5.0 + width for width in chosen.passes(1).widths}],
        ("transformers float32", one): decoded(20.0, 1),
        ("transformers bfloat16", one): decoded(40.0, 1),
    }
    for task in chosen.likelihoods():
        measured.values["outlay auto", task] = [{"nats": 3.25}]
        measured.values["transformers float32", task] = [{"nats": 3.25 if task.width == 16 else 7.5}]
    if chosen.busy:
        measured.values["outlay auto", chosen.disturbed()] = decoded(100.0, 1)
    measured.idle = {"transformers float32": 0.5, "outlay auto": 0.001}
    return measured


def found(chosen, measured):
    return {"machine": MACHINE, **as_dict(chosen, measured)}


def test_the_report_answers_every_question_of_the_suite():
    chosen = replace(settings("--quick", "--threads", "1", "--formats", "auto", "--busy"), text=tuple(range(32)))
    text = report(json.loads(json.dumps(found(chosen, made_measurements(chosen)))))
    rows = [" ".join(line.split()) for line in text.splitlines()]
    assert "outlay auto 200 5 600 26.7" in rows  # decoding
    assert "llama-cpp-python not measured: not installed: pip install it" in rows
    assert "transformers float32 10.00x (10.00-10.00) -" in rows
    assert "outlay auto 100 4 5 1.25x (1.25-1.25)" in rows  # the floor: 100 MB at 25 GB/s
    assert "outlay auto 6 7 9 13.0 21.0 37.0 69.0 133" in rows  # passes
    # Four milliseconds to read the weights; 1 for each row through the layers, 0.5 of them through the LM head.
    assert "outlay auto 0.67 0.57 0.67 0.92 1.14 1.30 1.39 -" in rows
    assert "outlay auto 3.2500 3.2500" in rows
    assert "transformers float32 3.2500 7.5000" in rows  # wrong where a pass has many rows
    assert "outlay auto 0.25 0.75" in rows  # the engine's own share
    assert "outlay auto 5 10.0 2.00x (2.00-2.00)" in rows  # a shared core
    assert "over one row 1.00 1.17 1.50 2.17 3.50 6.17 11.50 22.17" in rows
    assert "transformers bfloat16 5.00x (5.00-5.00) -" in rows
    assert "outlay auto 3.00x (3.00-3.00)" in rows  # batch 16 over batch 1
    assert "wanted" not in text
    assert "transformers float32 kept up to 50% of a core busy while others were measured" in rows


def test_the_overview_is_a_table_of_speeds_with_ours_first():
    chosen = settings("--quick", "--threads", "1", "--formats", "auto")
    lines = overview(found(chosen, made_measurements(chosen))).splitlines()
    assert lines[0] == "m.gguf, 1 thread of p, d, tokens a second:"
    assert lines[2:5] == ["| | batch 1 | batch 16 |", "| --- | --- | --- |", "| **outlay auto** | **200** | **600** |"]
    assert "| transformers float32 | 20.0 | - |" in lines


def test_the_report_of_a_run_in_which_everything_failed_says_why():
    chosen = settings("--quick", "--threads", "1", "--formats", "auto", "--peers", "none")
    text = report(found(chosen, Measurements(failures={"outlay auto": "no such file", "memory": "none"})))
    assert "not measured: no such file" in text


def test_memory_is_read_at_a_speed_that_machines_have():
    values = MachineLimit().measure(ReadMemory(threads=torch.get_num_threads(), megabytes=64, repeats=2))
    assert 1e8 < values["bytes_per_second"] < 1e13


@pytest.mark.skipif(not kernels.available(), reason="the native kernels are not built")
def test_the_kernels_multiply_at_a_speed_that_machines_have():
    values = MachineLimit().measure(PeakProducts(threads=kernels.threads(), duration=0.001))
    assert list(values) == ["int4", "int8", "bfloat16", "float32"]
    assert all(1e8 < value < 1e14 for value in values.values())


def test_spinners_are_gone_after_the_block():
    with busy_cores(1, limit=30):
        spinning = [pid for pid in os.listdir("/proc") if pid.isdigit() and _parent(pid) == os.getpid()]
        assert spinning
    assert not any(os.path.exists(f"/proc/{pid}") for pid in spinning)


def _parent(pid):
    try:
        with open(f"/proc/{pid}/stat") as stat:
            return int(stat.read().rpartition(")")[2].split()[1])
    except OSError:
        return -1


def test_peers_take_only_what_is_theirs(tmp_path):
    file = tmp_path / "m.gguf"
    four = Decode(batch=4, threads=1, prompt=8, new=4)
    assert not Transformers(file, "float32", (1, 16)).takes(four)
    assert OpenVino(file, (1,)).takes(four)
    assert LlamaCpp(file, 4, 12).takes(four)
    others = (LlamaCpp(file, 4, 12), IkLlamaCpp(file, 4, 12), XLlamaCpp(file, 4, 12, (1,), 100))
    for contender in (Transformers(file, "float32"), OpenVino(file, (1,)), *others):
        assert not contender.takes(PassCost(1))
        assert not contender.takes(ReadMemory(1))


@pytest.fixture
def ours():
    contender = Ours("tiny", "float32")
    contender._model = tiny_model(context=1024)
    return contender


@pytest.mark.parametrize("batch", [1, 3])
def test_our_contender_measures_decoding_and_leaves_the_cache_empty(ours, batch):
    threads = torch.get_num_threads()
    values = ours.measure(Decode(batch, threads, prompt=8, new=32))  # so long that they overlap on any machine
    assert values["step_ms"] == pytest.approx(1000 * batch / values["tokens_per_second"])
    assert 0 < values["own_ms"] < values["step_ms"]
    (worker,) = ours._lm(threads).engine.workers
    assert worker.cache.in_use == 0


def test_our_contender_measures_a_pass_of_each_width_and_leaves_the_cache_empty(ours):
    threads = torch.get_num_threads()
    values = ours.measure(PassCost(threads, widest=8, prompt=32, repeats=1))
    assert list(values) == ["ms1", "ms2", "ms4", "ms8"]
    assert all(value > 0 for value in values.values())
    (worker,) = ours._lm(threads).engine.workers
    assert worker.cache.in_use == 0
    assert worker.ledger.target_tokens == 32 + 2 * (1 + 2 + 4 + 8)


def test_our_contender_states_the_likelihood_of_a_text_alike_in_any_chunks(ours):
    tokens, threads = tuple(prompts(1, 40, 200, seed=3)[0]), torch.get_num_threads()
    nats = [ours.measure(Likelihood(tokens, width, threads))["nats"] for width in (1, 16, 40)]
    assert nats[0] == nats[1] == nats[2] > 1
    score = Score([tokens[1:]])
    ours._lm(threads).submit([tokens[0]], method=score, max_tokens=1).result()
    assert nats[0] == pytest.approx(-score.likelihoods[0].logprob / 39, rel=1e-5)


def test_our_contender_counts_the_multiplications_of_a_row(ours):
    decoder = ours._model.decoder
    assert sum(products(decoder).values()) == decoder.linear_flops(1, 1) // 2
    assert products_of([decoder.lm_head]) == {"float32": decoder.lm_head.in_features * decoder.lm_head.out_features}


def test_the_own_share_of_a_tick_is_what_is_not_its_pass():
    methods = [Stamped(Greedy(), lambda: 0.0) for _ in range(2)]
    methods[0].times, methods[0].readings = [0.0, 1.0, 2.0, 3.0], [0.9, 1.6, 2.3, 3.0]
    methods[1].times, methods[1].readings = [1.0, 2.0, 3.0, 4.0], [1.6, 2.3, 3.0, 3.7]
    assert own_ms(methods) == pytest.approx(300)


def test_the_machine_is_described_with_the_versions_that_are_there():
    found = describe(("torch", "no-such-distribution"))
    assert list(found["versions"]) == ["torch"]
    assert found["cores"] >= 1
    json.dumps(found)
