"""The models that fill masks and come with the package: what they do, one token a round and four."""

from __future__ import annotations

import pytest

import outlay
from outlay.models import hub
from outlay.problems import lists


@pytest.fixture(scope="module")
def tiny_lists():
    return outlay.load("tiny-lists", dtype="float32")


def score(lm, task, method, count=20):
    """The share of right answers to a task."""
    asked = [lists.letters(number, f"shipped/{task}", (task,)) for number in range(count)]
    handles = [lm.submit(lists.in_letters(each), method=method, max_tokens=8) for each in asked]
    return sum(each.right(handle.result(60).text) for each, handle in zip(asked, handles, strict=True)) / count


def test_they_are_small():
    names = ("outlay/tiny-ambiguous", "outlay/tiny-lists", "outlay/tiny-noisy")
    sizes = {name: sum(file.stat().st_size for file in hub.shipped()[name].iterdir()) for name in names}
    assert sum(sizes.values()) < 3e6


def test_lists_are_sorted(tiny_lists):
    assert tiny_lists.generate("sort: dacb").text == "abcd"
    assert tiny_lists.generate("reverse: dacb", method="ete:ends=cut").text == "bcad"


def test_one_by_one_every_task_is_done(tiny_lists):
    assert [task for task in lists.TASKS if score(tiny_lists, task, "llada:block=all") < 0.9] == []


def test_four_a_round_a_copy_loses_nothing_and_a_shuffle_most(tiny_lists):
    lost = {
        task: score(tiny_lists, task, "llada:block=all") - score(tiny_lists, task, "llada:block=all,steps=2")
        for task in ("copy", "shuffle", "replace_random")
    }
    assert lost["copy"] < 0.03
    assert lost["shuffle"] > 0.40
    assert lost["replace_random"] > 0.10
