"""Clients that stream answers from an OpenAI-compatible server, and note when each piece came."""

from __future__ import annotations

import asyncio
import itertools
import json
import time
from collections.abc import Sequence
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from outlay.errors import FailureError

LIMIT = 300.0  # seconds for all answers of a load


class Answer(NamedTuple):
    """One streamed answer."""

    tokens: int
    """Tokens that were written, as the server tells."""
    first: float
    """Seconds from the request to the first piece of text."""
    gaps: list[float]
    """Seconds between two pieces."""
    text: str


class Load(NamedTuple):
    """What all clients of one load got."""

    seconds: float
    answers: list[Answer]


def load(url: str, model: str, prompts: Sequence[str], new: int, **fields: Any) -> Load:
    """Asks a server all prompts at once, a client for each, at temperature 0.

    Args:
        url: the server's, without a path.
        model: the name that requests use.
        prompts: one for each client.
        new: tokens of an answer at most.
        fields: more fields of the requests.

    Raises:
        FailureError: where an answer is refused or breaks off.
    """
    return asyncio.run(_load(url, model, prompts, new, fields))


async def _load(url: str, model: str, prompts: Sequence[str], new: int, fields: dict[str, Any]) -> Load:
    started = time.perf_counter()
    async with asyncio.timeout(LIMIT):
        answers = await asyncio.gather(*(_ask(url, _body(model, prompt, new, fields)) for prompt in prompts))
    return Load(time.perf_counter() - started, list(answers))


def _body(model: str, prompt: str, new: int, fields: dict[str, Any]) -> bytes:
    body = {
        "model": model, "messages": [{"role": "user", "content": prompt}], "max_tokens": new, "temperature": 0,
        "stream": True, "stream_options": {"include_usage": True}, **fields,
    }  # fmt: skip
    return json.dumps(body).encode()


async def _ask(url: str, body: bytes) -> Answer:
    """Asks once and reads the events; a line of an event is never split by the servers that are measured."""
    host, port = urlsplit(url).hostname, urlsplit(url).port
    reader, writer = await asyncio.open_connection(host, port, limit=1 << 24)
    try:
        head = f"POST /v1/chat/completions HTTP/1.1\r\nhost: {host}:{port}\r\nconnection: close\r\n"
        writer.write(f"{head}content-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n".encode() + body)
        asked = time.perf_counter()
        status = int((await reader.readline()).split()[1])
        if status != 200:
            raise FailureError(f"a server answered with status {status}: {(await reader.read())[-300:].decode()}")
        text, tokens, times = "", 0, list[float]()
        async for line in reader:
            if not line.startswith(b"data: {"):
                continue
            chunk = json.loads(line[6:])
            if "error" in chunk:
                raise FailureError(f"an answer broke off: {chunk['error']}")
            piece = chunk["choices"][0]["delta"].get("content") if chunk.get("choices") else None
            if piece:
                text += piece
                times.append(time.perf_counter())
            if chunk.get("usage"):
                tokens = chunk["usage"]["completion_tokens"]
    finally:
        writer.close()
    if not times:
        raise FailureError("an answer has no text")
    gaps = [later - earlier for earlier, later in itertools.pairwise(times)]
    return Answer(tokens or len(times), times[0] - asked, gaps, text)
