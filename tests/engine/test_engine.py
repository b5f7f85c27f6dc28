"""The engine: batching, streaming, stopping, prefix reuse, threads and event loops, on a tiny random model."""

from __future__ import annotations

import asyncio
import random
import threading
from dataclasses import dataclass
from typing import ClassVar

import pytest

import outlay
from outlay.engine.method import About, Method
from outlay.engine.text import TextStream
from outlay.testing import PROMPTS, tiny_lm


@pytest.fixture
def lm():
    return tiny_lm()


def test_a_batch_shares_passes(lm):
    results = lm.generate_batch(PROMPTS, max_tokens=10, ignore_eos=True)
    assert sum(result.ledger.target_passes for result in results) == 60
    assert lm.engine.workers[0].passes <= 12, "six runs of ten passes each, together"


def test_a_long_prompt_does_not_stall_the_others():
    lm = tiny_lm(context=4096)
    short = lm.submit("ab", max_tokens=200, ignore_eos=True)
    long = lm.submit("x" * 3000, max_tokens=1, ignore_eos=True)
    short_result, long_result = short.result(60), long.result(60)
    assert long_result.ledger.target_passes >= 3000 // 256, "the prompt came in chunks"
    assert short_result.ledger.target_passes == 200
    assert lm.engine.workers[0].passes < 200 + long_result.ledger.target_passes, "they shared passes"


def test_the_prefix_of_an_earlier_request_is_not_computed_again(lm):
    first = lm.generate("The same beginning, then one", max_tokens=5, ignore_eos=True)
    second = lm.generate("The same beginning, then two", max_tokens=5, ignore_eos=True)
    common = len("The same beginning, then ")
    assert second.ledger.target_tokens == first.ledger.target_tokens - common
    fresh = tiny_lm().generate("The same beginning, then two", max_tokens=5, ignore_eos=True)
    assert fresh.tokens == second.tokens


def test_a_conversation_goes_on_from_its_own_text(lm):
    first = lm.generate("Once upon a time", max_tokens=20, ignore_eos=True)
    tokens = lm.encode("Once upon a time") + first.tokens
    second = lm.generate([*tokens, 65, 66], max_tokens=5, ignore_eos=True)
    assert second.ledger.target_tokens <= 3 + 4, "only the last token, the new ones and the answer"
    assert tiny_lm().generate([*tokens, 65, 66], max_tokens=5, ignore_eos=True).tokens == second.tokens


def test_requests_that_arrive_together_compute_their_shared_prompt_once(lm):
    prompt = "A prompt that all of them share"
    results = [handle.result(60) for handle in [lm.submit(prompt, max_tokens=1, ignore_eos=True) for _ in range(8)]]
    assert sum(result.ledger.target_tokens for result in results) == len(prompt) - 1 + 8
    assert len({tuple(result.tokens) for result in results}) == 1


def test_a_shared_prompt_longer_than_a_pass_is_computed_once():
    lm = tiny_lm(context=4096)
    prompts = ["x" * 1500 + ending for ending in ("one", "two", "six")]
    results = lm.generate_batch(prompts, max_tokens=1, ignore_eos=True)
    assert sum(result.ledger.target_tokens for result in results) == 1500 + 3 * len("one")
    for prompt, result in zip(prompts, results, strict=True):
        assert tiny_lm(context=4096).generate(prompt, max_tokens=1, ignore_eos=True).tokens == result.tokens


def test_a_stop_string_is_found_across_token_borders_and_cut(lm):
    whole = lm.generate("Once", max_tokens=60, ignore_eos=True)
    middle = len(whole.text) // 2
    stop = whole.text[middle : middle + 3]
    result = lm.generate("Once", max_tokens=60, ignore_eos=True, stop=stop)
    assert result.finish_reason == "stop"
    assert result.text == whole.text[: whole.text.index(stop)]
    stream = lm.stream("Once", max_tokens=60, ignore_eos=True, stop=[stop, "never seen"])
    assert "".join(stream) == result.text, "nothing of the stop string was streamed"


def test_text_that_only_begins_like_a_stop_string_is_delivered(lm):
    whole = lm.generate("Once", max_tokens=30, ignore_eos=True)
    result = lm.generate("Once", max_tokens=30, ignore_eos=True, stop=whole.text[-2:] + "☃")
    assert result.text == whole.text
    assert result.finish_reason == "length"


