"""A small corpus that the tiny model wrote, and a draft head and prompt tokens that were trained on it for a moment.

Other folders import these fixtures; all find the corpus in one place, so it is written once.
"""

from __future__ import annotations

import pytest

import outlay.train.corpus as corpus_module
import outlay.train.questions as questions_module
from outlay.testing import tiny_lm
from outlay.train.corpus import Corpus
from outlay.train.draft_head import DraftHeadRecipe, DraftHeadTrainer
from outlay.train.prompt_tokens import PromptRecipe, PromptTrainer

LONGEST = 128  # tokens of an answer
TEXTS = tuple(f"{number} texts begin with other words than those of Python's library." for number in range(40))


def silent(phase, done, total):
    pass


@pytest.fixture(scope="session")
def corpus(tmp_path_factory):
    lm = tiny_lm(context=1024)
    corpus = Corpus(tmp_path_factory.getbasetemp() / "tiny-corpus", lm.model, 0)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(corpus_module, "LONGEST", LONGEST)
        # What the library's files hold takes seconds to read; tests/train/test_corpus.py does.
        patch.setattr(questions_module, "library_texts", lambda: TEXTS)
        patch.setattr(questions_module, "library_functions", lambda: ())
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
    trainer = DraftHeadTrainer(model, DraftHeadRecipe(vocabulary=200, epochs=1, batch=2000, seed=3), passages[:8])
    trainer.fit(None, silent)
    return trainer


@pytest.fixture(scope="session")
def head_file(head, model, tmp_path_factory):
    path = tmp_path_factory.mktemp("head") / "tiny.head.safetensors"
    head.save(path)
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
