"""VASparse (CVPR 2025): the properties of its selection, contrast and calibration, and what they cost."""

from __future__ import annotations

import itertools
from math import ceil
from typing import ClassVar

import numpy as np
import pytest
import torch

from outlay import Budget, UsageError
from outlay.constrain import Predicate
from outlay.decode.vasparse import VASparse, decoding
from outlay.decode.vasparse.contrast import contrasted
from outlay.decode.vasparse.decoding import Decoding, masked_tokens
from outlay.decode.vasparse.selection import best, scores, selection_value, sight
from outlay.decode.vasparse.sinks import AttentionColumns, log_sink_weights
from outlay.engine.engine import Engine
from outlay.engine.views import Row, View, ViewedForward, ViewWorker, attend, path_slots
from outlay.lm import LM
from outlay.testing import MethodProperties, tiny_model, tiny_vision_model
from outlay.tree.cache import Cache
from outlay.tree.plan import plan_pass
from outlay.tree.thinning import held_after, keep_in_layers, merge_oldest
from outlay.tree.token_tree import Tree

LAYERS = 4
PROMPT = "What is in these pictures, and what is not? Tell of each of them what it shows"
PICTURES = [np.random.default_rng(seed).integers(0, 256, (16, 16, 3), dtype=np.uint8) for seed in (0, 1)]
VISUAL = 8  # tokens of both
TEXT = {"max_tokens": 24, "ignore_eos": True}
OPTIONS = {**TEXT, "images": PICTURES}


def lm_of(**options):
    return LM(tiny_vision_model(layers=LAYERS), Engine(**options))


def random(*shape, seed=0):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


class TestProperties(MethodProperties):
    """Those of every method, on a model deep enough for calibrated layers."""

    method = "vasparse:keep=0.5,window=4,gamma=0.5,dola=true,contrast=exit:2"
    options: ClassVar = {"images": PICTURES}

    def lm(self, **options):
        return lm_of(**options)


# 1. alpha = 0, keep = 1, gamma = 0


@pytest.mark.parametrize("contrast", ["embedding", "exit:2", "full"])
def test_without_contrast_pruning_and_calibration_the_tokens_are_greedys_at_one_pass_each(contrast):
    lm = lm_of()
    greedy = lm.generate(PROMPT, method="greedy", **OPTIONS)
    result = lm.generate(PROMPT, method=VASparse(alpha=0, keep=1, gamma=0, contrast=contrast), **OPTIONS)
    assert result.tokens == greedy.tokens
    assert result.ledger.target_passes == greedy.ledger.target_passes == OPTIONS["max_tokens"]
    assert result.ledger.extras == {}


def test_attention_that_is_weighted_by_one_writes_greedys_tokens_layer_by_layer():
    lm = lm_of()
    greedy = lm.generate(PROMPT, method="greedy", **OPTIONS)
    result = lm.generate(PROMPT, method=VASparse(alpha=0, keep=1, gamma=1e-12), **OPTIONS)
    assert result.tokens == greedy.tokens
    assert "torch" in " ".join(result.ledger.ran_on)


# 2., 3. The selection


@pytest.mark.parametrize("lam", [0.0, 0.1, 3.0])
def test_top_s_is_the_best_of_all_subsets(lam):
    for tokens, count in ((1, 1), (5, 3), (9, 8), (12, 5)):
        attention, saliency = random(3, tokens, seed=tokens), random(3, tokens, seed=99)
        value = selection_value(attention, saliency, lam)
        kept = best(value, count)
        for layer in range(3):
            subsets = [s for s in itertools.combinations(range(tokens), count) if tokens - 1 in s]
            largest = max(subsets, key=lambda s: float(value[layer, list(s)].double().sum()))
            assert kept[layer].tolist() == list(largest)


def test_a_large_lambda_keeps_those_that_looked_at_the_picture_and_none_those_of_most_attention():
    attention, saliency = random(2, 10, seed=1), random(2, 10, seed=2)
    for lam, by in ((1e6, saliency), (0.0, attention)):
        kept = best(selection_value(attention, saliency, lam), 4)
        for layer in range(2):
            others = by[layer, :-1].argsort(descending=True)[:3].tolist()
            assert kept[layer].tolist() == sorted([*others, 9])


def test_squared_attention_is_the_score():
    attention = random(2, 5)
    torch.testing.assert_close(scores(attention), attention**2)
    torch.testing.assert_close(selection_value(attention, attention, 0.0), attention**2)


# 4. P


