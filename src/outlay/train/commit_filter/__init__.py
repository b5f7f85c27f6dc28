"""Fits a commit filter to a frozen model that fills masks, from its own texts (Learn2PD, Bao et al. 2025, section 4).

Each prompt is decoded twice: one token a round, which writes the reference, and by an oracle that fills all positions
whose proposals are the reference's (extremely greedy parallel). Each round of both is a record: the block's
confidences, and which of its proposals are final. The published recipe learns from the oracle's rounds alone, of which
there are few, and takes the score from which it fills as given; ours also learns from the reference's, by masked
positions alone, and chooses the score on prompts that were kept apart.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from outlay.diffuse.learn2pd import CommitFilter, save_filter
from outlay.lm import LM
from outlay.progress import ShowProgress
from outlay.train.commit_filter.agreement import Agreement
from outlay.train.commit_filter.fit import false_accepts, fit, split
from outlay.train.commit_filter.recipe import FilterRecipe
from outlay.train.commit_filter.traces import Traces, collect


@dataclass(frozen=True)
class FilterReport:
    """What a fitted filter does, measured on prompts or records that were held out."""

    records: int
    """Records that it was fitted to."""
    loss: float
    """Binary cross-entropy a position on held-out records, in nats."""
    false_accepts: float
    """Share of wrong proposals among those scored above 0.9 on held-out records."""
    reference_passes: float
    """Passes of one token a pass, mean over prompts."""
    oracle_passes: float
    """Passes of the oracle: the fewest that any filter could reach."""
    accept: float
    """The score above which it fills."""
    passes: float | None = None
    """Its passes on held-out prompts; None where none were held out."""
    agreement: float | None = None
    """Share of these prompts whose text is the reference's up to its end."""
    asked_agreement: float | None = None
    """The share that the recipe asks for."""
    cut_agreement: float | None = None
    """The same with end-of-text prediction (`ends=cut`)."""
    cut_positions: float | None = None
    """Positions that are computed with end-of-text prediction, over those without."""


def train_filter(
    lm: LM, prompts: Sequence[list[int]], recipe: FilterRecipe, out: Path, progress: ShowProgress
) -> FilterReport:
    """Fits a filter to a model and writes it to `out`.

    The records are kept beside `out` until it is there, so that what was stopped goes on.

    Args:
        lm: The model, which stays as it is.
        prompts: Token ids of prompts for it to answer.
        recipe: How.
        out: The file.
        progress: Called now and then.

    Raises:
        UsageError: For a model that fills no masks, prompts that are too few, and such as leave nothing to learn.
    """
    work = out.with_name(f"{out.name}.work")
    traces = collect(lm, prompts, recipe, work, progress)
    fitted, report = fit_filter(lm, prompts, traces, recipe, progress)
    save_filter(out, fitted, lm.model, recipe=asdict(recipe), report=asdict(report))
    shutil.rmtree(work)
    return report


def fit_filter(
    lm: LM, prompts: Sequence[list[int]], traces: Traces, recipe: FilterRecipe, progress: ShowProgress
) -> tuple[CommitFilter, FilterReport]:
    """Returns a filter that is fitted to the traces of all prompts, calibrated as the recipe says, and what it does."""
    train, held, apart = split(traces, recipe)
    found, loss = fit(train, held, recipe, progress)
    one, oracle = traces.passes.double().mean(0).tolist()
    report = FilterReport(len(train), loss, false_accepts(found, held), one, oracle, found.accept)
    if not apart:
        return found, report
    check = Agreement(lm, [prompts[place] for place in apart], traces.answers[apart].tolist(), recipe)
    if recipe.agreement is not None:
        found = check.calibrated(found, recipe.agreement, progress)
    passes, agreement = check.of(found)
    cut_agreement, cut_positions = check.of_cutting(found)
    return found, replace(
        report, accept=found.accept, passes=passes, agreement=agreement, asked_agreement=recipe.agreement,
        cut_agreement=cut_agreement, cut_positions=cut_positions,
    )  # fmt: skip
