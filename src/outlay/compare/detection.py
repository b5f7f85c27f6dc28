"""Detectors side by side: the same pictures under each, in turn, with what each costs and what it finds.

The journal, the turns, the intervals, the paired ratios, the plots and the report are those of comparisons of texts.
"""

from __future__ import annotations

import base64
import hashlib
import io
import json
import time
from array import array
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

import outlay
from outlay import machine
from outlay.budget import Budget
from outlay.compare import folder, journal, plots, results
from outlay.compare.contenders import canonical
from outlay.compare.journal import Journal
from outlay.compare.manifest import PACKAGES
from outlay.compare.results import Answer, Tally
from outlay.compare.runner import turns
from outlay.compare.table_file import write_csv
from outlay.errors import OutlayError, UsageError, nearest, one_line
from outlay.progress import ShowProgress, silent
from outlay.viewer.report import PICTURES, write_report
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
    names = [each.name for each in made]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise UsageError(f"{twice} is among the methods twice; leave one of them out")
    if declaration.reference is not None and declaration.reference not in names:
        raise UsageError(f"the reference {declaration.reference!r} is not among the methods {', '.join(names)}")
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
        loaded[given["model"]] = load(given["model"])
    own = loaded[given["model"]]
    if "size" in numbers:
        own, _ = at_side(own, numbers["size"])
    label = ",".join(f"{option}={value}" for option, value in given.items())
    return Contender(
        f"{METHOD}:{label}", own, "", numbers.get("layers"), numbers.get("queries"), numbers.get("threads", 1),
        given.get("dtype", "float32"),
    )  # fmt: skip


def compare_pictures(
    declaration: PictureDeclaration, out: Path, *, command: Sequence[str] = (), progress: ShowProgress = silent
) -> dict[str, Any]:
    """Runs a comparison of detectors, or goes on with one that was stopped.

    Args:
        declaration: What is compared, on which pictures.
        out: The folder for all that comes out.
        command: The command line, for the manifest.
        progress: Is told how far the work is.

    Returns:
        The results, as `results.json` has them.

    Raises:
        UsageError: The comparison can't be run, or the folder can't be used.
    """
    every = contenders(declaration)
    data = read_dataset(declaration.images)
    if declaration.limit is not None:
        data = replace(data, examples=list(data.examples[: declaration.limit]))
    for each in every:
        places_of(each.loaded.names, data)
    with folder.locked(out):
        manifest = _manifest(declaration, every, data, command)
        folder.join(out, manifest, _written(data))
        _run(declaration, every, data, out, progress)
        progress("summing up", 0, 0)
        found = _summed_up(declaration, every, data, out)
        folder.write(out / folder.RESULTS, json.dumps(found, ensure_ascii=False, separators=(",", ":")) + "\n")
        write_csv(out)
        write_report(found, out / folder.REPORT, PICTURES)
        if plots.available():
            plots.write_plots(found, out, COSTS, (SPEED, "pictures per second"))
        return found


def _references(every: Sequence[Contender], reference: str | None) -> list[int]:
    name = reference or every[0].name
    at = {each.budget: index for index, each in enumerate(every) if each.name == name}
    return [at[each.budget] for each in every]


def _manifest(
    declaration: PictureDeclaration, every: Sequence[Contender], data: Dataset, command: Sequence[str]
) -> dict[str, Any]:
    here = machine.describe((*PACKAGES, "pycocotools", "pillow"))
    packages, date = here.pop("versions"), here.pop("date")
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
            for each, reference in zip(every, _references(every, declaration.reference), strict=True)
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


