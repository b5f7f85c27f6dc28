"""Tokens a target pass: of chains and trees of at most `NODES` nodes, and of drafts that need no model."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from outlay.bench.data import prompts_of
from outlay.budget import Ledger
from outlay.decode.draft.ppd import tree_plan
from outlay.decode.draft.ppd.prompt_tokens import open_prompt_tokens
from outlay.decode.draft.rsd import RSD
from outlay.decode.draft.specinfer import SpecInfer, Speculative
from outlay.engine.handle import Result
from outlay.engine.method import Method
from outlay.errors import FailureError
from outlay.lm import LM
from outlay.progress import ShowProgress

NODES = 14
CHAINS = (1, 2, 3, 4, 5, 6, 8, 10, 14)
TREES: tuple[Method, ...] = (
    *(
        RSD(branching=branching)
        for branching in ((2, 2, 2), (2, 2, 1), (3, 1, 1, 1), (4, 1, 1), (3, 2), (2, 1, 1, 1, 1))
    ),
    *(RSD("s", width=width, depth=depth) for width, depth in ((2, 7), (3, 4), (4, 3), (2, 4))),
    SpecInfer(branching=(2, 2, 2)),
    SpecInfer(branching=(2, 2, 1)),
)
TEMPERATURE, ANSWER = 0.3, 64  # of the trees; tokens of an answer

ROWS = 16  # of a pass of PPD
WITHOUT_A_MODEL = (
    "lookup:tokens=16",
    "aded:prime_prompt=0,update=off",
    "aded:prime_prompt=0",
    "aded:prime_prompt=0,search=mcts",
    "aded",
    f"ppd:rows={ROWS}",
)
SETS, NEW = ("chat", "code", "summary"), 96  # tokens of an answer


def block_efficiencies(lm: LM, data: Path, count: int, progress: ShowProgress) -> dict[str, Any]:
    """Returns the tokens a target pass of each chain and tree, on `count` prompts of chat and code."""
    if lm.draft(None, Speculative()) is None:
        raise FailureError(f"{lm.name} has no draft head; `outlay train draft --model {lm.name}` trains one")
    prompts = [*prompts_of(data, "chat", count // 2), *prompts_of(data, "code", count - count // 2)]
    methods = [*(Speculative(depth) for depth in CHAINS), *TREES]
    rows = []
    for done, method in enumerate(methods):
        progress(f"tokens a pass: {method.label}", done, len(methods))
        results = _answers(lm, prompts, method=method, temperature=TEMPERATURE, max_tokens=ANSWER)
        passes = sum(result.ledger.target_passes for result in results)
        rows.append(
            {
                "method": method.label,
                "family": method.about.name,
                "block_efficiency": sum(len(result.tokens) for result in results) / passes,
                "nodes": sum(result.ledger.drafted for result in results) / passes,
                "draft_passes": sum(result.ledger.draft_passes for result in results) / passes,
            }
        )
    return {"nodes": NODES, "temperature": TEMPERATURE, "rows": rows}


def without_a_model(lm: LM, data: Path, count: int, progress: ShowProgress) -> dict[str, Any]:
    """Returns the tokens a target pass of tables, lookup and prompt tokens at temperature 0, one prompt at a time, and
    what the plan of the prompt tokens' trees predicts.
    """
    prompts = open_prompt_tokens("default", lm.model)
    plan = tree_plan(prompts.accuracy, ROWS)
    assert plan is not None
    rows = []
    for place, name in enumerate(SETS):
        texts = prompts_of(data, name, count)
        for done, method in enumerate(WITHOUT_A_MODEL):
            progress(f"tokens a pass on {name}", place * len(WITHOUT_A_MODEL) + done, len(SETS) * len(WITHOUT_A_MODEL))
            lm.engine.clear()
            results = [lm.generate(text, method=method, max_tokens=NEW) for text in texts]
            ledger = sum((result.ledger for result in results), start=Ledger())
            rows.append({"set": name, "method": method, "tokens_per_pass": ledger.tokens_out / ledger.target_passes})
    return {"first_guess": prompts.accuracy[0][0], "predicted": plan.tau, "new": NEW, "rows": rows}


def _answers(lm: LM, prompts: Sequence[str], **options: Any) -> list[Result]:
    with lm.engine.together():
        handles = [lm.submit(prompt, seed=seed, ignore_eos=True, **options) for seed, prompt in enumerate(prompts)]
    return [handle.result() for handle in handles]
