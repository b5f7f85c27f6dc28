"""Thinking within a budget: guided, cut off, and free, by a tiny model that thinks."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean
from typing import Any

from outlay.bench.steer.thinker import POSITIONS, TAGS, Problem, ThinkerRecipe, problem, train_thinker
from outlay.decode.steer.budget_guidance import BudgetGuidance
from outlay.engine.engine import Engine
from outlay.engine.handle import Result
from outlay.engine.method import Method
from outlay.lm import LM
from outlay.models.load import load_model
from outlay.progress import ShowProgress
from outlay.train.thinking_length import LengthRecipe, train_length
from outlay.train.thinking_texts import Writing, own_thoughts

SHARES = (0.25, 0.4, 0.63, 0.8)  # budgets as shares of the mean free length
TOGETHER = 64  # problems that are answered in one batch
TRAINED_ON, ASKED = 1, 2  # seeds of the problems that the predictor learns from, and of those that are asked
LONGEST = 448  # tokens of a reply
PREDICTOR = "length.safetensors"
RECIPE = LengthRecipe(epochs=3, batch=2, lr=8e-4, short_copies=False)  # half of the thinking is short as it is
COUNTED = ("forced_stops", "predictor_calls", "fallbacks", "predictor_flops")  # by the method
FREE, FORCING, GUIDANCE, SOFT = "free", "cut off at the budget", "guidance", "guidance without the hard stop"


def prepared(folder: Path, recipe: ThinkerRecipe, texts: int, progress: ShowProgress) -> LM:
    """Trains a model that thinks, and a predictor on `texts` of its own, as far as `folder` lacks them.

    Returns:
        The model.
    """
    if not (folder / "config.json").exists():
        train_thinker(folder, recipe, progress)
    lm = LM(load_model(str(folder), dtype="float32"), Engine())
    prompts = [lm.encode(problem(TRAINED_ON, number).prompt) for number in range(texts)]
    written = own_thoughts(lm, TAGS, Writing(texts, LONGEST), prompts, folder / "texts.jsonl", progress)
    predictor = folder / PREDICTOR
    if not predictor.exists():
        train_length(lm, RECIPE, TAGS, written, predictor, progress)
    return lm


@dataclass(frozen=True)
class ThinkingSettings:
    """What is measured of thinking within budgets."""

    problems: int = 300
    """Problems."""
    learned: int = 800
    """Texts of the model's own that the predictor learns from."""
    folder: str | None = None
    """Where the model, its texts and the predictor are kept, and gone on with; None: nowhere."""


def measured(settings: ThinkingSettings, recipe: ThinkerRecipe, progress: ShowProgress) -> dict[str, Any]:
    """Returns what free, cut-off and guided thinking gives on held-out problems, by a model of this recipe."""
    folder = settings.folder
    with contextlib.nullcontext(folder) if folder else tempfile.TemporaryDirectory() as made:
        home = Path(made)
        lm = prepared(home, recipe, settings.learned, progress)
        asked = [problem(ASKED, number) for number in range(settings.problems)]
        free = answers(lm, asked, "sample", progress)
        predictor = str(home / PREDICTOR)
        length = mean(thinking(lm, result) for result in free)
        rows = [row(lm, FREE, None, asked, free)]
        for share in SHARES:
            tokens = round(share * length)
            for name, method in {
                FORCING: BudgetGuidance(tokens, cadence="never"),
                GUIDANCE: BudgetGuidance(tokens, predictor),
                SOFT: BudgetGuidance(tokens, predictor, hard_stop=False),
            }.items():
                found = answers(lm, asked, method, progress)
                rows.append(row(lm, name, tokens, asked, found) | {"share": share})
        lm.engine.close()
    return {"problems": settings.problems, "learned": settings.learned, "free_length": length, "rows": rows}


def answers(lm: LM, asked: Sequence[Problem], method: str | Method, progress: ShowProgress) -> list[Result]:
    """Answers problems at temperature 1, each with a seed of its own that all methods share."""
    found = list[Result]()
    for first in range(0, len(asked), TOGETHER):
        progress(f"answering by {method if isinstance(method, str) else method.label}", first, len(asked))
        with lm.engine.together():
            handles = [
                lm.submit(each.prompt, method=method, seed=seed, temperature=1.0, max_tokens=LONGEST)
                for seed, each in enumerate(asked[first : first + TOGETHER], first)
            ]
        found += [handle.result() for handle in handles]
        lm.engine.clear()
    return found


def thinking(lm: LM, result: Result) -> int:
    """Returns how many tokens of a reply are thinking, the closing tag included."""
    closing = lm.model.tokenizer.inner.token_to_id(TAGS.closing)
    return result.tokens.index(closing) + 1 if closing in result.tokens else len(result.tokens)


def row(lm: LM, name: str, tokens: int | None, asked: Sequence[Problem], found: Sequence[Result]) -> dict[str, Any]:
    """Returns what a method gave: the share of right answers, mean tokens, and what it counted for each text."""
    extras: Sequence[Mapping[str, float]] = [result.ledger.extras for result in found]
    lengths = [thinking(lm, result) for result in found]
    tokenizer = lm.model.tokenizer
    said = [tokenizer.decode(result.tokens[length:]) for result, length in zip(found, lengths, strict=True)]
    return {
        "method": name,
        "tokens": tokens,
        "right": mean(answer == each.answer for answer, each in zip(said, asked, strict=True)),
        "thinking": mean(lengths),
        "within": mean(length <= (tokens or POSITIONS) for length in lengths),
        **{
            name: mean(each.get(name, 0) for each in extras)
            for name in ("forced_stops", "predictor_calls", "fallbacks")
        },
        "flops": mean(result.ledger.flops for result in found),
        "predictor_flops": mean(each.get("predictor_flops", 0) for each in extras),
    }
