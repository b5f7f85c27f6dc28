"""Pictures through a detector: files, arrays and Pillow pictures of any size, alone or together, within a budget."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from outlay.budget import Budget, Ledger
from outlay.errors import UsageError
from outlay.pictures import read_picture
from outlay.vision.cost import count
from outlay.vision.detect.boxes import unsuppressed
from outlay.vision.detect.checkpoints import Loaded
from outlay.vision.detect.decoder import Answer
from outlay.vision.detect.deimv2 import MULTIPLE, Detector
from outlay.vision.detect.sizes import Size

if TYPE_CHECKING:
    from PIL.Image import Image

SHARES = (1.0, 0.75, 0.5, 0.25)
"""Shares of the queries that a budget chooses from."""
CAPPED = ("flops", "mem_elements", "moved_bytes", "seconds")
"""What a budget may cap."""


@dataclass(frozen=True)
class Detections:
    """What a detector found in a picture, the most certain first."""

    boxes: Tensor
    """float32 [count, 4]: left, top, right, bottom, in the picture's own pixels."""
    scores: Tensor
    """float32 [count], from 0 to 1."""
    labels: Tensor
    """int64 [count], the classes."""
    names: tuple[str, ...] = ()
    """Of all classes."""
    ledger: Ledger = field(default_factory=Ledger)
    """What the picture's batch cost, in equal shares; `layers` and `queries` are those that were run."""

    def as_rows(self) -> list[dict[str, Any]]:
        """Returns a dictionary for each box, as JSON can hold it."""
        return [
            {"label": self.names[label], "score": round(score, 4), "box": [round(edge, 2) for edge in box]}
            for box, score, label in zip(self.boxes.tolist(), self.scores.tolist(), self.labels.tolist(), strict=True)
        ]


@dataclass(frozen=True)
class Effort:
    """How much of a detector is run."""

    layers: int
    queries: int


def detect(
    loaded: Loaded,
    pictures: Iterable[str | Path | bytes | npt.NDArray[np.uint8] | Image],
    *,
    threshold: float = 0.4,
    layers: int | None = None,
    queries: int | None = None,
    budget: Budget | None = None,
    dtype: torch.dtype = torch.float32,
    nms: float | None = None,
) -> list[Detections]:
    """Returns what a detector finds in pictures, which are resized to its side and read together.

    Args:
        loaded: The detector.
        pictures: Files, their bytes, arrays uint8 [height, width] or [height, width, 3 or 4], or Pillow's.
        threshold: The least score.
        layers: Decoder layers that are run; None: all.
        queries: Places that are refined; None: as many as trained.
        budget: Caps on `flops`, `mem_elements` or `moved_bytes` of one picture choose layers and queries; one on
            `seconds` of the batch stops the refinement after the layer that met it.
        dtype: What backbone and encoder compute in; the decoder, whose boxes need it, is in float32.
        nms: The IoU with a more certain box of the same class above which a box is suppressed; None: none is.

    Raises:
        UsageError: For what is no picture, more layers or queries than there are, or a budget that nothing fits.
    """
    opened = [read_picture(each) for each in pictures]
    if not opened:
        return []
    if not 0 <= threshold <= 1:
        raise UsageError(f"a threshold is a score from 0 to 1, not {threshold}")
    if nms is not None and not 0 <= nms <= 1:
        raise UsageError(f"nms is an IoU from 0 to 1, not {nms}")
    detector, caps = loaded.detector, budget or Budget()
    strange = next((name for name in caps.caps if name not in CAPPED), None)
    if strange is not None:
        raise UsageError(f"a detector's budget caps {', '.join(CAPPED)}, not {strange}")
    effort = chosen_effort(loaded, caps, layers, queries)
    started = time.perf_counter()
    until = started + float(caps.caps.get("seconds", float("inf")))
    with torch.no_grad():
        maps = maps_of(loaded, opened, dtype)
        answer = detector.decoder(maps, effort.layers, effort.queries, lambda done: time.perf_counter() < until)
    spent = Ledger(
        seconds=(time.perf_counter() - started) / len(opened),
        extras={"layers": answer.layer, "queries": effort.queries},
    )
    found = found_in(answer, opened, threshold, loaded.names, spent)
    return found if nms is None else [_suppressed(each, nms) for each in found]


def _suppressed(found: Detections, most: float) -> Detections:
    left = unsuppressed(found.boxes, found.labels, most)
    return replace(found, boxes=found.boxes[left], scores=found.scores[left], labels=found.labels[left])


def maps_of(
    loaded: Loaded, pictures: Sequence[npt.NDArray[np.uint8]], dtype: torch.dtype = torch.float32
) -> list[Tensor]:
    """Returns what the decoder reads of pictures, float32, for each level [pictures, width, height, w].

    Args:
        loaded: The detector.
        pictures: uint8 [height, width, 3] each.
        dtype: What backbone and encoder compute in.
    """
    batch = torch.stack([resized(each, loaded.side) for each in pictures])
    with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
        maps = loaded.detector.maps(batch)
    return [each.float() for each in maps]


def found_in(
    answer: Answer,
    pictures: Sequence[npt.NDArray[np.uint8]],
    threshold: float,
    names: tuple[str, ...],
    ledger: Ledger | None = None,
) -> list[Detections]:
    """Returns the detections in an answer, in the pictures' own pixels."""
    spent = ledger or Ledger()
    return [
        _found(logits, boxes, (each.shape[1], each.shape[0]), threshold, names, spent)
        for logits, boxes, each in zip(answer.logits, answer.boxes, pictures, strict=True)
    ]


