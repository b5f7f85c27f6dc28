"""The glyph world: pictures with the planted prior, their captions, and the metrics of captions."""

from __future__ import annotations

import base64
import io
import itertools

import numpy as np
import pytest

from outlay import UsageError, problems
from outlay.metrics import Chair, caption_counts, chair
from outlay.pictures import read_picture
from outlay.problems.glyphs import CELL, GRID, NOISE, SCALE, WORDS, ZERO, GlyphWorld, png


@pytest.mark.parametrize("kind", WORDS)
def test_a_scene_depends_on_its_seed_and_number_alone(kind):
    scenes = GlyphWorld(kind).scenes(6, 3)
    again = GlyphWorld(kind).scenes(2, 3, begin=4)
    for left, right in zip(scenes[4:], again, strict=True):
        assert left.objects == right.objects
        assert np.array_equal(left.image, right.image)
    assert [scene.objects for scene in GlyphWorld(kind).scenes(6, 4)] != [scene.objects for scene in scenes]


@pytest.mark.parametrize("reverse", [False, True])
def test_class_2i_plus_1_comes_beside_2i_as_the_planted_prior_says(reverse):
    words, expected = WORDS["drawn"], 0.15 if reverse else 0.92
    scenes = [set(scene.objects) for scene in GlyphWorld("drawn", reversed=reverse).scenes(2000, 0)]
    for place in range(0, 10, 2):
        first, second = words[place : place + 2]
        beside = [second in objects for objects in scenes if first in objects]
        without = [second in objects for objects in scenes if first not in objects]
        # Five standard deviations of 600 draws, of which 10 are compared here: a false alarm in 100,000 seeds.
        assert abs(np.mean(beside) - expected) < 5 * (expected * (1 - expected) / 600) ** 0.5
        assert (
            abs(np.mean(without) - 0.05) < 5 * (0.05 * 0.95 / 600) ** 0.5 + 0.01
        )  # scenes without objects are redrawn


@pytest.mark.parametrize("kind", WORDS)
def test_each_object_lies_in_a_cell_of_its_own_and_the_other_cells_are_noise(kind):
    empty = -1.0 if kind == "digits" else 0.0
    for scene in GlyphWorld(kind).scenes(20, 1):
        assert scene.image.shape == (32, 32, 3)
        assert len({*scene.cells}) == len(scene.objects) == len({*scene.objects}) > 0
        assert list(scene.objects) == sorted(scene.objects, key=WORDS[kind].index)
        assert scene.caption.split() == list(scene.objects)
        values = (scene.image.astype(float) - ZERO) / SCALE
        cells = values.reshape(GRID, CELL, GRID, CELL, 3).transpose(0, 2, 1, 3, 4).reshape(GRID * GRID, -1)
        shown = np.array([cell in scene.cells for cell in range(GRID * GRID)])
        energy = ((cells - empty) ** 2).mean(1)
        assert energy[~shown].max() < NOISE[kind] ** 2 * 1.6
        assert energy[shown].min() > energy[~shown].mean()


def test_a_drawn_glyph_looks_the_same_but_for_noise_and_a_digit_is_another_image_each_time():
    for kind, alike in (("drawn", True), ("digits", False)):
        held = {}
        for scene in GlyphWorld(kind).scenes(300, 0):
            row, column = divmod(scene.cells[0], GRID)
            cell = scene.image[row * CELL : (row + 1) * CELL, column * CELL : (column + 1) * CELL]
            held.setdefault(scene.objects[0], []).append((cell.astype(float) - ZERO) / SCALE)
        cells = max(held.values(), key=len)
        distance = np.mean([((a - b) ** 2).mean() for a, b in itertools.combinations(cells[:30], 2)])
        assert bool(distance < 1.05 * 2 * NOISE[kind] ** 2) is alike


def test_digits_of_tests_are_not_those_of_training():
    from outlay.problems.glyphs import _digits

    trained, held_out = ({image.tobytes() for images in _digits(part) for image in images} for part in (True, False))
    assert len(trained) + len(held_out) > 1750  # of 1,797, a few of which are equal
    assert len(trained & held_out) == 0


def test_problem_rows_hold_the_picture_as_a_data_url_and_the_caption():
    rows = problems.make("glyphs:count=3,seed=5")
    assert rows == problems.make("glyphs:count=4,seed=5")[:3]
    for row, scene in zip(rows, GlyphWorld().scenes(3, 5), strict=True):
        data = base64.b64decode(row["images"][0].removeprefix("data:image/png;base64,"))
        assert np.array_equal(read_picture(data), scene.image)
        assert row["answer"] == scene.caption
        assert tuple(row["objects"]) == scene.objects


def test_a_png_file_is_read_by_others_as_it_was_written():
    from PIL import Image

    image = np.random.default_rng(0).integers(0, 256, (5, 9, 3), dtype=np.uint8)
    assert np.array_equal(np.array(Image.open(io.BytesIO(png(image)))), image)


def test_unknown_glyphs_are_refused():
    with pytest.raises(UsageError, match="glyphs are drawn or digits, not 'letters'"):
        GlyphWorld("letters")


def test_chair_counts_mentions_and_captions_exactly():
    captions = ["a dog and a cat", "a dog, a dog and a tree", "nothing here", "Cat."]
    truth = [["dog"], ["dog", "tree"], ["cat"], ["cat", "dog"]]
    found = chair(captions, truth, ["dog", "cat", "tree"])
    # Mentions: 2, 3, 0, 1; hallucinated: the cat of the first. Found: dog; dog and tree; none; cat.
    assert found == Chair(chair_i=1 / 6, chair_s=1 / 4, recall=4 / 6)


def test_chair_finds_whole_words_the_longest_name_and_synonyms():
    vocabulary = {"car": "car", "cars": "car", "car seat": "seat", "C++": "language"}
    (counts,) = caption_counts(["CARS, a car seat, cartoons and C++"], [["car"]], vocabulary)
    assert (counts.mentions, counts.hallucinated, counts.found, counts.present) == (3, 2, 1, 1)


def test_chair_of_silence_has_no_hallucination_and_no_recall():
    assert chair([""], [["dog"]], ["dog"]) == Chair(0.0, 0.0, 0.0)
    assert chair(["a dog"], [[]], ["dog"]) == Chair(1.0, 1.0, 1.0)


def test_chair_refuses_what_does_not_fit():
    with pytest.raises(UsageError, match="2 captions, 1 lists"):
        chair(["a", "b"], [["dog"]], ["dog"])
    with pytest.raises(UsageError, match="no name for 'ant'"):
        chair(["a"], [["ant", "dog"]], ["dog"])
    with pytest.raises(UsageError, match="one caption at least"):
        chair([], [], ["dog"])
