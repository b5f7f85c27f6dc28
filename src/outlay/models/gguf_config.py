"""A GGUF file's metadata in the words of a `config.json`, so that both kinds of model are described in one place."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from outlay.errors import UsageError
from outlay.models.gguf_file import GgufFile

LLADA_NAMES = {
    "d_model": "hidden_size", "n_heads": "num_attention_heads", "n_kv_heads": "num_key_value_heads",
    "n_layers": "num_hidden_layers", "mlp_hidden_size": "intermediate_size",
    "max_sequence_length": "max_position_embeddings", "weight_tying": "tie_word_embeddings",
}  # fmt: skip
"""What LLaDA's config.json calls the entries of other families."""


class _Metadata:
    """The metadata of a file that belong to its architecture."""

    def __init__(self, file: GgufFile) -> None:
        self.architecture = str(file.metadata.get("general.architecture"))
        self._metadata = file.metadata

    def get(self, key: str, default: Any = None) -> Any:
        """Returns an entry, or the default."""
        return self._metadata.get(f"{self.architecture}.{key}", default)

    def need(self, key: str) -> Any:
        """Returns an entry. Raises `UsageError` if there is none."""
        if f"{self.architecture}.{key}" not in self._metadata:
            raise UsageError(f"this GGUF file's metadata lacks {self.architecture}.{key}")
        return self._metadata[f"{self.architecture}.{key}"]


def hf_config(file: GgufFile) -> dict[str, Any]:
    """Returns the `config.json` that a GGUF file's metadata stands for.

    Raises:
        UsageError: if an entry is missing, or the model is of a kind that does not run here.
    """
    about = _Metadata(file)
    embed = file.entries.get("token_embd.weight")
    if embed is None:
        raise UsageError("this GGUF file has no token embeddings, so it is not a language model")
    heads, hidden = about.need("attention.head_count"), about.need("embedding_length")
    kv_heads = about.get("attention.head_count_kv", heads)
    if isinstance(heads, list) or isinstance(kv_heads, list):
        raise UsageError("this GGUF file has layers with different numbers of heads, which outlay does not run")

    metadata = file.metadata
    eos = [metadata[key] for key in ("tokenizer.ggml.eos_token_id", "tokenizer.ggml.eot_token_id") if key in metadata]
    common = {
        "model_type": _model_type(about),
        "vocab_size": embed.shape[0],
        "tie_word_embeddings": "output.weight" not in file.entries,
        "bos_token_id": metadata.get("tokenizer.ggml.bos_token_id"),
        "eos_token_id": eos,
    }
    if about.architecture == "gpt2":
        return common | _gpt2(about, hidden, heads)
    raw = common | _rotary(file, about, hidden, heads) | {"num_key_value_heads": kv_heads}
    if about.architecture in ("dream", "llada"):
        raw |= _masked_diffusion(metadata)
    return raw if about.architecture != "llada" else raw | {name: raw[ours] for name, ours in LLADA_NAMES.items()}


def _model_type(about: _Metadata) -> str:
    if about.architecture == "llama" and about.get("expert_count"):
        return "mixtral"
    names = {"qwen3moe": "qwen3_moe", "gemma3": "gemma3_text", "dream": "Dream"}
    return names.get(about.architecture, about.architecture)


def _masked_diffusion(metadata: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the entries of a model that fills masks; what the file leaves out is the family's own."""
    names = {"mask_token_id": "tokenizer.ggml.mask_token_id", "shift_logits": "diffusion.shift_logits"}
    return {name: metadata[key] for name, key in names.items() if key in metadata}


def _gpt2(about: _Metadata, hidden: int, heads: int) -> dict[str, Any]:
    return {
        "n_embd": hidden,
        "n_head": heads,
        "n_layer": about.need("block_count"),
        "n_inner": about.get("feed_forward_length"),
        "n_positions": about.need("context_length"),
        "layer_norm_epsilon": about.get("attention.layer_norm_epsilon", 1e-5),
    }


def _rotary(file: GgufFile, about: _Metadata, hidden: int, heads: int) -> dict[str, Any]:
    """Returns the entries of a model with rotary positions."""
    get = about.get
    raw = {
        "hidden_size": hidden,
        "num_hidden_layers": about.need("block_count"),
        "num_attention_heads": heads,
        "head_dim": get("attention.key_length") or hidden // heads,
        "intermediate_size": get("feed_forward_length") or get("expert_feed_forward_length"),
        "max_position_embeddings": about.need("context_length"),
        "rms_norm_eps": get("attention.layer_norm_rms_epsilon", 1e-6),
        "rope_theta": get("rope.freq_base", 10000.0),
        "sliding_window": get("attention.sliding_window"),
        "attention_bias": "blk.0.attn_q.bias" in file.entries,
        "rope_parameters": _rope_parameters(file, about),
    }
    if get("rope.dimension_count"):
        raw["partial_rotary_factor"] = get("rope.dimension_count") / raw["head_dim"]
    if about.architecture == "gemma2":
        raw["attn_logit_softcapping"] = get("attn_logit_softcapping", 50.0)
        raw["final_logit_softcapping"] = get("final_logit_softcapping", 30.0)
        # llama.cpp gives the 27B model, and no other, the scale of its hidden size
        raw["query_pre_attn_scalar"] = hidden // heads if raw["num_hidden_layers"] == 46 else raw["head_dim"]
    if about.architecture == "gemma3":
        raw["final_logit_softcapping"] = get("final_logit_softcapping")
        # as above: of the 27B model alone
        raw["query_pre_attn_scalar"] = hidden // heads if raw["num_hidden_layers"] == 62 else raw["head_dim"]
    if about.architecture == "granite":
        raw |= {
            "attention_multiplier": get("attention.scale") or raw["head_dim"] ** -0.5,
            "embedding_multiplier": get("embedding_scale", 1.0),
            "residual_multiplier": get("residual_scale", 1.0),
            "logits_scaling": get("logit_scale", 1.0),
        }
    if get("expert_count"):
        raw |= {
            "num_experts": get("expert_count"),
            "num_local_experts": get("expert_count"),
            "num_experts_per_tok": get("expert_used_count"),
            "moe_intermediate_size": get("expert_feed_forward_length") or raw["intermediate_size"],
            "norm_topk_prob": True,
        }
    return raw


def _rope_parameters(file: GgufFile, about: _Metadata) -> dict[str, Any] | None:
    get, need = about.get, about.need
    kind, original = get("rope.scaling.type"), get("rope.scaling.original_context_length")
    if "rope_factors_short.weight" in file.entries:
        return {
            "rope_type": "longrope",
            "short_factor": file.floats("rope_factors_short.weight").tolist(),
            "long_factor": file.floats("rope_factors_long.weight").tolist(),
            "attention_factor": get("rope.scaling.attn_factor"),
            "original_max_position_embeddings": original or need("context_length"),
        }
    if "rope_freqs.weight" in file.entries:
        return {"rope_type": "divided", "divisors": file.floats("rope_freqs.weight").tolist()}
    if kind in ("linear", "yarn"):
        return {"rope_type": kind, "factor": need("rope.scaling.factor"), "original_max_position_embeddings": original}
    return None
