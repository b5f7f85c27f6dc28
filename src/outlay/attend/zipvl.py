"""ZipVL: in each layer the tokens that carry the attention, the rest in fewer bits or dropped (He, Chen, Liu, Shao,
Zhou, Zhang, Zhuang 2024, arXiv 2410.08584).

A few probe rows of a prompt tell how much each token is read. The smallest set of tokens that carries a share tau of it
is important: in the prompt only these attend, and they are held in more bits than the others. What is written later is
held in blocks of 100 tokens, likewise. Approximate: tau = 1 with 16 bits changes nothing.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from outlay.about import About
from outlay.attend.policy import COUNTS, CachePolicy, Hold, Keeper, LayerChoice, Prompt, Rewrite, Step
from outlay.attend.quantizer import BITS, HELD, part_bytes
from outlay.errors import UsageError
from outlay.models.config import DecoderConfig
from outlay.tree.attention import row_scores

HALVINGS = 40  # of the interval in which the largest tau that fits lies


@dataclass(frozen=True)
class ZipVL(CachePolicy):
    """Holds the tokens that carry the attention in more bits than the others, and lets these alone attend."""

    tau: float = 0.975
    """The share of the probes' attention that important tokens carry."""
    bits: tuple[int, ...] = (4, 2)
    """Bits of important tokens and of the others: 2, 4, 8, or 16 for what the cache holds anyway."""
    mode: Literal["quantize", "evict"] = "quantize"
    """Whether unimportant tokens are held in fewer bits or dropped."""
    probes: tuple[int, ...] | None = None
    """Rows at the prompt's end and before it, drawn, that tell what is read. None: a twentieth of the prompt each, from
    8 to 64. A prompt with fewer tokens is probed by all of them."""
    every: int = 100
    """Written tokens after which these are held anew; 0 leaves them as they are."""
    sparse: bool = True
    """Whether important tokens alone attend in the prompt."""
    keep_text: bool = False
    """Whether all text of a prompt with images is important."""
    full_first: int = 0
    """Tokens at the prompt's beginning that are held as the cache holds them."""
    separable: bool = True
    """Whether values have a scale for each channel beside those for each token."""
    ratio: float | None = None
    """A fixed share of tokens in place of the adaptive number, which is the paper's baseline. None: adaptive."""
    seed: int = 0
    """What the drawn probes are drawn from."""

    about: ClassVar[About] = About(
        name="zipvl",
        summary="in each layer the tokens that carry the attention; the rest in fewer bits or dropped",
        paper="arXiv 2410.08584",
        family="attention",
        spends="a prompt is read whole, layer by layer",
        saves="bytes of keys and values held, and attention in long prompts",
        exact=False,
        task="cache",
        command='outlay run "..." --cache zipvl',
        counts=COUNTS,
    )

    def __post_init__(self) -> None:
        if not 0 < self.tau <= 1:
            raise UsageError(f"zipvl needs tau above 0 and at most 1, not {self.tau:g}")
        if len(self.bits) != 2 or not {*self.bits} <= {*BITS} or self.bits[0] < self.bits[1]:
            wrong = "x".join(map(str, self.bits))
            raise UsageError(f"zipvl needs two of {', '.join(map(str, BITS))} bits, the larger first, not {wrong}")
        if self.mode not in ("quantize", "evict"):
            raise UsageError(f"zipvl's mode is quantize or evict, not {self.mode!r}")
        if self.probes is not None and (len(self.probes) != 2 or min(self.probes) < 0 or not any(self.probes)):
            wrong = "x".join(map(str, self.probes))
            raise UsageError(f"zipvl needs two numbers of probes, such as 64x64, not {wrong}")
        if self.every < 0 or self.full_first < 0:
            raise UsageError("zipvl needs every and full_first of 0 or more")
        if self.ratio is not None and not 0 < self.ratio <= 1:
            raise UsageError(f"zipvl needs a ratio above 0 and at most 1, not {self.ratio:g}")

    def keeper(self, prompt: Prompt) -> ZipVLKeeper:
        return ZipVLKeeper(self, prompt)

    def check(self, prompt: Prompt) -> None:
        least = self.least_bytes(prompt)
        if least > prompt.kv_held:
            raise UsageError(
                f"a budget of {prompt.kv_held:g} bytes of keys and values is below what one token a layer needs: "
                f"{least} for this prompt of {len(prompt.tokens)} tokens"
            )

    def least_bytes(self, prompt: Prompt) -> int:
        """Returns the bytes that hold a prompt of which one token a layer is important, beside those always held so."""
        n = len(prompt.tokens)
        always = len({*range(min(self.full_first, n)), 0, n - 1})
        return prompt.config.num_layers * self.layer_bytes(prompt, min(self.full_first, n), always)

    def layer_bytes(self, prompt: Prompt, full: int, important: int) -> int:
        """Returns the bytes of a layer in which so many tokens are important, `full` of them held as they are.

        The closed form of the paper, sum over parts of 2 h_k d n_part b / 8, with scales and positions.
        """
        n, config = len(prompt.tokens), prompt.config
        others = n - important if self.mode == "quantize" else 0
        total = 0
        for tokens, bits in ((full, HELD), (important - full, self.bits[0]), (others, self.bits[1])):
            if bits == HELD:
                total += tokens * prompt.slot_bytes + (-(-n // 8) if tokens else 0)
            else:
                heads, dim = config.num_kv_heads, config.head_dim
                total += part_bytes(tokens, n, bits, heads, dim, separable=self.separable)
        return total

    def tail_bytes(self, prompt: Prompt) -> int:
        """Returns the bytes that the tokens to come may take: blocks, and as many plain ones as stand behind them."""
        tokens = prompt.max_tokens
        plain = min(tokens, self.every + 1) if self.every else tokens
        blocks = (tokens - plain) // self.every if self.every else 0
        block = self.layer_bytes(prompt._replace(tokens=[0] * self.every), 0, self.every) if blocks else 0
        rest = tokens - plain - blocks * self.every
        return prompt.config.num_layers * ((plain + rest) * prompt.slot_bytes + blocks * block)

    def probe_rows(self, count: int) -> Tensor:
        """Returns the probe rows of a prompt: its last ones and drawn earlier ones, int64, ascending."""
        size = max(8, min(64, count // 20))
        recent, drawn = (size, size) if self.probes is None else self.probes
        if recent + drawn >= count:
            return torch.arange(count)
        first = count - recent
        generator = torch.Generator().manual_seed(self.seed)
        earlier = torch.randperm(first, generator=generator)[:drawn]
        return torch.cat([earlier.sort().values, torch.arange(first, count)])

    def count(self, scores: Tensor, tau: float) -> int:
        """Returns how many tokens are important, given raw scores [n]."""
        return important_count(scores, tau) if self.ratio is None else math.ceil(self.ratio * len(scores))


class ZipVLKeeper(Keeper):
    """ZipVL on one prompt."""

    def __init__(self, policy: ZipVL, prompt: Prompt) -> None:
        self._policy, self._prompt, self._config = policy, prompt, prompt.config
        self._rows = policy.probe_rows(len(prompt.tokens))
        self._budget = math.inf
        if prompt.kv_held < math.inf:
            self._budget = max(policy.least_bytes(prompt), prompt.kv_held - policy.tail_bytes(prompt))
        self._scores: list[tuple[Tensor, Tensor]] = []  # of each layer raw and normalized, where a budget finds tau
        self._important: list[int] = []
        self.tau = policy.tau

    def prompt(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> LayerChoice:
        policy, rows = self._policy, self._rows.to(q.device)
        raw = accumulated(probe_attention(q[rows], k, rows, self._config, self._config.windows[layer]))
        normalized = raw / visible_probes(rows, len(k), self._config.windows[layer])
        important = self._set(raw, normalized, policy.tau)
        attending = important if policy.sparse else None
        if self._budget < math.inf:
            self._scores.append((raw, normalized))
            return LayerChoice(attending)
        return LayerChoice(attending, self._holds(important))

    def end_of_prompt(self) -> Sequence[Sequence[Hold]]:
        """Holds what the largest tau that fits into the budget says, the same in all layers (bisection)."""
        self.tau = largest(self._fits, self._policy.tau)
        return [self._holds(self._set(raw, normalized, self.tau)) for raw, normalized in self._scores]

    def probe_flops(self) -> int:
        config = self._config
        pairs = len(self._rows) * len(self._prompt.tokens)
        return 2 * config.num_layers * config.num_heads * config.head_dim * pairs

    def watches(self, tail: int) -> bool:
        return 0 < self._policy.every <= tail

    def step(self, step: Step) -> Rewrite | None:
        """Holds the tail anew, by what the current token reads of it."""
        policy = self._policy
        if step.attention is None:
            return None
        since = step.position + 1 - step.tail
        tail, layers = torch.arange(since, step.position + 1, device=step.attention.device), []
        for scores in step.attention[:, since:].double():
            chosen = top(scores, policy.count(scores, policy.tau))
            layers.append(self._parts(tail[chosen], tail[~chosen]))
        return Rewrite(since, layers)

    def facts(self) -> dict[str, Any]:
        n = len(self._prompt.tokens)
        shares = [count / n for count in self._important]
        return {
            "policy": self._policy.label,
            "tau": self.tau,
            "probes": len(self._rows),
            "important": shares,
            "mean_important": sum(shares) / max(1, len(shares)),
        }

    def _fits(self, tau: float) -> bool:
        policy, full = self._policy, min(self._policy.full_first, len(self._prompt.tokens))
        held = (len(self._set(raw, normalized, tau)) for raw, normalized in self._scores)
        return sum(policy.layer_bytes(self._prompt, full, count) for count in held) <= self._budget

    def _set(self, raw: Tensor, normalized: Tensor, tau: float) -> Tensor:
        """Returns the important positions, ascending: how many by raw scores, which by normalized ones.

        The first and the last token always are, and text beside images if it is kept.
        """
        chosen = top(normalized, self._policy.count(raw, tau))
        chosen[0] = chosen[-1] = True
        chosen[: self._policy.full_first] = True
        is_text = self._prompt.is_text.to(chosen.device)
        if self._policy.keep_text and not bool(is_text.all()):
            chosen |= is_text
        return chosen.nonzero()[:, 0]

    def _holds(self, important: Tensor) -> list[Hold]:
        """Returns how a layer of the prompt is held."""
        others = torch.ones(len(self._prompt.tokens), dtype=torch.bool, device=important.device)
        others[important] = False
        self._important.append(len(important))
        full = self._policy.full_first
        holds = self._parts(important[important >= full], others.nonzero()[:, 0])
        return [Hold(important[important < full]), *holds]

    def _parts(self, important: Tensor, others: Tensor) -> list[Hold]:
        high, low = self._policy.bits
        holds = [Hold(important, high, separable=self._policy.separable)]
        if self._policy.mode == "quantize":
            holds.append(Hold(others, low, separable=self._policy.separable))
        return holds


def probe_attention(q: Tensor, k: Tensor, rows: Tensor, config: DecoderConfig, window: int | None = None) -> Tensor:
    """Computes causal attention of probe rows, the mean over heads (step 2).

    Args:
        q: Queries of the probe rows, [m, num_heads, head_dim].
        k: Keys of all tokens, [n, num_kv_heads, head_dim].
        rows: Positions of the probe rows, int64 [m].
        config: The model's shape.
        window: How many positions a row sees; None for all.

    Returns:
        Float32 [m, n]; each row sums to 1.
    """
    scores = row_scores(q, k.transpose(0, 1), config)
    scores = scores.masked_fill(~seen(rows, len(k), window)[:, None], -torch.inf)
    return scores.softmax(-1).mean(1)


def seen(rows: Tensor, count: int, window: int | None) -> Tensor:
    """Returns which of `count` tokens each of the rows [m] sees, bool [m, count]."""
    at = torch.arange(count, device=rows.device)
    visible = at <= rows[:, None]
    return visible if window is None else visible & (at > rows[:, None] - window)


def accumulated(attention: Tensor) -> Tensor:
    """Returns each token's raw score, the sum over probe rows [m, n] of what they read of it, float64 [n] (step 3)."""
    return attention.double().sum(0)


def visible_probes(rows: Tensor, count: int, window: int | None = None) -> Tensor:
    """Returns how many probe rows see each of `count` tokens, at least 1, int64 [count] (step 5)."""
    return seen(rows, count, window).sum(0).clamp_min(1)


def important_count(scores: Tensor, tau: float) -> int:
    """Returns the least p for which the p largest scores [n] carry a share tau of all, from 1 to n (step 4)."""
    if tau >= 1:
        return max(1, int((scores > 0).sum()))
    carried = scores.sort(descending=True).values.cumsum(0)
    return min(int((carried < tau * carried[-1]).sum()) + 1, len(scores))


def top(scores: Tensor, count: int) -> Tensor:
    """Returns which scores [n] are the `count` largest, the first among equals, bool [n]."""
    chosen = torch.zeros(len(scores), dtype=torch.bool, device=scores.device)
    chosen[scores.sort(descending=True, stable=True).indices[:count]] = True
    return chosen


def largest(fits: Callable[[float], bool], most: float) -> float:
    """Returns the largest tau up to `most` that fits, by bisection; 0 where none above it does."""
    if fits(most):
        return most
    low, high = 0.0, most
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low
