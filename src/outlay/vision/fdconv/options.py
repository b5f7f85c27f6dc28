"""The options of FDConv, with the paper's defaults."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from outlay.about import About, Entry
from outlay.errors import UsageError
from outlay.vision.cost import COUNTS

KSM = Literal["local+global", "global", "gain"]


@dataclass(frozen=True)
class FDConv(Entry):
    """Convolutions whose kernels adapt to each picture, stored as the Fourier coefficients of one kernel."""

    groups: int = 64
    """Frequency groups (n), each with a gain of its own."""

    ksm: KSM = "local+global"
    """Gains on the kernel. `local+global`: for each weight, channel, filter and position, and each frequency group.
    `global`: without those for single weights. `gain`: for frequency groups alone."""

    fbm: bool = True
    """Whether frequency bands of the map get gains, place by place, before kernels larger than 1x1."""

    param_ratio: int = 1
    """Copies of the coefficients, each with its own gains."""

    param_reduction: float = 1.0
    """Share of the coefficients that is kept, the lowest frequencies first. Below 1 the start is not the original."""

    order: Literal["paired-v1", "official"] = "paired-v1"
    """Which coefficients form a group. `paired-v1`: sorted by radius, stable, conjugate pairs kept together.
    `official`: as the authors' code sorts them, which their checkpoints need."""

    norm: Literal["layer", "batch"] = "layer"
    """In the global branch. `layer` works at batch 1; `batch` is the authors'."""

    about: ClassVar[About] = About(
        name="fdconv",
        summary="convolutions that adapt to each picture without storing more kernels",
        paper="Chen et al. 2025, Frequency Dynamic Convolution for Dense Image Prediction, arXiv 2503.18783",
        family="vision",
        spends="time: a transform, and a kernel for each picture",
        saves="parameters of dynamic convolution",
        exact=False,
        task="adapt",
        command="outlay vision adapt vovnet-39 --method fdconv --groups 64 --out DIR",
        counts=COUNTS,
    )

    def __post_init__(self) -> None:
        if self.groups < 1:
            raise UsageError(f"fdconv needs 1 frequency group or more, not {self.groups}")
        if self.param_ratio < 1 or not 0 < self.param_reduction <= 1:
            raise UsageError("fdconv needs a param_ratio of 1 or more, and a param_reduction above 0 and at most 1")
