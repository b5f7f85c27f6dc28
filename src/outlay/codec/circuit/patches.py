"""Photos without loss: a circuit over patches of 8 x 8 pixels, given the pixels above and to the left.

A picture is first transformed, reversibly and modulo 256: red and blue become their differences to green, and every
value its difference to the median edge detector's guess from the values above, to the left and between
(Weinberger, Seroussi & Sapiro 2000, section III-A, the predictor of JPEG-LS). What is left is small where the picture
is smooth; how small depends on what is near, which is what the circuit knows. Strips of a picture are transformed and
coded each on its own, so a damaged one costs itself alone. Patches of one diagonal of a tile are decoded together.
"""

from __future__ import annotations

import io
import re
from collections.abc import Iterator
from dataclasses import dataclass
from hashlib import sha256
from typing import Any, NamedTuple, TypeVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from outlay import kernels
from outlay.budget import Ledger
from outlay.codec.circuit.latent_tree import LatentTree
from outlay.codec.circuit.schedules import CircuitModel
from outlay.codec.coder import CODER, pack_words, unpack_words
from outlay.codec.container import Block, Container, CorruptStream, Cursor, Decoder, varint
from outlay.codec.files import Decoded, OnBlock, Written, refuse_other, this_writer
from outlay.errors import UsageError

Key = TypeVar("Key")
Plane = npt.NDArray[np.int64]
SHADES = 256
PATCH = 8  # pixels a side
BORDER = 2 * PATCH + 1  # pixels above and to the left of a patch, with the one between
TILE = 256  # pixels a side of what patches have neighbours in: a strip has as many rows
LARGEST = 1 << 16  # pixels a side
_HEADER = re.compile(rb"(P[56])(?:\s+|#[^\n]*\n)+(\d+)(?:\s+|#[^\n]*\n)+(\d+)(?:\s+|#[^\n]*\n)+255\s")
_LONGEST = 1 << 12  # bytes of a header, at most
PNG = b"\x89PNG"


@dataclass(frozen=True)
class PictureFile:
    """A picture's pixels, with what precedes them in its file."""

    header: bytes
    """That of a binary .pgm or .ppm file."""
    pixels: npt.NDArray[np.uint8]
    """[height, width, channels], 1 channel or 3."""

    @classmethod
    def of(cls, data: bytes, pixels: bool = False) -> PictureFile:
        """Reads a .pgm or .ppm file of bytes, or the pixels of a PNG where they are enough.

        Raises:
            UsageError: For any other file.
        """
        if data.startswith(PNG):
            if not pixels:
                raise UsageError("a circuit of patches gives back the pixels of a PNG, not its bytes; say --pixels if "
                                 "they are enough")  # fmt: skip
            return cls._of_png(data)
        header = parsed(data[:_LONGEST])
        if header is None:
            raise UsageError(
                "a circuit of patches compresses .pgm and .ppm files, and the pixels of a PNG; this is none"
            )
        length, shape = header
        if len(data) - length != int(np.prod(shape)):
            raise UsageError(f"the picture should have {int(np.prod(shape)):,} bytes of pixels behind its header, not "
                             f"{len(data) - length:,}")  # fmt: skip
        return cls(data[:length], np.frombuffer(data, np.uint8, offset=length).reshape(shape))

    @classmethod
    def _of_png(cls, data: bytes) -> PictureFile:
        from PIL import Image

        try:
            with Image.open(io.BytesIO(data)) as opened:
                plain = getattr(opened, "n_frames", 1) == 1 and "transparency" not in opened.info
                if opened.mode not in ("L", "RGB") or not plain:
                    raise UsageError(f"pixels are kept of opaque pictures in grey or RGB of 8 bits, and this one is "
                                     f"{opened.mode}; leave out --pixels to keep its bytes")  # fmt: skip
                pixels = np.array(opened)
        except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
            raise UsageError(f"the PNG can't be read: {error}") from None
        pixels = pixels.reshape(*pixels.shape[:2], -1)
        height, width, channels = pixels.shape
        return cls(f"P{6 if channels == 3 else 5}\n{width} {height}\n255\n".encode(), pixels)

    @property
    def data(self) -> bytes:
        """The bytes of the .pgm or .ppm file."""
        return self.header + self.pixels.tobytes()


