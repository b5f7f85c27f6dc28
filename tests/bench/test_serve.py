"""The load suite on a tiny model, and what its report says of servers that are not there."""

from __future__ import annotations

import argparse
import sys

import pytest
from serve.checkpoints import write_checkpoint
from serve.running import start

from outlay.bench.serve import suite
from outlay.bench.serve.client import load
from outlay.bench.serve.report import ENGINE, report
from outlay.bench.serve.servers import Server, serving
from outlay.errors import FailureError, UsageError


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_checkpoint(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture(scope="module")
def server(folder):
    running = start({"bench": folder})
    yield running
    running.stop()


def test_clients_get_the_texts_and_their_times(server):
    found = load(server.url, "bench", ["One.", "Two."], 6, method="greedy")
    lm = server.service.models.find("bench").lm
    assert [answer.text for answer in found.answers] == [
        lm.generate(text, max_tokens=6).text for text in ("One.", "Two.")
    ]
    assert [answer.tokens for answer in found.answers] == [6, 6]
    assert all(0 < answer.first < found.seconds for answer in found.answers)
    with pytest.raises(FailureError, match="status 404"):
        load(server.url, "other", ["One."], 6)


@pytest.mark.parametrize("given", ["transformers", "transformers=", "outlay=python", "other=python"])
def test_an_interpreter_belongs_to_another_server(given):
    parser = argparse.ArgumentParser()
    suite.SUITE.add_options(parser)
    assert suite.SUITE.settings(parser.parse_args(["--python", "transformers=p"])).pythons == {"transformers": "p"}
    with pytest.raises(UsageError, match="NAME=PYTHON"):
        suite.SUITE.settings(parser.parse_args(["--python", given]))


@pytest.mark.parametrize(("python", "says"), [(sys.executable, "not installed"), ("/no/python", "does not run")])
def test_a_server_that_can_not_be_had_says_why(tmp_path, monkeypatch, python, says):
    monkeypatch.setattr("outlay.bench.serve.servers.MODULES", {"transformers": ("no_such_module",)})
    with pytest.raises(FailureError, match=says), serving("transformers", tmp_path, 1, 1, {"transformers": python}):
        pass


def test_the_report_has_a_row_for_each_load(server, folder, monkeypatch):
    class Here:
        def __init__(self, name, *rest):
            if name != "outlay":
                raise FailureError("not installed")
            self.server = Server(name, server.url, "bench")

        def __enter__(self):
            return self.server

        def __exit__(self, *error):
            pass

    monkeypatch.setattr(suite, "serving", Here)
    settings = suite.ServeSettings(("outlay", "transformers"), (1, 3), 4, 1, 2, "greedy")
    found = suite.SUITE.measure(settings, folder, lambda *told: None)
    assert set(found["rows"]) == {ENGINE, "outlay"}
    assert [len(rounds) for rounds in found["rows"]["outlay"].values()] == [2, 2]
    about = {"cpu": "x", "cores": 1, "memory_gb": 1, "flags": [], "packages": {}, "model": "tiny", "seconds": 1}
    monkeypatch.setattr("outlay.machine.heading", lambda *told: str(about["model"]))
    text = report(found | {"machine": about})
    assert "not measured: not installed" in text
    assert text.count("outlay  ") >= 2
