"""The container of a compressed file: a checked header, a table of blocks, and the blocks' bytes.

    magic, version, length of the header | fields (tag, length, value) | table of blocks | CRC32 of all before | blocks

A header names what decodes the file, by digests: no file name, date or path. Lengths are bounded and compared with the
bytes that are there before memory is taken, and every block has a CRC32 of its coded and of its original bytes, so that
damage is told before anything is decoded, and one damaged block costs itself alone.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import sha256
from typing import NamedTuple

from outlay.errors import FailureError

MAGIC = b"\xf0OLZ"
VERSION = 1
KINDS = ("xz", "text", "circuit", "picture", "patches")
"""What decodes the blocks: LZMA, a language model, a probabilistic circuit, a picture codec with loss, a circuit of
patches of pictures."""

HEADER_BYTES = 1 << 16
"""The fields of a header take less than this."""
BLOCKS = 1 << 24
"""A file has fewer blocks than this."""
ORIGINAL_BYTES = 1 << 48
"""An original has fewer bytes than this."""


class CorruptStream(FailureError):
    """A compressed file is damaged.

    Attributes:
        block: Index of the damaged block; None where the header or the whole is.
    """

    def __init__(self, what: str, block: int | None = None) -> None:
        super().__init__(what if block is None else f"block {block}: {what}")
        self.block = block


class Block(NamedTuple):
    """What the table says of a block."""

    symbols: int
    """How many symbols are coded in it; 0 where its bytes are coded in another way."""
    coded: int
    """Its bytes in the file."""
    original: int
    """Its bytes in the original."""
    coded_crc: int
    """The CRC32 of its bytes in the file."""
    original_crc: int
    """The CRC32 of its bytes in the original."""

    @classmethod
    def of(cls, symbols: int, coded: bytes, original: bytes) -> Block:
        """Returns the table's entry of a block."""
        return cls(symbols, len(coded), len(original), zlib.crc32(coded), zlib.crc32(original))


class Decoder(NamedTuple):
    """What decodes a file, by names and digests. Empty for "xz"."""

    model: str = ""
    """The model's alias, for people; it is never fetched because a file names it."""
    weights: bytes = b""
    """The SHA-256 of the model's weights."""
    format: str = ""
    """How the weights are held."""
    kv_dtype: str = ""
    """How keys and values are held."""
    arithmetic: int = 0
    """`kernels.ARITHMETIC` of the writer."""
    probe: bytes = b""
    """A digest of the weights that the model gave the coder after fixed symbols."""
    writer: str = ""
    """The writer's version and instruction set."""
    alphabet: int = 0
    """How many symbols there are."""
    block: int = 0
    """Symbols of a block, at most."""
    stream: str = ""
    """What shares a stream of the coder: a "block", a "sample" or a "batch"."""
    coder: str = ""
    """The entropy coder: "ans24", an asymmetric numeral system over 2^24."""
    details: bytes = b""
    """What the kind alone needs."""


TEXT, NUMBER, BYTES = "text", "number", "bytes"
FIELDS = {
    1: ("model", TEXT), 2: ("weights", BYTES), 3: ("format", TEXT), 4: ("kv_dtype", TEXT), 5: ("arithmetic", NUMBER),
    6: ("probe", BYTES), 7: ("writer", TEXT), 8: ("alphabet", NUMBER), 9: ("block", NUMBER), 10: ("stream", TEXT),
    11: ("coder", TEXT), 12: ("details", BYTES),
}  # fmt: skip
KIND, ORIGINAL, DIGEST, COUNT = 32, 33, 34, 35  # tags of what every file has


@dataclass(frozen=True)
class Container:
    """A compressed file."""

    kind: str
    """One of `KINDS`."""
    original: int
    """Bytes of the original."""
    digest: bytes
    """The SHA-256 of the original."""
    decoder: Decoder
    """What decodes it."""
    blocks: tuple[Block, ...]
    """The table of blocks, in the order of the original."""
    body: bytes
    """The coded bytes of all blocks. Where a file was cut off, there are fewer than the table says."""

    @classmethod
    def of(
        cls, kind: str, original: bytes, decoder: Decoder, blocks: Sequence[Block], coded: Sequence[bytes]
    ) -> Container:
        """Returns the container of an original and its coded blocks."""
        return cls(kind, len(original), sha256(original).digest(), decoder, tuple(blocks), b"".join(coded))

    def pack(self) -> bytes:
        """Returns the file's bytes."""
        head = self._head()
        return head + struct.pack("<I", zlib.crc32(head)) + self.body

    @property
    def overhead(self) -> int:
        """Bytes of the file that no block has."""
        return len(self._head()) + 4

    def coded(self, block: int) -> bytes:
        """Returns the coded bytes of a block.

        Raises:
            CorruptStream: Where they are damaged, or not there.
        """
        begin = sum(each.coded for each in self.blocks[:block])
        entry = self.blocks[block]
        coded = self.body[begin : begin + entry.coded]
        if len(coded) < entry.coded:
            raise CorruptStream("the file ends before it", block)
        if zlib.crc32(coded) != entry.coded_crc:
            raise CorruptStream("its bytes are damaged", block)
        return coded

    def check(self, block: int, original: bytes) -> None:
        """Raises `CorruptStream` where a block's decoded bytes are not those that were written."""
        entry = self.blocks[block]
        if len(original) != entry.original or zlib.crc32(original) != entry.original_crc:
            raise CorruptStream("it does not decode to what was written", block)

    def _head(self) -> bytes:
        fields = [_field(KIND, bytes([KINDS.index(self.kind)])), _field(ORIGINAL, varint(self.original))]
        fields += [_field(DIGEST, self.digest), _field(COUNT, varint(len(self.blocks)))]
        for tag, (name, kind) in FIELDS.items():
            value = getattr(self.decoder, name)
            if value:
                fields.append(
                    _field(tag, value.encode() if kind == TEXT else varint(value) if kind == NUMBER else value)
                )
        table = b"".join(
            varint(each.symbols) + varint(each.coded) + varint(each.original)
            + struct.pack("<II", each.coded_crc, each.original_crc)
            for each in self.blocks
        )  # fmt: skip
        joined = b"".join(fields)
        return MAGIC + varint(VERSION) + varint(len(joined)) + joined + table