def test_p_sums_to_one_and_does_not_change_by_a_constant():
    saliency = random(3, 7)
    torch.testing.assert_close(sight(saliency).sum(1), torch.ones(3))
    torch.testing.assert_close(sight(saliency + 0.3), sight(saliency))


# 5. What is held


@pytest.mark.parametrize("prune", ["visual", "attention", "merge_oldest"])
@pytest.mark.parametrize(("keep", "window"), [(0.9, 16), (0.5, 4), (0.25, 1), (0.01, 3)])
def test_prompt_and_picture_stay_and_the_text_keeps_its_share(monkeypatch, prune, keep, window):
    lm = lm_of(prefix_cache=False)
    seen = []
    old = Decoding.read

    def watched(self, node):
        logits = yield from old(self, node)
        tree, written = self._run.tree, self._count
        prompt = self._run.prompt_end.path()
        assert all(node.slot >= 0 for node in prompt)
        held = held_after(tree, self._run.prompt_end)
        if written % window == 0:
            assert len(held) == ceil(keep * written)
        assert tree.cache.in_use == len(prompt) + len(held)
        assert node in held
        assert sum(span.count for span in tree.spans) == tree.cache.in_use
        seen.append(len(held))
        return logits

    monkeypatch.setattr(Decoding, "read", watched)
    result = lm.generate(PROMPT, method=VASparse(keep=keep, window=window, prune=prune), **OPTIONS | {"max_tokens": 40})
    assert len(seen) == 39
    (worker,) = lm.engine.models
    per_token, prompt = worker.cache.bytes_per_slot, len(lm.encode(PROMPT, images=PICTURES))
    assert per_token == sum(part[:, :1].nbytes for layer in worker.cache.layers for part in layer.parts)
    most = max([seen[0]] + [before + 1 for before in seen[:-1]])  # held in a pass, before it is pruned after it
    assert result.ledger.kv_held == per_token * (prompt + most)
    assert result.ledger.extras["tokens_pruned"] == 39 - seen[-1]
    assert worker.cache.in_use == 0


def test_the_bytes_that_attention_reads_are_those_that_are_held():
    lm = lm_of(prefix_cache=False)
    lm.generate(PROMPT, method="greedy", **OPTIONS | {"max_tokens": 1})  # looks at the pictures
    dense, pruned = (
        lm.generate(PROMPT, method=VASparse(keep=keep, window=1, alpha=0), **OPTIONS) for keep in (1.0, 0.5)
    )
    per_token, passes = lm.engine.models[0].cache.bytes_per_slot, OPTIONS["max_tokens"] - 1
    spared = sum(written - ceil(0.5 * written) for written in range(passes))  # by the pass after so many tokens
    assert dense.ledger.kv_bytes - pruned.ledger.kv_bytes == per_token * spared


def filled(tokens, after):
    """A tree of computed tokens in a cache of random keys and values; it shares nothing below token number `after`."""
    config = tiny_model(layers=LAYERS).decoder.config
    tree = Tree(Cache(config, torch.float32, torch.device("cpu"), limit=64))
    tree.append(list(range(tokens)))
    tree.make_private(tree.tip.path()[after])
    for node in tree.tip.path():
        node.computed = True
    slots = torch.tensor([node.slot for node in tree.tip.path()])
    for layer in range(LAYERS):
        shape, generator = (tokens, config.num_kv_heads, config.head_dim), torch.Generator().manual_seed(layer)
        both = (torch.randn(shape, generator=generator) for _ in range(2))
        tree.cache.write(layer, slots, *both)
    return tree


def contents(tree):
    slots = torch.tensor([node.slot for node in tree.tip.path() if node.slot >= 0])
    assert slots.tolist() == path_slots(tree, tree.tip).tolist()
    return [tree.cache.read(layer, slots, torch.float32) for layer in range(LAYERS)]


def test_each_layer_keeps_its_own_tokens_in_order():
    tree = filled(10, after=3)
    before, after = contents(tree), tree.private_below
    kept = [[0, 5], [1, 5], [4, 5], [2, 5]]
    keep_in_layers(tree, after, kept)
    assert tree.dropped == 4
    assert tree.cache.in_use == 6
    assert [node.slot >= 0 for node in tree.tip.path()] == [True] * 4 + [False] * 4 + [True] * 2
    for layer, (now, was) in enumerate(zip(contents(tree), before, strict=True)):
        places = [0, 1, 2, 3, *(4 + place for place in kept[layer])]
        for mine, theirs in zip(now, was, strict=True):
            assert torch.equal(mine, theirs[:, places])
    tree.append([77])
    assert tree.tip.position == 10
    assert sum(span.count for span in tree.spans) == 7
    tree.release()
    assert tree.cache.in_use == 0


