"""Files of integers, `.npy`, compressed with a circuit: they come back byte for byte."""

from __future__ import annotations

import ast
import io
from collections.abc import Iterator
from dataclasses import dataclass
from hashlib import sha256
from math import log
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from outlay import kernels
from outlay.budget import Ledger
from outlay.codec.circuit.latent_tree import LatentTree
from outlay.codec.circuit.schedules import SCHEDULES, CircuitModel, Schedule
from outlay.codec.coder import CODER, Stream, Words, decode, encode, pack_words, unpack_words
from outlay.codec.container import Block, Container, CorruptStream, Cursor, Decoder, varint
from outlay.codec.files import Decoded, OnBlock, Written, refuse_other, this_writer
from outlay.errors import UsageError

Key = TypeVar("Key")
BLOCK = 1000  # samples of a block
PROBED = 16  # variables whose weights are in the probe
SUM_EVALS = "sum_evals"
_LONGEST = 1 << 15  # bytes of the description of an array, at most


@dataclass(frozen=True)
class ArrayFile:
    """A `.npy` file as its header and its samples."""

    header: bytes
    """All that precedes the numbers."""
    samples: npt.NDArray[Any]
    """[samples, variables], in the file's own type."""

    @classmethod
    def of(cls, data: bytes) -> ArrayFile:
        """Reads a file of integers. Raises `UsageError` for any other."""
        stream = io.BytesIO(data)
        try:
            version = np.lib.format.read_magic(stream)
            read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
            shape, fortran, dtype = read(stream)
        except (ValueError, SyntaxError) as error:
            raise UsageError(f"a circuit compresses .npy files of integers, and this is none ({error})") from None
        header = data[: stream.tell()]
        if dtype.kind not in "iub" or fortran or len(shape) < 1:
            order = "Fortran" if fortran else "C"
            raise UsageError(f"a circuit compresses .npy files of integers in C order, not {dtype} {shape} in {order}")
        count = int(np.prod(shape, dtype=np.int64))
        if len(data) - len(header) != count * dtype.itemsize:
            raise UsageError(f"the .npy file should have {count} numbers, and has other bytes behind its header")
        variables = int(np.prod(shape[1:], dtype=np.int64))
        return cls(header, np.frombuffer(data, dtype, count, len(header)).reshape(shape[0], variables))


def read_samples(data: bytes) -> Tensor:
    """Returns the samples of a `.npy` file of integers, int64 [samples, variables]."""
    return torch.from_numpy(ArrayFile.of(data).samples.astype(np.int64))


