"""A draft head: what is trained is what drafts, its target stays as it is, and drafting with it is lossless."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import replace

import pytest
import torch
from train.conftest import silent

import outlay.models.draft_head as heads
from outlay import LM
from outlay.engine.engine import Engine
from outlay.engine.method import About, Method
from outlay.errors import UsageError
from outlay.models import fitted
from outlay.models.draft_head import load_draft_head
from outlay.models.linear import weight_of
from outlay.speculation.model_drafter import ModelDrafter
from outlay.speculation.rounds import ROOT, DraftTree, TopTokens
from outlay.testing import PROMPTS, tiny_model
from outlay.train.batches import as_batch, batches, frequent_tokens
from outlay.train.checkpoint import Checkpoint
from outlay.train.draft_head import DraftHeadRecipe, DraftHeadTrainer
from outlay.train.schedule import schedule

METHODS = ["speculative", "speculative:depth=6", "rsd", "rsd:variant=s", "spectr", "specinfer", "auto"]


class Look(Method):
    """Keeps the head's log-probabilities of a text's next tokens: after each feature, and at its prompt tokens."""

    about = About("look", "", "", "test", "", "")

    def __init__(self, tokens):
        self.tokens, self.found = tokens, {}

    def decode(self, run):
        drafter = ModelDrafter(run)
        assert not drafter.sync(), "the target has not read the prompt"
        yield run.target.forward([run.tip])
        run.commit(self.tokens[0])
        assert drafter.sync()
        vocab = len(run.draft.model.vocabulary)
        guesses = torch.tensor((yield from drafter.guesses(drafter.ahead, vocab)), dtype=torch.float64)
        self.found["guesses"] = TopTokens(guesses[..., 0].long(), guesses[..., 1].log().float())
        tree = DraftTree()
        tree.add_chain(self.tokens[1:], "x")
        rows = []
        for place in (ROOT, *range(len(tree))):
            rows.append((yield from drafter.topk(tree, [place], vocab)))
        self.found["steps"] = rows


@pytest.fixture(scope="module")
def greedy_tokens(model):
    results = LM(model, Engine()).generate_batch(PROMPTS, max_tokens=40, ignore_eos=True)
    return [result.tokens for result in results]


def rows_of(best, vocabulary):
    """Log-probabilities in the order of the head's vocabulary."""
    out = torch.empty(best.logprobs.shape)
    places = torch.searchsorted(vocabulary, best.tokens)
    return out.scatter_(1, places, best.logprobs)


def test_what_drafts_is_what_was_trained(head, head_file, model, passages, monkeypatch):
    """Fed back step by step and at its prompt tokens: the engine's head and the network in training agree."""
    monkeypatch.setattr(heads, "native_kernels", lambda: False)  # float32, without rounding to 8 bits
    passage = next(p for p in passages if p.begin < 60)
    at, steps = passage.begin + 1, 3
    lm = LM(model, Engine(prefix_cache=False))
    look = Look(passage.tokens[at : at + steps].tolist())
    lm.generate(passage.tokens[:at].tolist(), method=look, draft=load_draft_head(head_file, model), max_tokens=5)
    end = at + steps + 1
    batch = as_batch([replace(passage, tokens=passage.tokens[:end], hidden_states=passage.hidden_states[:end])])
    embeddings = head.embed(batch.tokens)
    net = deepcopy(head.net).bfloat16().float()  # as the file holds it
    start = torch.tensor([batch.tokens.shape[1] - steps - 1])  # where the first token was committed
    with torch.no_grad():
        _, outputs, guesses = net(batch.before, embeddings, start, steps, min(steps, head.recipe.ahead))
    for output, found in zip(outputs, look.found["steps"], strict=False):
        expected = (output[0, 0] @ head.lm_head.T).log_softmax(-1)
        assert torch.allclose(rows_of(found, head.vocabulary)[0], expected, atol=0.03)
    found = rows_of(look.found["guesses"], head.vocabulary)
    for depth, guess in enumerate(guesses, 1):
        expected = (guess[0, 0] @ head.lm_head.T).log_softmax(-1)
        assert torch.allclose(found[depth], expected, atol=0.03)


