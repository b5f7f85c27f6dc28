"""The public forms of models that see: how each is read from a folder in the hub's layout."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from hashlib import sha256
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from outlay.errors import UsageError
from outlay.models.build import Builder, Progress
from outlay.models.checkpoint import Checkpoint, read_json
from outlay.models.config import ACTIVATIONS, FAMILIES, DecoderConfig, Raw, check_config, decoder_config
from outlay.models.linear import Linear, pack
from outlay.models.names import Names
from outlay.models.norm import LayerNorm
from outlay.models.vision import ImageProcessor, Placeholder, Tiled, Vision
from outlay.models.vision.connectors import Connector, PixelShuffle, Projector
from outlay.models.vision.processors import (
    CLIP_MEAN,
    CLIP_STD,
    HALF,
    CroppedImage,
    cropped_image,
    scale_mean_std,
    split_image,
)
from outlay.models.vision.stem import NoEmbedding, PatchStem, grid_positions

LLAMA = {
    "vocab_size": 32000, "hidden_size": 4096, "intermediate_size": 11008,
    "num_hidden_layers": 32, "num_attention_heads": 32, "max_position_embeddings": 2048,
    "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
"""What configs leave out of a Llama where it is as in `transformers`."""
CLIP = {
    "hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12,
    "image_size": 224, "patch_size": 32, "hidden_act": "quick_gelu", "layer_norm_eps": 1e-5,
}  # fmt: skip
SIGLIP = CLIP | {"patch_size": 16, "hidden_act": "gelu_pytorch_tanh", "layer_norm_eps": 1e-6}
IDEFICS3 = SIGLIP | {"hidden_size": 1152, "num_attention_heads": 16, "patch_size": 32}
TOWERS: Mapping[str, Mapping[str, Any]] = {
    "clip_vision_model": CLIP, "siglip_vision_model": SIGLIP, "idefics3": IDEFICS3, "idefics3_vision": IDEFICS3,
    "smolvlm": IDEFICS3, "smolvlm_vision": IDEFICS3,
}  # fmt: skip
"""The towers that run here, with the defaults of their configs."""
LAYERS: Names = {
    "final_norm": "post_layernorm",
    "attn_norm": "encoder.layers.{i}.layer_norm1",
    "q": "encoder.layers.{i}.self_attn.q_proj",
    "k": "encoder.layers.{i}.self_attn.k_proj",
    "v": "encoder.layers.{i}.self_attn.v_proj",
    "out": "encoder.layers.{i}.self_attn.out_proj",
    "mlp_norm": "encoder.layers.{i}.layer_norm2",
    "up": "encoder.layers.{i}.mlp.fc1",
    "down": "encoder.layers.{i}.mlp.fc2",
}
"""A tower's tensors, below its prefix."""


def text_config(raw: Raw) -> Raw:
    """Returns the config of the decoder of a model that sees.

    Raises:
        UsageError: If its family does not run here.
    """
    text: Raw = {"model_type": "llama"} | (raw.get("text_config") or {})
    if text["model_type"] == "llama":  # published configs leave out what is as in the 7B
        text = LLAMA | text
    if text["model_type"] not in FAMILIES:
        raise UsageError(
            f"the decoder of this {raw.get('model_type')} is of the family {text['model_type']!r}, but models that see "
            f"run with one of {', '.join(FAMILIES)}"
        )
    if raw.get("eos_token_id") is not None:
        text.setdefault("eos_token_id", raw["eos_token_id"])
    return text


def vision_decoder_config(raw: Raw, store: Checkpoint) -> DecoderConfig:
    """Returns the shape of the decoder of a model that sees, as its folder holds it."""
    config = decoder_config(text_config(raw))
    if config.diffusion is not None:
        raise UsageError(f"a {config.architecture} that sees does not run here; it fills masks on a canvas")
    tied = raw.get("tie_word_embeddings", False)
    if raw.get("model_type") == "llava":
        tied = tied or config.tied_lm_head
    return replace(config, tied_lm_head=bool(tied) or store.shape("lm_head.weight") is None)


