"""The engine under load: the queue, deadlines, closing, and what a result says of its run."""

from __future__ import annotations

import threading
import time

import pytest

from outlay import LM, Budget, QueueFull, UsageError
from outlay.engine.engine import Engine
from outlay.engine.tree_run import TreeRun
from outlay.testing import tiny_lm

LONG = {"max_tokens": 500, "ignore_eos": True}
ENDLESS = {"max_tokens": 20_000, "ignore_eos": True}  # for half a minute: no test takes as long


def busy_lm(length=ENDLESS, **options):
    """An engine for one run at a time, which is at work on a long one."""
    lm = LM(tiny_lm(context=20_100).model, Engine(max_runs=1, **options))
    running = lm.submit("Once", **length)
    next(iter(running))
    return lm, running


def test_a_cancelled_run_does_not_wait_for_those_before_it():
    lm, running = busy_lm()
    waiting = lm.submit("Twice", **LONG)
    waiting.cancel()
    result = waiting.result(60)
    assert not running.done
    assert (result.finish_reason, result.tokens, result.timing.began) == ("cancelled", [], None)
    running.cancel()


def test_a_deadline_counts_from_submission_also_in_the_queue():
    lm, running = busy_lm()
    result = lm.submit("Twice", budget=Budget(seconds=0.01), **LONG).result(60)
    assert not running.done
    assert (result.finish_reason, result.cap, result.text) == ("budget", "seconds", "")
    assert result.ledger.seconds >= 0.01
    running.cancel()


def test_the_queue_is_bounded():
    lm, running = busy_lm(max_waiting=2)
    waiting = [lm.submit("Twice", max_tokens=1) for _ in range(2)]
    with pytest.raises(QueueFull, match="2 requests are waiting"):
        lm.submit("Thrice", max_tokens=1)
    running.cancel()
    assert [len(handle.result(60).tokens) for handle in waiting] == [1, 1]
    assert len(lm.generate("Thrice", max_tokens=1).tokens) == 1


def test_a_batch_that_finds_no_room_runs_not_at_all():
    lm = LM(tiny_lm().model, Engine(max_runs=1, max_waiting=2))
    with pytest.raises(QueueFull):
        lm.generate_batch(["a"] * 4, **LONG)
    lm.generate("a", max_tokens=1)
    assert not lm.engine.workers[0].seated
    assert lm.engine.workers[0].passes < 500


@pytest.mark.parametrize("option", ["max_runs", "max_waiting"])
def test_an_engine_that_takes_nothing_is_refused(option):
    with pytest.raises(UsageError, match=f"{option} must be 1 or more, not 0"):
        Engine(**{option: 0})


def test_close_returns_while_requests_keep_coming():
    lm = tiny_lm(max_runs=2)
    refused, begun = [], threading.Event()

    def keep_coming():
        while not refused:
            try:
                lm.submit("Once", **LONG)
                begun.set()
                time.sleep(1e-3)
            except UsageError as error:
                refused.append(str(error))

    threads = [threading.Thread(target=keep_coming) for _ in range(3)]
    for thread in threads:
        thread.start()
    assert begun.wait(10)
    lm.engine.close()
    for thread in threads:
        thread.join(10)
    assert refused[0] == "the engine is closed and takes no more requests; load the model again"
    assert not lm.engine._runs.live


def test_close_ends_what_runs_and_what_waits():
    lm, running = busy_lm()
    waiting = lm.submit("Twice", **LONG)
    lm.engine.close()
    assert [handle.result(0).finish_reason for handle in (running, waiting)] == ["cancelled", "cancelled"]


def test_a_drained_engine_finishes_what_it_accepted():
    lm, running = busy_lm(LONG)
    waiting = lm.submit("Twice", max_tokens=3, ignore_eos=True)
    lm.engine.close(drain=True)
    assert len(running.result(0).tokens) == 500
    assert len(waiting.result(0).tokens) == 3
    with pytest.raises(UsageError, match="closed"):
        lm.submit("Thrice")


def test_a_result_says_when_its_run_was_queued_began_and_gave_its_first_token():
    lm, running = busy_lm()
    before = time.time()
    waiting = lm.submit("Twice", max_tokens=3)
    running.cancel()
    timing = waiting.result(60).timing
    assert before <= timing.queued <= time.time()
    assert 0 < timing.began < timing.first_token <= waiting.result().ledger.seconds


def test_a_result_says_how_much_of_its_prompt_was_cached():
    lm = tiny_lm()
    first, second = (lm.generate("The same beginning, then " + end, max_tokens=2) for end in ("one", "two"))
    assert first.prompt_tokens == second.prompt_tokens == len("The same beginning, then one")
    assert (first.cached_tokens, second.cached_tokens) == (0, len("The same beginning, then "))


@pytest.mark.parametrize("cap", ["target_passes", "target_tokens", "tokens_out", "rounds", "flops", "seconds"])
def test_a_result_names_the_cap_that_ended_it(cap):
    method = "lookup" if cap == "rounds" else "greedy"
    draft = "lookup" if cap == "rounds" else None
    limit = {"flops": 2_000_000, "seconds": 1e-9}.get(cap, 8)
    result = tiny_lm().generate("Once", method=method, draft=draft, budget=Budget(**{cap: limit}), **LONG)
    assert (result.finish_reason, result.cap) == ("budget", cap)


def test_no_cap_is_named_where_none_ended_it():
    assert tiny_lm().generate("Once", max_tokens=3, budget=Budget(target_passes=50)).cap == ""


@pytest.mark.parametrize("stop", [(), ("\x00\x00",)])
def test_chunks_carry_all_tokens_with_their_logprobs(stop):
    handle = tiny_lm().submit("fourth: Ω and 漢字", temperature=1.5, logprobs=1, max_tokens=60, stop=stop)
    chunks, result = list(handle.chunks()), handle.result()
    assert [token for chunk in chunks for token in chunk.tokens] == result.tokens
    assert [entry for chunk in chunks for entry in chunk.logprobs] == result.logprobs
    assert "".join(chunk.text for chunk in chunks) == result.text
    assert len(chunks) > 1


def test_the_end_token_comes_in_a_chunk_without_text():
    handle = tiny_lm().submit("Once", logit_bias={256: 1e9})
    assert [(chunk.text, chunk.tokens) for chunk in handle.chunks()] == [("", (256,))]
    assert list(handle) == []


@pytest.mark.parametrize(("method", "options"), [
    ("greedy", {}), ("sample", {"temperature": 1.0}), ("lookup", {}), ("speculative", {"draft": "lookup"}),
])  # fmt: skip
def test_the_logits_of_a_pass_are_let_go_when_a_token_is_chosen_from_them(monkeypatch, method, options):
    held, inner = [], TreeRun.receive

    def receive(run, requests):
        inner(run, requests)
        held.append(len(run._raw_logits))

    monkeypatch.setattr(TreeRun, "receive", receive)
    lm = tiny_lm()
    result = lm.generate("la la la la", method=method, logprobs=0, max_tokens=60, ignore_eos=True, **options)
    assert len(result.logprobs) == 60
    assert max(held) <= 20
