"""Pictures with boxes: COCO's files, VOC's folders, and scenes that are made."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal
from xml.etree import ElementTree

import numpy as np
import numpy.typing as npt

from outlay.errors import UsageError, nearest
from outlay.pictures import read_picture

Bad = Literal["repair", "refuse"]
"""What is done with boxes that lie outside of their picture, or are inverted or empty."""
HELD_OUT = 10
"""Of this many pictures of a COCO file, one is held out where nothing else is named."""
SHOWN = 5
GENERATED = "digits"


@dataclass(frozen=True)
class Example:
    """A picture with its boxes."""

    name: str
    picture: Path | npt.NDArray[np.uint8]
    """A file, or pixels [height, width, 3]."""
    boxes: npt.NDArray[np.float32]
    """[count, 4]: left, top, right, bottom, in pixels."""
    labels: npt.NDArray[np.int64]
    """[count], places in the data set's names."""
    crowd: npt.NDArray[np.bool_]
    """[count], whether a box is around a crowd, which is neither trained on nor counted as missed."""

    def pixels(self) -> npt.NDArray[np.uint8]:
        """Returns the picture, uint8 [height, width, 3]. Raises `UsageError` where it can't be read."""
        return self.picture if isinstance(self.picture, np.ndarray) else read_picture(self.picture)


@dataclass(frozen=True)
class Dataset:
    """Pictures with boxes of named classes."""

    source: str
    """As it was named."""
    names: tuple[str, ...]
    """Of the classes."""
    examples: Sequence[Example]
    repaired: Mapping[str, int] = field(default_factory=dict)
    """How many boxes were repaired or dropped, by what was wrong."""

    @property
    def remarks(self) -> list[str]:
        """What a user should know of it, a line each."""
        return [f"{self.source}: {count} boxes {what}" for what, count in self.repaired.items()]


def read_dataset(source: str, bad: Bad = "repair") -> Dataset:
    """Reads pictures with boxes.

    Args:
        source: A COCO file (.json; its pictures lie beside it or in `images/`), a VOC folder (Annotations, JPEGImages),
            or `digits`, scenes that are made. `:SPLIT` behind a folder names a file of its ImageSets/Main; behind
            digits it is `train` or `test`.
        bad: Whether boxes that are wrong are repaired and counted, or refused.

    Raises:
        UsageError: Where it can't be read, in one line.
    """
    if source.partition(":")[0] == GENERATED and not Path(source).exists():
        from outlay.vision.detect.scenes import scenes

        return scenes(source.partition(":")[2] or "test")
    path, split = Path(source), ""
    if not path.exists():
        before, colon, after = source.rpartition(":")
        if not colon or not Path(before).is_dir():
            raise UsageError(f"there is no data set {source}: give a COCO file (.json), a VOC folder, or {GENERATED}")
        path, split = Path(before), after
    found = _voc(path, split, source, bad) if path.is_dir() else _coco(path, source, bad)
    if not any(len(each.boxes) for each in found.examples):
        raise UsageError(f"{source} has {len(found.examples)} pictures and no boxes")
    return found


def held_out(source: str, bad: Bad = "repair") -> tuple[Dataset, Dataset]:
    """Returns what is trained on and what is held out of a source that names no split.

    `digits` and VOC folders have splits: train, and the first there is of val and test. Of a COCO file every tenth
    picture is held out.
    """
    if source == GENERATED:
        return read_dataset(f"{source}:train"), read_dataset(f"{source}:test")
    if Path(source).is_dir():
        known = splits(Path(source))
        if "train" in known and (other := next((name for name in ("val", "test") if name in known), None)):
            return read_dataset(f"{source}:train", bad), read_dataset(f"{source}:{other}", bad)
    whole = read_dataset(source, bad)
    parts = [
        [each for place, each in enumerate(whole.examples) if (place % HELD_OUT == HELD_OUT - 1) == held]
        for held in (False, True)
    ]
    if not parts[1]:
        return whole, whole
    trained, held = (Dataset(source, whole.names, part, whole.repaired) for part in parts)
    return trained, held


def splits(folder: Path) -> list[str]:
    """Returns the names of a VOC folder's splits."""
    return sorted(each.stem for each in (folder / "ImageSets" / "Main").glob("*.txt"))


def _voc(folder: Path, split: str, source: str, bad: Bad) -> Dataset:
    described = folder / "Annotations"
    if not described.is_dir():
        raise UsageError(f"{folder} is no VOC folder: it has no Annotations")
    files = sorted(described.glob("*.xml"))
    every = [_voc_picture(each, folder) for each in files]
    names = tuple(sorted({name for _, _, found in every for name, _ in found}))
    if split:
        wanted = _voc_split(folder, split)
        stems = {each.stem: place for place, each in enumerate(files)}
        missing = [stem for stem in wanted if stem not in stems]
        if missing:
            raise UsageError(f"{source} names {missing[0]}, which has no file in Annotations")
        every = [every[stems[stem]] for stem in wanted]
    counted: Counter[str] = Counter()
    examples = []
    for picture, size, found in every:
        boxes = np.array([box for _, box in found], dtype=np.float32).reshape(-1, 4)
        labels = np.array([names.index(name) for name, _ in found], dtype=np.int64)
        crowd = np.zeros(len(labels), dtype=bool)
        examples.append(_checked(Example(picture.stem, picture, boxes, labels, crowd), size, bad, counted))
    return Dataset(source, names, examples, dict(counted))


