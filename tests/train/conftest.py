"""A small corpus that the tiny model wrote, and a head and prompt tokens that were trained on it for a moment."""

from __future__ import annotations

import pytest

from outlay.testing import tiny_lm
from outlay.train.corpus import Corpus
from outlay.train.head import HeadRecipe, HeadTrainer
from outlay.train.prompt_tokens import PromptRecipe, PromptTrainer


def silent(phase, done, total):
    pass


@pytest.fixture(scope="session")
def corpus(tmp_path_factory):
    lm = tiny_lm(context=1024)
    corpus = Corpus(tmp_path_factory.mktemp("corpus"), lm.model, 0)
    corpus.grow(lm, 2000, None, silent)
    return corpus


@pytest.fixture(scope="session")
def model(corpus):
    return tiny_lm(context=1024).model


@pytest.fixture(scope="session")
def passages(corpus):
    return [passage for passage in corpus.passages() if len(passage.tokens) - passage.begin > 20]


@pytest.fixture(scope="session")
def head(model, passages):
    """A trainer after one epoch."""
    trainer = HeadTrainer(model, HeadRecipe(vocabulary=200, epochs=1, batch=2000, seed=3), passages[:8])
    trainer.fit(None, silent)
    return trainer


@pytest.fixture(scope="session")
def head_file(head, model, tmp_path_factory):
    path = tmp_path_factory.mktemp("head") / "tiny.head.safetensors"
    head.save(path, model)
    return path


@pytest.fixture(scope="session")
def prompts(model, passages):
    trainer = PromptTrainer(model, PromptRecipe(m=3, steps=6, texts=2, groups=8))
    trainer.fit(passages[:8], None, silent)
    return trainer


@pytest.fixture(scope="session")
def prompts_file(prompts, passages, tmp_path_factory):
    path = tmp_path_factory.mktemp("prompts") / "tiny.ppd.safetensors"
    prompts.save(path, prompts.accuracy(passages[:6]))
    return path
