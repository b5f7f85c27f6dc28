"""A GGUF file's metadata in the words of a `config.json`, so that both kinds of model are described in one place."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from outlay.errors import UsageError
from outlay.models.gguf_file import GgufFile

Getter = Callable[..., Any]


def hf_config(file: GgufFile) -> dict[str, Any]:
    """Returns the `config.json` that a GGUF file's metadata stands for."""
    metadata, names = file.metadata, file.entries
    arch = str(metadata.get("general.architecture"))

    def get(key: str, default: Any = None) -> Any:
        return metadata.get(f"{arch}.{key}", default)

    def need(key: str) -> Any:
        if f"{arch}.{key}" not in metadata:
            raise UsageError(f"this GGUF file's metadata lacks {arch}.{key}")
        return metadata[f"{arch}.{key}"]

    model_type = {"qwen3moe": "qwen3_moe"}.get(arch, arch)
    if arch == "llama" and get("expert_count"):
        model_type = "mixtral"
    embed = names.get("token_embd.weight")
    if embed is None:
        raise UsageError("this GGUF file has no token embeddings, so it is not a language model")
    heads, hidden = need("attention.head_count"), need("embedding_length")
    kv_heads = get("attention.head_count_kv", heads)
    if isinstance(heads, list) or isinstance(kv_heads, list):
        raise UsageError("this GGUF file has layers with different numbers of heads, which outlay does not run")
    tied = "output.weight" not in names
    eos = [metadata[key] for key in ("tokenizer.ggml.eos_token_id", "tokenizer.ggml.eot_token_id") if key in metadata]
    common = {
        "model_type": model_type,
        "vocab_size": embed.shape[0],
        "tie_word_embeddings": tied,
        "bos_token_id": metadata.get("tokenizer.ggml.bos_token_id"),
        "eos_token_id": eos,
    }
    if arch == "gpt2":
        return common | {
            "n_embd": hidden,
            "n_head": heads,
            "n_layer": need("block_count"),
            "n_inner": get("feed_forward_length"),
            "n_positions": need("context_length"),
            "layer_norm_epsilon": get("attention.layer_norm_epsilon", 1e-5),
        }
    raw = common | {
        "hidden_size": hidden,
        "num_hidden_layers": need("block_count"),
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "head_dim": get("attention.key_length") or hidden // heads,
        "intermediate_size": get("feed_forward_length") or get("expert_feed_forward_length"),
        "max_position_embeddings": need("context_length"),
        "rms_norm_eps": get("attention.layer_norm_rms_epsilon", 1e-6),
        "rope_theta": get("rope.freq_base", 10000.0),
        "sliding_window": get("attention.sliding_window"),
        "attention_bias": "blk.0.attn_q.bias" in names,
        "rope_parameters": _rope_parameters(file, get, need),
    }
    if get("rope.dimension_count"):
        raw["partial_rotary_factor"] = get("rope.dimension_count") / raw["head_dim"]
    if arch == "gemma2":
        raw["attn_logit_softcapping"] = get("attn_logit_softcapping", 50.0)
        raw["final_logit_softcapping"] = get("final_logit_softcapping", 30.0)
        # llama.cpp gives the 27B model, and no other, the scale of its hidden size
        raw["query_pre_attn_scalar"] = hidden // heads if raw["num_hidden_layers"] == 46 else raw["head_dim"]
    if get("expert_count"):
        raw |= {
            "num_experts": get("expert_count"),
            "num_local_experts": get("expert_count"),
            "num_experts_per_tok": get("expert_used_count"),
            "moe_intermediate_size": get("expert_feed_forward_length") or raw["intermediate_size"],
            "norm_topk_prob": True,
        }
    return raw


def _rope_parameters(file: GgufFile, get: Getter, need: Getter) -> dict[str, Any] | None:
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