def test_a_chain_does_not_depend_on_which_others_are_computed(head, passages):
    """Training computes the chains that it scores, alone; measuring, all: both mean the same."""
    batch = as_batch(passages[:3])
    embeddings = head.embed(batch.tokens)
    every = torch.arange(batch.tokens.shape[1] - 3)
    with torch.no_grad():
        first, steps, guesses = head.net(batch.before, embeddings, every, 3, 2)
        some = every[4::5]
        alone, few, fewer = head.net(batch.before, embeddings, some, 3, 2)
    assert torch.equal(alone, first)
    for one, other in zip([*steps, *guesses], [*few, *fewer], strict=True):
        assert torch.allclose(one[:, some], other, atol=1e-5)


def test_a_chain_sees_nothing_that_comes_after_its_start(head, passages):
    batch = as_batch(passages[:1])
    embeddings = head.embed(batch.tokens)
    start, other = torch.tensor([20]), batch.before.clone()
    other[:, 21:] += 1.0  # f_{t-1} at place t: what the target reads at the start and later
    with torch.no_grad():
        _, steps, guesses = head.net(batch.before, embeddings, start, 3, 2)
        _, again, others = head.net(other, embeddings, start, 3, 2)
    for one, same in zip([*steps, *guesses], [*again, *others], strict=True):
        assert torch.equal(one, same)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("length", [20, pytest.param(40, marks=pytest.mark.slow)])
def test_at_temperature_zero_it_is_lossless(head_file, model, greedy_tokens, method, length):
    for prefix_cache in (True, False):
        lm = LM(model, Engine(prefix_cache=prefix_cache))
        found = lm.generate_batch(PROMPTS, method=method, draft=str(head_file), max_tokens=length, ignore_eos=True)
        assert [result.tokens for result in found] == [tokens[:length] for tokens in greedy_tokens]


@pytest.mark.parametrize("method", METHODS[:-1])
def test_a_seed_gives_the_same_text_alone_and_in_a_batch(head_file, model, method):
    warm = {"method": method, "draft": str(head_file), "temperature": 0.8, "max_tokens": 24, "ignore_eos": True}
    lm = LM(model, Engine())
    together = [lm.submit(prompt, seed=seed, **warm) for seed, prompt in enumerate(PROMPTS)]
    for seed, prompt in enumerate(PROMPTS):
        alone = LM(model, Engine()).generate(prompt, seed=seed, **warm)
        assert alone.tokens == together[seed].result().tokens


def test_a_prompt_that_was_read_before_features_were_kept_is_drafted_after_all_the_same(head_file, model):
    lm = LM(model, Engine())
    plain = lm.generate(PROMPTS[1], max_tokens=20, ignore_eos=True)
    found = lm.generate(PROMPTS[1], method="speculative", draft=str(head_file), max_tokens=20, ignore_eos=True)
    assert found.tokens == plain.tokens
    assert found.ledger.draft_passes > 0


def test_training_leaves_the_target_as_it_is_and_counts_its_own_parameters(model, passages):
    before = [weight_of(layer.qkv).clone() for layer in model.decoder.layers]
    trainer = DraftHeadTrainer(model, DraftHeadRecipe(layers=2, vocabulary=100, epochs=1, ahead=2), passages[:2])
    trainer.fit(None, silent)
    assert all(torch.equal(a, weight_of(layer.qkv)) for a, layer in zip(before, model.decoder.layers, strict=True))
    hidden, inner, kv = 32, 64, 16
    layer = hidden * (hidden + 2 * kv) + hidden * hidden + 3 * hidden * inner + 2 * hidden
    expected = 2 * hidden * hidden + hidden + 2 * layer + hidden + 2 * hidden
    assert sum(parameter.numel() for parameter in trainer.net.parameters()) == expected


def test_a_training_that_was_stopped_goes_on_and_ends_the_same(model, passages, tmp_path, monkeypatch):
    import outlay.train.draft_head as module

    recipe = DraftHeadRecipe(vocabulary=100, epochs=2, batch=600, unroll=2, ahead=1)
    whole = DraftHeadTrainer(model, recipe, passages[:6])
    whole.fit(None, silent)
    monkeypatch.setattr(module, "KEEP_EVERY", 1)

    class StopError(Exception):
        pass

    def stop(phase, done, total):
        if done == total // 2 + 1:
            raise StopError

    with pytest.raises(StopError):
        DraftHeadTrainer(model, recipe, passages[:6]).fit(tmp_path / "c", stop)
    again = DraftHeadTrainer(model, recipe, passages[:6])
    again.fit(tmp_path / "c", silent)
    assert not (tmp_path / "c").exists()
    for one, other in zip(whole.net.state_dict().values(), again.net.state_dict().values(), strict=True):
        assert torch.allclose(one, other, atol=1e-5)


