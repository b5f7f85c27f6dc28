"""Classifier-free guidance: the formula, the second canvas without the prompt, and what it costs."""

from __future__ import annotations

import pytest
import torch

from outlay import Budget, UsageError
from outlay.diffuse.guidance import guided
from outlay.engine.engine import Engine
from outlay.lm import LM
from outlay.models.load import Model
from outlay.testing import tiny_diffusion_model


def plain_logits(model: Model, tokens: list[int]) -> torch.Tensor:
    """Raw logits of a text in which everything sees everything, in plain torch."""
    scale = model.decoder.config.attention_scale

    def attend(layer, q, k, v):  # type: ignore[no-untyped-def]
        k, v = (x.repeat_interleave(q.shape[1] // x.shape[1], 1) for x in (k, v))
        weights = (torch.einsum("nhd,mhd->hnm", q, k) * scale).softmax(-1)
        return torch.einsum("hnm,mhd->nhd", weights, v)

    return model.decoder.forward(torch.tensor(tokens), torch.arange(len(tokens)), attend)


def test_weight_0_is_no_guidance_and_impossible_tokens_stay_so():
    logits, without = torch.tensor([[1.0, 2.0, -torch.inf]]), torch.tensor([[0.5, 3.0, -torch.inf]])
    assert guided(logits, without, 0.0).tolist() == logits.tolist()
    assert guided(logits, without, 2.0).tolist() == [[2.0, 0.0, -torch.inf]]


@pytest.mark.parametrize("shift", [False, True])
def test_the_first_round_chooses_by_the_guided_logits(shift):
    model = tiny_diffusion_model(shift=shift)
    lm, mask = LM(model, Engine()), model.decoder.config.diffusion.mask
    prompt = lm.encode("Hello")
    result = lm.generate(prompt, method="llada:steps=1,guidance=1.5", max_tokens=6, ignore_eos=True, logprobs=0)
    begin = len(prompt) - shift
    prompted, without = (
        plain_logits(model, [*start, *[mask] * 6])[begin : begin + 6] for start in (prompt, [mask] * len(prompt))
    )
    expected = without + 2.5 * (prompted - without)
    expected[:, mask] = -torch.inf
    logprobs, tokens = expected.log_softmax(-1).max(-1)
    assert result.tokens == tokens.tolist()
    assert [each.logprob for each in result.logprobs] == pytest.approx(logprobs.tolist(), abs=1e-4)


@pytest.mark.parametrize(("model", "cache"), [({}, "none"), ({}, "dual"), ({"block": 8}, "none")])
def test_a_round_is_one_pass_of_two_canvases(model, cache):
    lm = LM(tiny_diffusion_model(**model), Engine(prefix_cache=False))
    options = {"max_tokens": 16, "ignore_eos": True}
    method = f"threshold:tau=0.02,block=8,cache={cache}"
    one, two = (lm.generate("Hello", method=f"{method}{more}", **options) for more in ("", ",guidance=1"))
    assert len(two.tokens) == 16
    assert two.ledger.target_passes == two.ledger.rounds
    assert two.ledger.target_tokens / two.ledger.rounds == pytest.approx(
        2 * one.ledger.target_tokens / one.ledger.rounds, rel=0.3 if cache == "dual" else 1e-9
    )
    assert all(worker.cache.in_use == 0 for worker in lm.engine.models)
    capped = lm.generate("Hello", method=f"{method},guidance=1", budget=Budget(target_tokens=120), **options)
    assert capped.ledger.target_tokens <= 120
    assert len(capped.tokens) == 16


@pytest.mark.parametrize(
    ("model", "method", "told"),
    [
        ({}, "threshold:guidance=-1", "guidance must be 0 or more"),
        ({"block": 8}, "threshold:guidance=1", "take cache=none"),
        ({}, "ete:guidance=1,mode=branch", "take guidance=0"),
    ],
)
def test_what_guidance_does_not_go_with_is_told(model, method, told):
    with pytest.raises(UsageError, match=told):
        LM(tiny_diffusion_model(**model), Engine()).generate("Hello", method=method, max_tokens=16)
