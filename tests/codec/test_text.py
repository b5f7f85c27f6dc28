"""Any bytes through a language model and back: alone, together, with any block length, with a draft and without."""

from __future__ import annotations

import lzma
import math

import pytest
import torch
from codec.make_archives import MISSING, TEXT
from codec.reading import forced, read
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from outlay import codec
from outlay.codec import coder as coding
from outlay.codec.container import unpack
from outlay.codec.files import compress_all, decompress_all, open_text, whole
from outlay.codec.symbols import bytes_of, symbols_of
from outlay.codec.text import TextCodec, TextModel, cut, start_token
from outlay.drafts import resolve
from outlay.engine.engine import Engine
from outlay.errors import UsageError
from outlay.lm import LM

NAMED = {
    "empty": b"",
    "a byte": b"a",
    "each byte": bytes(range(256)),
    "invalid UTF-8": b"abc\xff\xfe\xed\xa0\x80\xc3",
    "a special token": b"a<end><|im_end|>b",
    "lost bytes": b"a\x04b" + MISSING * 3,
    "zeros": bytes(700),
    "text": TEXT,
}


@pytest.mark.parametrize("name", NAMED)
def test_bytes_come_back(model, name):
    assert read(forced(NAMED[name], model, block=64), model) == NAMED[name]
    assert codec.decompress(codec.compress(NAMED[name], model), model) == NAMED[name]


@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.binary(max_size=120) | st.text(max_size=60).map(str.encode), block=st.integers(1, 90))
def test_any_bytes_come_back_with_any_block_length(model, data, block):
    assert read(forced(data, model, block=block), model) == data


def test_a_megabyte_of_zeros_is_left_to_xz_at_once(model):
    packed = codec.compress(bytes(1_000_000), model)
    assert codec.inspect(packed)["kind"] == "xz"
    assert len(packed) < 400
    assert codec.decompress(packed, model) == bytes(1_000_000)


def test_bytes_that_the_tokenizer_loses_are_symbols_of_their_own(model):
    vocab = model.decoder.config.vocab_size
    assert model.tokenizer.encode("a\x04b") == model.tokenizer.encode("ab"), "this is what has to be told apart"
    symbols = symbols_of(b"a\x04b", model.tokenizer, vocab)
    assert symbols[1] == vocab + 4
    assert bytes_of(symbols, model.tokenizer, vocab) == b"a\x04b"


def test_a_file_is_never_larger_than_that_of_xz_by_more_than_128_bytes(model):
    for data in NAMED.values():
        plain = lzma.compress(data, preset=9 | lzma.PRESET_EXTREME)
        assert len(codec.compress(data, model)) <= len(plain) + 128
        assert len(codec.compress(data)) <= len(plain) + 128


def test_what_the_model_writes_it_compresses_better_than_xz(model):
    data = own_text(model, 3, 500)
    packed = codec.compress(data, model, block=500)
    assert codec.inspect(packed)["kind"] == "text"
    assert len(packed) < len(lzma.compress(data))
    assert codec.decompress(packed, model) == data


def test_coded_bits_are_within_half_a_percent_and_64_bits_of_the_ideal(model):
    data = own_text(model, 6, 200)
    container = unpack(forced(data, model, block=200))
    ideal = codec.bits(data, model, block=200)
    assert 8 * sum(block.coded for block in container.blocks) <= 1.005 * ideal + 64 * len(container.blocks)


def test_bits_are_those_of_the_models_probabilities(model):
    """Token by token, by float64's own logarithm."""
    data = b"any text at all, of letters"
    sequential, expected = TextModel(model, lanes=1), 0.0
    state = sequential.begin(1)
    for token in model.tokenizer.encode(data.decode()):
        expected -= float(state.logits.double().log_softmax(1)[0, token]) / math.log(2)
        sequential.push(state, torch.tensor([token]))
    assert codec.bits(data, model) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("draft", ["lookup", "self:skip"])
def test_the_bytes_are_the_same_with_a_draft(model, draft):
    data = b"over and over, and over and over again. " * 8
    packed = forced(data, model, block=150)
    assert read(packed, model, draft=resolve(draft, model)) == data


