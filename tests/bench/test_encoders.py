"""The encoders suite: forms are compared with their peers, and what is missing is named."""

from __future__ import annotations

import pytest
import torch
import transformers

from outlay.bench.encoders import forms, report
from outlay.bench.encoders.forms import beam_search, measure_forms
from outlay.bench.encoders.plot import write_rates
from outlay.bench.encoders.speech import different
from outlay.bench.encoders.suite import SUITE, EncodersSettings
from outlay.errors import FailureError


def silent(phase, done, total):
    pass


def test_a_form_is_that_of_transformers_and_mu_that_of_its_network(tmp_path, monkeypatch):
    monkeypatch.setattr(forms, "FORMS", {"T5": forms.FORMS["T5"]})
    rows = measure_forms(transformers, tmp_path, silent)
    assert [row["form"] for row in rows] == ["T5", "Mu"]
    for row in rows:
        assert 0 < row["log_prob"] < 1e-4
        assert row["greedy"] == row["beam"] == row["inputs"] == 3
        assert row["encoder_passes"] == 1


def test_a_form_that_differs_is_seen(tmp_path, monkeypatch):
    monkeypatch.setattr(forms, "FORMS", {"T5": forms.FORMS["T5"]})
    made = forms._of_transformers

    def other(peer, name, folder):
        pair = made(peer, name, folder)
        return pair._replace(
            logits=lambda given, text: pair.logits(given, text) + torch.linspace(0, 1, forms.VOCAB),
            write=lambda given, width: [7],
        )

    monkeypatch.setattr(forms, "_of_transformers", other)
    row, _ = measure_forms(transformers, tmp_path, silent)
    assert row["log_prob"] > 0.1
    assert row["greedy"] == row["beam"] == 0


def test_a_beam_search_finds_a_text_that_begins_less_probable():
    """One token is likely at first, and all after it are not; the best text goes the other way."""

    def after(texts):
        rows = []
        for text in texts:
            probs = torch.full((forms.VOCAB,), 1e-6)
            if not text:
                probs[10], probs[11] = 0.6, 0.4
            elif text[0] == 10:
                probs[20:40] = 0.05
            else:
                probs[forms.EOS] = 1.0
            rows.append(probs.log())
        return rows

    assert beam_search(after, 1)[0] == 10
    assert beam_search(after, 3) == [11, forms.EOS]


def test_words_that_differ_are_counted():
    assert different(["a", "b", "c"], ["a", "b", "c"]) == 0
    assert different(["a", "x", "c"], ["a", "b", "c", "d"]) == 2
    assert different([], ["a"]) == different(["a"], []) == 1


def test_the_plot_has_a_line_for_each_network_with_rates_new_and_trained(tmp_path):
    pytest.importorskip("matplotlib")
    rates = {"before": {"0.01": [4.0, 3.0]}, "after": {"0.01": [2.0, 1.0]}}
    nets = [{"name": "CRATE, seed 7", **rates}, {"name": "a transformer", "before": None, "after": None}]
    write_rates(nets, "0.01", tmp_path / "rates.svg")
    picture = (tmp_path / "rates.svg").read_text()
    assert "CRATE, seed 7, new" in picture
    assert "CRATE, seed 7, trained" in picture
    assert "transformer" not in picture


def test_a_part_that_can_not_be_measured_is_named_with_its_reason(tmp_path, monkeypatch):
    def absent(part, *_):
        raise FailureError(f"no peer for {part}")

    monkeypatch.setattr("outlay.bench.encoders.suite._part", absent)
    settings = EncodersSettings(("forms", "crate"), 1, 10, 1)
    found = SUITE.measure(settings, tmp_path, silent) | {
        "machine": {"model": "encoders", "processor": "P", "cores": 1, "date": "D", "versions": {}}
    }
    assert SUITE.failure(found) == "forms: no peer for forms; crate: no peer for crate"
    text = report.report(found)
    assert "forms\nnot measured: no peer for forms" in text
    assert "speech" not in text
