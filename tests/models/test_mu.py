"""The Mu architecture gives what its description says, here written out in torch, under the names of its code."""

from __future__ import annotations

import json
import math

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from outlay.budget import Account, Budget, Ledger
from outlay.engine.engine import Engine
from outlay.engine.forward import Forward
from outlay.models.load import load_model

VOCAB, HIDDEN, HEADS, KV_HEADS, DIM, INNER = 50, 32, 4, 2, 8, 40
CONFIG = {
    "model_type": "mu", "n_encoder_layer": 3, "n_decoder_layer": 2, "n_embd": HIDDEN, "qkv_embd": HEADS * DIM,
    "hidden_dim": INNER, "n_head": HEADS, "n_kv_head": KV_HEADS, "block_size": 64, "vocab_size": VOCAB,
    "bos_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 1,
}  # fmt: skip
INPUT, TARGET = [5, 6, 7, 8, 9, 5, 2], [1, 11, 12, 13, 14]


def random_weights() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(4)
    shapes = {"transformer.wte.weight": (VOCAB, HIDDEN), "transformer.ln_e.weight": (HIDDEN,)}
    shapes["transformer.ln_f.weight"] = (HIDDEN,)
    blocks = [(f"transformer.e.{i}", ("attn",), 2) for i in range(3)]
    blocks += [(f"transformer.h.{i}", ("causal_attn", "cross_attn"), 3) for i in range(2)]
    for block, attentions, norms in blocks:
        shapes |= {f"{block}.ln{norm}.weight": (HIDDEN,) for norm in range(1, norms + 1)}
        for attention in attentions:
            for part, (rows, columns) in {
                "q": (HEADS * DIM, HIDDEN), "k": (KV_HEADS * DIM, HIDDEN), "v": (KV_HEADS * DIM, HIDDEN),
                "out": (HIDDEN, HEADS * DIM),
            }.items():  # fmt: skip
                shapes[f"{block}.{attention}.{part}_linear.weight"] = (rows, columns)
                shapes[f"{block}.{attention}.{part}_linear.bias"] = (rows,)
        shapes |= {f"{block}.mlp.fc1.weight": (INNER, HIDDEN), f"{block}.mlp.fc1.bias": (INNER,)}
        shapes |= {f"{block}.mlp.fc2.weight": (HIDDEN, INNER), f"{block}.mlp.fc2.bias": (HIDDEN,)}
    return {name: torch.randn(shape, generator=generator) * 0.3 for name, shape in shapes.items()}


def reference(weights: dict[str, torch.Tensor], interleaved: bool) -> torch.Tensor:
    """Logits [len(TARGET), VOCAB], each of whose heads is written out."""

    def norm(x, name):
        return F.rms_norm(x, (HIDDEN,), weights[f"{name}.weight"], 1e-6)

    def linear(x, name):
        return F.linear(x, weights[f"{name}.weight"], weights[f"{name}.bias"])

    def turned(x, positions):
        angles = positions[:, None] * 10000.0 ** (-torch.arange(0, DIM, 2) / DIM)
        cos, sin = torch.cat((angles.cos(),) * 2, 1), torch.cat((angles.sin(),) * 2, 1)
        first, second = x.chunk(2, -1)
        return x * cos + torch.cat((-second, first), -1) * sin

    def attention(x, memory, name, *, causal=False, rope=True):
        q, k, v = linear(x, f"{name}.q_linear"), linear(memory, f"{name}.k_linear"), linear(memory, f"{name}.v_linear")
        heads = []
        for head in range(HEADS):
            group = head // (HEADS // KV_HEADS) if interleaved else head % KV_HEADS
            own, keys = q[:, head * DIM :][:, :DIM], k[:, group * DIM :][:, :DIM]
            if rope:  # an encoder's positions are centred, which changes nothing
                own, keys = turned(own, torch.arange(len(own)) - 3.0), turned(keys, torch.arange(len(keys)) - 3.0)
            scores = own @ keys.T / math.sqrt(DIM)
            if causal:
                scores = scores.masked_fill(torch.ones_like(scores).triu(1).bool(), -torch.inf)
            heads.append(scores.softmax(-1) @ v[:, group * DIM :][:, :DIM])
        return linear(torch.cat(heads, 1), f"{name}.out_linear")

    def mlp(x, name):
        return linear(F.gelu(linear(x, f"{name}.fc1"), approximate="tanh"), f"{name}.fc2")

    x = weights["transformer.wte.weight"][INPUT]
    for block in (f"transformer.e.{i}" for i in range(3)):
        normed = norm(x, f"{block}.ln1")
        x = x + attention(normed, normed, f"{block}.attn")
        x = x + mlp(norm(x, f"{block}.ln2"), f"{block}.mlp")
    memory, y = norm(x, "transformer.ln_e"), weights["transformer.wte.weight"][TARGET]
    for block in (f"transformer.h.{i}" for i in range(2)):
        normed = norm(y, f"{block}.ln1")
        y = y + attention(normed, normed, f"{block}.causal_attn", causal=True)
        y = y + attention(norm(y, f"{block}.ln2"), memory, f"{block}.cross_attn", rope=False)
        y = y + mlp(norm(y, f"{block}.ln3"), f"{block}.mlp")
    return norm(y, "transformer.ln_f") @ weights["transformer.wte.weight"].T


@pytest.mark.parametrize("interleaved", [False, True])
def test_the_logits_are_those_of_its_description_in_both_orders_of_heads(tmp_path, interleaved):
    weights = random_weights()
    save_file(weights, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps(CONFIG | {"is_interleaved": interleaved}))
    pieces = [f"<{place}>" for place in range(3)] + sorted(pre_tokenizers.ByteLevel.alphabet())[: VOCAB - 3]
    inner = Tokenizer(models.BPE(vocab={piece: place for place, piece in enumerate(pieces)}, merges=[]))
    inner.decoder = decoders.ByteLevel()
    (tmp_path / "tokenizer.json").write_text(inner.to_str())
    model = load_model(tmp_path, dtype="float32")
    worker = Engine().worker(model)
    tree, _ = worker.plant(TARGET, 0, memory=worker.open_memory(INPUT))
    forward = Forward(Account(Budget(), Ledger()), worker, tuple(tree.tip.path()), [tree])
    worker.advance([forward])
    assert (forward.result - reference(weights, interleaved)).abs().max() < 1e-4
