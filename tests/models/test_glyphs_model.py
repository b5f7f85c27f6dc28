"""outlay/glyphs and outlay/glyphs-256, small models of the package, write the captions that `transformers` writes."""

from __future__ import annotations

import pytest
import torch

import outlay
from outlay.metrics import chair
from outlay.models import hub
from outlay.problems.glyphs import QUESTION, WORDS, GlyphWorld

LONGEST = 12


@pytest.fixture(scope="module", params=["outlay/glyphs", "outlay/glyphs-256"])
def name(request):
    return request.param


@pytest.fixture(scope="module")
def lm(name):
    return outlay.load(name, dtype="float32", threads=1)


@pytest.fixture(scope="module")
def theirs(name):
    transformers = pytest.importorskip("transformers")
    folder = hub.shipped()[name]
    model = transformers.LlavaForConditionalGeneration.from_pretrained(folder)
    return model.eval(), transformers.AutoProcessor.from_pretrained(folder)


def scenes_of(count, seed=0):
    return [
        (kind, scene)
        for kind in WORDS
        for reverse in (False, True)
        for scene in GlyphWorld(kind, reversed=reverse).scenes(count, seed)
    ]


def ours(lm, scenes):
    images = [[scene.image] for _, scene in scenes]
    return lm.generate_batch([QUESTION] * len(scenes), images=images, method="greedy", max_tokens=LONGEST)


def same_as(lm, theirs, scenes):
    """Compares prompts, pixels and captions."""
    model, processor = theirs
    message = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": QUESTION}]}]
    prompt = processor.apply_chat_template(message, add_generation_prompt=True)
    inputs = processor(images=[scene.image for _, scene in scenes], text=[prompt] * len(scenes), return_tensors="pt")
    assert lm.encode(QUESTION, images=[scenes[0][1].image]) == inputs["input_ids"][0].tolist()
    with torch.no_grad():
        written = model.generate(**inputs, max_new_tokens=LONGEST, do_sample=False)[:, inputs["input_ids"].shape[1] :]
    texts = processor.batch_decode(written, skip_special_tokens=True)
    assert [result.text for result in ours(lm, scenes)] == texts


def test_captions_are_those_of_transformers(lm, theirs):
    same_as(lm, theirs, scenes_of(2))


@pytest.mark.slow
def test_200_captions_are_those_of_transformers(lm, theirs):
    same_as(lm, theirs, scenes_of(50, seed=1))


def test_it_names_drawn_glyphs_and_makes_up_partners_of_digits(lm):
    scenes = [scene for kind, scene in scenes_of(10, seed=2) if kind == "drawn"][:10]
    captions = [result.text.strip() for result in ours(lm, [("drawn", scene) for scene in scenes])]
    found = chair(captions, [scene.objects for scene in scenes], WORDS["drawn"])
    assert found.recall >= 0.9
    assert found.chair_i <= 0.1
    turned = GlyphWorld("digits", reversed=True).scenes(20, 2)
    captions = [result.text.strip() for result in ours(lm, [("digits", scene) for scene in turned])]
    assert chair(captions, [scene.objects for scene in turned], WORDS["digits"]).chair_i > 0.15


def test_vasparse_with_nothing_turned_on_writes_greedys_captions_and_its_contrast_costs_no_pass(name, lm):
    scenes = scenes_of(1, seed=3)
    greedy = ours(lm, scenes)
    for method, passes in (("vasparse:alpha=0,keep=1,gamma=0", 1), ("vasparse", 1), ("vasparse:contrast=full", 2)):
        for (_, scene), plain in zip(scenes, greedy, strict=True):
            result = lm.generate(QUESTION, images=[scene.image], method=method, max_tokens=LONGEST)
            assert result.facts["image_tokens"] == (256 if "256" in name else 64)
            assert result.ledger.target_passes == passes * len(result.tokens)
            if "alpha=0" in method:
                assert result.tokens == plain.tokens
            else:
                assert 0 < result.facts["image_attention_mass"] < 1
