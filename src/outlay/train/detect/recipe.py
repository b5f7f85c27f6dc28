"""How each size of DEIMv2 is trained, as the authors' training files have it; stages as shares of the steps."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

from outlay.errors import UsageError, nearest
from outlay.train.detect.augment import Strength
from outlay.train.detect.losses import Terms
from outlay.vision.detect.deimv2 import MULTIPLE
from outlay.vision.detect.sizes import size_of

Augment = Literal["recipe", "dense", "light", "none"]
AUGMENTS: Mapping[Augment, str] = {
    "recipe": "what the size's own recipe does",
    "dense": "mosaic and Copy-Blend, without mirroring",
    "light": "colours and mirroring",
    "none": "nothing",
}
LONGEST_WARMUP = 0.06
"""Share of the steps that the rise of the learning rate takes at most: the authors' rises were set for far more."""
BATCH = 16
"""Pictures of a step where none are given: what a processor gets through in about a second."""


@dataclass(frozen=True)
class Published:
    """What a size's training file says."""

    epochs: int
    half: int
    """The epoch from which there is no mosaic and no mixup, and the learning rate falls."""
    stop: int
    """The epoch from which pictures are not changed but mirrored."""
    late: int
    """The epoch from which queries are matched by the late cost."""
    flat_end: int
    """Epochs at the end with the lowest learning rate."""
    batch: int
    lr: float
    backbone: float
    """Its learning rate, in shares of `lr`."""
    decay: float
    warmup: int
    """Steps over which the learning rate rises."""
    last: float
    """The lowest learning rate, in shares of `lr`."""
    mosaic: float
    mixup: float
    copyblend: float
    copyblend_stop: int
    least: float
    """Pixels a side that a box must keep."""
    scales: int
    """How often the usual size stands among those of batches; 0: it is the only one."""
    terms: Terms


def _lite(lr: float, mosaic: float, least: float) -> Published:
    return Published(500, 250, 400, 450, 32, 128, lr, 0.5, 1e-4, 4000, 0.5, mosaic, 0.0, 0.0, 0, least, 0,
                     Terms(local=False, union=False))  # fmt: skip


def _large(epochs: int, half: int, stop: int, late: int, backbone: float, decay: float, scales: int) -> Published:
    return Published(epochs, half, stop, late, epochs - stop, 32, 5e-4, backbone, decay, 2000, 0.5, 0.5, 0.5, 0.5,
                     stop, 1, scales, Terms())  # fmt: skip


PUBLISHED: Mapping[str, Published] = {
    "atto": _lite(2e-3, 0.3, 12),
    "femto": _lite(1.6e-3, 0.3, 10),
    "pico": _lite(1.6e-3, 0.5, 8),
    "n": Published(160, 78, 148, 136, 12, 32, 8e-4, 0.5, 1e-4, 2000, 1.0, 0.5, 0.5, 0.4, 78, 1, 0, Terms()),
    "s": _large(132, 64, 120, 100, 0.05, 1e-4, 20),
    "m": _large(102, 49, 90, 80, 0.05, 1e-4, 6),
    "l": _large(68, 34, 60, 50, 0.025, 1.25e-4, 3),
    "x": _large(58, 29, 50, 45, 0.02, 1.25e-4, 3),
}
PLAIN_EPOCHS = 4
"""The first, in which pictures are not changed but mirrored."""