def unpack(data: bytes) -> Container:
    """Reads the header of a compressed file.

    Args:
        data: The file's bytes; the end may be missing.

    Raises:
        CorruptStream: Where the header is damaged, of another version, or not ours.
    """
    if data[: len(MAGIC)] != MAGIC:
        raise CorruptStream("this is no file that outlay compressed")
    cursor = Cursor(data, len(MAGIC))
    version = cursor.varint(1 << 16)
    if version != VERSION:
        raise CorruptStream(f"the file is of version {version}, but this program reads version {VERSION}")
    end = cursor.varint(HEADER_BYTES) + cursor.at
    raw: dict[int, bytes] = {}
    while cursor.at < end:
        tag = cursor.varint(64)
        raw[tag] = cursor.take(cursor.varint(HEADER_BYTES))
    if cursor.at != end or not {KIND, ORIGINAL, DIGEST, COUNT} <= raw.keys() <= {
        *FIELDS,
        KIND,
        ORIGINAL,
        DIGEST,
        COUNT,
    }:
        raise CorruptStream("the header is damaged")
    count, original = _number(raw[COUNT], BLOCKS), _number(raw[ORIGINAL], ORIGINAL_BYTES)
    if 11 * count > len(data) - cursor.at:
        raise CorruptStream("the file ends within the table of its blocks")
    blocks = tuple(
        Block(*(cursor.varint(ORIGINAL_BYTES) for _ in range(3)), *struct.unpack("<II", cursor.take(8)))
        for _ in range(count)
    )
    (crc,) = struct.unpack("<I", cursor.take(4))
    if crc != zlib.crc32(data[: cursor.at - 4]) or raw[KIND][0] >= len(KINDS) or len(raw[DIGEST]) != 32:
        raise CorruptStream("the header is damaged")
    body = data[cursor.at :]
    if sum(block.original for block in blocks) != original or len(body) > sum(block.coded for block in blocks):
        raise CorruptStream("the table of blocks does not fit the file")
    return Container(KINDS[raw[KIND][0]], original, raw[DIGEST], _decoder(raw), blocks, body)


def _decoder(raw: dict[int, bytes]) -> Decoder:
    values: dict[str, str | int | bytes] = {}
    for tag, (name, kind) in FIELDS.items():
        if tag in raw:
            try:
                value = raw[tag]
                values[name] = value.decode() if kind == TEXT else _number(value, 1 << 48) if kind == NUMBER else value
            except UnicodeDecodeError:
                raise CorruptStream("the header is damaged") from None
    return Decoder(**values)  # type: ignore[arg-type]


def _field(tag: int, value: bytes) -> bytes:
    return varint(tag) + varint(len(value)) + value


def _number(value: bytes, below: int) -> int:
    cursor = Cursor(value, 0)
    number = cursor.varint(below)
    if cursor.at != len(value):
        raise CorruptStream("the header is damaged")
    return number


def varint(number: int) -> bytes:
    """Returns a number of 0 or more in groups of seven bits, the lowest first."""
    out = bytearray()
    while number >= 128:
        out.append(number & 127 | 128)
        number >>= 7
    out.append(number)
    return bytes(out)


class Cursor:
    """A place in some bytes, from which numbers and bytes are read in order."""

    def __init__(self, data: bytes, at: int = 0) -> None:
        self.data, self.at = data, at

    def varint(self, below: int) -> int:
        """Reads a number. Raises `CorruptStream` where the bytes end, or it is not below a bound."""
        number = shift = 0
        while True:
            if self.at >= len(self.data):
                raise CorruptStream("the file ends within its header")
            byte = self.data[self.at]
            self.at += 1
            number |= (byte & 127) << shift
            shift += 7
            if byte < 128:
                break
            if shift > 63:
                raise CorruptStream("the header is damaged")
        if number >= below:
            raise CorruptStream("the header is damaged")
        return number

    def take(self, count: int) -> bytes:
        """Reads `count` bytes. Raises `CorruptStream` where there are fewer."""
        if count > len(self.data) - self.at:
            raise CorruptStream("the file ends within its header")
        self.at += count
        return self.data[self.at - count : self.at]
