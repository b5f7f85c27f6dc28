"""The interface of cache policies: which rows of a prompt attend, what each layer holds of it, and what becomes of it.

A policy is an entry of the catalogue and stands beside any method that takes one. For each run it makes a `Keeper`,
which sees every layer's queries, keys and values of the whole prompt, then every step, and may hold less at each. What
it says is carried out elsewhere: it returns positions and bits, never touches the cache, and knows no method.
"""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from math import gcd
from typing import Any, NamedTuple

import torch
from torch import Tensor

from outlay.about import Entry
from outlay.attend.quantizer import BITS, HELD
from outlay.models.config import DecoderConfig
from outlay.tree.cache import GROUP
from outlay.tree.stored import HeldKeys

COUNTS: Mapping[str, str] = {
    "attention_flops": "FLOP",
    "attention_flops_dense": "FLOP",
    "probe_flops": "FLOP",
    "kv_payload": "B",
    "kv_overhead": "B",
    "kv_dense": "B",
    "rewrites": "",
}
"""What is counted for every run under a policy, for `About.counts`. Attention's FLOPs are those of the prompt, and of
the same prompt if every token attended; bytes are those that hold the prompt: keys and values, scales and positions,
and all tokens in 16 bits. `rewrites` is how often a policy held tokens anew after the prompt."""


class Prompt(NamedTuple):
    """What a policy may know before it sees the first layer."""

    tokens: Sequence[int]
    """Token ids, [n]."""
    is_text: Tensor
    """Which of them are text, bool [n]: the others are input embeddings, such as those of an image."""
    config: DecoderConfig
    """The model's shape: heads, windows, scale."""
    dtype: torch.dtype
    """How the cache holds keys and values, which is what `HELD` bits mean."""
    kv_held: float = float("inf")
    """Bytes of keys and values that the budget allows the run, its tokens to come included."""
    max_tokens: int = 0
    """Tokens that the run may write."""

    @property
    def slot_bytes(self) -> int:
        """Bytes that a plain token takes in one layer."""
        config = self.config
        scales = 4 * config.head_dim // gcd(GROUP, config.head_dim) if self.dtype == torch.int8 else 0
        return 2 * config.num_kv_heads * (config.head_dim * self.dtype.itemsize + scales)


class Hold(NamedTuple):
    """Tokens that a layer holds alike. What no `Hold` names is dropped from the layer."""

    positions: Tensor
    """int64 [m], ascending: of the prompt's tokens, or from `Rewrite.since` on."""
    bits: int = HELD
    """One of `BITS`; `HELD` is as the cache holds plain tokens."""
    keys: Tensor | None = None
    """[num_kv_heads, m, head_dim], held in place of the tokens' own, such as the mean of several tokens."""
    values: Tensor | None = None
    """[num_kv_heads, m, head_dim]."""
    separable: bool = True
    """Whether values are divided by a scale for each channel before they are quantized."""


class LayerChoice(NamedTuple):
    """What a policy says of one layer of a prompt."""

    rows: Tensor | None = None
    """int64 [p], ascending: the positions that attend, each to those of them up to itself. The others take nothing from
    attention in this layer. None: all attend."""
    holds: Sequence[Hold] | None = None
    """What the layer holds; None where `Keeper.end_of_prompt` says it."""


class Step(NamedTuple):
    """A token that a pass has computed: the last of the run's trunk."""

    position: int
    """Its position in the text."""
    tail: int
    """How many tokens stand behind the last segment, itself included."""
    attention: Tensor | None
    """Mean over heads of what it reads, float32 [layers, position + 1], where `Keeper.watches` asked for it. A token
    that a layer doesn't hold has 0."""
    read: Callable[[int], HeldKeys]
    """What a layer holds at present, stored and plain, by layer."""


class Rewrite(NamedTuple):
    """Has tokens of the trunk held anew, from a position up to and including the step's token."""

    since: int
    """The first position: of the first plain token, or of the first one of an earlier segment, which is replaced."""
    layers: Sequence[Sequence[Hold]]
    """What each layer holds of them."""


class Keeper(ABC):
    """What a policy knows of one tree of a run. Draws come from the policy's own seed, never from global state."""

    @abstractmethod
    def prompt(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> LayerChoice:
        """Says what one layer does with a prompt. Called for each layer, in order.

        Args:
            layer: The layer.
            q: Queries [n, num_heads, head_dim], rotated.
            k: Keys [n, num_kv_heads, head_dim], rotated, as the cache would hold them.
            v: Values [n, num_kv_heads, head_dim], likewise.
        """

    def end_of_prompt(self) -> Sequence[Sequence[Hold]]:
        """Says what each layer holds, where `prompt` left it open."""
        raise NotImplementedError(f"{type(self).__name__}.prompt left open what a layer holds")

    def probe_flops(self) -> int:
        """Returns the FLOPs that the choice for the prompt took."""
        return 0

    def watches(self, tail: int) -> bool:
        """Tells whether `step` wants the attention of a token that makes the tail so long: it costs a little."""
        return False

    def step(self, step: Step) -> Rewrite | None:
        """Is told of a token that was computed, and may have tokens held anew before the next pass."""
        return None

    def fork(self) -> Keeper:
        """Returns its like for another tree on the same path. Override it where `step` changes what is shared."""
        return copy.copy(self)

    def facts(self) -> dict[str, Any]:
        """Returns what goes into `Result.facts` under "cache"."""
        return {}


class CachePolicy(Entry, ABC):
    """Base of all policies. A subclass is a frozen dataclass of its options, with an `about` and a `keeper`."""

    @abstractmethod
    def keeper(self, prompt: Prompt) -> Keeper:
        """Returns what keeps the cache of one run."""

    def check(self, prompt: Prompt) -> None:
        """Raises `UsageError` where a prompt or a budget doesn't fit this policy. Called before the run starts."""


class Everything(Keeper):
    """Keeps all tokens as the cache holds them: a base for keepers that change less."""

    def prompt(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> LayerChoice:
        return LayerChoice(holds=[Hold(torch.arange(len(q)))])


__all__ = [
    "BITS", "COUNTS", "HELD", "CachePolicy", "Everything", "HeldKeys", "Hold", "Keeper", "LayerChoice", "Prompt",
    "Rewrite", "Step",
]  # fmt: skip
