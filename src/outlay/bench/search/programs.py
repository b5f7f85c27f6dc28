"""Who takes part in writing programs: searches that run public examples, and what their programs do on private ones."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from outlay.bench.search.contenders import TOGETHER, SearchContender, Setting, batched
from outlay.bench.search.program_report import ABLATED, BEAM, GREEDY, PLANNED, SAMPLES, SPENT
from outlay.engine.handle import Result
from outlay.problems import minilist

PUBLIC = "public examples"
"""What this suite calls the scorer that runs the examples of the prompt."""
TOP_K = 3  # tokens among which samples are drawn, as many as PG-TD considers
KEPT = ("solved", "private", "public", *SPENT)


class ProgramSearch(SearchContender):
    """One of our methods on problems that show examples and keep others to themselves.

    Args:
        method: The method's name with its options.
        curve: The curve on which it lies.
    """

    def __init__(self, method: str, curve: str) -> None:
        self.name, self.curve = method, curve

    def answer(self, setting: Setting, rows: Sequence[Mapping[str, Any]]) -> list[dict[str, float]]:
        """Answers each problem.

        Returns:
            For each the pass rates of its program on `private` and `public` examples, whether it passes all private
            ones (`solved`), and what was spent: `programs` that were finished, `scores`, target `passes` and
            `positions`.
        """
        lm, drawn = setting.lm(), self.curve == SAMPLES
        asked: dict[str, Any] = {
            "method": self.name,
            "scorer": minilist.score if self.curve in (SAMPLES, PLANNED, ABLATED) else None,
            "temperature": setting.temperature if drawn else 0,
            "top_k": TOP_K if drawn else None,
            "max_tokens": setting.max_tokens,
        }
        found = []
        for some in batched(rows, TOGETHER):
            with lm.engine.together():
                handles = [lm.submit(row["prompt"], seed=setting.seed, **asked) for row in some]
            found += [_counted(handle.result(), row) for handle, row in zip(handles, some, strict=True)]
        return found


def _counted(result: Result, row: Mapping[str, Any]) -> dict[str, float]:
    private = minilist.pass_rate(result.text, row["private"])
    (public,) = minilist.score(row["prompt"], [result.text])
    extras = result.ledger.extras
    return {
        "solved": float(private == 1),
        "private": private,
        "public": public,
        "programs": extras.get("completions", extras.get("texts", 1.0)),
        "scores": float(result.ledger.scores),
        "passes": float(result.ledger.target_passes),
        "positions": float(result.ledger.target_tokens),
    }


def program_searches(limit: int) -> list[ProgramSearch]:
    """Returns all that take part. `limit` is the most programs that one finishes for a problem."""
    sizes = [size for size in (4, 16, 64) if size <= limit]
    largest = sizes[-1]
    found = [ProgramSearch("greedy", GREEDY), ProgramSearch("beam:width=5", BEAM)]
    found += [ProgramSearch(f"best_of:n={size},by=score", SAMPLES) for size in sizes]
    found += [ProgramSearch(f"pgtd:completions={size}", PLANNED) for size in sizes]
    found.append(ProgramSearch(f"pgtd:completions={largest},early_stop=true", ABLATED))
    found += [ProgramSearch(f"pgtd:rollouts={largest}{caches}", ABLATED) for caches in ("", ",caches=false")]
    return found
