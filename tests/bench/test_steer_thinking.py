"""Thinking within a budget, as `outlay bench steer --parts thinking` measures it: problems, model and table."""

from __future__ import annotations

from statistics import mean

from outlay.bench.steer import budgets
from outlay.bench.steer.report import TABLES, thinking
from outlay.bench.steer.thinker import IGNORED, NOWHERE, TAGS, ThinkerRecipe, ids, padded, problem, thinker_tokenizer
from outlay.train.thinking_texts import Thoughts

SMALL = ThinkerRecipe(layers=1, hidden=16, heads=2, inner=16, terse_steps=2, steps=2, batch=16)


def terse(each):
    return "now" not in each.thinking


def silent(phase, done, total):
    pass


def test_problems_are_chains_of_pointers_and_have_two_ways_to_think():
    for number in range(200):
        each = problem(5, number)
        pairs, _, start = each.prompt.removesuffix("=").partition(":")
        leads = dict(pairs.split(","))
        chain = [start]
        while chain[-1] in leads:
            chain.append(leads[chain[-1]])
        assert (chain[-1], chain[-2]) == (NOWHERE, each.answer)
        if terse(each):
            assert each.thinking.split("\n") == chain
            continue
        at = iter(chain)
        for line in each.thinking.split("\n"):
            if line.startswith("now"):
                here = next(at)
                assert line == f"now at {here}"
            else:
                assert line.removeprefix("so ").removeprefix("wait check ") == f"{here}>{leads[here]}"
        assert next(at) == NOWHERE
        assert terse(problem(5, number, terse=True))


def test_a_terse_thinking_takes_a_fifth_of_the_mean():
    tokenizer, each = thinker_tokenizer(), [problem(6, number) for number in range(3000)]
    lengths = [len(tokenizer.encode(f"{one.thinking}\n{TAGS.closing}").ids) for one in each]
    short = [length for length, one in zip(lengths, each, strict=True) if terse(one)]
    assert 0.4 < len(short) / len(each) < 0.6
    assert mean(short) <= 0.2 * mean(lengths)


def test_what_is_learned_is_the_reply_alone():
    tokenizer = thinker_tokenizer()
    texts = [ids(tokenizer, problem(7, number)) for number in range(3)]
    tokens, targets = padded(texts)
    for row, learned, (prompt, reply) in zip(tokens, targets, texts, strict=True):
        assert learned[learned != IGNORED].tolist() == reply
        assert row[: len(prompt)].tolist() == prompt


def test_every_method_is_measured_at_every_budget(monkeypatch):
    """The model is of two training steps and never ends, so a closing of its own is not to be expected."""
    monkeypatch.setattr(budgets, "LONGEST", 60)
    monkeypatch.setattr(budgets, "own_thoughts", lambda lm, tags, writing, prompts, kept, progress: [
        Thoughts([*prompt, 5, 6, lm.encode(TAGS.closing, chat=False, special_tokens=True)[0]],
                         len(prompt), len(prompt) + 3)
        for prompt in prompts
    ])  # fmt: skip
    found = budgets.measured(budgets.ThinkingSettings(3, 12), SMALL, silent)
    free, *rows = found["rows"]
    assert free["method"] == budgets.FREE
    assert len(rows) == 3 * len(budgets.SHARES)
    for row in rows:
        assert row["tokens"] == round(row["share"] * found["free_length"])
        if row["method"] != budgets.SOFT:
            assert row["thinking"] <= row["tokens"]
    header, cells = thinking({"thinking": found})
    assert {len(line) for line in cells} == {len(header)}
    assert TABLES["thinking"]({"thinking": found}).count("\n") == len(cells) + 1
