"""A cache that is too small for all runs: they wait, or are put back and go on later, and write the same text."""

from __future__ import annotations

import random
import threading
import time

import pytest

from outlay import LM, Budget
from outlay.engine.engine import Engine
from outlay.errors import OutlayError
from outlay.testing import PROMPTS, tiny_lm, tiny_model

ENDLESS = {"ignore_eos": True}


def small_lm(cache_tokens, **options):
    return LM(tiny_model(), Engine(cache_tokens=cache_tokens, **options))


def nothing_left(lm):
    lm.engine.clear()
    return all(
        (worker.cache.in_use, worker.seated, worker.cache.free_slots()) == (0, 0, worker.cache.limit)
        for worker in lm.engine.models
    )


@pytest.mark.parametrize("prefix_cache", [True, False])
def test_a_cache_of_a_quarter_of_what_all_need_fails_none(prefix_cache):
    count, new = 24, 60
    prompts = [f"number {number} " * (1 + number % 4) for number in range(count)]
    needed = sum(len(prompt) + new for prompt in prompts)
    lm = small_lm(needed // 4, prefix_cache=prefix_cache)
    alone = tiny_lm()
    results = lm.generate_batch(prompts, max_tokens=new, **ENDLESS)
    assert [result.text for result in results] == [
        alone.generate(prompt, max_tokens=new, **ENDLESS).text for prompt in prompts
    ]
    assert {result.finish_reason for result in results} == {"length"}
    assert lm.engine.models[0].cache.capacity <= needed // 4
    assert nothing_left(lm)


def test_a_run_that_is_put_back_streams_nothing_twice():
    lm = small_lm(300)
    handles = [lm.submit(f"number {number}", max_tokens=200, logprobs=0, **ENDLESS) for number in range(4)]
    results = [handle.result(60) for handle in handles]
    assert any(result.ledger.extras.get("restarts") for result in results)
    alone = tiny_lm()
    for number, (handle, result) in enumerate(zip(handles, results, strict=True)):
        chunks = list(handle.chunks())
        assert "".join(chunk.text for chunk in chunks) == result.text
        assert [token for chunk in chunks for token in chunk.tokens] == result.tokens
        assert len(result.tokens) == result.ledger.tokens_out == len(result.logprobs) == 200
        assert result.tokens == alone.generate(f"number {number}", max_tokens=200, **ENDLESS).tokens
        assert result.timing.began < result.timing.first_token


def test_a_run_that_needs_more_than_the_whole_cache_ends_where_it_is_full():
    lm = small_lm(100)
    result = lm.generate("Once", max_tokens=400, **ENDLESS)
    assert result.finish_reason == "length"
    assert 80 <= len(result.tokens) <= 97
    whole = tiny_lm().generate("Once", max_tokens=400, **ENDLESS)
    assert whole.tokens[: len(result.tokens)] == result.tokens
    assert len(lm.generate("Twice", max_tokens=50, **ENDLESS).tokens) == 50


def test_the_oldest_run_goes_on_whatever_comes_after_it():
    lm = small_lm(260)
    oldest = lm.submit("The oldest", max_tokens=240, **ENDLESS)
    others = [lm.submit(f"number {number}", max_tokens=200, **ENDLESS) for number in range(6)]
    result = oldest.result(60)
    assert (len(result.tokens), result.ledger.extras.get("restarts")) == (240, None)
    assert [len(handle.result(60).tokens) for handle in others] == [200] * 6


def test_a_run_that_is_cancelled_after_it_was_put_back_keeps_its_text():
    lm = small_lm(300)
    handles = [lm.submit(f"number {number}", max_tokens=250, **ENDLESS) for number in range(4)]
    while not any(waiting.session.restarts for waiting in lm.engine._queue):
        time.sleep(1e-3)
    for handle in reversed(handles):
        handle.cancel()
    for handle in handles:
        result = handle.result(60)
        assert "".join(chunk.text for chunk in handle.chunks()) == result.text
        assert len(result.tokens) == result.ledger.tokens_out


def test_a_budget_counts_what_the_text_took_not_what_was_lost():
    lm = small_lm(300)
    handles = [
        lm.submit(f"number {number}", max_tokens=280, budget=Budget(target_passes=240), **ENDLESS)
        for number in range(4)
    ]
    results = [handle.result(60) for handle in handles]
    assert any(result.ledger.extras.get("restarts") for result in results)
    assert [len(result.tokens) for result in results] == [240] * 4


MIX = [
    ("greedy", {}),
    ("sample", {"temperature": 1.0}),
    ("beam:width=3", {}),
    ("best_of:n=3", {"temperature": 1.0}),
    ("lookup", {}),
    ("auto", {}),
    ("auto", {"temperature": 1.0}),
    ("speculative", {"draft": "lookup", "temperature": 1.0}),
]


@pytest.mark.parametrize(
    ("count", "longest", "cache_tokens"), [(32, 40, 500), pytest.param(400, 120, 1500, marks=pytest.mark.slow)]
)
def test_mixed_requests_from_many_threads_write_what_they_write_alone(count, longest, cache_tokens):
    """A third of them cancelled, in a cache of a quarter of what those at work at a time need."""
    chance, lm = random.Random(0), small_lm(cache_tokens, max_runs=32)
    requests = []
    for number in range(count):
        method, options = chance.choice(MIX)
        prompt = chance.choice(PROMPTS) + "z" * chance.randrange(longest)
        options = options | {"method": method, "max_tokens": chance.randrange(10, longest), "seed": 1, **ENDLESS}
        requests.append((prompt, options, number % 3 == 0, chance.random() * 0.05))
    results, errors = {}, []

    def work(numbers):
        for number in numbers:
            prompt, options, cancelled, patience = requests[number]
            try:
                handle = lm.submit(prompt, **options)
                if cancelled:
                    time.sleep(patience)
                    handle.cancel()
                results[number] = handle.result(300)
            except (OutlayError, TimeoutError) as error:
                errors.append(error)

    threads = [threading.Thread(target=work, args=(range(first, count, 16),)) for first in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors
    alone = tiny_lm(prefix_cache=False)
    for number, result in sorted(results.items()):
        prompt, options, cancelled, _ = requests[number]
        expected = alone.generate(prompt, **options)
        if cancelled and result.finish_reason == "cancelled":
            begun = expected.tokens[: len(result.tokens)]  # of the tokens, for the text may end within a character
            assert begun == result.tokens or options["method"].startswith(("beam", "best_of"))
        else:
            assert (result.tokens, result.text) == (expected.tokens, expected.text)
    assert nothing_left(lm)
