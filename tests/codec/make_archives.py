"""Writes the archives that every later version must open, or refuse by its arithmetic number, and the model they need.

    PYTHONPATH=src python tests/codec/make_archives.py

Run it anew only when `kernels.ARITHMETIC` changes, or for a kind of file that is new.
"""

from __future__ import annotations

import json
import random
import sys
from pathlib import Path

import torch
from safetensors.torch import save_file
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

ARCHIVES = Path(__file__).parent / "archives"
HIDDEN, INNER, VOCAB, KV, LAYERS = 32, 64, 253, 16, 2
MISSING = b"\x04\x05\xc0\xff"  # bytes that the tokenizer has no token for
TEXT = (
    "The quick brown fox. \u00c9t\u00e9, \u6f22\u5b57 <end> a\x04b\n".encode()
    + bytes([255, 0, 128])
    + b"the end, " * 12
)


def main() -> None:
    """Makes the model and the archives."""
    write_model(ARCHIVES / "model")
    sys.path.insert(0, str(Path(__file__).parents[1]))
    from codec.reading import forced

    from outlay.models.load import load_model

    for dtype in ("bfloat16", "int4"):
        model = load_model(ARCHIVES / "model", dtype=dtype)
        for kv_dtype in ("int8", "float32"):
            (ARCHIVES / f"text-{dtype}-{kv_dtype}.olz").write_bytes(forced(TEXT, model, block=50, kv_dtype=kv_dtype))
    from outlay import codec

    (ARCHIVES / "xz.olz").write_bytes(codec.compress(TEXT))
    write_picture(ARCHIVES / "picture.olz")
    write_patches(ARCHIVES)


def write_patches(folder: Path) -> None:
    """Writes a small grey picture through a coarse circuit of patches."""
    import numpy as np

    from outlay.codec.circuit.em import Recipe, fit
    from outlay.codec.circuit.patches import PatchCoder, samples_of

    down, along = np.mgrid[:64, :64]
    pixels = ((down * 3 + along * along) % 251).astype(np.uint8)[..., None]
    circuit = fit(samples_of(pixels, 4), 256, Recipe(2, epochs=1, batch=100)).rounded()
    circuit.save(folder / "patches.safetensors", patches=1)
    data = b"P5\n24 11\n255\n" + pixels[:11, :24].tobytes()
    ((_, written),) = PatchCoder(circuit, "patches").write(iter([(0, data, 1 << 40)]), lambda amount: None)
    (folder / "patches.olz").write_bytes(written.container.pack())


def write_picture(path: Path) -> None:
    """Writes a part of a photograph through the codec of the tests."""
    from codec.make_tiny_codec import FOLDER, photos_of_tests

    from outlay.codec.lic import ISCS, PictureCoder, load

    coder = PictureCoder(load(FOLDER).reordered(ISCS("prior", slices=4)), "tiny")
    path.write_bytes(coder.compress(photos_of_tests()[1][40:101, 100:183].contiguous()).container.pack())


def write_model(folder: Path) -> None:
    """Writes a random Llama over bytes whose weights are multiples of 2^-7, so that they are the same everywhere."""
    draw = random.Random(7)

    def weight(*shape: int) -> torch.Tensor:
        count = torch.Size(shape).numel()
        values = torch.tensor([draw.randrange(-64, 65) for _ in range(count)], dtype=torch.float32) / 128
        return (values.view(shape) * (2 if len(shape) == 2 and shape[0] == VOCAB else 1)).bfloat16()

    folder.mkdir(parents=True, exist_ok=True)
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    lost = {piece for piece in alphabet if ord_of(piece) in MISSING}
    kept = [piece for piece in alphabet if piece not in lost]
    tokenizer = Tokenizer(models.BPE(vocab={piece: token for token, piece in enumerate(kept)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken("<end>", special=True)])
    tokenizer.save(str(folder / "tokenizer.json"))
    embed = weight(VOCAB, HIDDEN)
    silent = [token for token, piece in enumerate(kept) if not 32 <= ord_of(piece) < 127]
    embed[[*silent, VOCAB - 1]] = 0  # it writes ASCII
    ones = torch.ones(HIDDEN, dtype=torch.bfloat16)
    weights = {"model.embed_tokens.weight": embed, "model.norm.weight": 6 * ones}
    for layer in range(LAYERS):
        attention = {
            "q_proj": (HIDDEN, HIDDEN),
            "k_proj": (KV, HIDDEN),
            "v_proj": (KV, HIDDEN),
            "o_proj": (HIDDEN, HIDDEN),
        }
        mlp = {"gate_proj": (INNER, HIDDEN), "up_proj": (INNER, HIDDEN), "down_proj": (HIDDEN, INNER)}
        parts = {f"self_attn.{name}": shape for name, shape in attention.items()}
        parts |= {f"mlp.{name}": shape for name, shape in mlp.items()}
        weights |= {f"model.layers.{layer}.{name}.weight": weight(*shape) for name, shape in parts.items()}
        norms = ("input_layernorm", "post_attention_layernorm")
        weights |= {f"model.layers.{layer}.{name}.weight": ones.clone() for name in norms}
    save_file(weights, folder / "model.safetensors")
    config = {"model_type": "llama", "vocab_size": VOCAB, "hidden_size": HIDDEN, "intermediate_size": INNER,
              "num_hidden_layers": LAYERS, "num_attention_heads": 4, "num_key_value_heads": 2,
              "max_position_embeddings": 512, "eos_token_id": VOCAB - 1, "tie_word_embeddings": True}  # fmt: skip
    (folder / "config.json").write_text(json.dumps(config))


def ord_of(piece: str) -> int:
    """The byte that a letter of GPT-2's alphabet stands for."""
    from outlay.models.tokenizer import _BYTES

    return _BYTES[piece]


if __name__ == "__main__":
    main()
