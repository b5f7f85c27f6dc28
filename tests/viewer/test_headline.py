"""What heads a report claims no more than the intervals allow."""

from __future__ import annotations

import re

import pytest
from viewer.made_results import made_results

from outlay.viewer.headline import Figure, headline
from outlay.viewer.report import report_data


def contender(label, speed=None, quality=None, *, reference=0, identical=4):
    """One with a ratio of speeds and a quality, each given as (low, middle, high)."""
    ratios = {"tokens_per_second": dict(zip(("low", "median", "high"), speed, strict=True))} if speed else {}
    rated = dict(zip(("low", "mean", "high"), quality, strict=True)) if quality else None
    return {"label": label, "reference": reference, "ratios": ratios, "quality": rated, "compared": 4,
            "identical": identical, "entries": {"tokens_per_second": {"median": 80.0}}}  # fmt: skip


def said(*contenders):
    """The headline as text, each figure as the number that it stands for."""
    return " ".join("".join(part if isinstance(part, str) else str(found(contenders, part)) for part in sentence)
                    for sentence in headline(contenders))  # fmt: skip


def found(contenders, figure):
    value = {"contenders": contenders}
    for key in figure.path.split("."):
        value = value[int(key) if isinstance(value, tuple) else key]
    return value


GREEDY = contender("greedy", (1, 1, 1))


def test_the_fastest_is_named_with_its_interval_and_its_texts():
    assert said(GREEDY, contender("chain", (1.5, 1.6, 1.7)), contender("slow", (0.5, 0.6, 0.7))) == (
        "chain is the fastest: 1.6 the tokens per second of greedy (1.5 to 1.7), and all 4 texts are the same."
    )


def test_texts_that_differ_are_not_kept_quiet():
    assert "with 1 of 4 texts the same" in said(GREEDY, contender("chain", (1.5, 1.6, 1.7), identical=1))


def test_a_lead_within_the_intervals_is_no_sure_lead():
    line = said(
        GREEDY, contender("a", (1.5, 1.6, 1.7)), contender("b", (1.4, 1.55, 1.8)), contender("c", (1.1, 1.2, 1.3))
    )
    assert line.startswith("a is the fastest by its median, not surely ahead of b: 1.6")


def test_an_interval_that_holds_one_is_not_called_faster():
    line = said(GREEDY, contender("chain", (0.97, 1.02, 1.08)))
    assert line.startswith("Nothing here is surely faster than greedy; chain reaches 1.02")
    assert line.endswith(" the tokens per second of greedy (0.97 to 1.08).")


def test_a_loss_is_called_a_loss():
    line = said(GREEDY, contender("chain", (0.7, 0.8, 0.9)))
    assert line.startswith("Nothing here is faster than greedy; chain comes nearest with 0.8")


def test_the_best_by_quality_is_named_only_if_no_interval_reaches_its_own():
    surely = said(contender("a", None, (0.1, 0.2, 0.3)), contender("b", None, (0.4, 0.5, 0.6), reference=0))
    assert "Best by quality is b with 0.5 (0.4 to 0.6); lowest is a with 0.2 (0.1 to 0.3)." in surely
    unsure = said(contender("a", None, (0.1, 0.2, 0.45)), contender("b", None, (0.4, 0.5, 0.6)))
    assert "None is surely the best by quality: highest is b with 0.5" in unsure
    assert "others' intervals reach its own" in unsure
    equal = said(contender("a", None, (0.1, 0.2, 0.3)), contender("b", None, (0.1, 0.2, 0.3)))
    assert "By quality all are equal, 0.2 (0.1 to 0.3)." in equal


def test_one_method_alone_and_none_that_ended_have_a_sentence_too():
    assert said(contender("greedy", (1, 1, 1))) == "greedy writes 80.0 tokens per second."
    failed = contender("greedy") | {"entries": {}}
    assert said(failed) == "greedy: no run has ended well, so there is nothing to compare."


@pytest.mark.parametrize("metric", [True, False])
def test_every_number_of_a_headline_is_a_figure_of_the_results(metric):
    contenders = made_results(8, 4, metric=metric)["contenders"]
    labels = [each["label"] for each in contenders]
    for sentence in headline(contenders):
        assert any(isinstance(part, Figure) for part in sentence)
        words = [part for part in sentence if isinstance(part, str) and part not in labels]
        for label in labels:
            words = [word.replace(label, "") for word in words]
        assert not re.search(r"\d", "".join(words))


def test_a_page_repeats_no_text_and_holds_no_number_that_json_lacks():
    results = made_results(3, 5)
    results["contenders"][1]["quality"]["mean"] = float("nan")
    data = report_data(results)
    assert len(data["written"]) == 5, "three exact methods wrote the same five texts"
    assert len(data["texts"]) == 15
    assert data["contenders"][1]["quality"]["mean"] is None
    for text, (contender, prompt, words, spans) in zip(results["texts"], data["texts"], strict=True):
        assert (contender, prompt) == (text["contender"], text["prompt"])
        assert [data["pieces"][piece] for piece in data["written"][words]] == text["pieces"]
        runs = data["proposed"][spans]
        unrolled = [data["origins"][o] for o, n in zip(runs[::2], runs[1::2], strict=True) for _ in range(n)]
        assert unrolled == text["origins"]
