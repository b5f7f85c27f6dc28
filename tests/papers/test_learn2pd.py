"""Learn2PD: identities of the rule, the oracle, the filter's file and fitting, end-of-text prediction, and passes."""

from __future__ import annotations

from dataclasses import replace
from statistics import mean

import numpy as np
import pytest
import torch
from diffuse.made import places, proposals, random_case, threshold_filter

import outlay
from outlay import Learn2PD, UsageError
from outlay.diffuse.exact.denoiser import IDS, START, exact_model
from outlay.diffuse.exact.sequences import Phrase
from outlay.diffuse.learn2pd import CERTAIN, CommitFilter, in_block, open_filter, save_filter
from outlay.diffuse.llada import LLaDA
from outlay.diffuse.proposals import BlockSoFar
from outlay.diffuse.threshold import Threshold
from outlay.engine.engine import Engine
from outlay.errors import OutlayWarning
from outlay.lm import LM
from outlay.progress import silent
from outlay.testing import tiny_diffusion_model, tiny_lm
from outlay.train.commit_filter import FilterRecipe, fit_filter, train_filter
from outlay.train.commit_filter.agreement import Agreement
from outlay.train.commit_filter.fit import fit, loss, split
from outlay.train.commit_filter.oracle import EGP, MOMENTS, OneByOne
from outlay.train.commit_filter.traces import block_of, collect, decoded, traced

RATES = (0.05, 0.1, 0.15, 0.2, 0.05, 0.1, 0.15, 0.2)
SOURCE = Phrase(alpha=0.05, noise=RATES)  # six slots: two are the prompt, four a block of 32
ASKED, LETTERS = 2, 32


def constant(block, logit):
    """The filter that gives every proposal the same score."""
    return CommitFilter(((torch.zeros(block, block), torch.full((block,), logit)),))


def asked(count, seed):
    """Prompts of the acceptance experiment: the start, and two noisy phrases of the chain."""
    rng, prompts = np.random.default_rng(seed), []
    for _ in range(count):
        phrases = [rng.choice(SOURCE.phrases)]
        while len(phrases) < ASKED:
            phrases.append(rng.choice(SOURCE.phrases, p=SOURCE.steps[phrases[-1]]))
        letters = [int(letter) for phrase in phrases for letter in SOURCE.table[phrase]]
        noisy = [int(rng.integers(26)) if rng.random() < rate else letter
                 for letter, rate in zip(letters, RATES * ASKED, strict=True)]  # fmt: skip
        prompts.append([IDS[START], *noisy])
    return prompts


@pytest.fixture(scope="module")
def source():
    return LM(exact_model(SOURCE), Engine())


@pytest.fixture(scope="module")
def small(source):
    """A filter that is fitted to a few prompts, with the traces."""
    prompts, recipe = asked(60, 0), FilterRecipe(length=LETTERS)
    traces = collect(source, prompts, recipe, None, silent)
    return prompts, traces, *fit_filter(source, prompts, traces, recipe, silent)


# The rule.


def test_a_filter_that_is_a_threshold_fills_what_the_threshold_fills():
    rng = np.random.default_rng(0)
    for _ in range(400):
        case, tau = random_case(rng), float(rng.uniform(0.2, 0.95))
        rule = Learn2PD(filter=threshold_filter(tau, len(case.positions)))
        assert places(rule.select(case)) == places(Threshold(tau=tau).select(case))
    lm = outlay.load("exact-phrase:noise=0.05x0.1x0.15x0.2")
    options = {"max_tokens": 80, "seed": 1}
    ours = lm.generate("^", method=Learn2PD(filter=threshold_filter(0.71, 32)), **options)
    theirs = lm.generate("^", method="threshold:tau=0.71", **options)
    assert (ours.tokens, ours.facts["filled_in_round"]) == (theirs.tokens, theirs.facts["filled_in_round"])


def test_accept_one_or_a_filter_that_accepts_nothing_is_one_token_a_round():
    lm = outlay.load("exact-phrase:noise=0.1")
    one = lm.generate("^", method=LLaDA(), max_tokens=64)
    for rule in (Learn2PD(filter=constant(32, 50.0), accept=1), Learn2PD(filter=constant(32, -50.0), accept=0.5)):
        result = lm.generate("^", method=rule, max_tokens=64)
        assert (result.tokens, result.facts["filled_in_round"]) == (one.tokens, one.facts["filled_in_round"])
        assert (result.ledger.extras["forced"], result.ledger.extras.get("filter_accepts", 0)) == (64, 0)


def test_a_filter_that_accepts_all_fills_a_block_a_pass():
    result = outlay.load("exact-phrase").generate("^", method=Learn2PD(filter=constant(32, 9.0)), max_tokens=80)
    assert result.ledger.rounds == 3
    assert result.ledger.extras["filter_accepts"] == 80


