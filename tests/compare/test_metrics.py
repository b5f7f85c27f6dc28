"""What texts are worth."""

from __future__ import annotations

import pytest

from outlay.compare.items import Item
from outlay.compare.metrics import Completion, last_number, metric, refuse_unfit
from outlay.errors import FailureError, UsageError
from outlay.testing import tiny_lm


def scored(name, text, **row):
    item = Item("Question?", {"prompt": "Question?"} | row)
    [score] = metric(name).scores(None, [[1]], [Completion(0, item, text, (1, 2))])
    return score


@pytest.mark.parametrize(
    ("text", "answer", "score"),
    [
        ("Paris.", "paris", 1),
        (" **PARIS**\n", "Paris", 1),
        ("Paris, France", "Paris", 0),
        ("", "Paris", 0),
        ("4", 4, 1),
    ],
)
def test_exact_looks_past_case_space_and_punctuation(text, answer, score):
    assert scored("exact", text, answer=answer) == score


@pytest.mark.parametrize(
    ("text", "answer", "score"), [("It is blue.", r"\bblue\b", 1), ("bluish", r"\bblue\b", 0), ("a\nb", "^b$", 1)]
)
def test_regex_searches_the_text(text, answer, score):
    assert scored("regex", text, answer=answer) == score


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("She has 16 - 3 - 4 = 9 eggs, so $18.", 18),
        ("1,234.50 dollars", 1234.5),
        ("It fell to -7", -7),
        ("16-3", 3),
        ("#### 1,000", 1000),
        (".5", 0.5),
        ("3.", 3),
        ("none", None),
    ],
)
def test_the_last_number_is_found(text, number):
    assert last_number(text) == number


def test_number_is_scored_as_gsm8k_is():
    answer = "Janet sells 16 - 3 - 4 = <<16-3-4=9>>9 eggs.\n#### 18"
    assert scored("number", "So she makes $18.00 every day", answer=answer) == 1
    assert scored("number", "18 eggs, 9 dollars", answer=answer) == 0
    assert scored("number", "I don't know", answer=answer) == 0


HUMAN_EVAL = {
    "prompt": 'def add(a, b):\n    """Adds."""\n',
    "tests": "def check(candidate):\n    assert candidate(1, 2) == 3\n",
    "entry_point": "add",
}


@pytest.mark.parametrize(
    ("text", "score"),
    [
        ("    return a + b\n", 1),
        ("    return a - b\n", 0),
        ("Here it is:\n```python\ndef add(a, b):\n    return a + b\n```\nDone.", 1),
        ("```\ndef add(a, b):\n    return b\n```", 0),
        ("    exit(0)\n", 0),
        ("    import os; os._exit(0)\n", 0),
        ("    return ((\n", 0),
    ],
)
def test_programs_are_scored_by_their_tests(text, score):
    item = Item(HUMAN_EVAL["prompt"], HUMAN_EVAL)
    assert metric("tests").scores(None, [[1]], [Completion(0, item, text, (1,))]) == [score]


def test_a_program_that_does_not_end_scores_nothing(monkeypatch):
    monkeypatch.setattr("outlay.compare.execute.SECONDS", 1)
    assert scored("tests", "while True: pass", tests="") == 0


def test_logprob_is_the_mean_under_the_model_itself():
    lm = tiny_lm()
    wanted = lm.generate("abc", max_tokens=90, ignore_eos=True, logprobs=0, temperature=1.0)
    short = lm.generate("xyz", max_tokens=3, ignore_eos=True, logprobs=0)
    prompts = [lm.encode("abc"), lm.encode("xyz"), lm.encode("xyz")]
    outputs = [
        Completion(index, Item("abc", {}), "", tuple(tokens))
        for index, tokens in enumerate([wanted.tokens, short.tokens, []])
    ]
    found = metric("logprob").scores(lm, prompts, outputs)
    assert found[0] == pytest.approx(sum(token.logprob for token in wanted.logprobs) / 90, abs=1e-5)
    assert found[1] == pytest.approx(sum(token.logprob for token in short.logprobs) / 3, abs=1e-5)
    assert found[2] is None


def test_a_judge_rates_by_its_distribution_over_the_marks(monkeypatch):
    judge = tiny_lm(seed=3, context=2048)
    monkeypatch.setattr("outlay.lm.load", lambda source, device: judge)
    outputs = [
        Completion(index, Item("Why?", {"prompt": "Why?"}), text, ()) for index, text in enumerate(["Because.", "No."])
    ]
    found = metric("judge:other").scores(tiny_lm(), [[1], [1]], outputs)
    assert found[0] != found[1]
    assert all(0 < score < 1 for score in found)
    alone = metric("judge:other").scores(tiny_lm(), [[1]], outputs[:1])
    assert alone == pytest.approx(found[:1], abs=1e-6)


def test_a_file_of_ones_own_scores(tmp_path):
    file = tmp_path / "mine.py"
    file.write_text("def score(prompt, text):\n    return len(text) / len(prompt['prompt'])\n")
    assert scored(f"python:{file}", "123") == pytest.approx(3 / 9)
    before = metric(f"python:{file}").key
    file.write_text("def score(prompt, text):\n    return 1 / 0\n")
    assert metric(f"python:{file}").key != before
    with pytest.raises(FailureError, match="failed on prompt 1: ZeroDivisionError"):
        scored(f"python:{file}", "123")


@pytest.mark.parametrize("content", ["score = 1", "def scores(): pass", "raise ValueError('no')", "def score(:"])
def test_a_file_without_a_score_is_refused(tmp_path, content):
    file = tmp_path / "mine.py"
    file.write_text(content)
    with pytest.raises(UsageError, match=str(file)):
        metric(f"python:{file}")


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("exakt", "did you mean 'exact'"),
        ("judge", "judge:MODEL"),
        ("python:", "python:FILE"),
        ("python:missing.py", "can't read"),
        ("exact:1", "no metric 'exact:1'"),
    ],
)
def test_an_unknown_metric_is_refused(name, said):
    with pytest.raises(UsageError, match=said):
        metric(name)


def test_prompts_that_lack_an_answer_are_named():
    items = [Item("x", {"prompt": "x", "answer": answer}) for answer in ("5", None, "six", "7")]
    with pytest.raises(
        UsageError, match='needs a number as "answer" with each prompt, which prompts 2, 3 of 4 have not'
    ):
        refuse_unfit(metric("number"), items)
    with pytest.raises(UsageError, match='needs "answer" with each prompt, which prompt 2 of 4 has not'):
        refuse_unfit(metric("exact"), items)
    refuse_unfit(metric("logprob"), items)
    with pytest.raises(UsageError, match="1, 2, 3, 4, 5 and 2 more of 7"):
        refuse_unfit(metric("tests"), [Item("x", {})] * 7)
