"""Integers in a stream, each by a table of whole-number weights; rare integers outside their table are spelled."""

from __future__ import annotations

import math
from hashlib import sha256
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from outlay import kernels
from outlay.codec.coder import Words
from outlay.codec.container import CorruptStream
from outlay.codec.lic.priors import LEAST_SCALE, normal_pmf
from outlay.errors import UsageError

SCALES = torch.linspace(math.log(LEAST_SCALE), math.log(256), 64, dtype=torch.float64).exp().float()
"""Standard deviations of the tables of normal distributions (Ballé et al. 2018)."""
SHIFTS = 8
"""Means of those tables: eighths of an integer, -4/8 to 3/8."""
NORMALS = len(SCALES) * SHIFTS
"""Tables of normal distributions; those of a codec's channels have the numbers from here on."""
WEIGHT_BITS = 23
SPELLED = 3
"""Bytes that spell an integer outside its table."""
_AT_ONCE = 1 << 22  # weights that are laid out at a time


class Table(NamedTuple):
    """The weights of consecutive integers, and of any other."""

    weights: Tensor
    """int32 [count + 1]; the last is that of the integers outside."""
    first: int
    """The integer of the first weight."""

    @classmethod
    def of(cls, pmf: Tensor, first: int) -> Table:
        """Returns the table of probabilities, float64 [count]."""
        whole = (pmf * (1 << WEIGHT_BITS)).round().clamp_min(1)
        outside = ((1 - pmf.sum()) * (1 << WEIGHT_BITS)).round().clamp_min(1)
        return cls(torch.cat([whole, outside[None]]).int(), first)


class Tables:
    """Tables by their numbers: normal distributions, then the channels of a codec."""

    def __init__(self, channels: list[Table]) -> None:
        """Takes the tables of a codec's channels."""
        self._channels = channels
        self._normals: dict[int, Table] = {}

    def __getitem__(self, number: int) -> Table:
        if number >= NORMALS:
            return self._channels[number - NORMALS]
        if number not in self._normals:
            shift = number % SHIFTS - SHIFTS // 2
            pmf = normal_pmf(float(SCALES[number // SHIFTS]), shift / SHIFTS)
            self._normals[number] = Table.of(pmf, -(len(pmf) // 2))
        return self._normals[number]

    @property
    def probe(self) -> bytes:
        """A digest of what streams depend on, 16 bytes: the channels' tables and a few normal ones."""
        digest = sha256(SCALES.numpy().astype("<f4").tobytes())
        some = [*(scale * SHIFTS + scale % SHIFTS for scale in range(0, len(SCALES), 9))]
        for table in (*self._channels, *(self[number] for number in some)):
            digest.update(table.first.to_bytes(4, "little", signed=True))
            digest.update(table.weights.numpy().astype("<i4").tobytes())
        return digest.digest()[:16]

    def encode(self, values: Tensor, numbers: Tensor) -> tuple[Words, float]:
        """Codes integers.

        Args:
            values: int64 [count].
            numbers: The table of each, int64 [count].

        Returns:
            The stream's words, and the ideal bits.

        Raises:
            UsageError: For an integer beyond 23 bits.
        """
        if values.numel() and int(values.abs().max()) >= 1 << (8 * SPELLED - 1):
            raise UsageError("the codec gives latents beyond 8,388,607; was it trained?")
        parts, bits = [np.empty((0, 2), np.uint32)], 0.0
        outside = []
        for number, places in _groups(numbers):
            table = self[number]
            rows, size = values[places] - table.first, len(table.weights)
            strange = (rows < 0) | (rows >= size - 1)
            outside.append(places[strange])
            rows = rows.masked_fill(strange, size - 1)
            for begin in range(0, len(rows), _AT_ONCE // size + 1):
                part = rows[begin : begin + _AT_ONCE // size + 1]
                parts.append(kernels.intervals(table.weights.expand(len(part), -1), part))
            exact = table.weights.double()
            bits += float((exact.sum().log2() - exact[rows].log2()).sum())
        spelled = _spell(values[torch.cat(outside)] if outside else values[:0])
        if len(spelled):
            parts.append(kernels.intervals(_BYTES.expand(len(spelled), -1), spelled))
        return kernels.ans_encode(np.concatenate(parts)), bits + 8 * len(spelled)

    def decode(self, words: Words, numbers: Tensor) -> Tensor:
        """Decodes what `encode` coded, int64 [count]. Raises `CorruptStream` where the stream holds something else."""
        reader = kernels.AnsReader([words])

        def take(weights: Tensor, count: int) -> Tensor:
            found = [torch.empty(0, dtype=torch.int64)]
            at_once = _AT_ONCE // len(weights) + 1
            for begin in range(0, count, at_once):
                rows = min(at_once, count - begin)
                found.append(reader.decode(weights.expand(rows, -1), torch.zeros(rows, dtype=torch.int64)))
            return torch.cat(found)

        values, outside = torch.empty(len(numbers), dtype=torch.int64), []
        for number, places in _groups(numbers):
            table = self[number]
            rows = take(table.weights, len(places))
            outside.append(places[rows == len(table.weights) - 1])
            values[places] = rows + table.first
        spelled = torch.cat(outside) if outside else numbers[:0]
        values[spelled] = _unspell(take(_BYTES, SPELLED * len(spelled)))
        if not reader.ended(0):
            raise CorruptStream("it holds other symbols than it should")
        return values


_BYTES = torch.ones(256, dtype=torch.int32)


def scale_index(scales: Tensor) -> Tensor:
    """Returns the smallest entry of `SCALES` that is not below each scale, int64; the largest for those above all."""
    return torch.bucketize(scales.contiguous(), SCALES[:-1])


def shifted(index: Tensor, shift: Tensor) -> tuple[Tensor, Tensor]:
    """Returns tables of normal distributions with a mean.

    Args:
        index: The places of their deviations in `SCALES`, int64.
        shift: Their means, float32.

    Returns:
        The numbers of the tables, and the whole integers to subtract from what is coded, both int64.
    """
    eighths = (shift * SHIFTS + 0.5).floor().long()
    whole = torch.div(eighths + SHIFTS // 2, SHIFTS, rounding_mode="floor")
    return index * SHIFTS + (eighths - whole * SHIFTS) + SHIFTS // 2, whole


def _groups(numbers: Tensor) -> list[tuple[int, Tensor]]:
    """Returns each table that occurs, with the places where it does, in order."""
    order = numbers.argsort(stable=True)
    tables, counts = numbers[order].unique_consecutive(return_counts=True)
    return list(zip(tables.tolist(), order.split(counts.tolist()), strict=True)) if len(numbers) else []


def _spell(values: Tensor) -> Tensor:
    """Returns the bytes of integers, the lowest first, the sign in the lowest bit."""
    zigzag = torch.where(values < 0, -2 * values - 1, 2 * values)
    return torch.stack([zigzag >> 8 * place & 255 for place in range(SPELLED)], 1).flatten()


def _unspell(spelled: Tensor) -> Tensor:
    zigzag = (spelled.view(-1, SPELLED) << torch.arange(0, 8 * SPELLED, 8)).sum(1)
    return torch.where(zigzag & 1 == 1, -(zigzag + 1) // 2, zigzag // 2)
