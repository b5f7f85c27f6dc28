"""How well a detector finds the boxes of a data set: average precision as COCO counts it, by pycocotools."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from outlay.errors import UsageError
from outlay.progress import ShowProgress, silent
from outlay.vision.detect.boxes import unsuppressed
from outlay.vision.detect.checkpoints import Loaded
from outlay.vision.detect.datasets import Dataset
from outlay.vision.detect.detections import Detections, detect

MOST = 100
"""Detections of a picture that count, the most certain first."""
BATCH = 8
RESAMPLES = 200
"""Draws of as many pictures, with repetition, that an interval is of where one detector is measured."""
CERTAIN, SAME = 0.3, 0.7
"""The score and the IoU from which a detection is a repetition of another one."""
FIGURES = ("ap", "ap50", "ap75", "ap_small", "ap_medium", "ap_large")


@dataclass(frozen=True)
class Score:
    """Average precision, each figure from 0 to 1; None where there is no box of that kind."""

    ap: float | None
    """The mean over the thresholds of IoU from 0.5 to 0.95, and over classes."""
    ap50: float | None
    ap75: float | None
    ap_small: float | None
    """Of boxes of fewer than 32^2 pixels; this and the next two are None where only the rest was asked for, too."""
    ap_medium: float | None
    ap_large: float | None
    """Of boxes of 96^2 pixels or more."""
    classes: Mapping[str, float | None] = field(default_factory=dict)
    """AP of each class."""
    pictures: int = 0
    intervals: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    """95 % of the resamples lie between; by the name of the figure."""

    def as_dict(self) -> dict[str, Any]:
        """Returns the figures as JSON can hold them."""
        found: dict[str, Any] = {name: _rounded(getattr(self, name)) for name in FIGURES}
        found["pictures"] = self.pictures
        found["classes"] = {name: _rounded(value) for name, value in self.classes.items()}
        if self.intervals:
            found["intervals"] = {name: [_rounded(each) for each in pair] for name, pair in self.intervals.items()}
        return found

    def line(self) -> str:
        """Returns the figures in a line."""
        shown = {"AP": self.ap, "AP50": self.ap50, "AP75": self.ap75}
        return ", ".join(f"{name} {'none' if value is None else f'{value:.3f}'}" for name, value in shown.items())


def evaluate(
    loaded: Loaded,
    data: Dataset,
    *,
    layers: int | None = None,
    queries: int | None = None,
    dtype: torch.dtype = torch.float32,
    interval: bool = False,
    progress: ShowProgress = silent,
) -> Score:
    """Measures a detector on a data set.

    Args:
        loaded: The detector; its classes are found by name in the data set's, or by place where no name is shared.
        data: Pictures with boxes.
        layers: Decoder layers that are run; None: all.
        queries: Places that are refined; None: as trained.
        dtype: What backbone and encoder compute in.
        interval: Whether intervals are resampled.
        progress: Shown the pictures.

    Raises:
        UsageError: Where classes don't go together.
    """
    found: list[Detections] = []
    for start in range(0, len(data.examples), BATCH):
        pictures = [each.pixels() for each in data.examples[start : start + BATCH]]
        found += detect(loaded, pictures, threshold=0, layers=layers, queries=queries, dtype=dtype)
        progress("looking at pictures", len(found), len(data.examples))
    return score(found, data, loaded.names, draws=RESAMPLES if interval else 0)


def score(
    found: Sequence[Detections], data: Dataset, names: Sequence[str], *, draws: int = 0, by_area: bool = True
) -> Score:
    """Returns the score of detections.

    Args:
        found: For each picture, with all scores above 0.
        data: The pictures.
        names: Of the detector's classes.
        draws: Resamples of the pictures that intervals are of; 0: none are.
        by_area: Whether small, medium and large boxes are scored by themselves, which takes as long again for each.
    """
    place = places_of(names, data)
    evaluation = _evaluation(found, data, place, by_area)
    figures = _figures(evaluation)
    per_class = _by_class(evaluation, data.names)
    intervals = _intervals(evaluation, len(data.examples), draws) if draws else {}
    return Score(**figures, classes=per_class, pictures=len(data.examples), intervals=intervals)


def repeated_share(loaded: Loaded, data: Dataset) -> float:
    """Returns the share of a detector's detections, of scores above 0.3, that are another's once more.

    These are what suppression would remove: of the same class, with an IoU above 0.7 to one with a higher score.
    """
    kept = repeated = 0
    for start in range(0, len(data.examples), BATCH):
        pictures = [each.pixels() for each in data.examples[start : start + BATCH]]
        for seen in detect(loaded, pictures, threshold=CERTAIN):
            kept += len(seen.scores)
            repeated += repetitions(seen)
    return repeated / max(1, kept)


def repetitions(seen: Detections) -> int:
    """Returns how many detections of a picture, the most certain first, suppression at IoU 0.7 would remove."""
    return len(seen.labels) - len(unsuppressed(seen.boxes, seen.labels, SAME))


def places_of(names: Sequence[str], data: Dataset) -> dict[int, int]:
    """Returns the data set's place of each class of a detector, those that it doesn't have left out.

    Raises:
        UsageError: Where no name is shared and the numbers differ.
    """
    known = {name: place for place, name in enumerate(data.names)}
    shared = {own: known[name] for own, name in enumerate(names) if name in known}
    if shared:
        return shared
    if len(names) == len(known):
        return {place: place for place in range(len(names))}
    raise UsageError(
        f"the detector has the classes {', '.join(names[:5])} and {data.source} has {', '.join(data.names[:5])}: "
        "none is shared"
    )


def _evaluation(found: Sequence[Detections], data: Dataset, place: Mapping[int, int], by_area: bool) -> Any:
    try:
        from pycocotools.coco import COCO
        from pycocotools.cocoeval import COCOeval
    except ImportError:
        raise UsageError("average precision needs an extra: pip install 'outlay[vision]'") from None
    rows: list[dict[str, Any]] = []
    truth: list[dict[str, Any]] = []
    for number, (example, seen) in enumerate(zip(data.examples, found, strict=True), 1):
        for box, label, crowd in zip(
            example.boxes.tolist(), example.labels.tolist(), example.crowd.tolist(), strict=True
        ):
            truth.append(
                {"id": len(truth) + 1, "image_id": number, "category_id": label + 1, "iscrowd": int(crowd)} | _box(box)
            )
        for box, said, label in zip(seen.boxes.tolist(), seen.scores.tolist(), seen.labels.tolist(), strict=True):
            if label in place:
                rows.append({"image_id": number, "category_id": place[label] + 1, "score": said} | _box(box))
    with contextlib.redirect_stdout(io.StringIO()):
        right = COCO()
        right.dataset = {
            "images": [{"id": number} for number in range(1, len(found) + 1)],
            "categories": [{"id": number, "name": name} for number, name in enumerate(data.names, 1)],
            "annotations": truth,
        }
        right.createIndex()
        said = COCO()
        said.dataset = right.dataset | {
            "annotations": [row | {"id": number, "iscrowd": 0} for number, row in enumerate(rows, 1)]
        }
        said.createIndex()
        evaluation = COCOeval(right, said, "bbox")
        evaluation.params.maxDets = [MOST]
        if not by_area:
            _only_whole(evaluation.params)
        evaluation.evaluate()
        evaluation.accumulate()
    return evaluation


def _box(box: Sequence[float]) -> dict[str, Any]:
    left, top, right, bottom = box
    wide, high = right - left, bottom - top
    return {"bbox": [left, top, wide, high], "area": wide * high}


def _figures(evaluation: Any) -> dict[str, float | None]:
    """Returns the figures of what was accumulated."""
    precision: npt.NDArray[np.float64] = evaluation.eval["precision"]  # [IoU, recall, class, area, most]
    at = {"ap50": 0, "ap75": 5}
    areas = {"ap_small": 1, "ap_medium": 2, "ap_large": 3}
    found = {"ap": _mean(precision[:, :, :, 0, -1])}
    found |= {name: _mean(precision[which, :, :, 0, -1]) for name, which in at.items()}
    there = precision.shape[3]
    return found | {
        name: _mean(precision[:, :, :, which, -1]) if which < there else None for name, which in areas.items()
    }


def _only_whole(params: Any) -> None:
    """Leaves boxes of all areas together, the first of COCO's ranges."""
    params.areaRng, params.areaRngLbl = params.areaRng[:1], params.areaRngLbl[:1]


