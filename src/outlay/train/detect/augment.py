"""Pictures changed in training: mosaic, colours, zoom, crops, flips; mixup and Copy-Blend between those of a batch.

DEIMv2's Dense O2O (Huang et al. 2025): more boxes in a picture give one-to-one matching more to learn from. Values are
those of the authors' training files, and of torchvision's operations that these name.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from outlay.train.detect.matching import Targets
from outlay.vision.detect.boxes import corners

Floats = npt.NDArray[np.float32]

ROTATION = 10.0  # degrees, either way, of a mosaic
SHIFT = 0.1  # of a mosaic, in shares of its sides
SCALES = (0.5, 1.5)  # of a mosaic
BRIGHTNESS, CONTRAST, SATURATION, HUE = (0.875, 1.125), (0.5, 1.5), (0.5, 1.5), 0.05
LARGEST_ZOOM = 4.0  # sides of the canvas that a picture is laid on, in its own
CROP_CHANCE, LEAST_CROP, CROP_ASPECTS, CROP_TRIALS = 0.8, 0.3, (0.5, 2.0), 40
CROP_OVERLAPS = (0.0, 0.1, 0.3, 0.5, 0.7, 0.9, 1.0)  # least overlaps with a box; 1 leaves the picture whole
MIX = (0.45, 0.55)  # share of one of two pictures that are mixed
BLEND_AREA, BLEND_OBJECTS, BLEND_CONTEXT = 100.0, 3, (0.1, 0.25)


class Sample(NamedTuple):
    """A picture with its boxes."""

    pixels: npt.NDArray[np.uint8]
    """[height, width, 3]."""
    boxes: Floats
    """[count, 4]: left, top, right, bottom, in pixels."""
    labels: npt.NDArray[np.int64]


@dataclass(frozen=True)
class Strength:
    """How pictures are changed in a stage of a training."""

    mosaic: float = 0.0
    """Chance that four pictures make one."""
    mixup: float = 0.0
    """Chance that the pictures of a batch are mixed in pairs."""
    copyblend: float = 0.0
    """Chance that objects are blended into other pictures of a batch, if these are not mixed."""
    colours: bool = False
    zoom: bool = False
    """Whether pictures are laid on a larger canvas, and cropped."""
    flip: bool = True
    scales: bool = False
    """Whether batches have several sizes."""


def sample(
    source: Callable[[int], Sample], count: int, place: int, side: int, least: float, how: Strength,
    draw: np.random.Generator,
) -> Sample:  # fmt: skip
    """Returns a picture of a data set, changed, of `side` pixels a side.

    Args:
        source: Gives the pictures.
        count: How many there are.
        place: The one that is wanted.
        side: Pixels a side of what is returned.
        least: Pixels a side that a box must keep to stay.
        how: What is done.
        draw: What draws it.
    """
    made = source(place)
    with_mosaic = draw.random() < how.mosaic
    if with_mosaic:
        others = [source(int(draw.integers(count))) for _ in range(3)]
        made = mosaic([made, *others], side // 2, draw)
    if how.colours:
        made = made._replace(pixels=distorted(made.pixels, draw))
    if how.zoom and not with_mosaic:
        if draw.random() < 0.5:
            made = zoomed_out(made, draw)
        if draw.random() < CROP_CHANCE:
            made = cropped(made, draw)
    made = sanitized(made, least)
    if how.flip and draw.random() < 0.5:
        made = flipped(made)
    return sanitized(resized(made, side, side), least)


def resized(made: Sample, height: int, width: int) -> Sample:
    """Returns the picture stretched to a size."""
    from PIL import Image

    before = made.pixels.shape[:2]
    if before == (height, width):
        return made
    pixels = np.asarray(Image.fromarray(made.pixels).resize((width, height), Image.Resampling.BILINEAR))
    scale = np.array([width / before[1], height / before[0]] * 2, dtype=np.float32)
    return Sample(pixels, made.boxes * scale, made.labels)


def sanitized(made: Sample, least: float) -> Sample:
    """Returns the picture with boxes cut at its border, and without those that are smaller than `least` pixels."""
    height, width = made.pixels.shape[:2]
    boxes = made.boxes.clip(0, np.array([width, height, width, height], dtype=np.float32))
    kept = ((boxes[:, 2:] - boxes[:, :2]) >= max(least, 1e-3)).all(1)
    return Sample(made.pixels, boxes[kept], made.labels[kept])


def flipped(made: Sample) -> Sample:
    """Returns the picture mirrored, left for right."""
    width = made.pixels.shape[1]
    boxes = made.boxes.copy()
    boxes[:, [0, 2]] = width - made.boxes[:, [2, 0]]
    return Sample(np.ascontiguousarray(made.pixels[:, ::-1]), boxes, made.labels)


def mosaic(parts: Sequence[Sample], shorter: int, draw: np.random.Generator) -> Sample:
    """Returns four pictures side by side, turned, moved and scaled together.

    Args:
        parts: Four pictures.
        shorter: Pixels that the shorter side of each gets.
        draw: What draws the angle, the shift and the scale.
    """
    scaled = []
    for each in parts:
        height, width = each.pixels.shape[:2]
        factor = shorter / min(height, width)
        scaled.append(resized(each, max(1, round(height * factor)), max(1, round(width * factor))))
    height, width = (max(each.pixels.shape[axis] for each in scaled) for axis in range(2))
    canvas = np.zeros((2 * height, 2 * width, 3), dtype=np.uint8)
    boxes = []
    for place, each in enumerate(scaled):
        top, left = place // 2 * height, place % 2 * width
        canvas[top : top + each.pixels.shape[0], left : left + each.pixels.shape[1]] = each.pixels
        boxes.append(each.boxes + np.array([left, top, left, top], dtype=np.float32))
    joined = Sample(canvas, np.concatenate(boxes), np.concatenate([each.labels for each in scaled]))
    angle = draw.uniform(-ROTATION, ROTATION)
    shift = [draw.uniform(-SHIFT, SHIFT) * side for side in (canvas.shape[1], canvas.shape[0])]
    return moved(joined, angle, (shift[0], shift[1]), draw.uniform(*SCALES))


def moved(made: Sample, angle: float, shift: tuple[float, float], scale: float) -> Sample:
    """Returns the picture turned and scaled around its middle, then shifted; black comes in from outside.

    Args:
        made: The picture.
        angle: In degrees, clockwise.
        shift: To the right and down, in pixels.
        scale: Above 1 enlarges.
    """
    from PIL import Image

    height, width = made.pixels.shape[:2]
    middle, turn = np.array([width / 2, height / 2]), np.deg2rad(angle)
    matrix = scale * np.array([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]])
    to = middle + np.array(shift)
    back = np.linalg.inv(matrix)
    begin = middle - back @ to
    data = (back[0, 0], back[0, 1], begin[0], back[1, 0], back[1, 1], begin[1])
    pixels = np.asarray(
        Image.fromarray(made.pixels).transform((width, height), Image.Transform.AFFINE, data, Image.Resampling.BILINEAR)
    )
    four = made.boxes[:, [0, 1, 2, 1, 2, 3, 0, 3]].reshape(-1, 4, 2)
    placed = (four - middle) @ matrix.T + to
    boxes = np.concatenate([placed.min(1), placed.max(1)], 1).astype(np.float32).reshape(-1, 4)
    return sanitized(Sample(pixels, boxes, made.labels), 0)


def distorted(pixels: npt.NDArray[np.uint8], draw: np.random.Generator) -> npt.NDArray[np.uint8]:
    """Returns a picture with other brightness, contrast, saturation, hue and order of colours, each by chance."""
    chances = draw.random(5) < 0.5
    image = pixels.astype(np.float32)
    if chances[0]:
        image *= draw.uniform(*BRIGHTNESS)
    contrast_first = draw.random() < 0.5
    if chances[1] and contrast_first:
        image = _contrast(image, draw.uniform(*CONTRAST))
    if chances[2]:
        shade = _shade(image)[..., None]
        image = shade + (image - shade) * draw.uniform(*SATURATION)
    if chances[3]:
        image = _hue(image, draw.uniform(-HUE, HUE))
    if chances[1] and not contrast_first:
        image = _contrast(image, draw.uniform(*CONTRAST))
    if chances[4]:
        image = image[..., draw.permutation(3)]
    return image.clip(0, 255).round().astype(np.uint8)


def _shade(image: Floats) -> Floats:
    found: Floats = image @ np.array([0.2989, 0.587, 0.114], dtype=np.float32)
    return found


def _contrast(image: Floats, amount: float) -> Floats:
    middle = np.float32(_shade(image).mean())
    return middle + (image - middle) * np.float32(amount)


def _hue(image: Floats, share: float) -> Floats:
    from PIL import Image

    hsv = np.array(Image.fromarray(image.clip(0, 255).round().astype(np.uint8)).convert("HSV"))
    hsv[..., 0] = (hsv[..., 0].astype(np.int32) + round(share * 256)) % 256
    return np.asarray(Image.fromarray(hsv, "HSV").convert("RGB")).astype(np.float32)


def zoomed_out(made: Sample, draw: np.random.Generator) -> Sample:
    """Returns the picture somewhere on a larger, black canvas."""
    height, width = made.pixels.shape[:2]
    factor = draw.uniform(1, LARGEST_ZOOM)
    canvas = np.zeros((int(height * factor), int(width * factor), 3), dtype=np.uint8)
    top, left = (int(draw.integers(free + 1)) for free in (canvas.shape[0] - height, canvas.shape[1] - width))
    canvas[top : top + height, left : left + width] = made.pixels
    return Sample(canvas, made.boxes + np.array([left, top, left, top], dtype=np.float32), made.labels)


def cropped(made: Sample, draw: np.random.Generator) -> Sample:
    """Returns a part of the picture whose overlap with some box is at least a drawn one (SSD, Liu et al. 2016)."""
    height, width = made.pixels.shape[:2]
    least = float(draw.choice(CROP_OVERLAPS))
    if least >= 1 or not len(made.boxes):
        return made
    for _ in range(CROP_TRIALS):
        new = (draw.uniform(LEAST_CROP, 1, 2) * (width, height)).astype(int)
        if not new.all() or not CROP_ASPECTS[0] <= new[0] / new[1] <= CROP_ASPECTS[1]:
            continue
        left, top = (int(draw.uniform() * (side - part)) for side, part in zip((width, height), new, strict=True))
        window = np.array([left, top, left + new[0], top + new[1]], dtype=np.float32)
        centres = (made.boxes[:, :2] + made.boxes[:, 2:]) / 2
        inside = ((centres > window[:2]) & (centres < window[2:])).all(1)
        if not inside.any() or _overlaps(made.boxes[inside], window).max() < least:
            continue
        pixels = np.ascontiguousarray(made.pixels[top : top + new[1], left : left + new[0]])
        boxes = made.boxes[inside].clip(window[[0, 1, 0, 1]], window[[2, 3, 2, 3]]) - window[[0, 1, 0, 1]]
        return Sample(pixels, boxes, made.labels[inside])
    return made


def _overlaps(boxes: Floats, window: Floats) -> Floats:
    """Returns the intersection over union of each box with a window."""
    shared = (np.minimum(boxes[:, 2:], window[2:]) - np.maximum(boxes[:, :2], window[:2])).clip(0).prod(1)
    areas = (boxes[:, 2:] - boxes[:, :2]).prod(1)
    found: Floats = shared / (areas + (window[2:] - window[:2]).prod() - shared)
    return found


def between(pictures: Tensor, targets: Targets, how: Strength, draw: np.random.Generator) -> tuple[Tensor, Targets]:
    """Returns a batch that is mixed in pairs, or into whose pictures objects of others are blended, or as it was.

    Args:
        pictures: float32 [batch, 3, height, width].
        targets: Their boxes.
        how: The chances.
        draw: What draws.
    """
    if draw.random() < how.mixup:
        return mixed(pictures, targets, float(draw.uniform(*MIX)))
    if draw.random() < how.copyblend:
        return blended(pictures, targets, draw)
    return pictures, targets


def mixed(pictures: Tensor, targets: Targets, share: float) -> tuple[Tensor, Targets]:
    """Returns each picture laid over the one before it, with the boxes of both (mixup, Zhang et al. 2018)."""
    boxes, labels = targets.boxes.split(targets.counts), targets.labels.split(targets.counts)
    joined = [
        (torch.cat([boxes[place], boxes[place - 1]]), torch.cat([labels[place], labels[place - 1]]))
        for place in range(len(pictures))
    ]
    mixture = pictures * share + pictures.roll(1, 0) * (1 - share)
    return mixture, Targets.of(*zip(*joined, strict=True))


def blended(pictures: Tensor, targets: Targets, draw: np.random.Generator) -> tuple[Tensor, Targets]:
    """Returns pictures into each of which three objects of the batch are blended, half over half (Copy-Blend).

    An object comes with some context around its box, as far as both pictures have room; its box stays its own.
    """
    height, width = pictures.shape[2:]
    sides = torch.tensor([width, height, width, height])
    pixels = (corners(targets.boxes) * sides).int().clamp_min(0)
    pixels = torch.minimum(pixels, sides.int())
    owner = torch.repeat_interleave(torch.arange(len(targets.counts)), torch.tensor(targets.counts))
    areas = (targets.boxes[:, 2:] * sides[:2]).prod(1)
    extents = pixels[:, 2:] - pixels[:, :2]
    pool = ((areas >= BLEND_AREA) & (extents > 0).all(1)).nonzero()[:, 0].tolist()
    if not pool:
        return pictures, targets
    made = pictures.clone()
    boxes, labels = list(targets.boxes.split(targets.counts)), list(targets.labels.split(targets.counts))
    share = float(draw.uniform(*MIX))
    for place in range(len(pictures)):
        for chosen in draw.choice(pool, min(BLEND_OBJECTS, len(pool)), replace=False).tolist():
            source = pixels[chosen].tolist()
            wide, high = source[2] - source[0], source[3] - source[1]
            left, top = int(draw.integers(width - wide + 1)), int(draw.integers(height - high + 1))
            context = draw.uniform(*BLEND_CONTEXT)
            reach = (int(wide * context), int(high * context))
            before = [min(reach[axis], source[axis], at) for axis, at in enumerate((left, top))]
            after = [
                min(reach[axis], side - source[2 + axis], side - at - extent)
                for axis, (side, at, extent) in enumerate(((width, left, wide), (height, top, high)))
            ]
            rows = slice(top - before[1], top + high + after[1])
            columns = slice(left - before[0], left + wide + after[0])
            patch = pictures[
                owner[chosen], :, source[1] - before[1] : source[3] + after[1],
                source[0] - before[0] : source[2] + after[0],
            ]  # fmt: skip
            made[place, :, rows, columns] = made[place, :, rows, columns] * share + patch * (1 - share)
            box = torch.tensor([(left + wide / 2) / width, (top + high / 2) / height, wide / width, high / height])
            boxes[place] = torch.cat([boxes[place], box[None]])
            labels[place] = torch.cat([labels[place], targets.labels[chosen][None]])
    return made, Targets.of(boxes, labels)