@dataclass(frozen=True)
class Opened:
    """A folder whose vision tower is read."""

    folder: Path
    raw: Raw
    store: Checkpoint
    format: str
    device: torch.device
    hidden_size: int
    """Of the decoder."""
    progress: Progress | None

    def tensor(self, *names: str) -> Tensor | None:
        """Returns the first of these tensors that the folder has, in float32; None if it has none."""
        for name in names:
            if self.store.shape(name) is not None:
                return self.store.floats(name).float()
        return None

    def linear(self, *names: str, shape: tuple[int, int]) -> Linear:
        """Returns the layer that the folder has under one of these names.

        Raises:
            UsageError: If it has none, or one of another shape.
        """
        weight = self.tensor(*(f"{name}.weight" for name in names))
        if weight is None:
            raise UsageError(f"the model's files lack the tensor {names[0]}.weight")
        weight = weight.flatten(1)
        if tuple(weight.shape) != shape:
            raise UsageError(f"tensor {names[0]}.weight has shape {list(weight.shape)}; expected {list(shape)}")
        return pack(weight, self.format, self.tensor(*(f"{name}.bias" for name in names)), device=self.device)

    @property
    def processor(self) -> dict[str, Any]:
        """The options of the folder's image processor."""
        nested = read_json(self.folder / "processor_config.json").get("image_processor")
        options = read_json(self.folder / "preprocessor_config.json") or nested
        if not isinstance(options, dict) or not options:
            raise UsageError(
                f"{self.folder} holds no preprocessor_config.json, without which outlay cannot resize images as the "
                "model expects them"
            )
        return options

    @property
    def vision(self) -> dict[str, Any]:
        """The tower's config, with the defaults of its family."""
        given = dict(self.raw.get("vision_config") or {})
        kind = given.get("model_type", "clip_vision_model" if self.raw["model_type"] == "llava" else "smolvlm_vision")
        if kind not in TOWERS:
            raise UsageError(
                f"the vision tower is a {kind!r}, but outlay runs {', '.join(name for name in TOWERS if '_' in name)}"
            )
        return {**TOWERS[kind], **given, "model_type": kind}

    def square(self, key: str) -> int:
        """Returns a size of the tower that is the same for height and width."""
        size = self.vision[key]
        sides = {*size} if isinstance(size, list | tuple) else {size}
        if len(sides) > 1:
            raise UsageError(f"the vision tower has a {key} of {size}, but outlay runs square ones")
        return int(sides.pop())


def load_vision(
    folder: Path,
    raw: Raw,
    store: Checkpoint,
    image_token: str,
    *,
    format: str,
    device: torch.device,
    hidden_size: int,
    progress: Progress | None = None,
) -> Vision:
    """Returns what a model sees with.

    Args:
        folder: its folder.
        raw: its `config.json`.
        store: its weights.
        image_token: what stands for an image in its prompts.
        format: how weights are held: one of `linear.FORMATS`.
        device: where it runs.
        hidden_size: of the decoder.
        progress: told of layers.

    Raises:
        UsageError: If the folder is incomplete, or asks for what does not run here.
    """
    opened = Opened(folder, raw, store, format, device, hidden_size, progress)
    try:
        return VISION_FORMS[raw["model_type"]](opened, image_token)
    except KeyError as error:
        raise UsageError(f"the model's config.json lacks {error.args[0]!r}, which {raw['model_type']} needs") from None
    except (TypeError, ValueError, ZeroDivisionError) as error:
        if isinstance(error, UsageError):
            raise
        raise UsageError(f"the configs of {folder} have a value of the wrong type: {error}") from None


def image_token_of(raw: Raw) -> int:
    """Returns the id of the token that stands for visual tokens.

    Raises:
        UsageError: If the config does not tell.
    """
    default = 32000 if raw.get("model_type") == "llava" else None
    token = raw.get("image_token_id", raw.get("image_token_index", default))
    if not isinstance(token, int):
        raise UsageError("the model's config.json has no image_token_id, so its prompts have no place for images")
    return token


