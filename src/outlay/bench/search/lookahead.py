"""AdaDec beside greedy decoding, beam search and its own controls, on problems or on code with tests.

The threshold is learned in the same run, from references of other tasks than those that are measured.
"""

from __future__ import annotations

import gzip
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from outlay import problems
from outlay.compare.execute import passes_tests
from outlay.compare.forced import logprobs
from outlay.decode.beam import Beam
from outlay.decode.greedy import Greedy
from outlay.decode.search.adadec import AdaDec
from outlay.engine.engine import Engine
from outlay.engine.handle import Result
from outlay.engine.method import Method
from outlay.engine.random import mix
from outlay.errors import UsageError
from outlay.lm import LM
from outlay.models.load import load_model
from outlay.problems import minilist
from outlay.progress import ShowProgress, silent
from outlay.search.answers import answer_of
from outlay.train.reference_code import Reference
from outlay.train.threshold import fit_threshold, forced_steps

GREEDY, BEAM, OURS = "greedy", "beam:width=3", "adadec"
UNUSED, ALWAYS, RANDOM = "adadec, nothing reused", "adadec, at every step", "adadec, at random steps"
RATE = 0.06  # of pauses: what the thresholds of DeepSeek-Coder 6.7B and Stable Code 3B give on reference code
FIELDS = {"prompt", "canonical_solution", "test", "entry_point"}  # of a line of HumanEval
TOGETHER = 8  # tasks that are worked on together; each spends what it spends alone


@dataclass(frozen=True)
class LookaheadSettings:
    """What is measured."""

    tasks: str
    """Problems of minilist, or with steps, or JSON lines in the form of HumanEval."""
    count: int
    """Tasks that are answered."""
    references: int
    """Tokens of other tasks' solutions that the threshold is learned from."""
    max_tokens: int
    seed: int


@dataclass(frozen=True)
class Task:
    """A prompt as text outside of a chat, its reference solution, and what tells whether a text is right."""

    prompt: str
    solution: str
    row: Mapping[str, Any]

    def right(self, text: str) -> bool:
        """Tells whether a text has the right answer, its function passes the tests, or its program all examples."""
        if "test" in self.row:
            return passes_tests(self.prompt, body(text), self.row["test"], self.row["entry_point"])
        if "private" in self.row:
            return minilist.pass_rate(text, self.row["private"]) == 1
        return answer_of(text) == self.row["answer"]


@dataclass(frozen=True)
class RandomPauses(AdaDec):
    """Pauses at steps that are drawn, in place of uncertain ones: a control. The catalogue does not list it."""

    rate: float = 0.0
    """Share of the steps that pause."""

    def uncertain(self, entropy: float, threshold: float, position: int) -> bool:
        """Tells whether the step was drawn, by bits of its entropy that say nothing of how large it is."""
        return mix(position, round(entropy * 2**30)) < self.rate * 2**64


def measured(settings: LookaheadSettings, model: Path, progress: ShowProgress) -> dict[str, Any]:
    """Returns what each contender gave and spent on each task, and the threshold that was learned."""
    lm = LM(load_model(str(model)), Engine(prefix_cache=False))
    asked, others = tasks_of(settings)
    progress("learning the threshold", 0, 1)
    pairs = [Reference(task.prompt, task.solution) for task in others]
    steps = forced_steps(lm, pairs, settings.references, settings.seed, silent)
    fit, rare = fit_threshold(steps), fit_threshold(steps, pause_rate=RATE).threshold
    rows = [answered(lm, settings, GREEDY, Greedy(), asked)]
    methods: dict[str, Method] = {
        BEAM: Beam(3),
        OURS: AdaDec(fit.threshold),
        UNUSED: AdaDec(fit.threshold, reuse=False),
        "adadec:line=true,lookahead=10": AdaDec(fit.threshold, lookahead=10, line=True),
        f"adadec, at {RATE:.0%} of the reference steps": AdaDec(rare),
        ALWAYS: AdaDec(-math.inf),
    }
    for name, method in methods.items():
        progress(name, len(rows), len(methods) + 2)
        rows.append(answered(lm, settings, name, method, asked))
    ours = next(row for row in rows if row["name"] == UNUSED)
    rate = sum(ours["pauses"]) / sum(ours["tokens"])
    rows.append(answered(lm, settings, RANDOM, RandomPauses(0.0, reuse=False, rate=rate), asked))
    lm.engine.close()
    return {"settings": asdict(settings), "threshold": vars(fit), "lookahead": rows}


