"""Prompt tokens in training: what they learn, on what they are calibrated, and that a stop costs nothing."""

from __future__ import annotations

import json

import pytest
import torch
from train.conftest import silent

import outlay.train.corpus as corpus_module
import outlay.train.prompt_tokens as prompt_tokens_module
from outlay.decode.draft.ppd.prompt_tokens import RANKS, load_prompt_tokens
from outlay.errors import UsageError
from outlay.models import fitted
from outlay.models.linear import weight_of
from outlay.testing import tiny_lm, tiny_model
from outlay.train.corpus import WARM_EVERY, Passage
from outlay.train.prompt_tokens import PHRASE, PromptRecipe, PromptTrainer, train_prompts

SMALL = PromptRecipe(m=2, steps=12, texts=1, groups=4)
PROMPTS = [[1, 2, 3], [40, 50], [60]]


class StopError(Exception):
    pass


@pytest.fixture(autouse=True)
def often(monkeypatch):
    """Checkpoints every ten steps."""
    monkeypatch.setattr(prompt_tokens_module, "KEEP_EVERY", 10)


@pytest.fixture
def short(monkeypatch):
    """A model that writes a few short texts."""
    monkeypatch.setattr(corpus_module, "TOGETHER", 12)
    monkeypatch.setattr(corpus_module, "LONGEST", 24)
    monkeypatch.setattr(corpus_module, "questions", lambda lm, indices, seed: [[1]] * len(indices))
    return tiny_lm()


def stopping(phase, at):
    """A progress that gives up at a step."""

    def progress(shown, done, total):
        if shown.startswith(phase) and done == at:
            raise StopError

    return progress


@pytest.fixture(scope="module")
def distribution(model):
    """The tiny model's distribution at a hidden state that suits three tokens, and that hidden state."""
    rows = weight_of(model.decoder.lm_head)[[5, 70, 99]]
    state = (rows * torch.tensor([[3.0], [2.4], [1.8]])).sum(0)
    state = state / state.square().mean().sqrt()
    return (weight_of(model.decoder.lm_head) @ state).softmax(0), state


@pytest.fixture(scope="module")
def drawn(distribution):
    """Texts of tokens that are drawn from that distribution independently: only the distribution can be learned."""
    probs, state = distribution
    generator = torch.Generator().manual_seed(0)
    texts = [torch.multinomial(probs, 120, replacement=True, generator=generator) for _ in range(24)]
    return [Passage(tokens, 10, state.half().expand(120, -1)) for tokens in texts]


@pytest.fixture(scope="module")
def learned(model, drawn):
    trainer = PromptTrainer(model, PromptRecipe(m=2, steps=100, texts=1, groups=32, lr=0.2))
    trainer.fit(drawn[:4], None, silent)
    return trainer


def test_training_makes_the_guesses_better(model, learned, drawn):
    fresh = PromptTrainer(model, learned.recipe)
    cuts = list(range(20, 100, 5))
    with torch.no_grad():
        assert float(learned.loss(drawn[8], cuts)) < 0.3 * float(fresh.loss(drawn[8], cuts))


def test_the_calibration_falls_with_the_rank_and_is_how_often_a_guess_is_right(learned, drawn, distribution):
    """The hit rate of the best guess is the probability of the most probable token: within five standard errors, and
    what the training misses by.
    """
    table = learned.accuracy(drawn[4:])
    assert table.shape == (2, RANKS)
    best = float(distribution[0].max())
    for row in table.tolist():
        assert row[0] == max(row)
        assert sum(row[:5]) > sum(row[5:])
        assert row[0] == pytest.approx(best, abs=5 * (best * (1 - best) / 640) ** 0.5 + 0.03)
        assert sum(row) < 1


def test_the_calibration_counts_the_ranks_of_the_tokens_that_followed(prompts, passages):
    """As counted one place at a time: the first guess is of the token after the next one."""
    texts = passages[8:11]
    found = prompts.accuracy(texts)
    drawn_cuts = []
    inner = prompts.cuts
    prompts.cuts = lambda passage, draw: drawn_cuts.append(inner(passage, draw)) or drawn_cuts[-1]
    try:
        assert torch.equal(prompts.accuracy(texts), found), "it looks at the same places each time"
    finally:
        del prompts.cuts
    right = torch.zeros(prompts.recipe.m, RANKS)
    for passage, cuts in zip(texts, drawn_cuts, strict=True):
        for cut in cuts:
            with torch.no_grad():
                guesses = prompts.guesses(passage, [cut])[0]
            for i, guess in enumerate(guesses):
                rank = int((guess > guess[passage.tokens[cut + 2 + i]]).sum())
                if rank < RANKS:
                    right[i, rank] += 1
    assert float(right.sum()) > 0
    assert torch.allclose(found, right / sum(map(len, drawn_cuts)))


def test_places_are_the_models_own_and_all_that_is_guessed_behind_them_is_known(prompts, passages):
    import random

    m = prompts.recipe.m
    for passage in passages:
        cuts = prompts.cuts(passage, random.Random(0))
        assert cuts == sorted(set(cuts))
        assert len(cuts) <= prompts.recipe.groups
        assert all(passage.begin - 1 <= cut and cut + m + 1 < len(passage.tokens) for cut in cuts)
    short = Passage(torch.arange(m + 2), 2, torch.zeros(m + 2, 32).half())
    assert prompts.cuts(short, random.Random(0)) == []