def test_an_end_token_ends_the_text(lm):
    tokens = lm.generate("Once", max_tokens=8, ignore_eos=True).tokens
    biased = lm.generate("Once", max_tokens=8, logit_bias={256: 1e9})
    assert biased.tokens == [256]
    assert biased.text == ""
    assert biased.finish_reason == "stop"
    assert tokens != biased.tokens


def test_the_context_ends_a_text():
    lm = tiny_lm(context=32)
    result = lm.generate("x" * 20, max_tokens=100, ignore_eos=True)
    assert len(result.tokens) == 12
    assert result.finish_reason == "length"


def test_logprobs_are_those_of_the_raw_logits(lm):
    result = lm.generate("Once", max_tokens=6, ignore_eos=True, logprobs=3)
    assert len(result.logprobs) == 6
    for token, entry in zip(result.tokens, result.logprobs, strict=True):
        assert entry.token == token == entry.top[0][0]
        assert entry.logprob == pytest.approx(entry.top[0][1])
        assert entry.logprob < 0
    sampled = lm.generate("Once", temperature=2.0, top_k=5, max_tokens=6, ignore_eos=True, logprobs=0, seed=3)
    assert all(entry.top == () for entry in sampled.logprobs)


def test_logprobs_come_with_every_method(lm):
    for method, options in (("beam", {}), ("best_of:n=3", {"temperature": 1.0})):
        result = lm.generate("Once", method=method, max_tokens=6, ignore_eos=True, logprobs=1, **options)
        assert [entry.token for entry in result.logprobs] == result.tokens


def test_many_threads_use_one_engine(lm):
    expected = {prompt: tiny_lm().generate(prompt, max_tokens=15, ignore_eos=True).tokens for prompt in PROMPTS}
    wrong = []

    def work(number):
        for i in range(5):
            prompt = PROMPTS[(number + i) % len(PROMPTS)]
            if lm.generate(prompt, max_tokens=15, ignore_eos=True).tokens != expected[prompt]:
                wrong.append(prompt)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not wrong


def test_an_event_loop_is_not_blocked(lm):
    async def main():
        async def stream(prompt):
            return "".join([piece async for piece in lm.stream(prompt, max_tokens=20, ignore_eos=True)])

        beats = 0

        async def beat():
            nonlocal beats
            while True:
                beats += 1
                await asyncio.sleep(0)

        heart = asyncio.create_task(beat())
        texts = await asyncio.gather(*(stream(prompt) for prompt in PROMPTS))
        result = await lm.agenerate(PROMPTS[0], max_tokens=20, ignore_eos=True)
        heart.cancel()
        return texts, result, beats

    texts, result, beats = asyncio.run(main())
    assert texts == [tiny_lm().generate(prompt, max_tokens=20, ignore_eos=True).text for prompt in PROMPTS]
    assert result.text == texts[0]
    assert beats > 5


def test_a_cancelled_task_cancels_its_run(lm):
    async def main():
        task = asyncio.create_task(lm.agenerate("Once", max_tokens=500, ignore_eos=True))
        await asyncio.sleep(0.05)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(main())
    lm.generate("after", max_tokens=1)
    assert not lm.engine._runs.live


@dataclass(frozen=True)
class Broken(Method):
    about: ClassVar[About] = About("broken", "fails", "", "test", "", "")

    def decode(self, run):
        yield run.target.forward([run.tip])
        raise ZeroDivisionError("the method's own mistake")


def test_a_method_that_fails_fails_alone(lm):
    others = [lm.submit(prompt, max_tokens=20, ignore_eos=True) for prompt in PROMPTS[:3]]
    with pytest.raises(ZeroDivisionError, match="own mistake"):
        lm.generate("x", method=Broken())
    assert all(handle.result(60).finish_reason == "length" for handle in others)
    lm.engine.clear()
    assert lm.engine.workers[0].cache.in_use == 0


def test_an_error_of_a_worker_is_never_taken_for_the_methods_end(lm, monkeypatch):
    """Not even a StopIteration, which is how a generator ends."""
    lm.generate("x", max_tokens=1)
    monkeypatch.setattr(lm.engine.workers[0], "advance", lambda requests: next(iter(())))
    with pytest.raises(StopIteration):
        lm.generate("y", max_tokens=3)


@dataclass(frozen=True)
class Seated(Method):
    about: ClassVar[About] = About("seated", "counts who is there when it begins", "", "test", "", "")

    def decode(self, run):
        run.count(there=run.target.runs)
        run.commit((yield from run.next_token(run.tip)))


