"""Pictures compressed with loss by a learned codec: files whose slices decode alone, and open on any machine."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from outlay import kernels
from outlay.budget import Ledger, declare
from outlay.codec.circuit.arrays import pack_streams, unpack_streams
from outlay.codec.coder import CODER, pack_words, refuse_without_kernels
from outlay.codec.container import Block, Container, CorruptStream, Cursor, Decoder, varint
from outlay.codec.files import Decoded, OnBlock, Written, refuse_other, this_writer
from outlay.codec.lic.networks import HYPER_STRIDE
from outlay.codec.lic.picture_codec import Code, PictureCodec
from outlay.errors import UsageError
from outlay.pictures import LARGEST_SIDE

Key = TypeVar("Key")
STREAM = "slice"
for _name, _unit in (("stages", "stages"), ("pixels", "pixels")):
    declare(_name, _unit)


@dataclass(frozen=True)
class Size:
    """What a file says of its picture."""

    height: int
    width: int
    channels: int
    """How many channels were sent, the first of the codec's order."""


class PictureCoder:
    """Compresses pictures with a learned codec, with loss: what comes back exactly are the rounded latents.

    It is a `files.Reader`, and no `files.Coder`, since those give originals back.
    """

    kind = "picture"

    def __init__(
        self, codec: PictureCodec, name: str, *, channels: float | int | None = None, workers: int = 1
    ) -> None:
        """Takes a codec.

        Args:
            codec: The codec.
            name: What files call it, for people.
            channels: For writing: how many of its channels are sent, or a share below 1 of them; None: all.
            workers: Slices that are decoded at a time.

        Raises:
            UsageError: For no channel, or more than there are, or where the kernels are not available.
        """
        refuse_without_kernels()
        every = codec.codec.form.latents
        sent = every if channels is None else round(channels * every) if channels < 1 else channels
        if not 1 <= sent <= every or sent != int(sent):
            raise UsageError(f"{name} has {every} channels: send 1 to {every}, or a share below 1, not {channels}")
        self.codec, self.name, self.channels, self.workers = codec, name, int(sent), workers
        self.decoder = Decoder(
            model=name,
            weights=codec.digest,
            format="float32",
            arithmetic=kernels.ARITHMETIC,
            probe=codec.tables.probe,
            writer=this_writer(),
            stream=STREAM,
            coder=CODER,
        )

    def close(self) -> None:
        """See `files.Reader`."""

    def compress(self, picture: Tensor, on_block: OnBlock = lambda amount: None) -> Written:
        """Compresses a picture, uint8 [height, width, 3]."""
        height, width = picture.shape[:2]
        pixels = self.codec.padded(picture.permute(2, 0, 1).float() / 255)
        integers, hyper, code = self.codec.integers(pixels)
        integers[self.channels :] = 0
        blocks, coded, originals, ideal = [], [], [], 0.0
        if hyper is not None:
            words, bits = self.codec.tables.encode(
                hyper.flatten(), self.codec.hyper_numbers(*hyper.shape[1:]).flatten()
            )
            coded.append(pack_words(words))
            originals.append(_bytes(hyper))
            ideal += bits
        for part in range(self.codec.layout.slices):
            streams, bits = self._encode_slice(part, integers, code)
            coded.append(streams)
            first, second = self.codec.layout.stages(part, self.channels)
            originals.append(_bytes(integers[[*first, *second]]))
            ideal += bits
        for packed, original in zip(coded, originals, strict=True):
            blocks.append(Block.of(len(original) // 4, packed, original))
            on_block(len(original))
        details = b"".join(map(varint, (height, width, self.channels)))
        container = Container.of(
            self.kind, b"".join(originals), self.decoder._replace(details=details), blocks, coded
        )  # fmt: skip
        return Written(container, ideal, Ledger(extras={"stages": self._stages, "pixels": height * width}))

    @property
    def _stages(self) -> int:
        """Stages of entropy coding that wait for each other: the hyper latents, cores, auxiliaries."""
        return 2 + self.codec.codec.form.hyper

    def _encode_slice(self, part: int, integers: Tensor, code: Code) -> tuple[bytes, float]:
        first, second = self.codec.layout.stages(part, self.channels)
        values, numbers = self._stage_b(second, integers, code)
        words_a, bits_a = self.codec.tables.encode(integers[first].flatten(), code.numbers[first].flatten())
        words_b, bits_b = self.codec.tables.encode((integers[second] - values).flatten(), numbers.flatten())
        return pack_streams([pack_words(words_a), pack_words(words_b)]), bits_a + bits_b

    def _stage_b(self, channels: list[int], integers: Tensor, code: Code) -> tuple[Tensor, Tensor]:
        """Returns what is subtracted from auxiliaries, and their tables, once the cores are known: int64 [n, h, w]."""
        shift, numbers = torch.zeros_like(integers[channels]), code.numbers[channels].clone()
        for place, channel in enumerate(channels):
            if self.codec.predicted(channel):
                core = integers[self.codec.layout.core_of[channel]]
                numbers[place], shift[place] = self.codec.predict(channel, core, code)
        return shift, numbers

    def read(self, containers: Iterator[tuple[Key, Container]], on_block: OnBlock) -> Iterator[tuple[Key, Decoded]]:
        """See `files.Reader`. The blocks are the integers of slices: `render` makes the picture of them."""
        for key, container in containers:
            size, found = self._size(container), Decoded()
            hyper = self._read_hyper(container, size, found)
            if self.codec.codec.form.hyper:
                on_block(container.blocks[0].original)
            code = self._code(size, hyper)

            def read_slice(
                part: int, container: Container = container, code: Code = code, size: Size = size
            ) -> bytes | str:
                place = part + self.codec.codec.form.hyper
                try:
                    original = _bytes(self._read_slice(container, place, part, code, size))
                    container.check(place, original)
                except CorruptStream as error:
                    return str(error if error.block is not None else CorruptStream(str(error), place))
                return original

            parts = range(self.codec.layout.slices)
            if hyper is None and self.codec.codec.form.hyper:
                slices: list[bytes | str] = [f"block {p + 1}: the scales in block 0 are damaged" for p in parts]
            elif self.workers > 1:
                with ThreadPoolExecutor(self.workers) as pool:
                    slices = list(pool.map(read_slice, parts))
            else:
                slices = [read_slice(part) for part in parts]
            for original in slices:
                place = len(found.blocks)
                if isinstance(original, str):
                    found.missing[place] = original
                found.blocks.append(original if isinstance(original, bytes) else b"")
                on_block(container.blocks[place].original)
            found.ledger.extras["stages"] = self._stages
            yield key, found

    def _read_hyper(self, container: Container, size: Size, found: Decoded) -> Tensor | None:
        if not self.codec.codec.form.hyper:
            return None
        height, width = (side // HYPER_STRIDE for side in self._latents(size))
        numbers = self.codec.hyper_numbers(height, width)
        try:
            self._refuse_strange(container, 0, numbers.numel())
            (words,) = unpack_streams(container.coded(0), 1)
            values = self.codec.tables.decode(words, numbers.flatten()).view_as(numbers)
            container.check(0, _bytes(values))
        except CorruptStream as error:
            found.missing[0] = str(error if error.block is not None else CorruptStream(str(error), 0))
            found.blocks.append(b"")
            return None
        found.blocks.append(_bytes(values))
        return values

    def _read_slice(self, container: Container, place: int, part: int, code: Code, size: Size) -> Tensor:
        """Returns the integers of a slice, int64 [channels, height, width], cores first."""
        first, second = self.codec.layout.stages(part, size.channels)
        shape = code.numbers.shape[1:]
        self._refuse_strange(container, place, (len(first) + len(second)) * shape.numel())
        words_a, words_b = unpack_streams(container.coded(place), 2)
        integers = torch.zeros_like(code.numbers)
        integers[first] = self.codec.tables.decode(words_a, code.numbers[first].flatten()).view(-1, *shape)
        shift, numbers = self._stage_b(second, integers, code)
        rest = self.codec.tables.decode(words_b, numbers.flatten()).view(-1, *shape) + shift
        return torch.cat([integers[first], rest])

    def render(self, container: Container, decoded: Decoded) -> Tensor:
        """Returns the picture of a file, uint8 [height, width, 3]; what is missing is filled with the prior's mean."""
        size = self._size(container)
        blocks, hyper = list(decoded.blocks), None
        rows, columns = self._latents(size)
        if self.codec.codec.form.hyper:
            told = blocks.pop(0)
            shape = (self.codec.codec.form.inner, rows // HYPER_STRIDE, columns // HYPER_STRIDE)
            hyper = torch.from_numpy(np.frombuffer(told, "<i4").astype(np.int64)).view(shape) if told else None
        code = self._code(size, hyper)
        integers = torch.zeros(self.codec.codec.form.latents, rows, columns, dtype=torch.int64)
        for part, block in enumerate(blocks):
            first, second = self.codec.layout.stages(part, size.channels)
            if block:
                values = torch.from_numpy(np.frombuffer(block, "<i4").astype(np.int64))
                integers[[*first, *second]] = values.view(-1, rows, columns)
        pixels = self.codec.picture(integers, code)[:, : size.height, : size.width]
        return (pixels * 255).round().to(torch.uint8).permute(1, 2, 0)

    def fits(self, container: Container) -> None:
        """See `files.Reader`."""
        if container.kind != self.kind:
            raise UsageError(
                f"the file was compressed with a {container.kind} model, and {self.name} is a picture codec"
            )
        refuse_other(container.decoder, self.decoder, self.name)

    def _size(self, container: Container) -> Size:
        cursor = Cursor(container.decoder.details)
        size = Size(
            cursor.varint(LARGEST_SIDE + 1),
            cursor.varint(LARGEST_SIDE + 1),
            cursor.varint(self.codec.codec.form.latents + 1),
        )
        count = self.codec.layout.slices + self.codec.codec.form.hyper
        latents = self._latents(size)
        symbols = size.channels * latents[0] * latents[1]
        if self.codec.codec.form.hyper:
            symbols += self.codec.codec.form.inner * latents[0] * latents[1] // HYPER_STRIDE**2
        told = sum(block.symbols for block in container.blocks)
        if not (size.height and size.width and size.channels) or len(container.blocks) != count or told != symbols:
            raise CorruptStream("the header is damaged")
        return size

    def _latents(self, size: Size) -> tuple[int, int]:
        form = self.codec.codec.form
        height, width = (-(-side // form.multiple) * form.multiple // form.stride for side in (size.height, size.width))
        return height, width

    def _code(self, size: Size, hyper: Tensor | None) -> Code:
        height, width = self._latents(size)
        form = self.codec.codec.form
        if form.hyper and hyper is None:
            hyper = torch.zeros(form.inner, height // HYPER_STRIDE, width // HYPER_STRIDE, dtype=torch.int64)
        return self.codec.code(height, width, hyper)

    def _refuse_strange(self, container: Container, place: int, symbols: int) -> None:
        block = container.blocks[place]
        if block.symbols != symbols or block.original != 4 * symbols:
            raise CorruptStream("it can't have that many symbols", place)


def _bytes(integers: Tensor) -> bytes:
    return integers.numpy().astype("<i4").tobytes()
