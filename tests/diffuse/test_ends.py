"""What end tokens do to a canvas, under each policy."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from diffuse.made import places, proposals

import outlay
from outlay import Budget
from outlay.diffuse.ends import end_of_canvas, late_ends, without_ends
from outlay.diffuse.ete import ETE
from outlay.diffuse.exact.denoiser import END, IDS
from outlay.diffuse.llada import LLaDA
from outlay.diffuse.threshold import Threshold
from outlay.engine.engine import Engine
from outlay.lm import LM
from outlay.testing import tiny_diffusion_model

TEXT = "badcf"


def copied(ends, rule="llada:block=4", **options):
    """One token a round of a list of five items, in blocks of four, where what follows is certain to be ends."""
    options = {"max_tokens": 12} | options
    return outlay.load("exact-copy").generate(f"{TEXT}=", method=f"{rule},ends={ends}", **options)


@pytest.mark.parametrize(("ends", "rounds"), [("stop", 6), ("block", 8), ("keep", 12), ("last", 6), ("cut", 6)])
def test_the_text_is_the_same_and_the_rounds_are_those_of_the_policy(ends, rounds):
    result = copied(ends)
    assert (result.text, result.finish_reason) == (TEXT, "stop")
    assert result.ledger.rounds == rounds
    assert result.tokens == [*(IDS[letter] for letter in TEXT), IDS[END]]


def test_ends_that_come_last_wait_for_all_other_masks_of_their_block():
    mixed, last = (
        copied(ends, "llada:block=4,by=random", seed=3).facts["filled_in_round"] for ends in ("keep", "last")
    )
    assert mixed[4] > min(mixed[5:8])
    assert last[4] == 5 < min(filled for filled in last[5:8] if filled)
    assert places(Threshold(ends="last").select(proposals([0.95, 0.9], late=np.array([True, False])))) == [1]


def test_a_schedule_keeps_its_rounds_where_ends_come_last():
    result = copied("last", "llada:block=4,steps=6", max_tokens=12)
    assert result.text == TEXT
    assert result.facts["filled_in_round"][:8] == [1, 1, 2, 2, 3, 3, 0, 0]
    case = proposals([0.5, 0.9, 0.8, 0.7], late=np.array([False, True, True, False]), quotas=[3])
    assert places(LLaDA().chosen(case)) == [0, 1, 3]


def test_ends_that_wait_are_not_explored():
    case = proposals([0.5, 0.4, 0.3, 0.95], late=np.array([False, True, True, False]))
    assert places(ETE(gap=0, explore=4).chosen(case)) == [0, 3]


def test_ends_wait_as_long_as_the_block_has_another_mask_and_always_behind_it():
    ends, block = {7}, np.array([True, True, False])
    masked, tokens = np.array([True, True, True]), np.array([7, 3, 7])
    assert late_ends(tokens, masked, block, ends).tolist() == [True, False, True]
    assert late_ends(np.array([7, 7, 7]), masked, block, ends).tolist() == [False, False, True]
    assert late_ends(tokens, np.array([True, False, True]), block, ends).tolist() == [False, False, True]


def test_ends_that_are_never_proposed_are_so_whatever_their_bias():
    lm = LM(tiny_diffusion_model(), Engine())
    (end,) = lm.model.tokenizer.eos_token_ids
    options = {"max_tokens": 12, "logit_bias": {end: 100.0}}
    assert lm.generate("Hello", **options).tokens == [end]
    never = lm.generate("Hello", method="threshold:ends=never", **options)
    assert (len(never.tokens), never.finish_reason) == (12, "length")
    assert end not in never.tokens


def test_a_row_that_has_no_token_but_ends_keeps_them():
    logits = torch.tensor([[0.0, 1.0, 2.0], [-torch.inf, -torch.inf, 1.0]])
    assert without_ends(logits, [2]).tolist() == [[0.0, 1.0, -torch.inf], [-torch.inf, -torch.inf, 1.0]]


def test_a_cut_canvas_takes_a_quarter_of_the_positions_and_writes_the_same():
    """End-of-text prediction at the size of its acceptance experiment: canvas 128, answers of up to 20 tokens."""
    lm = outlay.load("exact-copy")
    for length in (3, 11, 20):
        prompt = "abcdefghijklmnopqrst"[:length] + "="
        whole, cut = (lm.generate(prompt, method=f"llada:ends={ends}", max_tokens=128) for ends in ("keep", "cut"))
        assert cut.tokens == whole.tokens
        assert 4 * cut.ledger.target_tokens <= whole.ledger.target_tokens
    assert all(worker.cache.in_use == 0 for worker in lm.engine.models)


def test_a_canvas_is_cut_behind_the_first_end_of_the_round_else_behind_the_surest():
    lm = LM(tiny_diffusion_model(), Engine())
    (end,) = lm.model.tokenizer.eos_token_ids
    mask = lm.model.decoder.config.diffusion.mask

    held = [5, mask, end, mask, end, mask]

    class Held:
        end = len(held)

        def token(self, position):
            return held[position]

        def is_masked(self, position):
            return held[position] == mask

    logits = torch.zeros(3, mask + 1)
    logits[1, end], logits[2, end] = 1.0, 2.0
    assert end_of_canvas(Held(), [2, 4], [1, 3, 5], logits, {end}) == 3
    assert end_of_canvas(Held(), [0], [1, 3, 5], logits, {end}) == 6
    assert end_of_canvas(Held(), [0], [1, 3], logits[:2], {end}) == 4
    assert end_of_canvas(Held(), [0], [1], logits[:1], {end}) is None
    assert end_of_canvas(Held(), [0], [], logits[:0], {end}) is None


@pytest.mark.parametrize("cache", ["none", "prefix", "dual"])
@pytest.mark.parametrize("ends", ["block", "keep", "last", "cut"])
def test_every_policy_runs_with_every_cache_and_frees_its_slots(ends, cache):
    lm = LM(tiny_diffusion_model(shift=True), Engine(prefix_cache=False))
    result = lm.generate("Hello", method=f"threshold:tau=0.02,block=8,cache={cache},ends={ends}", max_tokens=24)
    assert result.finish_reason in ("stop", "length")
    assert all(worker.cache.in_use == 0 for worker in lm.engine.models)


@pytest.mark.parametrize("ends", ["block", "keep", "last", "cut", "never"])
def test_every_policy_runs_behind_exact_blocks_and_in_a_budget(ends):
    lm = LM(tiny_diffusion_model(block=8), Engine())
    method = f"threshold:tau=0.02,ends={ends}"
    assert lm.generate("Hello", method=method, max_tokens=24).finish_reason in ("stop", "length")
    capped = lm.generate("Hello", method=method, max_tokens=24, budget=Budget(rounds=3))
    assert capped.ledger.rounds <= 3
    assert capped.finish_reason == "budget" or capped.ledger.rounds < 3