def _voc_split(folder: Path, split: str) -> list[str]:
    known = splits(folder)
    if split not in known:
        raise UsageError(
            f"{folder} has no split {split!r}{nearest(split, known)}; there are {', '.join(known) or 'none'}"
        )
    text = (folder / "ImageSets" / "Main" / f"{split}.txt").read_text()
    return [line.split()[0] for line in text.splitlines() if line.strip()]


def _voc_picture(file: Path, folder: Path) -> tuple[Path, tuple[int, int], list[tuple[str, list[float]]]]:
    """Returns the picture that a file describes, its width and height, and the boxes with their classes."""
    try:
        root = ElementTree.parse(file).getroot()
        picture = folder / "JPEGImages" / (root.findtext("filename") or "")
        if not picture.is_file():
            picture = next(iter(sorted((folder / "JPEGImages").glob(f"{file.stem}.*"))), picture)
        size = (int(root.findtext("size/width", "0")), int(root.findtext("size/height", "0")))
        found = []
        for each in root.iter("object"):
            edges = [float(each.findtext(f"bndbox/{name}", "")) for name in ("xmin", "ymin", "xmax", "ymax")]
            found.append((each.findtext("name") or "", edges))
    except (ElementTree.ParseError, ValueError, OSError) as error:
        raise UsageError(f"{file} describes no picture in VOC's form: {error}") from None
    if not picture.is_file():
        raise UsageError(f"{file} is about {picture}, which is not there")
    return picture, size if all(size) else _size_of(picture), found


def _coco(file: Path, source: str, bad: Bad) -> Dataset:
    try:
        held = json.loads(file.read_text(encoding="utf-8"))
        categories = {int(each["id"]): str(each["name"]) for each in held["categories"]}
        places = {int(each["id"]): place for place, each in enumerate(held["images"])}
        images: list[dict[str, Any]] = held["images"]
        own: list[list[tuple[int, list[float], bool]]] = [[] for _ in images]
        for each in held["annotations"]:
            box = [float(edge) for edge in each["bbox"]]
            if len(box) != 4:
                raise ValueError(f"a box has 4 numbers, not {len(box)}")
            if int(each["image_id"]) not in places:
                raise ValueError(f"a box is in picture {each['image_id']}, which there is not")
            own[places[int(each["image_id"])]].append((int(each["category_id"]), box, bool(each.get("iscrowd"))))
    except (OSError, ValueError, KeyError, TypeError) as error:
        reason = f"it lacks {error}" if isinstance(error, KeyError) else str(error)
        raise UsageError(f"{file} is no COCO file: {reason}") from None
    strange = next((label for row in own for label, _, _ in row if label not in categories), None)
    if strange is not None:
        raise UsageError(f"{file} has a box of class {strange}, and its classes are {_few(sorted(categories))}")
    order = sorted(categories)
    counted: Counter[str] = Counter()
    examples = []
    for image, row in zip(images, own, strict=True):
        picture = _beside(file, str(image["file_name"]))
        boxes = np.array([box for _, box, _ in row], dtype=np.float32).reshape(-1, 4)
        boxes[:, 2:] += boxes[:, :2]
        labels = np.array([order.index(label) for label, _, _ in row], dtype=np.int64)
        crowd = np.array([each for _, _, each in row], dtype=bool)
        size = (int(image.get("width") or 0), int(image.get("height") or 0))
        example = Example(picture.name, picture, boxes, labels, crowd)
        examples.append(_checked(example, size if all(size) else _size_of(picture), bad, counted))
    return Dataset(source, tuple(categories[each] for each in order), examples, dict(counted))


def _beside(file: Path, name: str) -> Path:
    """Returns the picture that a COCO file names."""
    for folder in (file.parent, file.parent / "images", file.parent.parent / "images"):
        if (folder / name).is_file():
            return folder / name
    raise UsageError(f"{file} names {name}, which lies neither beside it nor in images/")


def _size_of(picture: Path) -> tuple[int, int]:
    height, width = read_picture(picture).shape[:2]
    return width, height


def _checked(example: Example, size: tuple[int, int], bad: Bad, counted: Counter[str]) -> Example:
    """Returns the example with boxes that lie in the picture, and counts what was done.

    Raises:
        UsageError: For a box that is outside, inverted or empty, where these are refused.
    """
    boxes = example.boxes
    low, high = np.minimum(boxes[:, :2], boxes[:, 2:]), np.maximum(boxes[:, :2], boxes[:, 2:])
    turned = (boxes[:, :2] > boxes[:, 2:]).any(1)
    inside = np.concatenate([low, high], 1).clip(0, np.array([*size, *size], dtype=np.float32))
    cut = np.abs(inside - np.concatenate([low, high], 1)).max(1, initial=0) > 1  # a pixel is how files count, from 1
    kept = (inside[:, 2:] > inside[:, :2]).all(1)
    faults = {"that were inverted, turned": turned & kept, "that reached out of their picture, cut": cut & kept,
              "that were empty, dropped": ~kept}  # fmt: skip
    for what, where in faults.items():
        if where.any():
            if bad == "refuse":
                box = ", ".join(f"{edge:g}" for edge in boxes[where.argmax()])
                raise UsageError(
                    f"{example.name} of {size[0]} x {size[1]} pixels has a box ({box}) that is "
                    f"{'inverted' if what.startswith('that were inv') else 'outside or empty'}; "
                    "mend it, or let boxes be repaired"
                )
            counted[what] += int(where.sum())
    return Example(example.name, example.picture, inside[kept], example.labels[kept], example.crowd[kept])


def _few(values: Sequence[object]) -> str:
    more = f" and {len(values) - SHOWN} more" if len(values) > SHOWN else ""
    return ", ".join(map(str, values[:SHOWN])) + more
