"""VoVNet: a backbone that is chosen by the bytes that it moves, not by its FLOPs alone (Lee et al. 2019).

The designs are VoVNet v1 (27-slim, 39, 57), v2 with a gate (Lee and Park 2020, CenterMask), in the form of its own code
and in timm's, and HGNetv2. All are stages of `OSABlock`s at strides 4, 8, 16 and 32 under one interface. A forward pass
is exact: the network is what its weights say.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from outlay.about import About, Entry
from outlay.budget import Budget
from outlay.errors import UsageError, nearest
from outlay.vision.cost import COUNTS, count
from outlay.vision.fold import fold
from outlay.vision.osa import Affine, ConvNorm, OSABlock, OSAOptions

LEAST_SIDE = 32


@dataclass(frozen=True)
class Stage:
    """A stage of equal blocks."""

    width: int
    """Channels of each layer."""

    c_out: int
    """Channels that a block writes."""

    blocks: int = 1
    """How many."""

    layers: int = 5
    """Layers of a block."""

    options: OSAOptions = field(default_factory=OSAOptions)
    """How its blocks are made."""


@dataclass(frozen=True)
class Design:
    """A network of four stages (of three where a detector needs no more)."""

    stages: tuple[Stage, ...]
    """From stride 4 on; the first has no downsampling."""

    stem: tuple[int, ...] = (64, 64, 128)
    """Channels of the stem's convolutions; HGNetv2's has two numbers."""

    kind: Literal["vovnet", "hgnetv2"] = "vovnet"
    """The form of the stem, the downsampling (pooling, or a depthwise convolution) and the classifier."""

    gate: Literal["none", "each", "last"] = "none"
    """Which blocks of a stage have the gate."""

    residual: bool = True
    """Whether the input is added from a stage's second block on."""

    depthwise: bool = False
    """Whether the stem's second and third convolutions are depthwise too."""


WIDE, SLIM = (128, 160, 192, 224), (64, 80, 96, 112)
WIDE_OUT, SLIM_OUT = (256, 512, 768, 1024), (112, 256, 384, 512)


def _vovnet(
    blocks: tuple[int, ...],
    layers: int,
    *,
    slim: bool = False,
    depthwise: bool = False,
    gate: Literal["none", "each", "last"] = "none",
    residual: bool = True,
) -> Design:
    outs = (128, *SLIM_OUT[1:]) if slim and gate == "none" else SLIM_OUT if slim else WIDE_OUT
    options = OSAOptions(depthwise=depthwise)
    stages = zip(SLIM if slim else WIDE, outs, blocks, strict=True)
    stem = (64, 64, 64 if depthwise else 128)
    return Design(
        tuple(Stage(width, c_out, count, layers, options) for width, c_out, count in stages),
        stem, gate=gate, residual=residual, depthwise=depthwise,
    )  # fmt: skip


def _hgnetv2(stem: tuple[int, int], affine: bool, *stages: tuple[int, int, int, bool, int, int]) -> Design:
    """`stages` have width, c_out, blocks, whether the layers are light, kernel and layers."""
    return Design(
        tuple(
            Stage(width, c_out, blocks, layers, OSAOptions(kernel, "two", light=light, affine=affine))
            for width, c_out, blocks, light, kernel, layers in stages
        ),
        stem,
        "hgnetv2",
    )


