"""Other models in a run, runs without a tree, and what is given to a method beside its options."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import ClassVar

import pytest

import outlay
from outlay import LM, About, Budget, FunctionWorker, Ledger, Method, TextRun, UsageError
from outlay.constrain import Choice
from outlay.engine.engine import Engine
from outlay.models.load import Model
from outlay.testing import MethodProperties, tiny_lm, tiny_model


@dataclass(frozen=True)
class Agree(Method):
    """Writes the target's best token; another model scores it, and a third reads along, each with a tree of its own."""

    rater: str | Model = "never loaded"

    other: str | Model | None = None

    about: ClassVar[About] = About("agree", "", "", "test", "", "", models=("rater", "other"))

    def decode(self, run):
        rater = run.seat("rater", run.prompt, "score")
        other = None if self.other is None else run.seat("other", [1, 2, 3])
        while True:
            asked = [run.target.topk([run.tip], 1), rater.forward([rater.tree.tip])]
            if other is not None:
                asked.append(other.topk([other.tree.tip], 1))
            top, logits, *_ = yield asked
            run.facts["rated"] = [*run.facts.get("rated", []), float(logits[0].log_softmax(-1)[int(top.tokens)])]
            token = int(top.tokens)
            run.commit(token)
            for seat in filter(None, (rater, other)):
                seat.tree.append([token])


def empty(lm):
    lm.engine.clear()
    return all((worker.seated, worker.cache.in_use) == (0, 0) for worker in lm.engine.models)


def test_a_run_has_seats_at_other_models_which_are_counted_and_released():
    lm, method = tiny_lm(), Agree(tiny_model(1), tiny_model(2))
    greedy = lm.generate("Once", max_tokens=6, ignore_eos=True)
    result = lm.generate("Once", method=method, max_tokens=6, ignore_eos=True)
    ledger = result.ledger
    assert result.tokens == greedy.tokens
    assert (ledger.score_passes, ledger.score_tokens) == (6, 4 + 5)
    assert (ledger.side_passes, ledger.side_tokens) == (6, 3 + 5)
    assert {worker.role for worker in lm.engine.models} == {"target", "score", "side"}
    assert sum((worker.ledger for worker in lm.engine.workers), start=Ledger()).score_tokens == 9
    assert result.method == "agree:rater=tiny-1,other=tiny-2"
    assert len(result.facts["rated"]) == 6
    assert empty(lm)


def test_another_model_gives_what_it_gives_alone_in_any_batch():
    lm, rater = tiny_lm(), tiny_model(1)
    alone = [
        tiny_lm().generate(prompt, method=Agree(rater), max_tokens=5, ignore_eos=True).facts for prompt in ("ab", "cde")
    ]
    with lm.engine.together():
        handles = [
            lm.submit(prompt, method=Agree(rater), max_tokens=5, ignore_eos=True) for prompt in ("ab", "cde", "ab")
        ]
    found = [handle.result(20).facts["rated"] for handle in handles]
    for facts, rated in zip([*alone, alone[0]], found, strict=True):
        assert rated == pytest.approx(facts["rated"], abs=1e-4)


def test_a_second_target_has_a_tree_of_its_own_and_counts_as_a_target():
    @dataclass(frozen=True)
    class Two(Agree):
        def decode(self, run):
            second = run.seat("rater", run.prompt, "target")
            a, b = yield [run.target.topk([run.tip], 1), second.topk([second.tree.tip], 1)]
            run.commit(int(a.tokens))
            run.commit(int(b.tokens))

    lm, other = tiny_lm(), tiny_model(1)
    result = lm.generate("Once", method=Two(other), max_tokens=2, ignore_eos=True)
    ones = [each.generate("Once", max_tokens=1, ignore_eos=True).tokens for each in (tiny_lm(), LM(other, Engine()))]
    assert result.tokens == ones[0] + ones[1]
    assert result.ledger.target_passes == 2
    assert empty(lm)


@pytest.mark.parametrize("end", ["error", "cancelled", "budget"])
def test_all_seats_are_given_back_however_the_run_ends(end):
    @dataclass(frozen=True)
    class Ends(Agree):
        def decode(self, run):
            run.seat("rater", run.prompt, "score")
            run.seat("rater", run.prompt)
            run.seat("rater", run.prompt, "draft")
            if end == "error":
                raise ZeroDivisionError
            while True:
                yield run.target.topk([run.tip], 1)

    lm = tiny_lm()
    budget = Budget(target_passes=3) if end == "budget" else None
    handle = lm.submit("Once", method=Ends(tiny_model(1)), budget=budget)
    if end == "cancelled":
        handle.cancel()
    if end == "error":
        with pytest.raises(ZeroDivisionError):
            handle.result(20)
    else:
        assert handle.result(20).finish_reason == end
    assert empty(lm)


@pytest.mark.parametrize("entry", ["score_passes", "score_tokens", "side_passes", "side_tokens"])
def test_caps_on_other_models_are_kept_exactly(entry):
    method = Agree(tiny_model(1), tiny_model(2))
    result = tiny_lm().generate("Once", method=method, max_tokens=30, ignore_eos=True, budget=Budget(**{entry: 7}))
    assert result.finish_reason == "budget"
    assert getattr(result.ledger, entry) == 7


def test_models_are_loaded_by_name_once_before_the_run(monkeypatch):
    loaded = []

    def load_model(name, device):
        loaded.append((name, device))
        return tiny_model(3)

    monkeypatch.setattr("outlay.lm.load_model", load_model)
    lm = tiny_lm()
    for _ in range(2):
        lm.generate("Once", method=Agree("rater-3"), max_tokens=2)
    assert loaded == [("rater-3", "cpu")]