def test_the_filter_reads_filled_positions_too_and_never_fills_them():
    seen = []

    class Watching(CommitFilter):
        def scores(self, confidence):
            seen.append(confidence.tolist())
            return np.ones(4)

    case = proposals([0.9, 0.8, 0.7, 0.6], [1, 3])
    assert places(Learn2PD(filter=Watching(constant(4, 0.0).layers)).select(case)) == [0, 2]
    assert seen == [[0.9, 0.8, 0.7, 0.6]]


def test_places_of_a_block_that_are_not_on_the_canvas_are_certain():
    behind = proposals([0.5, 0.6, 0.7], block=3)
    assert in_block(behind, behind.confidence, 5, CERTAIN).tolist() == [0.5, 0.6, 0.7, 1, 1]
    before = replace(behind, positions=np.array([6, 7, 8]), block=BlockSoFar(6, 8, offset=2))
    assert in_block(before, before.confidence, 4, CERTAIN).tolist() == [1, 1, 0.5, 0.6], "the third is of another block"


def test_a_block_that_the_prompt_has_begun_stands_at_its_places():
    """Block-causal attention counts blocks from the text's first token, so the first one holds a part of the prompt."""
    lm = LM(tiny_diffusion_model(block=8), Engine())
    prompt = list(range(11))
    result = lm.submit(prompt, method=OneByOne(block=8), max_tokens=9, ignore_eos=True).result()
    first, *_, last = result.facts[MOMENTS]
    assert first.positions.tolist() == [-1, -1, -1, 11, 12, 13, 14, 15]
    assert last.positions.tolist() == [16, 17, 18, 19, -1, -1, -1, -1]


# The oracle.


@pytest.mark.parametrize("kind", ["exact", "full", "causal"])
def test_the_oracle_ends_with_the_reference_in_at_most_a_pass_a_block_more(kind, source):
    block, length = (32, 64) if kind == "exact" else (8, 24)
    lm = source if kind == "exact" else LM(tiny_diffusion_model(block=8 * (kind == "causal")), Engine())
    prompts = asked(6, 5) if kind == "exact" else [[number, *range(9)] for number in range(6)]
    ones = decoded(lm, prompts, [OneByOne(block=block)] * 6, length)
    oracles = [EGP(block=block, reference=(*p, *one.tokens)) for p, one in zip(prompts, ones, strict=True)]
    for one, two in zip(ones, decoded(lm, prompts, oracles, length), strict=True):
        assert two.tokens == one.tokens
        assert one.ledger.rounds == length
        blocks = {(moment.positions[moment.positions >= 0][0]) for moment in two.facts[MOMENTS]}
        assert two.ledger.rounds <= length + len(blocks)
    if kind == "exact":
        assert mean(two.ledger.rounds for two in decoded(lm, prompts, oracles, length)) <= 0.25 * length


def test_one_token_a_round_is_the_reference_of_the_sampler(source):
    (one,) = decoded(source, asked(1, 3), [OneByOne(block=32)], 40)
    (same,) = decoded(source, asked(1, 3), [LLaDA()], 40)
    assert one.facts["filled_in_round"] == same.facts["filled_in_round"]
    assert len(one.facts[MOMENTS]) == 40


def test_records_say_which_proposals_are_final(source):
    recipe = FilterRecipe(length=40)
    traces = traced(source, asked(3, 4), 7, recipe)
    assert traces.prompt.unique().tolist() == [7, 8, 9]
    assert traces.passes[:, 0].tolist() == [40] * 3
    assert int(traces.oracle.sum()) == int(traces.passes[:, 1].sum())
    assert len(traces) == int(traces.passes.sum())
    reference = traces.of(~traces.oracle & (traces.prompt == 7))
    assert reference.masked.sum(1).tolist() == [*range(32, 0, -1), *range(8, 0, -1)], "a block of 32, and one of 8"
    assert bool((reference.final | reference.masked | ~reference.present).all()), "what is filled is the reference's"
    assert reference.present.sum(1).tolist() == [32] * 32 + [8] * 8
    last = reference.of(torch.tensor([31, 39]))
    assert bool(last.final[last.masked].all()), "the last proposal of a block is filled"


# The filter's fitting.


def test_a_filter_of_two_thousand_weights_is_fitted_and_calibrated(small):
    _, traces, fitted, report = small
    assert sum(weight.numel() for layer in fitted.layers for weight in layer) == 2112
    assert report.oracle_passes <= 0.25 * report.reference_passes
    assert report.agreement >= 0.99
    assert report.oracle_passes < report.passes <= report.reference_passes
    assert report.records == int((~torch.isin(traces.prompt, held_out(traces))).sum())
    assert (report.accept, report.cut_agreement, report.cut_positions) == (fitted.accept, report.agreement, 1.0)


