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
    "llada2_moe": {
        "embed": "model.word_embeddings",
        "final_norm": "model.norm",
        "lm_head": "lm_head",
        "attn_norm": "model.layers.{i}.input_layernorm",
        "qkv": "model.layers.{i}.attention.query_key_value",
        "q_norm": "model.layers.{i}.attention.query_layernorm",
        "k_norm": "model.layers.{i}.attention.key_layernorm",
        "out": "model.layers.{i}.attention.dense",
        "mlp_norm": "model.layers.{i}.post_attention_layernorm",
        "gate": "model.layers.{i}.mlp.gate_proj",
        "up": "model.layers.{i}.mlp.up_proj",
        "down": "model.layers.{i}.mlp.down_proj",
        "router": "model.layers.{i}.mlp.gate",
        "expert_gate": "model.layers.{i}.mlp.experts.{e}.gate_proj",
        "expert_up": "model.layers.{i}.mlp.experts.{e}.up_proj",
        "expert_down": "model.layers.{i}.mlp.experts.{e}.down_proj",
        "shared_gate": "model.layers.{i}.mlp.shared_experts.gate_proj",
        "shared_up": "model.layers.{i}.mlp.shared_experts.up_proj",
        "shared_down": "model.layers.{i}.mlp.shared_experts.down_proj",
    },
    "llada": {
        "embed": "model.transformer.wte",
        "final_norm": "model.transformer.ln_f",
        "lm_head": "model.transformer.ff_out",
        "attn_norm": "model.transformer.blocks.{i}.attn_norm",
        "q": "model.transformer.blocks.{i}.q_proj",
        "k": "model.transformer.blocks.{i}.k_proj",
        "v": "model.transformer.blocks.{i}.v_proj",
        "out": "model.transformer.blocks.{i}.attn_out",
        "mlp_norm": "model.transformer.blocks.{i}.ff_norm",
        "gate": "model.transformer.blocks.{i}.ff_proj",
        "up": "model.transformer.blocks.{i}.up_proj",
        "down": "model.transformer.blocks.{i}.ff_out",
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
    "crate": {
        "embed": "token_embedding",
        "positions": "position_embedding",
        "final_norm": "norm",
        "lm_head": "lm_head",
        "attn_norm": "transformer.layers.{i}.0.norm",
        "qkv": "transformer.layers.{i}.0.fn.qkv",
        "out": "transformer.layers.{i}.0.fn.to_out.0",
        "mlp_norm": "transformer.layers.{i}.1.norm",
        "dictionary": "transformer.layers.{i}.1.fn",
    },
}


def _t5(stack: str, mlp: int) -> Names:
    layer = f"{stack}.block.{{i}}.layer"
    return {
        "embed": "shared",
        "final_norm": f"{stack}.final_layer_norm",
        "lm_head": "lm_head",
        "relative": f"{stack}.block.0.layer.0.SelfAttention.relative_attention_bias",
        "attn_norm": f"{layer}.0.layer_norm",
        "q": f"{layer}.0.SelfAttention.q",
        "k": f"{layer}.0.SelfAttention.k",
        "v": f"{layer}.0.SelfAttention.v",
        "out": f"{layer}.0.SelfAttention.o",
        "cross_norm": f"{layer}.1.layer_norm",
        "cross_q": f"{layer}.1.EncDecAttention.q",
        "cross_k": f"{layer}.1.EncDecAttention.k",
        "cross_v": f"{layer}.1.EncDecAttention.v",
        "cross_out": f"{layer}.1.EncDecAttention.o",
        "mlp_norm": f"{layer}.{mlp}.layer_norm",
        "gate": f"{layer}.{mlp}.DenseReluDense.wi_0",
        "up": f"{layer}.{mlp}.DenseReluDense.wi_1",
        "down": f"{layer}.{mlp}.DenseReluDense.wo",
    }


def _bart(stack: str) -> Names:
    layer = f"model.{stack}.layers.{{i}}"
    return {
        "embed": "model.shared",
        "positions": f"model.{stack}.embed_positions",
        "embed_norm": f"model.{stack}.layernorm_embedding",
        "logit_bias": "final_logits_bias",
        "attn_norm": f"{layer}.self_attn_layer_norm",
        "q": f"{layer}.self_attn.q_proj",
        "k": f"{layer}.self_attn.k_proj",
        "v": f"{layer}.self_attn.v_proj",
        "out": f"{layer}.self_attn.out_proj",
        "cross_norm": f"{layer}.encoder_attn_layer_norm",
        "cross_q": f"{layer}.encoder_attn.q_proj",
        "cross_k": f"{layer}.encoder_attn.k_proj",
        "cross_v": f"{layer}.encoder_attn.v_proj",
        "cross_out": f"{layer}.encoder_attn.out_proj",
        "mlp_norm": f"{layer}.final_layer_norm",
        "up": f"{layer}.fc1",
        "down": f"{layer}.fc2",
    }