def parsed(header: bytes) -> tuple[int, tuple[int, int, int]] | None:
    """Returns the length of a .pgm or .ppm header and the shape of its pixels; None where it is no such header."""
    found = _HEADER.match(header)
    if found is None:
        return None
    width, height = int(found[2]), int(found[3])
    if not 1 <= min(width, height) <= max(width, height) <= LARGEST:
        return None
    return found.end(), (height, width, 3 if found[1] == b"P6" else 1)


def residuals(pixels: npt.NDArray[np.uint8]) -> Plane:
    """Returns what is left of a strip after the reversible transform, 128 for nothing: [rows, columns, C]."""
    planes = _differences(pixels.astype(np.int64))
    around = np.zeros((planes.shape[0] + 1, planes.shape[1] + 1, planes.shape[2]), np.int64)
    around[1:, 1:] = planes
    above, left, between = around[:-1, 1:].copy(), around[1:, :-1].copy(), around[:-1, :-1].copy()
    above[0] = between[0] = left[0]
    left[1:, 0] = between[1:, 0] = above[1:, 0]
    return (planes - _guess(above, left, between) + SHADES // 2) % SHADES


def restored(left_over: Plane) -> npt.NDArray[np.uint8]:
    """Returns the pixels of `residuals`, uint8 [rows, columns, C]. Pixels of one diagonal are made together."""
    rows, columns, _ = left_over.shape
    planes = np.empty_like(left_over)
    for diagonal in range(rows + columns - 1):
        row = np.arange(max(0, diagonal - columns + 1), min(rows, diagonal + 1))
        column = diagonal - row
        up, back = np.maximum(row - 1, 0), np.maximum(column - 1, 0)
        above, left, between = planes[up, column], planes[row, back], planes[up, back]
        if diagonal == 0:
            above = left = between = np.zeros_like(left_over[:1, 0])
        top, edge = (row == 0)[:, None], (column == 0)[:, None]
        above, between = np.where(top, left, above), np.where(top, left, between)
        left, between = np.where(edge & ~top, above, left), np.where(edge & ~top, above, between)
        planes[row, column] = (left_over[row, column] + _guess(above, left, between) - SHADES // 2) % SHADES
    if planes.shape[2] == 3:
        planes[..., [0, 2]] = (planes[..., [0, 2]] + planes[..., 1:2] - SHADES // 2) % SHADES
    return planes.astype(np.uint8)


def _differences(planes: Plane) -> Plane:
    if planes.shape[2] == 3:
        planes[..., [0, 2]] = (planes[..., [0, 2]] - planes[..., 1:2] + SHADES // 2) % SHADES
    return planes


def _guess(above: Plane, left: Plane, between: Plane) -> Plane:
    low, high = np.minimum(above, left), np.maximum(above, left)
    return np.where(between >= high, low, np.where(between <= low, high, above + left - between))


def samples_of(pixels: npt.NDArray[np.uint8], step: int = PATCH) -> Tensor:
    """Returns patches of a picture with their borders, to fit a circuit to.

    Args:
        pixels: uint8 [height, width, channels].
        step: Pixels from a patch to the next.

    Returns:
        int64 [patches, (BORDER + PATCH^2) * channels]; the borders come first.
    """
    planes = residuals(pixels)
    rows, columns = (np.arange(1, size - PATCH + 1, step) for size in planes.shape[:2])
    row, column = (each.reshape(-1) for each in np.meshgrid(rows, columns, indexing="ij"))
    return _gather(planes, row, column)


def _gather(planes: Plane, row: Plane, column: Plane) -> Tensor:
    """Returns borders and patches, int64 [patches, variables]; what lies outside of the picture is that of its edge."""
    down, along = _offsets()
    found = planes[np.maximum(row[:, None] + down, 0), np.maximum(column[:, None] + along, 0)]
    return torch.from_numpy(found.reshape(len(row), -1))


def _offsets() -> tuple[Plane, Plane]:
    """Returns rows and columns of a border and a patch beside its first pixel, int64 [BORDER + PATCH^2] each."""
    side = np.arange(PATCH)
    down = np.concatenate([np.full(PATCH + 1, -1), side, side.repeat(PATCH)])
    along = np.concatenate([np.arange(-1, PATCH), np.full(PATCH, -1), np.tile(side, PATCH)])
    return down, along


@dataclass(frozen=True)
class _Strip:
    """The patches of some rows of a picture: first pixels int64 [patches], and the diagonal of its tile each is in."""

    rows: int
    row: Plane
    column: Plane
    diagonal: Plane

    @classmethod
    def of(cls, rows: int, columns: int) -> _Strip:
        grid = np.meshgrid(np.arange(0, rows, PATCH), np.arange(0, columns, PATCH), indexing="ij")
        row, column = (each.reshape(-1) for each in grid)
        return cls(rows, row, column, (row + column % TILE) // PATCH)

    def known(self, channels: int) -> Tensor:
        """Tells which variables lie in the same tile, before the patch: bool [patches, variables]."""
        down, along = _offsets()
        inside = (self.row[:, None] + down >= 0) & (self.column[:, None] % TILE + along >= 0)
        return torch.from_numpy(inside.repeat(channels, axis=1))


class PatchCoder:
    """Compresses pictures with a circuit of patches; see `files.Coder`."""

    kind = "patches"

    def __init__(self, circuit: LatentTree, name: str, *, pixels: bool = False) -> None:
        """Takes a circuit over borders and patches of grey or of RGB pictures.

        Args:
            circuit: The circuit.
            name: What files call it, for people.
            pixels: Whether the pixels of a PNG are enough; otherwise PNGs are refused.

        Raises:
            UsageError: For a circuit over something else.
        """
        self.channels, rest = divmod(circuit.variables, BORDER + PATCH**2)
        if rest or self.channels not in (1, 3) or circuit.categories != SHADES:
            raise UsageError(f"{name} is no circuit of patches; `outlay train circuit PICTURES --patches` makes one")
        self.name, self.circuit, self._pixels = name, circuit, pixels
        self.model = CircuitModel(circuit, given=range(BORDER * self.channels))
        self.decoder = Decoder(
            model=name, weights=circuit.digest, format="float32", arithmetic=kernels.ARITHMETIC, probe=self._probe(),
            writer=this_writer(), alphabet=SHADES, block=TILE, stream="block", coder=CODER,
        )  # fmt: skip

    def close(self) -> None:
        """See `files.Coder`."""

    def write(
        self, originals: Iterator[tuple[Key, bytes, int]], on_block: OnBlock
    ) -> Iterator[tuple[Key, Written | int]]:
        """See `files.Coder`."""
        for key, data, _ in originals:
            picture = PictureFile.of(data, self._pixels)
            if picture.pixels.shape[2] != self.channels:
                raise UsageError(f"the picture has {picture.pixels.shape[2]} channels, and {self.name} {self.channels}")
            blocks, coded, ideal = [], [], 0.0
            for begin in range(0, len(picture.pixels), TILE):
                strip = picture.pixels[begin : begin + TILE]
                words, bits = self._written(strip)
                coded.append(pack_words(words))
                original = (picture.header if begin == 0 else b"") + strip.tobytes()
                blocks.append(Block.of(self._symbols(strip.shape[0], strip.shape[1]), coded[-1], original))
                ideal += bits
                on_block(len(original))
            details = varint(len(picture.header)) + picture.header + (PNG if data.startswith(PNG) else b"")
            container = Container.of(self.kind, picture.data, self.decoder._replace(details=details), blocks, coded)
            yield key, Written(container, ideal, Ledger())

    def read(self, containers: Iterator[tuple[Key, Container]], on_block: OnBlock) -> Iterator[tuple[Key, Decoded]]:
        """See `files.Coder`. The strips of a picture are decoded together."""
        for key, container in containers:
            found = Decoded()
            header, (height, width, _), _ = details_of(container)
            heights = [min(TILE, height - begin) for begin in range(0, height, TILE)]
            if len(heights) != len(container.blocks):
                raise CorruptStream("the header is damaged")
            streams: dict[int, Any] = {}
            for place, rows in enumerate(heights):
                try:
                    if container.blocks[place].symbols != self._symbols(rows, width):
                        raise CorruptStream("it can't have that many symbols", place)
                    streams[place] = unpack_words(container.coded(place))
                except CorruptStream as error:
                    found.missing[place] = str(error)
            strips = self._read({place: (heights[place], words) for place, words in streams.items()}, width)
            for place, block in enumerate(container.blocks):
                original = b""
                if place in strips:
                    original = (header if place == 0 else b"") + strips[place].tobytes()
                    try:
                        container.check(place, original)
                    except CorruptStream as error:
                        found.missing[place], original = str(error), b""
                elif place not in found.missing:
                    found.missing[place] = str(CorruptStream("it holds other symbols than it should", place))
                found.blocks.append(original)
                on_block(block.original)
            yield key, found

    def fits(self, container: Container) -> None:
        """See `files.Coder`."""
        if container.kind != self.kind:
            raise UsageError(
                f"the file was compressed with a {container.kind} model, and {self.name} is one of patches"
            )
        refuse_other(container.decoder, self.decoder, self.name)
        if details_of(container)[1][2] != self.channels or container.decoder.block != TILE:
            raise CorruptStream("the header is damaged")

    def _symbols(self, rows: int, columns: int) -> int:
        return -(-rows // PATCH) * -(-columns // PATCH) * PATCH**2 * self.channels

    def _written(self, pixels: npt.NDArray[np.uint8]) -> tuple[Any, float]:
        """Returns the words of a strip and its bits under the circuit."""
        rows, columns, _ = pixels.shape
        strip, planes = _Strip.of(rows, columns), _padded(residuals(pixels))
        values, known = _gather(planes, strip.row, strip.column), strip.known(self.channels)
        order = np.argsort(strip.diagonal, kind="stable")
        intervals = np.empty((len(self.model.order), len(order), 2), np.uint32)
        state, bits = self.model.begin(len(order), values, known), 0.0
        for step, variable in enumerate(self.model.order):
            weights, symbols = self.model.next_pmf(state), values[:, variable]
            intervals[step] = kernels.intervals(weights, symbols)
            exact = weights.double()
            bits += float((exact.sum(1) / exact.gather(1, symbols[:, None])[:, 0].clamp_min(1)).log2().sum())
            self.model.push(state, symbols)
        ends = np.cumsum(np.bincount(strip.diagonal))[:-1]
        sequence = np.concatenate([intervals[:, part].reshape(-1, 2) for part in np.split(order, ends)])
        return kernels.ans_encode(np.ascontiguousarray(sequence)), bits

    def _read(self, streams: dict[int, tuple[int, Any]], columns: int) -> dict[int, npt.NDArray[np.uint8]]:
        """Returns the pixels of strips by their place; those whose streams hold other symbols are left out."""
        if not streams:
            return {}
        strips = [_Strip.of(rows, columns) for rows, _ in streams.values()]
        tallest = max(strip.rows for strip in strips)
        sides = (-(-size // PATCH) * PATCH for size in (tallest, columns))
        picture = np.full((len(strips), *sides, self.channels), SHADES // 2, np.int64)
        owner = np.concatenate([np.full(len(strip.row), place) for place, strip in enumerate(strips)])
        row, column, diagonal = (
            np.concatenate([getattr(strip, name) for strip in strips]) for name in ("row", "column", "diagonal")
        )
        known = torch.cat([strip.known(self.channels) for strip in strips])
        reader = kernels.AnsReader([words for _, words in streams.values()])
        body = BORDER * self.channels
        down, along = (each[BORDER:] for each in _offsets())
        for turn in range(int(diagonal.max()) + 1):
            lanes = np.flatnonzero(diagonal == turn)
            values = _gather_of(picture, owner[lanes], row[lanes], column[lanes])
            state = self.model.begin(len(lanes), values, known[lanes])
            of_lane = torch.from_numpy(owner[lanes])
            for variable in self.model.order:
                values[:, variable] = reader.decode(self.model.next_pmf(state), of_lane)
                self.model.push(state, values[:, variable])
            patch = values[:, body:].numpy().reshape(len(lanes), PATCH**2, self.channels)
            picture[owner[lanes, None], row[lanes, None] + down, column[lanes, None] + along] = patch
        return {
            place: restored(picture[number, :rows, :columns])
            for number, (place, (rows, _)) in enumerate(streams.items())
            if reader.ended(number)
        }

    def _probe(self) -> bytes:
        """Returns a digest of the weights of the first variables beside borders of nothing, 16 bytes."""
        values = torch.full((1, self.circuit.variables), SHADES // 2)
        state, digest = self.model.begin(1, values), sha256()
        for _ in range(16):
            digest.update(self.model.next_pmf(state).numpy().astype("<i4").tobytes())
            self.model.push(state, torch.full((1,), SHADES // 2))
        return digest.digest()[:16]


def _padded(planes: Plane) -> Plane:
    """Returns planes whose sides are multiples of a patch's; what is added is nothing, 128."""
    rows, columns, _ = planes.shape
    return np.pad(planes, ((0, -rows % PATCH), (0, -columns % PATCH), (0, 0)), constant_values=SHADES // 2)


def _gather_of(picture: Plane, owner: Plane, row: Plane, column: Plane) -> Tensor:
    """`_gather` of several strips [strips, rows, columns, channels], each patch of its owner's."""
    down, along = _offsets()
    found = picture[owner[:, None], np.maximum(row[:, None] + down, 0), np.maximum(column[:, None] + along, 0)]
    return torch.from_numpy(found.reshape(len(row), -1))


class Details(NamedTuple):
    """What a file says of its picture."""

    header: bytes
    """That of a .pgm or .ppm file."""
    shape: tuple[int, int, int]
    """Height, width and channels."""
    png: bool
    """Whether it was a PNG."""


def details_of(container: Container) -> Details:
    """Returns what a file says of its picture.

    Raises:
        CorruptStream: Where the header is damaged.
    """
    cursor = Cursor(container.decoder.details)
    header = cursor.take(cursor.varint(_LONGEST))
    found, rest = parsed(header), cursor.data[cursor.at :]
    if found is None or found[0] != len(header) or rest not in (b"", PNG):
        raise CorruptStream("the header is damaged")
    if container.original != len(header) + int(np.prod(found[1])):
        raise CorruptStream("the header is damaged")
    return Details(header, found[1], rest == PNG)


def png(container: Container, decoded: Decoded) -> bytes:
    """Returns the PNG of what a file decoded to; strips that are missing are grey."""
    from PIL import Image

    header, shape, _ = details_of(container)
    strips = [
        original or bytes([SHADES // 2]) * block.original
        for original, block in zip(decoded.blocks, container.blocks, strict=True)
    ]
    pixels = np.frombuffer(b"".join(strips), np.uint8, offset=len(header)).reshape(shape)
    file = io.BytesIO()
    Image.fromarray(pixels[..., 0] if shape[2] == 1 else pixels).save(file, "PNG", optimize=True)
    return file.getvalue()
