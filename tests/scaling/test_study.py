"""A study of draft heads: what is measured, that points are kept, and that it goes on where it stopped."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from train.conftest import silent

import outlay.scaling.study as study_module
import outlay.train.draft_head as draft_head_module
from outlay.errors import UsageError
from outlay.models.draft_head import lm_head_rows, load_draft_head
from outlay.models.linear import weight_of
from outlay.scaling.study import DEPTH, DraftStudy, measure, measure_file, study_of
from outlay.testing import tiny_lm, tiny_model
from outlay.train.batches import own_tokens
from outlay.train.corpus import WARM_EVERY
from outlay.train.draft_head import HELD_OUT, DraftHeadRecipe, DraftHeadTrainer

RECIPE = DraftHeadRecipe(vocabulary=100, epochs=1, ahead=0, unroll=2, batch=300)


class StopError(Exception):
    pass


@pytest.fixture(scope="module")
def greedy(corpus):
    return [p for place, p in enumerate(corpus.passages()) if place % WARM_EVERY != WARM_EVERY - 1]


@pytest.fixture
def study(model, greedy, tmp_path):
    return DraftStudy(model, greedy, RECIPE, tmp_path)


@pytest.fixture(scope="module")
def whole(model):
    return lm_head_rows(model, torch.arange(257))


def oracle(whole, wrong=None, vocabulary=257):
    """A stand-in for a trainer, whose draft head knows the target's hidden states, but for one step of a chain."""

    def net(before, embeddings, starts, depth, ahead):
        ahead_of_it = torch.cat([before[:, 1:], torch.zeros_like(before[:, :1])], dim=1)
        steps = [ahead_of_it[:, starts + step] * (-1 if step == wrong else 1) for step in range(depth)]
        return ahead_of_it, steps, []

    tokens = torch.arange(vocabulary)
    net.parameters = lambda: iter([torch.zeros(3, 5), torch.zeros(2)])
    return SimpleNamespace(
        net=net,
        embed=lambda tokens: torch.zeros(*tokens.shape, 32),
        vocabulary=tokens,
        lm_head=whole[tokens],
        full_lm_head=lambda: whole,
        recipe=DraftHeadRecipe(layers=7),
    )


@pytest.mark.parametrize("right", range(DEPTH + 1))
def test_tau_is_one_and_the_tokens_of_a_chain_before_its_first_miss(greedy, whole, right):
    """Hits after the first miss don't count."""
    found = measure(oracle(whole, wrong=right), greedy)
    assert found.tau == pytest.approx(1 + right, abs=0.02), "up to places that float16 hidden states tell otherwise"
    assert found.right == pytest.approx([1.0] * right + [0.0] * (DEPTH - right), abs=0.01)
    assert found.layers == 7
    assert found.parameters == 17


def test_alpha_is_the_overlap_of_both_distributions(greedy, whole, model):
    assert measure(oracle(whole), greedy).alpha == pytest.approx(1.0, abs=1e-5)
    some = measure(oracle(whole, vocabulary=120), greedy).alpha
    assert 0 < some < 1, "a head has nothing in common with the target for tokens that it does not draft"
    opposite = measure(oracle(whole, wrong=0), greedy).alpha
    passage = next(p for p in greedy if len(p.tokens) - p.begin > 30)
    wanted = passage.hidden_states[passage.begin : -1 - DEPTH].float()
    p, q = ((sign * wanted @ whole.T).softmax(-1) for sign in (-1, 1))
    alone = measure(oracle(whole, wrong=0), [passage])
    assert alone.alpha == pytest.approx(float(torch.minimum(p, q).sum(-1).mean()), abs=1e-5)
    assert opposite < some


def test_texts_that_are_too_short_for_a_chain_are_left_out(greedy, whole):
    passage = next(p for p in greedy if len(p.tokens) - p.begin > 30)
    short = replace(
        passage,
        tokens=passage.tokens[: passage.begin + DEPTH],
        hidden_states=passage.hidden_states[: passage.begin + DEPTH],
    )
    assert measure(oracle(whole), [short, passage]) == measure(oracle(whole), [passage])


def test_errors_are_those_of_a_mean_over_texts():
    values = torch.tensor([1.0, 2.0, 3.0, 4.0] * 25, dtype=torch.float64)
    assert study_module._standard_error(values) == pytest.approx(float(values.std() / 10), rel=0.2)
    assert study_module._standard_error(values) == study_module._standard_error(values)
    assert study_module._standard_error(torch.ones(9, dtype=torch.float64)) == 0


def test_heads_are_trained_on_the_first_tokens_and_measured_on_texts_that_were_held_out(study, greedy, monkeypatch):
    trained, measured = [], []
    inner, fit = study_module.measure, DraftHeadTrainer.fit
    monkeypatch.setattr(study_module, "measure", lambda trainer, texts: measured.append(texts) or inner(trainer, texts))
    monkeypatch.setattr(
        DraftHeadTrainer, "fit", lambda trainer, *rest: trained.append(trainer.passages) or fit(trainer, *rest)
    )
    small, large = study.measure(300, 1, silent), study.measure(1200, 1, silent)
    assert (small.tokens, large.tokens) == (300, 1200)
    held = [p for place, p in enumerate(greedy) if place % HELD_OUT == 0]
    assert measured[0] is measured[1]
    assert [id(p) for p in measured[0]] == [id(p) for p in held]
    assert not {id(p) for p in trained[1]} & {id(p) for p in held}
    assert [id(p) for p in trained[0]] == [id(p) for p in trained[1][: len(trained[0])]], "one grows on the other"
    for tokens, texts in zip((300, 1200), trained, strict=True):
        assert own_tokens(texts) >= tokens > own_tokens(texts[:-1])