class CircuitCoder:
    """Compresses `.npy` files with a circuit; see `files.Coder`."""

    kind = "circuit"

    def __init__(
        self, circuit: LatentTree, name: str, *, stream: Stream = "batch", schedule: Schedule = "tour"
    ) -> None:
        """Takes a circuit.

        Args:
            circuit: The circuit.
            name: What files call it, for people.
            stream: Whether each sample has a stream of its own, or all of a block share one.
            schedule: How its messages are computed.
        """
        self.model, self.stream = CircuitModel(circuit, schedule), stream
        self.name = name
        self.decoder = Decoder(
            model=name,
            weights=circuit.digest,
            format="float32",
            arithmetic=kernels.ARITHMETIC,
            probe=probe(self.model),
            writer=this_writer(),
            alphabet=circuit.categories,
            block=BLOCK,
            stream=stream,
            coder=CODER,
        )

    def close(self) -> None:
        """See `files.Coder`."""

    def write(
        self, originals: Iterator[tuple[Key, bytes, int]], on_block: OnBlock
    ) -> Iterator[tuple[Key, Written | int]]:
        """See `files.Coder`."""
        for key, data, _ in originals:
            array, before = ArrayFile.of(data), self.model.sum_evals
            values = torch.from_numpy(array.samples.astype(np.int64))
            self.model.circuit.refuse_strange(values)
            blocks, coded = [], []
            for begin in range(0, len(values), BLOCK):
                ordered = values[begin : begin + BLOCK, list(self.model.order)]
                original = (array.header if begin == 0 else b"") + array.samples[begin : begin + BLOCK].tobytes()
                streams = encode(self.model, ordered, self.stream)
                coded.append(pack_streams([pack_words(words) for words in streams]))
                blocks.append(Block.of(ordered.numel(), coded[-1], original))
                on_block(len(original))
            evaluations = self.model.sum_evals - before
            ideal = -float(self.model.circuit.log_prob(values).sum()) / log(2)
            details = varint(len(array.header)) + array.header + self.model.schedule.encode()
            container = Container.of(self.kind, data, self.decoder._replace(details=details), blocks, coded)
            yield key, Written(container, ideal, Ledger(extras={SUM_EVALS: evaluations}))

    def read(self, containers: Iterator[tuple[Key, Container]], on_block: OnBlock) -> Iterator[tuple[Key, Decoded]]:
        """See `files.Coder`."""
        for key, container in containers:
            found, before = Decoded(), self.model.sum_evals
            header, dtype, _ = _details(container)
            for place, block in enumerate(container.blocks):
                try:
                    original = self._read(container, place, dtype)
                    original = (header if place == 0 else b"") + original
                    container.check(place, original)
                except CorruptStream as error:
                    found.missing[place], original = str(CorruptStream(str(error).partition(": ")[2], place)), b""
                found.blocks.append(original)
                on_block(block.original)
            found.ledger.extras[SUM_EVALS] = self.model.sum_evals - before
            yield key, found

    def fits(self, container: Container) -> None:
        """See `files.Coder`."""
        if container.kind != self.kind:
            raise UsageError(f"the file was compressed with a {container.kind} model, and {self.name} is a circuit")
        theirs, schedule = container.decoder, _details(container)[2]
        if schedule != self.model.schedule:
            self.model = CircuitModel(self.model.circuit, schedule)
        refuse_other(theirs, self.decoder._replace(stream=theirs.stream, probe=probe(self.model)), self.name)
        if theirs.stream not in ("sample", "batch"):
            raise UsageError(f"the file has streams of a {theirs.stream}, which no circuit has")

    def _read(self, container: Container, place: int, dtype: np.dtype[Any]) -> bytes:
        """Returns the numbers of a block."""
        symbols, variables = container.blocks[place].symbols, self.model.circuit.variables
        lanes = symbols // variables
        if symbols % variables or not 1 <= lanes <= container.decoder.block <= BLOCK:
            raise CorruptStream("it can't have that many symbols", place)
        streams = unpack_streams(container.coded(place), 1 if container.decoder.stream == "batch" else lanes)
        values = torch.empty(lanes, variables, dtype=torch.int64)
        values[:, list(self.model.order)] = decode(self.model, streams, lanes, variables)
        return values.numpy().astype(dtype).tobytes()


def probe(model: CircuitModel) -> bytes:
    """Returns a digest of the weights that a circuit gives the coder for its first variables, 16 bytes."""
    state, digest, before = model.begin(1), sha256(), model.sum_evals
    for _ in range(min(PROBED, model.circuit.variables)):
        digest.update(model.next_pmf(state).numpy().astype("<i4").tobytes())
        model.push(state, torch.zeros(1, dtype=torch.int64))
    model.sum_evals = before
    return digest.digest()[:16]


def pack_streams(streams: list[bytes]) -> bytes:
    """Returns streams one behind the other, each but the last behind its length."""
    return b"".join(varint(len(each)) + each for each in streams[:-1]) + streams[-1]


def unpack_streams(data: bytes, count: int) -> list[Words]:
    """Returns the expected number of streams. Raises `CorruptStream` where the bytes hold another."""
    cursor, found = Cursor(data), []
    for _ in range(count - 1):
        found.append(unpack_words(cursor.take(cursor.varint(len(data) + 1))))
    return [*found, unpack_words(data[cursor.at :])]


def _details(container: Container) -> tuple[bytes, np.dtype[Any], Schedule]:
    """Returns the array's header, the type of its numbers, and the schedule; `CorruptStream` is raised for others."""
    cursor = Cursor(container.decoder.details)
    header = cursor.take(cursor.varint(_LONGEST))
    schedule = next((each for each in SCHEDULES if each.encode() == cursor.data[cursor.at :]), None)
    try:
        described = ast.literal_eval(header[header.index(b"{") :].decode("latin-1").strip())
        dtype = np.dtype(described["descr"])
    except (ValueError, SyntaxError, KeyError, TypeError):
        raise CorruptStream("the header is damaged") from None
    if schedule is None or dtype.kind not in "iub":
        raise CorruptStream("the header is damaged")
    return header, dtype, schedule