ONE, V39, V57, V99 = (1, 1, 1, 1), (1, 1, 2, 2), (1, 1, 4, 3), (1, 3, 9, 3)
PRUNED = ((16, 64, 1, False, 3, 3), (32, 256, 1, False, 3, 3))
DESIGNS: Mapping[str, Design] = {
    "vovnet-27-slim": _vovnet(ONE, 5, slim=True),
    "vovnet-39": _vovnet(V39, 5),
    "vovnet-57": _vovnet(V57, 5),
    # v2 as its own code has it: a gate in each block.
    "V-19-slim-dw-eSE": _vovnet(ONE, 3, slim=True, depthwise=True, gate="each"),
    "V-19-dw-eSE": _vovnet(ONE, 3, depthwise=True, gate="each"),
    "V-19-slim-eSE": _vovnet(ONE, 3, slim=True, gate="each"),
    "V-19-eSE": _vovnet(ONE, 3, gate="each"),
    "V-39-eSE": _vovnet(V39, 5, gate="each"),
    "V-57-eSE": _vovnet(V57, 5, gate="each"),
    "V-99-eSE": _vovnet(V99, 5, gate="each"),
    # timm's: a gate in the last block of a stage, and no residual in the two without a gate.
    "vovnet39a": _vovnet(V39, 5, residual=False),
    "vovnet57a": _vovnet(V57, 5, residual=False),
    "ese_vovnet19b_slim_dw": _vovnet(ONE, 3, slim=True, depthwise=True, gate="last"),
    "ese_vovnet19b_dw": _vovnet(ONE, 3, depthwise=True, gate="last"),
    "ese_vovnet19b_slim": _vovnet(ONE, 3, slim=True, gate="last"),
    "ese_vovnet39b": _vovnet(V39, 5, gate="last"),
    "ese_vovnet57b": _vovnet(V57, 5, gate="last"),
    "ese_vovnet99b": _vovnet(V99, 5, gate="last"),
    "hgnetv2-atto": _hgnetv2((16, 16), True, *PRUNED, (64, 256, 1, True, 3, 3)),
    "hgnetv2-femto": _hgnetv2((16, 16), True, *PRUNED, (64, 512, 1, True, 5, 3)),
    "hgnetv2-pico": _hgnetv2((16, 16), True, *PRUNED, (64, 512, 2, True, 5, 3)),
    "hgnetv2_b0": _hgnetv2((16, 16), True, *PRUNED, (64, 512, 2, True, 5, 3), (128, 1024, 1, True, 5, 3)),
    "hgnetv2_b1": _hgnetv2(
        (24, 32), True, (32, 64, 1, False, 3, 3), (48, 256, 1, False, 3, 3), (96, 512, 2, True, 5, 3),
        (192, 1024, 1, True, 5, 3),
    ),
    "hgnetv2_b2": _hgnetv2(
        (24, 32), True, (32, 96, 1, False, 3, 4), (64, 384, 1, False, 3, 4), (128, 768, 3, True, 5, 4),
        (256, 1536, 1, True, 5, 4),
    ),
    "hgnetv2_b3": _hgnetv2(
        (24, 32), True, (32, 128, 1, False, 3, 5), (64, 512, 1, False, 3, 5), (128, 1024, 3, True, 5, 5),
        (256, 2048, 1, True, 5, 5),
    ),
    "hgnetv2_b4": _hgnetv2(
        (32, 48), False, (48, 128, 1, False, 3, 6), (96, 512, 1, False, 3, 6), (192, 1024, 3, True, 5, 6),
        (384, 2048, 1, True, 5, 6),
    ),
}  # fmt: skip
"""Every design by its name: ours for v1, those of the authors' code for v2, timm's for timm's."""

ALIASES = {"vovnet27_slim": "vovnet-27-slim", "vovnet39": "vovnet-39", "vovnet57": "vovnet-57"}
"""The names that the official code gives to v1."""

REFUSED = {
    "eca_vovnet39b": "its gate is a 1-D convolution over channels (ECA)",
    "ese_vovnet39b_evos": "its normalisation is EvoNorm-S0",
}


def design(name: str) -> Design:
    """Returns a design by name. Raises `UsageError` with the nearest names for what isn't there."""
    if name in REFUSED:
        raise UsageError(f"{name} can't be built: {REFUSED[name]}; the same shapes without it: ese_vovnet39b")
    name = ALIASES.get(name, name)
    if name not in DESIGNS:
        raise UsageError(f"there is no design {name!r}{nearest(name, DESIGNS)}; the designs are {', '.join(DESIGNS)}")
    return DESIGNS[name]


