"""Under load: the same texts as alone, a queue with an end, fair turns, deadlines, a cache that is too small."""

from __future__ import annotations

import asyncio
import itertools
from concurrent.futures import ThreadPoolExecutor

import openai
import pytest
from serve.running import RELEASE, start, until

from outlay.constrain import Choice, Regex
from outlay.errors import QueueFull
from outlay.serve.errors import ApiError
from outlay.serve.settings import Limits, Queue
from outlay.serve.turns import Turns

WAYS = [
    {"method": "greedy", "temperature": 0.0},
    {"method": "lookup", "temperature": 0.0},
    {"method": "sample", "temperature": 1.0},
    {"method": "rsd:branching=2x1", "draft": "small", "temperature": 1.0},
    {"method": "speculative", "draft": "small", "temperature": 0.0},
    {"method": "specinfer", "draft": "small", "temperature": 1.0},
    {"method": "traversal", "draft": "small", "temperature": 1.0},
    {"method": "spectr", "draft": "small", "temperature": 1.0},
    {"method": "aded:table=none", "temperature": 0.0},
    {"method": "beam:width=3", "temperature": 0.0},
    {"method": "best_of:n=3", "temperature": 1.0},
    {"method": "superposed", "temperature": 0.0},
    {"method": "astar:k=2,step_tokens=4", "scorer": "letters", "temperature": 1.0},
    {"method": "particles:n=3,step_tokens=4", "scorer": "prm", "temperature": 1.0},
    {"method": "step_beam:n=4,width=2,step_tokens=4", "scorer": "self", "temperature": 1.0},
    {"method": "best_of:n=3,by=score", "scorer": "prm", "temperature": 1.0},
    {"method": "awrs:particles=2", "scorer": "letters", "temperature": 1.0, "constraint": {"choice": ["yes", "no"]}},
    {"method": "lookup", "temperature": 0.0, "constraint": {"regex": "[a-c]{2}(-[0-9x]{2})+"}},
    {"method": "rsd:branching=2x1", "draft": "small", "temperature": 1.0, "constraint": {"choice": ["yes", "no"]}},
]


def wishes(count, tokens):
    """Requests that differ in method, model, prompt, temperature and seed."""
    for number, way in zip(range(count), itertools.cycle(WAYS), strict=False):
        yield {
            "model": "other" if number % 5 == 4 and "draft" not in way else "tiny",
            "messages": [{"role": "user", "content": f"Tell me of {number} " + "and so on " * (number % 4)}],
            "max_completion_tokens": tokens,
            "seed": number,
            "temperature": way["temperature"],
            "extra_body": {name: value for name, value in way.items() if name != "temperature"},
        }


async def ask_all(url, asked, stream_every=3):
    """The texts of all requests, sent together; every third is streamed."""
    async with openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0, timeout=900) as client:

        async def ask(number, wish):
            if number % stream_every:
                return (await client.chat.completions.create(**wish)).choices[0].message.content
            text = ""
            async for chunk in await client.chat.completions.create(**wish, stream=True):
                text += chunk.choices[0].delta.content or ""
            return text

        return await asyncio.gather(*(ask(number, wish) for number, wish in enumerate(asked)))


def alone(server, asked):
    """The texts of the same requests, each by the engine alone."""
    for wish in asked:
        hosted = server.service.models.find(wish["model"])
        draft, scorer, constraint = (wish["extra_body"].get(name) for name in ("draft", "scorer", "constraint"))
        made = {"regex": Regex, "choice": lambda texts: Choice(*texts)}
        yield hosted.lm.generate(
            wish["messages"], method=wish["extra_body"]["method"], draft=hosted.drafts[draft] if draft else None,
            temperature=wish["temperature"], seed=wish["seed"], max_tokens=wish["max_completion_tokens"],
            scorer=hosted.scorers[scorer] if scorer else None,
            constraint=next((made[kind](how) for kind, how in (constraint or {}).items()), None),
        ).text  # fmt: skip


@pytest.mark.parametrize(("count", "tokens"), [(17, 10), pytest.param(64, 48, marks=pytest.mark.slow)])
def test_texts_under_load_are_those_alone(server, count, tokens):
    asked = list(wishes(count, tokens))
    texts = asyncio.run(ask_all(server.url, asked))
    server.engine.clear()
    assert texts == list(alone(server, asked))


