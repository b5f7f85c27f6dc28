"""Whole-number weights and the coder over them: exact, equal to `constriction`'s, the same in every instruction set."""

import hashlib

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from outlay import kernels


def random_rows(rows, size, seed=0):
    return torch.randn(rows, size, generator=torch.Generator().manual_seed(seed)) * 4


@pytest.mark.parametrize("size", [1, 7, 256, 257, 4099])
def test_weights_are_the_floor_of_the_kernels_own_exp(size):
    logits = random_rows(5, size)
    found = kernels.coder_weights(logits, 3)
    exact = kernels.exp(logits - logits.amax(1, keepdim=True)).double() * 2**23
    assert torch.equal(found.weights[:, :size].long(), exact.floor().long())
    assert not found.weights[:, size:].any()
    assert torch.equal(found.totals, found.weights.long().sum(1))
    assert torch.equal(found.maxima, logits.amax(1))
    torch.testing.assert_close(found.exact, exact.sum(1))


def test_weights_of_a_row_do_not_depend_on_its_company():
    logits = random_rows(9, 777)
    together = kernels.coder_weights(logits).weights
    assert torch.equal(torch.cat([kernels.coder_weights(row[None]).weights for row in logits]), together)
    kernels.set_threads(2)
    assert torch.equal(kernels.coder_weights(logits).weights, together)


def test_weights_are_the_same_in_every_instruction_set(each_isa):
    rows = (torch.arange(3 * 1003) * 2654435761 % 4096 / 128 - 20).view(3, 1003)
    found = {}
    for isa in each_isa():
        parts = kernels.coder_weights(rows, 256)
        found[isa] = hashlib.sha256(b"".join(part.numpy().tobytes() for part in parts)).hexdigest()
    assert len(found) > 1, "the portable code and at least one other"
    assert len(set(found.values())) == 1, found


@settings(max_examples=60, deadline=None)
@given(st.integers(2, 600), st.integers(1, 30), st.integers(0, 2**16), st.integers(0, 22))
def test_streams_are_those_of_constriction(size, rows, seed, sharpness):
    constriction = pytest.importorskip("constriction")
    generator = torch.Generator().manual_seed(seed)
    weights = (torch.rand(rows, size, generator=generator) ** (1 + sharpness) * 2**23).to(torch.int32)
    weights[:, int(torch.randint(size, (1,), generator=generator))] += 1
    symbols = torch.randint(size, (rows,), generator=generator)
    words = kernels.ans_encode(kernels.intervals(weights, symbols))
    theirs, categorical = constriction.stream.stack.AnsCoder(), constriction.stream.model.Categorical
    for row in reversed(range(rows)):
        theirs.encode_reverse(int(symbols[row]), categorical(weights[row].double().numpy(), perfect=False))
    assert theirs.get_compressed().tolist() == words.tolist()
    reader = kernels.AnsReader([words])
    assert torch.equal(reader.decode(weights, torch.zeros(rows, dtype=torch.int64)), symbols)
    assert reader.ended(0)


def test_intervals_fill_what_there_is_and_none_is_empty():
    weights = (torch.rand(1, 700, generator=torch.Generator().manual_seed(2)) ** 9 * 2**23).to(torch.int32)
    found = kernels.intervals(weights.expand(700, -1).contiguous(), torch.arange(700)).astype(np.int64)
    assert found[0, 0] == 0
    assert (found[1:, 0] == found[:-1].sum(1)).all()
    assert found[-1].sum() == 2**24
    assert found[:, 1].min() >= 1


def test_streams_of_a_batch_are_read_apart():
    weights = (torch.rand(6, 50, generator=torch.Generator().manual_seed(3)) * 1000).to(torch.int32) + 1
    symbols = torch.randint(50, (6,), generator=torch.Generator().manual_seed(4))
    coded = kernels.intervals(weights, symbols)
    reader = kernels.AnsReader([kernels.ans_encode(coded[row::2]) for row in range(2)])
    assert torch.equal(reader.decode(weights, torch.arange(6) % 2), symbols)
    assert reader.ended(0)
    assert reader.ended(1)


def test_what_does_not_fit_is_refused():
    weights, symbols = torch.ones(2, 4, dtype=torch.int32), torch.zeros(2, dtype=torch.int64)
    for wrong in (weights.float(), weights[0], weights[:, :1]):
        with pytest.raises(ValueError, match="int32 weights"):
            kernels.intervals(wrong, symbols)
    with pytest.raises(ValueError, match="a symbol for each"):
        kernels.intervals(weights, symbols[:1])
    with pytest.raises(ValueError, match=r"symbols in 0\.\.3"):
        kernels.intervals(weights, symbols + 4)
    with pytest.raises(ValueError, match="no weight"):
        kernels.intervals(weights * 0, symbols)
    with pytest.raises(ValueError, match="no weight"):
        kernels.AnsReader([[1], [1]]).decode(weights * 0, torch.arange(2))
    with pytest.raises(ValueError, match=r"streams in 0\.\.0"):
        kernels.AnsReader([[1]]).decode(weights, torch.arange(2))
    with pytest.raises(ValueError, match="float32"):
        kernels.coder_weights(torch.zeros(3, dtype=torch.float64))
    with pytest.raises(ValueError, match="empty"):
        kernels.ans_encode(np.zeros((1, 2), np.uint32))
