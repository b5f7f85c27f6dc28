"""A method or a cache policy in a separate package is as good as ours: found, listed, run, with the same properties."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest
from engine.policies import source_of_the_page

PYPROJECT = """
[build-system]
requires = ["setuptools"]
build-backend = "setuptools.build_meta"

[project]
name = "outlay-second-best"
version = "1.0"

[project.entry-points."outlay.methods"]
second_best = "second_best:SecondBest"
first_and_last = "first_and_last:FirstAndLast"

[tool.setuptools]
py-modules = ["second_best", "first_and_last"]
"""

METHOD = '''
"""Takes the k-th most probable token each time."""

from dataclasses import dataclass
from typing import ClassVar

from outlay import About, Method, TreeRun, Work


@dataclass(frozen=True)
class SecondBest(Method):
    k: int = 2

    about: ClassVar[About] = About(
        name="second_best", summary="the k-th most probable token", paper="", family="demonstration",
        spends="one target pass a token", saves="nothing", exact=False,
    )

    def decode(self, run: TreeRun) -> Work:
        node = run.tip
        while True:
            logits = yield run.target.forward([node])
            node = run.commit(int(logits[0].topk(self.k).indices[-1]))
'''

PROPERTIES = """
from outlay.testing import MethodProperties, tiny_lm
from second_best import SecondBest
from first_and_last import FirstAndLast


class TestSecondBest(MethodProperties):
    method = SecondBest(k=3)


class TestSecondBestByName(MethodProperties):
    method = "second_best:k=2"


class TestGreedyUnderThePolicyByName(MethodProperties):
    method = "greedy"
    options = {"cache": "first_and_last:first=2,last=6"}


LONG = "A prompt that is longer than what is kept"


def test_the_name_is_the_class():
    how = {"max_tokens": 20, "ignore_eos": True}
    named = tiny_lm().generate(LONG, cache="first_and_last:first=2,last=6", **how)
    made = tiny_lm().generate(LONG, cache=FirstAndLast(first=2, last=6), **how)
    plain = tiny_lm().generate(LONG, **how)
    assert named.tokens == made.tokens
    assert named.ledger.kv_held == made.ledger.kv_held < plain.ledger.kv_held / 2
"""


@pytest.fixture(scope="module")
def environment(tmp_path_factory):
    """The package, built and installed into a folder of its own, and an environment that sees it."""
    source, target = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("target")
    (source / "pyproject.toml").write_text(PYPROJECT)
    (source / "second_best.py").write_text(METHOD)
    (source / "first_and_last.py").write_text(source_of_the_page())
    (target / "test_second_best.py").write_text(PROPERTIES)
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--no-build-isolation"]
    subprocess.run([*command, "--target", str(target), str(source)], check=True, timeout=120)
    path = os.pathsep.join([str(target), *filter(None, [os.environ.get("PYTHONPATH")])])
    return target, os.environ | {"PYTHONPATH": path}


def run(environment, *arguments):
    _, variables = environment
    return subprocess.run(
        [sys.executable, "-m", *arguments], env=variables, capture_output=True, text=True, timeout=300, check=False
    )


def test_it_is_in_the_catalogue(environment):
    listed = run(environment, "outlay", "methods")
    assert "second_best" in listed.stdout
    one = run(environment, "outlay", "methods", "second_best")
    assert "k-th most probable" in one.stdout


def test_it_runs_from_the_command_line(environment, default_path):
    answer = run(
        environment, "outlay", "run", "Hello", "--model", str(default_path), "--method", "second_best:k=2",
        "--max-tokens", "4", "--json",
    )  # fmt: skip
    assert answer.returncode == 0, answer.stderr
    result = json.loads(answer.stdout)
    assert len(result["tokens"]) == result["ledger"]["target_passes"] == 4


def test_its_policy_is_in_the_catalogue_and_runs_from_the_command_line(environment, default_path):
    assert "the first tokens and the last ones" in run(environment, "outlay", "methods", "first_and_last").stdout
    asked = ("outlay", "run", "Tell me of the sea", "--model", str(default_path), "--max-tokens", "4", "--json")
    answer = run(environment, *asked, "--cache", "first_and_last:first=1,last=3")
    assert answer.returncode == 0, answer.stderr
    result = json.loads(answer.stdout)
    assert len(result["tokens"]) == 4
    held, dense = (result["ledger"]["extras"][name] for name in ("kv_payload", "kv_dense"))
    assert 0 < held < dense
    wrong = run(environment, *asked, "--cache", "first_and_lost")
    assert wrong.returncode == 2
    assert "did you mean 'first_and_last'" in wrong.stderr


def test_it_has_the_properties_that_ship_with_the_package(environment):
    folder, _ = environment
    outcome = run(environment, "pytest", "-q", "-p", "no:cacheprovider", str(folder / "test_second_best.py"))
    assert outcome.returncode == 0, outcome.stdout
    assert "25 passed" in outcome.stdout
