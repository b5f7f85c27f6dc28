"""PPD (Chen et al. 2024): the properties of its specification. Its trees: tests/speculation/test_sparse_tree.py."""

from __future__ import annotations

import pytest
import torch
from papers.distributions import assert_exact, markov_lm
from train.conftest import corpus, model, passages, prompts, prompts_file, silent  # noqa: F401 - fixtures

from outlay import LM
from outlay.decode.draft import ppd
from outlay.decode.draft.ppd import PPD
from outlay.decode.draft.ppd.prompt_tokens import KIND, load_prompt_tokens
from outlay.engine.engine import Engine
from outlay.engine.method import About, Method
from outlay.errors import UsageError
from outlay.models import fitted
from outlay.models.linear import weight_of
from outlay.speculation.costs import PassCosts
from outlay.testing import PROMPTS, tiny_model
from outlay.train.prompt_tokens import PromptRecipe, PromptTrainer

ACCURACY = [[0.4, 0.1, 0.05] + [0.01] * 7, [0.2, 0.1, 0.05] + [0.01] * 7]


class Guess(Method):
    """Keeps the logits at prompt tokens behind the prompt, and at the prompt's end with and without them."""

    about = About("guess", "", "", "test", "", "")

    def __init__(self, vectors):
        self.vectors, self.logits, self.last = vectors, None, []

    def decode(self, run):
        nodes = [run.tip]
        for vectors in self.vectors:
            nodes += run.tree.extend([nodes[-1]], [-1], "ppd", inputs_embeds=[vectors[0]])
        logits = yield run.target.forward(nodes)
        self.logits = logits[1:]
        self.last.append(logits[0])


def test_the_engine_guesses_what_training_guesses(prompts, model, passages):  # noqa: F811
    passage = next(p for p in passages if 20 < p.begin < 100)
    cut = passage.begin + 4
    with torch.no_grad():
        expected = prompts.guesses(passage, [cut])[0]
    guess = Guess(prompts.embeddings.detach())
    LM(model, Engine()).generate(passage.tokens[: cut + 1].tolist(), method=guess, max_tokens=1)
    assert torch.allclose(guess.logits, expected, atol=1e-3)


def test_real_tokens_do_not_see_prompt_tokens(prompts, model):  # noqa: F811
    with_prompts, without = Guess(prompts.embeddings.detach()), Guess([])
    for guess in (with_prompts, without):
        LM(model, Engine()).generate(PROMPTS[1], method=guess, max_tokens=1)
    assert torch.allclose(with_prompts.last[0], without.last[0], atol=1e-4)


@pytest.mark.parametrize("rows", [4, 8, 16])
def test_at_temperature_zero_it_writes_what_greedy_writes(prompts_file, model, rows):  # noqa: F811
    expected = LM(model, Engine()).generate_batch(PROMPTS, max_tokens=40, ignore_eos=True)
    lm = LM(model, Engine(prefix_cache=False))
    events = [[] for _ in PROMPTS]
    method = PPD(prompts=str(prompts_file), rows=rows)
    handles = [
        lm.submit(prompt, method=method, max_tokens=40, ignore_eos=True, trace=mine.append)
        for prompt, mine in zip(PROMPTS, events, strict=True)
    ]
    found = [handle.result() for handle in handles]
    assert [result.tokens for result in found] == [result.tokens for result in expected]
    assert all(result.ledger.draft_passes == 0 for result in found)
    for mine in events:
        _, *widths = [len(event["nodes"]) for event in mine if event["event"] == "pass"]  # the first reads the prompt
        assert max(widths) <= rows
    assert all(worker.cache.in_use == 0 for worker in lm.engine.workers), "no prompt token stays in the cache"


def test_above_temperature_zero_it_writes_what_sample_writes(prompts_file, model):  # noqa: F811
    lm = LM(model, Engine())
    warm = {"max_tokens": 30, "ignore_eos": True, "temperature": 0.8, "top_p": 0.95, "seed": 2}
    for prompt in PROMPTS:
        plain = lm.generate(prompt, method="sample", **warm).tokens
        assert lm.generate(prompt, method=PPD(prompts=str(prompts_file), rows=10), **warm).tokens == plain


@pytest.mark.parametrize("runs", [400, pytest.param(20_000, marks=pytest.mark.slow)])
def test_it_has_the_targets_distribution(tmp_path, runs):
    """On a Markov chain, with prompt tokens that guess whatever they like."""
    lm = markov_lm(4, 11)
    path = tmp_path / "m.safetensors"
    vectors = torch.randn(2, 1, 4, generator=torch.Generator().manual_seed(0))
    accuracy = [[0.4, 0.3, 0.2, 0.1], [0.3, 0.3, 0.2, 0.2]]
    fitted.write(path, KIND, lm.model, {"vectors": vectors}, accuracy=accuracy)
    assert_exact(lm, PPD(prompts=str(path), rows=9), runs, temperature=1.0)
    assert_exact(lm, "rsd", runs, draft=str(path), temperature=1.0)
    assert_exact(lm, "speculative:depth=2", runs, draft=str(path), temperature=0.7)


