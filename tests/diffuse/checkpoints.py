"""Tiny random checkpoints of models that fill masks, in their public form, and what `transformers` makes of them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
import transformers
from models.test_families import BASE, save_tokenizer
from safetensors.torch import save_file
from torch import Tensor

VOCAB = 97
MASK = 90
LLADA_NAMES = {
    "model.embed_tokens": "model.transformer.wte",
    "model.norm": "model.transformer.ln_f",
    "lm_head": "model.transformer.ff_out",
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "q_proj",
    "self_attn.k_proj": "k_proj",
    "self_attn.v_proj": "v_proj",
    "self_attn.o_proj": "attn_out",
    "post_attention_layernorm": "ff_norm",
    "mlp.gate_proj": "ff_proj",
    "mlp.up_proj": "up_proj",
    "mlp.down_proj": "ff_out",
}
FAMILIES: dict[str, tuple[str, dict[str, Any], bool, int]] = {  # the network below, its config, shift, block
    "llada": ("Llama", BASE | {"rms_norm_eps": 1e-5, "rope_parameters": {"rope_theta": 5e5}}, False, 0),
    "Dream": ("Qwen2", BASE | {"rope_parameters": {"rope_theta": 1e6}}, True, 0),
    "sdar": ("Qwen3", BASE | {"head_dim": 16, "rope_parameters": {"rope_theta": 1e6}}, False, 4),
    "Fast_dLLM_Qwen": ("Qwen2", BASE | {"tie_word_embeddings": True}, True, 8),
    "llada2_moe": (
        "Glm4Moe",
        BASE
        | {
            "head_dim": 16, "use_qk_norm": True, "partial_rotary_factor": 0.5, "n_routed_experts": 8, "n_group": 4,
            "topk_group": 2, "num_experts_per_tok": 3, "n_shared_experts": 2, "moe_intermediate_size": 24,
            "routed_scaling_factor": 2.5, "rms_norm_eps": 1e-5,
        },
        False,
        8,
    ),
}  # fmt: skip
LLADA2_NAMES = {
    "model.embed_tokens": "model.word_embeddings",
    "self_attn.o_proj": "attention.dense",
    "self_attn.q_norm": "attention.query_layernorm",
    "self_attn.k_norm": "attention.key_layernorm",
    "mlp.gate.e_score_correction_bias": "mlp.gate.expert_bias",
}


def save(folder: Path, family: str, **changes: Any) -> Any:
    """Writes a checkpoint in the family's public form; returns the network of `transformers` with its weights."""
    kind, sizes, _, block = FAMILIES[family]
    config = getattr(transformers, f"{kind}Config")(**sizes)
    torch.manual_seed(0)
    network = getattr(transformers, f"{kind}ForCausalLM")(config).float().eval()
    with torch.no_grad():
        for weight in network.parameters():
            weight.copy_(1 + torch.randn_like(weight) * 0.2 if weight.dim() == 1 else torch.randn_like(weight) * 0.2)
        for name, buffer in network.named_buffers():
            if name.endswith("correction_bias"):
                buffer.copy_(torch.rand_like(buffer))
    folder.mkdir(parents=True, exist_ok=True)
    if family == "llada":
        weights = {llada_name(name): weight for name, weight in network.state_dict().items()}
        raw: dict[str, Any] = {
            "model_type": "llada", "d_model": 32, "n_heads": 4, "n_kv_heads": 2, "n_layers": 3, "mlp_hidden_size": 48,
            "vocab_size": VOCAB, "embedding_size": VOCAB, "max_sequence_length": 64, "rope_theta": 5e5,
            "rms_norm_eps": 1e-5, "activation_type": "silu", "block_type": "llama", "layer_norm_type": "rms",
            "rope": True, "alibi": False, "include_bias": False, "weight_tying": False, "eos_token_id": 2,
            "mask_token_id": MASK,
        }  # fmt: skip
    else:
        weights = network.state_dict()
        raw = json.loads(config.to_json_string(use_diff=False)) | {"model_type": family, "mask_token_id": MASK}
        raw["rope_theta"] = sizes.get("rope_parameters", {"rope_theta": 1e4})["rope_theta"]
        if family == "llada2_moe":
            weights = llada2_weights(network)
            renamed = {"n_routed_experts": "num_experts", "n_shared_experts": "num_shared_experts"}
            raw |= {theirs: raw.pop(ours) for ours, theirs in renamed.items()}
        if block:
            raw["bd_size" if family.startswith("Fast") else "block_size"] = block
    raw |= changes
    (folder / "config.json").write_text(json.dumps({key: value for key, value in raw.items() if value is not ...}))
    tied = sizes.get("tie_word_embeddings")
    kept = {name: w.clone().contiguous() for name, w in weights.items() if not (tied and name == "lm_head.weight")}
    save_file(kept, folder / "model.safetensors")
    save_tokenizer(folder)
    return network


def llada2_weights(network: Any) -> dict[str, Tensor]:
    """Weights of a GLM-4 mixture, which computes what LLaDA2 does, under LLaDA2's names: q, k and v in one."""
    weights: dict[str, Tensor] = {}
    for name, weight in network.state_dict().items():
        for ours, theirs in LLADA2_NAMES.items():
            name = name.replace(ours, theirs)
        if "q_proj" in name:
            parts = [network.state_dict()[name.replace("q_proj", f"{part}_proj")] for part in "qkv"]
            weights[name.replace("self_attn.q_proj", "attention.query_key_value")] = torch.cat(parts)
        elif name.endswith("experts.gate_up_proj"):
            for e, expert in enumerate(weight):
                for part, rows in zip(("gate", "up"), expert.chunk(2), strict=True):
                    weights[name.replace("gate_up_proj", f"{e}.{part}_proj.weight")] = rows
        elif name.endswith("experts.down_proj"):
            weights |= {name.replace("down_proj", f"{e}.down_proj.weight"): rows for e, rows in enumerate(weight)}
        elif "k_proj" not in name and "v_proj" not in name:
            weights[name] = weight
    return weights


def llada_name(name: str) -> str:
    for ours, theirs in LLADA_NAMES.items():
        name = name.replace(ours, theirs)
    return name.replace("model.layers.", "model.transformer.blocks.")


def logits(network: Any, tokens: list[int], block: int) -> Tensor:
    """Raw logits of `transformers` [length, vocab], everything seen, or the blocks up to the end of a row's own."""
    places = torch.arange(len(tokens))
    seen = places[None] // block <= places[:, None] // block if block else torch.ones(len(tokens), len(tokens)) > 0
    mask = torch.zeros(seen.shape).masked_fill_(~seen, -torch.inf)[None, None]
    with torch.no_grad():
        return network(torch.tensor([tokens]), attention_mask=mask).logits[0]


def aligned(raw: Tensor, shift: bool, mask: int = MASK) -> Tensor:
    """Logits of what stands at each position, the mask's -inf."""
    rows = torch.cat([raw[:1], raw[:-1]]) if shift else raw.clone()
    rows[:, mask] = -torch.inf
    return rows
