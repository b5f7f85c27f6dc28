"""The likelihood of given texts under models that fill masks: the estimate, and what lm_eval is given."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from diffuse.test_guidance import plain_logits

import outlay
from outlay import UsageError
from outlay.diffuse.exact.denoiser import ids
from outlay.diffuse.exact.sequences import Markov
from outlay.engine.engine import Engine
from outlay.lm import LM
from outlay.masked_score import MaskedScore, blocks
from outlay.testing import tiny_diffusion_model, tiny_lm


def scored(lm, prompt, continuations, draws=128, seed=0):
    score = MaskedScore(continuations, draws)
    result = lm.generate(prompt, method=score, max_tokens=1, seed=seed)
    return score.likelihoods, result


def test_estimates_of_an_exact_denoiser_are_its_likelihood_on_average():
    """32 estimates of 16 draws each; false alarms in 3 of 1000 runs of another seed."""
    lm = outlay.load("exact-markov")
    text = lm.generate("^", method="first_hitting", max_tokens=16, temperature=1.0, seed=4).text
    (prompt, answer) = ids("^").tolist(), ids(text).tolist()
    found = np.array([scored(lm, prompt, [answer], 16, seed)[0][0].logprob for seed in range(32)])
    assert abs(found.mean() + Markov().nll(ids("^" + text))) < 3 * found.std(ddof=1) / 32**0.5
    assert scored(lm, prompt, [answer], 16, 7)[0] == scored(lm, prompt, [answer], 16, 7)[0]


@pytest.mark.parametrize("shift", [False, True])
def test_one_token_has_its_exact_probability_from_one_canvas(shift):
    model = tiny_diffusion_model(shift=shift)
    lm, mask = LM(model, Engine(prefix_cache=False)), model.decoder.config.diffusion.mask
    prompt = lm.encode("Hello")
    logits = plain_logits(model, [*prompt, mask])[-1 - shift].clone()
    logits[mask] = -torch.inf
    expected, best = logits.log_softmax(-1), int(logits.argmax())
    (first, second), result = scored(lm, prompt, [[best], [7]])
    assert first.logprob == pytest.approx(float(expected[best]), abs=1e-4)
    assert second.logprob == pytest.approx(float(expected[7]), abs=1e-4)
    assert (first.greedy, second.greedy) == (True, False)
    assert result.ledger.target_tokens == 4 * (len(prompt) + 1), "an estimate and a greedy pass for each"
    assert all(worker.cache.in_use == 0 for worker in lm.engine.models)


def test_blocks_of_one_token_are_an_autoregressive_model_whose_likelihood_is_exact():
    model = tiny_diffusion_model(block=1)
    lm = LM(model, Engine())
    prompt, answer = lm.encode("Hello"), [5, 9, 40]
    few, many = (scored(lm, prompt, [answer], draws)[0][0].logprob for draws in (1, 20))
    assert few == pytest.approx(many, abs=1e-5)


def test_greedy_tells_what_one_by_one_writes():
    model = tiny_diffusion_model(shift=True)
    lm = LM(model, Engine())
    prompt = lm.encode("Hello")
    written = lm.generate(prompt, method="llada:block=all", max_tokens=6, ignore_eos=True).tokens
    other = [*written[:5], (written[5] + 1) % 200]
    likelihoods, _ = scored(lm, prompt, [written, other], draws=1)
    assert [each.greedy for each in likelihoods] == [True, False]


def test_parts_are_those_of_the_blocks_of_the_text():
    assert blocks(5, 18, 0) == [(5, 18)]
    assert blocks(5, 18, 4) == [(5, 8), (8, 12), (12, 16), (16, 18)]
    assert blocks(4, 6, 4) == [(4, 6)]
    assert blocks(5, 5, 4) == blocks(5, 5, 0) == []


def test_what_can_not_be_scored_is_told():
    lm = LM(tiny_diffusion_model(context=16), Engine())
    mask = lm.model.decoder.config.diffusion.mask
    with pytest.raises(UsageError, match=r"ends at token 17, .* reads 16 tokens"):
        scored(lm, [1, 2, 3], [[4] * 14])
    with pytest.raises(UsageError, match=f"token {mask}, the mask"):
        scored(lm, [1, 2, 3], [[mask]])
    with pytest.raises(UsageError, match="likelihoods are exact"):
        scored(tiny_lm(), [1, 2, 3], [[4]])


def test_lm_eval_is_given_estimates():
    pytest.importorskip("lm_eval")
    from outlay.compare.lm_eval import OutlayLM

    lm = LM(tiny_diffusion_model(context=32), Engine())
    ours = OutlayLM(lm, mc_num=4)
    requests = [(("a", "b"), [1, 2, 3], [7, 8]), (("a", "c"), [1, 2, 3], [9]), (None, list(range(1, 60)), [9, 7])]
    found = ours._loglikelihood_tokens(requests, disable_tqdm=True)
    expected, _ = scored(lm, [1, 2, 3], [[7, 8], [9]], draws=4)
    assert found[:2] == [tuple(each) for each in expected]
    assert np.isfinite(found[2][0])
    (rolling,) = ours.loglikelihood_rolling([type("Request", (), {"args": ("x" * 70,)})()], disable_tqdm=True)
    assert np.isfinite(rolling)
    with pytest.raises(UsageError, match="mc_num must be 1 or more"):
        OutlayLM(lm, mc_num=0)
