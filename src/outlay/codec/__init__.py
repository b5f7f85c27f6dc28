"""Data made smaller with a model: files that any machine opens again.

from outlay import codec

packed = codec.compress(data, "smollm2-135m")
assert codec.decompress(packed, "smollm2-135m") == data
codec.bits(data, "smollm2-135m")  # without coding: a way to compare language models
"""

from __future__ import annotations

from contextlib import closing
from pathlib import Path
from typing import Any

from outlay.codec.circuit.arrays import CircuitCoder
from outlay.codec.circuit.latent_tree import LatentTree
from outlay.codec.coder import KnownSymbols, SequentialModel, decode, encode, ideal_bits
from outlay.codec.container import Container, CorruptStream, unpack
from outlay.codec.files import MAX_SIZE, compress_all, decompress_all, describe, open_text, whole
from outlay.codec.symbols import symbols_of
from outlay.codec.text import cut
from outlay.engine.submission import DraftSource
from outlay.errors import UsageError
from outlay.models.load import Model, load_model

__all__ = [
    "Container",
    "CorruptStream",
    "KnownSymbols",
    "SequentialModel",
    "bits",
    "compress",
    "decode",
    "decompress",
    "encode",
    "ideal_bits",
    "inspect",
    "unpack",
]


def compress(data: bytes, model: str | Path | Any = None, *, block: int | None = None, kv_dtype: str = "int8") -> bytes:
    """Compresses bytes with a model, or with xz where that does better.

    Args:
        data: Any bytes.
        model: A model, a loaded `LM`, or what names one; a circuit, for the bytes of a .npy file; None: xz alone.
        block: Tokens of a block, at most (1,024).
        kv_dtype: How keys and values are held: "int8", "bfloat16" or "float32".

    Returns:
        A file's content, which any machine decompresses with the same model.

    Raises:
        UsageError: For a model that does not run in our kernels whole.
    """
    if model is None:
        ((_, found),) = compress_all([(0, data)])
        return found.data
    circuit = _circuit(model)
    coder = circuit or open_text(_model(model), kv_dtype=kv_dtype, block=block)
    with closing(coder):
        ((_, found),) = compress_all([(0, data)], [coder])
    return found.data


def decompress(
    packed: bytes,
    model: str | Path | Any = None,
    *,
    draft: DraftSource | None = None,
    lanes: int | None = None,
    max_size: int = MAX_SIZE,
) -> bytes:
    """Returns the bytes that were compressed.

    Args:
        packed: A file's content.
        model: The model that it was compressed with; none is fetched because the file names it. None: xz alone.
        draft: What runs ahead of the reader; the bytes are the same with any and with none.
        lanes: Blocks that are decoded at a time.
        max_size: Bytes that it may decode to.

    Raises:
        CorruptStream: Where the file is damaged.
        UsageError: Where the model is not the file's, gives other probabilities here, or the original is too large.
    """
    container = unpack(packed)
    if container.kind == "xz" or model is None:
        ((_, _, decoded),) = decompress_all([(0, container)], max_size=max_size)
        return whole(container, decoded)
    coder = _circuit(model) or open_text(_model(model), container, lanes=lanes, draft=draft)
    with closing(coder):
        ((_, _, decoded),) = decompress_all([(0, container)], coder, max_size=max_size)
    return whole(container, decoded)


def inspect(packed: bytes) -> dict[str, Any]:
    """Returns what a compressed file says of itself. Raises `CorruptStream` where its header is damaged."""
    return describe(unpack(packed))


def bits(data: bytes, model: str | Path | Any, *, block: int | None = None, kv_dtype: str = "int8") -> float:
    """Returns the bits of some bytes under a language model's own probabilities, without coding them.

    Divided by the bytes, it compares language models whatever their tokens are.

    Args:
        data: Any bytes.
        model: A model, a loaded `LM`, or what names one.
        block: Tokens that are read with one context, at most (1,024).
        kv_dtype: How keys and values are held.
    """
    coder = open_text(_model(model), kv_dtype=kv_dtype, block=block)
    with coder.codec as codec:
        symbols = symbols_of(data, codec.model.tokenizer, codec.vocab)
        blocks = cut(symbols, codec.block) if symbols else iter(())
        return sum(method.coded.ideal_bits for method, _ in codec.write(blocks))


def _circuit(model: Any) -> CircuitCoder | None:
    """Returns the coder of a circuit, or of the file of one; None for other models."""
    if isinstance(model, str | Path) and str(model).endswith(".safetensors"):
        model = LatentTree.load(Path(model))
    return CircuitCoder(model, "circuit") if isinstance(model, LatentTree) else None


def _model(model: Any) -> Model:
    if isinstance(model, str | Path):
        return load_model(model)
    found = getattr(model, "model", model)
    if not isinstance(found, Model):
        raise UsageError(f"expected a model, or the name of one, not {model!r}")
    return found
