"""Texts with a thinking span, from which a length predictor learns: the user's, or those that a model writes itself."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from outlay.decode.steer.budget_guidance.span import ThinkingSpan
from outlay.engine.random import mix
from outlay.errors import UsageError
from outlay.lm import LM
from outlay.models.load import Model
from outlay.models.reasoning import Tags, tags_of, thinks_already
from outlay.models.tokenizer import Tokenizer
from outlay.train.questions import questions

Progress = Callable[[str, int, int], None]
FINAL = "**Final Answer"  # what the authors keep of a thinking that they replace by its answer
TOGETHER = 32  # texts that are written in one batch


@dataclass(frozen=True)
class Thoughts:
    """A text as token ids, whose thinking is `tokens[begin:end]`, the closing tag included."""

    tokens: list[int]
    begin: int
    end: int


def thinking_tags(model: Model, opening: str | None, closing: str | None) -> Tags:
    """Returns the tags that are given, or the model's own.

    Raises:
        UsageError: Neither is there, or an opening is given alone.
    """
    if closing:
        return Tags(opening or "", closing)
    if opening:
        raise UsageError("an opening needs what closes the thinking too: --closing TEXT")
    tags = tags_of(model.tokenizer)
    if tags is None:
        raise UsageError(f"{model.name} has no tags around its thinking; say what ends it: --closing TEXT")
    return tags


def thoughts_in(tokenizer: Tokenizer, tags: Tags, prompt: Sequence[int], reply: Sequence[int]) -> Thoughts | None:
    """Returns a text with the place of its thinking; None where it has none.

    A thinking that is not closed counts to the end of the text.
    """
    span, tokens = ThinkingSpan(tokenizer, tags, prompt), [*prompt, *reply]
    begin = len(prompt) if span.inside else None
    for place, token in enumerate(reply, len(prompt)):
        was_inside = span.inside
        span.push(token)
        if was_inside and not span.inside:
            assert begin is not None, "what was inside has begun"
            return Thoughts(tokens, begin, place + 1)
        if span.inside and begin is None:
            begin = place + 1
    return None if begin is None or begin == len(tokens) else Thoughts(tokens, begin, len(tokens))


def given_thoughts(lm: LM, tags: Tags, texts: Iterable[tuple[list[int], str]]) -> list[Thoughts]:
    """Returns the user's texts, prompts as token ids with their answers, without those that have no thinking."""
    tokenizer, found = lm.model.tokenizer, list[Thoughts | None]()
    for prompt, answer in texts:
        if tags.opening and thinks_already(tokenizer, tags, prompt):
            answer = answer.lstrip().removeprefix(tags.opening)
        reply = tokenizer.encode(answer, special=True)
        found.append(thoughts_in(tokenizer, tags, prompt, [*reply, *tokenizer.eos_token_ids[:1]]))
    return [text for text in found if text is not None]


@dataclass(frozen=True)
class Writing:
    """How a model writes the texts that its predictor learns from."""

    texts: int = 1000
    """Texts."""
    max_tokens: int = 2048
    """Tokens of a text at most; one whose thinking goes on is left out, as its length isn't known."""
    temperature: float = 1.0
    """Of the draws; guided tokens are drawn at 1."""
    seed: int = 0
    """Seed of all draws."""


def own_thoughts(
    lm: LM, tags: Tags, writing: Writing, prompts: Sequence[list[int]] | None, kept: Path, progress: Progress
) -> list[Thoughts]:
    """Has a model write texts, and returns those with a thinking whose length is known.

    Args:
        lm: The model.
        tags: What stands around its thinking.
        writing: How it writes.
        prompts: Token ids of prompts, answered again and again with other seeds; None: the model's own `questions`.
        kept: A file that the texts are kept in, so that a stopped run goes on.
        progress: Called before each batch.

    Raises:
        UsageError: The file holds texts of another model or another `writing`.
    """
    head = {"fingerprint": lm.model.fingerprint, "tags": list(tags), **asdict(writing)}
    lines = kept.read_text().splitlines() if kept.exists() else []
    if lines and json.loads(lines[0]) != head:
        raise UsageError(f"{kept} holds texts of another model or other options; remove it, or train another file")
    kept.parent.mkdir(parents=True, exist_ok=True)
    lines = lines or [json.dumps(head)]
    while (done := len(lines) - 1) < writing.texts:
        progress("writing texts", done, writing.texts)
        lines += [json.dumps(each and asdict(each)) for each in _batch(lm, tags, writing, prompts, done)]
        part = kept.with_suffix(".part")
        part.write_text("".join(line + "\n" for line in lines))
        part.replace(kept)
    rows = [json.loads(line) for line in lines[1:]]
    return [Thoughts(**row) for row in rows if row is not None]


def _batch(
    lm: LM, tags: Tags, writing: Writing, prompts: Sequence[list[int]] | None, done: int
) -> list[Thoughts | None]:
    """Returns the texts from number `done` on that are written together."""
    numbers = range(done, min(done + TOGETHER, writing.texts))
    asked = questions(lm, numbers, writing.seed) if prompts is None else [prompts[n % len(prompts)] for n in numbers]
    with lm.engine.together():
        handles = [
            lm.submit(
                prompt, method="sample", max_tokens=writing.max_tokens, temperature=writing.temperature,
                seed=mix(writing.seed, number, 5),
            )
            for number, prompt in zip(numbers, asked, strict=True)
        ]  # fmt: skip
    results = [handle.result() for handle in handles]
    lm.engine.clear()
    found = list[Thoughts | None]()
    for prompt, result in zip(asked, results, strict=True):
        text = thoughts_in(lm.model.tokenizer, tags, prompt, result.tokens)
        unknown = text is not None and text.end == len(text.tokens) and result.finish_reason != "stop"
        found.append(None if unknown else text)
    return found


def short_copy(tokenizer: Tokenizer, tags: Tags, text: Thoughts) -> Thoughts | None:
    """Returns a text with its answer in place of its thinking, as the authors augment their data.

    Of the thinking what follows "**Final Answer" is kept. None where there is no answer.
    """
    answer = [token for token in text.tokens[text.end :] if token not in tokenizer.eos_token_ids]
    if not answer:
        return None
    closing = tokenizer.encode(tags.closing, special=True)
    thinking, read = text.tokens[text.begin : text.end - len(closing)], b""
    final: list[int] = []
    for place, token in enumerate(thinking):
        read += tokenizer.bytes_of(token)
        if FINAL.encode() in read:
            final = thinking[place + 1 :]
            break
    thought = [*answer, *final, *closing]
    end = text.begin + len(thought)
    return Thoughts([*text.tokens[: text.begin], *thought, *text.tokens[text.end :]], text.begin, end)
