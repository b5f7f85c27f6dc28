"""Runs under a cache policy: each layer its own length, forks share, nothing is shared with others or left behind."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import pytest
import torch
from engine.policies import FirstAndLast

from outlay import About, Budget, CachePolicy, Method
from outlay.attend.policy import COUNTS, HELD, Everything, Hold, Keeper, LayerChoice, Rewrite
from outlay.engine.engine import Engine
from outlay.errors import UsageError
from outlay.lm import LM
from outlay.models.draft_head import untrained_draft_head
from outlay.testing import tiny_diffusion_model, tiny_encoder_decoder, tiny_lm, tiny_model

LONG = "A prompt that is longer than the others, so that a layer has something to leave out of it, again and again."
OTHER = "Another prompt, which is as long as the first one, so that both of them are read at the same time."
OPTIONS = {"max_tokens": 30, "ignore_eos": True}


@dataclass(frozen=True)
class Staircase(CachePolicy):
    """Layer i keeps the last 10 (i + 1) tokens of the prompt, and prunes what is written to 3 tokens every 8."""

    about: ClassVar[About] = About(
        name="staircase", summary="", paper="", family="attention", spends="", saves="", exact=False, task="cache",
        command='outlay run "..." --cache staircase', counts=COUNTS,
    )  # fmt: skip

    def keeper(self, prompt):
        return Steps(len(prompt.tokens), prompt.config.num_layers)


class Steps(Keeper):
    def __init__(self, n, layers):
        self.n, self.layers = n, layers

    def prompt(self, layer, q, k, v):
        return LayerChoice(holds=[Hold(torch.arange(len(q) - 10 * (layer + 1), len(q)))])

    def step(self, step):
        if step.tail < 8:
            return None
        held = [step.read(layer).positions for layer in range(self.layers)]
        kept = [positions[positions >= self.n][-3:] for positions in held]
        return Rewrite(self.n, [[Hold(positions)] for positions in kept])  # in place of the segment before


class Reading(Method):
    """Asks each token's attention, and keeps it in the result."""

    about = About(name="reading", summary="", paper="", family="", spends="", saves="", takes=("cache",))

    def decode(self, run):
        rows, node = [], run.tip
        run.facts["rows"] = rows
        while True:
            logits, (attention,) = yield run.target.forward_with_attention([node])
            rows.append(attention.clone())
            node = run.commit(run.sampler.pick(logits[0]))


def test_a_layer_holds_its_own_number_of_tokens_and_positions_go_on():
    lm = tiny_lm()
    result = lm.generate(LONG, method=Reading(), cache=Staircase(), **OPTIONS)
    n = result.prompt_tokens
    kept, tail = [], []
    for place, row in enumerate(result.facts["rows"][1:], 1):
        tail.append(n + place - 1)
        assert row.shape == (2, n + place)
        torch.testing.assert_close(row.sum(1), torch.ones(2), atol=1e-5, rtol=0)
        for layer in range(2):
            assert row[layer].nonzero()[:, 0].tolist() == [*range(n - 10 * (layer + 1), n), *kept, *tail]
        if len(tail) == 8:
            kept, tail = [*kept, *tail][-3:], []
    slot = lm.engine.models[0].cache.bytes_per_slot
    held = result.ledger.extras["kv_payload"]
    assert held == slot // 2 * (10 + 20)
    assert result.ledger.extras["rewrites"] == 3
    assert slot * (15 + 11) <= result.ledger.kv_held <= slot * (15 + 11) + 2 * 20  # and a bit for each position


def test_attention_of_a_policy_that_keeps_all_is_that_of_the_plain_cache():
    class All(Staircase):
        def keeper(self, prompt):
            return Everything()

    plain = tiny_lm().generate(LONG, method=Reading(), **OPTIONS)
    kept = tiny_lm().generate(LONG, method=Reading(), cache=All(), **OPTIONS)
    assert kept.tokens == plain.tokens
    for mine, theirs in zip(kept.facts["rows"], plain.facts["rows"], strict=True):
        torch.testing.assert_close(mine, theirs, atol=2e-6, rtol=0)


@pytest.mark.parametrize(
    "shape", [{"windows": (8, None)}, {"windows": (8, 20)}, {"attention_softcap": 2.0}], ids=lambda shape: str(shape)
)
def test_windows_and_caps_of_scores_hold_for_what_is_stored(shape):
    """A policy that keeps all reads what the plain cache reads, also where a layer sees the last tokens alone."""

    class All(Staircase):
        def keeper(self, prompt):
            return Everything()

    def lm():
        model = tiny_model()
        model.decoder.config = replace(model.decoder.config, **shape)
        return LM(model, Engine())

    plain = lm().generate(LONG, method=Reading(), **OPTIONS)
    kept = lm().generate(LONG, method=Reading(), cache=All(), **OPTIONS)
    assert kept.tokens == plain.tokens
    for mine, theirs in zip(kept.facts["rows"], plain.facts["rows"], strict=True):
        torch.testing.assert_close(mine, theirs, atol=2e-6, rtol=0)
    held = lm().generate(LONG, cache="zipvl:tau=1,bits=16x16,probes=500x0,every=7", **OPTIONS)
    assert held.tokens == plain.tokens


