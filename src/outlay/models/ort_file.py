"""Reads the weights and nodes of a file that onnxruntime wrote for itself (`.ort`): its flatbuffers, without it."""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from outlay.errors import FailureError

DTYPES: Mapping[int, torch.dtype] = {1: torch.float32, 2: torch.uint8, 3: torch.int8, 6: torch.int32, 7: torch.int64}
"""Those of ONNX's numbers for element types that are read here."""


@dataclass(frozen=True)
class OrtNode:
    """An operation of the graph."""

    name: str
    """Its name: the path of the module that it was made from."""
    kind: str
    """What it computes, as ONNX calls it."""
    inputs: tuple[str, ...]
    """The names of its inputs."""


class _Table:
    """A table of a flatbuffer: an offset to each field, 0 for one that is left out."""

    def __init__(self, data: memoryview, at: int) -> None:
        self._data, self._at = data, at
        self._fields = at - self._int("i", at)
        self._size = self._int("H", self._fields)

    def _int(self, form: str, at: int) -> int:
        return int(struct.unpack_from(f"<{form}", self._data, at)[0])

    def _field(self, index: int) -> int | None:
        place = 4 + 2 * index
        offset = self._int("H", self._fields + place) if place < self._size else 0
        return self._at + offset if offset else None

    def number(self, index: int) -> int:
        at = self._field(index)
        return 0 if at is None else self._int("i", at)

    def vector(self, index: int) -> tuple[int, int]:
        """Returns the length of a vector, and where its first element lies."""
        at = self._field(index)
        if at is None:
            return 0, 0
        at += self._int("I", at)
        return self._int("I", at), at + 4

    def data(self, index: int, size: int = 1) -> memoryview:
        length, at = self.vector(index)
        return self._data[at : at + size * length]

    def text(self, index: int) -> str:
        return bytes(self.data(index)).decode()

    def table(self, index: int) -> _Table | None:
        at = self._field(index)
        return None if at is None else _Table(self._data, at + self._int("I", at))

    def _each(self, index: int) -> Iterator[int]:
        length, at = self.vector(index)
        for place in range(at, at + 4 * length, 4):
            yield place + self._int("I", place)

    def tables(self, index: int) -> list[_Table]:
        return [_Table(self._data, at) for at in self._each(index)]

    def texts(self, index: int) -> tuple[str, ...]:
        return tuple(bytes(self._data[at + 4 : at + 4 + self._int("I", at)]).decode() for at in self._each(index))


class OrtFile:
    """The constants and the nodes of a file, those of its inner graphs too.

    Attributes:
        tensors: constants by name, of the types in `DTYPES`.
        nodes: the operations.
    """

    def __init__(self, path: Path) -> None:
        """Reads a file.

        Raises:
            FailureError: if it is not one of onnxruntime's.
        """
        self.tensors: dict[str, Tensor] = {}
        self.nodes: list[OrtNode] = []
        data = memoryview(bytearray(path.read_bytes()))
        try:
            if bytes(data[4:8]) != b"ORTM":
                raise FailureError(f"{path.name} is not a file of onnxruntime (.ort)")
            session = _Table(data, struct.unpack_from("<I", data, 0)[0])
            model = session.table(1)
            graph = model.table(7) if model is not None else None
            if graph is not None:
                self._read(graph)
        except (struct.error, UnicodeDecodeError, IndexError) as error:
            raise FailureError(f"{path.name} is damaged: {error}") from None

    def _read(self, graph: _Table) -> None:
        for tensor in graph.tables(0):
            dtype = DTYPES.get(tensor.number(3))
            if dtype is not None:
                shape = list(struct.unpack(f"<{tensor.vector(2)[0]}q", tensor.data(2, 8)))
                values = tensor.data(4)
                flat = torch.frombuffer(values, dtype=dtype) if len(values) else torch.empty(0, dtype=dtype)
                self.tensors[tensor.text(0)] = flat.view(shape)
        for node in graph.tables(2):
            self.nodes.append(OrtNode(node.text(0), node.text(5), node.texts(8)))
            for attribute in node.tables(10):
                inner = attribute.table(7)
                if inner is not None:
                    self._read(inner)
