"""A method or a cache policy in a separate package is as good as ours: found, listed, run, with the same properties."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass

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

[project.entry-points."outlay.shrinkers"]
signs = "signs:Signs"

[tool.setuptools]
py-modules = ["second_best", "first_and_last", "signs"]
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

SHRINKER = '''
"""Keeps the signs of weights, and the mean size of those that share a scale."""

from dataclasses import dataclass
from typing import Any, ClassVar

import torch

from outlay import About
from outlay.models.forms.gptq import gptq_tensors
from outlay.shrink import Moment, Shrinker, Shrunk


@dataclass(frozen=True)
class Signs(Shrinker):
    group: int = 32

    about: ClassVar[About] = About(
        name="signs", summary="signs and mean sizes", paper="", family="demonstration", spends="nothing",
        saves="bytes of weights", exact=False, task="shrink", command="outlay shrink MODEL --method signs --out DIR",
    )

    @classmethod
    def at_bits(cls, bits: float) -> dict[str, Any]:
        return {}

    def shrink(self, weight: torch.Tensor, moment: Moment, name: str) -> Shrunk:
        groups = weight.unflatten(1, (-1, self.group))
        scales = groups.abs().mean(-1).half().float()
        codes = torch.where(groups < 0, 1, 3)
        of = torch.arange(weight.shape[1]) // self.group
        tensors = gptq_tensors(codes.flatten(1), scales, torch.full(scales.shape, 2), of, 2)
        return Shrunk(tensors, ((codes - 2) * scales[:, :, None]).flatten(1))

    def quantization_config(self) -> dict[str, Any]:
        return {"quant_method": "gptq", "bits": 2, "group_size": self.group, "sym": False, "desc_act": False}
'''

COMMANDS = """
import contextlib, io, json, sys
from outlay.cli import main
for line in sys.stdin:
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        status = main(json.loads(line))
    print(json.dumps([status, out.getvalue(), err.getvalue()]), flush=True)
"""

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
    (source / "signs.py").write_text(SHRINKER)
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


@dataclass(frozen=True)
class Answer:
    """What a command wrote, and its exit status."""

    status: int
    out: str
    err: str


@pytest.fixture(scope="module")
def outlay(environment):
    """Runs commands in one process that sees the package: `answer = outlay("methods")`."""
    command = [sys.executable, "-c", COMMANDS]
    with subprocess.Popen(
        command, env=environment[1], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1
    ) as process:

        def run(*words):
            process.stdin.write(json.dumps(words) + "\n")
            return Answer(*json.loads(process.stdout.readline()))

        yield run
        process.stdin.close()


def test_it_is_in_the_catalogue(outlay):
    assert "second_best" in outlay("methods").out
    assert "k-th most probable" in outlay("methods", "second_best").out


def test_it_runs_from_the_command_line(environment, default_path):
    answer = run(
        environment, "outlay", "run", "Hello", "--model", str(default_path), "--method", "second_best:k=2",
        "--max-tokens", "4", "--json",
    )  # fmt: skip
    assert answer.returncode == 0, answer.stderr
    result = json.loads(answer.stdout)
    assert len(result["tokens"]) == result["ledger"]["target_passes"] == 4


def test_its_policy_is_in_the_catalogue_and_runs_from_the_command_line(outlay, default_path):
    assert "the first tokens and the last ones" in outlay("methods", "first_and_last").out
    asked = ("run", "Tell me of the sea", "--model", str(default_path), "--max-tokens", "4", "--json")
    answer = outlay(*asked, "--cache", "first_and_last:first=1,last=3")
    assert answer.status == 0, answer.err
    result = json.loads(answer.out)
    assert len(result["tokens"]) == 4
    held, dense = (result["ledger"]["extras"][name] for name in ("kv_payload", "kv_dense"))
    assert 0 < held < dense
    wrong = outlay(*asked, "--cache", "first_and_lost")
    assert wrong.status == 2
    assert "did you mean 'first_and_last'" in wrong.err


def test_it_has_the_properties_that_ship_with_the_package(environment):
    folder, _ = environment
    outcome = run(environment, "pytest", "-q", "-p", "no:cacheprovider", str(folder / "test_second_best.py"))
    assert outcome.returncode == 0, outcome.stdout
    assert "25 passed" in outcome.stdout


def test_a_method_that_shrinks_is_listed_and_writes_a_folder_that_runs(outlay, tmp_path):
    assert "signs and mean sizes" in outlay("methods").out
    (tmp_path / "text").write_text("Begin with 12. Add 5. " * 40)
    small = str(tmp_path / "small")
    shrunk = outlay(
        "shrink", "outlay/tiny-reasoner", "--method", "signs:group=64", "--out", small,
        "--calib", str(tmp_path / "text"), "--tokens", "64", "--json",
    )  # fmt: skip
    assert shrunk.status == 0, shrunk.err
    report = json.loads(shrunk.out)
    assert report["method"] == "signs:group=64"
    assert 0 < report["error"] < 1
    checked = outlay("shrink", "--check", small)
    assert checked.status == 0, checked.out + checked.err
    answer = outlay("run", "Begin with 12.", "--model", small, "--max-tokens", "4", "--json")
    assert answer.status == 0, answer.err
    assert json.loads(answer.out)["tokens"]