def test_a_seat_at_a_model_that_no_option_gave_is_refused_and_a_loaded_model_needs_none():
    @dataclass(frozen=True)
    class Seats(Method):
        given: str | Model

        about: ClassVar[About] = About("seats", "", "", "test", "", "")

        def decode(self, run):
            seat = run.seat(self.given, run.prompt)
            run.commit(int((yield seat.topk([seat.tree.tip], 1)).tokens))

    lm, other = tiny_lm(), tiny_model(1)
    with pytest.raises(ValueError, match="option 'rater' gave this run no model"):
        lm.generate("Once", method=Seats("rater"))
    expected = LM(other, Engine()).generate("Once", max_tokens=1).tokens
    assert lm.generate("Once", method=Seats(other), max_tokens=1).tokens == expected


def test_what_is_no_model_and_a_text_that_a_model_cannot_read_are_refused():
    with pytest.raises(UsageError, match="option 'rater' of agree must be a model or its name, not 3"):
        tiny_lm().generate("Once", method=Agree(3))
    with pytest.raises(UsageError, match="tiny-1 reads 1 to 8 tokens of a text, not 12"):
        tiny_lm().generate("x" * 12, method=Agree(tiny_model(1, context=8)))


@dataclass(frozen=True)
class Spelled(Method):
    """Writes letters that a function gives, on no tree."""

    count: int = 8

    about: ClassVar[About] = About("spelled", "", "", "test", "", "")
    run_type = TextRun

    def decode(self, run):
        letters = run.service("letters", lambda wake: FunctionWorker(letter_after, counts="checks"))
        while len(run.tokens) < self.count:
            letter = yield letters.call(run, run.random.at(len(run.tokens)).initial_seed() % 26)
            run.offer([letter, letter])
            run.count(rounds=1)
            run.write([letter], "letters")
        run.facts["letters"] = len(run.tokens)


def letter_after(number):
    return 65 + number


def test_a_run_needs_no_tree():
    lm, pieces = tiny_lm(), []
    events = []
    handle = lm.submit("Once", method=Spelled(), trace=events.append, seed=3)
    pieces += handle
    result = handle.result(20)
    assert (len(result.text), result.finish_reason, result.ledger.checks) == (8, "stop", 8)
    assert "".join(pieces) == result.text
    assert result.origins == ["letters"] * 8
    assert result.facts == {"letters": 8}
    assert [event["event"] for event in events] == ["start", "finish"]
    assert lm.engine.models == [], "no model was asked for anything"
    assert lm.generate("Once", method=Spelled(), seed=3).text == result.text != lm.generate("x", method=Spelled()).text


def test_a_run_without_a_tree_keeps_stop_strings_limits_and_caps():
    lm = tiny_lm()
    whole = lm.generate("Once", method=Spelled()).text
    assert lm.generate("Once", method=Spelled(), stop=whole[4:6]).text == whole[: whole.index(whole[4:6])]
    result = lm.generate("Once", method=Spelled(), max_tokens=3)
    assert (result.text, result.finish_reason) == (whole[:3], "length")
    result = lm.generate("Once", method=Spelled(), budget=Budget(rounds=2))
    assert (result.text, result.finish_reason, result.ledger.rounds) == (whole[:2], "budget", 2)
    with pytest.raises(UsageError, match="log-probabilities"):
        lm.generate("Once", method=Spelled(), logprobs=1)


class TestSpelled(MethodProperties):
    method = Spelled(10**9)
    cancelled_at = "start"


class TestAgree(MethodProperties):
    method = Agree(tiny_model(1, layers=1), tiny_model(2, layers=1))


@dataclass(frozen=True)
class Rated(Method):
    about: ClassVar[About] = About("rated", "", "", "test", "", "", needs=("scorer",), takes=("constraint",))

    def decode(self, run):
        run.facts["given"] = [run.submission.scorer, run.submission.constraint]
        yield []


def test_a_scorer_and_a_constraint_reach_the_methods_that_take_them_and_are_refused_by_others():
    lm = tiny_lm()
    choice = Choice("c")
    scorer, compiled = lm.generate("x", method=Rated(), scorer="self", constraint=choice).facts["given"]
    assert isinstance(scorer, outlay.Scorer)
    assert compiled.constraint == choice
    assert lm.generate("x", method=Rated(), scorer=scorer).facts == {"given": [scorer, None]}
    with pytest.raises(UsageError, match=r"^rated needs a scorer: give one with scorer=$"):
        lm.generate("x", method=Rated())
    with pytest.raises(UsageError, match="superposed takes no constraint; leave constraint= out"):
        lm.generate("x", method="superposed", constraint="json")


def test_facts_are_in_the_json_of_the_command_line():
    from outlay.cli.run import _as_dict

    lm = tiny_lm()
    assert json.loads(json.dumps(_as_dict(lm, lm.generate("Once", method=Spelled()))))["facts"] == {"letters": 8}


@dataclass(frozen=True)
class Offers(Method):
    """Offers a text of two tokens, and goes on without deciding."""

    counts: bool = False

    about: ClassVar[About] = About("offers", "", "", "test", "", "")

    def decode(self, run):
        while True:
            yield run.target.topk([run.tip], 1)
            run.tree.prune(())
            run.offer(run.tree.extend([-1, 0], [65, 66])[-1])
            if self.counts:
                run.count(rounds=1)


@pytest.mark.parametrize("counts", [False, True])
def test_an_offered_text_is_written_at_the_end_and_its_own_reason_stays(counts):
    budget = Budget(rounds=3) if counts else Budget(target_passes=3)
    for limit, reason in ((2, "length"), (5, "budget")):
        result = tiny_lm().generate("Once", method=Offers(counts), max_tokens=limit, budget=budget)
        assert (result.tokens, result.finish_reason) == ([65, 66], reason)