def _by_class(evaluation: Any, names: Sequence[str]) -> dict[str, float | None]:
    precision = evaluation.eval["precision"]
    return {name: _mean(precision[:, :, place, 0, -1]) for place, name in enumerate(names)}


def _mean(precision: npt.NDArray[np.float64]) -> float | None:
    """Returns the mean of what was measured; -1 stands for classes without a box."""
    there = precision[precision > -1]
    return float(there.mean()) if there.size else None


def _intervals(evaluation: Any, pictures: int, draws: int) -> dict[str, tuple[float, float]]:
    """Returns intervals of AP and AP50 by drawing pictures with repetition; each draw is accumulated by pycocotools."""
    draw = np.random.default_rng(0)
    held, areas = evaluation.evalImgs, evaluation.params.areaRng
    table = np.empty(len(held), dtype=object)
    table[:] = held
    table = table.reshape(-1, len(areas), pictures)[:, 0]
    _only_whole(evaluation.params)
    _only_whole(evaluation._paramsEval)
    drawn: dict[str, list[float]] = {"ap": [], "ap50": []}
    with contextlib.redirect_stdout(io.StringIO()):
        for _ in range(draws):
            evaluation.evalImgs = table[:, draw.integers(pictures, size=pictures)].ravel().tolist()
            evaluation.accumulate()
            precision = evaluation.eval["precision"]
            for name, value in (("ap", _mean(precision[:, :, :, 0, -1])), ("ap50", _mean(precision[0, :, :, 0, -1]))):
                if value is not None:
                    drawn[name].append(value)
    return {
        name: (float(np.quantile(values, 0.025)), float(np.quantile(values, 0.975)))
        for name, values in drawn.items()
        if values
    }


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 4)
