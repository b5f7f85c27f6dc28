"""Turns: fair, independent of each other, and never ended by one run that fails."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import ClassVar

import pytest

from outlay import catalog
from outlay.compare.contenders import contenders, references, tried
from outlay.compare.declaration import Declaration
from outlay.compare.items import Item
from outlay.compare.runner import Runner
from outlay.compare.turns import Shard, shards, turns
from outlay.decode.greedy import Greedy
from outlay.engine.method import About, Method
from outlay.errors import FailureError, UsageError
from outlay.testing import tiny_lm

ITEMS = [Item(text, {"prompt": text}) for text in ("The first", "A second prompt", "3", "The first of all")]


@dataclass(frozen=True)
class Broken(Method):
    """Fails as soon as it has read the prompt, or where its prompt is short."""

    about: ClassVar[About] = About(name="broken", summary="", paper="", family="", spends="", saves="")
    shortest: int = 3

    def decode(self, run):
        if len(run.prompt) < self.shortest:
            raise ValueError("too\nshort")
        yield from Greedy().decode(run)


@pytest.fixture(autouse=True)
def broken(monkeypatch):
    for known in (catalog.entries(), catalog.methods()):
        monkeypatch.setitem(known, "broken", Broken)


def declared(*methods, **options):
    return Declaration(methods=methods, model="tiny", **({"max_tokens": 12} | options))


def runner(declaration, lm=None):
    lm = lm or tiny_lm()
    ready = [tried(contender, lm, declaration, lm.encode("The first")) for contender in contenders(declaration)]
    return Runner(lm, declaration, ready, ITEMS)


def run_all(declaration, **options):
    rows = []
    for turn in runner(declaration, **options).run_all([(shard, set()) for shard in shards(declaration, len(ITEMS))]):
        rows += turn
    return {(row["method"], row["budget"], row["prompt"], row["seed"], row["repeat"]): row for row in rows}


@pytest.mark.parametrize("count", [1, 2, 5])
def test_every_contender_has_each_place_equally_often(count):
    rounds = [turns(count, shard) for shard in range(3 * count)]
    assert all(sorted(order) == list(range(count)) for order in rounds)
    for place in range(count):
        assert set(Counter(order[place] for order in rounds).values()) == {3}


def test_who_comes_after_whom_changes():
    followers = {(order[i], order[i + 1]) for order in (turns(4, shard) for shard in range(40)) for i in range(3)}
    assert len(followers) == 12


def test_shards_take_every_prompt_in_each_repeat_with_each_seed():
    found = shards(declared("greedy", batch=3, repeats=2, seeds=(0, 1)), 4)
    assert [shard.number for shard in found] == list(range(8))
    assert found[0] == Shard(0, 0, 0, (0, 1, 2))
    assert found[1].items == (3,)
    assert [shard.repeat for shard in found] == [0] * 4 + [1] * 4


def test_texts_and_counts_do_not_depend_on_turns_repeats_or_batches():
    declaration = declared("greedy", "sample:temperature=0.9", "best_of:temperature=0.9", seeds=(0, 1), repeats=2)
    rows = run_all(declaration)
    assert len(rows) == 3 * 4 * 2 * 2
    counts = ("target_passes", "target_tokens", "tokens_out", "flops", "kv_bytes")
    for (method, budget, prompt, seed, repeat), row in rows.items():
        first = rows[method, budget, prompt, seed, 0]
        assert row["tokens"] == first["tokens"]
        assert [row["ledger"][name] for name in counts] == [first["ledger"][name] for name in counts], repeat
    alone = run_all(declared("best_of:temperature=0.9", seeds=(1,), repeats=1, batch=4))
    assert (
        alone["best_of:temperature=0.9", "", 1, 1, 0]["tokens"]
        == rows["best_of:temperature=0.9", "", 1, 1, 0]["tokens"]
    )


def test_pieces_of_a_text_join_to_it():
    for row in run_all(declared("greedy", repeats=1)).values():
        assert len(row["pieces"]) == len(row["tokens"])
        assert row["text"].startswith("".join(row["pieces"]))


def test_nothing_is_shared_between_turns_but_within_a_batch_prefixes_are():
    alone = run_all(declared("greedy", repeats=1))
    together = run_all(declared("greedy", repeats=1, batch=4))
    tokens = [sum(row["ledger"]["target_tokens"] for row in rows.values()) for rows in (alone, together)]
    assert tokens[0] == sum(len(ITEMS[i].prompt) for i in range(4)) + 4 * 11
    assert tokens[1] < tokens[0]


def test_runs_that_fail_are_written_down_and_the_others_go_on():
    rows = run_all(declared("greedy", "broken", repeats=1))
    assert rows["broken", "", 2, 0, 0]["error"] == "ValueError: too short"
    assert "text" not in rows["broken", "", 2, 0, 0]
    assert rows["broken", "", 1, 0, 0]["tokens"] == rows["greedy", "", 1, 0, 0]["tokens"]


def test_what_is_done_is_not_run_again():
    declaration = declared("greedy", "beam", batch=4)
    done = {(0, 0), (0, 1), (0, 2), (0, 3), (1, 2)}
    [rows] = runner(declaration).run(shards(declaration, 4)[0], done)
    assert [(row["method"], row["prompt"]) for row in rows] == [("beam", 0), ("beam", 1), ("beam", 3)]


def test_every_method_runs_under_every_budget_and_is_measured_against_the_reference_at_its_own():
    declaration = declared("greedy", "beam", budgets=("target_passes=4", ""), reference="beam")
    every = contenders(declaration)
    assert [contender.label for contender in every] == [
        "greedy [target_passes=4]", "greedy", "beam [target_passes=4]", "beam",
    ]  # fmt: skip
    assert references([each.key for each in every], "beam") == [2, 3, 2, 3]
    rows = run_all(declaration)
    assert rows["greedy", "target_passes=4", 0, 0, 0]["finish_reason"] == "budget"
    assert rows["greedy", "", 0, 0, 0]["finish_reason"] == "length"


def test_sampling_options_belong_to_one_method():
    [sample, greedy] = contenders(declared("sample:temperature=0.50,top_k=3", "greedy:temperature=0", top_p=0.9))
    assert sample.name == "sample:temperature=0.5,top_k=3"
    assert sample.sampling == {"temperature": 0.5, "top_k": 3, "top_p": 0.9, "min_p": None}
    assert greedy.name == "greedy:temperature=0"


def test_methods_that_only_decode_at_temperature_zero_get_it():
    declaration = declared("greedy", "sample", "beam", temperature=0.8)
    ready = runner(declaration)._contenders
    assert [contender.sampling["temperature"] for contender in ready] == [0.0, 0.8, 0.0]


@pytest.mark.parametrize(
    ("methods", "said"),
    [
        (("greedy", "greedy"), "greedy is among the methods twice"),
        (("beam:width=4", "beam"), "beam is among the methods twice"),
        (("gredy",), "did you mean 'greedy'"),
        (("beam:widht=2",), "did you mean 'width'"),
        (("sample:temperature=hot",), "temperature of sample must be a number"),
    ],
)
def test_methods_that_can_not_be_compared_are_refused(methods, said):
    with pytest.raises(UsageError, match=said):
        contenders(declared(*methods))


def test_an_unknown_reference_is_refused():
    with pytest.raises(UsageError, match=r"the reference 'beem' is not among the methods .*'beam'"):
        contenders(declared("greedy", "beam", reference="beem"))


def test_a_method_that_can_not_run_is_named_before_anything_is_run():
    with pytest.raises(UsageError, match=r"best_of: .*temperature above 0"):
        runner(declared("greedy", "best_of"))
    with pytest.raises(FailureError, match="broken:shortest=99: ValueError: too short"):
        runner(declared("broken:shortest=99"))
