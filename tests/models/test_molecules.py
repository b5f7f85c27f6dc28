"""Real weights of post-norm layers with learned positions: molecules, from the wheel `annalog` (MIT)."""

from __future__ import annotations

import io
import json
import subprocess
import sys
import zipfile

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

import outlay

WHEEL, MEMBER = "annalog==1.0.6", "annalog/ckpt_and_vocab/Lev_extended.pt"
SIZE, HEADS, START, END = 256, 8, 2, 3
INPUTS = [[2, 7, 7, 8, 9, 4, 4, 5, 3], [2, 20, 11, 5, 6, 30, 12, 4, 4, 4, 9, 3], [2, 4, 3]]
RENAMED = {
    "tok_embedding": "embed_tokens", "pos_embedding": "embed_positions", "ff_layer_norm": "final_layer_norm",
    "enc_attn_layer_norm": "encoder_attn_layer_norm", "self_attention.fc_": "self_attn.",
    "encoder_attention.fc_": "encoder_attn.", "positionwise_feedforward.fc_1": "fc1",
    "positionwise_feedforward.fc_2": "fc2",
}  # fmt: skip


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    folder = tmp_path_factory.mktemp("annalog")
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--quiet", "--dest", str(folder), WHEEL]
    subprocess.run(command, check=True)
    (wheel,) = folder.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        return torch.load(io.BytesIO(archive.read(MEMBER)), weights_only=True, map_location="cpu")


def renamed(name: str) -> str:
    """The name of a weight in Marian's form, whose layers these are."""
    for old, new in RENAMED.items():
        name = name.replace(old, new)
    for part in "qkv":
        name = name.replace(f"attn.{part}.", f"attn.{part}_proj.")
    name = name.replace("attn.o.", "attn.out_proj.")
    return {"decoder.fc_out.weight": "lm_head.weight", "decoder.fc_out.bias": "final_logits_bias"}.get(
        name, f"model.{name}"
    )


def save(folder, weights):
    save_file({renamed(name): weight.contiguous() for name, weight in weights.items()}, folder / "model.safetensors")
    vocab, positions = (
        weights["encoder.tok_embedding.weight"].shape[0],
        weights["encoder.pos_embedding.weight"].shape[0],
    )
    layers = sum(name.endswith("self_attn_layer_norm.weight") for name in weights) // 2
    config = {
        "model_type": "marian", "vocab_size": vocab, "d_model": SIZE, "max_position_embeddings": positions,
        "encoder_layers": layers, "decoder_layers": layers, "encoder_attention_heads": HEADS,
        "decoder_attention_heads": HEADS, "encoder_ffn_dim": 512, "decoder_ffn_dim": 512, "scale_embedding": True,
        "activation_function": "relu", "share_encoder_decoder_embeddings": False, "decoder_start_token_id": START,
        "eos_token_id": END,
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(config))
    pieces = [f"<{place}>" for place in range(4)] + sorted(pre_tokenizers.ByteLevel.alphabet())[: vocab - 4]
    inner = Tokenizer(models.BPE(vocab={piece: place for place, piece in enumerate(pieces)}, merges=[]))
    inner.decoder = decoders.ByteLevel()
    (folder / "tokenizer.json").write_text(inner.to_str())


def reference(weights, tokens: list[int], count: int) -> list[int]:
    """What the most probable tokens are, each from the whole text anew."""

    def linear(x, name):
        return F.linear(x, weights[f"{name}.weight"], weights[f"{name}.bias"])

    def attention(x, memory, name, *, causal=False):
        q, k, v = (linear(each, f"{name}.fc_{part}") for part, each in (("q", x), ("k", memory), ("v", memory)))
        q, k, v = (each.view(len(each), HEADS, -1).transpose(0, 1) for each in (q, k, v))
        read = F.scaled_dot_product_attention(q, k, v, is_causal=causal)
        return linear(read.transpose(0, 1).reshape(len(x), -1), f"{name}.fc_o")

    def norm(x, name):
        return F.layer_norm(x, (SIZE,), weights[f"{name}.weight"], weights[f"{name}.bias"])

    def stack(name, ids, memory=None):
        x = (
            weights[f"{name}.tok_embedding.weight"][ids] * SIZE**0.5
            + weights[f"{name}.pos_embedding.weight"][: len(ids)]
        )
        for layer in (f"{name}.layers.{i}" for i in range(99)):
            if f"{layer}.ff_layer_norm.weight" not in weights:
                return x
            causal = memory is not None
            x = norm(x + attention(x, x, f"{layer}.self_attention", causal=causal), f"{layer}.self_attn_layer_norm")
            if memory is not None:
                x = norm(x + attention(x, memory, f"{layer}.encoder_attention"), f"{layer}.enc_attn_layer_norm")
            inner = F.relu(linear(x, f"{layer}.positionwise_feedforward.fc_1"))
            x = norm(x + linear(inner, f"{layer}.positionwise_feedforward.fc_2"), f"{layer}.ff_layer_norm")
        raise AssertionError("so many layers")

    memory, text = stack("encoder", tokens), [START]
    for _ in range(count):
        logits = linear(stack("decoder", text, memory), "decoder.fc_out")[-1]
        text.append(int(logits.argmax()))
        if text[-1] == END:
            break
    return text[1:]


@pytest.mark.slow
def test_molecules_are_written_as_the_layers_say_alone_and_together(weights, tmp_path):
    save(tmp_path, weights)
    lm = outlay.load(tmp_path, dtype="float32")
    together = lm.generate_batch(INPUTS, max_tokens=40)
    for tokens, result in zip(INPUTS, together, strict=True):
        wanted = reference(weights, tokens, 40)
        assert result.tokens == wanted
        assert lm.generate(tokens, method="lookup", max_tokens=40).tokens == wanted
