"""The accuracy suite: its figures over predictions made by hand, its passes, its report, and what it found."""

from __future__ import annotations

import argparse
import json
import math
from pathlib import Path

import pytest
import torch

from outlay.bench.accuracy import suite as accuracy
from outlay.bench.accuracy.formats import Continuations, Extent, LayerErrors, TextWindow, Variant
from outlay.bench.accuracy.measure import (
    CodedInputs,
    block_changes,
    code_inputs,
    compare,
    layer_errors,
    linears,
    same_tokens,
    tap,
    windows,
)
from outlay.bench.accuracy.questions import ASKED, Answer, answer_of, compared
from outlay.bench.accuracy.report import report
from outlay.bench.accuracy.suite import SUITE, AccuracySettings
from outlay.engine.engine import Engine
from outlay.errors import UsageError
from outlay.lm import LM
from outlay.models import hub
from outlay.models.linear import native_kernels, pack, weight_of
from outlay.progress import silent
from outlay.prompt_logits import logits_from
from outlay.shrink.pvq import PVQ
from outlay.testing import PROMPTS, tiny_lm, tiny_model

ROOT = Path(__file__).parents[2]
# The figures that the documentation shows; `outlay bench accuracy --out` writes them.
SHIPPED = json.loads((ROOT / "benchmarks" / "results" / "accuracy.json").read_text())
BOUND = 0.01  # of the perplexity: what a default format may cost


def settings(*words):
    parser = argparse.ArgumentParser()
    SUITE.add_arguments(parser)
    return SUITE.settings(parser.parse_args(words))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--formats", "int5"], "no format 'int5' .did you mean 'int"),
        (["--formats", ","], "names none"),
        (["--windows", "0"], "--windows must be 1 or more"),
        (["--activations", "pvq:pulses=58"], "name them with --against"),
        (["--against", ".", "--activations", "rtn"], "coded by pvq, not by rtn"),
    ],
)
def test_options_that_cannot_be_used_are_refused_in_one_line(words, message):
    with pytest.raises(UsageError, match=message):
        settings(*words)


def test_a_text_that_is_not_there_is_refused_before_anything_is_loaded():
    parser = argparse.ArgumentParser()
    SUITE.add_arguments(parser)
    with pytest.raises(UsageError, match="no text nowhere; name one with --text"):
        SUITE.run(parser.parse_args(["--model", "nothing", "--text", "nowhere"]))


def test_every_format_but_the_reference_is_measured_with_and_without_kernels(monkeypatch):
    monkeypatch.setattr(accuracy, "KV_DTYPES", ("int8",))
    for native in (True, False):
        monkeypatch.setattr(accuracy, "native_kernels", lambda native=native: native)
        found = [variant.name for variant in accuracy.variants()]
        alone = [f"{dtype}/torch" for dtype in ("auto", "bfloat16", "float16", "int8", "int4")]
        own = ["auto", "bfloat16", "int8", "int4", "auto+int8-cache"] if native else ["auto/torch+int8-cache"]
        assert found == own + alone


def test_windows_are_spread_over_the_text_and_half_a_window_apart_when_all_are_taken():
    text = list(range(100))
    every = windows(text, 20, 1000)
    assert [window[0] for window in every] == list(range(0, 81, 10))
    assert all(window == text[window[0] : window[0] + 20] for window in every)
    assert [window[0] for window in windows(text, 20, 3)] == [10, 40, 70]
    assert windows(text, 20, 1, prefix=[7]) == [[7, *range(40, 59)]]
    assert windows(text, 101, 3) == []


def test_predictions_are_compared_as_by_hand():
    reference = torch.tensor([[0.5, 0.25, 0.25], [0.1, 0.1, 0.8]]).log()
    logits = torch.tensor([[0.25, 0.5, 0.25], [0.1, 0.1, 0.8]]).log() + 3.0
    found = compare(reference, logits, torch.tensor([0, 2]))
    assert found == pytest.approx(
        {
            "tokens": 2,
            "nll": math.log(4) - math.log(0.8),
            "reference_nll": math.log(2) - math.log(0.8),
            "squares": math.log(2) ** 2,
            "kl": 0.25 * math.log(2),
            "agreed": 1,
        },
        rel=1e-5,
    )


def test_changes_are_the_means_of_whole_blocks():
    generator = torch.Generator().manual_seed(0)
    reference = torch.randn(600, 5, generator=generator).log_softmax(-1)
    logits, targets = torch.randn(600, 5, generator=generator), torch.randint(0, 5, (600,), generator=generator)
    change = (reference - logits.log_softmax(-1)).gather(1, targets[:, None])[:, 0].double()
    assert block_changes(reference, logits, targets) == pytest.approx(
        [float(change[:256].mean()), float(change[256:512].mean())]
    )
    few = block_changes(reference[:9], logits[:9], targets[:9])
    assert few == pytest.approx([float(change[:9].mean())])