def test_drafts_save_passes_where_a_text_repeats_itself(model):
    data = b"abcdefgh" * 40
    packed = unpack(forced(data, model, block=400))
    passes = []
    for draft in (None, resolve("lookup", model)):
        coder = open_text(model, packed, draft=draft)
        with coder.codec:
            ((_, container, decoded),) = decompress_all([(0, packed)], coder)
        assert whole(container, decoded) == data
        passes.append(decoded.ledger.target_passes)
    assert passes[1] < passes[0] / 3


@pytest.mark.parametrize("lanes", [1, 3, 32])
def test_a_file_is_read_by_any_number_of_lanes(model, lanes):
    assert read(forced(TEXT, model, block=20), model, lanes=lanes) == TEXT


def test_files_share_passes_and_come_out_as_they_do_alone(model):
    originals = [(name, own_text(model, 6, 100, 10 * seed)) for seed, name in enumerate(["a", "b", "c"])]
    coder = open_text(model, block=100)
    with coder.codec:
        together = dict(compress_all(originals, [coder]))
        for name, data in originals:
            ((_, alone),) = compress_all([(name, data)], [coder])
            assert alone.data == together[name].data
        files = [(name, each.container) for name, each in together.items()]
        decoded = {key: whole(*rest) for key, *rest in decompress_all(files, coder)}
    assert decoded == dict(originals)


def test_the_model_implements_the_protocol_and_agrees_with_the_blocks(model):
    """Step by step as a `SequentialModel`, the streams are those that the wide passes wrote."""
    sequential, vocab = TextModel(model, lanes=3), model.decoder.config.vocab_size
    texts = [b"first text, a\x04", b"second \xff\xff text", b"the third one 1"]
    symbols = torch.tensor([symbols_of(text, model.tokenizer, vocab)[:14] for text in texts])
    streams = coding.encode(sequential, symbols)
    assert torch.equal(coding.decode(TextModel(model, lanes=3), streams, 3, 14), symbols)
    with TextCodec(model, block=20) as text_codec:
        for stream, (method, _) in zip(streams, text_codec.write(iter(symbols.tolist())), strict=True):
            assert coding.kernels.ans_encode(method.coded.intervals).tolist() == stream.tolist()


def test_ledgers_carry_bytes_and_ideal_bits(model):
    ((_, found),) = compress_all([(0, TEXT)], [coder := open_text(model)])
    coder.close()
    assert found.ledger.extras["bytes_in"] == len(TEXT)
    assert found.ledger.extras["bytes_out"] == len(found.data)
    assert found.ledger.extras["ideal_bits"] > 0 or found.sizes["text"] > found.sizes["xz"]
    assert found.ledger.target_passes >= 0


def test_blocks_leave_nothing_in_the_cache(model):
    with TextCodec(model, block=50) as text_codec:
        list(text_codec.write(cut(symbols_of(TEXT, model.tokenizer, text_codec.vocab), 50)))
        worker = text_codec._engine.models[0]
        assert worker.prefixes is None
        assert worker.cache.in_use == 0


@pytest.mark.parametrize(
    ("options", "message"),
    [({"block": 0}, "1 to 511"), ({"block": 512}, "1 to 511"), ({"kv_dtype": "int3"}, "int8")],
)
def test_options_that_do_not_fit_are_refused(model, options, message):
    with pytest.raises(UsageError, match=message):
        TextCodec(model, **options)


def test_a_model_of_another_arithmetic_is_refused_with_what_would_be_right(model, monkeypatch):
    monkeypatch.setattr("outlay.codec.text.runs_whole", lambda decoder: False)
    with pytest.raises(UsageError, match="xz"):
        codec.compress(b"text", model)


def test_without_kernels_xz_still_works(model, monkeypatch):
    monkeypatch.setattr("outlay.kernels.available", lambda: False)
    with pytest.raises(UsageError, match="xz works without"):
        codec.compress(b"text", model)
    assert codec.decompress(codec.compress(b"text")) == b"text"


def own_text(model, blocks, size, seed=0):
    """What the model itself writes in blocks of `size` at temperature 1: it compresses that to its own entropy."""
    engine = Engine()
    lm = LM(model, engine)
    how = {"temperature": 1.0, "top_p": 0.999, "max_tokens": size, "ignore_eos": True}
    found = [lm.generate([start_token(model)], seed=seed + part, **how).tokens for part in range(blocks)]
    engine.close()
    return b"".join(model.tokenizer.bytes_of(token) for tokens in found for token in tokens)