def test_what_is_measured_is_within_its_bounds(study):
    for layers in (1, 2):
        found = study.measure(600, layers, silent)
        assert 1 <= found.tau <= DEPTH + 1
        assert 0 <= found.alpha <= 1
        assert len(found.right) == DEPTH
        assert found.tau_error >= 0
        point = found.point()
        assert (point.value, point.tokens, point.layers) == (found.tau, 600, layers)
        assert point.what == "tau at depth 5"
        assert found.point("alpha").value == found.alpha
    one, two = study.found
    assert two.parameters > one.parameters


def test_points_are_kept_and_not_measured_again(study, model, greedy, tmp_path, monkeypatch):
    first = [study.measure(300, layers, silent) for layers in (1, 2)]
    assert study.measure(300, 1, silent) is first[0]
    kept = json.loads((tmp_path / "study.json").read_text())
    assert [(row["tokens"], row["layers"], row["tau"]) for row in kept["heads"]] == [
        (300, found.layers, found.tau) for found in first
    ]
    again = DraftStudy(model, greedy, RECIPE, tmp_path)
    assert again.found == first
    monkeypatch.setattr(study_module, "DraftHeadTrainer", None)  # nothing is trained
    assert again.measure(300, 2, silent) == first[1]


def test_a_study_that_was_stopped_goes_on_where_it_was_and_ends_the_same(study, model, greedy, tmp_path, monkeypatch):
    whole = study.measure(1200, 1, silent)
    monkeypatch.setattr(draft_head_module, "KEEP_EVERY", 1)
    steps = []

    def stop(phase, done, total):
        steps.append(done)
        if done == 2:
            raise StopError

    folder = tmp_path / "halved"
    folder.mkdir()
    with pytest.raises(StopError):
        DraftStudy(model, greedy, RECIPE, folder).measure(1200, 1, stop)
    assert not (folder / "study.json").exists()
    steps.clear()
    again = DraftStudy(model, greedy, RECIPE, folder)
    found = again.measure(1200, 1, lambda phase, done, total: steps.append(done))
    assert steps[0] == 2, "the first step was kept"
    assert len(steps) > 1
    assert found == whole
    assert again.path(1200, 1).exists()


def test_heads_of_another_recipe_are_not_added_to_a_study_but_can_be_measured_on_its_texts(
    study, model, greedy, tmp_path
):
    known = study.measure(300, 1, silent)
    other = DraftStudy(model, greedy, replace(RECIPE, vocabulary=50), tmp_path)
    for size in ((300, 1), (300, 2)):
        with pytest.raises(UsageError, match="holds draft heads of another recipe; choose another folder"):
            other.measure(*size, silent)
    assert DraftStudy(model, greedy, RECIPE, tmp_path).found == [known], "and the study is as it was"
    assert measure_file(study.path(300, 1), model, other.held).layers == 1


def test_a_seed_gives_the_same_points(model, greedy, tmp_path):
    found = [
        DraftStudy(model, greedy, replace(RECIPE, seed=seed), tmp_path / f"{place}").measure(300, 1, silent)
        for place, seed in enumerate((1, 1, 2))
    ]
    assert found[0] == found[1] != found[2]


def test_a_head_in_a_file_is_measured_as_it_was(study, greedy):
    """By what drafts: its weights are rounded as they are held there."""
    known = study.measure(600, 1, silent)
    found = measure_file(study.path(600, 1), study.model, study.held)
    assert found.tau == pytest.approx(known.tau, abs=0.05)
    assert found.alpha == pytest.approx(known.alpha, abs=0.02)
    assert (found.layers, found.parameters) == (known.layers, known.parameters)
    assert found.tokens == own_tokens(study._first(600))
    trainer, _ = DraftHeadTrainer.of_file(study.path(600, 1), study.model)
    decoder = load_draft_head(study.path(600, 1), study.model).decoder
    layer, held = trainer.net.layers[0], decoder.layers[0]
    for mine, theirs in ((layer.qkv.weight, held.qkv), (layer.down.weight, held.mlp.down)):
        assert torch.equal(mine, weight_of(theirs))
    assert torch.equal(trainer.net.fuse.weight, weight_of(decoder.fuse))
    assert torch.equal(trainer.lm_head, weight_of(decoder.lm_head))
    with pytest.raises(UsageError, match="whose weights are not those of tiny-5"):
        measure_file(study.path(600, 1), tiny_model(5), study.held)


def test_a_study_has_the_model_write_greedy_texts_and_enough_of_them(corpus, greedy, tmp_path):
    shutil.copytree(corpus.folder, tmp_path / "corpus")
    lm = tiny_lm(context=1024)
    study = study_of(lm, RECIPE, 1000, tmp_path, silent)
    assert [p.tokens.tolist() for p in (*study.held, *study.rest)] == [
        p.tokens.tolist()
        for p in sorted(greedy, key=lambda p: next(i for i, q in enumerate(greedy) if q is p) % HELD_OUT != 0)
    ]
    assert own_tokens(study.rest) >= 1000
