"""What a pass proposes for the positions of a canvas, as a commit rule sees it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]
Chosen = NDArray[np.bool_]


@dataclass(frozen=True)
class BlockSoFar:
    """What happened in a block before this round."""

    begin: int
    """Position of its first token."""
    end: int
    """Position behind its last one."""
    rounds: int = 0
    """Rounds that were done in it."""
    quotas: Sequence[int] = ()
    """Tokens that a schedule of a fixed number of steps fills in each of its rounds; empty: one a round."""
    filled: list[float] = field(default_factory=list)
    """Confidences of the tokens that were filled in it so far, each when it was chosen."""
    offset: int = 0
    """How many of the block's positions the prompt holds (block-causal attention)."""

    @property
    def quota(self) -> int:
        """Tokens that a schedule of a fixed number of steps fills in this round."""
        return self.quotas[self.rounds] if self.rounds < len(self.quotas) else 1


@dataclass(frozen=True)
class Proposals:
    """The proposals of one pass for n positions: those of the block, then those of the blocks that are looked ahead to.

    Probabilities are those of the model, before temperature and truncation.
    """

    positions: Integers
    """Positions in the text, ascending, [n]."""
    masked: Chosen
    """Whether a position is masked, and so can be filled, [n]."""
    tokens: Integers
    """The proposed token of each position: the most probable, or one drawn above temperature 0, [n]."""
    logprobs: Floats
    """Log-probability of each proposed token, [n]."""
    confidence: Floats
    """What rules rank by: the probability of the proposed token, or of the most probable one, [n]."""
    logits: Tensor
    """Float32 [n, vocab], the mask's -inf."""
    block: BlockSoFar
    """The block that is being filled."""
    random: Callable[[int], float]
    """Returns a number from [0, 1) for a position; the same in every batch."""
    ends: frozenset[int] = frozenset()
    """The tokens that end a text."""
    left: Callable[[str], float] = field(default=lambda entry: float("inf"))
    """Returns what the budget leaves of an entry of the ledger, or of an extra."""
    masks_left: int = 0
    """Masked positions of the whole canvas."""
    late: Chosen = field(default_factory=lambda: np.zeros(0, dtype=np.bool_))
    """Masked positions that wait until the block has no other, [n]; none where it is empty."""

    def __post_init__(self) -> None:
        if not len(self.late):
            object.__setattr__(self, "late", np.zeros_like(self.masked))

    @property
    def eligible(self) -> Chosen:
        """Masked positions of the block that don't wait, [n]."""
        return self.masked & ~self.late & (self.positions >= self.block.begin) & (self.positions < self.block.end)

    @property
    def ahead(self) -> Chosen:
        """Masked positions behind the block that don't wait, [n]."""
        return self.masked & ~self.late & (self.positions >= self.block.end)

    @cached_property
    def all_logprobs(self) -> Tensor:
        """Log-probabilities of all tokens, float32 [n, vocab]."""
        return self.logits.log_softmax(-1)

    @cached_property
    def entropy(self) -> Floats:
        """Entropy of each position in nats, [n]."""
        logprobs = self.all_logprobs
        return (-(logprobs.exp() * logprobs.clamp_min(np.log(1e-12))).sum(-1)).double().cpu().numpy()

    @cached_property
    def margin(self) -> Floats:
        """Probability of the most probable token minus that of the second, [n]."""
        best = self.all_logprobs.topk(2, -1).values.exp().double()
        return (best[:, 0] - best[:, 1]).cpu().numpy()

    def best(self, scores: Floats, among: Chosen, count: int = 1) -> Chosen:
        """Returns the `count` positions of highest score, the first among equals, [n]."""
        places = np.flatnonzero(among)
        chosen = np.zeros(len(self.positions), dtype=np.bool_)
        chosen[places[np.argsort(-scores[places], kind="stable")[:count]]] = True
        return chosen


def logprobs_of(logits: Tensor, tokens: Sequence[int]) -> tuple[Floats, Floats]:
    """Returns the log-probability of a token in each row, and of the most probable one, both float64 [n].

    Args:
        logits: Float32 [n, vocab].
        tokens: A token for each row, [n].
    """
    lse = logits.double().logsumexp(-1)
    picked = logits.gather(1, torch.tensor(tokens, device=logits.device)[:, None])[:, 0].double() - lse
    return picked.cpu().numpy(), (logits.amax(-1).double() - lse).cpu().numpy()
