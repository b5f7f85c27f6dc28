"""Makes a folder in the hub's layout of the files that the wheel `moonshine-voice` holds.

The names of their nodes are the paths of the modules, so weights are found by the nodes that multiply with them. A
matrix of 8 bits with one scale becomes the floats that it stands for, exactly.
"""

from __future__ import annotations

import json
from pathlib import Path

import tokenizers
import torch
from safetensors.torch import save_file
from tokenizers import decoders, models
from torch import Tensor

from outlay.errors import FailureError
from outlay.models.ort_file import OrtFile

ENCODER, DECODER, PIECES = "encoder_model.ort", "decoder_model_merged.ort", "tokenizer.bin"
BYTES_FROM = 3  # the first of the 256 tokens that stand for bytes
PRODUCTS = ("MatMulInteger", "MatMulIntegerToFloat", "DynamicQuantizeMatMul")
SPECIAL = ("<unk>", "<s>", "</s>")


def convert_moonshine(source: Path, folder: Path) -> None:
    """Writes config, tokenizer and weights of Moonshine.

    Args:
        source: The folder that holds `ENCODER`, `DECODER` and `PIECES`.
        folder: The folder that is made.

    Raises:
        FailureError: Where the files are not as expected.
    """
    weights = _weights(OrtFile(source / ENCODER), "model.encoder.") | _weights(OrtFile(source / DECODER), "")
    pieces = read_pieces((source / PIECES).read_bytes())
    embed, head = weights["model.decoder.embed_tokens.weight"], weights["proj_out.weight"]
    if len(pieces) != len(embed):
        raise FailureError(f"the tokenizer has {len(pieces)} pieces, but the decoder {len(embed)} tokens")
    tied = torch.equal(embed, head)
    if tied:
        del weights["proj_out.weight"]
    size, layers = embed.shape[1], {stack: _layers(weights, stack) for stack in ("encoder", "decoder")}
    config = {
        "architectures": ["MoonshineForConditionalGeneration"],
        "model_type": "moonshine",
        "vocab_size": len(embed),
        "hidden_size": size,
        "intermediate_size": weights["model.encoder.layers.0.mlp.fc1.bias"].shape[0],
        "encoder_num_hidden_layers": layers["encoder"],
        "decoder_num_hidden_layers": layers["decoder"],
        "encoder_num_attention_heads": 8,
        "decoder_num_attention_heads": 8,
        "max_position_embeddings": 512,
        "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.9},
        "encoder_hidden_act": "gelu",
        "decoder_hidden_act": "silu",
        "attention_bias": False,
        "decoder_start_token_id": 1,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "is_encoder_decoder": True,
        "tie_word_embeddings": tied,
    }
    folder.mkdir(parents=True)
    generation = {key: config[key] for key in ("decoder_start_token_id", "bos_token_id", "eos_token_id")}
    named = {"bos_token": SPECIAL[1], "eos_token": SPECIAL[2], "unk_token": SPECIAL[0]}
    for name, content in (("config", config), ("generation_config", generation), ("tokenizer_config", named)):
        (folder / f"{name}.json").write_text(json.dumps(content, indent=2))
    (folder / "tokenizer.json").write_text(_tokenizer(pieces).to_str(), encoding="utf-8")
    save_file(
        {name: weight.contiguous() for name, weight in weights.items()}, folder / "model.safetensors", {"format": "pt"}
    )


def read_pieces(data: bytes) -> list[bytes]:
    """Returns the pieces of a tokenizer, each stored after its length.

    Args:
        data: The file: a length takes one byte below 128, else two, the second of which counts 128s; 0 is no piece.
    """
    pieces, at = [], 0
    while at < len(data):
        length = data[at]
        at += 1
        if length >= 128:
            length += 128 * data[at] - 128
            at += 1
        pieces.append(data[at : at + length])
        at += length
    return pieces


def _tokenizer(pieces: list[bytes]) -> tokenizers.Tokenizer:
    """Returns a tokenizer of these pieces; the file says nothing of merges, which only reading a text would take."""
    names = [f"<0x{token - BYTES_FROM:02X}>" if BYTES_FROM <= token < BYTES_FROM + 256 else piece.decode()
             for token, piece in enumerate(pieces)]  # fmt: skip
    vocab: dict[str, int] = {}
    for token, name in enumerate(names):
        vocab[name if name and name not in vocab else f"<unused{token}>"] = token
    inner = tokenizers.Tokenizer(models.BPE(vocab=vocab, merges=[], unk_token=SPECIAL[0], byte_fallback=True))
    inner.add_special_tokens([tokenizers.AddedToken(name, special=True) for name in SPECIAL])
    inner.decoder = decoders.Sequence(
        [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return inner


def _weights(file: OrtFile, prefix: str) -> dict[str, Tensor]:
    """Returns the weights of a file under the names of `transformers`, whose modules lie below `prefix`."""
    found: dict[str, Tensor] = {}
    for name, tensor in file.tensors.items():
        plain = name.removesuffix("_merged_0").removesuffix("_add_tensor")
        if plain.endswith((".weight", ".bias")):
            found[prefix + plain] = tensor
        elif name.endswith("_quantized") and ".weight" in name:
            base = name.removesuffix("_quantized")
            found[prefix + base.removesuffix("_merged_0")] = _dequantized(file, base)
    for node in file.nodes:
        path = prefix + node.name.strip("/").replace("/", ".")
        if node.kind in PRODUCTS:
            base = next(name for name in node.inputs if name.endswith("_quantized") and name in file.tensors)
            module = path[: path.index(".MatMul")]
            found[f"{module}.weight"] = _dequantized(file, base.removesuffix("_quantized")).T
        elif node.name in ("/groupnorm/Mul", "/groupnorm/Add"):
            kind = "weight" if node.kind == "Mul" else "bias"
            found[f"{prefix}groupnorm.{kind}"] = file.tensors[node.inputs[1]].flatten()
    return found


def _dequantized(file: OrtFile, base: str) -> Tensor:
    values, scale, zero = (file.tensors[f"{base}_{part}"] for part in ("quantized", "scale", "zero_point"))
    return (values.float() - zero.float()) * scale


def _layers(weights: dict[str, Tensor], stack: str) -> int:
    begin = f"model.{stack}.layers."
    return 1 + max(int(name.removeprefix(begin).partition(".")[0]) for name in weights if name.startswith(begin))
