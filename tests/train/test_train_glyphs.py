"""Training the glyph model: what it learns from, that it goes on where it was, and that `transformers` opens it."""

from __future__ import annotations

import pytest
import torch

from outlay import UsageError
from outlay.problems.glyphs import QUESTION, GlyphWorld
from outlay.train.glyphs import CLASSES, END, IMAGE, GlyphRecipe, GlyphTraining, glyph_tokenizer, pixel_values

TINY = {"hidden": 16, "heads": 2, "tower": 1, "layers": 2, "inner": 16, "batch": 4, "steps": 60}


def train(out, stop_at=None, **changes):
    class Stop(Exception):
        pass

    def stop(phase, done, total):
        if done == stop_at:
            raise Stop

    training = GlyphTraining(GlyphRecipe(**TINY | changes), out)
    if stop_at is None:
        training.fit(lambda *told: None)
    else:
        with pytest.raises(Stop):
            training.fit(stop)
    return training


def seen(training, scenes):
    return training.net.vision_tower(pixel_values(scenes))


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A model of 60 training steps, which knows little."""
    return train(tmp_path_factory.mktemp("glyphs") / "model")


def test_each_word_of_the_captions_and_the_prompt_is_one_token():
    tokenizer = glyph_tokenizer()
    text = f"USER: {IMAGE}\n{QUESTION} ASSISTANT:"
    assert tokenizer.encode(text).tokens == [
        "USER", ":", "Ġ", IMAGE, "Ċ", "List", "Ġthe", "Ġobjects", ".", "ĠASSISTANT", ":",
    ]  # fmt: skip
    for kind in ("drawn", "digits"):
        for scene in GlyphWorld(kind).scenes(20, 0):
            assert len(tokenizer.encode(" " + scene.caption).ids) == len(scene.objects)


def test_a_training_that_was_stopped_ends_with_the_same_weights(trained, tmp_path):
    out = tmp_path / "model"
    train(out, stop_at=55)
    train(out)
    assert (out / "model.safetensors").read_bytes() == (trained.out / "model.safetensors").read_bytes()
    assert not (out / "glyphs.checkpoint").exists()


def test_the_loss_is_that_of_captions_and_ends_alone(trained):
    scenes = GlyphWorld().scenes(3, 1)
    end = trained.tokenizer.token_to_id(END)
    losses = []
    with torch.no_grad():
        for scene in scenes:
            caption = [*trained.tokenizer.encode(" " + scene.caption).ids, end]
            tokens = torch.tensor([[*trained.prompt, *caption]])
            states = trained.net(seen(trained, [scene]), tokens, trained.image_at)
            logprobs = trained.net.language_model.logits(states)[0].log_softmax(-1)
            for place, token in enumerate(caption, len(trained.prompt)):
                losses.append(-float(logprobs[place - 1, token]))
        assert float(trained.loss(scenes, seen(trained, scenes))) == pytest.approx(sum(losses) / len(losses), abs=1e-5)


@pytest.mark.parametrize("tokens", [64, 256])
def test_the_tower_is_told_which_glyph_each_patch_is_of(tmp_path, tokens):
    training = GlyphTraining(GlyphRecipe(**TINY | {"tokens": tokens}), tmp_path)
    (scene,) = GlyphWorld("digits").scenes(1, 2)
    side = int(tokens**0.5)
    sure = torch.full((side, side, len(CLASSES) + 1), -100.0)
    sure[..., -1] = 0
    for word, cell in zip(scene.objects, scene.cells, strict=True):
        row, column = (place * side // 4 for place in divmod(cell, 4))
        sure[row : row + side // 4, column : column + side // 4] = -100.0
        sure[row : row + side // 4, column : column + side // 4, CLASSES.index(word)] = 0
    training.patch_head = torch.nn.Identity()
    assert float(training.patch_loss([scene], sure.flatten(0, 1)[None])) == pytest.approx(0, abs=1e-6)
    assert float(training.patch_loss([scene], sure.flip(0).flatten(0, 1)[None])) > 1


@pytest.mark.parametrize("tokens", [64, 256])
def test_transformers_opens_the_folder_and_writes_the_same_captions(trained, tmp_path, tokens):
    transformers = pytest.importorskip("transformers")
    if tokens == 256:
        trained = train(tmp_path / "wide", tokens=256, steps=2)
    model = transformers.LlavaForConditionalGeneration.from_pretrained(trained.out)
    processor = transformers.AutoProcessor.from_pretrained(trained.out)
    scenes = [scene for kind in ("drawn", "digits") for scene in GlyphWorld(kind).scenes(3, 0)]
    message = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": QUESTION}]}]
    prompt = processor.apply_chat_template(message, add_generation_prompt=True)
    inputs = processor(images=[scene.image for scene in scenes], text=[prompt] * len(scenes), return_tensors="pt")
    assert inputs["input_ids"][0].tolist() == trained.prompt
    torch.testing.assert_close(inputs["pixel_values"], pixel_values(scenes), atol=1e-5, rtol=0)
    begin = len(trained.prompt)
    with torch.no_grad():
        logits = model(**inputs).logits[:, -1]
        states = trained.net(seen(trained, scenes), inputs["input_ids"], trained.image_at)[:, -1]
        torch.testing.assert_close(logits, trained.net.language_model.logits(states), atol=1e-4, rtol=0)
        written = model.generate(**inputs, max_new_tokens=11, do_sample=False)[:, begin:]
    assert [text.strip() for text in processor.batch_decode(written, skip_special_tokens=True)] == trained.captions(
        scenes
    )


def test_a_training_starts_from_another_models_weights(trained, tmp_path):
    same = GlyphTraining(GlyphRecipe(**TINY | {"start": str(trained.out)}), tmp_path)
    for ours, theirs in zip(same.net.parameters(), trained.net.parameters(), strict=True):
        assert torch.equal(ours, theirs)
        assert ours.requires_grad


@torch.no_grad()
def test_the_first_layer_over_finer_patches_joins_them_and_is_not_trained(tmp_path):
    coarse = GlyphTraining(GlyphRecipe(start="outlay/glyphs"), tmp_path).net.vision_tower
    recipe = GlyphRecipe(tokens=256, tower=3, steps=1, batch=2, start="outlay/glyphs")
    training = GlyphTraining(recipe, tmp_path)
    fine = training.net.vision_tower
    scenes = [scene for kind in ("drawn", "digits") for scene in GlyphWorld(kind).scenes(8, 3)]
    embedded = coarse.embeddings(pixel_values(scenes))
    norm = coarse.pre_layrnorm
    states = fine.encoder.layers[0](fine.pre_layrnorm(fine.embeddings(pixel_values(scenes))))
    torch.testing.assert_close(states[:, 0], norm(embedded[:, 0]), atol=0.05, rtol=0)
    # A large patch's state before the trained layers, but for the divisor of its norm, which pictures change little.
    centred = (embedded - embedded.mean(-1, keepdim=True))[:, 1:] * norm.weight
    joined = (states[:, 1:] - norm.bias).unflatten(1, (8, 2, 8, 2)).transpose(2, 3).flatten(1, 2).flatten(2, 3)
    ratio = (joined * centred[:, :, None]).sum(-1) / (centred**2).sum(-1)[:, :, None]
    torch.testing.assert_close(joined, (ratio.mean() * centred)[:, :, None].expand_as(joined), atol=0.1, rtol=0)
    for ours, theirs in zip(fine.encoder.layers[1:].parameters(), coarse.encoder.layers.parameters(), strict=True):
        assert torch.equal(ours, theirs)
    before = {name: weight.clone() for name, weight in training.net.named_parameters()}
    with torch.enable_grad():
        training.fit(lambda *told: None)
    held = {name for name, weight in training.net.named_parameters() if torch.equal(weight, before[name])}
    assert {name for name in before if ".layers.0." in name and "tower" in name} < held
    assert not any("language_model" in name or ".layers.1." in name for name in held)


def test_a_start_of_another_shape_is_refused(trained, tmp_path):
    with pytest.raises(UsageError, match=r"can't start from .*: it has no .*class_embedding of \[32\]"):
        GlyphTraining(GlyphRecipe(**TINY | {"hidden": 32, "start": str(trained.out)}), tmp_path)
    with pytest.raises(UsageError, match="can't start from outlay/tiny-crate"):
        GlyphTraining(GlyphRecipe(**TINY | {"start": "outlay/tiny-crate"}), tmp_path)
    with pytest.raises(UsageError, match="a start of four heads"):
        GlyphRecipe(**TINY | {"tokens": 256, "start": "outlay/glyphs"})


def test_recipes_that_make_no_sense_are_refused():
    with pytest.raises(UsageError, match="64 or 256 visual tokens, not 100"):
        GlyphRecipe(tokens=100)
    with pytest.raises(UsageError, match="multiple of 8"):
        GlyphRecipe(hidden=100)
    with pytest.raises(UsageError, match="an even number, not 3"):
        GlyphRecipe(batch=3)