def held_out(traces):
    _, _, apart = split(traces, FilterRecipe())
    return torch.tensor(apart)


def test_held_out_prompts_have_no_record_among_those_learned_from(small):
    _, traces, *_ = small
    train, held, apart = split(traces, FilterRecipe())
    assert len(apart) == 12
    assert {*held.prompt.tolist()} == {*apart}
    assert not {*train.prompt.tolist()} & {*apart}
    train, held, apart = split(traces, FilterRecipe.published())
    assert apart == []
    assert bool(train.oracle.all())
    assert {*train.prompt.tolist()} & {*held.prompt.tolist()}, "a split of records has prompts on both sides"


def test_the_loss_counts_the_positions_that_the_recipe_says(small):
    _, traces, fitted, _ = small
    flipped = replace(traces, final=torch.where(traces.masked, traces.final, ~traces.final))
    assert loss(fitted, traces, FilterRecipe()) == loss(fitted, flipped, FilterRecipe())
    published = FilterRecipe.published()
    assert loss(fitted, traces, published) != loss(fitted, flipped, published)


def test_the_published_recipe_is_the_papers():
    recipe = FilterRecipe.published()
    assert (recipe.hidden, recipe.lr, recipe.epochs, recipe.batch) == (32, 3e-3, 40_000, 0)
    assert (recipe.paths, recipe.positions, recipe.split, recipe.agreement) == ("oracle", "all", "record", None)
    assert constant(32, 0.0).accept == 0.96


def test_one_layer_is_logistic_regression(small):
    _, traces, *_ = small
    recipe = FilterRecipe(hidden=0, epochs=20)
    train, held, _ = split(traces, recipe)
    fitted, found = fit(train, held, recipe, silent)
    assert sum(weight.numel() for layer in fitted.layers for weight in layer) == 1056
    assert found < loss(constant(32, 0.0), held, recipe)


@pytest.mark.parametrize(
    ("wrong_below", "share", "accept"),
    [(0.98, 1.0, 0.98), (0.0, 1.0, 0.5), (2.0, 0.0, 1.0), (0.98, 0.97, 0.98)],
    ids=["the lowest that agrees", "all agree", "none is right", "none agrees enough"],
)
def test_the_score_is_the_lowest_that_agrees_often_enough(wrong_below, share, accept):
    class Told(Agreement):
        def __init__(self):
            pass

        def of(self, found):
            return 1.0, share if found.accept >= wrong_below else 0.0

    assert Told().calibrated(constant(32, 9.0), 0.99, silent).accept == accept


def test_a_lower_score_that_agrees_by_luck_is_not_taken():
    class Told(Agreement):
        def __init__(self):
            pass

        def of(self, found):
            return 1.0, 0.9 if found.accept == 0.98 else 1.0

    assert Told().calibrated(constant(32, 9.0), 0.99, silent).accept == 0.99


def test_what_was_stopped_goes_on_from_its_shards(tmp_path, source):
    recipe, prompts = FilterRecipe(length=8, block=8), asked(40, 6)

    def stop(phase, done, total):
        if done:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        collect(source, prompts, recipe, tmp_path, stop)
    (shard,) = tmp_path.iterdir()
    written = shard.stat().st_mtime_ns
    whole, anew = (collect(source, prompts, recipe, folder, silent) for folder in (tmp_path, None))
    assert shard.stat().st_mtime_ns == written
    assert all(torch.equal(getattr(whole, name), getattr(anew, name)) for name in vars(anew))
    with pytest.raises(UsageError, match="other prompts or another canvas"):
        collect(source, prompts[1:], recipe, tmp_path, silent)


# The filter's file.


def test_a_file_gives_the_same_filter_and_is_refused_for_another_model_or_block(tmp_path, small, source):
    fitted, path, prompt = small[2], tmp_path / "folder" / "one.filter.safetensors", asked(1, 9)[0]
    save_filter(path, fitted, source.model)
    read = open_filter(str(path), source.model)
    assert read.accept == fitted.accept
    for mine, theirs in zip(fitted.layers, read.layers, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(mine, theirs, strict=True))
    ours, named = (source.generate(prompt, method=method, max_tokens=LETTERS).facts["filled_in_round"]
                   for method in (Learn2PD(filter=fitted), f"learn2pd:filter={path}"))  # fmt: skip
    assert ours == named
    with pytest.raises(UsageError, match="whose weights are not those of exact-copy"):
        outlay.load("exact-copy").generate("abc=", method=f"learn2pd:filter={path}", max_tokens=4)
    with pytest.raises(UsageError, match="fitted to blocks of 32, not to blocks of 16; take block=32"):
        source.generate(prompt, method=f"learn2pd:filter={path},block=16", max_tokens=4)
    with pytest.raises(UsageError, match="not to the whole canvas"):
        source.generate(prompt, method=f"learn2pd:filter={path},block=all", max_tokens=4)