def _llava(opened: Opened, image_token: str) -> Vision:
    """LLaVA-1.5: the middle of an image in one tile, an inner layer of CLIP, and two layers."""
    raw, vision = opened.raw, opened.vision
    selected, strategy = raw.get("vision_feature_layer", -2), raw.get("vision_feature_select_strategy", "default")
    if not isinstance(selected, int):
        raise UsageError(f"this LLaVA reads layers {selected} of its tower at once; outlay runs those that read one")
    if strategy not in ("default", "full"):
        raise UsageError(f"vision_feature_select_strategy {strategy!r} is not one that outlay runs (default, full)")
    layers = vision["num_hidden_layers"]
    depth = selected if selected >= 0 else layers + 1 + selected
    if not 1 <= depth <= layers:
        raise UsageError(f"vision_feature_layer {selected} is none of the tower's {layers} layers")
    processor, side = cropped_image(opened.processor), opened.square("image_size")
    _check_tile(processor, side)
    rows = (side // opened.square("patch_size")) ** 2 + _has_class_token(vision)
    skips = 1 if strategy == "default" else 0
    name, hidden = "multi_modal_projector", opened.hidden_size
    connector = Projector(
        opened.linear(f"{name}.linear_1", f"model.{name}.linear_1", shape=(hidden, vision["hidden_size"])),
        opened.linear(f"{name}.linear_2", f"model.{name}.linear_2", shape=(hidden, hidden)),
        _activation(raw.get("projector_hidden_act", "gelu")),
        skips,
    )
    count = rows - skips

    def written(image: Tiled) -> str:
        return image_token * count * len(image.tiles)

    cells = side // opened.square("patch_size")
    return _vision(opened, image_token, depth, cells, connector, processor, written, count)


def _idefics3(opened: Opened, image_token: str) -> Vision:
    """Idefics3 and SmolVLM: an image in square parts and whole, SigLIP, squares of visual tokens made one."""
    raw, processor = opened.raw, split_image(opened.processor)
    patch, factor = opened.square("patch_size"), int(raw.get("scale_factor", 2))
    cells = processor.side // patch
    if cells % factor or processor.side > opened.square("image_size"):
        raise UsageError(
            f"tiles of {processor.side} pixels (max_image_size in preprocessor_config.json) are not whole squares of "
            f"{factor} patches of {patch} pixels, up to {opened.square('image_size')}"
        )
    name = "connector.modality_projection.proj"
    shape = (opened.hidden_size, opened.vision["hidden_size"] * factor**2)
    connector = PixelShuffle(opened.linear(f"model.{name}", name, shape=shape), factor)
    count = (cells // factor) ** 2
    seen, around = image_token * count, "<fake_token_around_image>"

    def written(image: Tiled) -> str:
        parts = [
            "".join(f"{around}<row_{row}_col_{column}>{seen}" for column in range(1, image.columns + 1)) + "\n"
            for row in range(1, image.rows + 1)
        ]
        whole = f"{around}<global-img>{seen}{around}"
        return "".join(parts) + ("\n" + whole if parts else whole)

    depth = opened.vision["num_hidden_layers"]
    return _vision(opened, image_token, depth, cells, connector, processor, written, count, normed=True)


def _vision(
    opened: Opened,
    image_token: str,
    depth: int,
    cells: int,
    connector: Connector,
    processor: ImageProcessor,
    placeholder: Placeholder,
    count: int,
    normed: bool = False,
) -> Vision:
    """Builds the tower up to a layer, over tiles of `cells` x `cells` patches; `normed`: with its last norm."""
    prefix = _prefix(opened)
    config = _tower_config(opened, depth, normed)
    names = {part: f"{prefix}{name}" for part, name in LAYERS.items()}
    builder = Builder(
        config, opened.store, names, format=opened.format, float_format=opened.format, device=opened.device,
        interleaved=False, transposed=False, plus_one=False,
    )  # fmt: skip
    tower = builder.build_encoder(NoEmbedding(config.hidden_size), opened.progress)
    stem = _stem(opened, prefix, cells)
    known = f"{tower.fingerprint} {opened.raw} {stem.scale} {stem.mean} {stem.std} {opened.store.identity().hex()}"
    return Vision(
        tower, stem, connector, processor, placeholder, image_token, image_token_of(opened.raw), len(stem.positions),
        count, sha256(known.encode()).hexdigest(),
    )  # fmt: skip


def _prefix(opened: Opened) -> str:
    """Returns what the names of the tower's tensors begin with."""
    places = ("vision_tower.vision_model.", "vision_tower.", "vision_model.")
    for prefix in (*places, *(f"model.{place}" for place in places)):
        if opened.store.shape(f"{prefix}embeddings.patch_embedding.weight") is not None:
            return prefix
    raise UsageError("the model's files lack the tensor vision_tower.embeddings.patch_embedding.weight")


def _tower_config(opened: Opened, depth: int, normed: bool) -> DecoderConfig:
    vision = opened.vision
    hidden, heads = vision["hidden_size"], vision["num_attention_heads"]
    if hidden % heads:
        raise UsageError(f"{hidden} dimensions cannot be divided among {heads} attention heads evenly")
    size = hidden // heads
    config = DecoderConfig(
        architecture=vision["model_type"],
        vocab_size=1,
        hidden_size=hidden,
        num_layers=depth,
        num_heads=heads,
        num_kv_heads=heads,
        head_dim=-(-size // 8) * 8,  # a multiple of 8, as the kernels take it
        stored_head_dim=size,
        intermediate_size=vision["intermediate_size"],
        max_positions=(opened.square("image_size") // opened.square("patch_size")) ** 2 + 1,
        windows=(None,) * depth,
        attention_scale=size**-0.5,
        layer_norm=True,
        norm_eps=vision["layer_norm_eps"],
        final_norm=normed,
        activation=_activation(vision["hidden_act"]),
        gated=False,
        qkv_bias=True,
        out_bias=True,
        mlp_bias=True,
        names="vision tower",
    )
    check_config(config)
    return config


def _stem(opened: Opened, prefix: str, cells: int) -> PatchStem:
    vision, patch = opened.vision, opened.square("patch_size")
    hidden, side, device = vision["hidden_size"], opened.square("image_size") // patch, opened.device
    table = opened.tensor(f"{prefix}embeddings.position_embedding.weight")
    first = opened.tensor(f"{prefix}embeddings.class_embedding") if _has_class_token(vision) else None
    rows = side * side + (0 if first is None else 1)
    if table is None or tuple(table.shape) != (rows, hidden):
        found = None if table is None else list(table.shape)
        raise UsageError(f"{prefix}embeddings.position_embedding has shape {found}; expected {[rows, hidden]}")
    if first is not None:
        table = table.clone()
        table[0] += first
    elif vision["model_type"] != "siglip_vision_model":
        table = table[grid_positions(cells, side)]
    norm = None
    if (weight := opened.tensor(f"{prefix}pre_layrnorm.weight")) is not None:
        bias = opened.tensor(f"{prefix}pre_layrnorm.bias")
        assert bias is not None, "a layer norm has both"
        norm = LayerNorm(weight.to(device), bias.to(device), vision["layer_norm_eps"])
    means = (CLIP_MEAN, CLIP_STD) if first is not None else (HALF, HALF)
    scale, mean, std = scale_mean_std(opened.processor, *means)
    return PatchStem(
        patch=patch,
        patches=opened.linear(f"{prefix}embeddings.patch_embedding", shape=(hidden, 3 * patch * patch)),
        positions=table.to(device),
        class_token=first is not None,
        norm=norm,
        scale=scale,
        mean=torch.tensor(mean, device=device),
        std=torch.tensor(std, device=device),
    )


def _has_class_token(vision: Mapping[str, Any]) -> bool:
    return bool(vision["model_type"] == "clip_vision_model")


def _check_tile(processor: CroppedImage, side: int) -> None:
    """Raises `UsageError` where the processor gives a tile of another size than the tower reads."""
    given = processor.crop or processor.size
    if given != (side, side):
        raise UsageError(f"preprocessor_config.json makes tiles of {given} pixels, but the tower reads {side} x {side}")


def _activation(name: str) -> str:
    if name not in ACTIVATIONS:
        raise UsageError(f"activation {name!r} is not one that outlay runs ({', '.join(ACTIVATIONS)})")
    return ACTIVATIONS[name]


VISION_FORMS: dict[str, Callable[[Opened, str], Vision]] = {
    "llava": _llava,
    "idefics3": _idefics3,
    "smolvlm": _idefics3,
}
"""How each form is read, by the `model_type` of its `config.json`."""
