"""The objects of OpenAI's API that answers are made of."""

from __future__ import annotations

import time
import uuid
from collections.abc import Sequence
from typing import Any

from outlay.budget import Ledger
from outlay.engine.session import TokenLogprob
from outlay.models.tokenizer import Tokenizer
from outlay.serve.answers import Answer, AnswerReader
from outlay.serve.asked import Asked

LEAST_LOGPROB = -9999.0  # in place of minus infinity, which JSON can't hold; OpenAI's own choice


def new_id(kind: str) -> str:
    """Returns an id that no other object has."""
    return f"{kind}-{uuid.uuid4().hex}"


def head(asked: Asked, identity: str, kind: str) -> dict[str, Any]:
    """Returns what every answer and every chunk of a stream begins with."""
    return {
        "id": identity,
        "object": kind,
        "created": int(time.time()),
        "model": asked.hosted.name,
        "system_fingerprint": asked.hosted.fingerprint,
    }


def usage(answers: Sequence[Answer], texts: int) -> dict[str, Any]:
    """Returns the token counts of a request; a prompt counts once, however many texts were written for it."""
    prompts = answers[::texts]
    prompt = sum(answer.prompt_tokens for answer in prompts)
    completion = sum(len(answer.tokens) for answer in answers)
    return {
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "total_tokens": prompt + completion,
        "prompt_tokens_details": {"cached_tokens": sum(answer.cached_tokens for answer in prompts)},
        "completion_tokens_details": {
            "reasoning_tokens": sum(answer.reasoning_tokens for answer in answers),
            "accepted_prediction_tokens": sum(answer.ledger.accepted for answer in answers),
            "rejected_prediction_tokens": sum(answer.ledger.drafted - answer.ledger.accepted for answer in answers),
        },
    }


def spending(asked: Asked, answers: Sequence[Answer]) -> dict[str, Any]:
    """Returns our own part of an answer: what all of its texts cost together, and why the first of them ended."""
    first = answers[0]
    told: dict[str, Any] = {
        "method": first.method,
        "finish_reason": first.finish_reason,
        "seed": asked.seed,
        "ledger": sum((answer.ledger for answer in answers), Ledger()).as_dict(),
    }
    if asked.cache is not None:
        told["cache"] = asked.cache.label
    return told | ({"cap": first.cap} if first.cap else {})


def finish_reason(answer: Answer, calls: bool = False) -> str:
    """Returns OpenAI's word for why a text ended. A budget is a length there."""
    if answer.finish_reason == "stop":
        return "tool_calls" if calls else "stop"
    return "length"


def message(reader: AnswerReader) -> dict[str, Any]:
    """Returns the message of a chat answer."""
    said: dict[str, Any] = {"role": "assistant", "content": reader.content or (None if reader.calls else "")}
    said["refusal"] = None
    if reader.reasoning:
        said["reasoning_content"] = reader.reasoning
    if reader.calls:
        said["tool_calls"] = [
            {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": call.arguments}}
            for call in reader.calls
        ]
    return said


def chat_logprobs(tokenizer: Tokenizer, logprobs: Sequence[TokenLogprob]) -> list[dict[str, Any]]:
    """Returns log-probabilities as chat answers have them."""
    return [
        token_logprob(tokenizer, each.token, each.logprob)
        | {"top_logprobs": [token_logprob(tokenizer, token, logprob) for token, logprob in each.top]}
        for each in logprobs
    ]


def token_logprob(tokenizer: Tokenizer, token: int, logprob: float) -> dict[str, Any]:
    """Returns a token with its log-probability; a special token goes by its name."""
    text = tokenizer.name_of(token) or tokenizer.decode([token])
    data = tokenizer.name_of(token).encode() or tokenizer.bytes_of(token)
    return {"token": text, "bytes": list(data), "logprob": max(logprob, LEAST_LOGPROB)}


def completion_logprobs(tokenizer: Tokenizer, logprobs: Sequence[TokenLogprob], offset: int) -> dict[str, Any]:
    """Returns log-probabilities as completions have them.

    Args:
        tokenizer: the model's.
        logprobs: of each token.
        offset: characters of the text before them.
    """
    texts = [tokenizer.name_of(each.token) or tokenizer.decode([each.token]) for each in logprobs]
    offsets = [offset + sum(map(len, texts[:place])) for place in range(len(texts))]
    tops = []
    for each in logprobs:
        best: dict[str, float] = {}
        for token, logprob in each.top:  # the most probable of those that look alike
            best.setdefault(tokenizer.name_of(token) or tokenizer.decode([token]), max(logprob, LEAST_LOGPROB))
        tops.append(best)
    return {
        "tokens": texts,
        "token_logprobs": [max(each.logprob, LEAST_LOGPROB) for each in logprobs],
        "top_logprobs": tops,
        "text_offset": offsets,
    }