def test_a_guess_sees_the_text_up_to_its_place_and_nothing_behind_it(prompts, passages):
    passage = next(each for each in passages if len(each.tokens) > 60)
    changed = Passage(passage.tokens.clone(), passage.begin, passage.hidden_states)
    changed.tokens[41:] = 7
    with torch.no_grad():
        one, two = (prompts.guesses(each, [30, 40, 50]) for each in (passage, changed))
        alone = prompts.guesses(passage, [40])
    assert torch.allclose(one[:2], two[:2], atol=1e-5)
    assert not torch.allclose(one[2], two[2], atol=1e-2)
    assert torch.allclose(one[1], alone[0], atol=1e-4), "nor the prompt tokens of other places"


def test_training_is_seeded(model, passages):
    def trained(seed):
        trainer = PromptTrainer(model, PromptRecipe(m=2, steps=3, texts=1, groups=4, seed=seed))
        trainer.fit(passages[:6], None, silent)
        return trainer.embeddings.detach()

    assert torch.equal(trained(1), trained(1))
    assert not torch.equal(trained(1), trained(2))


def test_they_begin_as_a_phrase(model):
    trainer = PromptTrainer(model, PromptRecipe(m=2, copies=2))
    expected = model.decoder.embed(torch.tensor(model.tokenizer.encode(PHRASE)))[:4]
    assert torch.equal(trainer.embeddings.detach().view(4, -1), expected.float())


def test_what_is_trained_is_calibrated_on_texts_that_were_held_out_and_written_with_it(short, tmp_path, monkeypatch):
    seen = {}
    for name in ("fit", "accuracy"):
        inner = getattr(PromptTrainer, name)
        monkeypatch.setattr(
            PromptTrainer,
            name,
            lambda trainer, texts, *more, name=name, inner=inner: (
                seen.update({name: list(texts)}) or inner(trainer, texts, *more)
            ),
        )
    out = tmp_path / "p.safetensors"
    table = train_prompts(short, SMALL, 24 * 30, PROMPTS, out, silent)
    trained, held = ({id(each.hidden_states): tuple(each.tokens.tolist()) for each in seen[name]} for name in seen)
    assert trained.keys().isdisjoint(held)
    written = len(trained) + len(held)
    assert written == 36 - 36 // WARM_EVERY, "greedy texts alone"
    about = fitted.describe(out)
    assert about["accuracy"] == [[round(rate, 4) for rate in row] for row in table.tolist()]
    assert (about["recipe"]["m"], about["recipe"]["steps"]) == (2, 12)
    loaded = load_prompt_tokens(out, short.model)
    assert loaded.vectors.shape == (2, 1, 32)
    assert len(loaded.accuracy) == 2
    assert not (tmp_path / "p.safetensors.work").exists()


def test_a_training_that_was_stopped_goes_on_where_it_was(short, tmp_path):
    whole, halved = tmp_path / "whole.safetensors", tmp_path / "halved.safetensors"
    train_prompts(short, SMALL, 200, PROMPTS, whole, silent)
    for phase, at in (("training", 11), ("measuring", 1)):
        with pytest.raises(StopError):
            train_prompts(short, SMALL, 200, PROMPTS, halved, stopping(phase, at))
        assert not halved.exists()
    shards = sorted((tmp_path / "halved.safetensors.work" / "corpus").iterdir())
    assert [shard.name for shard in shards] == ["00000.safetensors"]
    train_prompts(short, SMALL, 200, PROMPTS, halved, silent)
    assert halved.read_bytes() == whole.read_bytes()


def test_a_checkpoint_is_kept_every_so_often_and_used(model, passages, tmp_path):
    with pytest.raises(StopError):
        PromptTrainer(model, SMALL).fit(passages[:4], tmp_path / "c", stopping("training", 11))
    assert torch.load(tmp_path / "c", weights_only=True)["step"] == 10
    steps = []
    PromptTrainer(model, SMALL).fit(passages[:4], tmp_path / "c", lambda phase, done, total: steps.append(done))
    assert steps == list(range(11, 13))
    assert not (tmp_path / "c").exists()


def test_a_checkpoint_of_another_recipe_is_refused(model, passages, tmp_path):
    with pytest.raises(StopError):
        PromptTrainer(model, SMALL).fit(passages[:4], tmp_path / "c", stopping("training", 11))
    other = PromptTrainer(model, PromptRecipe(m=3, steps=12, texts=1, groups=4))
    with pytest.raises(UsageError, match="c is of another recipe; remove it, or train into another file"):
        other.fit(passages[:4], tmp_path / "c", silent)


@pytest.mark.parametrize("name", ["m", "copies", "steps", "texts", "groups"])
def test_recipes_of_nothing_are_refused(name):
    with pytest.raises(UsageError, match=f"{name} must be 1 or more, not 0"):
        PromptRecipe(**{name: 0})


def test_the_file_says_whose_it_is(prompts_file):
    about = fitted.describe(prompts_file)
    assert (about["kind"], about["model"]) == ("ppd", "tiny-0")
    assert json.loads(json.dumps(about)) == about
    with pytest.raises(UsageError, match="whose weights are not those of tiny-4"):
        load_prompt_tokens(prompts_file, tiny_model(4))