@dataclass(frozen=True)
class DetectorRecipe:
    """How a detector is trained."""

    size: str = "atto"
    """atto, femto, pico, n, s, m, l or x."""
    steps: int = 1000
    """Training steps."""
    batch: int = BATCH
    """Pictures of a step."""
    side: int | None = None
    """Pixels a side that pictures are stretched to; None: the size's own."""
    queries: int | None = None
    """Places that are refined; None: the size's own."""
    lr: float | None = None
    """The highest learning rate; None: the published one, times the root of the batch over the published one."""
    last: float | None = None
    """The lowest learning rate, in shares of the highest; None: the published one."""
    backbone: float | None = None
    """The backbone's learning rate, in shares of the rest's; None: the published one."""
    augment: Augment = "recipe"
    """How pictures are changed."""
    least: float | None = None
    """Pixels a side that a box must keep when pictures are changed; None: the published one."""
    denoising: int = 100
    """Noisy queries near their boxes, in all groups together; 0 for none."""
    clip: float = 0.1
    """The largest norm of a gradient."""
    average: float = 0.9999
    """How much of the average of the weights a step keeps, in the long run."""
    seed: int = 0
    """Fixes the first weights and all draws."""

    def __post_init__(self) -> None:
        size = size_of(self.size)
        if self.side is not None and self.side % MULTIPLE:
            raise UsageError(f"a detector reads sides that {MULTIPLE} divides, not {self.side}")
        if self.augment not in AUGMENTS:
            raise UsageError(
                f"there is no augmentation {self.augment!r}{nearest(self.augment, AUGMENTS)}; "
                f"there are {', '.join(AUGMENTS)}"
            )
        for name in ("steps", "batch"):
            if getattr(self, name) < 1:
                raise UsageError(f"{name} is 1 or more, not {getattr(self, name)}")
        if self.queries is not None and self.queries < 1:
            raise UsageError(f"a detector has 1 query or more, not {self.queries}")
        places = sum((self.pixels // stride) ** 2 for stride in size.strides)
        if (self.queries or size.queries) > places:
            raise UsageError(
                f"{self.queries or size.queries} queries are chosen from {places} places of pictures with "
                f"{self.pixels} pixels a side; give --queries of at most {places}"
            )

    @property
    def published(self) -> Published:
        """The size's own recipe."""
        return PUBLISHED[size_of(self.size).name]

    @property
    def pixels(self) -> int:
        """Pixels a side."""
        return self.side or size_of(self.size).side

    @property
    def smallest(self) -> float:
        """Pixels a side that a box must keep."""
        return self.published.least * self.pixels / size_of(self.size).side if self.least is None else self.least

    def lr_at(self, step: int) -> float:
        """Returns the learning rate: a quadratic rise, flat to half of the training, half a cosine, flat at its end."""
        known = self.published
        highest = known.lr * math.sqrt(self.batch / known.batch) if self.lr is None else self.lr
        lowest = highest * (known.last if self.last is None else self.last)
        rise = min(known.warmup, int(LONGEST_WARMUP * self.steps))
        if step < rise:
            return highest * ((step + 1) / rise) ** 2
        flat, end = (self.steps * share / known.epochs for share in (known.half, known.epochs - known.flat_end))
        if step >= end:
            return lowest
        done = max(0.0, (step - flat) / (end - flat))
        return lowest + (highest - lowest) * (1 + math.cos(math.pi * done)) / 2

    def epoch(self, step: int) -> float:
        """Returns the place in the published training that a step stands for, in its epochs."""
        return step / self.steps * self.published.epochs

    def late(self, step: int) -> bool:
        """Tells whether queries are matched by the late cost."""
        return self.epoch(step) >= self.published.late

    def strength(self, step: int) -> Strength:
        """Returns how the pictures of a step are changed."""
        known, epoch = self.published, self.epoch(step)
        strong, first = PLAIN_EPOCHS <= epoch < known.stop, PLAIN_EPOCHS <= epoch < known.half
        if self.augment == "none":
            return Strength(flip=False)
        if self.augment == "light":
            return Strength(colours=strong)
        if self.augment == "dense":
            return Strength(mosaic=0.5 * first, copyblend=0.5 * strong, flip=False)
        return Strength(
            mosaic=known.mosaic * first, mixup=known.mixup * first,
            copyblend=known.copyblend * (PLAIN_EPOCHS <= epoch < known.copyblend_stop),
            colours=strong, zoom=strong, scales=bool(known.scales) and epoch < known.stop,
        )  # fmt: skip

    def sides(self) -> list[int]:
        """Returns the sizes that batches are drawn from where they have several, in pixels a side."""
        base, step = self.pixels, MULTIPLE
        low, high = int(base * 0.75 / step) * step, int(base * 1.25 / step) * step
        return [*range(low, base, step), *[base] * self.published.scales, *range(high, base, -step)]


def recipe_for(data: str, **given: Any) -> DetectorRecipe:
    """Returns the recipe with what is given; for the scenes of digits, the specification's own values go first.

    A digit in a mirror is none, and its scenes are made anew for each step, so they are not changed.
    """
    usual: dict[str, Any] = {}
    if data.partition(":")[0] == "digits":
        usual = {"side": 128, "queries": 60, "lr": 1e-3, "last": 0.02, "backbone": 1.0, "augment": "none",
                 "denoising": 30}  # fmt: skip
    return replace(DetectorRecipe(), **usual | {name: value for name, value in given.items() if value is not None})
