"""N:M weights in a file: the kept values and their places, packed.

A group holds N values and N places of ceil(log2 M) bits, packed from the lowest bit: out in N / M (bits of a value +
ceil(log2 M)) / 8 bytes for a matrix [out, in], as the paper counts them.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from outlay.errors import UsageError
from outlay.kernels.bits import pack_stream, unpack_stream
from outlay.shrink.nm.pattern import Pattern, from_groups, largest, to_groups

FORM = "nm"  # the key in a file's metadata
VERSION = 1
VALUES, PLACES = "nm_values", "nm_places"


@dataclass(frozen=True)
class PackedNM:
    """A weight whose groups of m consecutive inputs keep n values each."""

    pattern: Pattern
    """The pattern."""
    shape: tuple[int, ...]
    """Of the weight: [out, in], or a convolution's [out, in, ...]."""
    values: Tensor
    """[groups, n], any float dtype; groups as `to_groups` orders them, values by place."""
    places: Tensor
    """uint8 [bytes]: the place of each value in its group, ceil(log2 m) bits each, packed from the lowest bit."""

    @classmethod
    def pack(cls, weight: Tensor, pattern: Pattern) -> PackedNM:
        """Packs a weight that satisfies a pattern, without loss.

        Args:
            weight: [out, in, ...], at most n of m consecutive inputs not zero.
            pattern: The pattern.

        Raises:
            UsageError: A group has more values.
        """
        groups = to_groups(weight, pattern.m, "in")
        more = int(((groups != 0).sum(1) > pattern.n).sum())
        if more:
            raise UsageError(f"{more} of {len(groups)} groups have more than {pattern.n} values in {pattern.m}")
        places = largest((groups != 0).float(), pattern.n).nonzero()[:, 1].view(-1, pattern.n)
        packed = pack_stream(places.flatten(), place_bits(pattern.m))
        return cls(pattern, tuple(weight.shape), groups.gather(1, places), packed)

    def unpack(self) -> Tensor:
        """Returns the weight, in the dtype of the values."""
        n, m = self.pattern.n, self.pattern.m
        places = unpack_stream(self.places, place_bits(m), self.values.numel()).view(-1, n)
        groups = self.values.new_zeros(len(self.values), m).scatter_(1, places, self.values)
        return from_groups(groups, torch.Size(self.shape), "in")

    def to(self, dtype: torch.dtype) -> PackedNM:
        """Returns the same weight with its values rounded to a dtype."""
        return PackedNM(self.pattern, self.shape, self.values.to(dtype), self.places)

    @property
    def nbytes(self) -> int:
        """Bytes of values and places."""
        return self.values.nbytes + self.places.nbytes


def place_bits(m: int) -> int:
    """Returns the bits of a place in a group of m: ceil(log2 m)."""
    return (m - 1).bit_length()


def packed_bits(shape: tuple[int, ...], pattern: Pattern, value_bits: int) -> int:
    """Returns the bits of a packed weight by the paper's formula, without scales."""
    return prod(shape) // pattern.m * pattern.n * (value_bits + place_bits(pattern.m))


def save_packed(path: Path, tensors: Mapping[str, Tensor | PackedNM]) -> None:
    """Writes tensors to a safetensors file, whole or not at all.

    What is packed becomes NAME.nm_values and NAME.nm_places; the metadata hold its pattern and shape.
    """
    plain, about = dict[str, Tensor](), dict[str, object]()
    for name, tensor in tensors.items():
        if isinstance(tensor, PackedNM):
            plain[f"{name}.{VALUES}"], plain[f"{name}.{PLACES}"] = tensor.values.contiguous(), tensor.places
            about[name] = {"n": tensor.pattern.n, "m": tensor.pattern.m, "shape": list(tensor.shape)}
        else:
            plain[name] = tensor.detach().clone(memory_format=torch.contiguous_format)
    part = path.with_name(f"{path.name}.part")
    save_file(plain, part, {"format": "pt", FORM: json.dumps({"version": VERSION, "tensors": about})})
    part.replace(path)


def load_packed(path: Path) -> dict[str, Tensor | PackedNM]:
    """Reads a file of `save_packed`.

    Raises:
        UsageError: It can't be read, or is damaged.
    """
    try:
        with safe_open(path, framework="pt") as file:
            about = json.loads((file.metadata() or {}).get(FORM, "{}"))
            held = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - no dict
    except (SafetensorError, OSError, ValueError) as error:
        raise UsageError(f"{path} can't be read as safetensors: {' '.join(str(error).split())}") from error
    if about.get("version") != VERSION:
        raise UsageError(f"{path} holds no N:M weights of version {VERSION}")
    packed: dict[str, Tensor | PackedNM] = {}
    for name, each in about["tensors"].items():
        pattern, shape = Pattern(each["n"], each["m"]), tuple(each["shape"])
        values, places = held.pop(f"{name}.{VALUES}", None), held.pop(f"{name}.{PLACES}", None)
        packed[name] = _checked(f"{path}: {name}", pattern, shape, values, places)
    return {**held, **packed}


def _checked(
    name: str, pattern: Pattern, shape: tuple[int, ...], values: Tensor | None, places: Tensor | None
) -> PackedNM:
    if values is None or places is None:
        raise UsageError(f"{name} lacks its values or places")
    groups, bits = prod(shape) // pattern.m, place_bits(pattern.m)
    if values.shape != (groups, pattern.n) or places.numel() != -(-groups * pattern.n * bits // 8):
        raise UsageError(
            f"{name} has values {list(values.shape)} and {places.numel()} bytes of places, which don't fit {pattern} "
            f"of {list(shape)}"
        )
    found = unpack_stream(places, bits, values.numel()).view(groups, pattern.n)
    if bool((found >= pattern.m).any()) or bool((found.diff(dim=1) <= 0).any()):
        raise UsageError(f"{name} is damaged: places of a group must rise and be below {pattern.m}")
    return PackedNM(pattern, shape, values, places)
