"""Images in requests: data: URLs alone, within the limits, for models that see."""

from __future__ import annotations

import base64
import io

import numpy as np
import openai
import pytest
from models.vision_checkpoints import llava, pictures
from PIL import Image
from serve.running import start


@pytest.fixture(scope="module")
def seeing(checkpoint, tmp_path_factory):
    folder = tmp_path_factory.mktemp("seeing") / "llava"
    llava(folder)
    running = start({"llava": folder, "tiny": checkpoint})
    yield running
    running.stop()


@pytest.fixture
def client(seeing):
    return openai.OpenAI(base_url=f"{seeing.url}/v1", api_key="none", max_retries=0, timeout=60)


def url(image):
    data = io.BytesIO()
    Image.fromarray(image).save(data, format="png")
    return "data:image/png;base64," + base64.b64encode(data.getvalue()).decode()


def asked(*urls, text="What is it?"):
    images = [{"type": "image_url", "image_url": {"url": each}} for each in urls]
    return [{"role": "user", "content": [*images, {"type": "text", "text": text}]}]


def test_an_answer_is_that_of_the_engine(seeing, client):
    image = pictures()[0]
    how = {"model": "llava", "temperature": 0, "max_completion_tokens": 8}
    answer = client.chat.completions.create(messages=asked(url(image)), **how)
    lm = seeing.service.models.find("llava").lm
    alone = lm.generate("What is it?", images=[image], max_tokens=8)
    assert answer.choices[0].message.content == alone.text
    assert answer.usage.prompt_tokens == alone.prompt_tokens
    assert answer.outlay["ledger"]["encoder_passes"] == 1
    again = client.chat.completions.create(messages=asked(url(image), text="And now?"), **how)
    assert again.outlay["ledger"]["encoder_passes"] == 0
    pieces = client.chat.completions.create(messages=asked(url(image)), stream=True, **how)
    text = "".join(choice.delta.content or "" for chunk in pieces for choice in chunk.choices)
    assert text == alone.text
    part = [{"type": "input_image", "image_url": url(image)}, {"type": "input_text", "text": "What is it?"}]
    response = client.responses.create(
        model="llava", temperature=0, max_output_tokens=8, input=[{"role": "user", "content": part}]
    )
    assert response.output_text == alone.text


def test_what_is_no_data_url_of_an_image_is_refused_in_one_line(client, tmp_path):
    file = tmp_path / "one.png"
    Image.fromarray(pictures()[0]).save(file)
    large = np.zeros((6000, 6000), dtype=np.uint8)
    for model, urls, said in [
        ("llava", ["https://example.com/a.png"], "is not a data: URL"),
        ("llava", [str(file)], "is not a data: URL"),
        ("llava", [f"file://{file}"], "is not a data: URL"),
        ("llava", ["data:image/png;base64,QUJD"], "can't be read as a picture"),
        ("llava", ["data:image/png,abc"], "must be in base64"),
        ("llava", [url(large)], "has 36000000 pixels; at most 33554432 are read"),
        ("tiny", [url(pictures()[0])], "tiny sees no images"),
    ]:
        with pytest.raises(openai.BadRequestError) as caught:
            client.chat.completions.create(model=model, messages=asked(*urls), max_completion_tokens=2)
        assert said in caught.value.body["message"]
        assert str(file) not in caught.value.body["message"]
    for part in (
        {"type": "image", "path": str(file)},
        {"type": "image_url", "image_url": {"url": "x", "detail": "low"}},
    ):
        with pytest.raises(openai.BadRequestError):
            client.chat.completions.create(model="llava", messages=[{"role": "user", "content": [part]}])


def test_a_body_above_the_limit_is_refused_whatever_is_in_it(client):
    noise = np.random.default_rng(0).integers(0, 256, (1500, 1500, 3), dtype=np.uint8)
    with pytest.raises(openai.APIStatusError) as caught:
        client.chat.completions.create(model="llava", messages=asked(url(noise)), max_completion_tokens=2)
    assert caught.value.status_code == 413