def test_a_row_of_the_prompt_sees_all_of_it_after_text_below_was_dropped():
    """Another run with the same prompt may ask what its rows attend to while this one holds it."""
    tree = filled(10, after=3)
    keep_in_layers(tree, tree.private_below, [[0, 5]] * LAYERS)
    prompt, tip = tree.private_below.path()[1], tree.tip
    plan = plan_pass([(tree, [prompt, tree.private_below, tip])], tree.cache.positions)
    assert plan.keys_seen == [2, 4, 6]


def test_the_oldest_are_merged_into_their_mean():
    tree = filled(8, after=2)
    before = contents(tree)
    merge_oldest(tree, tree.private_below, 3)
    assert tree.dropped == 2
    for (keys, values), (old_keys, old_values) in zip(contents(tree), before, strict=True):
        for mine, theirs in ((keys, old_keys), (values, old_values)):
            assert torch.equal(mine[:, :3], theirs[:, :3])
            torch.testing.assert_close(mine[:, 3], theirs[:, 3:6].mean(1))
            assert torch.equal(mine[:, 4:], theirs[:, 6:])


def test_a_text_that_becomes_private_takes_slots_of_its_own():
    tree = Tree(Cache(tiny_model().decoder.config, torch.float32, torch.device("cpu"), limit=64))
    tree.append([1, 2, 3, 4])
    twin, other = tree.fork(), tree.tip
    twin.make_private(other.parent.parent)
    assert [node.token for node in twin.tip.path()] == [1, 2, 3, 4]
    assert {node.slot for node in twin.tip.path()} & {node.slot for node in tree.tip.path()} == {
        node.slot for node in other.parent.parent.path()
    }
    assert tree.cache.in_use == 6
    assert not twin.sees(other)
    assert twin.sees(twin.tip)
    assert tree.sees(other)


def test_what_was_pruned_or_calibrated_is_never_reused_by_others():
    lm = lm_of()
    greedy = lm.generate(PROMPT, method="greedy", **OPTIONS)
    fresh = lm_of()
    fresh.generate(PROMPT, method=VASparse(keep=0.5, window=2, gamma=2.0, alpha=0), **OPTIONS)
    prompt = fresh.encode(PROMPT, images=PICTURES)
    later = fresh.generate(prompt + greedy.tokens[:12], method="greedy", **TEXT | {"max_tokens": 12})
    assert later.tokens == greedy.tokens[12:]
    assert later.cached_tokens <= len(prompt)


def test_a_run_that_is_put_back_writes_the_same(monkeypatch):
    method, long = VASparse(keep=0.9, window=4, gamma=0.5, contrast="exit:2"), OPTIONS | {"max_tokens": 150}
    prompts = [PROMPT[:20], PROMPT[20:40]]
    alone = [lm_of().generate(prompt, method=method, **long).tokens for prompt in prompts]
    begun = []
    old = Decoding.written
    monkeypatch.setattr(Decoding, "written", lambda self: begun.append(len(old(self))) or old(self))
    lm = LM(tiny_vision_model(layers=LAYERS), Engine(cache_tokens=314, prefix_cache=False))
    handles = [lm.submit(prompt, method=method, **long) for prompt in prompts]
    assert [handle.result(60).tokens for handle in handles] == alone
    assert len(begun) == 3, "one of them began twice"


def test_a_constraint_is_met_also_where_what_it_leaves_is_implausible_and_dead_ends_are_read_anew(monkeypatch):
    begun = []
    old = Decoding.written
    monkeypatch.setattr(Decoding, "written", lambda self: begun.append(len(old(self))) or old(self))
    allowed = Predicate(lambda data: data in (b"ab", b"cde"), lambda data: len(data) <= 3 and not data.strip(b"abcde"))
    result = lm_of().generate(PROMPT, method=VASparse(), constraint=allowed, max_tokens=20, images=PICTURES)
    assert result.text in ("ab", "cde")
    assert result.facts["valid"] is True
    assert max(begun) > 0, "behind a dead end it goes on from what is left of the text"


# 6. Plausibility


