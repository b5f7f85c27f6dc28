"""N:M pruning without training: which weights are kept, and how the others' loss is made up for.

By magnitude; by Wanda's score |w| ||x|| (Sun et al. 2023, arXiv:2306.11695); or with error feedback, where each group's
mask is chosen by the loss that pruning adds once the columns to its right make up for it, as in SparseGPT (Frantar and
Alistarh 2023, arXiv:2301.00774). Kept values have 16, 8 or 4 bits. Approximate; the packed form is exact.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import combinations
from math import comb, lcm
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from outlay.about import About
from outlay.errors import UsageError
from outlay.models.forms.nm import BITS, NmCode, nm_tensors
from outlay.models.forms.own import own_config
from outlay.shrink.feedback import damped, inverse_factor, walk
from outlay.shrink.nm.pattern import Pattern, from_groups, largest, nm_mask, to_groups
from outlay.shrink.shrinker import TASK, Moment, Shrinker, Shrunk

SUBSETS = 100  # masks of a group up to which all are compared


@dataclass(frozen=True)
class NM(Shrinker):
    """Keeps N of every M consecutive weights of an output channel."""

    n: int = 2
    """Weights that are kept of a group."""
    m: int = 4
    """Consecutive weights of a group."""
    bits: int = 16
    """Bits of a kept value: 16, 8 or 4."""
    by: Literal["feedback", "wanda", "magnitude"] = "feedback"
    """How weights are chosen: with error feedback, by Wanda's score, by magnitude."""
    group: int = 32
    """Inputs that share a scale where values have 8 or 4 bits."""
    damping: float = 0.01
    """Share of the mean of the second moments' diagonal that is added to it."""

    about: ClassVar[About] = About(
        name="nm",
        summary="N of every M weights kept, what the others lose made up for by those that follow",
        paper="Bambhaniya et al. 2024, Progressive Gradient Flow for Robust N:M Sparsity Training, arXiv:2402.04744",
        family="sparsity",
        spends="a calibration pass",
        saves="bytes of weights",
        exact=False,
        task=TASK,
        command="outlay shrink smollm2-135m --method nm --out DIR",
    )

    def __post_init__(self) -> None:
        Pattern(self.n, self.m)
        if self.bits not in BITS:
            raise UsageError(f"bits of nm must be 16, 8 or 4, not {self.bits}")
        if self.group < 1:
            raise UsageError(f"group of nm must be 1 or more, not {self.group}")
        if self.damping <= 0:
            raise UsageError(f"damping of nm must be above 0, not {self.damping:g}")

    @classmethod
    def at_bits(cls, bits: float) -> dict[str, Any]:
        """Returns the options for some bits a weight at 2:4, with places and scales."""
        rates = {each: cls(bits=each)._code.file_bits(1, 32) / 32 for each in sorted(BITS, reverse=True)}
        for each, rate in rates.items():
            if rate <= bits:
                return {"bits": each}
        least = min(rates.values())
        raise UsageError(f"nm holds {least:g} bits a weight at 2:4 at least, not {bits:g}; sparser: nm:n=1,m=8,bits=4")

    @property
    def _code(self) -> NmCode:
        return NmCode(self.n, self.m, self.bits, self.group)

    def shrink(self, weight: Tensor, moment: Moment, name: str) -> Shrunk:
        """Prunes one matrix."""
        pattern, inputs = Pattern(self.n, self.m), weight.shape[1]
        for what, size in (("m", self.m), ("group", 1 if self.bits == 16 else self.group)):
            if inputs % size:
                raise UsageError(f"{what}={size} doesn't divide the {inputs} inputs of {name}")
        weight = weight * (moment.h.diagonal() > 0)  # an input that is always 0 needs no weight
        kept = Kept(weight, self)
        if self.by == "magnitude":
            return self._shrunk(kept, kept.rounded(weight, nm_mask(weight, pattern)))
        scores = weight.abs() * moment.h.diagonal().sqrt().float()
        by_score = from_groups(largest(to_groups(scores, self.m, "in"), self.n), weight.shape, "in")
        if self.by == "wanda":
            return self._shrunk(kept, kept.rounded(weight, by_score))
        unfed = Kept(weight, self).rounded(weight, by_score)
        order = self._order(moment.h)
        factor = moment.once(("nm", self.damping, self.m, kept.group), lambda: self._factor(moment, order))
        return self._shrunk(kept, walk(weight, factor, kept, order).weight, unfed)

    def _order(self, h: Tensor) -> Tensor:
        """Returns the order of the columns, int64 [in]: whole groups, those of the largest inputs first.

        What is left over at the end, where little can be made up for any more, then matters least.
        """
        size = lcm(self.m, 1 if self.bits == 16 else self.group)
        if len(h) % size:
            return torch.arange(len(h))
        blocks = h.diagonal().view(-1, size).sum(1).argsort(descending=True, stable=True)
        return (blocks[:, None] * size + torch.arange(size)).flatten()

    def _factor(self, moment: Moment, order: Tensor) -> Tensor:
        return inverse_factor(damped(moment.h, self.damping)[order][:, order], moment.name)

    def _shrunk(self, kept: Kept, weight: Tensor, unfed: Tensor | None = None) -> Shrunk:
        return Shrunk(nm_tensors(kept.values, kept.scales, kept.mask, self._code), weight, unfed)

    def quantization_config(self) -> dict[str, Any]:
        """Returns what config.json says about the form."""
        return own_config("nm", n=self.n, m=self.m, bits=self.bits, group=self.group)


