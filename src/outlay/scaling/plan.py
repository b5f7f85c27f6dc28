"""The plan of a draft: fits the laws that the points allow, predicts, and chooses a draft head for each batch."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from outlay.decode.draft.specinfer import Speculative
from outlay.errors import UsageError
from outlay.lm import LM
from outlay.models import fitted
from outlay.scaling.choice import LAYERS, Choice, at_depth, choose
from outlay.scaling.laws import (
    LEAST_POINTS,
    LEAST_SPAN,
    JointLaw,
    Prediction,
    ScalingLaw,
    fit_joint,
    fit_loglinear,
    spans,
)
from outlay.scaling.points import Point
from outlay.scaling.study import DEPTH, TAU_LIMITS, measure_file, study_of
from outlay.scaling.timing import batch_speeds, round_costs
from outlay.train.draft_head import DraftHeadRecipe
from outlay.train.questions import questions

Progress = Callable[[str, int, int], None]
BATCHES = (1, 2, 4, 8, 16)  # at which a trained draft head is timed (the specification's)
HELD_TOKENS = 200_000  # tokens of the text whose held-out part measures given draft heads


@dataclass(frozen=True)
class PlanOptions:
    """What is planned for."""

    batches: Sequence[int] = (1, 4, 16)
    """Requests that are decoded together; a draft head is chosen for each."""
    budget: int | None = None
    """Training tokens of the draft head; None: the most of any point."""
    max_bytes: int | None = None
    """Largest file of the draft head."""
    vocabulary: int = 8192
    """Tokens that a draft head drafts."""
    seed: int = 0
    """Seed of all draws."""

    @property
    def recipe(self) -> DraftHeadRecipe:
        """How a study trains: one epoch, so that the tokens of the law are different tokens."""
        return DraftHeadRecipe(vocabulary=self.vocabulary, epochs=1, ahead=0, unroll=DEPTH, seed=self.seed)


@dataclass
class Plan:
    """The laws of some points, and what follows from them."""

    points: list[Point]
    laws: dict[str, ScalingLaw] = field(default_factory=dict)
    """Axis -> the law along it, of the points that differ in it alone."""
    joint: JointLaw | None = None
    """The law in tokens and layers, where both have one."""
    predictions: list[dict[str, Any]] = field(default_factory=list)
    """Draft heads with the measured and the predicted value."""
    choices: dict[int, tuple[Choice | None, list[Choice]]] = field(default_factory=dict)
    """Batch -> the best configuration, and all of them."""
    speeds: dict[str, list[Point]] = field(default_factory=dict)
    """"plain" and "drafted" -> tokens a second at each batch."""
    notes: list[str] = field(default_factory=list)
    """Laws that could not be fitted, and predictions that no law reaches."""

    @classmethod
    def of(cls, points: list[Point]) -> Plan:
        """Fits each law that the points allow.

        Raises:
            UsageError: They allow none.
        """
        plan = cls(points)
        limits = TAU_LIMITS if points[0].what.startswith("tau") else (0.0, math.inf)
        for axis, other in (("tokens", "layers"), ("layers", "tokens"), ("batch", "")):
            group = _largest_group(points, axis, other)
            if len({getattr(point, axis) for point in group}) < 2:
                continue
            try:
                plan.laws[axis] = fit_loglinear(group, axis, limits)
            except UsageError as error:
                plan.notes.append(str(error))
        if not plan.laws:
            none = "the points differ neither in tokens, nor in layers, nor in batch"
            raise UsageError("; ".join(plan.notes) or none)
        if {"tokens", "layers"} <= set(plan.laws):
            plan.joint = fit_joint(points, limits)
        return plan

    def predict(self, tokens: float, layers: float) -> Prediction | None:
        """Predicts tau of a draft head, or returns None where no law reaches it."""
        if self.joint is not None:
            return self.joint.predict(tokens, layers)
        if "tokens" in self.laws and layers in {point.layers for point in self.points}:
            return self.laws["tokens"].predict(tokens)
        if "layers" in self.laws and tokens in {point.tokens for point in self.points}:
            return self.laws["layers"].predict(layers)
        return None

    def predict_all(self, at: Sequence[tuple[int, int]]) -> None:
        """Predicts tau of every draft head that was measured, and of those `at` (tokens, layers)."""
        measured = {(point.tokens, point.layers): point.value for point in self.points}
        for tokens, layers in sorted({*measured, *at}):
            predicted = self.predict(tokens, layers)
            if predicted is not None:
                row = {"tokens": tokens, "layers": layers, "measured": measured.get((tokens, layers))}
                self.predictions.append(row | asdict(predicted))
            elif (tokens, layers) in at:
                self.notes.append(f"none reaches {tokens:g} tokens with {layers:g} layers")

    def choose(self, lm: LM, options: PlanOptions, progress: Progress) -> None:
        """Chooses the draft head with the highest throughput at each batch, by timing rounds on this machine."""
        if not self.points[0].what.startswith("tau") or "batch" in self.laws:
            return
        budget = options.budget or max(point.tokens for point in self.points)
        tau = {size: found for size in LAYERS if (found := self.predict(budget, size)) is not None}
        if not tau:
            self.notes.append(f"no law reaches a draft head at {budget:,.0f} training tokens; give another --budget")
            return
        for batch in options.batches:
            costs = round_costs(lm, sorted({min(tau), max(tau)}), options.vocabulary, batch, progress)
            self.choices[batch] = choose(
                lambda size, depth: at_depth(tau[size], DEPTH, depth),
                costs,
                costs.plain,
                tokens=budget,
                batch=batch,
                layers=list(tau),
                fits=lambda size: options.max_bytes is None or _file_bytes(lm, size) <= options.max_bytes,
            )

    def time_batches(self, lm: LM, draft: Path | None, seed: int, progress: Progress) -> None:
        """Times decoding with a trained draft head at several batches: `draft`, or the model's own if it has one."""
        found = lm.draft(None if draft is None else str(draft), Speculative())
        if found is not None:
            prompts = questions(lm, range(max(BATCHES)), seed)
            self.speeds = batch_speeds(lm, found, prompts, BATCHES, progress)

    def as_json(self) -> dict[str, Any]:
        """Returns all of it in the form that `report` prints and that is written to files."""
        laws = {
            axis: {name: getattr(law, name) for name in ("slope", "intercept", "r2", "ci95", "adequate", "best_form")}
            for axis, law in self.laws.items()
        }
        return {
            "points": [asdict(point) for point in self.points],
            "laws": laws,
            "predictions": self.predictions,
            "joint": None if self.joint is None else self.joint.coefficients,
            "choices": {
                str(batch): {"best": None if best is None else asdict(best), "all": [asdict(each) for each in every]}
                for batch, (best, every) in self.choices.items()
            },
            "speeds": {name: [asdict(point) for point in points] for name, points in self.speeds.items()},
            "notes": self.notes,
        }