def test_rows_that_do_not_attend_take_not_even_the_bias_of_the_output():
    decoder = tiny_model().decoder
    layer = decoder.layers[0]
    decoder.layers = (replace(layer, out=lambda x: layer.out(x) + 1.0), *decoder.layers[1:])
    x, attended = torch.randn(3, 32, generator=torch.Generator().manual_seed(0)), torch.zeros(3, 4, 8)
    resting = torch.tensor([False, True, False])
    plain, rested = decoder.after_attention(0, x, attended), decoder.after_attention(0, x, attended, resting=resting)
    mlp_alone = x + layer.mlp(layer.mlp_norm(x))
    assert torch.equal(rested[[0, 2]], plain[[0, 2]])
    torch.testing.assert_close(rested[1], mlp_alone[1], atol=1e-6, rtol=0)
    assert not torch.allclose(plain[1], mlp_alone[1])


def test_what_is_stored_takes_no_slots_and_less_memory():
    lm = tiny_lm(prefix_cache=False)
    sizes = []

    def look(event):
        if event["event"] == "pass":
            cache = lm.engine.models[0].cache
            sizes.append((cache.in_use, cache.stored_bytes, cache.bytes()))

    dense = lm.generate(LONG, **OPTIONS)
    kept = lm.submit(LONG, cache="zipvl:every=10", trace=look, **OPTIONS).result()
    cache = lm.engine.models[0].cache
    assert max(in_use for in_use, _, _ in sizes) <= 12  # the tail alone
    assert max(total for _, _, total in sizes) == kept.ledger.kv_held
    assert kept.ledger.kv_held < dense.ledger.kv_held / 4
    assert (cache.in_use, cache.stored_bytes, cache.bytes()) == (0, 0, 0)


def test_a_mix_of_policies_and_methods_at_once_equals_each_run_alone_and_leaves_nothing():
    draft = tiny_model(1)
    cases = [
        {"cache": cache, **how}
        for cache in (
            None,
            "zipvl:tau=0.8,every=6",
            "zipvl:mode=evict,tau=0.7,every=9",
            Staircase(),
            FirstAndLast(last=20),
        )
        for how in (
            {"method": "greedy"},
            {"method": "sample", "temperature": 0.9},
            {"method": "best_of:n=3", "temperature": 0.9},
            {"method": "rsd", "draft": draft},
            {"method": "beam:width=2"},
        )
    ]
    runs = [(prompt, seed, case) for seed, case in enumerate(cases) for prompt in (LONG, OTHER)]
    lm = tiny_lm(prefix_cache=False)
    handles = [lm.submit(prompt, seed=seed, max_tokens=20, ignore_eos=True, **case) for prompt, seed, case in runs]
    together = [handle.result(300) for handle in handles]
    assert len(together) == 50
    for worker in lm.engine.models:
        assert (worker.cache.in_use, worker.cache.stored_bytes) == (0, 0)
    alone = tiny_lm()
    for (prompt, seed, case), result in list(zip(runs, together, strict=True))[::3]:
        again = alone.generate(prompt, seed=seed, max_tokens=20, ignore_eos=True, **case)
        assert again.tokens == result.tokens, case


def test_forks_share_what_is_held_of_the_prompt():
    lm = tiny_lm()
    one = lm.generate(LONG, cache="zipvl", **OPTIONS)
    many = lm.generate(LONG, method="best_of:n=8", temperature=0.9, cache="zipvl", **OPTIONS)
    prompt = one.ledger.extras["kv_payload"] + one.ledger.extras["kv_overhead"]
    slot = lm.engine.models[0].cache.bytes_per_slot
    assert many.ledger.extras["kv_payload"] == one.ledger.extras["kv_payload"]
    assert many.ledger.kv_held <= prompt + 8 * 30 * slot
    assert many.ledger.target_tokens < one.prompt_tokens + 8 * 31  # one pass over the prompt


def test_nothing_is_shared_through_the_prefix_cache():
    lm = tiny_lm()
    plain = lm.generate(LONG, **OPTIONS)
    kept = lm.generate(LONG, cache="zipvl:tau=0.8", **OPTIONS)
    assert kept.cached_tokens == 0
    other = lm.generate(LONG, cache="zipvl:tau=0.5", **OPTIONS)
    assert other.cached_tokens == 0
    again = lm.generate(LONG, **OPTIONS)
    assert again.cached_tokens > 0
    assert again.tokens == plain.tokens


