"""The planner: what it promises, on models that are made for it."""

from __future__ import annotations

import pytest
import torch

from outlay import LM
from outlay.budget import Ledger
from outlay.decode.draft import auto
from outlay.decode.draft.auto import Auto, experience, planner
from outlay.decode.draft.auto.config import AutoConfig
from outlay.engine.engine import Engine
from outlay.engine.seat import Seat
from outlay.errors import UsageError
from outlay.models.draft_head import untrained_draft_head
from outlay.speculation import costs
from outlay.speculation.costs import PassCosts, costs_of
from outlay.speculation.ngrams import NgramTable, tokenizer_fingerprint
from outlay.testing import PROMPTS, markov_model, tiny_lm, tiny_model

CIRCLE = torch.full((16, 16), 1e-4)
for _state in range(16):
    CIRCLE[_state, (_state + 1) % 16] = 1.0
CIRCLE /= CIRCLE.sum(1, keepdim=True)


@pytest.fixture
def machine(monkeypatch):
    """Makes passes cost, and take by the clock: each row after the first so much of a pass; where `drafting` takes
    longer, a target pass over several rows that many times as long as it should."""

    def make(row, draft=1.0, drafting=1.0):
        now = [0.0]

        def costs(model):
            first = 1.0 if model.name.startswith("circle") else draft
            return PassCosts((1, 33), (first, first * (1 + 32 * row)), 0.0)

        def timed(inner):
            def asked(seat, nodes, *args, **options):
                longer = drafting if len(nodes) > 1 else 1.0
                now[0] += longer * costs(seat.model)(len(nodes))
                return inner(seat, nodes, *args, **options)

            return asked

        monkeypatch.setattr(auto, "measure_beside", lambda run, model: None)
        monkeypatch.setattr(experience, "costs_of", costs)
        monkeypatch.setattr(planner.time, "perf_counter", lambda: now[0])
        for name in ("forward", "topk", "draw"):
            monkeypatch.setattr(Seat, name, timed(getattr(Seat, name)))

    return make


def circle(name="circle"):
    return markov_model(CIRCLE, name)


@pytest.mark.parametrize("temperature", [0.0, 0.8])
@pytest.mark.parametrize("kind", ["none", "model", "head"])
def test_it_writes_what_decoding_without_drafts_writes(temperature, kind):
    drafts = {"none": None, "model": tiny_model(1), "head": untrained_draft_head(tiny_model(), 1, 128)}
    for seed, prompt in enumerate(PROMPTS):
        options = {"max_tokens": 60, "ignore_eos": True, "temperature": temperature, "seed": seed}
        assert (
            tiny_lm().generate(prompt, method="auto", draft=drafts[kind], **options).tokens
            == tiny_lm().generate(prompt, method="sample" if temperature else "greedy", **options).tokens
        )


def test_where_rows_are_free_a_text_that_repeats_itself_takes_few_passes(machine):
    machine(row=0.001)
    result = LM(circle(), Engine()).generate([0], method="auto", max_tokens=200, ignore_eos=True)
    assert result.ledger.target_passes < 60
    assert result.ledger.drafted >= 140


def test_where_a_row_costs_a_pass_nothing_is_drafted(machine):
    machine(row=1.0)
    result = LM(circle(), Engine()).generate([0], method="auto", max_tokens=100, ignore_eos=True)
    assert result.ledger.drafted == 0
    assert result.ledger.target_passes == 100


def test_a_draft_that_is_never_right_is_soon_left_alone(machine):
    machine(row=0.01, draft=0.3)
    # All three of its guesses that are looked at are wrong.
    wrong = markov_model(sum(CIRCLE.roll(ahead, 1) for ahead in (1, 2, 3)) / 3, "wrong")
    lm = LM(circle(), Engine())
    result = lm.generate([0], method=Auto(lookup=False), draft=wrong, max_tokens=300, ignore_eos=True)
    assert result.ledger.extras["asked"] < 30
    assert result.ledger.target_passes == 300


def test_a_draft_that_did_not_pay_is_tried_less_where_it_has_a_prompt_to_read_first(machine):
    machine(row=0.05, draft=0.3)
    wrong, asked = markov_model(CIRCLE.flip(1), "wrong"), []
    for length in (1, 300):
        lm = LM(circle(), Engine())
        prompt = [place % 16 for place in range(length)]
        for first, tokens in (([0], 60), (prompt, 200)):
            result = lm.generate(first, method=Auto(lookup=False), draft=wrong, max_tokens=tokens, ignore_eos=True)
        asked.append(result.ledger.extras.get("asked", 0))
    assert asked[0] > 0
    assert asked[1] == 0


