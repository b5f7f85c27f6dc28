"""Which path a family takes, told from a `config.json` alone, and the families that were tried."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from outlay.errors import UsageError
from outlay.models.config import FAMILIES
from outlay.models.encoder_config import ENCODER_DECODERS
from outlay.models.vision.forms import VISION_FORMS

ATTENTION_LAYERS = {"full_attention", "sliding_attention", "chunked_attention"}
"""Kinds of layers, as `layer_types` names them, whose memory is attention's keys and values."""

TRIED = (
    "afmoe", "apertus", "arcee", "aria_text", "axk1", "biogpt", "bitnet", "cohere", "cohere2", "cohere2_moe", "ctrl",
    "cwm", "deepseek_v2", "deepseek_v3", "diffllama", "ernie4_5", "ernie4_5_moe", "exaone4", "exaone_moe", "flex_olmo",
    "flint", "glm", "glm4", "glm4_moe", "glm4_moe_lite", "gpt_bigcode", "gpt_neox", "gpt_oss", "granite_swa",
    "granitemoe", "granitemoe_swa", "granitemoeshared", "helium", "hrm_text", "hunyuan_v1_dense", "hunyuan_v1_moe",
    "hy_v3", "hyperclovax", "jais2", "jetmoe", "laguna", "llama4_text", "longcat_flash", "mellum", "mimo_v2_flash",
    "minicpm3", "minimax_m2", "ministral", "ministral3", "modernbert-decoder", "nanochat", "nemotron", "olmo", "olmo3",
    "olmoe", "persimmon", "phi", "phimoe", "qwen2_moe", "seed_oss", "solar_open", "stablelm", "starcoder2",
    "vaultgemma", "youtu",
)  # fmt: skip
"""Families whose tiny random networks give the logits of `transformers` through its code; any other may do so too."""


def path_of(family: str) -> str:
    """Returns the path of a family: "native", "transformers", or "transformers, untried"."""
    return (
        "native"
        if family in (*FAMILIES, *ENCODER_DECODERS, *VISION_FORMS)
        else "transformers"
        if family in TRIED
        else "transformers, untried"
    )


STATEFUL = (
    "bailing_hybrid", "bamba", "deepseek_v4", "falcon_h1", "falcon_mamba", "granitemoehybrid", "jamba", "kimi_linear",
    "lfm2", "lfm2_moe", "lfm3", "mamba", "mamba2", "minimax", "nemotron_h", "olmo_hybrid", "qwen3_5", "qwen3_5_moe",
    "qwen3_next", "recurrent_gemma", "rwkv", "xlstm", "zamba", "zamba2", "zaya",
)  # fmt: skip
"""Families with recurrent or convolutional states."""


def refuse_other_memory(raw: Mapping[str, Any]) -> None:
    """Raises `UsageError` if a `config.json` is of a model that remembers a text by more than keys and values."""
    family = str(raw.get("model_type"))
    text = raw.get("text_config") or raw
    layers = sorted(set(text.get("layer_types") or ()) - ATTENTION_LAYERS)
    if family in STATEFUL or (layers and family not in FAMILIES):
        raise other_memory(family, f"{', '.join(layers)} layers" if layers else "recurrent or convolutional states")


def other_memory(family: str, states: str) -> UsageError:
    """Returns the refusal of a family with these states beside attention's."""
    return UsageError(
        f"{family} remembers a text by more than attention's keys and values ({states}); outlay grows trees of tokens, "
        "which needs models whose only memory is attention"
    )


def installed() -> str | None:
    """Returns the version of `transformers`, which is not imported; None if it is not installed."""
    try:
        return version("transformers")
    except PackageNotFoundError:
        return None