def test_what_is_chosen_is_plausible():
    logits, branch = 4 * torch.randn(50, generator=torch.Generator().manual_seed(0)), torch.randn(50)
    probs = logits.softmax(-1)
    for alpha in (0.0, 0.1, 1.0, 50.0):
        value = contrasted(logits, branch, None, alpha=alpha, plausibility=0.1)
        assert (value > -torch.inf).equal(probs >= 0.1 * probs.max())
        assert probs[value.argmax()] >= 0.1 * probs.max()
    assert bool((contrasted(logits, branch, None, alpha=1.0, plausibility=0) > -torch.inf).all())


def test_the_contrast_is_the_papers_formula_and_dola_subtracts_the_embedding_first():
    logits, branch, shallow = (torch.randn(9, generator=torch.Generator().manual_seed(s)) for s in range(3))
    a, b, c = (x.double().log_softmax(-1) for x in (logits, branch, shallow))
    value = contrasted(logits, branch, None, alpha=0.3, plausibility=0)
    torch.testing.assert_close(value.double(), 1.3 * a - 0.3 * b, atol=1e-5, rtol=0)
    value = contrasted(logits, branch, shallow, alpha=0.3, plausibility=0)
    torch.testing.assert_close(value.double(), 1.3 * (a - c) - 0.3 * b, atol=1e-5, rtol=0)


@pytest.mark.parametrize("contrast", ["embedding", "exit:1", "exit:3", "full"])
def test_a_batch_writes_what_each_writes_alone(contrast):
    method = VASparse(alpha=1.0, gamma=0.5, keep=0.5, window=4, contrast=contrast)
    prompts = [PROMPT, PROMPT.upper(), "Another one that is longer than " + PROMPT]
    alone = [lm_of().generate(prompt, method=method, **OPTIONS).tokens for prompt in prompts]
    lm = lm_of()
    greedy = lm.submit(PROMPT, method="greedy", **OPTIONS)
    handles = [lm.submit(prompt, method=method, **OPTIONS) for prompt in prompts]
    assert [handle.result(60).tokens for handle in handles] == alone
    assert greedy.result(60).tokens == lm_of().generate(PROMPT, method="greedy", **OPTIONS).tokens


# 7. Sinks


def attended(log_weights):
    """A row's attention weights of one layer, over 20 random keys of a tiny model, by `attend`."""
    tree, decoder = filled(20, after=19), tiny_model(layers=LAYERS).decoder
    weights = None if log_weights is None else log_weights.expand(LAYERS, -1)
    request = ViewedForward(None, None, tree, tree.tip, View(None, weights), LAYERS, tree.tip.position)
    shape = decoder.config.num_heads, decoder.config.head_dim
    q = torch.randn(shape, generator=torch.Generator().manual_seed(5))
    return attend(decoder, tree.cache, 2, q, Row(request, tree.cache))


def test_calibrated_rows_sum_to_one_and_never_see_less_of_the_picture():
    _, plain = attended(None)
    text = torch.ones(20, dtype=torch.bool)
    text[5:12] = False
    columns = random(1, 20, seed=4)
    torch.testing.assert_close(plain.sum(), torch.tensor(1.0))
    before = float(plain[~text].sum())
    for gamma in (0.0, 0.1, 1.0, 5.0):
        log_weights = log_sink_weights(columns, text, gamma)
        _, row = attended(log_weights)
        torch.testing.assert_close(row.sum(), torch.tensor(1.0))
        assert float(row[~text].sum()) >= before - 1e-6
        assert bool((log_weights[:, ~text] == 0).all())
        assert bool((log_weights <= 0).all())
        before = float(row[~text].sum())


def test_gamma_zero_is_the_identity():
    out, row = attended(None)
    same_out, same_row = attended(log_sink_weights(random(1, 20), torch.ones(20, dtype=torch.bool), 0.0))
    assert torch.equal(out, same_out)
    assert torch.equal(row, same_row)


def test_weights_are_those_of_the_formula_and_columns_means_over_the_rows_that_see_them():
    columns = AttentionColumns(1, torch.tensor([False, True, False]))
    rows = [[1.0], [0.5, 0.5], [0.2, 0.3, 0.5], [0.6, 0.2, 0.1, 0.1]]
    for row in rows:
        columns.add(torch.tensor([row]))
    means = torch.tensor([sum(row[j] for row in rows if len(row) > j) / (4 - j) for j in range(4)])
    text = [0, 2, 3]
    relative = means / means[text].mean()
    expected = [-0.7 * float(relative[j].log()) if j in text and relative[j] > 1 else 0.0 for j in range(4)]
    torch.testing.assert_close(columns.log_weights(0.7, 0)[0], torch.tensor([*expected, 0.0]))
    assert not columns.log_weights(0.7, 1).any()
    torch.testing.assert_close(columns.saliency(2), torch.tensor([[0.3, 0.2]]))