def test_other_checkpoints_are_compared_in_float32_and_formats_only_when_asked_for(tmp_path):
    (tmp_path / "small").mkdir()
    found = settings("--against", str(tmp_path / "small"))
    assert [(each.name, each.dtype, each.source) for each in found.variants] == [
        ("small", "float32", str(tmp_path / "small"))
    ]
    both = settings("--against", str(tmp_path / "small"), "--formats", "int8")
    assert [each.name for each in both.variants] == ["int8", "small"]
    with pytest.raises(UsageError):
        settings("--against", str(tmp_path / "nothing"))


def test_checkpoints_are_measured_with_coded_activations_beside(tmp_path):
    (tmp_path / "small").mkdir()
    found = settings("--against", str(tmp_path / "small"), "--activations", "pvq:pulses=58")
    assert [(each.name, each.activations) for each in found.variants] == [
        ("small", None), ("small, activations pvq:pulses=58", "pvq:pulses=58")
    ]  # fmt: skip


def test_coded_activations_change_every_layer_but_the_head_and_less_with_more_pulses():
    model = tiny_model()
    taps = tap(model.decoder)
    logits_from(LM(model, Engine()), list(range(3, 43)), 0)

    def errors(pulses):
        other = tiny_model()
        code_inputs(other.decoder, PVQ(pulses=pulses))
        assert [isinstance(each, CodedInputs) for each in linears(other.decoder).values()] == [True] * 8 + [False]
        assert len(logits_from(LM(other, Engine()), [1, 2, 3, 4], 0)) == 4
        return layer_errors(taps, other.decoder)

    few, more, most = (errors(pulses) for pulses in (4, 12, 58))
    assert few.pop("head") == more.pop("head") == most.pop("head") == 0.0
    assert all(few[name] > 1.3 * more[name] > 2 * most[name] > 0 for name in few)


def test_scored_logits_are_those_of_decoding_token_by_token():
    lm, text = tiny_lm(), list(PROMPTS[3].encode())
    scored = logits_from(lm, text, 5)
    assert scored.shape == (len(text) - 5, 257)
    alone = torch.cat([logits_from(lm, text[: i + 1], i) for i in range(5, len(text))])
    torch.testing.assert_close(scored, alone, atol=1e-4, rtol=1e-4)


def test_what_greedy_would_write_is_known_without_decoding():
    one, other = (LM(tiny_model(dtype=dtype), Engine()) for dtype in ("float32", "int4"))
    prompts = [list(range(start, start + 8)) for start in range(0, 160, 8)]
    texts = [[r.tokens for r in lm.generate_batch(prompts, max_tokens=12, ignore_eos=True)] for lm in (one, other)]
    assert same_tokens(one, prompts, texts[0]) == [12] * len(prompts)
    expected = [next((i for i in range(12) if a[i] != b[i]), 12) for a, b in zip(*texts, strict=True)]
    assert same_tokens(other, prompts, texts[0]) == expected
    assert 0 < min(expected) + max(expected) < 24, "both long and short agreements are needed to test anything"


def test_the_error_of_a_layer_is_that_of_its_output_on_what_the_reference_saw():
    model = tiny_model()
    taps = tap(model.decoder)
    assert list(taps) == [*(f"{i}.{part}" for i in range(2) for part in ("qkv", "out", "gate_up", "down")), "head"]
    logits_from(LM(model, Engine()), [1, 2, 3, 4], 0)
    assert set(layer_errors(taps, tiny_model().decoder).values()) == {0.0}
    other = tiny_model()
    mlp = other.decoder.layers[1].mlp
    mlp.down = pack(1.25 * weight_of(mlp.down), "float32", mlp.down.bias)
    errors = layer_errors(taps, other.decoder)
    assert errors.pop("1.down") == pytest.approx(0.25, rel=1e-6)
    assert set(errors.values()) == {0.0}
    assert linears(other.decoder).keys() == taps.keys()


def made_row(cost):
    layers = {"0.qkv": 0.001, "head": 0.004}
    values = {
        LayerErrors(Variant("auto")): layers,
        TextWindow(Variant("auto"), 0): compare_sums(60, 0.0),
        TextWindow(Variant("auto"), 1): compare_sums(40, cost),
        TextWindow(Variant("int8"), 0): compare_sums(50, 7.0),
        Continuations(Variant("auto")): {"same": 12.25, "identical": 0.5},
    }
    return accuracy.row(Variant("auto"), "int4", values)


def compare_sums(tokens, change):
    """Predictions of perplexity e^2, each `change` nats worse than the reference's."""
    return {
        "tokens": tokens, "nll": tokens * (2 + change), "reference_nll": tokens * 2.0, "squares": tokens * change**2,
        "kl": tokens * 0.001, "agreed": tokens * 0.9,
    }  # fmt: skip


def test_a_row_sums_its_windows():
    row = made_row(0.05)
    assert row["perplexity"] == pytest.approx(math.exp(2.02))
    assert row["cost"] == pytest.approx(math.exp(0.02) - 1)
    assert row["cost_error"] == pytest.approx(math.sqrt(0.6 * 0.4) * 0.05 / 10)
    assert (row["tokens"], row["agreement"], row["kl"]) == (100, pytest.approx(0.9), pytest.approx(0.001))
    assert (row["layer_mean"], row["layer_worst"]) == (pytest.approx(0.0025), "head")


