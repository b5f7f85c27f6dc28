"""A prefix that a program holds: computed once with its last logits, kept as it is, extended, wiped, and given up."""

from __future__ import annotations

import pytest

from outlay import Budget, Hydragen, PromptTree, SharedPrefix, UsageError
from outlay.engine import sharing
from outlay.engine.engine import Engine
from outlay.errors import FailureError
from outlay.lm import LM
from outlay.testing import tiny_lm, tiny_model
from outlay.tree.plan import NEVER, BreakEven

DOCUMENT = "A document that everybody asks about, of some length. " * 3
SAMPLED = {"temperature": 0.8, "max_tokens": 9, "seed": 3, "ignore_eos": True}


def lm_of(**options):
    return LM(tiny_model(), Engine(**options))


def worker_of(lm):
    return lm.engine.models[0]


def texts(result):
    return [each.tokens for each in result.alternatives] or [result.tokens]


WAYS = [
    {"max_tokens": 9},
    SAMPLED,
    SAMPLED | {"top_p": 0.8, "top_k": 20},
    SAMPLED | {"repetition_penalty": 1.4, "logit_bias": {65: 3.0}},
    SAMPLED | {"logprobs": 3},
    SAMPLED | {"n": 3},
    SAMPLED | {"method": Hydragen(n=3)},
    {"method": "beam:width=3", "max_tokens": 9},
    {"method": "lookup", "max_tokens": 9},
    SAMPLED | {"method": "best_of:n=3"},
    {"constraint": "regex:[a-z]+", "max_tokens": 9},
]


@pytest.mark.parametrize("prefix_cache", [True, False])
@pytest.mark.parametrize("options", WAYS, ids=range(len(WAYS)))
def test_after_a_held_prefix_every_method_writes_what_it_writes_alone(options, prefix_cache):
    lm = lm_of(prefix_cache=prefix_cache)
    with lm.shared(DOCUMENT) as p:
        for prompt, whole in ((None, DOCUMENT), ("What?", f"{DOCUMENT}\n\nWhat?")):
            found, alone = p.generate(prompt, **options), lm_of().generate(whole, **options)
            assert texts(found) == texts(alone)
            assert found.logprobs == alone.logprobs
            assert found.cached_tokens == len(p.tokens)


def test_many_batches_are_drawn_from_one_prefill_whose_last_logits_are_kept():
    lm = lm_of(prefix_cache=False)
    with lm.shared(DOCUMENT) as p:
        assert p.ledger.target_tokens == len(p.tokens) == len(DOCUMENT.encode())
        for seed in (0, 4, 8):
            ledger = p.generate(**SAMPLED | {"method": Hydragen(n=4), "seed": seed}).ledger
            assert ledger.target_passes == 9 - 1, "the first tokens come from the logits that are held"
            assert ledger.target_tokens == 4 * (9 - 1)
        assert worker_of(lm).cache.in_use == len(p.tokens), "what was added is gone: the prefix is preserved"
    assert worker_of(lm).cache.in_use == 0


def test_what_is_held_is_never_evicted_and_what_follows_it_is_read_as_one_span(monkeypatch):
    monkeypatch.setattr(sharing, "_KNOWN", {})
    monkeypatch.setattr(sharing, "read_measured", lambda path: None)
    monkeypatch.setattr(sharing, "ASSUMED", BreakEven((2,), (NEVER,)))
    lm = lm_of(cache_tokens=400)
    with lm.shared(DOCUMENT) as p:
        for place in range(6):
            lm.generate(f"{place} of several long prompts that need all of the cache " * 4, max_tokens=20)
        lm.engine.clear()
        assert worker_of(lm).cache.in_use == len(p.tokens)
        result = p.generate(PromptTree(None, ["What?", "Who?"]), method="hydragen:n=2,strict=true", **SAMPLED)
        assert result.facts["read_once"] == len(p.tokens) == result.facts["shared_tokens"] - len("\n\nWh")
        assert result.cached_tokens == len(p.tokens)