def test_pruning_keeps_the_columns_of_what_is_kept():
    columns = AttentionColumns(2, torch.zeros(2, dtype=torch.bool))
    for keys in range(1, 7):
        columns.add(random(2, keys, seed=keys))
    before = columns.log_weights(1.0, 0)
    saliency = columns.saliency(0).clone()
    kept = torch.tensor([[0, 3], [1, 3]])
    columns.keep(2, kept)
    after = columns.means()
    assert after.shape == (2, 4)
    assert torch.equal(columns.saliency(2), saliency[:, 2:].gather(1, kept))
    assert before.shape == (2, 7)
    columns.merge(2, 2)
    torch.testing.assert_close(columns.means()[:, :2], after[:, :2])
    assert columns.means().shape == (2, 3)


# 8. What the branches cost


@pytest.mark.parametrize(
    ("contrast", "passes", "extras"),
    [
        ("embedding", 24, {"head_products": 24.0}),
        ("exit:1", 24, {"partial_passes": 24 / LAYERS}),
        ("exit:3", 24, {"partial_passes": 24 * 3 / LAYERS}),
        ("exit:4", 48, {}),
        ("full", 48, {}),
    ],
)
def test_a_branch_costs_its_share_of_a_pass(contrast, passes, extras):
    result = lm_of().generate(PROMPT, method=VASparse(gamma=0, keep=1, contrast=contrast), **OPTIONS)
    assert result.ledger.target_passes == passes
    assert result.ledger.extras == pytest.approx(extras)


def test_the_last_token_is_never_read():
    """A pass whose logits nobody needs is not made: as many as tokens, not one more."""
    result = lm_of().generate(PROMPT, method=VASparse(gamma=0.1), **OPTIONS)
    assert result.ledger.target_passes == OPTIONS["max_tokens"]


@pytest.mark.parametrize("name", ["partial_passes", "target_passes", "kv_held", "head_products"])
def test_a_budget_caps_what_branches_cost(name):
    contrast = "embedding" if name == "head_products" else "exit:2"
    whole = lm_of().generate(PROMPT, method=VASparse(contrast=contrast), **OPTIONS)
    cap = whole.ledger.amount(name) * 0.7
    capped = lm_of().generate(PROMPT, method=VASparse(contrast=contrast), budget=Budget(**{name: int(cap)}), **OPTIONS)
    assert capped.finish_reason == "budget"
    assert capped.ledger.amount(name) <= cap
    assert capped.tokens == whole.tokens[: len(capped.tokens)]


# 9. A branch that sees all


@pytest.mark.parametrize("alpha", [0.1, 1.0, 10.0])
@pytest.mark.parametrize("gamma", [0.0, 0.5])
def test_a_branch_of_all_layers_that_masks_nothing_changes_nothing(monkeypatch, alpha, gamma):
    apart = []
    old = contrasted

    def watched(logits, branch, shallow, **options):
        apart.append(0.0 if branch is None else float((logits - branch).abs().max()))
        return old(logits, branch, shallow, **options)

    plain = lm_of().generate(PROMPT, method=VASparse(alpha=0, gamma=gamma, keep=1), **OPTIONS) if gamma else None
    method = VASparse(alpha=alpha, gamma=gamma, keep=1, contrast=f"exit:{LAYERS}", mask_rate=0)
    monkeypatch.setattr(decoding, "contrasted", watched)
    result = lm_of().generate(PROMPT, method=method, **OPTIONS)
    reference = plain.tokens if plain else lm_of().generate(PROMPT, method="greedy", **OPTIONS).tokens
    assert result.tokens == reference
    assert max(apart[-24:]) < 1e-4


# 10. The mask


def test_the_mask_is_drawn_from_its_seed_and_the_picture():
    image = list(range(5, 69))
    prompt = list(range(100))
    for rate in (0.0, 0.25, 0.5):
        hidden = masked_tokens(image, prompt, rate, 0)
        assert len(hidden) == round(64 * rate)
        assert {*hidden.tolist()} <= {*image}
        assert hidden.tolist() == sorted({*hidden.tolist()})
    first = masked_tokens(image, prompt, 0.5, 0)
    assert torch.equal(first, masked_tokens(image, prompt, 0.5, 0))
    assert not torch.equal(first, masked_tokens(image, prompt, 0.5, 1))
    assert not torch.equal(first, masked_tokens(image, [1000, *range(1, 6), *range(7, 101)], 0.5, 0))
    assert torch.equal(first, masked_tokens(image, [7, *prompt[1:]], 0.5, 0)), "the text around it does not matter"