def test_a_draft_that_was_of_no_use_is_tried_again_in_later_texts_however_short_they_are(machine):
    """Two circles of eight tokens; the draft knows the second one."""
    machine(row=0.05, draft=0.3)
    target = torch.full((16, 16), 1e-4)
    for state in range(16):
        target[state, state // 8 * 8 + (state + 1) % 8] = 1.0
    knows = target.clone()
    knows[:8] = knows[:8].flip(1)
    lm, draft = LM(markov_model(target, "circles"), Engine()), markov_model(knows, "knows the second")

    def asked(first, texts):
        method, ledger = Auto(lookup=False), Ledger()
        for _ in range(texts):
            ledger += lm.generate([first], method=method, draft=draft, max_tokens=20, ignore_eos=True).ledger
        return ledger.extras.get("asked", 0) / ledger.rounds

    assert asked(0, 20) < 0.25
    asked(8, 20)
    assert asked(8, 20) > 0.8


@pytest.mark.parametrize(("row", "asked"), [(1.0, False), (0.05, True)])
def test_a_draft_is_not_even_tried_where_the_best_would_not_pay(machine, row, asked):
    machine(row=row, draft=0.05)
    lm = LM(circle(), Engine())
    result = lm.generate([0], method=Auto(lookup=False), draft=circle("twin"), max_tokens=100, ignore_eos=True)
    assert (result.ledger.extras.get("asked", 0) > 0) == asked


def test_runs_that_begin_together_know_it_in_their_first_round(machine):
    """Where a row costs a third of a pass it pays to draft alone, from a match that was never tried, but not beside
    others."""
    machine(row=0.3)
    prompt = [place % 16 for place in range(40)]
    alone = LM(circle(), Engine()).generate(prompt, method="auto", max_tokens=2, ignore_eos=True)
    assert alone.ledger.drafted > 0
    together = LM(circle(), Engine()).generate_batch([prompt] * 4, method="auto", max_tokens=2, ignore_eos=True)
    assert [result.ledger.drafted for result in together] == [0] * 4


def test_a_draft_that_is_always_right_is_asked_each_round(machine):
    machine(row=0.01, draft=0.05)
    lm = LM(circle(), Engine())
    result = lm.generate([0], method=Auto(lookup=False), draft=circle("twin"), max_tokens=200, ignore_eos=True)
    assert result.ledger.target_passes < 40
    assert result.ledger.extras["asked"] >= result.ledger.rounds - 2


def test_a_table_of_what_the_model_writes_is_drafted_from(machine, tmp_path):
    machine(row=0.01)
    model = circle()
    table = NgramTable.build([list(range(16)) * 3], tokenizer_fingerprint(model.tokenizer), lengths=(1, 2))
    table.save(tmp_path / "circle.tri")
    method = Auto(lookup=False, table=str(tmp_path / "circle.tri"))
    result = LM(model, Engine()).generate([0], method=method, max_tokens=60, ignore_eos=True)
    assert result.ledger.target_passes < 20
    assert set(result.origins) <= {"", "table"}


def test_what_it_expects_is_in_the_ledger_and_right(machine):
    machine(row=0.01)
    lm = LM(circle(), Engine())
    _, ledger = (lm.generate([0], method="auto", max_tokens=400, ignore_eos=True).ledger for _ in range(2))
    assert ledger.extras["expected_tokens"] == pytest.approx(400, rel=0.1)
    assert ledger.extras["expected_seconds"] > 0


def test_it_learns_from_one_prompt_for_the_next(machine):
    machine(row=0.2)
    lm = LM(circle(), Engine())
    first, second = (lm.generate([0], method="auto", max_tokens=40, ignore_eos=True).ledger for _ in range(2))
    assert second.target_passes < first.target_passes
    lm.engine.clear(learned=False)
    assert lm.generate([0], method="auto", max_tokens=40, ignore_eos=True).ledger.target_passes < first.target_passes
    lm.engine.clear()
    assert lm.generate([0], method="auto", max_tokens=40, ignore_eos=True).ledger.target_passes == first.target_passes


def test_drafts_that_have_not_paid_are_shadowed_and_tried_again_where_they_would_have(machine):
    """Half of the tokens follow one another in a circle, half do so every other time. By the costs that were measured
    it pays to draft both; but by the clock a round with drafts takes thrice as long as it should."""
    machine(row=0.1, drafting=3.0)
    law = torch.full((16, 16), 1e-6)
    for state in range(8):
        law[state, (state + 1) % 8] = 1.0
        law[8 + state, 8:] = 0.5 / 8
        law[8 + state, 8 + (state + 1) % 8] = 0.5
    lm = LM(markov_model(law / law.sum(1, keepdim=True), "circle"), Engine())

    def written(prompt, seed, tokens=90):
        options = {"max_tokens": tokens, "ignore_eos": True, "temperature": 1.0, "seed": seed}
        return lm.generate(prompt, method=Auto(table="none"), **options)

    noise, circle = [8], list(range(8)) * 4
    first = written(noise, 0, 400)
    assert first.ledger.drafted > 0
    drafted = [written(noise, seed).ledger.drafted for seed in range(1, 20)]
    assert sum(count == 0 for count in drafted) >= 9, "tried now and then"
    after = written(circle, 20)
    assert after.ledger.target_passes < 60, "some rounds are shadows, and the rest drafted"
    assert after.tokens == [place % 8 for place in range(90)]


def test_tests_and_experiments_give_a_configuration():
    class Eager(Auto):
        config = AutoConfig(first_trial=1, trial=1)

    assert Eager().config.trial == 1 < Auto().config.trial
    eager, greedy = (tiny_lm().generate("a", method=method, max_tokens=20) for method in (Eager(), "greedy"))
    assert eager.tokens == greedy.tokens


def test_drafts_without_a_model_are_refused():
    with pytest.raises(UsageError, match="looks up by itself"):
        tiny_lm().generate("a", method="auto", draft="lookup")
    with pytest.raises(UsageError, match="nodes of 1 or more"):
        Auto(nodes=0)


def test_the_costs_of_passes_are_measured_beside_the_text(monkeypatch, tmp_path):
    monkeypatch.setenv("OUTLAY_CACHE", str(tmp_path))
    monkeypatch.setattr(costs, "_KNOWN", {})
    lm = tiny_lm()
    estimated = costs_of(lm.model)
    lm.generate("a", method="auto", max_tokens=2)
    lm.engine.settle()
    assert costs.known_of(lm.model).settled
    assert costs_of(lm.model) != estimated
    assert sum(worker.passes for worker in lm.engine.models) <= 2, "in no pass of a run"
