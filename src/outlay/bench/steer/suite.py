"""`outlay bench steer`: what constraints cost and do to texts, what a reward costs, what models copy, and thinking
within a budget.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from outlay.bench.interleave import Participant, interleave
from outlay.bench.options import names, refuse_below_one
from outlay.bench.steer import budgets, copying, rewards, toy
from outlay.bench.steer.budgets import ThinkingSettings
from outlay.bench.steer.official import graded
from outlay.bench.steer.ours import Ours
from outlay.bench.steer.peers import PEERS
from outlay.bench.steer.report import AWRS, CONSTRAINTS, COPYING, MASKS, REWARDS, THINKING, report
from outlay.bench.steer.tasks import (
    DATE,
    FORMS,
    GREEDY,
    JSON,
    LONG_STRINGS,
    LOOKUP,
    OWN,
    PEOPLE,
    PROMPTS,
    SAMPLE,
    STRINGS,
    Checks,
    FirstMask,
    Pace,
    SteerTask,
    Texts,
)
from outlay.bench.steer.thinker import ThinkerRecipe
from outlay.bench.suite import Suite
from outlay.engine.engine import Engine
from outlay.errors import UsageError
from outlay.lm import LM
from outlay.models.load import load_model
from outlay.progress import ShowProgress

PARTS = (CONSTRAINTS, REWARDS, COPYING, THINKING)
TASK_LIMIT = 1200.0  # seconds: masks by a checker ask it a million times


@dataclass(frozen=True)
class SteerSettings:
    """What the suite measures."""

    count: int
    """Texts of a method in a round."""
    draws: int
    """Texts that rejection draws at most."""
    particles: int
    """Of AWRS."""
    max_tokens: int
    new: int
    """Tokens of a long text, by which the pace is measured."""
    runs: int
    """Of AWRS on chains whose texts are enumerated."""
    peers: tuple[str, ...]
    rounds: int
    parts: tuple[str, ...] = PARTS
    problems: int = 12
    """Problems on which a reward is decoded for."""
    texts: int = 50
    """Texts of a way to decode on each of them."""
    rollouts: int = 4
    """Of transfer_q, for each candidate."""
    steps: int = 400
    """Training steps of each of the models that copy."""
    thinking: ThinkingSettings = field(default_factory=ThinkingSettings)

    @property
    def methods(self) -> dict[str, str]:
        """The methods of ours, by what they are called in the report."""
        return {
            MASKS: SAMPLE,
            "rejection": f"rejection:draws={self.draws}",
            f"best valid one of {self.draws}": f"rejection:draws={self.draws},by=logprob",
            AWRS: f"awrs:particles={self.particles}",
        }

    def tasks(self, lm: LM) -> list[SteerTask]:
        """Returns all tasks, in their order; `lm` tells the tokens of prompts."""
        methods = self.methods
        asked = {name: tuple(lm.encode(prompt)) for name, prompt in PROMPTS.items()}
        texts = [
            Texts(name, method, asked[name], self.count, self.max_tokens)
            for name in (JSON, DATE)
            for method in (*methods.values(), OWN)
        ]
        checks = [
            Checks(form.name, methods[kind], tuple(lm.encode(form.prompt)), self.max_tokens)
            for form in FORMS
            for kind in (MASKS, AWRS)
        ]
        paces = [
            Pace(schema, method, temperature, asked[JSON], self.new)
            for method, temperature in ((GREEDY, 0.0), (SAMPLE, 1.0), (LOOKUP, 0.0))
            for schema in ("", PEOPLE)
        ]
        lengths = [Pace(schema, SAMPLE, 1.0, asked[JSON], self.new) for schema in (STRINGS, LONG_STRINGS)]
        return [*texts, *checks, *paces, *lengths, FirstMask(200)]


class SteerSuite(Suite[SteerSettings]):
    """Everyone takes turns at the same texts, with one thread."""

    packages = ("outlay", "torch", "llguidance", "jsonschema", "transformers", "genlm-control", "xgrammar",
                "llama-cpp-python")  # fmt: skip

    def add_options(self, parser: argparse.ArgumentParser) -> None:
        """Adds the options that no other suite has."""
        shown = "(%(default)s)"
        parser.add_argument("--count", type=int, default=2, metavar="N", help=f"texts of a method in a round {shown}")
        parser.add_argument("--draws", type=int, default=8, metavar="N", help=f"draws of rejection at most {shown}")
        parser.add_argument("--particles", type=int, default=5, metavar="N", help=f"particles of awrs {shown}")
        parser.add_argument("--max-tokens", type=int, default=64, metavar="N", help=f"tokens of a text at most {shown}")
        parser.add_argument("--new", type=int, default=64, metavar="N", help=f"tokens by which pace is told {shown}")
        parser.add_argument("--runs", type=int, default=200, metavar="N", help=f"runs on enumerated chains {shown}")
        parser.add_argument("--peers", default=",".join(PEERS), metavar="A,B", help=f"other libraries, or none {shown}")
        parser.add_argument("--steps", type=int, default=400, metavar="N", help=f"of training models that copy {shown}")
        parser.add_argument("--rounds", type=int, default=2, metavar="N", help=f"rounds after the warm-up {shown}")
        parser.add_argument("--parts", default=",".join(PARTS), metavar="A,B", help=f"what is measured {shown}")
        parser.add_argument("--problems", type=int, default=12, metavar="N", help=f"problems with a reward {shown}")
        parser.add_argument("--texts", type=int, default=50, metavar="N", help=f"texts of each of them {shown}")
        parser.add_argument("--rollouts", type=int, default=4, metavar="N", help=f"roll-outs of transfer_q {shown}")
        parser.add_argument("--chains", type=int, default=300, metavar="N", help=f"problems to think about {shown}")
        parser.add_argument("--learned", type=int, default=800, metavar="N",
                            help=f"texts that a predictor of thinking learns from {shown}")  # fmt: skip
        parser.add_argument("--folder", metavar="DIR", help="keep a model that thinks here, and go on with it")

    def settings(self, args: argparse.Namespace) -> SteerSettings:
        """Returns what the options ask for. Raises `UsageError` for what can't be used."""
        numbers = (
            "count",
            "draws",
            "particles",
            "max_tokens",
            "runs",
            "rounds",
            "problems",
            "texts",
            "rollouts",
            "steps",
            "chains",
            "learned",
        )
        refuse_below_one(args, *numbers)
        if args.new < 8:
            raise UsageError(f"--new must be 8 or more, not {args.new}")
        peers = () if args.peers == "none" else names("peer", args.peers, tuple(PEERS))
        return SteerSettings(
            args.count, args.draws, args.particles, args.max_tokens, args.new, args.runs, peers, args.rounds,
            names("part", args.parts, PARTS), args.problems, args.texts, args.rollouts, args.steps,
            ThinkingSettings(args.chains, args.learned, args.folder),
        )  # fmt: skip

    def measure(self, settings: SteerSettings, model: Path, progress: ShowProgress) -> dict[str, Any]:
        """Returns what each part gives, under its own keys."""
        found: dict[str, Any] = {"settings": asdict(settings) | {"methods": settings.methods}, "failures": {}}
        if CONSTRAINTS in settings.parts:
            found |= self._constraints(settings, model, progress)
        if REWARDS in settings.parts:
            found[REWARDS] = rewards.measured(settings.problems, settings.texts, settings.rollouts, progress)
        if COPYING in settings.parts:
            found[COPYING] = copying.measured(settings.steps, progress)
        if THINKING in settings.parts:
            found[THINKING] = budgets.measured(settings.thinking, ThinkerRecipe(), progress)
        return found

    def _constraints(self, settings: SteerSettings, model: Path, progress: ShowProgress) -> dict[str, Any]:
        """Returns a series of each value, an entry a round, by participant and task, and the chains' distances."""
        tasks, everyone = settings.tasks(LM(load_model(model), Engine())), participants(settings, model)
        found = interleave(everyone, tasks, settings.rounds, task_limit=TASK_LIMIT, progress=progress)
        values = [
            {"name": each.name, "task": type(task).__name__, **_without_prompt(task), "values": series}
            for each in everyone
            for task in tasks
            if (series := found.values.get((each.name, task))) is not None
        ]
        progress("the JSON Schema suite, and enumerated chains", 0, 1)
        return {
            "values": values,
            "official": graded(),
            "toy": toy.measured(64, settings.runs),
            "facts": found.facts,
            "failures": found.failures,
        }

    def report(self, found: Mapping[str, Any]) -> str:
        """Returns the report as text."""
        return report(found)

    def failure(self, found: Mapping[str, Any]) -> str | None:
        """Returns why our own methods could not be measured, None where they were."""
        failures: Mapping[str, str] = found["failures"]
        return failures.get("outlay")


def participants(settings: SteerSettings, model: Path) -> list[Participant]:
    """Returns everyone who takes part; ours in float32 too where a peer computes in it."""
    everyone: list[Participant] = [Ours(str(model))]
    if "genlm-control" in settings.peers:
        everyone.append(Ours(str(model), "float32", (settings.methods[MASKS], settings.methods[AWRS])))
    return [*everyone, *(PEERS[name](model) for name in settings.peers)]


def _without_prompt(task: SteerTask) -> dict[str, Any]:
    return {name: value for name, value in asdict(task).items() if name != "prompt"}


SUITE = SteerSuite()