def test_extending_computes_what_is_new_alone_and_wiping_holds_another():
    lm = lm_of(prefix_cache=False)
    with lm.shared(DOCUMENT) as p:
        before = len(p.tokens)
        assert p.extend("Answer in one word.") is p
        whole = f"{DOCUMENT}\n\nAnswer in one word."
        assert p.tokens == lm.encode(whole)
        assert p.ledger.target_tokens == len(p.tokens)
        assert worker_of(lm).cache.in_use == len(p.tokens) > before
        assert p.generate("What?", **SAMPLED).tokens == lm_of().generate(f"{whole}\n\nWhat?", **SAMPLED).tokens
        p.wipe("Another.")
        assert p.tokens == lm.encode("Another.")
        assert worker_of(lm).cache.in_use == len(p.tokens)
        assert p.generate(**SAMPLED).tokens == lm_of().generate("Another.", **SAMPLED).tokens


def test_token_ids_messages_and_trees_follow_their_like():
    lm = lm_of()
    with lm.shared([5, 6, 7]) as p:
        assert p.generate([8, 9], **SAMPLED).tokens == lm_of().generate([5, 6, 7, 8, 9], **SAMPLED).tokens
        tree = [[8, 9], [8, 10], [11]]
        found = p.generate(tree, method=Hydragen(n=2), **SAMPLED)
        alone = lm_of().generate(PromptTree([5, 6, 7], tree), method=Hydragen(n=2), **SAMPLED)
        assert texts(found) == texts(alone)
        assert [each.leaf for each in found.alternatives] == [0, 0, 1, 1, 2, 2]


def test_runs_at_once_each_have_the_text_that_they_have_alone():
    lm = lm_of()
    with lm.shared(DOCUMENT) as p:
        asked = [f"Question {place}?" for place in range(8)]
        handles = [p.submit(each, **SAMPLED) for each in asked]
        for each, handle in zip(asked, handles, strict=True):
            assert handle.result().tokens == lm_of().generate(f"{DOCUMENT}\n\n{each}", **SAMPLED).tokens


def test_runs_that_outlive_the_block_go_on():
    lm = lm_of(prefix_cache=False)
    with lm.shared(DOCUMENT) as p:
        handle = p.submit("What?", **SAMPLED | {"max_tokens": 40})
        next(iter(handle))
    assert handle.result().tokens == lm_of().generate(f"{DOCUMENT}\n\nWhat?", **SAMPLED | {"max_tokens": 40}).tokens
    assert worker_of(lm).cache.in_use == 0


def test_a_budget_and_a_stream_go_with_it():
    lm = lm_of()
    with lm.shared(DOCUMENT) as p:
        result = p.generate(budget=Budget(target_passes=3), **SAMPLED)
        assert (result.finish_reason, len(result.tokens)) == ("budget", 4)
        stream = p.stream("What?", **SAMPLED)
        assert "".join(stream) == stream.result.text


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: tiny_lm().shared(""), "the prompt is empty"),
        (lambda: tiny_lm().shared([5] * 600), "the prompt has 600 tokens"),
        (lambda: tiny_lm().shared("a").generate([1]), "a text follows a text or messages|token ids follow token ids"),
        (lambda: tiny_lm().shared("a").generate("  "), "a part of the tree of prompts is empty"),
        (lambda: tiny_lm().shared([1]).extend([[2], [3]]), "not by a tree of prompts"),
        (lambda: tiny_lm().shared("a").generate(["b", "c"]), "greedy answers one prompt, not a tree"),
        (lambda: tiny_lm().shared([5] * 500).generate([6] * 12), "the prompt has 512 tokens"),
    ],
    ids=range(7),
)
def test_what_can_not_be_done_is_refused_in_one_line(make, message):
    with pytest.raises(UsageError, match=message) as refusal:
        make()
    assert "\n" not in str(refusal.value)


def test_a_prefix_that_is_given_up_is_refused_and_one_that_does_not_fit_fails():
    lm = lm_of(cache_tokens=100)
    with lm.shared("a") as p:
        pass
    with pytest.raises(UsageError, match="no longer held"):
        p.generate("b")
    p.close()
    with pytest.raises((UsageError, FailureError), match="cache"):
        SharedPrefix(lm, [5] * 120)
    assert worker_of(lm).ledger.target_tokens == 1
