"""Random networks of equal size in the hub's layout: Mu, and a decoder-only one with the same blocks."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from outlay.testing import tiny_model
from outlay.train.distill import Mu, MuConfig

END = 0


def write_mu(folder: Path, config: MuConfig) -> int:
    """Writes a random Mu; returns its number of parameters."""
    torch.manual_seed(0)
    weights = dict(Mu(config).named_parameters())
    marks = {"bos_token_id": END, "eos_token_id": END, "decoder_start_token_id": END, "torch_dtype": "float32"}
    return _write(folder, config.as_json() | marks, weights)


def write_decoder_only(folder: Path, layers: int, hidden: int, heads: int, vocab: int, positions: int) -> int:
    """Writes a random GPT-2, whose layers are those of a Mu encoder but for the norms; returns its parameters."""
    draw = torch.Generator().manual_seed(0)

    def weight(*shape: int) -> Tensor:
        return torch.randn(shape, generator=draw) * 0.02

    weights = {
        "transformer.wte.weight": weight(vocab, hidden), "transformer.wpe.weight": weight(positions, hidden),
        "transformer.ln_f.weight": torch.ones(hidden), "transformer.ln_f.bias": torch.zeros(hidden),
    }  # fmt: skip
    for i in range(layers):
        for part, rows, columns in (
            ("attn.c_attn", hidden, 3 * hidden), ("attn.c_proj", hidden, hidden),
            ("mlp.c_fc", hidden, 4 * hidden), ("mlp.c_proj", 4 * hidden, hidden),
        ):  # fmt: skip
            weights[f"transformer.h.{i}.{part}.weight"] = weight(rows, columns)
            weights[f"transformer.h.{i}.{part}.bias"] = torch.zeros(columns)
        for norm in ("ln_1", "ln_2"):
            weights[f"transformer.h.{i}.{norm}.weight"] = torch.ones(hidden)
            weights[f"transformer.h.{i}.{norm}.bias"] = torch.zeros(hidden)
    config = {
        "architectures": ["GPT2LMHeadModel"], "model_type": "gpt2", "vocab_size": vocab, "n_embd": hidden,
        "n_layer": layers, "n_head": heads, "n_positions": positions, "n_ctx": positions,
        "layer_norm_epsilon": 1e-5, "activation_function": "gelu_new", "eos_token_id": END, "bos_token_id": END,
    }  # fmt: skip
    return _write(folder, config, weights)


def _write(folder: Path, config: dict[str, object], weights: Mapping[str, Tensor]) -> int:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    tiny_model().tokenizer.inner.save(str(folder / "tokenizer.json"))
    save_file({name: tensor.detach().contiguous() for name, tensor in weights.items()}, folder / "model.safetensors")
    return sum(tensor.numel() for tensor in weights.values())
