"""What sparse training does at each step: dense, sparse and fine-tuning phase, mask decay, staged patterns.

Mask decay (MDGF) lets pruned weights take part at first and fades them out; structure decay (SDGF) keeps the mask
binary and tightens the pattern in stages. STE and SR-STE are the baselines, sparse from the first step on.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import Literal

from outlay.errors import UsageError, nearest
from outlay.shrink.nm.pattern import Dim, Pattern

RECIPES = ("dense", "ste", "srste", "mdgf-linear", "mdgf-exp", "sdgf-step", "sdgf-geo")
LINEAR_END = 0.8  # share of the sparse phase after which the linear decay is at 0
GEOMETRIC_FRAMES = 4


@dataclass(frozen=True)
class NMSparse:
    """Trains weights to an N:M pattern (Bambhaniya et al. 2024, sections 3 and 4)."""

    n: int = 2
    """Weights that are kept of a group."""
    m: int = 4
    """Consecutive weights of a group."""
    where: str = "ff"
    """Layers: "ff" (feed-forward), "q", "k", "v", "qk", "qkv", "conv", "all", or a regular expression that their
    names match in full."""
    recipe: str = "mdgf-exp"
    """One of dense, ste, srste, mdgf-linear, mdgf-exp, sdgf-step, sdgf-geo; or stages of a binary mask, each a pattern
    with the share of the sparse phase from which it holds: "15:16@0,8:16@0.2,1:16@0.5"."""
    beta_end: float = 1e-3
    """What the exponential decay reaches at the end of the sparse phase, before it is set to 0."""
    dense_frac: float = 0.0
    """Share of the steps that train dense at first."""
    finetune_frac: float = 0.05
    """Share of the steps that train with the final binary mask at last."""
    backward: Literal["ste", "scaled"] = "ste"
    """Gradient of pruned weights while the mask decays: that of the masked weight as it is (the authors' code), or
    scaled by the mask's value (the derivative)."""
    dim: Dim = "in"
    """Along which dimension groups lie: "in" as kernels read them, or "out"."""
    decay: float = 2e-4
    """SR-STE's lambda: a pull of pruned weights to 0, relative to their value, added to the gradient."""

    def __post_init__(self) -> None:
        pattern = self.pattern
        if self.recipe not in RECIPES and "@" not in self.recipe:
            near = nearest(self.recipe, RECIPES)
            raise UsageError(
                f"there is no recipe {self.recipe!r}{near}; there are {', '.join(RECIPES)}, and stages like "
                "15:16@0,8:16@0.2,1:16@0.5"
            )
        if self.backward not in ("ste", "scaled"):
            raise UsageError(f"backward is 'ste' or 'scaled', not {self.backward!r}")
        if self.dim not in ("in", "out"):
            raise UsageError(f"dim is 'in' or 'out', not {self.dim!r}")
        if not 0 < self.beta_end <= 1:
            raise UsageError(f"beta_end must be above 0 and at most 1, not {self.beta_end:g}")
        if self.decay < 0:
            raise UsageError(f"decay must be 0 or more, not {self.decay:g}")
        if self.dense_frac < 0 or self.finetune_frac < 0 or self.dense_frac + self.finetune_frac >= 1:
            raise UsageError(
                "dense_frac and finetune_frac are shares of the steps, 0 or more each and below 1 together, not "
                f"{self.dense_frac:g} and {self.finetune_frac:g}"
            )
        ratio = pattern.m / pattern.n
        if self.recipe == "sdgf-step" and not math.log2(ratio).is_integer():
            raise UsageError(f"sdgf-step halves the pattern until it is {pattern}: M / N must be a power of two")
        if self.recipe not in RECIPES:
            _custom(self.recipe, pattern)

    @property
    def pattern(self) -> Pattern:
        """The pattern that is trained to."""
        return Pattern(self.n, self.m)

    @cached_property
    def stages(self) -> tuple[tuple[float, Pattern], ...]:
        """The patterns of the sparse phase, each with the share of it from which it holds; the last is `pattern`.

        Section 4: stepwise (M-1):M, then (M/2^i):M; geometric (N 2^(3-i)):(M 2^(3-i)) for i = 0 .. 3.
        """
        n, m, target = self.n, self.m, self.pattern
        if self.recipe not in RECIPES:
            return _custom(self.recipe, target)
        frames = [target]
        if self.recipe == "sdgf-step" and n < m:
            halvings = round(math.log2(m / n))
            frames = [Pattern(m - 1, m), *(Pattern(m >> i, m) for i in range(1, halvings)), target]
        if self.recipe == "sdgf-geo":
            frames = [Pattern(n << i, m << i) for i in reversed(range(GEOMETRIC_FRAMES))]
        return tuple((place / len(frames), frame) for place, frame in enumerate(frames))


def _custom(text: str, target: Pattern) -> tuple[tuple[float, Pattern], ...]:
    stages = []
    for part in text.split(","):
        pattern, _, share = part.partition("@")
        try:
            begin = float(share)
        except ValueError:
            raise UsageError(f"a stage is written N:M@SHARE, like 8:16@0.2, not {part!r}") from None
        stages.append((begin, Pattern.parse(pattern)))
    begins = [begin for begin, _ in stages]
    if begins[0] != 0 or any(a >= b for a, b in pairwise(begins)) or begins[-1] >= 1:
        raise UsageError(f"stages begin at 0, each later than the one before and before 1, not {text!r}")
    if stages[-1][1] != target:
        raise UsageError(f"the last stage must be {target}, the pattern that is trained to, not {stages[-1][1]}")
    return tuple(stages)


@dataclass(frozen=True)
class Schedule:
    """A recipe over a number of optimizer steps."""

    options: NMSparse
    """The recipe."""
    total_steps: int
    """Steps of the whole training."""

    def __post_init__(self) -> None:
        if self.sparse_steps < 1:
            raise UsageError(f"{self.total_steps} steps leave none for the sparse phase; give more steps")

    @cached_property
    def dense_steps(self) -> int:
        """Steps of the dense phase, d."""
        return round(self.options.dense_frac * self.total_steps)

    @cached_property
    def sparse_steps(self) -> int:
        """Steps of the sparse phase, T - d - f."""
        return self.total_steps - self.dense_steps - round(self.options.finetune_frac * self.total_steps)

    def beta(self, step: int) -> float:
        """Returns the value of the mask on pruned weights at a step: 1 in the dense phase, 0 from fine-tuning on.

        Section 3: max(0, 1 - c t) and exp(-c t), where c follows from the length of the sparse phase.
        """
        options, t = self.options, step - self.dense_steps
        if options.recipe == "dense" or t < 0:
            return 1.0
        if t >= self.sparse_steps:
            return 0.0
        if options.recipe == "mdgf-linear":
            return max(0.0, 1 - t / (LINEAR_END * self.sparse_steps))
        if options.recipe == "mdgf-exp":
            return math.exp(math.log(options.beta_end) * t / self.sparse_steps)
        return 0.0

    def pattern(self, step: int) -> Pattern:
        """Returns the pattern at a step of the sparse phase or later."""
        share = (step - self.dense_steps) / self.sparse_steps
        return next(pattern for begin, pattern in reversed(self.options.stages) if share >= begin or begin == 0)

    def density(self, step: int) -> float:
        """Returns the share of the weights that take part at a step; all do while the mask decays."""
        return 1.0 if self.beta(step) > 0 else self.pattern(step).density
