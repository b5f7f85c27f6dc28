"""From logits to the distribution that a run samples from, with the meaning that `transformers` gives to each option.

The order is fixed: raw logits, logit bias, repetition, presence and frequency penalties, temperature, then truncation
by top-k, top-p and min-p. At temperature 0 the most probable token is taken, the lowest id among equals.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from outlay import kernels
from outlay.engine.random import uniform
from outlay.errors import UsageError
from outlay.kernels import TokenDraw, Truncation


@dataclass(frozen=True)
class Sampling:
    """How a token is chosen. Raises `UsageError` for a value out of range.

    `temperature` 0 is greedy. `top_k` keeps the k most probable tokens, `top_p` the fewest that hold that much
    probability, `min_p` those at least that probable relative to the best. `repetition_penalty` divides (or, below
    zero, multiplies) the logits of tokens in the prompt and the text; `presence_penalty` is subtracted from those of
    tokens in the text, and `frequency_penalty` as often as the token stands there. `logit_bias` adds to the logits of
    token ids.
    """

    temperature: float = 0.0
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: Mapping[int, float] = field(default_factory=dict)

    @property
    def truncation(self) -> Truncation:
        """What follows the penalties, where the temperature is above 0."""
        return Truncation(self.temperature, self.top_k, self.top_p, self.min_p)

    def __post_init__(self) -> None:
        _check(self.temperature >= 0, "temperature", "0 or more", self.temperature)
        _check(self.temperature < float("inf"), "temperature", "finite", self.temperature)
        _check(self.top_k is None or self.top_k >= 1, "top_k", "1 or more", self.top_k)
        _check(self.top_p is None or 0 < self.top_p <= 1, "top_p", "above 0 and at most 1", self.top_p)
        _check(self.min_p is None or 0 <= self.min_p <= 1, "min_p", "from 0 to 1", self.min_p)
        _check(0 < self.repetition_penalty < float("inf"), "repetition_penalty", "above 0", self.repetition_penalty)
        _check(abs(self.presence_penalty) < float("inf"), "presence_penalty", "finite", self.presence_penalty)
        _check(abs(self.frequency_penalty) < float("inf"), "frequency_penalty", "finite", self.frequency_penalty)

    @property
    def counts_text(self) -> bool:
        """Whether the logits of a token depend on the tokens before it."""
        return self.repetition_penalty != 1 or self.presence_penalty != 0 or self.frequency_penalty != 0


def _check(holds: bool, name: str, wanted: str, value: object) -> None:
    if not holds:
        raise UsageError(f"{name} must be {wanted}, not {value}")


def penalize(logits: Tensor, options: Sampling, prompt: Sequence[int], text: Sequence[int]) -> Tensor:
    """Returns logits [vocab] with the bias and the penalties applied; the input is left as it is."""
    if options.logit_bias:
        logits = logits.clone()
        ids = torch.tensor(list(options.logit_bias), device=logits.device)
        logits[ids] += torch.tensor(list(options.logit_bias.values()), dtype=logits.dtype, device=logits.device)
    if options.repetition_penalty != 1.0:
        seen = torch.tensor(sorted({*prompt, *text}), device=logits.device)
        values = logits[seen]
        penalty = options.repetition_penalty
        logits = logits.index_put((seen,), torch.where(values < 0, values * penalty, values / penalty))
    if (options.presence_penalty or options.frequency_penalty) and text:
        counts = sorted(Counter(text).items())
        seen = torch.tensor([token for token, _ in counts], device=logits.device)
        amounts = [options.presence_penalty + options.frequency_penalty * count for _, count in counts]
        logits = logits.index_put(
            (seen,), logits[seen] - torch.tensor(amounts, dtype=logits.dtype, device=logits.device)
        )
    return logits


def distribution(logits: Tensor, options: Sampling) -> Tensor:
    """Returns the probabilities float32 [..., vocab] that temperature and truncation make of penalized logits [...,
    vocab].
    """
    if options.temperature == 0:
        one_hot = torch.zeros_like(logits, dtype=torch.float32)
        return one_hot.scatter_(-1, logits.argmax(-1, keepdim=True), 1.0)
    if _native(logits):
        return kernels.probs(logits.view(-1, logits.shape[-1]), options.truncation).view(logits.shape)
    return torch_distribution(logits, options.truncation)


def draw_tokens(logits: Tensor, draws: Sequence[TokenDraw]) -> list[int]:
    """Returns a token drawn from each row of penalized logits [rows, vocab]."""
    if _native(logits):
        return kernels.draw(logits, draws)
    return [
        invert(torch_distribution(row, truncation), number)
        for row, (truncation, number) in zip(logits, draws, strict=True)
    ]


def _native(logits: Tensor) -> bool:
    return logits.device.type == "cpu" and logits.dtype == torch.float32 and kernels.available()


def torch_distribution(logits: Tensor, options: Truncation) -> Tensor:
    """As `distribution`, in torch's operations: for any device, and the reference of the native kernels."""
    scores = logits.float() / options.temperature
    if options.top_k is not None and options.top_k < scores.shape[-1]:
        least = scores.topk(options.top_k).values[..., -1:]
        scores = scores.masked_fill(scores < least, -torch.inf)
    if options.top_p is not None and options.top_p < 1:
        scores = _nucleus(scores, options.top_p)
    if options.min_p:
        probs = scores.softmax(-1)
        scores = scores.masked_fill(probs < options.min_p * probs.amax(-1, keepdim=True), -torch.inf)
    return scores.softmax(-1)


def _nucleus(scores: Tensor, top_p: float) -> Tensor:
    """Masks all but the smallest set of tokens whose probability reaches `top_p` (Holtzman et al. 2020)."""
    log_total = scores.logsumexp(-1, keepdim=True)
    vocab = scores.shape[-1]
    width = min(vocab, 512)  # nearly always enough, and far cheaper than sorting the vocabulary
    while True:
        values, ids = scores.topk(width)
        mass = (values - log_total).exp().cumsum(-1)
        if width == vocab or bool((mass[..., -1] >= top_p).all()):
            break
        width = min(vocab, 8 * width)
    keep = mass - (values - log_total).exp() < top_p
    masked = torch.full_like(scores, -torch.inf)
    return masked.scatter_(-1, ids, values.masked_fill(~keep, -torch.inf))


def most_probable(logits: Tensor) -> int:
    """Returns the token with the highest of logits [vocab], the lowest id among equals."""
    if logits.device.type == "cpu" and logits.dtype == torch.float32:
        return int(logits.numpy().argmax())  # several times quicker than torch's over one row
    return int(logits.argmax())


def draw(probs: Tensor, generator: torch.Generator) -> int:
    """Returns a token drawn from probs [vocab] by inverting their cumulative sum at one uniform number."""
    return invert(probs, uniform(generator))


def invert(probs: Tensor, number: float) -> int:
    """Returns the token at which the cumulative sum of probs [vocab] passes the share `number` of their total."""
    values = probs.cpu().numpy()
    edges = values.cumsum(dtype=np.float64)
    token = int(edges.searchsorted(number * edges[-1], side="right"))
    return token if token < len(values) else int(values.nonzero()[0][-1])