def answered(lm: LM, settings: LookaheadSettings, name: str, method: Method, tasks: Sequence[Task]) -> dict[str, Any]:
    """Returns a series for each count, an entry a task.

    `right` is whether the answer is, `logprob` the mean log-probability of a token, `positions` are those behind the
    prompt.
    """
    results: list[Result] = []
    prompts = [lm.model.tokenizer.encode_prompt(task.prompt) for task in tasks]
    code = any("test" in task.row for task in tasks)
    for begin in range(0, len(tasks), TOGETHER):
        with lm.engine.together():
            handles = [
                lm.submit(prompt, method=method, max_tokens=settings.max_tokens, ignore_eos=code)
                for prompt in prompts[begin : begin + TOGETHER]
            ]
        results += [handle.result() for handle in handles]
    totals = logprobs(lm, prompts, [result.tokens for result in results])
    return {
        "name": name,
        "right": [float(task.right(result.text)) for task, result in zip(tasks, results, strict=True)],
        "logprob": [total / len(result.tokens) for total, result in zip(totals, results, strict=True)],
        "tokens": [float(len(result.tokens)) for result in results],
        "passes": [float(result.ledger.target_passes) for result in results],
        "positions": [
            float(result.ledger.target_tokens - len(prompt) + 1)
            for result, prompt in zip(results, prompts, strict=True)
        ],
        "pauses": [result.ledger.extras.get("pauses", 0.0) for result in results],
    }


def tasks_of(settings: LookaheadSettings) -> tuple[list[Task], list[Task]]:
    """Returns the tasks that are measured, and others to learn the threshold from.

    Raises:
        UsageError: For what is neither a set of such problems nor a file in the form of HumanEval.
    """
    path = Path(settings.tasks)
    if path.is_file():
        return _code(path, settings.count)
    counts = settings.count, settings.references  # as many references as tokens are more than enough
    made = (
        problems.make(f"{settings.tasks}:count={count},seed={settings.seed + at}") for at, count in enumerate(counts)
    )
    rows = [each or [] for each in made]
    if not all({"steps", "private"} & row.keys() for each in rows for row in each) or not rows[0]:
        raise UsageError(f"--lookahead takes minilist, chains, or a file of HumanEval, not {settings.tasks!r}")
    asked, others = ([Task(row["prompt"] + "\n", _solution(row), row) for row in each] for each in rows)
    return asked, others


def _solution(row: Mapping[str, Any]) -> str:
    return "\n".join(row["steps"]) if "steps" in row else str(row["answer"])


def _code(path: Path, count: int) -> tuple[list[Task], list[Task]]:
    """Reads the tasks of a file; those behind the first `count` are to learn from."""
    try:
        content = path.read_bytes()
        text = (gzip.decompress(content) if path.suffix == ".gz" else content).decode()
        rows = [json.loads(line) for line in text.splitlines() if line.strip()]
    except (OSError, ValueError) as error:
        raise UsageError(f"can't read {path}: {error}") from error
    if not all(isinstance(row, dict) and row.keys() >= FIELDS for row in rows):
        raise UsageError(f"{path} is not in the form of HumanEval: each line must have {', '.join(sorted(FIELDS))}")
    if len(rows) <= count:
        raise UsageError(f"{path} has {len(rows)} tasks; --count must leave some for the threshold")
    tasks = [Task(row["prompt"], row["canonical_solution"], row) for row in rows]
    return tasks[:count], tasks[count:]


def body(text: str) -> str:
    """Returns a function's body up to its first line that isn't indented, as HumanEval is scored."""
    kept = []
    for line in text.split("\n"):
        if line.strip() and not line.startswith((" ", "\t")):
            break
        kept.append(line)
    return "\n".join(kept) + "\n"
