"""The rules of a checkpoint's generation config, applied to logits in the order of `transformers`."""

from __future__ import annotations

from collections.abc import Collection, Sequence

import torch
from torch import Tensor

from outlay.engine.sampling import Sampling, penalize
from outlay.models.generation import GenerationRules, Timestamps


def apply_rules(
    rules: GenerationRules,
    logits: Tensor,
    prompt: Sequence[int],
    text: Sequence[int],
    *,
    eos: Collection[int],
    max_tokens: int,
) -> Tensor:
    """Returns logits [vocab] as the rules change them; the input is left as it is.

    Args:
        rules: The rules.
        logits: Of the token after `text`, [vocab].
        prompt: What the decoder started with.
        text: What was written.
        eos: The tokens that end a text.
        max_tokens: The most tokens of the text.
    """
    if rules.repetition_penalty != 1.0:
        logits = penalize(logits, Sampling(repetition_penalty=rules.repetition_penalty), prompt, text)
    if (forced := _forced(rules, prompt, text, max_tokens)) is not None:
        only = torch.full_like(logits, -torch.inf)
        only[list(forced)] = 0
        logits = only
    written = [*prompt, *text]
    forbidden = [*rules.suppressed, *_repeated(rules.no_repeat_ngram, written)]
    forbidden += [
        word[-1]
        for word in rules.bad_words
        if written[len(written) + 1 - len(word) :] == [*word[:-1]] and (len(word) > 1 or word[0] not in eos)
    ]
    if len(prompt) + len(text) < rules.min_length or len(text) < rules.min_new_tokens:
        forbidden += eos
    if len(text) == (rules.forced_bos is not None and len(prompt) == 1):
        forbidden += rules.begin_suppressed
    if forced is not None:  # what is forced comes after those that forbid, but for suppressed tokens
        forbidden = [token for token in forbidden if token in rules.suppressed or token in rules.begin_suppressed]
    known = [token for token in forbidden if 0 <= token < logits.shape[-1]]
    if known:
        logits = logits.clone()
        logits[known] = -torch.inf
    return logits if rules.timestamps is None else _timed(rules.timestamps, logits, text, min(eos, default=0))


def _timed(times: Timestamps, logits: Tensor, text: Sequence[int], end: int) -> Tensor:
    """Returns logits [vocab] with timestamps where they belong.

    A text begins with one. They come in pairs, the end of one piece and the beginning of the next, but for the last
    one, which only the end follows. None is before one that was written. Where all of them together are more probable
    than any other token, one of them comes.

    Args:
        times: The timestamps.
        logits: Of the token after `text`, [vocab].
        text: What was written.
        end: The token that ends a text, before which all tokens of words are.
    """
    logits, first = logits.clone(), times.first
    logits[times.none] = -torch.inf
    last = bool(text) and text[-1] >= first
    pair = len(text) < 2 or text[-2] >= first
    if last and pair:
        logits[first:] = -torch.inf
    elif last:
        logits[:end] = -torch.inf
    latest = next((token for token in reversed(text) if token >= first), None)
    if latest is not None:
        logits[first : latest if last and not pair else latest + 1] = -torch.inf
    if not text:
        logits[:first] = -torch.inf
        if times.latest is not None:
            logits[first + times.latest + 1 :] = -torch.inf
    if float(logits[first:].float().logsumexp(-1)) > float(logits[:first].max()):
        logits[:first] = -torch.inf
    return logits


def _forced(
    rules: GenerationRules, prompt: Sequence[int], text: Sequence[int], max_tokens: int
) -> Collection[int] | None:
    """Returns the tokens that may come next whatever the model says; None where the model decides."""
    if len(text) == max_tokens - 1 and rules.forced_eos:
        return rules.forced_eos
    if rules.forced_bos is not None and len(prompt) + len(text) == 1:
        return (rules.forced_bos,)
    return None


def _repeated(length: int, tokens: Sequence[int]) -> list[int]:
    """Returns the tokens that would end a sequence of this length which is there already."""
    if length < 1 or len(tokens) + 1 < length:
        return []
    end = list(tokens[len(tokens) + 1 - length :])
    return [
        tokens[at + length - 1] for at in range(len(tokens) - length + 1) if list(tokens[at : at + length - 1]) == end
    ]