@pytest.mark.parametrize("options", [{}, {"temperature": 0.9, "seed": 5}])
def test_drafts_are_verified_under_the_policy(options):
    """Without rewrites a verified text is what greedy or sampling write under the same policy."""
    for cache in ("zipvl:tau=0.8,every=0", "zipvl:mode=evict,tau=0.7,every=0"):
        method = "sample" if options else "greedy"
        plain = tiny_lm().generate(LONG, method=method, cache=cache, **OPTIONS, **options)
        for verified in ("lookup", "speculative"):
            given = {"draft": tiny_model(0)} if verified == "speculative" else {}
            result = tiny_lm().generate(LONG, method=verified, cache=cache, **OPTIONS, **options, **given)
            if not options:
                assert result.tokens == plain.tokens
            assert result.ledger.tokens_out == 30


def test_a_prompt_is_read_in_one_pass_and_others_go_on_beside_it():
    lm = tiny_lm()
    events = []
    result = lm.submit(LONG, cache="zipvl", trace=events.append, **OPTIONS).result()
    passes = [event for event in events if event["event"] == "pass"]
    assert len(passes[0]["nodes"]) == result.prompt_tokens
    assert all(len(event["nodes"]) == 1 for event in passes[1:])


def test_what_a_policy_holds_counts_against_the_room_of_the_cache():
    lm = LM(tiny_model(), Engine(cache_tokens=160, prefix_cache=False))
    results = [lm.submit(LONG, cache="zipvl", seed=seed, **OPTIONS) for seed in range(3)]
    tokens = [handle.result(60).tokens for handle in results]
    assert tokens[0] == tokens[1] == tokens[2]
    assert lm.engine.models[0].cache.bytes() == 0


def test_a_policy_that_asks_for_what_is_gone_fails_its_run_alone():
    class Wrong(Staircase):
        def keeper(self, prompt):
            inner = super().keeper(prompt)
            inner.step = lambda step: Rewrite(step.position + 1 - step.tail, [[Hold(torch.tensor([0]))]] * 2)
            return inner

    lm = tiny_lm(prefix_cache=False)
    good, bad = lm.submit(OTHER, cache="zipvl", **OPTIONS), lm.submit(LONG, cache=Wrong(), **OPTIONS)
    with pytest.raises(Exception, match="doesn't have any more"):
        bad.result(60)
    assert len(good.result(60).tokens) == 30
    assert lm.engine.models[0].cache.bytes() == 0


def test_a_budget_that_the_prompt_is_above_ends_the_run_with_nothing_held():
    lm = tiny_lm(prefix_cache=False)
    result = lm.generate(LONG, cache=Staircase(), budget=Budget(kv_held=100), **OPTIONS)
    assert (result.finish_reason, result.cap, result.ledger.kv_held, result.tokens) == ("budget", "kv_held", 0, [])
    assert lm.engine.models[0].cache.bytes() == 0


@pytest.mark.parametrize("method", ["hydragen", "particles", "auto", "rejection"])
def test_a_method_that_runs_under_no_policy_is_refused_by_name(method):
    with pytest.raises(UsageError, match=f"{method} does not run under a cache policy such as zipvl"):
        tiny_lm().generate(
            LONG, method=method, cache="zipvl", temperature=0.9, scorer="self" if method == "particles" else None,
            constraint="regex:a+" if method == "rejection" else None,
        )  # fmt: skip


def test_models_and_drafts_that_no_policy_can_hold_are_refused():
    with pytest.raises(UsageError, match="reads its input by an encoder"):
        LM(tiny_encoder_decoder(), Engine()).generate("a", cache="zipvl")
    with pytest.raises(UsageError, match="does not run under a cache policy"):
        LM(tiny_diffusion_model(), Engine()).generate("a", cache="zipvl")
    head = untrained_draft_head(tiny_model(), 1, 128)
    with pytest.raises(UsageError, match="a draft head reads every token"):
        tiny_lm().generate("a", method="rsd", draft=head, cache="zipvl")
    with pytest.raises(UsageError, match="a receipt holds no cache policy"):
        tiny_lm().generate("a", cache="zipvl", receipt=True)
    lm = tiny_lm()
    with lm.shared("A prefix") as prefix, pytest.raises(UsageError, match="shares no prefix"):
        prefix.generate(" and more", cache="zipvl")


def test_held_bits_mean_what_the_cache_holds():
    for dtype, size in ((torch.float32, 4), (torch.bfloat16, 2), (torch.int8, 1)):
        lm = LM(tiny_model(), Engine(kv_dtype=dtype))
        result = lm.generate(LONG, max_tokens=1, cache="zipvl:tau=1,bits=16x16,probes=500x0")
        assert result.ledger.extras["kv_payload"] == 2 * 2 * 16 * size * result.prompt_tokens
    assert HELD == 16
