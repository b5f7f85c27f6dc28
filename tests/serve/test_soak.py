"""Twenty minutes of mixed work: a tenth of the clients vanish, a twentieth send nonsense. Nothing may be left over."""

from __future__ import annotations

import asyncio
import gc
import os
import random
import time

import openai
import psutil
import pytest
from serve.running import start
from serve.test_leaving import Client
from serve.test_serve_load import WAYS, alone, wishes

SECONDS = float(os.environ.get("OUTLAY_SOAK_SECONDS", 1200))
NONSENSE = [
    {"method": "no such method"}, {"draft": "/etc/passwd"}, {"budget": {"nothing": 1}}, {"top_k": -1}, {"tmp": 1},
]  # fmt: skip


@pytest.mark.slow
def test_a_soak_leaves_nothing_behind(checkpoint, other_checkpoint):
    server = start({"tiny": checkpoint, "other": other_checkpoint}, drafts={"small": other_checkpoint})
    try:
        asked = list(wishes(2 * len(WAYS), 24))
        expected = list(alone(server, asked))
        asyncio.run(soak(server, asked, expected, min(20.0, SECONDS / 4)))  # until all that grows once has grown
        assert server.idle()
        before, held = memory(), slots(server)
        counts = asyncio.run(soak(server, asked, expected, SECONDS))
        assert server.idle()
        print(counts, f"memory {before / 1e6:.0f} MB before, {memory() / 1e6:.0f} MB after")
        assert memory() < 1.1 * before + 30e6
        server.engine.clear()
        assert slots(server) == 0 <= held
        assert server.service.turns.running == server.service.turns.waiting == 0
        assert not [row for row in server.lines("request") if row["status"] >= 500]
    finally:
        server.stop()


def memory():
    gc.collect()
    return psutil.Process().memory_info().rss


def slots(server):
    return sum(worker.cache.in_use for worker in server.engine.workers if hasattr(worker, "cache"))


async def soak(server, asked, expected, seconds):
    """Eight clients ask, each in its own order, until the time is over; returns what came of it."""
    last = time.monotonic() + seconds
    counts = {"right": 0, "left": 0, "refused": 0}

    async def one(number):
        draw = random.Random(number)
        async with openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client:
            while time.monotonic() < last:
                place, chance = draw.randrange(len(asked)), draw.random()
                if chance < 0.1:
                    vanishing = Client(server, **flat(asked[place]) | {"stream": draw.random() < 0.5})
                    await asyncio.sleep(draw.random() * 0.2)
                    vanishing.leave()
                    counts["left"] += 1
                elif chance < 0.15:
                    with pytest.raises(openai.APIStatusError) as error:
                        await client.chat.completions.create(**asked[place] | {"extra_body": draw.choice(NONSENSE)})
                    assert 400 <= error.value.status_code < 500
                    counts["refused"] += 1
                else:
                    answer = await client.chat.completions.create(**asked[place])
                    assert answer.choices[0].message.content == expected[place]
                    counts["right"] += 1

    await asyncio.gather(*(one(number) for number in range(8)))
    return counts


def flat(wish):
    """The body of a request that the official client would send."""
    return {name: value for name, value in wish.items() if name != "extra_body"} | wish["extra_body"]