class HGStem(nn.Module):
    """HGNetv2's stem: two branches, a pooled one and one of two 2x2 convolutions, between strided convolutions."""

    def __init__(self, c_in: int, width: int, c_out: int, affine: bool) -> None:
        super().__init__()
        self.first = ConvNorm(c_in, width, 3, stride=2, affine=affine)
        self.narrow = ConvNorm(width, width // 2, 2, affine=affine)
        self.widen = ConvNorm(width // 2, width, 2, affine=affine)
        self.merge = ConvNorm(2 * width, width, 3, stride=2, affine=affine)
        self.last = ConvNorm(width, c_out, 1, affine=affine)

    def forward(self, x: Tensor) -> Tensor:
        """Returns a quarter of the sides; each 2x2 window reads a zero beyond the right and lower edge."""
        x = F.pad(self.first(x), (0, 1, 0, 1))
        branch = self.widen(F.pad(self.narrow(x), (0, 1, 0, 1)))
        pooled = F.max_pool2d(x, 2, 1)
        out: Tensor = self.last(self.merge(torch.cat([pooled, branch], dim=1)))
        return out


class StageNet(nn.Module):
    """Downsampling by 2, where there is any, and blocks."""

    def __init__(self, c_in: int, stage: Stage, plan: Design, first: bool) -> None:
        super().__init__()
        self.down: nn.Module = nn.Identity()
        if not first and plan.kind == "vovnet":
            self.down = nn.MaxPool2d(3, 2, ceil_mode=True)
        elif not first:
            self.down = ConvNorm(c_in, c_in, 3, stride=2, groups=c_in, act=False)
        reads = [c_in, *[stage.c_out] * (stage.blocks - 1)]
        self.blocks = nn.Sequential(
            *(
                OSABlock(
                    read,
                    stage.width,
                    stage.c_out,
                    stage.layers,
                    gate=plan.gate == "each" or (plan.gate == "last" and number == stage.blocks - 1),
                    residual=plan.residual and number > 0,
                    options=stage.options,
                )
                for number, read in enumerate(reads)
            )
        )

    def forward(self, x: Tensor) -> Tensor:
        """Takes and returns a map."""
        out: Tensor = self.blocks(self.down(x))
        return out


class VoVNetModel(nn.Module):
    """A backbone with its classifier.

    Args:
        name: of a design in `DESIGNS`.
        classes: outputs of the classifier; 0 for none, and then a call gives the features.
        in_chans: channels of the image.

    Raises:
        UsageError: for an unknown name.
    """

    def __init__(self, name: str, classes: int = 1000, in_chans: int = 3) -> None:
        super().__init__()
        plan = design(name)
        self.name, self.classes, self.in_chans = ALIASES.get(name, name), classes, in_chans
        self.stem = _stem(plan, in_chans)
        reads = [plan.stem[-1], *(stage.c_out for stage in plan.stages)]
        self.stages = nn.ModuleList(
            StageNet(read, stage, plan, number == 0)
            for number, (read, stage) in enumerate(zip(reads, plan.stages, strict=False))
        )
        self.widths = {f"s{4 << number}": stage.c_out for number, stage in enumerate(plan.stages)}
        self.expand = _expand(reads[-1], plan) if classes else None
        features = 2048 if plan.kind == "hgnetv2" else reads[-1]
        self.classifier = nn.Linear(features, classes) if classes else None
        for part in self.modules():
            if isinstance(part, nn.Conv2d):
                nn.init.kaiming_normal_(part.weight)
            if isinstance(part, nn.Conv2d | nn.Linear) and part.bias is not None:
                nn.init.zeros_(part.bias)

    def forward_features(self, x: Tensor) -> dict[str, Tensor]:
        """Returns the map of each stage by its stride: "s4", "s8", "s16", "s32".

        Args:
            x: `[batch, in_chans, height, width]`, both sides 32 or more.
        """
        if x.shape[1] != self.in_chans:
            raise UsageError(f"{self.name} reads {self.in_chans} channels, not {x.shape[1]}")
        if min(x.shape[2:]) < LEAST_SIDE:
            raise UsageError(f"{self.name} needs sides of {LEAST_SIDE} or more, not {x.shape[2]}x{x.shape[3]}")
        x = self.stem(x)
        found = {}
        for name, stage in zip(self.widths, self.stages, strict=True):
            x = found[name] = stage(x)
        return found

    def forward(self, x: Tensor) -> Tensor | dict[str, Tensor]:
        """Returns logits `[batch, classes]`, or the features of a network without a classifier."""
        features = self.forward_features(x)
        if self.classifier is None:
            return features
        pooled = [*features.values()][-1].mean((2, 3), keepdim=True)
        if self.expand is not None:
            pooled = self.expand(pooled)
        out: Tensor = self.classifier(pooled.flatten(1))
        return out

    def fold(self) -> nn.Module:
        """Returns a copy for inference, without batch normalisation."""
        return fold(self, torch.empty(1, self.in_chans, 2 * LEAST_SIDE, 2 * LEAST_SIDE))


def _stem(plan: Design, in_chans: int) -> nn.Module:
    if plan.kind == "hgnetv2":
        width, c_out = plan.stem
        return HGStem(in_chans, width, c_out, plan.stages[0].options.affine)
    first, second, third = plan.stem
    return nn.Sequential(
        ConvNorm(in_chans, first, 3, stride=2),
        ConvNorm(first, second, 3, depthwise=plan.depthwise),
        ConvNorm(second, third, 3, stride=2, depthwise=plan.depthwise),
    )


def _expand(c_in: int, plan: Design) -> nn.Module | None:
    """HGNetv2's 1x1 convolution to 2048 channels after the pooling."""
    if plan.kind == "vovnet":
        return None
    affine = [Affine()] if plan.stages[0].options.affine else []
    return nn.Sequential(nn.Conv2d(c_in, 2048, 1, bias=False), nn.ReLU(), *affine)


def under_budget(budget: Budget, side: int = 224, names: Sequence[str] | None = None) -> str:
    """Returns the name of the design with the most parameters of which one call fits the budget.

    Args:
        budget: caps on counts of one call, such as `Budget(flops=5e9, moved_bytes=3e8)`.
        side: of the image.
        names: which designs to take; by default all.

    Raises:
        UsageError: if none fits; it names the closest and by how much it is over. Also for a cap that is no count.
    """
    budget.check("a network's count", COUNTS)
    if timed := [name for name in budget.caps if name.endswith("seconds")]:
        raise UsageError(f"{timed[0]} has to be measured; cap a count: flops, mem_elements, moved_bytes")
    fitting: dict[str, float] = {}
    over: dict[str, float] = {}
    for name in names or DESIGNS:
        with torch.device("meta"):
            found = count(VoVNetModel(name).eval(), torch.empty(1, 3, side, side))
        spent = found.ledger()
        excess = max((spent.amount(entry) / cap for entry, cap in budget.caps.items()), default=0.0)
        (fitting if excess <= 1 else over)[name] = found.total.parameters if excess <= 1 else excess
    if not fitting:
        closest = min(over, key=lambda name: over[name])
        raise UsageError(f"no design fits the budget; the closest is {closest}, {over[closest] - 1:.0%} above it")
    return max(fitting, key=lambda name: fitting[name])


@dataclass(frozen=True)
class VoVNet(Entry):
    """A backbone and classifier of one-shot aggregation blocks: fewer bytes moved than dense connections move."""

    name: str = "vovnet-39"
    """The design; `outlay vision profile --help` lists them. It decides what same shapes compute."""

    classes: int = 1000
    """Outputs of the classifier; 0 for a backbone alone."""

    about: ClassVar[About] = About(
        name="vovnet",
        summary="a backbone whose blocks concatenate once, chosen by the bytes that it moves",
        paper="Lee et al. 2019, An Energy and GPU-Computation Efficient Backbone Network, arXiv 1904.09730",
        family="vision",
        spends="parameters in its 3x3 convolutions",
        saves="memory traffic, and with it time",
        exact=False,
        task="classify",
        command="outlay vision profile vovnet-39",
        counts=COUNTS,
    )

    def __post_init__(self) -> None:
        design(self.name)

    def build(self) -> VoVNetModel:
        """Returns the network with new weights."""
        return VoVNetModel(self.name, self.classes)
