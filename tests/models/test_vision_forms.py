"""The public forms of models that see give what `transformers` gives, from the pixels to the logits."""

from __future__ import annotations

import base64
import io
import json
from dataclasses import replace

import numpy as np
import pytest
import torch
import transformers
from PIL import Image
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.models.idefics3.image_processing_pil_idefics3 import Idefics3ImageProcessorPil
from transformers.models.llava.image_processing_pil_llava import LlavaImageProcessorPil
from vision_checkpoints import IMAGE, TEXT, TOWER, VOCAB, idefics3, llava, pictures

from outlay import UsageError
from outlay.engine.engine import Engine
from outlay.lm import LM
from outlay.models.chat import ChatTemplate
from outlay.models.load import load_model, sees_images
from outlay.models.tokenizer import Tokenizer
from outlay.models.vision.processors import cropped_image, split_image

FORMS = {
    "llava": llava,
    "llava-siglip": lambda folder: llava(
        folder, tower="siglip", vision_feature_layer=-1, vision_feature_select_strategy="full"
    ),
    "idefics3": idefics3,
    "smolvlm": lambda folder: idefics3(folder, kind="SmolVLM"),
    "small-tiles": lambda folder: idefics3(folder, tile=16),
}


@pytest.fixture(scope="module", params=FORMS)
def form(request, tmp_path_factory):
    """A network, its processor, its folder, and our model of it."""
    folder = tmp_path_factory.mktemp(request.param)
    network, processor = FORMS[request.param](folder)
    return network, processor, folder, LM(load_model(folder, dtype="float32"), Engine())


def chat(images, text="What is it?"):
    """A message with images, as `transformers` takes it."""
    parts = [{"type": "image", "image": Image.fromarray(image)} for image in images]
    return [{"role": "user", "content": [*parts, {"type": "text", "text": text}]}]


def inputs_of(processor, messages):
    return processor.apply_chat_template(
        messages, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
    )


@pytest.mark.parametrize("numbers", [[0], [1, 3], [4, 2, 4]])
def test_ids_pixels_and_logits_are_those_of_transformers(form, numbers):
    network, processor, _, lm = form
    messages = chat([pictures()[number] for number in numbers])
    wanted = inputs_of(processor, messages)
    prompt = lm.encode(messages)
    assert prompt == wanted["input_ids"][0].tolist()

    stem, theirs = lm.model.vision.stem, wanted["pixel_values"].flatten(0, -4)
    pixels = [torch.from_numpy(placed.tile.pixels).float() for placed in prompt.placed]
    ours = torch.stack([((each * stem.scale - stem.mean) / stem.std).permute(2, 0, 1) for each in pixels])
    level = 1 / 255 / stem.std.min()
    assert (ours - theirs).abs().max() <= level / 100  # far below a level: the pixels are the same

    result = lm.generate(prompt, max_tokens=5, logprobs=VOCAB, ignore_eos=True)
    text = torch.tensor([[*prompt, *result.tokens[:-1]]])
    seen = {name: wanted[name] for name in ("pixel_values", "pixel_attention_mask") if name in wanted}
    with torch.inference_mode():
        rows = network(input_ids=text, **seen).logits[0, len(prompt) - 1 :].log_softmax(-1)
    for row, found in zip(rows, result.logprobs, strict=True):
        for token, logprob in found.top:
            assert abs(float(row[token]) - logprob) < 1e-4


def test_a_text_alone_is_read_as_by_transformers(form):
    network, processor, _, lm = form
    messages = [{"role": "user", "content": [{"type": "text", "text": "Hello"}]}]
    wanted = inputs_of(processor, messages)["input_ids"]
    assert lm.encode("Hello") == lm.encode(messages) == wanted[0].tolist()
    with torch.inference_mode():
        best = network(input_ids=wanted).logits[0, -1].argmax()
    assert lm.generate("Hello", max_tokens=1, ignore_eos=True).tokens == [int(best)]


def test_whole_captions_are_those_of_transformers(form):
    network, processor, _, lm = form
    messages = chat([pictures()[1]])
    with torch.inference_mode():
        wanted = network.generate(**inputs_of(processor, messages), max_new_tokens=24, do_sample=False)[0].tolist()
    prompt = lm.encode(messages)
    assert [*prompt, *lm.generate(prompt, max_tokens=24).tokens] == wanted


def data_url(image):
    data = io.BytesIO()
    Image.fromarray(image).save(data, format="png")
    return "data:image/png;base64," + base64.b64encode(data.getvalue()).decode()


