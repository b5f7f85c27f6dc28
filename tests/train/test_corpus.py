"""The text that a model writes by itself: what is kept of it, and that a run that was stopped goes on."""

from __future__ import annotations

import pytest
import torch
from train.conftest import LONGEST, silent

import outlay
import outlay.train.corpus as corpus_module
import outlay.train.questions as questions_module
from outlay.errors import UsageError
from outlay.testing import tiny_lm
from outlay.train.corpus import Corpus
from outlay.train.questions import library_functions, library_texts, open_turn, questions


def test_hidden_states_are_what_the_lm_head_read(corpus, model):
    decoder = model.decoder
    passage = next(corpus.passages())
    assert len(passage.hidden_states) == len(passage.tokens)
    assert not bool(passage.hidden_states[-1].any())
    lm = tiny_lm(context=1024)
    at = passage.begin + 3
    forced = lm.generate(passage.tokens[:at].tolist(), max_tokens=1, logprobs=257, ignore_eos=True)
    logits = decoder.lm_head(passage.hidden_states[at - 1 : at].float())
    expected = torch.empty(257)
    for token, logprob in forced.logprobs[0].top:
        expected[token] = logprob
    assert torch.allclose(logits[0].log_softmax(-1), expected, atol=0.05), "up to the rounding of float16"


def test_most_texts_are_greedy(corpus):
    lm = tiny_lm(context=1024)
    for passage in list(corpus.passages())[:3]:
        prompt, own = passage.tokens[: passage.begin].tolist(), passage.tokens[passage.begin :].tolist()
        assert lm.generate(prompt, max_tokens=LONGEST).tokens == own


@pytest.fixture
def short(monkeypatch):
    """Shards of a few short answers."""
    monkeypatch.setattr(corpus_module, "TOGETHER", 6)
    monkeypatch.setattr(corpus_module, "LONGEST", 24)


def test_a_corpus_that_was_stopped_goes_on_and_is_the_same(short, tmp_path):
    lm = tiny_lm(context=1024)
    whole, first = (Corpus(tmp_path / name, lm.model, 0) for name in ("whole", "halved"))
    whole.grow(lm, 300, None, silent)
    assert whole.shards > 1
    first.grow(lm, 1, None, silent)
    assert first.shards == 1
    again = Corpus(tmp_path / "halved", lm.model, 0)
    assert again.tokens == first.tokens
    again.grow(lm, whole.tokens, None, silent)
    assert again.shards == whole.shards
    for one, other in zip(again.passages(), whole.passages(), strict=True):
        assert torch.equal(one.tokens, other.tokens)


def test_prompts_that_are_given_are_written_after(short, tmp_path):
    lm = tiny_lm()
    corpus = Corpus(tmp_path, lm.model, 0)
    prompts = [[1, 2, 3], [4, 5]]
    corpus.grow(lm, 1, prompts, silent)
    begins = [passage.tokens[: passage.begin].tolist() for passage in corpus.passages()]
    assert begins == [prompts[place % 2] for place in range(len(begins))]


def test_texts_of_another_model_or_seed_are_refused(corpus, tmp_path):
    with pytest.raises(UsageError, match="another model or seed"):
        Corpus(corpus.folder, tiny_lm(seed=5, context=1024).model, 0)
    with pytest.raises(UsageError, match="another model or seed"):
        Corpus(corpus.folder, tiny_lm(context=1024).model, 1)
    (tmp_path / "00000.safetensors").write_bytes(b"broken")
    with pytest.raises(UsageError, match="can't be read; remove it"):
        Corpus(tmp_path, tiny_lm().model, 0)


def test_pythons_library_gives_functions_and_texts():
    assert len(library_functions()) > 300
    assert all(text.startswith(("def ", "async ")) and '"""' in text for text in library_functions()[:50])
    assert len(library_texts()) > 100


@pytest.mark.parametrize("longest", [24, pytest.param(questions_module.LONGEST, marks=pytest.mark.slow)])
def test_a_chat_model_writes_prompts_for_itself(default_path, monkeypatch, longest):
    monkeypatch.setattr(questions_module, "LONGEST", longest)
    lm = outlay.load(default_path)
    start = lm.model.tokenizer.decode(open_turn(lm.model.tokenizer))
    assert start.endswith("user\n")
    found = questions(lm, range(12), seed=1)
    assert found == questions(lm, range(12), seed=1)
    assert all(lm.model.tokenizer.decode(prompt).endswith("assistant\n") for prompt in found)
    assert len({tuple(prompt) for prompt in found}) == 12