def test_the_same_seed_gives_the_same_text_and_masking_matters():
    def text(**options):
        return lm_of().generate(PROMPT, method=VASparse(contrast="exit:3", alpha=5.0, **options), **OPTIONS).tokens

    assert text() == text()
    assert text(mask_rate=0.9) != text(mask_rate=0)


# The rest


def test_a_gate_decides_where_the_contrast_is_computed():
    seen = []

    def gate(written):
        seen.append(len(written.tokens))
        return len(written.tokens) % 2 == 0

    result = lm_of().generate(PROMPT, method=VASparse(gate=gate), **OPTIONS)
    assert seen == list(range(OPTIONS["max_tokens"]))
    assert result.ledger.extras["head_products"] == OPTIONS["max_tokens"] / 2


def test_dola_takes_the_embedding_beside_the_branch():
    result = lm_of().generate(PROMPT, method=VASparse(dola=True, contrast="exit:2"), **OPTIONS)
    assert result.ledger.extras["head_products"] == OPTIONS["max_tokens"]
    assert result.ledger.extras["partial_passes"] == OPTIONS["max_tokens"] / 2


def test_logprobs_are_those_of_the_model():
    lm = lm_of()
    greedy = lm.generate(PROMPT, method="greedy", logprobs=3, **OPTIONS)
    result = lm.generate(PROMPT, method=VASparse(alpha=0, gamma=1e-12, keep=1), logprobs=3, **OPTIONS)
    for mine, theirs in zip(result.logprobs, greedy.logprobs, strict=True):
        assert mine.logprob == pytest.approx(theirs.logprob, abs=1e-4)


def test_without_a_picture_it_refuses_or_says_what_it_left_out():
    lm = lm_of()
    with pytest.raises(UsageError, match="needs a picture in the prompt"):
        lm.generate(PROMPT, method="vasparse", **TEXT)
    result = lm.generate(PROMPT, method="vasparse:strict=false,gamma=0,keep=1", **TEXT)
    assert result.facts["without_image"] == "no contrast, lam=0"
    assert result.tokens == lm.generate(PROMPT, method="greedy", **TEXT).tokens


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"alpha": -0.1}, "alpha 0 or more"),
        ({"alpha": float("nan")}, "alpha 0 or more"),
        ({"mask_rate": 1.0}, "mask_rate from 0 to below 1"),
        ({"keep": 0.0}, "keep above 0 and at most 1"),
        ({"keep": 1.1}, "keep above 0 and at most 1"),
        ({"window": 0}, "window 1 or more"),
        ({"lam": -1.0}, "lam 0 or more"),
        ({"gamma": -1.0}, "gamma 0 or more"),
        ({"plausibility": 2.0}, "plausibility from 0 to 1"),
        ({"contrast": "exit"}, "embedding, exit:K"),
        ({"contrast": "exit:-1"}, "embedding, exit:K"),
        ({"contrast": "half"}, "embedding, exit:K"),
    ],
)
def test_options_out_of_range_are_refused(options, message):
    with pytest.raises(UsageError, match=message):
        VASparse(**options)


def test_an_exit_too_deep_is_refused():
    with pytest.raises(UsageError, match="after exit:5: it has 4 layers"):
        lm_of().generate(PROMPT, method="vasparse:contrast=exit:5")


def test_rows_of_a_view_are_those_of_a_plain_pass():
    """A view of everything gives the logits and the attention of the pass that has none."""
    lm = lm_of()
    seen = {}

    from outlay.decode.greedy import Greedy
    from outlay.engine.method import Method

    class Both(Method):
        about = Greedy.about

        def decode(self, run):
            yield run.target.forward([run.tip])
            views = run.service("views", lambda wake: ViewWorker(run.target.worker))
            (node,) = run.tree.extend([run.tip], [65])
            viewed = yield views.forward(run.account, run.tree, node, View())
            logits, rows = yield run.target.forward_with_attention([node])
            seen.update(viewed=viewed, logits=logits[0], row=rows[0])
            run.commit(65)

    lm.generate(PROMPT, method=Both(), max_tokens=1)
    torch.testing.assert_close(seen["viewed"].logits, seen["logits"], atol=1e-4, rtol=0)
    torch.testing.assert_close(seen["viewed"].attention, seen["row"], atol=1e-5, rtol=0)