@pytest.mark.parametrize(("cost", "said"), [(0.02, "0.80%"), (0.05, "2.02%")])
def test_the_report_says_what_the_default_costs(cost, said):
    machine = {"versions": {"torch": "1"}, "model": "m.gguf", "processor": "p", "cores": 2, "date": "d", "seconds": 9.0}
    extent = {"windows": 2, "window": 100, "prompts": 3, "prompt": 4, "new": 64}
    found = {"machine": machine, "extent": extent, "text": "t", "rows": [made_row(cost)], "failures": {"int8": "why"}}
    text = report(found)
    assert f"the default, auto (int4), costs {said} of the perplexity" in text
    assert "int8  not measured: why" in text
    assert " 12.2 " in text


def test_a_run_prints_and_writes_what_it_found(default_path, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(accuracy, "Extent", lambda windows: Extent(windows, window=256, prompts=2, prompt=8, new=4))
    parser = argparse.ArgumentParser()
    SUITE.add_arguments(parser)
    words = ["--model", str(default_path), "--formats", "bfloat16/torch", "--windows", "1"]
    SUITE.run(parser.parse_args([*words, "--out", str(tmp_path / "out.json")]))
    found = json.loads((tmp_path / "out.json").read_text())
    (row,) = found["rows"]
    assert (row["name"], row["held"], row["tokens"]) == ("bfloat16/torch", "bfloat16", 128)
    assert 0 < row["kl"] < 0.01
    assert 0 < row["layer_mean"] < 0.01
    assert report(found) in capsys.readouterr().out


def test_a_text_that_is_too_short_is_said_in_one_line(default_path, tmp_path):
    text = tmp_path / "short.txt"
    text.write_text("Well, Prince.")
    asked = AccuracySettings(text, [Variant("auto", kernels=False)], Extent(1))
    found = SUITE.measure(asked, default_path, silent)
    assert found["failures"] == {"auto/torch": "short.txt has 4 tokens, but one window takes 2048: use more text"}


def test_the_default_format_costs_at_most_a_hundredth_of_its_perplexity():
    """`dtype="auto"` takes a quantized file's own precision, and bfloat16 or float32 for others."""
    rows = {row["name"]: row for row in SHIPPED["rows"]}
    for name in ("auto", "bfloat16", "auto/torch"):
        assert rows[name]["cost"] + 2 * rows[name]["cost_error"] < BOUND, name
    assert SHIPPED["failures"] == {}


def test_tasks_are_compared_where_the_original_is_clearly_above_chance():
    able = [Answer(1.0, 0.25)] * 30 + [Answer(0.0, 0.25)] * 10
    guessing = [Answer(float(i % 4 == 0), 0.25) for i in range(40)]
    others = {"small": [Answer(1.0, 0.25)] * 20 + [Answer(0.0, 0.25)] * 20}
    clear, unclear = compared("story_choices", able, others), compared("story_letters", guessing, others)
    assert (clear["original"], clear["chance"], clear["is_clear"]) == (0.75, 0.25, True)
    assert clear["others"]["small"]["share"] == 0.5
    middle, low, high = clear["others"]["small"]["change"]
    assert middle == -0.25
    assert -0.45 < low < -0.25 < high < -0.05
    assert not unclear["is_clear"]
    said = report({"machine": SHIPPED["machine"], "rows": [], "failures": {}, "extent": {"new": 64},
                   "questions": [clear, unclear]})  # fmt: skip
    assert "-25.0 (" in said
    assert "story_letters: the original has 25.0 % of 40 right, not clearly above chance (25 %)" in said


def test_a_sample_of_lm_eval_is_right_or_wrong_and_guesses_have_as_many_choices():
    assert answer_of({"acc": 1.0, "acc_norm": 0.0, "resps": [1, 2, 3, 4]}) == Answer(1.0, 0.25)
    assert answer_of({"exact_match": 0.0, "resps": [["cellar"]]}) == Answer(0.0, 0.0)


def test_documents_are_asked_of_other_checkpoints_alone():
    assert settings("--against", ".", "--docs", "3").docs == 3
    with pytest.raises(UsageError, match="name them with --against"):
        settings("--docs", "3")
    with pytest.raises(UsageError, match="--docs must be 0 or more"):
        settings("--against", ".", "--docs", "-1")


def test_a_checkpoint_is_asked_what_the_original_is(tmp_path):
    (tmp_path / "text").write_text("Begin with 12. Add 5. " * 60)
    variant = Variant("float32", native_kernels(), source="outlay/tiny-reasoner")
    extent = Extent(windows=1, window=64, prompts=1, prompt=8, new=2)
    chosen = AccuracySettings(tmp_path / "text", [variant], extent, docs=2)
    found = SUITE.measure(chosen, hub.resolve("outlay/tiny-reasoner"), silent)
    assert not found["failures"]
    assert [each["task"] for each in found["questions"]] == list(ASKED)
    for each in found["questions"]:
        assert each["docs"] == 2
        assert each["others"][variant.name]["share"] == each["original"], "the same weights answer the same"