def test_messages_have_images_as_in_transformers_and_in_openais_api(form):
    _, _, _, lm = form
    one, two = pictures()[0], pictures()[3]
    wanted = lm.encode(chat([one, two]))
    for parts, images in [
        ([{"type": "image"}, {"type": "image"}], [one, two]),
        ([{"type": "image", "image": one}, {"type": "image"}], [two]),
        ([{"type": "image_url", "image_url": {"url": data_url(image)}} for image in (one, two)], []),
        ([{"type": "input_image", "image_url": data_url(image)} for image in (one, two)], []),
        ([{"type": "image", "url": data_url(image)} for image in (one, two)], []),
        ([], [one, two]),
    ]:
        content = [*parts, {"type": "text", "text": "What is it?"}]
        found = lm.encode([{"role": "user", "content": content}], images=images)
        assert (found, found.placed) == (wanted, wanted.placed)
    assert lm.encode("What is it?", images=[one, two]).placed == wanted.placed
    twice = [*chat([one]), {"role": "assistant", "content": "A dog."}, {"role": "user", "content": "And this?"}]
    prompt = lm.encode(twice, images=[two])
    assert [placed.tile for placed in prompt.placed] == [placed.tile for placed in wanted.placed]
    assert lm.generate(twice, images=[two], max_tokens=2, continue_final_message=False).prompt_tokens == len(prompt)


@pytest.mark.parametrize(
    ("part", "images", "said"),
    [
        ({"type": "image"}, 0, "the prompt has 1 place for images, but 0 images are given; give one for each"),
        ({"type": "image"}, 2, "the prompt has 1 place for images, but 2 images are given; give one for each"),
        ({"type": "image_url", "image_url": {"url": "https://a.b/c.png"}}, 0, "is not a data: URL, the only one"),
        ({"type": "image_url", "image_url": {"url": "/etc/passwd"}}, 0, "is not a data: URL, the only one"),
        ({"type": "image_url", "image_url": {"url": "file:///etc/passwd"}}, 0, "is not a data: URL, the only one"),
        ({"type": "image_url"}, 0, "an 'image_url' part of message 1 must have its URL under 'image_url'"),
        ({"type": "image_url", "image_url": {"url": "data:image/png;base64,QUJD"}}, 0, "can't be read as a picture"),
        ({"type": "image", "base64": "?"}, 0, "is not base64"),
        ({"type": "image", "image": 3}, 0, "3 is no image; give a file"),
        ({"type": "video"}, 0, "a part of type 'video', but outlay reads text and images alone"),
    ],
)
def test_messages_whose_images_do_not_fit_are_refused_in_one_line(form, part, images, said):
    lm = form[-1]
    messages = [{"role": "user", "content": [part, {"type": "text", "text": "?"}]}]
    with pytest.raises(UsageError, match=said):
        lm.encode(messages, images=pictures()[:images])


def test_a_model_that_sees_nothing_and_a_template_without_a_place_refuse_images(form):
    lm = form[-1]
    with pytest.raises(UsageError, match="sees no images"):
        LM(replace(lm.model, vision=None), Engine()).encode(chat([pictures()[0]]))
    blind = ChatTemplate("{% for message in messages %}{{ message['content'] }}{% endfor %}", {})
    inner = lm.model.tokenizer.inner
    other = replace(lm.model, tokenizer=Tokenizer(inner, eos_token_ids=(257,), bos_token_id=256, template=blind))
    with pytest.raises(UsageError, match="the model's chat template has no place for images"):
        LM(other, Engine()).encode("What?", images=[pictures()[0]])


def test_what_a_user_spells_out_is_no_image(form):
    _, _, folder, lm = form
    said = lm.encode("<image> and <row_1_col_1>")
    assert IMAGE not in said
    assert sees_images(folder)
    with pytest.raises(UsageError, match="has 1 place for images, but 0 images are given; give one for each"):
        lm.generate("<image>", chat=False, special_tokens=True)
    with pytest.raises(UsageError, match=r"the prompt has a place for an image \(<image>\), but no image"):
        lm.generate([65, IMAGE, 66])