class Kept:
    """What is kept of a matrix: chosen and rounded all at once, or m columns at a time with feedback."""

    def __init__(self, weight: Tensor, options: NM) -> None:
        """Takes the matrix, float32 [out, in], which is not changed."""
        self.columns, self._options = options.m, options
        self.group = 1 if options.bits == 16 else options.group
        self.mask = torch.zeros(weight.shape, dtype=torch.bool)
        self.values = torch.zeros(weight.shape, dtype=torch.float32 if options.bits == 16 else torch.int8)
        scales = torch.zeros(len(weight), weight.shape[1] // options.group, dtype=torch.float16)
        self.scales = None if options.bits == 16 else scales

    def rounded(self, weight: Tensor, mask: Tensor) -> Tensor:
        """Keeps what a mask says, without feedback; returns the weights as they will be read, float32 [out, in]."""
        self.mask = mask
        if self.scales is not None:
            self._scale((weight * mask).unflatten(1, (-1, self.group)), torch.arange(self.scales.shape[1]))
        columns = [self._keep(weight[:, place], mask[:, place], place) for place in range(weight.shape[1])]
        return torch.stack(columns, 1)

    def quantize(self, ahead: Tensor, places: Tensor, factor: Tensor) -> Tensor:
        """Chooses and rounds the next m columns; within them too, each makes up for those to its left."""
        m, begin = self.columns, int(places[0])
        if self.scales is not None:
            for place in range(-begin % self.group, m, self.group):
                span = ahead[:, place : place + self.group]
                self._scale(span[:, None], torch.tensor([(begin + place) // self.group]))
        current, own = ahead[:, :m].clone(), factor[:m, :m]
        mask = best_mask(current, own, self._options.n)
        self.mask[:, begin : begin + m] = mask
        found = torch.empty_like(current)
        for place in range(m):
            found[:, place] = self._keep(current[:, place], mask[:, place], begin + place)
            error = (current[:, place] - found[:, place]) / own[place, place]
            current[:, place + 1 :] -= error[:, None] * own[place, place + 1 :]
        return found

    def _scale(self, groups: Tensor, places: Tensor) -> None:
        """Fixes the scales of groups [out, groups, size] by their largest weights."""
        assert self.scales is not None
        levels = 2 ** (self._options.bits - 1) - 1
        self.scales[:, places] = (groups.abs().amax(-1) / levels).half()

    def _keep(self, column: Tensor, mask: Tensor, place: int) -> Tensor:
        """Rounds a column where its weights are kept; returns it as it will be read, float32 [out]."""
        if self.scales is None:
            self.values[:, place] = (column * mask).bfloat16().float()
            return self.values[:, place]
        scale = self.scales[:, place // self.group].float()
        levels = 2 ** (self._options.bits - 1) - 1
        codes = (column / torch.where(scale == 0, 1.0, scale)).round().clamp(-levels, levels) * mask
        self.values[:, place] = codes.to(torch.int8)
        return codes * scale


def best_mask(weight: Tensor, factor: Tensor, n: int) -> Tensor:
    """Chooses the n of m columns to keep that lose the least once all columns after them make up for it.

    Pruning the set P costs w_P (C_PP)^-1 w_P, where C is the inverse of the second moments of what is left
    (optimal brain surgeon). All sets are compared where there are few, else single columns by w_j^2 / C_jj.

    Args:
        weight: The columns as they are now, float32 [out, m].
        factor: Their block of the upper Cholesky factor of the inverse second moments, float32 [m, m].
        n: Columns to keep.

    Returns:
        bool [out, m], n of each row set.
    """
    m, inverse = weight.shape[1], factor.T @ factor
    if n == m:
        return torch.ones_like(weight, dtype=torch.bool)
    if comb(m, n) > SUBSETS:
        return largest(weight.square() / inverse.diagonal(), n)
    sets = torch.tensor(list(combinations(range(m), m - n)))
    blocks = torch.linalg.inv(inverse[sets[:, :, None], sets[:, None, :]])
    pruned = weight[:, sets]
    costs = torch.einsum("osi,sij,osj->os", pruned, blocks, pruned)
    return torch.ones_like(weight, dtype=torch.bool).scatter_(1, sets[costs.argmin(1)], False)
