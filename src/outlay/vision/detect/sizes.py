"""The eight sizes of DEIMv2, as the authors' training files have them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

from outlay.errors import UsageError, nearest


@dataclass(frozen=True)
class ViTSize:
    """A vision transformer with a pyramid made of its maps."""

    width: int
    """Features of a token."""
    heads: int
    official: bool
    """Meta's DINOv3 (four storage tokens, layer scale, no bias of keys) or the authors' ViT-Tiny."""
    layers: tuple[int, int, int]
    """The blocks whose tokens are read, from 0."""
    detail: int
    """Channels of the first convolution of the detail network, c."""
    ffn: Literal["mlp", "swiglu"] = "mlp"


@dataclass(frozen=True)
class Size:
    """The sizes of a detector."""

    name: str
    side: int
    """Pixels a side of the picture it was trained on."""
    backbone: str | ViTSize
    """A design of `outlay.vision.vovnet`, or a transformer."""
    strides: tuple[int, ...]
    """Pixels a side of what the decoder reads, one for each level."""
    width: int
    """Features of the encoder and of a query, d."""
    layers: int
    """Decoder layers."""
    ffn: int
    """Twice the inner features of a decoder layer's gated network, dim_feedforward."""
    queries: int
    points: tuple[int, ...]
    """Places that a head reads of each level."""
    gateway: bool
    """Whether what a query read is mixed in by a gate."""
    shared_box_head: bool
    """Whether all layers refine boxes with one head."""
    encoder: Literal["lite", "dfine", "deim"]
    """The two-level encoder of the small sizes; the hybrid encoder with D-FINE's blocks, or DEIMv2's."""
    encoder_ffn: int = 0
    """Inner features of the hybrid encoder's transformer layer."""
    expansion: float = 0.34
    depth: float = 0.5
    """Of the fusion blocks: width and number of bottlenecks, as factors."""
    classes: int = 80
    coco_ap: float | None = None
    """AP on COCO val2017 that the authors publish, in percent."""
    coco_gflops: float | None = None
    """GFLOPs of a picture that the authors publish, deployed."""


def _lite(
    name: str, side: int, backbone: str, width: int, ffn: int, queries: int, ap: float, gflops: float
) -> Size:  # fmt: skip
    return Size(
        name, side, backbone, (16, 32), width, 3, ffn, queries, (4, 2), False, True, "lite", coco_ap=ap,
        coco_gflops=gflops,
    )  # fmt: skip


def _vit(
    name: str, vit: ViTSize, width: int, layers: int, ffn: int, encoder_ffn: int, expansion: float, depth: float,
    ap: float, gflops: float,
) -> Size:  # fmt: skip
    return Size(
        name, 640, vit, (8, 16, 32), width, layers, ffn, 300, (3, 6, 3), True, False, "deim", encoder_ffn, expansion,
        depth, coco_ap=ap, coco_gflops=gflops,
    )  # fmt: skip


SIZES: Mapping[str, Size] = {
    size.name: size
    for size in (
        _lite("atto", 320, "hgnetv2-atto", 64, 160, 100, 23.8, 0.8),
        _lite("femto", 416, "hgnetv2-femto", 96, 256, 150, 31.0, 1.7),
        _lite("pico", 640, "hgnetv2-pico", 112, 320, 200, 38.5, 5.2),
        Size(
            "n",
            640,
            "hgnetv2_b0",
            (16, 32),
            128,
            3,
            512,
            300,
            (6, 6),
            True,
            False,
            "dfine",
            512,
            0.34,
            0.5,
            coco_ap=43.0,
            coco_gflops=6.8,
        ),
        _vit("s", ViTSize(192, 3, False, (3, 7, 11), 16), 192, 4, 512, 512, 0.34, 0.67, 50.9, 25.6),
        _vit("m", ViTSize(256, 4, False, (3, 7, 11), 16), 256, 4, 512, 512, 0.67, 1, 53.0, 52.2),
        _vit("l", ViTSize(384, 6, True, (5, 8, 11), 32), 224, 4, 1792, 896, 1.0, 1, 56.0, 96.7),
        _vit("x", ViTSize(384, 6, True, (5, 8, 11), 64, "swiglu"), 256, 6, 2048, 1024, 1.25, 1.37, 57.8, 151.6),
    )
}


def size_of(name: str, **changes: Any) -> Size:
    """Returns a size by name, with some of its fields replaced.

    Raises:
        UsageError: For a name or a field that there is not.
    """
    known = name.lower().removeprefix("deimv2-").removeprefix("deimv2_")
    if known not in SIZES:
        raise UsageError(f"there is no DEIMv2 of size {name!r}{nearest(known, SIZES)}; there are {', '.join(SIZES)}")
    found = replace(SIZES[known], **changes)
    if found.classes < 1 or found.queries < 1:
        raise UsageError(f"a detector has 1 class and 1 query or more, not {found.classes} and {found.queries}")
    return found