def test_a_model_without_a_filter_is_told_the_command():
    with pytest.raises(UsageError, match="`outlay train filter --model exact-copy` trains one"):
        outlay.load("exact-copy").generate("abc=", method="learn2pd", max_tokens=4)


@pytest.mark.parametrize(
    ("model", "count", "told"),
    [
        (lambda: LM(exact_model(SOURCE), Engine()), 3, "10 prompts or more"),
        (tiny_lm, 10, "writes from left to right"),
        (lambda: outlay.load("exact-copy"), 10, "there is nothing to learn: each of the model's proposals"),
        (lambda: LM(tiny_diffusion_model(block=8), Engine()), 10, "so block must be 8"),
    ],
)
def test_what_cannot_be_fitted_is_told(tmp_path, model, count, told):
    lm = model()
    prompts = [lm.model.tokenizer.encode("ab=")] * count
    with pytest.raises(UsageError, match=told):
        train_filter(lm, prompts, FilterRecipe(block=4, length=4), tmp_path / "f", silent)
    assert not (tmp_path / "f").exists()


@pytest.mark.parametrize(
    ("options", "told"),
    [({"accept": 1.5}, "accept must be from 0 to 1"), ({"end_confidence": -1}, "end_confidence must be 0 or more")],
)
def test_bad_options_are_told(options, told):
    with pytest.raises(UsageError, match=told):
        Learn2PD(**options)


@pytest.mark.parametrize(
    ("options", "told"),
    [({"hidden": -1}, "hidden must be 0 or more"), ({"agreement": 0}, "above 0"), ({"split": "record"}, "held out")],
)
def test_bad_recipes_are_told(options, told):
    with pytest.raises(UsageError, match=told):
        FilterRecipe(**options)


def test_samples_warn(source):
    with pytest.warns(OutlayWarning, match="fitted to greedy texts"):
        source.generate(asked(1, 0)[0], method=Learn2PD(filter=constant(32, 0.0)), max_tokens=4, temperature=1.0)


def test_the_block_is_the_models_own_or_the_filters():
    lm = LM(tiny_diffusion_model(block=8), Engine())
    assert block_of(lm, FilterRecipe()) == 8
    assert block_of(outlay.load("exact-phrase"), FilterRecipe()) == 32
    result = outlay.load("exact-phrase").generate("^", method=Learn2PD(filter=constant(16, 9.0)), max_tokens=32)
    assert result.ledger.rounds == 2


# End-of-text prediction.


@pytest.mark.parametrize("length", [3, 11, 20])
def test_cutting_takes_a_quarter_of_the_positions_and_writes_the_same(length):
    """Canvas 128, answers of up to 20 letters."""
    lm, prompt = outlay.load("exact-copy"), "abcdefghijklmnopqrst"[:length] + "="
    rules = [Learn2PD(filter=constant(8, -9.0), ends=ends) for ends in ("cut", "stop", "keep")]
    cut, stop, keep = (lm.generate(prompt, method=rule, max_tokens=128) for rule in rules)
    assert cut.tokens == stop.tokens == keep.tokens
    assert 4 * cut.ledger.target_tokens <= keep.ledger.target_tokens
    sizes = cut.facts["canvas_by_round"]
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[-1] == length + 1
    assert {*stop.facts["canvas_by_round"]} == {128}
    assert cut.ledger.extras.get("dropped_tokens", 0) == 0


def test_a_predicted_end_cuts_from_a_confidence_on_and_a_filled_one_always():
    lm, prompt = outlay.load("exact-copy"), "abcdef="

    def sizes(**options):
        rule = Learn2PD(filter=constant(8, -9.0), **options)
        return lm.generate(prompt, method=rule, max_tokens=32).facts["canvas_by_round"]

    assert sizes()[1] == 7, "all ends are certain, and the first of the surest cuts"
    assert sizes(end_confidence=0.9) == sizes()
    assert sizes(end_confidence=1.5) == [32] * 7, "one by one the end is filled at last"


# The headline at small scale.


def test_it_takes_less_than_half_of_a_thresholds_passes_and_writes_the_same(small, source):
    """The acceptance experiment with a fifteenth of its prompts: 0.27 of threshold 0.9's passes, here at most 0.5."""
    prompts, recipe = asked(20, 1), FilterRecipe(length=LETTERS)
    traces = traced(source, prompts, 0, recipe)
    passes, agreement = Agreement(source, prompts, traces.answers.tolist(), recipe).of(small[2])
    strict = mean(each.ledger.rounds for each in decoded(source, prompts, [Threshold()] * 20, LETTERS))
    assert agreement >= 0.95
    assert traces.passes[:, 1].double().mean() < passes <= 0.5 * strict