def test_prompt_tokens_in_copies_are_averaged(model, passages, tmp_path):  # noqa: F811
    trainer = PromptTrainer(model, PromptRecipe(m=2, copies=3, steps=2, groups=4))
    trainer.fit(passages[:4], None, silent)
    path = tmp_path / "copies.safetensors"
    trainer.save(path, trainer.accuracy(passages[:3]))
    expected = LM(model, Engine()).generate_batch(PROMPTS, max_tokens=24, ignore_eos=True)
    lm = LM(model, Engine())
    found = lm.generate_batch(PROMPTS, method=PPD(prompts=str(path), rows=10), max_tokens=24, ignore_eos=True)
    assert [result.tokens for result in found] == [result.tokens for result in expected]


def test_typical_acceptance_takes_longer_paths_and_is_another_law(prompts_file, model):  # noqa: F811
    lm = LM(model, Engine())
    warm = {"max_tokens": 60, "ignore_eos": True, "temperature": 1.0, "seed": 2}
    lossy = PPD(prompts=str(prompts_file), rows=12, acceptance="typical", epsilon=0.0, delta=0.0)
    result = lm.generate(PROMPTS[1], method=lossy, **warm)
    assert result.ledger.target_passes < 40, "it takes whatever has any probability"
    cold = {"max_tokens": 30, "ignore_eos": True}
    plain = lm.generate(PROMPTS[1], **cold).tokens
    typical = PPD(prompts=str(prompts_file), rows=12, acceptance="typical")
    assert lm.generate(PROMPTS[1], method=typical, **cold).tokens == plain


def test_only_the_prompt_tokens_are_trained(model, passages):  # noqa: F811
    before = weight_of(model.decoder.lm_head).clone()
    trainer = PromptTrainer(model, PromptRecipe(m=2, steps=3))
    start = trainer.embeddings.detach().clone()
    trainer.fit(passages[:4], None, silent)
    assert torch.equal(before, weight_of(model.decoder.lm_head))
    assert not torch.equal(start, trainer.embeddings)
    assert trainer.embeddings.numel() == 2 * 32


def test_training_goes_on_where_it_was(model, passages, tmp_path):  # noqa: F811
    recipe = PromptRecipe(m=2, steps=60, texts=1, groups=2)
    whole = PromptTrainer(model, recipe)
    whole.fit(passages[:4], None, silent)

    class StopError(Exception):
        pass

    def stop(phase, done, total):
        if done == 55:
            raise StopError

    with pytest.raises(StopError):
        PromptTrainer(model, recipe).fit(passages[:4], tmp_path / "c", stop)
    again = PromptTrainer(model, recipe)
    again.fit(passages[:4], tmp_path / "c", silent)
    assert torch.allclose(whole.embeddings, again.embeddings, atol=1e-5)


def test_prompt_tokens_of_another_model_or_none_are_refused(prompts_file, tmp_path, monkeypatch):  # noqa: F811
    monkeypatch.setenv("OUTLAY_CACHE", str(tmp_path))
    lm = LM(tiny_model(5), Engine())
    with pytest.raises(UsageError, match="whose weights are not those of tiny-5"):
        lm.generate("Hi", method=f"ppd:prompts={prompts_file}")
    with pytest.raises(UsageError, match="no prompt tokens for tiny-5; `outlay train ppd --model tiny-5` trains one"):
        lm.generate("Hi", method="ppd")
    with pytest.raises(UsageError, match="4 rows or more"):
        PPD(rows=3)


def test_guesses_that_are_never_right_are_not_made(model, tmp_path, monkeypatch):  # noqa: F811
    """Where no tree pays, it decodes plainly, with passes of one row; here each row costs as much as the first."""
    monkeypatch.setattr(ppd, "costs_of", lambda model: PassCosts((1, 32), (1e-3, 32e-3), 0.0))
    path = tmp_path / "useless.safetensors"
    fitted.write(path, KIND, model, {"vectors": torch.zeros(2, 1, 32)}, accuracy=[[1e-4] * 10] * 2)
    assert len(load_prompt_tokens(path, model)) == 2
    lm = LM(model, Engine(prefix_cache=False))
    result = lm.generate(PROMPTS[0], method=PPD(prompts=str(path)), max_tokens=20, ignore_eos=True)
    assert result.ledger.target_tokens == len(lm.encode(PROMPTS[0])) + 19
    assert result.ledger.drafted == 0
