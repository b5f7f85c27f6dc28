"""A comparison of detectors: the same pictures under each, with what each costs and what it finds."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
import torch

import outlay
from outlay import machine
from outlay.budget import Budget
from outlay.compare import folder
from outlay.compare.comparison import Answers, Comparison, Display, Key, Ready
from outlay.compare.contenders import canonical, references, refuse_names
from outlay.compare.manifest import PACKAGES
from outlay.compare.results import Answer, Tally
from outlay.compare.turns import Pending, Rows, Shard, turns_left
from outlay.errors import OutlayError, UsageError, nearest, one_line
from outlay.progress import ShowProgress
from outlay.viewer.report import PICTURES
from outlay.vision.detect import Detections, Loaded, cost_of, detect, load
from outlay.vision.detect.datasets import Dataset, Example, read_dataset
from outlay.vision.detect.detections import at_side, chosen_effort
from outlay.vision.detect.evaluate import RESAMPLES, places_of, score
from outlay.vision.detect.verdicts import verdicts
from outlay.vision.detect.ways import DTYPES

METHOD = "deimv2"
METRICS = ("coco", "coco50")
"""AP, and AP50."""
OPTIONS = ("model", "layers", "queries", "size", "threads", "dtype")
SPEED = "pictures_per_second"
COSTS = {"seconds": "seconds a picture", "cpu_seconds": "processor seconds a picture", "flops": "FLOPs a picture"}
SHOWN_SCORE = 0.4
"""The least score of a detection that the report draws."""
SHOWN, LARGEST = 40, 480
"""Pictures that the report shows, and pixels of their longer side there."""


@dataclass(frozen=True)
class PictureDeclaration:
    """A comparison of detectors, before anything is loaded."""

    methods: tuple[str, ...]
    """As they are typed, such as "deimv2:model=mine,layers=2"; each runs under each budget."""
    images: str
    """A COCO file, a VOC folder, or digits."""
    metric: str = "coco"
    budgets: tuple[str, ...] = ("",)
    reference: str | None = None
    """The method that the others are measured against; None is the first."""
    repeats: int = 3
    limit: int | None = None
    """How many pictures, from the first on."""

    seeds: ClassVar[tuple[int, ...]] = (0,)
    """A detector draws nothing."""
    batch: ClassVar[int] = 1
    """A picture's cost is measured alone."""

    def __post_init__(self) -> None:
        if self.metric not in METRICS:
            raise UsageError(
                f"there is no metric {self.metric!r} of pictures{nearest(self.metric, METRICS)}; "
                f"there are {', '.join(METRICS)}"
            )


@dataclass(frozen=True)
class Contender:
    """A detector as it is run, under a budget."""

    name: str
    loaded: Loaded
    budget: str = ""
    layers: int | None = None
    queries: int | None = None
    threads: int = 1
    dtype: str = "float32"

    @property
    def key(self) -> Key:
        """Identifies its runs in a journal."""
        return self.name, self.budget

    @property
    def label(self) -> str:
        """The name and the budget, as tables show them."""
        return f"{self.name} [{self.budget}]" if self.budget else self.name

    def answer(self, picture: npt.NDArray[np.uint8]) -> tuple[dict[str, float], Detections]:
        """Returns what a picture costs and what is found in it, with all scores."""
        torch.set_num_threads(self.threads)
        wall, cpu = time.perf_counter(), time.process_time()
        (found,) = detect(
            self.loaded, [picture], threshold=0, layers=self.layers, queries=self.queries,
            budget=Budget.parse(self.budget) if self.budget else None, dtype=DTYPES[self.dtype],  # type: ignore[index]
        )  # fmt: skip
        spent = {"seconds": time.perf_counter() - wall, "cpu_seconds": time.process_time() - cpu}
        ran = {name: int(found.ledger.extras[name]) for name in ("layers", "queries")}
        counts = cost_of(self.loaded, ran["layers"], ran["queries"])
        spent |= {name: counts.amount(name) for name in ("flops", "mem_elements", "moved_bytes")}
        return {**spent, **ran, SPEED: 1 / spent["seconds"]}, found