SHAPES = [(40, 60), (33, 21), (32, 32), (90, 50), (7, 100), (400, 30), (1, 1), (64, 65)]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (cropped_image, CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})),
        (cropped_image, CLIPImageProcessorPil(size={"shortest_edge": 24}, crop_size={"height": 31, "width": 40})),
        (cropped_image, CLIPImageProcessorPil(do_resize=False, crop_size={"height": 20, "width": 20})),
        (cropped_image, LlavaImageProcessorPil(size={"height": 36, "width": 36}, do_center_crop=False, do_pad=True)),
        (split_image, Idefics3ImageProcessorPil(size={"longest_edge": 96}, max_image_size={"longest_edge": 32})),
        (split_image, Idefics3ImageProcessorPil(size={"longest_edge": 50}, max_image_size={"longest_edge": 48})),
        (split_image, Idefics3ImageProcessorPil(do_image_splitting=False, max_image_size={"longest_edge": 32})),
        (split_image, Idefics3ImageProcessorPil(do_resize=False, max_image_size={"longest_edge": 32})),
    ],
    ids=[
        "clip",
        "clip-odd",
        "clip-crop",
        "llava-pad",
        "idefics3",
        "idefics3-coarse",
        "idefics3-whole",
        "idefics3-as-is",
    ],
)
def test_pixels_are_those_of_transformers(ours, theirs, shape):
    picture = np.random.default_rng(1).integers(0, 256, (*shape, 3), dtype=np.uint8)
    mine = ours(json.loads(theirs.to_json_string()))(picture)
    wanted = theirs(Image.fromarray(picture), return_tensors="np", do_rescale=False, do_normalize=False)
    pixels = np.asarray(wanted["pixel_values"]).reshape(-1, *np.asarray(wanted["pixel_values"]).shape[-3:])
    assert len(pixels) == len(mine.tiles)
    for tile, their in zip(mine.tiles, pixels, strict=True):
        assert np.array_equal(tile.pixels, their.transpose(1, 2, 0))


def changed(folder, name, **entries):
    """Changes entries of a JSON file of a folder."""
    path = folder / name
    path.write_text(json.dumps(json.loads(path.read_text()) | entries))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda folder: changed(folder, "config.json", vision_feature_layer=[-2, -3]), "reads layers .* at once"),
        (lambda folder: changed(folder, "config.json", vision_feature_layer=-5), "none of the tower's 3 layers"),
        (lambda folder: changed(folder, "config.json", vision_feature_select_strategy="some"), "'some' is not one"),
        (lambda folder: changed(folder, "config.json", image_token_index=9999), "has no token 9999"),
        (lambda folder: changed(folder, "config.json", text_config={"model_type": "mamba"}), "of the family 'mamba'"),
        (
            lambda folder: changed(folder, "config.json", text_config={"model_type": "mistral"}),
            "lacks '.*', which mistral needs",
        ),
        (
            lambda folder: changed(folder, "config.json", vision_config={"model_type": "pixtral"}),
            "tower is a 'pixtral'",
        ),
        (lambda folder: (folder / "processor_config.json").unlink(), "holds no preprocessor_config.json"),
        (
            lambda folder: changed(folder, "preprocessor_config.json", size=40, crop_size=40, do_center_crop=True),
            r"makes tiles of \(40, 40\) pixels, but the tower reads 32 x 32",
        ),
        (
            lambda folder: changed(folder, "config.json", vision_config=TOWER | {"hidden_size": 40}),
            "linear_1.weight has shape",
        ),
    ],
)
def test_a_folder_that_does_not_fit_is_refused_in_one_line(change, said, tmp_path):
    llava(tmp_path, text=transformers.LlamaConfig(**TEXT | {"num_hidden_layers": 1}))
    (tmp_path / "preprocessor_config.json").write_text("{}")
    change(tmp_path)
    with pytest.raises(UsageError, match=said):
        load_model(tmp_path, dtype="float32")


def test_an_older_folder_has_its_template_and_processor_in_files_of_their_own(form, tmp_path):
    """LLaVA-1.5 as it was first published: `chat_template.json`, and no sizes in `text_config` but what is unusual."""
    _, processor, folder, lm = form
    for file in folder.iterdir():
        (tmp_path / file.name).symlink_to(file)
    for name in ("chat_template.jinja", "processor_config.json"):
        (tmp_path / name).unlink()
    template = (folder / "chat_template.jinja").read_text()
    (tmp_path / "chat_template.json").write_text(json.dumps({"chat_template": template}))
    (tmp_path / "preprocessor_config.json").write_text(processor.image_processor.to_json_string())
    other = LM(load_model(tmp_path, dtype="float32"), Engine())
    messages = chat([pictures()[0]])
    assert other.encode(messages) == lm.encode(messages)
    assert other.generate(messages, max_tokens=3).tokens == lm.generate(messages, max_tokens=3).tokens
