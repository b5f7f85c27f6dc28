"""Numbers of a few bits in one stream for each row, the lowest bits first."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

_BITS_TOGETHER = 1 << 25  # of a chunk of rows, each a byte while it is packed


def pack_bits(values: Tensor, bits: int) -> Tensor:
    """Packs numbers, each in `bits` bits, the lowest first, one stream for each row.

    Args:
        values: int64 [rows, n], each from 0 to 2^bits - 1.
        bits: 1 to 63.

    Returns:
        uint8 [rows, ceil(n * bits / 8)], the last byte filled up with zeros.
    """
    rows, n = values.shape
    if bits in (8, 16):
        kind = np.dtype(np.uint8 if bits == 8 else "<u2")
        return torch.from_numpy(values.numpy().astype(kind).view(np.uint8))
    shifts = np.arange(bits, dtype=np.int64)
    packed = np.empty((rows, -(-n * bits // 8)), np.uint8)
    step = max(1, _BITS_TOGETHER // max(1, n * bits))
    for begin in range(0, rows, step):
        chunk = values[begin : begin + step].numpy().astype(np.int64)
        planes = ((chunk[:, :, None] >> shifts) & 1).astype(np.uint8)
        packed[begin : begin + step] = np.packbits(planes.reshape(len(chunk), -1), axis=1, bitorder="little")
    return torch.from_numpy(packed)


def unpack_bits(packed: Tensor, bits: int, n: int) -> Tensor:
    """Unpacks what `pack_bits` packed: uint8 [rows, bytes] -> int64 [rows, n]."""
    if 8 % bits == 0:
        shifts = torch.arange(0, 8, bits, dtype=torch.uint8)
        small = (packed[:, :, None] >> shifts) & (2**bits - 1)
        return small.flatten(1)[:, :n].long()
    if bits in (8, 16, 32):
        kind = {8: np.uint8, 16: np.uint16, 32: np.uint32}[bits]
        return torch.from_numpy(packed.contiguous().numpy().view(kind)[:, :n].astype(np.int64))
    rows, step = packed.shape[0], max(1, _BITS_TOGETHER // max(1, n * bits))
    values = np.empty((rows, n), np.int64)
    for begin in range(0, rows, step):
        chunk = packed[begin : begin + step].numpy()
        planes = np.unpackbits(chunk, axis=1, count=n * bits, bitorder="little").reshape(len(chunk), n, bits)
        total = np.zeros((len(chunk), n), np.int64)
        for bit in range(bits):
            total |= planes[:, :, bit].astype(np.int64) << bit
        values[begin : begin + step] = total
    return torch.from_numpy(values)


def to_words(packed: Tensor) -> Tensor:
    """Fills rows of bytes up to whole words: uint8 [rows, bytes] -> int32 [rows, ceil(bytes / 4)]."""
    missing = -packed.shape[1] % 4
    padded = torch.cat([packed, packed.new_zeros(packed.shape[0], missing)], 1) if missing else packed
    return padded.contiguous().view(torch.int32)


def to_bytes(words: Tensor) -> Tensor:
    """Returns rows of words as bytes: int32 [rows, words] -> uint8 [rows, 4 words]."""
    return words.contiguous().view(torch.uint8)


def pack_stream(values: Tensor, bits: int) -> Tensor:
    """Packs numbers as one stream: int64 [n] -> uint8 [ceil(n * bits / 8)], the last byte filled up with zeros."""
    padded = torch.cat([values, values.new_zeros(-len(values) % 8)]).view(-1, 8)
    return pack_bits(padded, bits).flatten()[: -(-len(values) * bits // 8)]


def unpack_stream(stream: Tensor, bits: int, n: int) -> Tensor:
    """Unpacks what `pack_stream` packed: uint8 [ceil(n * bits / 8)] -> int64 [n]."""
    if bits == 0:
        return torch.zeros(n, dtype=torch.int64)
    whole = torch.cat([stream, stream.new_zeros((n + -n % 8) * bits // 8 - len(stream))])
    return unpack_bits(whole.view(-1, bits), bits, 8).flatten()[:n]