def test_runs_that_begin_together_see_each_other_from_the_start(lm):
    with lm.engine.together():
        handles = [lm.submit(prompt, method=Seated(), max_tokens=1) for prompt in PROMPTS[:3]]
    assert [handle.result(60).ledger.extras["there"] for handle in handles] == [3, 3, 3]
    assert lm.generate("x", method=Seated(), max_tokens=1).ledger.extras["there"] == 1
    with pytest.raises(ZeroDivisionError):
        lm.generate("x", method=Broken())
    assert lm.engine.workers[0].seated == 0


@dataclass(frozen=True)
class Pair(Method):
    about: ClassVar[About] = About("pair", "asks for two things at once", "", "test", "", "")

    def decode(self, run):
        other = run.target.fork(run.tree)
        while True:
            logits, twin = yield [run.target.forward([run.tip]), run.target.forward([other.tip])]
            token = run.sampler.pick(logits[0])
            assert int(twin[0].argmax()) == token
            other.append([token])
            run.commit(token)


def test_a_method_may_ask_for_several_things_at_once(lm):
    result = lm.generate("Once", method=Pair(), max_tokens=10, ignore_eos=True)
    assert result.tokens == lm.generate("Once", max_tokens=10, ignore_eos=True).tokens


def test_more_runs_than_the_engine_takes_wait_their_turn():
    lm = tiny_lm(max_runs=2)
    results = lm.generate_batch(list(PROMPTS), max_tokens=5, ignore_eos=True)
    assert [result.tokens for result in results] == [
        tiny_lm().generate(prompt, max_tokens=5, ignore_eos=True).tokens for prompt in PROMPTS
    ]


def test_a_cache_too_small_for_all_evicts_old_prefixes_and_refuses_what_can_never_fit():
    lm = outlay.LM(tiny_lm().model, outlay.lm.Engine(cache_tokens=120))
    for number in range(6):
        lm.generate(f"prompt number {number} " * 2, max_tokens=20, ignore_eos=True)
    assert lm.engine.workers[0].cache.capacity <= 120
    with pytest.raises(outlay.UsageError, match="the prompt has 200 tokens, but the cache holds 120"):
        lm.generate("y" * 200, max_tokens=5)
    lm.engine.clear()
    assert lm.engine.workers[0].cache.in_use == 0


def test_what_runs_asked_room_for_and_do_not_use_serves_others():
    """Twenty runs that may write 200 tokens each, and write 15, in a cache of 800: each asks for all of it at once."""
    lm = outlay.LM(tiny_lm().model, outlay.lm.Engine(cache_tokens=800, prefix_cache=False))
    asked = {"max_tokens": 200, "budget": outlay.Budget(target_passes=15), "ignore_eos": True}
    prompts = [f"number {number}" for number in range(20)]
    together = lm.generate_batch(prompts, **asked)
    assert [len(result.tokens) for result in together] == [15] * 20
    assert [result.tokens for result in together] == [lm.generate(prompt, **asked).tokens for prompt in prompts]
    cache = lm.engine.workers[0].cache
    assert cache.in_use == 0
    assert cache.free_slots() == 800, "and all of it comes back"


@pytest.mark.parametrize("options", [{}, {"top_p": 0.9}, {"top_k": 12, "min_p": 0.02}])
def test_a_token_drawn_in_the_pass_is_the_one_drawn_from_its_logits(lm, options):
    """A bias of nothing has all logits fetched, to be changed; wanted log-probabilities have them kept."""
    asked = {"temperature": 0.9, "max_tokens": 20, "ignore_eos": True, **options}
    batch = [lm.submit(prompt, seed=seed, **asked) for seed, prompt in enumerate(PROMPTS)]
    for seed, (prompt, handle) in enumerate(zip(PROMPTS, batch, strict=True)):
        tokens = handle.result(60).tokens
        assert lm.generate(prompt, seed=seed, logit_bias={0: 0.0}, **asked).tokens == tokens
        assert lm.generate(prompt, seed=seed, logprobs=1, **asked).tokens == tokens


def test_draws_of_several_runs_after_the_same_token_are_each_runs_own(lm):
    asked = {"temperature": 1.5, "max_tokens": 1, "ignore_eos": True}
    together = [lm.submit("The same", seed=seed, **asked) for seed in range(12)]
    tokens = [handle.result(60).tokens for handle in together]
    assert tokens == [lm.generate("The same", seed=seed, **asked).tokens for seed in range(12)]
    assert len({*map(tuple, tokens)}) > 1


