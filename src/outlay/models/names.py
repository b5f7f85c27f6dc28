"""The names of a decoder's parts in checkpoints: our name -> the checkpoint's, for every family and file format.

A name stands for a module, whose tensors are `.weight` and `.bias`; `{i}` is a layer and `{e}` an expert. Families that
store several parts in one tensor name the fused part instead (`qkv`, `gate_up`).
"""

from __future__ import annotations

Names = dict[str, str]

_LLAMA: Names = {
    "embed": "model.embed_tokens",
    "final_norm": "model.norm",
    "lm_head": "lm_head",
    "attn_norm": "model.layers.{i}.input_layernorm",
    "q": "model.layers.{i}.self_attn.q_proj",
    "k": "model.layers.{i}.self_attn.k_proj",
    "v": "model.layers.{i}.self_attn.v_proj",
    "q_norm": "model.layers.{i}.self_attn.q_norm",
    "k_norm": "model.layers.{i}.self_attn.k_norm",
    "out": "model.layers.{i}.self_attn.o_proj",
    "mlp_norm": "model.layers.{i}.post_attention_layernorm",
    "gate": "model.layers.{i}.mlp.gate_proj",
    "up": "model.layers.{i}.mlp.up_proj",
    "down": "model.layers.{i}.mlp.down_proj",
}

HF: dict[str, Names] = {
    "llama": _LLAMA,
    "phi3": _LLAMA | {"qkv": "model.layers.{i}.self_attn.qkv_proj", "gate_up": "model.layers.{i}.mlp.gate_up_proj"},
    "gemma2": _LLAMA
    | {
        "post_attn_norm": "model.layers.{i}.post_attention_layernorm",
        "mlp_norm": "model.layers.{i}.pre_feedforward_layernorm",
        "post_mlp_norm": "model.layers.{i}.post_feedforward_layernorm",
    },
    "olmo2": _LLAMA
    | {
        "post_attn_norm": "model.layers.{i}.post_attention_layernorm",
        "post_mlp_norm": "model.layers.{i}.post_feedforward_layernorm",
    },
    "mixtral": _LLAMA
    | {
        "router": "model.layers.{i}.block_sparse_moe.gate",
        "expert_gate": "model.layers.{i}.block_sparse_moe.experts.{e}.w1",
        "expert_up": "model.layers.{i}.block_sparse_moe.experts.{e}.w3",
        "expert_down": "model.layers.{i}.block_sparse_moe.experts.{e}.w2",
    },
    "qwen3_moe": _LLAMA
    | {
        "router": "model.layers.{i}.mlp.gate",
        "expert_gate": "model.layers.{i}.mlp.experts.{e}.gate_proj",
        "expert_up": "model.layers.{i}.mlp.experts.{e}.up_proj",
        "expert_down": "model.layers.{i}.mlp.experts.{e}.down_proj",
    },
    "gpt2": {
        "embed": "transformer.wte",
        "positions": "transformer.wpe",
        "final_norm": "transformer.ln_f",
        "lm_head": "lm_head",
        "attn_norm": "transformer.h.{i}.ln_1",
        "qkv": "transformer.h.{i}.attn.c_attn",
        "out": "transformer.h.{i}.attn.c_proj",
        "mlp_norm": "transformer.h.{i}.ln_2",
        "up": "transformer.h.{i}.mlp.c_fc",
        "down": "transformer.h.{i}.mlp.c_proj",
    },
    "opt": {
        "embed": "model.decoder.embed_tokens",
        "positions": "model.decoder.embed_positions",
        "project_in": "model.decoder.project_in",
        "project_out": "model.decoder.project_out",
        "final_norm": "model.decoder.final_layer_norm",
        "lm_head": "lm_head",
        "attn_norm": "model.decoder.layers.{i}.self_attn_layer_norm",
        "q": "model.decoder.layers.{i}.self_attn.q_proj",
        "k": "model.decoder.layers.{i}.self_attn.k_proj",
        "v": "model.decoder.layers.{i}.self_attn.v_proj",
        "out": "model.decoder.layers.{i}.self_attn.out_proj",
        "mlp_norm": "model.decoder.layers.{i}.final_layer_norm",
        "up": "model.decoder.layers.{i}.fc1",
        "down": "model.decoder.layers.{i}.fc2",
    },
}

_GGUF: Names = {
    "embed": "token_embd",
    "positions": "position_embd",
    "final_norm": "output_norm",
    "lm_head": "output",
    "attn_norm": "blk.{i}.attn_norm",
    "q": "blk.{i}.attn_q",
    "k": "blk.{i}.attn_k",
    "v": "blk.{i}.attn_v",
    "q_norm": "blk.{i}.attn_q_norm",
    "k_norm": "blk.{i}.attn_k_norm",
    "out": "blk.{i}.attn_output",
    "post_attn_norm": "blk.{i}.post_attention_norm",
    "mlp_norm": "blk.{i}.ffn_norm",
    "gate": "blk.{i}.ffn_gate",
    "up": "blk.{i}.ffn_up",
    "down": "blk.{i}.ffn_down",
    "post_mlp_norm": "blk.{i}.post_ffw_norm",
    "router": "blk.{i}.ffn_gate_inp",
    "experts_gate": "blk.{i}.ffn_gate_exps",
    "experts_up": "blk.{i}.ffn_up_exps",
    "experts_down": "blk.{i}.ffn_down_exps",
}

GGUF: dict[str, Names] = {
    "llama": _GGUF,
    "phi3": _GGUF | {"qkv": "blk.{i}.attn_qkv", "gate_up": "blk.{i}.ffn_up"},
    "gemma2": _GGUF,
    "olmo2": _GGUF,
    "mixtral": _GGUF,
    "qwen3_moe": _GGUF,
    "gpt2": _GGUF | {"qkv": "blk.{i}.attn_qkv"},
}
