"""The sets of problems: the answers are right by another way of finding them, and a seed gives the same rows."""

from __future__ import annotations

import datetime
import re

import pytest

from outlay import UsageError, problems
from outlay.problems import minilist

PARTS = ("retrieval", "edits", "dates", "sorting", "short_answers", "minilist")


@pytest.mark.parametrize("name", PARTS)
def test_a_seed_gives_the_same_rows_and_more_of_them_begin_alike(name):
    assert problems.make(f"{name}:count=30") == problems.make(f"{name}:count=60")[:30]
    assert problems.make(f"{name}:count=30,seed=1") != problems.make(f"{name}:count=30")
    assert len({row["prompt"] for row in problems.make(f"{name}:count=200")}) > 190


def test_a_look_up_has_24_different_keys_and_the_value_of_the_one_that_is_asked_for():
    for row in problems.make("retrieval:count=100"):
        held = dict(re.findall(r"([a-z]{2})=(\d\d)", row["prompt"]))
        assert len(held) == 24
        assert row["answer"] == held[row["prompt"][-3:-1]]


def test_an_edit_replaces_one_word_of_the_line():
    for row in problems.make("edits:count=100"):
        old, new, line = re.fullmatch(r"(\w+)>(\w+): (.*)", row["prompt"]).groups()
        assert row["answer"].split() == [new if word == old else word for word in line.split()]


def test_a_date_is_the_same_day_in_every_form():
    forms = ("%d %B %Y", "%B %d, %Y", "%d.%m.%Y", "%b %d, %Y", "%Y/%m/%d")
    for row in problems.make("dates:count=200"):
        plain = re.sub(r"(?<=\d)(st|nd|rd|th)", "", row["prompt"])
        found = set()
        for form in forms:
            try:
                found.add(datetime.datetime.strptime(plain, form).date().isoformat())
            except ValueError:
                continue
        assert found == {row["answer"]}


def test_a_sorted_list_holds_the_same_numbers_in_order():
    for row in problems.make("sorting:count=100"):
        assert list(map(int, row["answer"].split())) == sorted(map(int, row["prompt"].split()))


@pytest.mark.parametrize(("named", "most"), [("short_answers", 24), ("short_answers:pairs=6", 6)])
def test_short_answers_are_of_the_four_kinds_in_turn_with_look_ups_of_all_sizes(named, most):
    rows = problems.make(f"{named}{',' if ':' in named else ':'}count=400")
    assert len(rows) == 400
    of_kind = [problems.make(f"{kind}:count=100") for kind in ("dates", "edits", "sorting")]
    for place, alone in enumerate(of_kind):
        assert rows[place::4] == alone
    sizes = set()
    for row in rows[3::4]:
        held = re.findall(r"([a-z]{2})=(\d\d)", row["prompt"])
        assert len(dict(held)) == len(held)
        assert row["answer"] == dict(held)[row["prompt"][-3:-1]]
        sizes.add(len(held))
    assert min(sizes) == 2
    assert max(sizes) == most


@pytest.mark.parametrize("pairs", [1, 25])
def test_short_answers_refuse_look_ups_that_can_not_be(pairs):
    with pytest.raises(UsageError, match=f"among 2 to 24 pairs, not {pairs}"):
        problems.make(f"short_answers:pairs={pairs}")


def test_each_minilist_program_fits_its_public_and_its_private_examples():
    for row in problems.make("minilist:count=200"):
        shown = minilist.examples_of(row["prompt"])
        assert (len(shown), len(row["private"])) == (minilist.PUBLIC, minilist.PRIVATE)
        assert minilist.score(row["prompt"], [row["answer"]]) == [1.0]
        assert minilist.pass_rate(row["answer"], row["private"]) == 1
        assert 2 <= len(row["answer"].split(minilist.BAR)) <= 5


@pytest.mark.parametrize(
    ("program", "made"),
    [
        ("map + 3 | filter even", (4, 4, 12, 4)),
        ("map * 3 | drop 1", (3, 96, 27, 3)),
        ("sort | reverse | take 2", (32, 9)),
        ("unique | filter > 2", (32, 9)),
        ("filter odd", (1, 1, 9, 1)),
        ("scan sum | scan max", (1, 2, 34, 43, 44)),
        ("scan min", (1, 1, 1, 1, 1)),
        ("map * 3 | map * 3 | take 3", (9, 9, 88)),
        ("sort | nothing", None),
        ("", None),
    ],
)
def test_stages_of_minilist_do_what_their_names_say(program, made):
    assert minilist.run(program, (1, 1, 32, 9, 1)) == made


def test_minilist_rates_programs_by_the_examples_of_the_prompt():
    prompt = "1 2 3 -> 2 3 4\n4 5 -> 5 6\n0 1 -> 9"
    assert minilist.score(prompt, ["map + 1", "map + 1 | sort", "sort", "what"]) == [2 / 3, 2 / 3, 0.0, 0.0]