def train_points(
    lm: LM, tokens: Sequence[int], layers: Sequence[int], options: PlanOptions, folder: Path | None, progress: Progress
) -> list[Point]:
    """Trains and measures draft heads.

    Args:
        lm: The target.
        tokens: Training tokens of draft heads of one layer, ascending.
        layers: Layers of draft heads on the most but one of `tokens`.
        options: Vocabulary and seed of the draft heads.
        folder: Where they are kept; None: in the cache.
        progress: Called now and then.

    Raises:
        UsageError: The sizes allow no law.
    """
    _refuse_too_few(tokens, layers)
    study = study_of(lm, options.recipe, max(tokens), folder or _own_folder(lm), progress)
    many = tokens[-2:][0]
    wanted = [(amount, 1) for amount in tokens] + [(many, size) for size in layers]
    return [study.measure(amount, size, progress).point() for amount, size in dict.fromkeys(wanted)]


def measure_points(
    lm: LM, drafts: Sequence[Path], options: PlanOptions, folder: Path | None, progress: Progress
) -> list[Point]:
    """Measures draft heads that were trained before, on text that the model writes.

    Args:
        lm: The target.
        drafts: Files of draft heads.
        options: The seed of the text.
        folder: Where the text is kept; None: in the cache.
        progress: Called now and then.

    Raises:
        UsageError: A file can't be used, or the draft heads allow no law; before hours are spent.
    """
    about = [fitted.read(path, "head", lm.model)[1] for path in drafts]
    _refuse_too_few([each["trained_on"] for each in about], [each["layers"] for each in about])
    study = study_of(lm, options.recipe, HELD_TOKENS, folder or _own_folder(lm), progress)
    return [measure_file(path, lm.model, study.held).point() for path in drafts]


def _own_folder(lm: LM) -> Path:
    return fitted.own_path("head", lm.model).with_suffix(".study")


def _refuse_too_few(tokens: Sequence[int], layers: Sequence[int]) -> None:
    if not spans(tokens) and not spans(layers):
        raise UsageError(
            f"a law takes {LEAST_POINTS} draft heads of different sizes over a span of {LEAST_SPAN:g} times, in "
            "training tokens or in layers; there are too few of either"
        )


def _largest_group(points: Sequence[Point], axis: str, other: str) -> list[Point]:
    """Returns the points of one value of `other` that have the most values of `axis`."""
    groups: dict[Any, list[Point]] = {}
    for point in points:
        groups.setdefault(getattr(point, other) if other else None, []).append(point)
    return max(groups.values(), key=lambda group: len({getattr(point, axis) for point in group}))


def _file_bytes(lm: LM, layers: int) -> int:
    """Returns the size of a draft head's file, in bfloat16."""
    config = lm.model.decoder.config
    hidden, heads = config.hidden_size, config.num_heads
    attention = hidden * config.head_dim * (2 * heads + 2 * config.num_kv_heads)
    return 2 * (2 * hidden**2 + layers * (attention + 3 * hidden * config.intermediate_size))