def _t5gemma(stack: str) -> Names:
    layer = f"model.{stack}.layers.{{i}}"
    return {
        "embed": f"model.{stack}.embed_tokens",
        "final_norm": f"model.{stack}.norm",
        "lm_head": "lm_head.out_proj",
        "attn_norm": f"{layer}.pre_self_attn_layernorm",
        "q": f"{layer}.self_attn.q_proj",
        "k": f"{layer}.self_attn.k_proj",
        "v": f"{layer}.self_attn.v_proj",
        "out": f"{layer}.self_attn.o_proj",
        "post_attn_norm": f"{layer}.post_self_attn_layernorm",
        "cross_norm": f"{layer}.pre_cross_attn_layernorm",
        "cross_q": f"{layer}.cross_attn.q_proj",
        "cross_k": f"{layer}.cross_attn.k_proj",
        "cross_v": f"{layer}.cross_attn.v_proj",
        "cross_out": f"{layer}.cross_attn.o_proj",
        "post_cross_norm": f"{layer}.post_cross_attn_layernorm",
        "mlp_norm": f"{layer}.pre_feedforward_layernorm",
        "gate": f"{layer}.mlp.gate_proj",
        "up": f"{layer}.mlp.up_proj",
        "down": f"{layer}.mlp.down_proj",
        "post_mlp_norm": f"{layer}.post_feedforward_layernorm",
    }


def _mu(stack: str, layers: str, attention: str, norms: int) -> Names:
    layer = f"transformer.{layers}.{{i}}"
    return {
        "embed": "transformer.wte",
        "final_norm": f"transformer.ln_{stack}",
        "attn_norm": f"{layer}.ln1",
        "q": f"{layer}.{attention}.q_linear",
        "k": f"{layer}.{attention}.k_linear",
        "v": f"{layer}.{attention}.v_linear",
        "out": f"{layer}.{attention}.out_linear",
        "cross_norm": f"{layer}.ln2",
        "cross_q": f"{layer}.cross_attn.q_linear",
        "cross_k": f"{layer}.cross_attn.k_linear",
        "cross_v": f"{layer}.cross_attn.v_linear",
        "cross_out": f"{layer}.cross_attn.out_linear",
        "mlp_norm": f"{layer}.ln{norms}",
        "up": f"{layer}.mlp.fc1",
        "down": f"{layer}.mlp.fc2",
    }


HF["mu-encoder"], HF["mu-decoder"] = _mu("e", "e", "attn", 2), _mu("f", "h", "causal_attn", 3)


def _moonshine(stack: str, mlp_norm: str) -> Names:
    layer = f"model.{stack}.layers.{{i}}"
    return {
        "embed": "model.decoder.embed_tokens",
        "final_norm": f"model.{stack}.{'layer_norm' if stack == 'encoder' else 'norm'}",
        "lm_head": "proj_out",
        "attn_norm": f"{layer}.input_layernorm",
        "q": f"{layer}.self_attn.q_proj",
        "k": f"{layer}.self_attn.k_proj",
        "v": f"{layer}.self_attn.v_proj",
        "out": f"{layer}.self_attn.o_proj",
        "cross_norm": f"{layer}.post_attention_layernorm",
        "cross_q": f"{layer}.encoder_attn.q_proj",
        "cross_k": f"{layer}.encoder_attn.k_proj",
        "cross_v": f"{layer}.encoder_attn.v_proj",
        "cross_out": f"{layer}.encoder_attn.o_proj",
        "mlp_norm": f"{layer}.{mlp_norm}",
        "up": f"{layer}.mlp.fc1",
        "gate_up": f"{layer}.mlp.fc1",
        "down": f"{layer}.mlp.fc2",
    }


HF["moonshine-encoder"] = _moonshine("encoder", "post_attention_layernorm")
HF["moonshine-decoder"] = _moonshine("decoder", "final_layernorm")

HF["canary-encoder"] = {"embed": "model.decoder.embed_tokens"}
HF["canary-decoder"] = HF["moonshine-decoder"] | {
    "positions": "model.decoder.pos_emb",
    "embed_norm": "model.decoder.embedding_layernorm",
    "logit_bias": "proj_out.bias",
}

for _stack, _mlp in (("encoder", 1), ("decoder", 2)):
    HF[f"t5-{_stack}"] = _t5(_stack, _mlp)
    HF[f"t5-plain-{_stack}"] = HF[f"t5-{_stack}"] | {"up": f"{_stack}.block.{{i}}.layer.{_mlp}.DenseReluDense.wi"}
    HF[f"bart-{_stack}"] = _bart(_stack)
    HF[f"marian-{_stack}"] = _bart(_stack)
    HF[f"marian-apart-{_stack}"] = _bart(_stack) | {"embed": f"model.{_stack}.embed_tokens", "lm_head": "lm_head"}
    HF[f"t5gemma-{_stack}"] = _t5gemma(_stack)
    HF[f"whisper-{_stack}"] = _bart(_stack) | {
        "embed": "model.decoder.embed_tokens",
        "final_norm": f"model.{_stack}.layer_norm",
        "lm_head": "proj_out",
    }
    HF[f"mbart-{_stack}"] = _bart(_stack) | {"final_norm": f"model.{_stack}.layer_norm"}

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
    "llada": _GGUF,
    "gpt2": _GGUF | {"qkv": "blk.{i}.attn_qkv"},
}
