"""The entropy coder serves any class that tells the weights of the next symbol."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from outlay import codec
from outlay.codec.coder import pack_words, unpack_words
from outlay.errors import UsageError


class Counts:
    """A stranger's model: a symbol's weight is how often it was seen in its lane, and one."""

    def __init__(self, size):
        self.size = size

    @property
    def fingerprint(self):
        return f"counts-{self.size}"

    def begin(self, lanes):
        return torch.ones(lanes, self.size, dtype=torch.int32)

    def next_pmf(self, state):
        return state.clone()

    def push(self, state, symbols):
        state[torch.arange(len(symbols)), symbols] += 7


@settings(max_examples=40, deadline=None)
@given(
    size=st.integers(2, 300), lanes=st.integers(1, 4), steps=st.integers(0, 40), seed=st.integers(0, 99),
    stream=st.sampled_from(["sample", "batch"]),
)  # fmt: skip
def test_symbols_of_any_model_come_back(size, lanes, steps, seed, stream):
    symbols = torch.randint(0, size, (lanes, steps), generator=torch.Generator().manual_seed(seed))
    streams = codec.encode(Counts(size), symbols, stream)
    assert len(streams) == (1 if stream == "batch" else lanes)
    assert torch.equal(codec.decode(Counts(size), streams, lanes, steps), symbols)
    assert all((unpack_words(pack_words(words)) == words).all() for words in streams)


def test_coded_length_is_near_the_ideal():
    symbols = torch.zeros(1, 3000, dtype=torch.int64)
    symbols[0, ::5] = 3
    (words,) = codec.encode(Counts(10), symbols)
    ideal = codec.ideal_bits(Counts(10), symbols)
    assert ideal <= 32 * len(words) <= 1.001 * ideal + 64


def test_a_stream_that_is_cut_or_longer_is_told():
    symbols = torch.randint(0, 50, (1, 60), generator=torch.Generator().manual_seed(1))
    (words,) = codec.encode(Counts(50), symbols)
    for other in (words[:-1], words[1:], [*words, 1]):
        with pytest.raises(codec.CorruptStream):
            codec.decode(Counts(50), [other], 1, 60)


def test_weights_that_no_symbol_can_have_are_refused():
    class Wrong(Counts):
        def next_pmf(self, state):
            return state * self.factor

    for factor in (0, -1):
        wrong = Wrong(5)
        wrong.factor = factor
        with pytest.raises(UsageError, match="weight"):
            codec.encode(wrong, torch.zeros(1, 2, dtype=torch.int64))