MIX = [
    ("greedy", {}),
    ("sample", {"temperature": 0.8, "top_p": 0.9}),
    ("sample", {"temperature": 1.2, "top_k": 20, "repetition_penalty": 1.1, "presence_penalty": 0.3}),
    ("beam:width=3", {}),
    ("best_of:n=3", {"temperature": 0.7}),
]


@pytest.mark.parametrize("count", [100, pytest.param(300, marks=pytest.mark.slow)])
def test_a_soak_of_mixed_requests_leaves_nothing_and_changes_nothing(count):
    """Requests, 16 at a time, of mixed methods, lengths, budgets and cancellations."""
    chance = random.Random(0)
    lm = tiny_lm(max_runs=16)
    requests = []
    for number in range(count):
        method, options = chance.choice(MIX)
        prompt = chance.choice(PROMPTS) + "z" * chance.randrange(60)
        options = options | {"max_tokens": chance.randrange(1, 24), "seed": number, "ignore_eos": chance.random() < 0.5}
        if chance.random() < 0.2:
            options["budget"] = outlay.Budget(target_passes=chance.randrange(1, 12))
        requests.append((prompt, method, options, chance.random() < 0.1))
    handles = []
    for prompt, method, options, cancelled in requests:
        handle = lm.submit(prompt, method=method, **options)
        if cancelled:
            handle.cancel()
        handles.append(handle)
    results = [handle.result(120) for handle in handles]
    alone = tiny_lm(prefix_cache=False)
    for (prompt, method, options, cancelled), result in zip(requests, results, strict=True):
        expected = alone.generate(prompt, method=method, **options)
        if cancelled:
            assert result.finish_reason in ("cancelled", expected.finish_reason)
            assert expected.text.startswith(result.text) or method.startswith(("beam", "best_of"))
        elif "budget" in options:  # what is shared costs less, so a budget may reach further in a batch
            assert len(result.tokens) >= len(expected.tokens)
        else:
            assert result.tokens == expected.tokens
            assert result.text == expected.text
    lm.engine.clear()
    assert lm.engine.workers[0].cache.in_use == 0
    assert alone.engine.workers[0].cache.in_use == 0


@pytest.mark.parametrize(
    ("pieces", "stops", "text"),
    [
        (["ab", "cd"], ["bc"], "a"),
        (["ab", "cd"], ["xx"], "abcd"),
        (["a", "a", "a", "b"], ["aab"], "a"),
        (["aSTOP", "b"], ["STOP", "a"], ""),
        (["x", "EN", "Dy"], ["END"], "x"),
    ],
)
def test_stop_strings(pieces, stops, text):
    class Fake:
        def decoder_stream(self):
            return self

        def push(self, token):
            return pieces[token]

        def flush(self):
            return ""

    stream = TextStream(Fake(), stops)
    sent = ""
    for token in range(len(pieces)):
        sent += stream.push(token)
        if stream.stopped:
            break
    sent += stream.flush()
    assert sent == text == stream.text


def test_a_trace_that_cannot_be_written_fails_its_run_and_no_other(lm):
    def full(event):
        raise OSError("the disk is full")

    other = lm.submit("Once", max_tokens=10, ignore_eos=True)
    with pytest.raises(OSError, match="disk is full"):
        lm.generate("Once", max_tokens=10, trace=full)
    assert len(other.result(60).tokens) == 10


def test_a_trace_tells_the_whole_story(lm):
    events = []
    result = lm.generate("Once", method="beam:width=3", max_tokens=6, ignore_eos=True, trace=events.append)
    kinds = [event["event"] for event in events]
    assert kinds[0] == "start"
    assert "finish" in kinds
    assert [event["tokens"] for event in events if event["event"] == "finish"] == [result.tokens]
    grown = {row["node"] for event in events if event["event"] == "grow" for row in event["nodes"]}
    passed = [node for event in events if event["event"] == "pass" for node in event["nodes"]]
    assert set(passed) <= grown
    assert len(passed) == result.ledger.target_tokens
    assert all(event["width"] >= len(event["nodes"]) for event in events if event["event"] == "pass")
    times = [event["time"] for event in events]
    assert times == sorted(times)


def test_a_mistake_in_the_engine_hangs_nobody(lm, monkeypatch):
    monkeypatch.setattr(lm.engine._runs, "_police", lambda live: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        lm.generate("Once", max_tokens=3)
    monkeypatch.undo()
    assert len(lm.generate("Once", max_tokens=3, ignore_eos=True).tokens) == 3
    worker = lm.engine.workers[0]
    lm.engine.clear()
    assert (worker.seated, worker.cache.in_use) == (0, 0), "what the failed run held is given back"