def contenders(declaration: PictureDeclaration) -> list[Contender]:
    """Returns every detector under every budget.

    Raises:
        UsageError: For a method that can't be read or occurs twice, or a detector that a budget has no room for.
    """
    loaded: dict[str, Loaded] = {}
    made = [_contender(text, loaded) for text in declaration.methods]
    refuse_names([each.name for each in made], declaration.reference)
    every = [replace(each, budget=canonical(budget)) for each in made for budget in declaration.budgets]
    for each in every:
        chosen_effort(each.loaded, Budget.parse(each.budget) if each.budget else Budget(), each.layers, each.queries)
    return every


def declared_by(path: Path) -> PictureDeclaration:
    """Returns the comparison of detectors that a manifest declares.

    Raises:
        UsageError: For a manifest of something else.
    """
    manifest = folder.read_manifest(path)
    if manifest.get("task") != "detect":
        raise UsageError(f"{path} is the manifest of a comparison of texts; leave out --task detect")
    declared: dict[str, Any] = manifest["declaration"]
    held: dict[str, Any] = {
        name: tuple(value) if isinstance(value, list) else value for name, value in declared.items()
    }
    return PictureDeclaration(**held)


def _contender(text: str, loaded: dict[str, Loaded]) -> Contender:
    name, _, written = text.partition(":")
    if name != METHOD:
        raise UsageError(f"pictures are compared under {METHOD}:model=M, not {name!r}")
    given: dict[str, str] = {}
    for part in filter(None, written.split(",")):
        option, equals, value = (word.strip() for word in part.partition("="))
        if option not in OPTIONS or not equals or not value:
            raise UsageError(f"{METHOD} has the options {', '.join(OPTIONS)}, each as name=value, not {part!r}")
        given[option] = value
    if "model" not in given:
        raise UsageError(f"say which detector {text!r} is: {METHOD}:model=M")
    numbers = {}
    for option in ("layers", "queries", "size", "threads"):
        if option in given:
            if not given[option].isdigit() or not int(given[option]):
                raise UsageError(f"{option} of {METHOD} must be a whole number from 1, not {given[option]!r}")
            numbers[option] = int(given[option])
    if given.get("dtype", "float32") not in DTYPES:
        raise UsageError(f"dtype of {METHOD} must be one of {', '.join(DTYPES)}, not {given['dtype']!r}")
    if given["model"] not in loaded:
        loaded[given["model"]] = load(given["model"]).deployed()
    own = loaded[given["model"]]
    if "size" in numbers:
        own, _ = at_side(own, numbers["size"])
    label = ",".join(f"{option}={value}" for option, value in given.items())
    return Contender(
        f"{METHOD}:{label}", own, "", numbers.get("layers"), numbers.get("queries"), numbers.get("threads", 1),
        given.get("dtype", "float32"),
    )  # fmt: skip


@dataclass(frozen=True)
class PictureComparison(Comparison):
    """Detectors on pictures."""

    declaration: PictureDeclaration

    @cached_property
    def every(self) -> list[Contender]:
        """The detectors, loaded."""
        return contenders(self.declaration)

    @cached_property
    def data(self) -> Dataset:
        """The pictures."""
        data, limit = read_dataset(self.declaration.images), self.declaration.limit
        return data if limit is None else replace(data, examples=list(data.examples[:limit]))

    def check(self) -> None:
        """Loads the detectors, which are small, and reads the boxes. As `Comparison.check`."""
        for each in self.every:
            places_of(each.loaded.names, self.data)

    def prepare(self, progress: ShowProgress) -> _Pictures:
        """Has each detector look at the first picture."""
        every, data = self.every, self.data
        for done, each in enumerate(every):
            progress(f"warming up {each.label}", done, len(every))
            each.answer(data.examples[0].pixels())
        return _Pictures(self.declaration, every, data)


