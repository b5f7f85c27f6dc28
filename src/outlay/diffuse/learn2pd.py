"""Learn2PD: a small filter that was trained on a model says which of its proposals are final (Bao et al. 2025, arXiv
2509.25188).

An oracle (extremely greedy parallel) would fill each position as soon as its proposal is the token that the reference,
one token a round, writes there. The filter, two thousand weights that read nothing but the confidences of the block,
imitates it. End-of-text prediction (`ends=cut`) drops the canvas behind a predicted end, which is independent of it.
Approximate: it agrees with the reference as often as it was fitted to. With `accept=1` it is the reference.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from outlay.diffuse.ends import EndsName
from outlay.diffuse.proposals import Chosen, Floats, Integers, Proposals
from outlay.diffuse.rule import COUNTS, CommitRule, Round
from outlay.engine.canvas_run import CanvasRun
from outlay.engine.method import About, Work
from outlay.engine.submission import Submission
from outlay.errors import OutlayWarning, UsageError
from outlay.models import fitted
from outlay.models.load import Model

KIND = "filter"
PUBLISHED_ACCEPT = 0.96  # the score from which the authors' evaluation fills
CERTAIN = 1.0  # the confidence of a place of the block that is not on the canvas


@dataclass(frozen=True, eq=False)
class CommitFilter:
    """Scores the places of a block by their confidences: a network of one layer, or of two with a ReLU between."""

    layers: tuple[tuple[Tensor, Tensor], ...]
    """Weight [out, in] and bias [out] of each layer, float32; the first reads a block, the last scores one."""
    accept: float = PUBLISHED_ACCEPT
    """The score above which a position is filled, where the method names none."""
    name: str = "filter"
    """The file that it was read from."""

    @property
    def block(self) -> int:
        """Positions of a block."""
        return self.layers[0][0].shape[1]

    def logits(self, confidence: Tensor) -> Tensor:
        """Returns the log-odds that each proposal is final, float32 [..., block].

        Args:
            confidence: Probability of the most probable token of each place, filled ones too, float32 [..., block].
        """
        (weight, bias), *others = self.layers
        found = F.linear(confidence, weight, bias)
        for weight, bias in others:
            found = F.linear(found.relu(), weight, bias)
        return found

    def scores(self, confidence: Floats) -> Floats:
        """Returns the probability that each proposal is final, [block]; `confidence` is [block]."""
        with torch.no_grad():
            return self.logits(torch.from_numpy(confidence).float()).double().sigmoid().numpy()


@dataclass(frozen=True)
class Learn2PD(CommitRule):
    """Fills what a trained filter takes for final, and always the most confident position of the block."""

    ends: EndsName = "cut"
    """What end tokens do. cut, end-of-text prediction, is the paper's: the canvas is cut behind an end that a round
    fills, or else behind the most probable one. The others are those of every rule; stop turns the cutting off."""

    filter: str | CommitFilter = "default"
    """The file of the filter (`outlay train filter`); default: the one that was fitted to the model."""

    accept: float | None = None
    """The score above which a position is filled; 1: one token a round. none: the one that the filter was calibrated
    to, 0.96 (the paper's) for one of the published recipe."""

    end_confidence: float = 0.0
    """With ends=cut: the probability from which an end that is only predicted cuts the canvas; 0 as in the authors'
    code, above 1 for filled ends alone."""

    about: ClassVar[About] = About(
        name="learn2pd",
        summary="what a trained filter takes for final, on a canvas cut behind its end",
        paper="Bao et al. 2025, Learn2PD",
        family="diffusion",
        spends="a pass a round; once, minutes to fit the filter",
        saves="rounds, by what this model's confidences mean; with ends=cut positions behind the text's end",
        needs=("trained filter",),
        exact=False,
        counts=COUNTS | {"filter_accepts": "positions", "forced": "positions"},
    )
    reads_filled: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.accept is not None and not 0 <= self.accept <= 1:
            raise UsageError(f"accept must be from 0 to 1, not {self.accept}")
        if not self.end_confidence >= 0:
            raise UsageError(f"end_confidence must be 0 or more, not {self.end_confidence}")

    @property
    def end_floor(self) -> float:
        return self.end_confidence

    def check(self, submission: Submission) -> None:
        super().check(submission)
        found, size = self.filter_of(submission.model), self.block_size(submission)
        if size != found.block:
            asked = "the whole canvas" if size is None else f"blocks of {size}"
            raise UsageError(
                f"{found.name} was fitted to blocks of {found.block}, not to {asked}; take block={found.block}, or fit "
                "another with `outlay train filter --block N`"
            )
        if not submission.greedy:
            warnings.warn(
                "learn2pd's filter was fitted to greedy texts; above temperature 0 it doesn't know the confidences of "
                "drawn tokens, so take temperature 0, or another rule",
                OutlayWarning,
                stacklevel=4,
            )

    def block_size(self, submission: Submission) -> int | None:
        if self.block is None and not self._diffusion(submission).block:
            return self.filter_of(submission.model).block
        return super().block_size(submission)

    def filter_of(self, model: Model) -> CommitFilter:
        """Returns the filter, read from its file where only that is named."""
        return self.filter if isinstance(self.filter, CommitFilter) else open_filter(self.filter, model)

    def decode(self, run: CanvasRun) -> Work:
        opened = replace(self, filter=self.filter_of(run.model))  # read once, not in each round
        yield from super(Learn2PD, opened).decode(run)

    def round(self, run: CanvasRun, proposals: Proposals, rows: Sequence[int]) -> Round:
        accepted, chosen = self.accepted(proposals), self.chosen(proposals)
        run.count(filter_accepts=int(accepted.sum()), forced=int((chosen & ~accepted).sum()))
        run.facts.setdefault("canvas_by_round", []).append(run.end - run.begin)
        return (yield from super().round(run, proposals, rows))

    def select(self, proposals: Proposals) -> Chosen:
        best = proposals.best(proposals.confidence, proposals.eligible, proposals.block.quota)
        return self.accepted(proposals) | best

    def accepted(self, proposals: Proposals) -> Chosen:
        """Returns the positions that the filter takes for final, [n]."""
        assert isinstance(self.filter, CommitFilter), "it is read before the first round"
        accept = self.filter.accept if self.accept is None else self.accept
        scores = self.filter.scores(in_block(proposals, proposals.confidence, self.filter.block, CERTAIN))
        accepted = np.zeros_like(proposals.masked)
        columns = columns_of(proposals)
        accepted[columns >= 0] = scores[columns[columns >= 0]] > accept
        return accepted & proposals.eligible


def columns_of(proposals: Proposals) -> Integers:
    """Returns at which place of its block each position stands, -1 for those of other blocks, [n]."""
    block, positions = proposals.block, proposals.positions
    return np.where((positions >= block.begin) & (positions < block.end), positions - block.begin + block.offset, -1)


def in_block(proposals: Proposals, values: np.ndarray, size: int, absent: float) -> np.ndarray:
    """Returns values [n] of positions at their places of the block, [size].

    Args:
        proposals: Whose values they are.
        values: What stands at each position.
        size: Positions of a whole block.
        absent: What stands at places that are not on the canvas: those of the prompt, and those behind its end.
    """
    columns = columns_of(proposals)
    placed = np.full(size, absent, dtype=values.dtype)
    placed[columns[columns >= 0]] = values[columns >= 0]
    return placed


def open_filter(name: str, model: Model) -> CommitFilter:
    """Returns the filter that `name` means for a model: a file, or "default", the one that was fitted to it.

    Raises:
        UsageError: Where there is none, for what is no such file, and for another model's.
    """
    path = fitted.find(KIND, model) if name == "default" else Path(name).expanduser()
    if path is None:
        raise fitted.missing(KIND, model)
    tensors, about = fitted.read(path, KIND, model)
    try:
        layers = tuple((tensors[f"{n}.weight"].float(), tensors[f"{n}.bias"].float()) for n in range(len(tensors) // 2))
        return CommitFilter(layers, float(about["accept"]), path.name)
    except KeyError:
        raise UsageError(f"{path} is damaged; `outlay train filter --model {model.name}` makes another") from None


def save_filter(path: Path, commit_filter: CommitFilter, model: Model, **about: object) -> None:
    """Writes a filter with the fingerprint of its model, and what else its file says of it (JSON values)."""
    tensors: dict[str, Tensor] = {}
    for number, (weight, bias) in enumerate(commit_filter.layers):
        tensors |= {f"{number}.weight": weight, f"{number}.bias": bias}
    fitted.write(path, KIND, model, tensors, accept=commit_filter.accept, block=commit_filter.block, **about)
