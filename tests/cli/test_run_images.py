"""`outlay run --image`: images of the command line and of prompt files reach the model; bad ones get one line."""

from __future__ import annotations

import json

import pytest
from models.vision_checkpoints import llava, pictures
from PIL import Image

from outlay.engine.engine import Engine
from outlay.lm import LM
from outlay.models.load import load_model


@pytest.fixture(scope="module")
def seeing(tmp_path_factory):
    """A folder with a model that sees, and two image files."""
    folder = tmp_path_factory.mktemp("seeing")
    llava(folder / "llava")
    files = [folder / "one.png", folder / "two.png"]
    for file, picture in zip(files, pictures(), strict=False):
        Image.fromarray(picture).save(file)
    return str(folder / "llava"), *map(str, files)


def answer(outlay, *words):
    status, out, err = outlay("run", *words, "--json", "--max-tokens", "6", "--dtype", "float32")
    assert status == 0, err
    return [json.loads(line) for line in out.splitlines()]


def test_images_go_before_the_prompt_and_are_counted(outlay, seeing):
    model, one, two = seeing
    lm = LM(load_model(model, dtype="float32"), Engine())
    (found,) = answer(outlay, "What?", "--model", model, "--image", one, "--image", two)
    wanted = lm.generate("What?", images=[one, two], max_tokens=6)
    assert (found["tokens"], found["prompt_tokens"]) == (wanted.tokens, wanted.prompt_tokens)
    assert found["ledger"]["encoder_passes"] == 1
    assert found["ledger"]["encoder_tokens"] == 34
    (raw,) = answer(outlay, "What?", "--raw", "--model", model, "--image", one)
    assert raw["prompt_tokens"] == 1 + 16 + 5


def test_each_line_may_have_images_of_its_own(outlay, seeing, tmp_path):
    model, one, two = seeing
    file = tmp_path / "prompts.jsonl"
    part = {"type": "image", "path": two}
    rows = [
        {"prompt": "What?", "images": [one]},
        {"messages": [{"role": "user", "content": [part, {"type": "text", "text": "What?"}]}]},
        {"prompt": "What?"},
    ]
    file.write_text("\n".join(map(json.dumps, rows)))
    found = answer(outlay, "--file", str(file), "--lines", "--model", model)
    lm = LM(load_model(model, dtype="float32"), Engine())
    for row, images in zip(found, ([one], [two], []), strict=True):
        assert row["tokens"] == lm.generate("What?", images=images, max_tokens=6).tokens
    rows[0]["images"] = "one.png"
    file.write_text(json.dumps(rows[0]))
    assert '"images" in line 1' in outlay("run", "--file", str(file), "--lines", "--model", model)[2]


def test_models_says_that_it_sees(outlay, seeing):
    status, out, _ = outlay("models", seeing[0])
    assert status == 0
    assert "sees images" in out
    assert "native" in out
    assert "smolvlm" in json.loads(outlay("models", "--json")[1])["see_images"]


def test_bad_images_get_one_line(outlay, seeing, tiny, tmp_path):
    model, one, _ = seeing
    (tmp_path / "no.png").write_text("no image")
    for words, said, status in [
        (["--image", "nowhere.png", "--model", model], "there is no file nowhere.png", 2),
        (["--image", str(tmp_path / "no.png"), "--model", model], "can't be read as a picture", 2),
        (["--image", one, "--model", str(tiny)], "tiny sees no images; load a model with a vision tower", 2),
        (["--image", one, "--model", model, "--receipt", "x"], "--receipt holds no images", 2),
    ]:
        found, _, err = outlay("run", "What?", *words)
        assert (found, err.count("\n")) == (status, 1), err
        assert said in err
