"""`outlay methods`, `outlay models`, `outlay pull`, `outlay bench`, and the help."""

from __future__ import annotations

import argparse
import itertools
import json
import types

import pytest

import outlay as package
from outlay import catalog
from outlay.cli import COMMANDS
from outlay.shrink.catalog import shrinkers


def test_methods_lists_the_whole_catalogue(outlay):
    status, out, _ = outlay("methods")
    assert status == 0
    for name, method in catalog.entries().items():
        assert name in out
        assert method.about.summary[:20] in out


def test_a_method_is_explained_with_its_options_and_defaults(outlay):
    _, out, _ = outlay("methods", "beam")
    assert "width           4        a whole number" in out
    assert "early_stopping  false    true or false or never" in out
    assert out.rstrip().endswith("--method beam:width=4")


def test_each_option_stands_on_a_line_of_its_own_with_what_it_does_below(outlay):
    _, out, _ = outlay("methods", "beam")
    lines = out.splitlines()
    for option in catalog.options(catalog.find("beam")):
        assert option.doc
        (place,) = (number for number, line in enumerate(lines) if line.split()[:1] == [option.name])
        below = list(itertools.takewhile(lambda line: line.startswith("    "), lines[place + 1 :]))
        assert " ".join(line.strip() for line in below) == option.doc


def test_what_an_option_does_is_wrapped_to_the_terminal(outlay, monkeypatch):
    monkeypatch.setenv("COLUMNS", "50")
    _, out, _ = outlay("methods", "beam")
    listed = out[out.index("option  ") : out.index("outlay run")]
    assert max(map(len, listed.splitlines())) <= 50


@pytest.mark.parametrize("name", catalog.methods())
def test_the_example_of_every_method_can_be_parsed(outlay, name):
    _, out, _ = outlay("methods", name)
    written = out.rstrip().rpartition("--method ")[2]
    if not written.endswith("=VALUE"):
        assert catalog.parse(written).about.name == catalog.find(name).about.name


def test_methods_as_json(outlay):
    rows = json.loads(outlay("methods", "--json")[1])
    assert [row["name"] for row in rows] == [*catalog.entries(), *shrinkers()]
    beam = json.loads(outlay("methods", "beam", "--json")[1])
    assert beam in rows
    doc = beam["options"][0].pop("doc")
    assert beam["options"][0] == {"name": "width", "type": "a whole number", "default": "4"}
    assert doc.startswith("Beams that are extended")


def test_models_names_the_default_its_licence_and_what_runs(outlay):
    status, out, _ = outlay("models")
    assert status == 0
    for part in ("smollm2-135m", "Apache-2.0", "98.4 MB", "(the default)", "llama", "passes"):
        assert part in out


def test_models_as_json(outlay, monkeypatch, tmp_path):
    monkeypatch.setenv("OUTLAY_CACHE", str(tmp_path))
    facts = json.loads(outlay("models", "--json")[1])
    assert facts["models"][0]["path"] is None
    assert facts["cache"].startswith(str(tmp_path))
    assert facts["families"]["llama"] == "native"
    assert facts["families"]["gpt_neox"] == "transformers"


def test_models_tells_the_path_of_one(outlay, tmp_path):
    said = {}
    for family in ("llama", "gpt_neox", "nonesuch", "mamba"):
        (tmp_path / "config.json").write_text(json.dumps({"model_type": family}))
        said[family] = outlay("models", str(tmp_path), "--json")
    assert json.loads(said["llama"][1])["path"] == "native"
    assert json.loads(said["gpt_neox"][1])["path"] == "transformers"
    assert json.loads(said["nonesuch"][1])["path"] == "transformers, untried"
    assert said["mamba"][0] == 2
    assert "mamba remembers a text by more than attention's keys and values" in said["mamba"][2]
    packed = {"model_type": "llama", "quantization_config": {"quant_method": "awq"}}
    (tmp_path / "config.json").write_text(json.dumps(packed))
    assert "awq in the quantization_config" in outlay("models", str(tmp_path))[2]


def test_pull_prints_where_the_model_lies(outlay, tiny):
    assert outlay("pull", tiny) == (0, f"{tiny}\n", "")


def test_bench_hands_its_words_to_the_suite(outlay, monkeypatch):
    suite = types.SimpleNamespace()
    seen = []

    def add_arguments(parser: argparse.ArgumentParser):
        parser.add_argument("--threads", type=int)

    suite.add_arguments, suite.run = add_arguments, lambda args: seen.append(args.threads) or 3
    monkeypatch.setattr("outlay.bench.registry.find", {"speed": suite}.get)
    assert outlay("bench", "speed", "--threads", 2)[0] == 3
    assert seen == [2]
    assert outlay("bench", "speed", "--thread", 2)[2].startswith("outlay: there is no option --thread (did you mean")


def test_help_is_there_for_everything(outlay):
    assert all(name in outlay("--help")[1] for name in COMMANDS)
    assert outlay()[1] == outlay("--help")[1]
    for name in COMMANDS:
        status, out, err = outlay(name, "--help")
        assert (status, err) == (0, "")
        assert out.startswith(f"usage: outlay {name}")


def test_the_version(outlay):
    assert outlay("--version") == (0, f"outlay {package.__version__}\n", "")
