"""The shrink suite: its options, and its report and plot over rows made by hand."""

from __future__ import annotations

import argparse
import json
from importlib import import_module

import pytest
import torch

from outlay import machine
from outlay.bench.shrink import quantizers
from outlay.bench.shrink.peers import DEFAULTS, PEERS, Peer, run_peer, write_floats
from outlay.bench.shrink.plot import write_plot
from outlay.bench.shrink.report import report
from outlay.bench.shrink.suite import METHODS, SUITE
from outlay.errors import FailureError, UsageError
from outlay.models import hub
from outlay.models.linear import weight_of
from outlay.models.load import load_model
from outlay.shrink.catalog import make

REASONER = "outlay/tiny-reasoner"


def settings(*words):
    parser = argparse.ArgumentParser()
    SUITE.add_arguments(parser)
    return SUITE.settings(parser.parse_args(words))


def row(method, bits, error, ratio):
    text = {"ratio": [ratio, ratio - 0.1, ratio + 0.1], "perplexity": 11.0, "kl": 0.1, "agreement": 0.8, "same": 9.0}
    return {"method": method, "bits": bits, "file_bits": bits + 2, "error": error, "unfed_error": 4 * error,
            "cpu_seconds": 12.3, "tokens": 64, "text": "a", "texts": {"documentation": text}}  # fmt: skip


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
        (["--peers", "hqqq"], r"no peer 'hqqq' \(did you mean 'hqq'"),
        (["--peers", "hqq:grup=64"], "hqq has no option 'grup'; it has bits, group"),
        (["--peers", "hqq:bits=three"], "bits of hqq is a number, not 'three'"),
        (["--python", "hqq=nowhere"], "--python is PEER=FILE"),
    ],
)
def test_options_that_cannot_be_used_are_refused_in_one_line(words, message):
    with pytest.raises(UsageError, match=message):
        settings(*words)


def test_the_suites_own_methods_exist():
    assert [make(method, None).about.name for method in METHODS][:2] == ["rtn", "gptq"]
    assert {Peer.of(peer).name for peer in PEERS} == set(DEFAULTS) == set(quantizers.PEERS)


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


def test_a_peer_has_a_row_without_errors_and_one_that_failed_its_reason():
    peer = row("hqq:bits=3", 3.7, 0.0, 2.0) | {"error": None, "unfed_error": None}
    facts = machine.describe(("torch",)) | {"seconds": 1.0, "model": "m"}
    text = report({"machine": facts, "rows": [*ROWS, peer], "failures": {"quanto:bits=2": "No module"}})
    assert [line.split()[3:6] for line in text.splitlines() if line.startswith("hqq")] == [["-", "-", "2.000"]]
    assert ["quanto:bits=2", "not measured: No module"] in [line.split("  ") for line in text.splitlines()]


@pytest.fixture(scope="module")
def floats(tmp_path_factory):
    """The tiny reasoner for peers, its matrices in float32."""
    folder = tmp_path_factory.mktemp("floats")
    write_floats(hub.resolve(REASONER), folder)
    return folder


def test_what_peers_start_from_is_the_model(floats):
    ours, theirs = (load_model(each, dtype="float32").decoder for each in (REASONER, floats))
    assert torch.equal(weight_of(ours.lm_head), weight_of(theirs.lm_head))
    for one, other in zip(ours.layers, theirs.layers, strict=True):
        assert torch.equal(weight_of(one.qkv), weight_of(other.qkv))
        assert torch.equal(weight_of(one.mlp.down), weight_of(other.mlp.down))


def test_a_peer_that_cannot_is_named_with_its_reason(floats, tmp_path):
    with pytest.raises(FailureError, match=r"llama\.cpp reads \.gguf files only"):
        run_peer(Peer.of("llama.cpp"), None, floats, floats, [[5, 9]], tmp_path / "out")
    assert not (tmp_path / "out").exists()


class Halves:
    """Stands for `hqq.core.quantize`: a matrix in half precision, whose code is twice as large as 2 bits a weight."""

    @staticmethod
    def BaseQuantizeConfig(nbits, group_size):
        return nbits, group_size

    class HQQLinear:
        def __init__(self, layer, config, compute_dtype, device, del_orig):
            self.weight = layer.weight.detach().to(compute_dtype)
            self.W_q = torch.zeros(layer.weight.numel() // 4, dtype=torch.uint8)
            self.meta = {"scale": torch.zeros(layer.weight.numel() // 8, dtype=torch.float16), "nbits": config[0]}

        def dequantize(self):
            return self.weight


def test_what_a_peer_makes_loads_and_its_bits_are_those_of_what_it_stores(floats, tmp_path, monkeypatch):
    pytest.importorskip("transformers")
    monkeypatch.setattr(quantizers, "import_module", lambda name: Halves if "hqq" in name else import_module(name))
    monkeypatch.setattr(quantizers, "version", lambda name: "9")
    out = tmp_path / "out"
    out.mkdir()
    job = {"peer": "hqq", "options": {"bits": 2, "group": 64}, "floats": str(floats), "out": str(out)}
    facts = quantizers.hqq(job)
    assert facts["version"] == "hqq 9"
    ours, theirs = (load_model(each, dtype="float32").decoder.layers[1] for each in (floats, out))
    assert torch.equal(weight_of(theirs.qkv), weight_of(ours.qkv).half().float())
    (out / "peer.json").write_text(json.dumps(facts))
    made = run_peer(Peer.of("hqq"), None, floats, floats, [], out)  # takes what is there
    assert made.facts["bits"] == 4
    assert 4 < made.facts["file_bits"] < 16


def test_the_plot_is_written(tmp_path):
    pytest.importorskip("matplotlib")
    write_plot([*ROWS, row("gptq:bits=2", 2.3, 0.2, 6834.0)], tmp_path / "plot.svg")
    text = (tmp_path / "plot.svg").read_text()
    assert "pvq" in text
    assert "beyond the plot: gptq:bits=2 6834" in text