def test_a_checkpoint_of_another_recipe_is_refused(model, passages, tmp_path):
    recipe = DraftHeadRecipe(vocabulary=100, epochs=1)
    net = DraftHeadTrainer(model, recipe, passages[:2]).net
    Checkpoint(tmp_path / "c", recipe, net.state_dict(), torch.optim.AdamW(net.parameters())).save(1)
    with pytest.raises(UsageError, match="another recipe"):
        DraftHeadTrainer(model, DraftHeadRecipe(vocabulary=100, epochs=2), passages[:2]).fit(tmp_path / "c", silent)


@pytest.mark.parametrize("narrow", [False, True])
def test_training_makes_it_better_in_either_precision(model, passages, monkeypatch, narrow):
    monkeypatch.setattr("outlay.train.draft_head.bfloat16_is_faster", lambda: narrow)
    trainer = DraftHeadTrainer(model, DraftHeadRecipe(vocabulary=200, epochs=3, batch=400), passages[:8])
    before = trainer.measure(passages[:8])["steps"][0]
    trainer.fit(None, silent)
    assert trainer.measure(passages[:8])["steps"][0] > before
    assert {parameter.dtype for parameter in trainer.net.parameters()} == {torch.float32}


def test_a_head_of_another_model_is_refused(head_file, tmp_path):
    with pytest.raises(UsageError, match="was trained for tiny-0, whose weights are not those of tiny-5"):
        load_draft_head(head_file, tiny_model(5))
    (tmp_path / "bad.safetensors").write_bytes(b"no")
    with pytest.raises(UsageError, match="can't be read"):
        load_draft_head(tmp_path / "bad.safetensors", tiny_model())
    with pytest.raises(UsageError, match="there is no file"):
        load_draft_head(tmp_path / "none.safetensors", tiny_model())


def test_a_head_that_was_trained_is_found_by_itself(head_file, model, monkeypatch, tmp_path):
    monkeypatch.setenv("OUTLAY_CACHE", str(tmp_path))
    assert fitted.find("head", model) is None
    own = fitted.own_path("head", model)
    own.parent.mkdir(parents=True)
    own.write_bytes(head_file.read_bytes())
    lm = LM(model, Engine())
    assert lm.generate("Hi", method="speculative", max_tokens=8, ignore_eos=True).ledger.draft_passes > 0


def test_a_head_drafts_its_own_tokens_only(head, head_file, model):
    lm = LM(model, Engine())
    events = []
    lm.generate(PROMPTS[1], method="speculative", draft=str(head_file), max_tokens=30, trace=events.append)
    drafted = {n["token"] for e in events if e["event"] == "grow" for n in e["nodes"] if n.get("origin") == "head"}
    assert drafted
    assert drafted <= set(head.vocabulary.tolist())


def test_a_head_may_have_more_layers_than_its_target(model, passages):
    depth = len(model.decoder.layers)
    trainer = DraftHeadTrainer(model, DraftHeadRecipe(layers=depth + 2, vocabulary=200, epochs=1), passages[:4])
    begun = [layer.out.weight for layer in trainer.net.layers]
    assert all(torch.equal(begun[0], other) for other in begun[1:3]), "the first ones are the target's first layer"
    assert len({float(weight.detach().sum()) for weight in begun}) == depth, "the others the target's others"
    trainer.fit(None, lambda *_: None)
    assert trainer.measure(passages[4:8])["steps"][0] > 0


def test_parts_of_the_training():
    assert schedule(0, 100, 0.1) == pytest.approx(0.1)
    assert schedule(9, 100, 0.1) == 1.0
    assert schedule(99, 100, 0.1) == pytest.approx(0.1, abs=0.01)


def test_batches_hold_every_passage_once_and_keep_to_their_size(passages):
    found = list(batches(passages, 500, 0, 0))
    assert sorted(index for group in found for index in group) == list(range(len(passages)))
    assert found != list(batches(passages, 500, 0, 1)), "epochs differ"
    assert found == list(batches(passages, 500, 0, 0))


def test_the_most_frequent_tokens_are_chosen(passages):
    chosen = frequent_tokens(passages, 10)
    assert len(chosen) == 10
    assert chosen.tolist() == sorted(chosen.tolist())
