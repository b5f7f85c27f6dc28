"""Prompts with images: where images are in messages and texts, and the token ids of both together."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, TypeAlias

import numpy as np
import numpy.typing as npt
import torch

from outlay.errors import UsageError
from outlay.messages import conversation, of_data_url
from outlay.models.content import MESSAGE, Content, join
from outlay.models.tokenizer import Tokenizer
from outlay.models.vision import Vision
from outlay.pictures import read_picture

if TYPE_CHECKING:
    from PIL.Image import Image

ImageSource: TypeAlias = "str | Path | bytes | npt.NDArray[Any] | torch.Tensor | Image"


def read_image(source: ImageSource) -> npt.NDArray[np.uint8]:
    """Returns an image's pixels, uint8 [height, width, 3], as `outlay.pictures.read_picture` does.

    Args:
        source: A file, a data: URL, bytes of a file, a Pillow image, or an array or tensor [height, width],
            [height, width, channels] or [channels, height, width], of bytes or of floats from 0 to 1.

    Raises:
        UsageError: For what is no image.
    """
    if isinstance(source, str):
        if source.startswith("data:"):
            return read_picture(of_data_url(source, "the prompt"))
        if source.startswith(("http://", "https://")):
            raise UsageError(f"outlay fetches no images; give {source:.60} as a file, or its bytes")
    if isinstance(source, torch.Tensor):
        source = source.detach().cpu().numpy()
    if not (isinstance(source, str | Path | bytes | np.ndarray) or hasattr(source, "getexif")):
        raise UsageError(f"{source!r:.60} is no image; give a file, its bytes, an array or a Pillow image")
    return read_picture(_as_bytes(source) if isinstance(source, np.ndarray) else source)


def _as_bytes(pixels: npt.NDArray[Any]) -> npt.NDArray[np.uint8]:
    """Returns an array of an image as uint8 [height, width] or [height, width, 3 or 4]."""
    if pixels.ndim == 3 and pixels.shape[2] not in (1, 3, 4) and pixels.shape[0] in (1, 3, 4):
        pixels = np.moveaxis(pixels, 0, 2)
    if pixels.ndim == 3 and pixels.shape[2] == 1:
        pixels = pixels[:, :, 0]
    if pixels.ndim not in (2, 3) or (pixels.ndim == 3 and pixels.shape[2] not in (3, 4)):
        raise UsageError(f"an array of shape {list(pixels.shape)} is no image; give [height, width, 3]")
    if pixels.dtype.kind == "f":
        if not (np.isfinite(pixels).all() and pixels.min() >= 0 and pixels.max() <= 1):
            raise UsageError("an image of floats must be from 0 to 1; give bytes for one from 0 to 255")
        pixels = np.rint(pixels * 255)
    elif pixels.dtype != np.uint8:
        raise UsageError(f"an image must be of bytes (uint8) or floats from 0 to 1, not {pixels.dtype}")
    return np.ascontiguousarray(pixels, dtype=np.uint8)


def with_images(
    messages: Sequence[Mapping[str, Any]], images: Sequence[ImageSource]
) -> tuple[list[dict[str, Any]], list[ImageSource]]:
    """Returns messages whose image parts say their place alone, and the images of these places, in order.

    Args:
        messages: Chat messages. Image parts without an image take the next of `images`.
        images: Further images. Where no part asks for one, they go before the text of the last message of a user.

    Raises:
        UsageError: Where parts and images differ in number.
    """
    read = conversation(messages)
    places = [part for message in read for part in _image_parts(message)]
    bare = sum("image" not in part for part in places)
    if images and not bare:
        last = next((message for message in reversed(read) if message["role"] == "user"), None)
        if last is None:
            raise UsageError("images go with a message of a user, and the prompt has none")
        said = last["content"]
        parts = [{"type": "text", "text": said}] if isinstance(said, str) else said
        last["content"] = [*({"type": "image"} for _ in images), *parts]
        bare = len(images)
    refuse_other_number(bare, len(images))
    rest, found = iter(images), []
    for message in read:
        for part in _image_parts(message):
            found.append(part["image"] if "image" in part else next(rest))
        if isinstance(message["content"], list):
            message["content"] = [{"type": "image"} if part["type"] == "image" else part for part in message["content"]]
    return read, found


def _image_parts(message: Mapping[str, Any]) -> list[dict[str, Any]]:
    content = message["content"]
    return [] if isinstance(content, str) else [part for part in content if part["type"] == "image"]


def refuse_images(name: str) -> NoReturn:
    """Raises `UsageError` for images that a model can't see."""
    raise UsageError(
        f"{name} sees no images; load a model with a vision tower, such as LLaVA or SmolVLM, or leave the images out"
    )


