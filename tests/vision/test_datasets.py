"""Pictures with boxes in files, and the average precision of what is found in them."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from outlay.errors import UsageError
from outlay.vision.detect.boxes import unsuppressed
from outlay.vision.detect.datasets import Dataset, Example, held_out, read_dataset
from outlay.vision.detect.detections import Detections
from outlay.vision.detect.evaluate import RESAMPLES, places_of, repetitions, score


def voc(folder, boxes, size=(40, 30), split=None):
    """Writes a VOC folder with a picture for each list of (name, edges)."""
    for part in ("Annotations", "JPEGImages", "ImageSets/Main"):
        (folder / part).mkdir(parents=True, exist_ok=True)
    for number, row in enumerate(boxes):
        Image.new("RGB", size).save(folder / "JPEGImages" / f"p{number}.jpg")
        objects = "".join(
            f"<object><name>{name}</name><bndbox>"
            + "".join(
                f"<{key}>{edge}</{key}>" for key, edge in zip(("xmin", "ymin", "xmax", "ymax"), edges, strict=True)
            )
            + "</bndbox></object>"
            for name, edges in row
        )
        (folder / "Annotations" / f"p{number}.xml").write_text(
            f"<annotation><filename>p{number}.jpg</filename><size><width>{size[0]}</width><height>{size[1]}</height>"
            f"</size>{objects}</annotation>"
        )
    for name, members in (split or {}).items():
        (folder / "ImageSets" / "Main" / f"{name}.txt").write_text("".join(f"p{each}\n" for each in members))


def test_a_voc_folder_is_read_with_its_splits_and_bad_boxes_are_repaired_and_counted(tmp_path):
    rows = [
        [("cat", (1, 2, 20, 25)), ("dog", (30, 20, 10, 5))],
        [("cat", (5, 5, 50, 20)), ("cat", (3, 3, 3, 9))],
        [("dog", (0, 0, 40, 30))],
    ]
    voc(tmp_path, rows, split={"train": [0, 1], "test": [2]})
    data = read_dataset(str(tmp_path))
    assert data.names == ("cat", "dog")
    assert [len(each.boxes) for each in data.examples] == [2, 1, 1]
    assert data.examples[0].boxes[1].tolist() == [10, 5, 30, 20]
    assert data.examples[1].boxes[0].tolist() == [5, 5, 40, 20]
    assert sorted(data.repaired.values()) == [1, 1, 1]
    assert any("1 boxes that were empty, dropped" in line for line in data.remarks)
    assert read_dataset(f"{tmp_path}:test").examples[0].name == "p2"
    trained, held = held_out(str(tmp_path))
    assert (len(trained.examples), len(held.examples)) == (2, 1)
    with pytest.raises(UsageError, match=r"p0\.jpg|p0 of 40 x 30 pixels has a box \(30, 20, 10, 5\) that is inverted"):
        read_dataset(str(tmp_path), "refuse")
    with pytest.raises(UsageError, match=r"no split 'tests' \(did you mean 'test'\?\); there are test, train"):
        read_dataset(f"{tmp_path}:tests")
    (tmp_path / "Annotations" / "p0.xml").write_text("<annotation>")
    with pytest.raises(UsageError, match="describes no picture in VOC's form"):
        read_dataset(str(tmp_path))


def test_a_coco_file_is_read_and_what_is_wrong_with_one_is_said(tmp_path):
    for number in range(20):
        Image.new("RGB", (40, 30)).save(tmp_path / f"{number}.png")
    held = {
        "images": [{"id": number, "file_name": f"{number}.png", "width": 40, "height": 30} for number in range(20)],
        "categories": [{"id": 7, "name": "late"}, {"id": 3, "name": "early"}],
        "annotations": [
            {"image_id": number, "category_id": 7, "bbox": [1, 2, 10, 20], "iscrowd": number % 2}
            for number in range(20)
        ],
    }
    file = tmp_path / "coco.json"

    def written(**changes):
        file.write_text(json.dumps(held | changes))
        return str(file)

    data = read_dataset(written())
    assert data.names == ("early", "late")
    assert data.examples[1].boxes.tolist() == [[1, 2, 11, 22]]
    assert (data.examples[1].labels.tolist(), data.examples[1].crowd.tolist()) == ([1], [True])
    trained, other = held_out(str(file))
    assert [each.name for each in other.examples] == ["9.png", "19.png"]
    assert len(trained.examples) == 18
    one = held["annotations"][0]
    for changes, message in (
        ({"annotations": [one | {"category_id": 4}]}, r"a box of class 4, and its classes are 3, 7"),
        ({"annotations": [one | {"image_id": 99}]}, "a box is in picture 99, which there is not"),
        ({"annotations": [one | {"bbox": [1, 2, 3]}]}, "a box has 4 numbers, not 3"),
        ({"annotations": []}, "has 20 pictures and no boxes"),
        ({"images": [held["images"][0] | {"file_name": "gone.png"}], "annotations": [one]}, "lies neither beside it"),
    ):
        with pytest.raises(UsageError, match=message):
            read_dataset(written(**changes))
    file.write_text('{"images": []}')
    with pytest.raises(UsageError, match="no COCO file: it lacks 'categories'"):
        read_dataset(str(file))
    file.write_text("{")
    with pytest.raises(UsageError, match="no COCO file"):
        read_dataset(str(file))
    with pytest.raises(UsageError, match="there is no data set"):
        read_dataset(str(tmp_path / "none"))
    with pytest.raises(UsageError, match="has no Annotations"):
        read_dataset(str(tmp_path))


@pytest.fixture(scope="module")
def labelled():
    draw = np.random.default_rng(0)
    examples = []
    for number in range(12):
        low = draw.uniform(0, 40, (3, 2))
        boxes = np.concatenate([low, low + draw.uniform(10, 60, (3, 2))], 1).astype(np.float32)
        examples.append(
            Example(str(number), np.zeros((120, 120, 3), np.uint8), boxes, np.array([0, 1, 1]), np.zeros(3, bool))
        )
    return Dataset("labelled", ("a", "b"), examples)


def said(data, shift=0.0, score_of=lambda number, place: 0.9):
    return [
        Detections(
            torch.from_numpy(each.boxes) + shift,
            torch.tensor([score_of(number, place) for place in range(len(each.labels))]),
            torch.from_numpy(each.labels),
            data.names,
        )
        for number, each in enumerate(data.examples)
    ]


def test_right_boxes_have_average_precision_1_and_shifted_ones_less(labelled):
    right = score(said(labelled), labelled, labelled.names, draws=RESAMPLES)
    assert (right.ap, right.ap50, right.classes) == (1, 1, {"a": 1, "b": 1})
    assert right.intervals == {"ap": (1, 1), "ap50": (1, 1)}
    off = score(said(labelled, 4.0), labelled, labelled.names)
    assert off.ap < 0.8
    assert off.ap < off.ap50
    assert score(said(labelled, 200.0), labelled, labelled.names).ap == 0


def test_false_alarms_that_are_surer_cost_precision_and_classes_go_by_name(labelled):
    found = said(labelled)
    alarms = [
        replace(
            each,
            boxes=torch.cat([each.boxes, torch.tensor([[100.0, 100, 119, 119]])]),
            scores=torch.cat([each.scores, torch.tensor([0.99])]),
            labels=torch.cat([each.labels, torch.tensor([0])]),
        )
        for each in found
    ]
    hurt = score(alarms, labelled, labelled.names)
    assert hurt.classes["b"] == 1
    assert 0.45 < hurt.classes["a"] < 0.55  # one false alarm for each right box, all of them before the right ones
    turned = [replace(each, labels=1 - each.labels) for each in found]
    assert score(turned, labelled, ("b", "a")).ap == 1
    assert places_of(("x", "y"), labelled) == {0: 0, 1: 1}
    with pytest.raises(UsageError, match="none is shared"):
        places_of(("x", "y", "z"), labelled)


def test_intervals_hold_the_figure_and_are_wider_for_fewer_pictures(labelled):
    def some(number, place):
        return 0.9

    found = [
        each if number % 2 else replace(each, boxes=each.boxes + 200) for number, each in enumerate(said(labelled))
    ]
    whole = score(found, labelled, labelled.names, draws=RESAMPLES)
    low, high = whole.intervals["ap50"]
    assert low < whole.ap50 < high
    more = Dataset("more", labelled.names, [*labelled.examples] * 6)
    narrow = score(found * 6, more, labelled.names, draws=RESAMPLES).intervals["ap50"]
    assert narrow[1] - narrow[0] < 0.7 * (high - low)


def test_a_repetition_is_of_the_same_class_on_the_same_place_and_less_certain():
    boxes = torch.tensor([[0.0, 0, 10, 10], [0, 0, 10, 9], [0, 0, 10, 10], [20, 20, 30, 30], [0, 0, 10, 6]])
    seen = Detections(boxes, torch.tensor([0.9, 0.8, 0.7, 0.6, 0.5]), torch.tensor([0, 0, 1, 0, 0]))
    assert repetitions(seen) == 1
    assert unsuppressed(boxes, seen.labels, 0.7) == [0, 2, 3, 4]
    assert unsuppressed(boxes, seen.labels, 0.5) == [0, 2, 3]
    assert unsuppressed(boxes[:0], seen.labels[:0], 0.5) == []