@pytest.mark.parametrize(("count", "tokens"), [(40, 24), pytest.param(128, 48, marks=pytest.mark.slow)])
def test_a_cache_of_a_quarter_of_what_they_need_fails_nobody(checkpoint, server, count, tokens):
    """Texts are those that the engine alone writes with room; nobody fails, and no slot is left."""
    asked = [wish for wish in wishes(count, tokens) if wish["model"] == "tiny" and "draft" not in wish["extra_body"]]
    lm = server.service.models.find("tiny").lm
    expected = list(alone(server, asked))
    needed = sum(len(lm.encode(wish["messages"])) + tokens for wish in asked)
    small = start({"tiny": checkpoint}, cache_tokens=needed // 4)
    try:
        assert asyncio.run(ask_all(small.url, asked)) == expected
        assert small.idle()
        assert small.service.turns.running == small.service.turns.waiting == 0
    finally:
        small.stop()


def statuses(url, count, keys=("none",), **how):
    """The statuses of requests that were sent together."""

    async def main():
        clients = [openai.AsyncOpenAI(base_url=f"{url}/v1", api_key=key, max_retries=0) for key in keys]

        async def ask(client):
            try:
                await client.chat.completions.create(model="tiny", messages=[{"role": "user", "content": "x"}], **how)
            except openai.APIStatusError as error:
                return error.status_code, error.response.headers.get("retry-after")
            return 200, None

        tasks = [ask(client) for client in clients for _ in range(count)]
        return await asyncio.gather(*tasks)

    return asyncio.run(main())


def test_the_queue_has_an_end_for_each_key_and_for_all(checkpoint):
    server = start(
        {"tiny": checkpoint}, queue=Queue(running=1, waiting=3, waiting_per_key=2), keys={"a": "ka", "b": "kb"}
    )
    try:
        of_one = statuses_once_held(server, 3, 6, ["ka"])
        assert sorted(code for code, _ in of_one) == [200] * 3 + [429] * 3
        assert {retry for code, retry in of_one if code == 429} == {"1"}
        of_two = [code for code, _ in statuses_once_held(server, 4, 4, ["ka", "kb"])]
        assert of_two.count(200) == 4
        assert 503 in of_two
    finally:
        server.stop()


def statuses_once_held(server, refused, count, keys):
    """The statuses of requests, none of which ends before as many of them were refused."""
    answered = len(server.lines("request"))
    RELEASE.clear()
    with ThreadPoolExecutor() as pool:
        found = pool.submit(statuses, server.url, count, keys, temperature=0, extra_body={"method": "held"})
        assert until(lambda: len(server.lines("request")) >= answered + refused)
        RELEASE.set()
        return found.result()


def test_the_client_tries_again_when_it_is_told_to(checkpoint):
    server = start({"tiny": checkpoint}, queue=Queue(running=1, waiting=1, waiting_per_key=1))
    try:

        async def main():
            async with openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=5) as client:
                how = {"model": "tiny", "messages": [{"role": "user", "content": "x"}], "max_completion_tokens": 100}
                return await asyncio.gather(*(client.chat.completions.create(**how) for _ in range(4)))

        assert len(asyncio.run(main())) == 4
    finally:
        server.stop()


def test_a_deadline_counts_the_wait(checkpoint):
    server = start({"tiny": checkpoint}, queue=Queue(running=1), limits=Limits(seconds=4))
    try:
        with ThreadPoolExecutor() as pool:
            silent = {"method": "silent:passes=4000"}
            first = pool.submit(statuses, server.url, 1, extra_body=silent)
            assert until(lambda: server.service.turns.running == 1)
            waiting = statuses(server.url, 2, extra_body={"budget": {"seconds": 0.1}})
            assert [code for code, _ in waiting] == [503, 503]
            assert first.result() == [(200, None)], "what ran ended as a budget ends it"
        assert until(lambda: server.service.turns.running == 0)
    finally:
        server.stop()


def take_turns(queue, arrivals):
    """The order in which requests of keys are admitted, one at a time."""

    async def main():
        turns, order = Turns(queue), []

        async def work(key):
            async with turns.turn(key, 1, 10):
                order.append(key)
                await asyncio.sleep(0)

        async with asyncio.TaskGroup() as group:
            for key in arrivals:
                group.create_task(work(key))
        return "".join(order)

    return asyncio.run(main())


def test_keys_take_turns():
    assert take_turns(Queue(running=1), "aaaaabbc") == "aabcabaa"


def test_a_request_for_more_than_there_is_room_waits_until_it_is_alone():
    async def main():
        turns, order = Turns(Queue(running=4)), []

        async def work(name, texts):
            async with turns.turn(name, texts, 10):
                order.append(name)
                assert turns.running <= 4
                await asyncio.sleep(0.001)

        async with asyncio.TaskGroup() as group:
            for name, texts in (("a", 2), ("big", 99), ("b", 1), ("c", 4)):
                group.create_task(work(name, texts))
        assert turns.running == turns.waiting == 0
        return order

    assert asyncio.run(main()) == ["a", "big", "b", "c"]


def test_whoever_leaves_the_line_makes_way():
    async def main():
        turns = Turns(Queue(running=1))
        async with turns.turn("a", 1, 10):
            waiting = [asyncio.create_task(turns.turn(key, 1, 10).__aenter__()) for key in "bc"]
            await asyncio.sleep(0)
            waiting[0].cancel()
            await asyncio.sleep(0)
            assert turns.waiting == 1
            with pytest.raises(ApiError) as error:
                async with turns.turn("d", 1, 0.01):
                    pass
            assert error.value.status == 503
        await waiting[1]
        assert turns.running == 1

    asyncio.run(main())


def test_a_full_engine_is_told_as_busy():
    from outlay.serve.errors import as_api_error

    error = as_api_error(QueueFull("3 requests are waiting"))
    assert (error.status, error.headers["x-should-retry"]) == (503, "true")