class _Pictures(Ready):
    def __init__(self, declaration: PictureDeclaration, every: Sequence[Contender], data: Dataset) -> None:
        self._declaration, self._every, self._data = declaration, every, data

    @property
    def plan(self) -> PictureDeclaration:
        return self._declaration

    @property
    def keys(self) -> Sequence[Key]:
        return [each.key for each in self._every]

    @property
    def count(self) -> int:
        return len(self._data.examples)

    def manifest(self, command: Sequence[str]) -> dict[str, Any]:
        return _manifest(self._declaration, self._every, self._data, command)

    def written(self) -> str:
        return _written(self._data)

    def run(self, pending: Sequence[Pending]) -> Iterator[Rows]:
        before = torch.get_num_threads()
        try:
            for shard, done in pending:
                pictures = [self._data.examples[place].pixels() for place in shard.items]
                for index, places in turns_left(len(self._every), shard, done):
                    yield [_row(self._every[index], pictures[shard.items.index(place)], place, shard)
                           for place in places]  # fmt: skip
        finally:
            torch.set_num_threads(before)

    def answers(self, out: Path) -> PictureAnswers:
        return PictureAnswers(self._declaration, self._every, self._data)


@dataclass(frozen=True)
class Found(Answer):
    """What a contender found in a picture, in its first repeat."""

    detections: Detections

    def first_difference(self, other: Answer) -> int | None:
        """Returns the first box, by certainty, that is another one's not."""
        assert isinstance(other, Found)
        ours, theirs = (each.detections.as_rows() for each in (self, other))
        pairs = zip(ours, theirs, strict=False)
        return None if ours == theirs else next((at for at, (a, b) in enumerate(pairs) if a != b), len(ours))


class PictureAnswers(Answers):
    """Boxes in pictures, scored together."""

    display = Display(PICTURES, COSTS)

    def __init__(self, declaration: PictureDeclaration, every: Sequence[Contender], data: Dataset) -> None:
        self._metric, self._every, self._data = declaration.metric, every, data
        self._names = {each.key: each.loaded.names for each in every}

    def read(self, row: Mapping[str, Any]) -> Found:
        """Returns the boxes in a run's row."""
        found = row["found"]
        boxes = torch.tensor(found["boxes"], dtype=torch.float32).reshape(-1, 4)
        scores, labels = torch.tensor(found["scores"]), torch.tensor(found["labels"], dtype=torch.int64)
        return Found(Detections(boxes, scores, labels, self._names[row["method"], row["budget"]]))

    def quality(self, contender: int, tally: Tally) -> dict[str, float] | None:
        """Returns AP over the pictures that were answered, with its interval over resampled pictures."""
        seen = _seen(tally)
        if not seen:
            return None
        part = replace(self._data, examples=[self._data.examples[place] for place in sorted(seen)])
        names = self._every[contender].loaded.names
        found = score([seen[place] for place in sorted(seen)], part, names, draws=RESAMPLES)
        name = "ap" if self._metric == "coco" else "ap50"
        value = getattr(found, name)
        if value is None:
            return None
        low, high = found.intervals[name]
        return {"mean": value, "low": min(low, value), "high": max(high, value), "n": len(seen)}

    def shown(self, tallies: Sequence[Tally], references: Sequence[int]) -> dict[str, Any]:
        """Returns the names of the pictures, and the first of them with all boxes."""
        examples = self._data.examples
        return {
            "prompts": [{"index": place, "text": each.name, "answer": None} for place, each in enumerate(examples)],
            "pictures": _pictures(self._every, self._data, [_seen(tally) for tally in tallies]),
        }


def _seen(tally: Tally) -> dict[int, Detections]:
    return {place: each.detections for (place, _), each in tally.answers.items() if isinstance(each, Found)}


