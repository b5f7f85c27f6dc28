"""Reads GGUF files: the header in one sweep (a vocabulary of 50,000 takes 0.1 s), the tensors by memory map.

A model may be split into several files, each with a header and tensors of its own; the first has the model's metadata.

The `gguf` package supplies the formats' constants and the reference dequantization. Its reader is not used, because it
takes seconds for a vocabulary, in every command.
"""

from __future__ import annotations

import mmap
import re
import struct
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType
from torch import Tensor

from outlay.errors import UsageError
from outlay.models.checkpoint import sampled
from outlay.models.gguf_blocks import EXACT, HELD, quantized_blocks, rounded
from outlay.models.quantized import QuantizedWeight

_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_STRING, _ARRAY = 8, 9
_FLOATS = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
TYPES = (*_FLOATS, *HELD["q8"], *HELD["q4"])
_SPLIT_NAME = re.compile(r"(.*-)(\d{5})(-of-\d{5}\.gguf)")


@dataclass(frozen=True)
class Entry:
    """Where a tensor lies in the file."""

    shape: tuple[int, ...]
    """Its shape in torch's order."""
    type: str
    """GGUF's name of its format."""
    data: mmap.mmap
    """The file that it lies in."""
    start: int
    """Its first byte."""
    size: int
    """Its bytes."""


class GgufFile:
    """The metadata of a GGUF file and its tensors, read when they are asked for."""

    def __init__(self, path: Path) -> None:
        """Reads the headers of a file, and of the others if the model is split and this is any of its files.

        Raises:
            UsageError: if a file is missing, damaged, or not a GGUF file.
        """
        header = _read_header(path)
        self._paths = _paths_of_split(path, int(header[0].get("split.count", 1)))
        headers = [header] if len(self._paths) == 1 else list(map(_read_header, self._paths))
        self.path = self._paths[0]
        self.metadata = headers[0][0]
        self.entries = {name: entry for _, entries in headers for name, entry in entries.items()}
        expected = int(self.metadata.get("split.tensors.count", 0))
        if len(self.entries) < expected:
            raise UsageError(f"the {len(self._paths)} files of {self.path} lack {expected - len(self.entries)} tensors")

    @property
    def quantized(self) -> bool:
        """Whether any tensor is stored in blocks of small integers."""
        return any(entry.type not in _FLOATS for entry in self.entries.values())

    def shape(self, name: str) -> tuple[int, ...] | None:
        """Returns the shape of a tensor, or None if the file does not have it."""
        entry = self.entries.get(name)
        return entry.shape if entry else None

    def stored(self, name: str) -> QuantizedWeight | None:
        """Returns a tensor that is stored in blocks of small integers, as `integers` does; None for one of floats."""
        return None if self.entries[name].type in _FLOATS else self.integers(name)

    def floats(self, name: str) -> Tensor:
        """Returns a tensor as floats, exactly: as it is stored, or float32 for a quantized one."""
        entry = self.entries[name]
        if entry.type in _FLOATS:
            # A copy, because torch cannot hold memory that is read-only.
            data = torch.frombuffer(bytearray(self._bytes(entry)), dtype=_FLOATS[entry.type])
            return data.reshape(entry.shape)
        scale = self._scale(name)
        if entry.type in EXACT and scale is None:
            return self.integers(name).dequantize().reshape(entry.shape)
        rows = np.frombuffer(self._bytes(entry), np.uint8).reshape(-1, _row_bytes(entry))
        floats = torch.from_numpy(gguf.quants.dequantize(rows, _kind(entry))).reshape(entry.shape)
        return floats if scale is None else floats * scale.view(-1, *[1] * (floats.dim() - 1))

    def integers(self, name: str) -> QuantizedWeight:
        """Returns a quantized tensor as a matrix; all dimensions but the last become rows."""
        entry = self.entries[name]
        if self._scale(name) is not None:
            return rounded(entry.type, self.floats(name).flatten(0, -2))
        blocks = np.frombuffer(self._bytes(entry), np.uint8).reshape(-1, GGML_QUANT_SIZES[_kind(entry)][1])
        return quantized_blocks(entry.type, torch.from_numpy(blocks.copy()), entry.shape[-1])

    def identity(self) -> bytes:
        """Returns the header, which identifies the file, and samples of the others of a split model."""
        first = next(iter(self.entries.values()))
        starts = [entry.start for entry in self.entries.values() if entry.data is first.data]
        return first.data[: min(starts)] + b"".join(map(sampled, self._paths[1:]))

    def _scale(self, name: str) -> Tensor | None:
        """Returns the factor of a quantized tensor, or of each of its experts, if the file has one."""
        scale = name.removesuffix(".weight") + ".scale"
        return self.floats(scale) if scale in self.entries else None

    def _bytes(self, entry: Entry) -> memoryview:
        if entry.type not in TYPES:
            raise UsageError(f"{self.path} holds {entry.type} tensors; outlay reads {', '.join(TYPES)}")
        return memoryview(entry.data)[entry.start : entry.start + entry.size]


