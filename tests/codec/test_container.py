"""Damage is told: a file is read whole, or refused in one line, whatever happened to its bytes."""

from __future__ import annotations

import random

import pytest
from codec.make_archives import TEXT
from codec.reading import forced, read
from hypothesis import given
from hypothesis import strategies as st

from outlay import codec
from outlay.codec.container import BLOCKS, CorruptStream, Cursor, unpack, varint
from outlay.codec.files import decompress_all, missing_ranges, open_text


@pytest.fixture(scope="module")
def packed(model):
    return forced(TEXT, model, block=40)


@given(st.integers(0, BLOCKS - 1))
def test_numbers_come_back(number):
    assert Cursor(varint(number)).varint(BLOCKS) == number


def test_a_container_says_what_decodes_it_and_nothing_else(packed):
    about = codec.inspect(packed)
    assert about["kind"] == "text"
    assert about["original_bytes"] == len(TEXT)
    assert about["arithmetic"] == 1
    assert sum(block["original"] for block in about["blocks"]) == len(TEXT)
    assert sum(block["coded"] for block in about["blocks"]) + about["header_bytes"] == len(packed)


def test_every_bit_of_a_header_is_guarded(packed):
    size = unpack(packed).overhead
    for bit in range(8 * size):
        damaged = bytearray(packed)
        damaged[bit // 8] ^= 1 << bit % 8
        with pytest.raises(CorruptStream):
            unpack(bytes(damaged))


@pytest.mark.parametrize("kind", ["text", "xz"])
def test_two_thousand_places_of_a_body_are_guarded(packed, model, kind):
    """Flipped bits and bytes never give other bytes: the block that they are in is named."""
    file = packed if kind == "text" else codec.compress(random.Random(3).randbytes(500))
    container, draw = unpack(file), random.Random(1)
    for _ in range(2000):
        damaged = bytearray(container.body)
        place = draw.randrange(len(damaged))
        damaged[place] ^= draw.randrange(1, 256)
        ends = [sum(block.coded for block in container.blocks[: index + 1]) for index in range(len(container.blocks))]
        hit = next(index for index, end in enumerate(ends) if place < end)
        whole = unpack(file[: len(file) - len(damaged)] + bytes(damaged))
        with pytest.raises(CorruptStream) as caught:
            whole.coded(hit)
        assert caught.value.block == hit


@pytest.mark.parametrize("kind", ["text", "xz"])
def test_every_truncation_is_refused(packed, model, kind):
    file = packed if kind == "text" else codec.compress(b"some text, some text, and more")
    header = unpack(file).overhead
    for length in range(len(file)):
        if length < header:
            with pytest.raises(CorruptStream):
                unpack(file[:length])
        else:
            container = unpack(file[:length])
            with pytest.raises(CorruptStream, match="ends before"):
                container.coded(len(container.blocks) - 1)


def test_bytes_behind_the_end_are_refused(packed):
    with pytest.raises(CorruptStream, match="table of blocks"):
        unpack(packed + b"\0")


def test_a_stream_that_was_forged_with_its_checksum_decodes_to_other_bytes_and_is_told(packed, model):
    """The checksum of the coded bytes is made right again, so that the coder itself reads the damaged words."""
    from dataclasses import replace

    from outlay.codec.container import Block

    container = unpack(packed)
    first = container.blocks[0]
    body = bytearray(container.body)
    body[first.coded // 2] ^= 16
    forged = Block.of(first.symbols, bytes(body[: first.coded]), b"")._replace(
        original=first.original, original_crc=first.original_crc
    )
    damaged = replace(container, blocks=(forged, *container.blocks[1:]), body=bytes(body)).pack()
    with pytest.raises(CorruptStream) as caught:
        read(damaged, model)
    assert caught.value.block == 0


def test_one_damaged_block_costs_itself_alone(packed, model):
    container = unpack(packed)
    at = len(packed) - len(container.body) + container.blocks[0].coded + 1
    damaged = unpack(packed[:at] + bytes([packed[at] ^ 1]) + packed[at + 1 :])
    coder = open_text(model, damaged)
    with coder.codec:
        ((_, _, decoded),) = decompress_all([(0, damaged)], coder)
    begin, end = container.blocks[0].original, container.blocks[0].original + container.blocks[1].original
    assert missing_ranges(damaged, decoded) == [(1, begin, end, "its bytes are damaged")]
    assert decoded.data == TEXT[:begin] + TEXT[end:]


def test_a_length_that_is_not_there_takes_no_memory(packed):
    """A header that promises more than the file has is refused before anything is made for it."""
    for lie in (varint(1 << 40), varint((1 << 24) - 1)):
        with pytest.raises(CorruptStream):
            unpack(packed[:5] + lie + packed[7:])


def test_what_is_no_file_of_ours_is_refused():
    for data in (b"", b"\xf0", b"PK\x03\x04" * 40, b"\xf0OLZ\x02\x00"):
        with pytest.raises(CorruptStream):
            unpack(data)


def test_a_file_that_decodes_to_too_much_is_refused(packed, model):
    from outlay.errors import UsageError

    with pytest.raises(UsageError, match="--max-size"):
        codec.decompress(packed, model, max_size=10)
