"""When reading apart pays: found by halving, kept in the user's cache, overridden by a run, and never in silence."""

from __future__ import annotations

import json
from itertools import count

import pytest
import torch

import outlay
from outlay import Hydragen, PromptTree, UsageError
from outlay.engine import sharing
from outlay.engine.engine import Engine
from outlay.engine.sharing import LENGTHS, ROWS, SharingMeasurement, SharingMeter, sharing_of
from outlay.lm import LM
from outlay.testing import tiny_model
from outlay.tree.cache import KV_DTYPES
from outlay.tree.plan import ASSUMED, NEVER, BreakEven

PREFIX = [1 + i % 200 for i in range(100)]
TREE = PromptTree(PREFIX, [[201, 202], [203, 204, 205]])


@pytest.fixture(autouse=True)
def kept(monkeypatch, tmp_path):
    """An empty cache."""
    monkeypatch.setenv("OUTLAY_CACHE", str(tmp_path))
    monkeypatch.setattr(sharing, "_KNOWN", {})
    return tmp_path / "costs"


@pytest.fixture
def evens(monkeypatch):
    """Has a number of rows pay from a length on; counts what is measured."""
    asked = []

    def set_evens(evens):
        def pays(self, rows, length):
            asked.append((rows, length))
            return length >= evens[rows]

        monkeypatch.setattr(SharingMeasurement, "pays", pays)
        return asked

    return set_evens


FOUND = (512, 100, 16, 1, 1024, 5000)
EVENS = dict(zip(ROWS, FOUND, strict=True))
ROUNDED = (512, 128, 16, 16, 1024, NEVER)


def known_of(model):
    return sharing_of(model.decoder, torch.float32)


def measure(model):
    meter = SharingMeter(known_of(model), model.decoder, torch.float32)
    return sum(meter.spare() for _ in range(1000))


def test_the_least_length_that_pays_is_found_for_each_number_of_rows(evens):
    asked = evens(EVENS)
    model = tiny_model()
    assert known_of(model).break_even == ASSUMED
    pieces = measure(model)
    assert known_of(model).break_even == BreakEven(ROWS, ROUNDED)
    assert pieces == len(asked) <= len(ROWS) * 3


def test_what_was_measured_is_kept_and_the_middle_of_three_processes_counts(evens, kept):
    model = tiny_model()
    for least, middle in ((64, 64), (256, 64), (128, 128), (16, 128)):
        evens(dict.fromkeys(ROWS, least))
        sharing._KNOWN.clear()  # as in another process
        measure(model)
        assert set(known_of(model).break_even.lengths) == {middle}
    [path] = kept.iterdir()
    assert json.loads(path.read_text()) == {"rows": list(ROWS), "measured": [[n] * len(ROWS) for n in (64, 256, 128)]}


@pytest.mark.parametrize("text", ["", "[]", '{"measured": [[1, 2]]}', '{"measured": [["a", 1, 2, 3, 4, 5]]}'])
def test_a_file_that_holds_something_else_is_measured_again(text):
    known = known_of(tiny_model())
    known.path.parent.mkdir(exist_ok=True)
    known.path.write_text(text)
    sharing._KNOWN.clear()
    assert known_of(tiny_model()).break_even == ASSUMED


def test_another_cache_format_has_a_break_even_of_its_own():
    decoder = tiny_model().decoder
    paths = {sharing_of(decoder, dtype).path for dtype in KV_DTYPES.values()}
    assert len(paths) == len(KV_DTYPES)


def test_what_can_not_be_measured_stays_assumed(monkeypatch):
    monkeypatch.setattr(SharingMeasurement, "pays", lambda *_: (_ for _ in ()).throw(RuntimeError("no memory")))
    model = tiny_model()
    assert measure(model) == 0
    assert known_of(model).break_even == ASSUMED


@pytest.mark.parametrize("dtype", KV_DTYPES.values(), ids=KV_DTYPES)
def test_any_model_and_cache_can_be_measured(dtype):
    measurement = SharingMeasurement(tiny_model().decoder, dtype)
    with torch.inference_mode():
        while not measurement.done:
            measurement.step()
    assert len(measurement.lengths) == len(ROWS)
    assert set(measurement.lengths) <= {*LENGTHS, NEVER}


def test_a_model_without_attention_has_nothing_to_measure():
    assert Engine().worker(outlay.load("exact-phrase").model).sharing_meter() is None


def test_the_faster_side_pays(monkeypatch):
    clock = count()
    measurement = SharingMeasurement(tiny_model().decoder, torch.float32)
    monkeypatch.setattr(SharingMeasurement, "seconds", lambda self, plan: next(clock))
    assert measurement.pays(4, 64)
    monkeypatch.setattr(SharingMeasurement, "seconds", lambda self, plan: -next(clock))
    assert not measurement.pays(4, 64)


def test_a_run_that_shares_has_it_measured_in_time_to_spare(evens):
    asked = evens(dict.fromkeys(ROWS, 16))
    lm = LM(tiny_model(), Engine())
    lm.generate(TREE, method=Hydragen(n=2), temperature=0.8, max_tokens=4)
    lm.engine.settle()
    assert asked
    assert lm.engine.models[0].sharing == BreakEven(ROWS, (16,) * len(ROWS))
    lm.engine.close()


def test_a_server_has_it_measured_before_requests_come(evens):
    evens(dict.fromkeys(ROWS, 32))
    worker = Engine().worker(tiny_model())
    worker.measure_sharing()
    assert worker.sharing == BreakEven(ROWS, (32,) * len(ROWS))
    assert worker.sharing_meter() is None


def read_apart(method, **facts):
    lm = LM(tiny_model(), Engine())
    result = lm.generate(TREE, method=method, temperature=0.8, max_tokens=4, ignore_eos=True)
    lm.engine.close()
    return result.facts["read_once"], result.ledger.kv_bytes


def test_what_was_measured_decides_and_min_rows_and_min_prefix_override_it(evens):
    evens(dict.fromkeys(ROWS, NEVER))
    measure(tiny_model())
    apart, much = read_apart("hydragen:n=2")
    once, little = read_apart("hydragen:n=2,min_rows=2,min_prefix=2")
    assert (apart, once) == (0, 100)
    assert little < 0.5 * much
    for stricter in ("min_rows=5,min_prefix=2", "min_prefix=101"):  # there are four rows, and 100 shared tokens
        apart, most = read_apart(f"hydragen:n=2,{stricter}")
        assert apart == 0
        assert most >= much
    apart, less = read_apart("hydragen:n=2,min_rows=4,min_prefix=100")
    assert apart == 100
    assert less < 0.5 * much


def test_the_texts_are_the_same_whatever_is_read_apart():
    texts = [
        [each.tokens for each in LM(tiny_model(), Engine()).generate(TREE, method=method, temperature=0.8).alternatives]
        for method in ("hydragen:n=2,min_prefix=1", "hydragen:n=2,min_prefix=1000")
    ]
    assert texts[0] == texts[1]


def test_strict_refuses_what_each_text_would_read_and_nothing_else(evens):
    evens(dict.fromkeys(ROWS, 128))
    measure(tiny_model())
    with pytest.raises(UsageError, match="4 texts share 100 tokens, which each would read") as refusal:
        read_apart("hydragen:n=2,strict=true")
    assert "from 4 texts and 128 tokens on" in str(refusal.value)
    lm = LM(tiny_model(), Engine())
    result = lm.generate(PREFIX, method="hydragen:n=2,strict=true", temperature=0.8, max_tokens=4)
    assert result.facts["read_once"] == 100, "texts of one prompt read it once at any length, for nothing has to be cut"