def chosen_effort(loaded: Loaded, budget: Budget, layers: int | None = None, queries: int | None = None) -> Effort:
    """Returns the layers and queries that are run: those given, else the most that a budget has room for.

    Layers come first: a detector with fewer queries still refines each of them.

    Raises:
        UsageError: For more than there are, or where nothing fits; it names the closest and by how much it is over.
    """
    size = loaded.detector.size
    most = min(size.queries, places(loaded))
    if layers is not None and not 1 <= layers <= size.layers:
        raise UsageError(f"the detector has {size.layers} layers; run 1 to {size.layers}, not {layers}")
    if queries is not None and not 1 <= queries <= most:
        raise UsageError(f"the detector refines 1 to {most} places here, not {queries}")
    caps = {name: cap for name, cap in budget.caps.items() if name != "seconds"}
    if not caps:
        return Effort(layers or size.layers, queries or most)
    over: dict[Effort, float] = {}
    for deep in [layers] if layers else range(size.layers, 0, -1):
        for wide in [queries] if queries else [max(1, round(share * most)) for share in SHARES]:
            spent = cost_of_effort(loaded, Effort(deep, wide))
            over[Effort(deep, wide)] = max(spent.amount(name) / cap for name, cap in caps.items())
            if over[Effort(deep, wide)] <= 1:
                return Effort(deep, wide)
    closest = min(over, key=lambda effort: over[effort])
    raise UsageError(
        f"nothing of this detector fits the budget; the closest, {closest.layers} layers of {closest.queries} places, "
        f"needs {over[closest]:.2f} times as much"
    )


def cost_of_effort(loaded: Loaded, effort: Effort) -> Ledger:
    """Returns what a picture costs with these layers and queries, counted from shapes alone."""
    return cost_of(loaded, effort.layers, effort.queries)


def cost_of(loaded: Loaded, layers: int, queries: int) -> Ledger:
    """Returns what a picture costs with these layers and queries, counted from shapes alone."""
    return counted(loaded.detector.size, loaded.side, Effort(layers, queries))


def counted(size: Size, side: int, effort: Effort) -> Ledger:
    """Returns what a detector of this size spends on a picture of `side` pixels a side; no detector is needed."""
    bare = replace(size, coco_ap=None, coco_gflops=None)
    return _cost_of_maps(bare, side) + _cost_of_decoder(bare, side, effort)


@cache
def _twin(size: Size) -> Detector:
    with torch.device("meta"):
        return Detector(size).eval()


@cache
def _cost_of_maps(size: Size, side: int) -> Ledger:
    return count(_Maps(_twin(size)), torch.empty(1, 3, side, side, device="meta")).ledger()


@cache
def _cost_of_decoder(size: Size, side: int, effort: Effort) -> Ledger:
    maps = [torch.empty(1, size.width, side // each, side // each, device="meta") for each in size.strides]
    return count(_Refined(_twin(size), effort), *maps).ledger()


class _Maps(torch.nn.Module):
    def __init__(self, detector: Detector) -> None:
        super().__init__()
        self.detector = detector

    def forward(self, pictures: Tensor) -> list[Tensor]:
        return self.detector.maps(pictures)


class _Refined(torch.nn.Module):
    def __init__(self, detector: Detector, effort: Effort) -> None:
        super().__init__()
        self.decoder, self._effort = detector.decoder, effort

    def forward(self, *maps: Tensor) -> tuple[Tensor, Tensor]:
        answer = self.decoder(maps, self._effort.layers, self._effort.queries)
        return answer.logits, answer.boxes


def places(loaded: Loaded) -> int:
    """Returns how many places there are to choose queries from, on pictures of the detector's side."""
    return sum((loaded.side // stride) ** 2 for stride in loaded.detector.size.strides)


def resized(picture: npt.NDArray[np.uint8], side: int) -> Tensor:
    """Returns a picture as the detector reads it, float32 [3, side, side] in 0..1.

    Both sides are stretched to one length, as in the authors' evaluation, by bilinear interpolation without aliasing.
    """
    pixels = torch.from_numpy(picture).permute(2, 0, 1)[None].float() / 255
    return F.interpolate(pixels, (side, side), mode="bilinear", align_corners=False, antialias=True)[0]


def _found(
    logits: Tensor, boxes: Tensor, size: Sequence[int], threshold: float, names: tuple[str, ...], ledger: Ledger
) -> Detections:
    """Returns the best classes of all queries, without suppression."""
    classes = logits.shape[1]
    scores, best = logits.sigmoid().flatten().topk(len(logits))
    kept = scores >= threshold
    scores, best = scores[kept], best[kept]
    width, height = size
    scale = boxes.new_tensor([width, height, width, height])
    centre, extent = boxes[best // classes].split(2, -1)
    corners = torch.cat([centre - extent / 2, centre + extent / 2], -1).clamp(0, 1) * scale
    return Detections(corners, scores, best % classes, names, ledger)


def at_side(loaded: Loaded, side: int) -> tuple[Loaded, str]:
    """Returns a detector that reads pictures of another size, and a remark where that had to be another than asked.

    Args:
        loaded: The detector.
        side: Pixels a side that are wanted; the next multiple of 32 is taken.

    Returns:
        The detector, and "" or a line for the user.
    """
    taken = -(-side // MULTIPLE) * MULTIPLE
    remark = "" if taken == side else f"sides are multiples of {MULTIPLE}: {taken} pixels are taken, not {side}"
    return replace(loaded, side=taken), remark