def refuse_other_number(places: int, images: int) -> None:
    """Raises `UsageError` where a prompt has not as many places for images as there are images."""
    if places != images:
        say = f"{images} images are" if images != 1 else "1 image is"
        raise UsageError(
            f"the prompt has {places} place{'s' if places != 1 else ''} for images, but {say} given; give one for each"
        )


def chat_ids(vision: Vision, tokenizer: Tokenizer, text: str, images: Sequence[ImageSource]) -> list[int]:
    """Returns the token ids of a conversation in the model's form, in which each image token becomes an image.

    As in the processors of `transformers`, what the tokenizer puts before a text goes before one that doesn't begin
    with the token that begins texts.

    Args:
        vision: What the model sees with.
        tokenizer: Its tokenizer.
        text: What the chat template wrote.
        images: The images, in order.
    """
    places = tokenizer.places_of(vision.image_token, text)
    if len(places) < len(images):
        raise UsageError("the model's chat template has no place for images; give a prompt without it (chat=False)")
    first = "" if tokenizer.bos_token_id is None else tokenizer.name_of(tokenizer.bos_token_id)
    begun = bool(first) and text.startswith(first)
    return _ids(vision, tokenizer, text, places, images, begun)


def text_ids(
    vision: Vision, tokenizer: Tokenizer, text: str, images: Sequence[ImageSource], special: bool
) -> list[int]:
    """Returns the token ids of a text with images, which go before it unless it spells their places out.

    Args:
        vision: What the model sees with.
        tokenizer: Its tokenizer.
        text: The text.
        images: The images, in order.
        special: Whether special tokens that the text spells out are special tokens, image tokens among them.
    """
    written = text if special else Content(text, MESSAGE * len(text))
    if not tokenizer.places_of(vision.image_token, written):
        written = join("", [vision.image_token * len(images), written])
    return _ids(vision, tokenizer, written, tokenizer.places_of(vision.image_token, written), images, begun=False)


def ids_with(vision: Vision, tokens: Sequence[int], images: Sequence[ImageSource]) -> list[int]:
    """Returns token ids whose image tokens, one for each visual token, stand for these images."""
    tiled = [vision.processor(read_image(image)) for image in images]
    prompt = vision.place(tokens, tiled)
    if prompt is None:
        wanted, found = (
            sum(len(image.tiles) for image in tiled) * vision.count,
            list(tokens).count(vision.image_token_id),
        )
        raise UsageError(
            f"the prompt's token ids have {found} times the image token {vision.image_token_id}, but its images have "
            f"{wanted} visual tokens, those of a tile side by side"
        )
    return prompt


def _ids(
    vision: Vision, tokenizer: Tokenizer, text: str, places: Sequence[int], images: Sequence[ImageSource], begun: bool
) -> list[int]:
    """Returns the token ids of a text with an image at each of `places`; `begun` says that it has its first token."""
    refuse_other_number(len(places), len(images))
    tiled = [vision.processor(read_image(image)) for image in images]
    written = _placed(text, places, len(vision.image_token), map(vision.placeholder, tiled))
    tokens = tokenizer.encode(written, special=True) if begun else tokenizer.encode_prompt(written, special=True)
    if not images:
        return tokens
    prompt = vision.place(tokens, tiled)
    assert prompt is not None, "a placeholder has a token for each visual token"
    return prompt


def _placed(text: str, places: Sequence[int], length: int, placeholders: Iterable[str]) -> str:
    """Returns a text with another in place of the `length` characters at each of `places`, marks and all."""
    parts, end = [], 0
    for at, placeholder in zip(places, placeholders, strict=True):
        parts += [text[end:at], placeholder]
        end = at + length
    return str(join("", [*parts, text[end:]]))