def _run(
    declaration: PictureDeclaration, every: Sequence[Contender], data: Dataset, out: Path, progress: ShowProgress
) -> None:
    """Does the runs that the journal lacks: picture by picture, the contenders in turn."""
    total = declaration.repeats * len(data.examples) * len(every)
    before = torch.get_num_threads()
    with closing(Journal(out / folder.RUNS)) as kept:
        if len(kept.done) < total:
            for each in every:
                each.answer(data.examples[0].pixels())  # warms up
        for number in range(declaration.repeats * len(data.examples)):
            repeat, place = divmod(number, len(data.examples))
            wanted = [
                index
                for index in turns(len(every), number)
                if (every[index].name, every[index].budget, place, 0, repeat) not in kept.done
            ]
            if wanted:
                picture = data.examples[place].pixels()
                kept.add([_row(every[index], picture, place, repeat) for index in wanted])
            progress(f"run {len(kept.done)} of {total}", len(kept.done), total)
    torch.set_num_threads(before)


def _row(contender: Contender, picture: npt.NDArray[np.uint8], place: int, repeat: int) -> dict[str, Any]:
    row: dict[str, Any] = {
        "method": contender.name, "budget": contender.budget, "prompt": place, "seed": 0, "repeat": repeat,
        "error": None,
    }  # fmt: skip
    try:
        spent, found = contender.answer(picture)
    except OutlayError as error:
        return row | {"error": one_line(error)}
    row["ledger"] = spent
    if repeat == 0:
        row["found"] = {
            "boxes": [[round(edge, 2) for edge in box] for box in found.boxes.tolist()],
            "scores": [round(each, 5) for each in found.scores.tolist()],
            "labels": found.labels.tolist(),
        }
    return row


def _summed_up(declaration: PictureDeclaration, every: Sequence[Contender], data: Dataset, out: Path) -> dict[str, Any]:
    """Returns the results, in the form of a comparison of texts: an answer holds boxes where a text stood."""
    manifest = folder.read_manifest(out)
    index_of = {(each.name, each.budget): index for index, each in enumerate(every)}
    tallies = [Tally() for _ in every]
    seen: list[dict[int, Detections]] = [{} for _ in every]
    for row in journal.lines(out / folder.RUNS):
        index, slot = index_of[row["method"], row["budget"]], (row["prompt"], 0)
        if row["error"] is not None:
            tallies[index].errors += 1
            tallies[index].first_error = tallies[index].first_error or f"picture {row['prompt'] + 1}: {row['error']}"
            continue
        tallies[index].spent[slot][row["repeat"]] = row["ledger"]
        if "found" in row:
            found, names = row["found"], every[index].loaded.names
            boxes = torch.tensor(found["boxes"], dtype=torch.float32).reshape(-1, 4)
            seen[index][row["prompt"]] = Detections(
                boxes, torch.tensor(found["scores"]), torch.tensor(found["labels"], dtype=torch.int64), names
            )
            tallies[index].answers[slot] = Answer(array("i"), None, "")
    entries = results.entries_of(tallies)
    references = [each["reference"] for each in manifest["contenders"]]
    rows = []
    for index, (each, tally) in enumerate(zip(every, tallies, strict=True)):
        made = results.contender_row(
            (each.name, each.budget), tally, tallies[references[index]], references[index], entries
        )
        rows.append(made | {"identical": 0, "compared": 0, "quality": _quality(declaration, each, seen[index], data)})
    for row, lies_on in zip(rows, results.frontiers(rows, entries), strict=True):
        row["frontier"] = lies_on
    return {
        "manifest": manifest,
        "prompts": [{"index": place, "text": each.name, "answer": None} for place, each in enumerate(data.examples)],
        "contenders": rows,
        "runs": [],
        "texts": [],
        "pictures": _pictures(every, data, seen),
    }


def _quality(
    declaration: PictureDeclaration, contender: Contender, seen: Mapping[int, Detections], data: Dataset
) -> dict[str, float] | None:
    """Returns AP over the pictures that were answered, with its interval over resampled pictures."""
    if not seen:
        return None
    part = replace(data, examples=[data.examples[place] for place in sorted(seen)])
    found = score([seen[place] for place in sorted(seen)], part, contender.loaded.names, draws=RESAMPLES)
    name = "ap" if declaration.metric == "coco" else "ap50"
    value = getattr(found, name)
    if value is None:
        return None
    low, high = found.intervals[name]
    return {"mean": value, "low": min(low, value), "high": max(high, value), "n": len(seen)}


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
