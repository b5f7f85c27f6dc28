"""The shrink suite: its options, and its report and plot over rows made by hand."""

from __future__ import annotations

import argparse

import pytest

from outlay import machine
from outlay.bench.shrink.plot import write_plot
from outlay.bench.shrink.report import report
from outlay.bench.shrink.suite import METHODS, SUITE
from outlay.errors import UsageError
from outlay.shrink.catalog import make


def settings(*words):
    parser = argparse.ArgumentParser()
    SUITE.add_arguments(parser)
    return SUITE.settings(parser.parse_args(words))


def row(method, bits, error, ratio):
    text = {"ratio": [ratio, ratio - 0.1, ratio + 0.1], "perplexity": 11.0, "kl": 0.1, "agreement": 0.8, "same": 9.0}
    return {"method": method, "bits": bits, "file_bits": bits + 2, "error": error, "unfed_error": 4 * error,
            "seconds": 12.3, "tokens": 64, "text": "a", "texts": {"documentation": text}}  # fmt: skip


ROWS = [
    row("gptq:bits=3", 3.53, 0.01, 2.4),
    row("pvq:pulses=27", 3.27, 0.005, 1.2),
    row("vptq:k_res=0", 2.1, 0.03, 5.0),
]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--methods", "gptk"], "no method 'gptk' that shrinks"),
        (["--methods", ""], "--methods names none"),
        (["--windows", "0"], "--windows must be 1 or more"),
        (["--texts", "nowhere"], "there is no text nowhere"),
    ],
)
def test_options_that_cannot_be_used_are_refused_in_one_line(words, message):
    with pytest.raises(UsageError, match=message):
        settings(*words)


def test_the_suites_own_methods_exist():
    assert [make(method, None).about.name for method in METHODS][:2] == ["rtn", "gptq"]


def test_the_report_has_a_line_for_each_method_and_the_ratios_of_their_errors():
    text = report({"machine": machine.describe(("torch",)) | {"seconds": 1.0, "model": "m"}, "rows": ROWS})
    assert [line.split()[:3] for line in text.splitlines() if line.startswith("pvq:")] == [
        ["pvq:pulses=27", "3.270", "5.270"]
    ]
    assert "error of pvq:pulses=27 over gptq:bits=3" in text
    assert "0.500" in text
    assert "1.200 (1.100-1.300)" in text


def test_bytes_of_a_pass_are_told_beside_those_of_4_bits():
    rows = [each | {"pass_bytes": 50_000_000 + place} for place, each in enumerate(ROWS)]
    facts = machine.describe(("torch",)) | {"seconds": 1.0, "model": "m"}
    text = report({"machine": facts, "rows": rows, "pass_bytes_int4": 100_000_000})
    assert [line.split() for line in text.splitlines()][-1] == ["vptq:k_res=0", "50.0", "0.500"]


def test_the_plot_is_written(tmp_path):
    pytest.importorskip("matplotlib")
    write_plot(ROWS, tmp_path / "plot.svg")
    assert "pvq" in (tmp_path / "plot.svg").read_text()