def _manifest(
    declaration: PictureDeclaration, every: Sequence[Contender], data: Dataset, command: Sequence[str]
) -> dict[str, Any]:
    here = machine.describe((*PACKAGES, "pycocotools", "pillow"))
    packages, date = here.pop("versions"), here.pop("date")
    against = references([each.key for each in every], declaration.reference)
    models = {each.name: _fingerprint(each.loaded) for each in every}
    listed = list(dict.fromkeys(part for each in every for part in each.name.split(":", 1)[1].split(",")
                                if part.startswith("model=")))  # fmt: skip
    return {
        "version": outlay.__version__, "created": date, "command": list(command), "task": "detect", "noun": "picture",
        "model": {"name": ", ".join(part.removeprefix("model=") for part in listed), "format": "detectors",
                  "fingerprint": models, "source": None},
        "draft": None, "methods": list(dict.fromkeys(each.name for each in every)),
        "contenders": [
            {"label": each.label, "method": each.name, "budget": each.budget, "reference": reference}
            for each, reference in zip(every, against, strict=True)
        ],
        "prompts": {"source": data.source, "sha256": hashlib.sha256(_written(data).encode()).hexdigest(),
                    "count": len(data.examples)},
        "metric": "AP" if declaration.metric == "coco" else "AP50", "metric_key": declaration.metric, "seeds": [0],
        "repeats": declaration.repeats, "machine": here, "packages": packages,
        "declaration": {name: list(value) if isinstance(value, tuple) else value
                        for name, value in asdict(declaration).items()},
    }  # fmt: skip


def _fingerprint(loaded: Loaded) -> str:
    digest = hashlib.sha256()
    for name, tensor in sorted(loaded.detector.state_dict().items()):
        digest.update(name.encode() + tensor.contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]


def _written(data: Dataset) -> str:
    rows = (
        {"picture": each.name, "boxes": each.boxes.tolist(), "labels": [data.names[label] for label in each.labels]}
        for each in data.examples
    )
    return "".join(json.dumps(row) + "\n" for row in rows)


def _row(contender: Contender, picture: npt.NDArray[np.uint8], place: int, shard: Shard) -> dict[str, Any]:
    row: dict[str, Any] = {
        "method": contender.name, "budget": contender.budget, "prompt": place, "seed": shard.seed,
        "repeat": shard.repeat, "error": None,
    }  # fmt: skip
    try:
        spent, found = contender.answer(picture)
    except OutlayError as error:
        return row | {"error": one_line(error)}
    boxes = {
        "boxes": [[round(edge, 2) for edge in box] for box in found.boxes.tolist()],
        "scores": [round(each, 5) for each in found.scores.tolist()],
        "labels": found.labels.tolist(),
    }
    return row | {"ledger": spent, "found": boxes}


def _pictures(
    every: Sequence[Contender], data: Dataset, seen: Sequence[Mapping[int, Detections]]
) -> list[dict[str, Any]]:
    """Returns the first pictures with their boxes and what each contender found, each box with its verdict."""
    rows = []
    for place, example in enumerate(data.examples[:SHOWN]):
        shown, width, height = _shrunk(example.pixels())
        answers = []
        for contender, found in zip(every, seen, strict=True):
            answers.append(_drawn(found[place], example, contender, data) if place in found else None)
        rows.append({"index": place, "image": shown, "width": width, "height": height,
                     "truth": [{"box": [round(float(edge), 1) for edge in box], "label": data.names[label]}
                               for box, label in zip(example.boxes, example.labels, strict=True)],
                     "answers": answers})  # fmt: skip
    return rows


def _drawn(found: Detections, example: Example, contender: Contender, data: Dataset) -> dict[str, Any]:
    sure = int((found.scores >= SHOWN_SCORE).sum())
    kept = replace(found, boxes=found.boxes[:sure], scores=found.scores[:sure], labels=found.labels[:sure])
    told = verdicts(kept, example, places_of(contender.loaded.names, data))
    boxes = [
        {"box": [round(edge, 1) for edge in box], "score": round(said, 3), "label": contender.loaded.names[label],
         "hit": hit}
        for box, said, label, hit in zip(
            kept.boxes.tolist(), kept.scores.tolist(), kept.labels.tolist(), told.hits, strict=True
        )
    ]  # fmt: skip
    return {"boxes": boxes, "found": list(told.found)}


def _shrunk(pixels: npt.NDArray[np.uint8]) -> tuple[str, int, int]:
    """Returns a picture as a page holds it, and its own width and height."""
    from PIL import Image

    height, width = pixels.shape[:2]
    image = Image.fromarray(pixels)
    image.thumbnail((LARGEST, LARGEST))
    held = io.BytesIO()
    image.save(held, "JPEG", quality=85)
    return f"data:image/jpeg;base64,{base64.b64encode(held.getvalue()).decode()}", width, height
