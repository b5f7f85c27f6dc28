"""DEIMv2 (Huang et al. 2025, https://arxiv.org/abs/2509.20787): detectors without NMS, whose every layer has an answer.

A backbone gives maps of several strides, an encoder mixes them, and a decoder refines the most promising places. Layers
and queries are a budget: fewer of either cost less and still answer. Eight sizes, from Atto (0.5 M parameters) to X.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from outlay.about import About, Entry
from outlay.errors import UsageError
from outlay.vision.cost import COUNTS
from outlay.vision.detect.decoder import Answer, Decoder
from outlay.vision.detect.encoder import HybridEncoder, LiteEncoder, VGGBlock
from outlay.vision.detect.sizes import Size, ViTSize, size_of
from outlay.vision.detect.sta import STA
from outlay.vision.pictures import DEVIATION, MEAN
from outlay.vision.vovnet import VoVNetModel, design

MULTIPLE = 32
"""Pixels that divide the sides of a picture."""


@dataclass(frozen=True)
class DEIMv2(Entry):
    """A detector of one of eight sizes, run with as many layers and queries as wanted."""

    size: str = "s"
    """atto, femto, pico, n, s, m, l or x."""

    layers: int | None = None
    """Decoder layers that are run; all where none is given."""

    queries: int | None = None
    """Places that are refined; as many as trained where none is given."""

    threshold: float = 0.4
    """The least score of a detection."""

    about: ClassVar[About] = About(
        name="deimv2",
        summary="detectors without NMS, in eight sizes; every decoder layer has an answer",
        paper="Huang et al. 2025, https://arxiv.org/abs/2509.20787",
        family="vision",
        spends="a backbone and an encoder, once; a decoder layer for each refinement",
        saves="layers and queries that a budget has no room for",
        task="detection",
        command="outlay vision detect",
        counts=COUNTS,
    )

    def __post_init__(self) -> None:
        trained = size_of(self.size)
        if self.layers is not None and not 1 <= self.layers <= trained.layers:
            raise UsageError(f"deimv2 of size {self.size} has {trained.layers} layers; run 1 to {trained.layers}")
        if self.queries is not None and self.queries < 1:
            raise UsageError(f"deimv2 needs 1 query or more, not {self.queries}")
        if not 0 <= self.threshold <= 1:
            raise UsageError(f"a threshold is a score from 0 to 1, not {self.threshold}")


class Detector(nn.Module):
    """Backbone, encoder and decoder. The parts have the names of the authors' files, but for HGNetv2's.

    Args:
        size: its sizes, or the name of some.
    """

    def __init__(self, size: Size | str) -> None:
        super().__init__()
        self.size = size_of(size) if isinstance(size, str) else size
        width = self.size.width
        if isinstance(self.size.backbone, ViTSize):
            self.backbone: nn.Module = STA(self.size.backbone, width)
            reads = [width] * len(self.size.strides)
        else:
            self.backbone = _Features(self.size.backbone, self.size.encoder == "lite")
            stages = [stage.c_out for stage in design(self.size.backbone).stages]
            reads = stages[-1:] if self.size.encoder == "lite" else stages[-len(self.size.strides) :]
        how = (self.size.expansion, self.size.depth)
        if self.size.encoder == "lite":
            self.encoder: nn.Module = LiteEncoder(reads[0], width, *how)
        else:
            dfine = self.size.encoder == "dfine"
            self.encoder = HybridEncoder(reads, width, self.size.encoder_ffn, *how, dfine=dfine)
        self.decoder = Decoder(self.size)

    @property
    def normalised(self) -> bool:
        """Whether it reads pictures less ImageNet's mean, over its deviation; else values from 0 to 1."""
        return isinstance(self.size.backbone, ViTSize)

    def maps(self, pictures: Tensor) -> list[Tensor]:
        """Returns what the decoder reads, for each level [batch, width, height, w].

        Args:
            pictures: float32 [batch, 3, height, w] in 0..1, sides multiples of 32.

        Raises:
            UsageError: for other sides or channels.
        """
        if pictures.ndim != 4 or pictures.shape[1] != 3 or any(side % MULTIPLE for side in pictures.shape[2:]):
            raise UsageError(
                f"a detector reads [batch, 3, height, width] with sides that 32 divides, not {list(pictures.shape)}"
            )
        if self.normalised:
            mean, deviation = (pictures.new_tensor(each)[:, None, None] for each in (MEAN, DEVIATION))
            pictures = (pictures - mean) / deviation
        found: list[Tensor] = self.encoder(self.backbone(pictures))
        return found

    def forward(
        self,
        pictures: Tensor,
        layers: int | None = None,
        queries: int | None = None,
        go_on: Callable[[int], bool] = lambda done: True,
    ) -> Answer:
        """Returns logits and boxes; see `maps` and `Decoder.forward`.

        Raises:
            UsageError: for more layers than there are, or more queries than places.
        """
        if layers is not None and not 1 <= layers <= self.size.layers:
            raise UsageError(f"the detector has {self.size.layers} layers; run 1 to {self.size.layers}, not {layers}")
        found: Answer = self.decoder(self.maps(pictures), layers, queries, go_on)
        return found

    def deploy(self) -> Detector:
        """Returns a copy for inference: branches added up, normalisation folded, what only training reads dropped."""
        from outlay.vision.fold import fold

        side = 2 * self.size.strides[-1] * MULTIPLE // 8
        folded = fold(_Maps(self).train(self.training), torch.zeros(1, 3, side, side))
        assert isinstance(folded, _Maps)
        made = folded.detector
        for part in made.modules():
            if isinstance(part, VGGBlock):
                part.add_up()
        made.decoder.denoising_class_embed = None
        channels_last(made)
        return made


class _Features(nn.Module):
    """HGNetv2's last maps."""

    def __init__(self, name: str, last: bool) -> None:
        super().__init__()
        self.net = VoVNetModel(name, classes=0)
        self._wanted = ("s16",) if last else ("s16", "s32")

    def forward(self, pictures: Tensor) -> list[Tensor]:
        found = self.net.forward_features(pictures)
        return [found[name] for name in self._wanted]


class _Maps(nn.Module):
    """All that has normalisation of batches: backbone and encoder."""

    def __init__(self, detector: Detector) -> None:
        super().__init__()
        self.detector = detector

    def forward(self, pictures: Tensor) -> Tensor:
        return torch.cat([each.flatten() for each in self.detector.maps(pictures)])


def channels_last(detector: nn.Module) -> None:
    """Lays kernels out as processors convolve fastest: a quarter of a call's time, half of a training step's."""
    for each in detector.parameters():
        if each.ndim == 4:
            each.data = each.data.contiguous(memory_format=torch.channels_last)


def parameters(detector: nn.Module) -> int:
    """Returns how many numbers are trained or kept, those of shared parts once."""
    return sum(tensor.numel() for tensor in {id(each): each for each in detector.parameters()}.values())