def _read_header(path: Path) -> tuple[dict[str, Any], dict[str, Entry]]:
    """Returns the metadata of one file and its tensors."""
    with path.open("rb") as file:
        try:
            data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        except ValueError:
            raise UsageError(f"{path} is empty, so it is not a GGUF file") from None
    if data[:4] != b"GGUF":
        raise UsageError(f"{path} is not a GGUF file: it does not begin with the letters GGUF")
    try:
        metadata, entries = _Header(data).read()
    except (struct.error, IndexError, UnicodeDecodeError, OverflowError, MemoryError):
        raise UsageError(f"{path} is truncated or damaged: its header ends early") from None
    except _UnknownFormatError as error:
        raise UsageError(f"{path} cannot be read: {error}") from None
    end = max((entry.start + entry.size for entry in entries.values()), default=0)
    if end > len(data):
        raise UsageError(f"{path} is truncated: it has {len(data)} of at least {end} bytes")
    return metadata, entries


def _paths_of_split(path: Path, count: int) -> list[Path]:
    """Returns the files of a model that is split into `count`, in order, given any of them."""
    if count < 2:
        return [path]
    found = _SPLIT_NAME.fullmatch(path.name)
    if found is None or not found[3].startswith(f"-of-{count:05}"):
        raise UsageError(f"{path} is one of {count} files of a model; its name must end in -00001-of-{count:05}.gguf")
    paths = [path.with_name(f"{found[1]}{number:05}{found[3]}") for number in range(1, count + 1)]
    missing = [each.name for each in paths if not each.exists()]
    if missing:
        raise UsageError(f"{path} is one of {count} files of a model; {missing[0]} is not beside it")
    return paths


class _UnknownFormatError(ValueError):
    pass


class _Header:
    """Reads a header from its beginning; every read moves `at`."""

    def __init__(self, data: mmap.mmap) -> None:
        self.data, self.at = data, 4

    def read(self) -> tuple[dict[str, Any], dict[str, Entry]]:
        version = self.scalar("I")
        if version not in (2, 3) or sys.byteorder != "little":
            raise _UnknownFormatError(f"GGUF version {version} in this byte order is not one that outlay reads (2, 3)")
        tensors, pairs = self.scalar("Q"), self.scalar("Q")
        metadata = {}
        for _ in range(pairs):
            key = self.string()
            metadata[key] = self.value(self.scalar("I"))
        described = [self.tensor() for _ in range(tensors)]
        align = int(metadata.get("general.alignment", 32)) or 32
        base = -(-self.at // align) * align
        entries = {name: Entry(shape, kind, self.data, base + at, size) for name, shape, kind, at, size in described}
        return metadata, entries

    def scalar(self, code: str) -> Any:
        (value,) = struct.unpack_from("<" + code, self.data, self.at)
        self.at += struct.calcsize("<" + code)
        return value

    def string(self) -> str:
        size = self.scalar("Q")
        if self.at + size > len(self.data):
            raise IndexError
        self.at += size
        return self.data[self.at - size : self.at].decode("utf-8", "replace")

    def value(self, kind: int) -> Any:
        if kind == _STRING:
            return self.string()
        if kind == _ARRAY:
            return self.array()
        return self.scalar(self.code(kind))

    def array(self) -> list[Any]:
        kind, count = self.scalar("I"), self.scalar("Q")
        if count > len(self.data):
            raise IndexError
        if kind == _STRING:
            return [self.string() for _ in range(count)]
        if kind == _ARRAY:
            return [self.array() for _ in range(count)]
        form = f"<{count}{self.code(kind)}"
        values = struct.unpack_from(form, self.data, self.at)
        self.at += struct.calcsize(form)
        return list(values)

    def code(self, kind: int) -> str:
        if kind not in _SCALARS:
            raise _UnknownFormatError(f"it has a value of unknown type {kind}")
        return _SCALARS[kind]

    def tensor(self) -> tuple[str, tuple[int, ...], str, int, int]:
        name, dims = self.string(), self.scalar("I")
        if dims > 8:
            raise IndexError
        shape = tuple(reversed([self.scalar("Q") for _ in range(dims)]))
        number, at = self.scalar("I"), self.scalar("Q")
        try:
            kind = GGMLQuantizationType(number)
        except ValueError:
            raise _UnknownFormatError(f"tensor {name} is of unknown type {number}") from None
        per_block, block_bytes = GGML_QUANT_SIZES[kind]
        count = 1
        for size in shape:
            count *= size
        return name, shape, kind.name, at, count // per_block * block_bytes


def _kind(entry: Entry) -> GGMLQuantizationType:
    return GGMLQuantizationType[entry.type]


def _row_bytes(entry: Entry) -> int:
    per_block, block_bytes = GGML_QUANT_SIZES[_kind(entry)]
    return entry.shape[-1] // per_block * block_bytes
