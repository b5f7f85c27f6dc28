"""The entropy threshold of AdaDec, learned for one model (He et al. 2025, arXiv 2506.08980).

Reference code is teacher-forced: at each of its tokens stand the entropy of the model's distribution, and whether the
token is the model's first choice. A logistic regression of the one on the other, trained on as many of either kind,
gives the probability of being right; on the held-out steps, as they come, a cut of this probability is chosen, and the
threshold is the entropy at the cut.
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from outlay.decode.search.adadec import entropy
from outlay.engine.method import About, Method, Work
from outlay.engine.tree_run import TreeRun
from outlay.errors import UsageError
from outlay.lm import LM
from outlay.progress import ShowProgress
from outlay.train.reference_code import Reference

SEED = 42  # of the split and of the undersampling (the official code)
HELD_OUT = 0.2  # share of the steps on which the cut is chosen (the official code)
CUTS = np.arange(1, 100) / 100  # probabilities that are tried as the cut (the official code)
TOGETHER = 8  # texts in a batch; a bound on memory, not tuned
ROWS = 64  # logits that are held of a text at a time; a bound on memory, not tuned
STEPS = 100  # of Newton's method at most; a handful are enough
Array = NDArray[np.float64]


class Steps(NamedTuple):
    """What was seen at the tokens of reference code."""

    entropies: Array
    """In nats, [n]."""
    right: NDArray[np.bool_]
    """Whether the reference's token is the model's first choice, [n]."""


class Line(NamedTuple):
    """P(right) = 1 / (1 + exp(-(weight H + bias)))."""

    weight: float
    bias: float

    def probabilities(self, entropies: Array) -> Array:
        """Returns P(right) at some entropies."""
        return 1 / (1 + np.exp(-(self.weight * entropies + self.bias)))

    def entropy_at(self, probability: float) -> float:
        """Returns the entropy at which P(right) is a probability."""
        return (math.log(probability / (1 - probability)) - self.bias) / self.weight


@dataclass(frozen=True)
class FittedThreshold:
    """A threshold, with what says how good it is."""

    threshold: float
    """In nats."""
    cut: float
    """P(right) at the threshold."""
    weight: float
    bias: float
    tokens: int
    """Reference tokens that were read."""
    right: float
    """Share of them that are the model's first choice."""
    accuracy: float
    """Share of held-out steps that the cut tells right or wrong."""
    majority: float
    """What naming the more frequent kind would tell."""
    auc: float
    """Of right above wrong held-out steps."""
    pause_rate: float
    """Share of the reference steps at which decoding would pause."""


class Force(Method):
    """Reads a solution behind its prompt, and writes nothing. It is for programs, so the catalogue does not list it.

    Attributes:
        solution: The solution's token ids.
        entropies, right: What `Steps` has of each of them, once the run has ended.
    """

    about: ClassVar[About] = About(
        name="force",
        summary="the entropy at each token of a given text",
        paper="",
        family="training",
        spends="one position a token",
        saves="",
    )

    def __init__(self, solution: Sequence[int]) -> None:
        self.solution = solution
        self.entropies: list[float] = []
        self.right: list[bool] = []

    def decode(self, run: TreeRun) -> Work:
        """Reads the solution, some rows at a time."""
        before = run.tip
        run.tree.append(list(self.solution[:-1]))
        nodes = [before, *run.tip.path(before)]
        for begin in range(0, len(nodes), ROWS):
            logits = yield run.target.forward(nodes[begin : begin + ROWS])
            tokens = torch.tensor(self.solution[begin : begin + ROWS], device=logits.device)
            self.entropies += entropy(logits).tolist()
            self.right += (logits.gather(1, tokens[:, None])[:, 0] >= logits.amax(-1)).tolist()


def forced_steps(lm: LM, pairs: Sequence[Reference], tokens: int, seed: int, progress: ShowProgress) -> Steps:
    """Teacher-forces reference code.

    Prompt and solution are tokenized apart, as decoding finds them, and without a chat template.

    Args:
        lm: The model.
        pairs: The code, of which texts are taken in random order.
        tokens: Tokens of solutions at least, if there are as many.
        seed: Of the order.
        progress: Is called before each batch.
    """
    shuffled = random.Random(seed).sample(list(pairs), len(pairs))
    tokenizer, context = lm.model.tokenizer, lm.model.decoder.config.max_positions
    entropies, right = list[float](), list[bool]()
    for begin in range(0, len(shuffled), TOGETHER):
        if len(right) >= tokens:
            break
        progress(f"reading code, {len(right)} of {tokens} tokens", len(right), tokens)
        methods, handles = [], []
        with lm.engine.together():
            for prompt, solution in shuffled[begin : begin + TOGETHER]:
                given = tokenizer.encode_prompt(prompt)
                wanted = tokenizer.encode(solution)[: context - len(given)]
                if given and wanted and len(given) < context:
                    methods.append(Force(wanted))
                    handles.append(lm.submit(given, method=methods[-1], max_tokens=1))
        for method, handle in zip(methods, handles, strict=True):
            handle.result()
            entropies += method.entropies
            right += method.right
    return Steps(np.array(entropies), np.array(right, dtype=bool))


def fit_threshold(steps: Steps, *, cut: float | None = None, pause_rate: float | None = None) -> FittedThreshold:
    """Learns a threshold.

    Args:
        steps: What was seen at reference tokens.
        cut: P(right) at the threshold; None: what tells most held-out steps right or wrong.
        pause_rate: In place of any cut, the share of the steps whose entropy is to reach the threshold.

    Raises:
        UsageError: Where there is nothing to learn: all steps are right or wrong, or entropy doesn't tell them apart.
    """
    entropies, right = steps
    train, held = split(len(right))
    if not 0 < right[train].sum() < len(train) or not len(held):
        kind = "right" if right.all() else "wrong" if not right.any() else "of one kind"
        raise UsageError(f"all of the model's {len(right)} steps are {kind}, which teaches nothing; give more code")
    even = balanced(right, train)
    line = regression(entropies[even], right[even])
    if not line.weight < 0 and pause_rate is None:
        raise UsageError(f"the model's entropy does not tell its errors in {len(right)} steps; give more code")
    probabilities = line.probabilities(entropies[held])
    accuracies = [float(((probabilities >= each) == right[held]).mean()) for each in CUTS]
    chosen = float(CUTS[int(np.argmax(accuracies))]) if cut is None else cut  # the first of the best
    threshold = line.entropy_at(chosen)
    if pause_rate is not None:
        threshold = float(np.quantile(entropies, 1 - pause_rate))
        chosen = float(line.probabilities(np.array(threshold)))
    share = float(right[held].mean())
    return FittedThreshold(
        threshold, chosen, *line, len(right), float(right.mean()),
        accuracy=float(((entropies[held] < threshold) == right[held]).mean()), majority=max(share, 1 - share),
        auc=auc(-entropies[held], right[held]), pause_rate=float((entropies >= threshold).mean()),
    )  # fmt: skip


def split(count: int) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Returns the indices of the steps to train on and of those to hold out: those of scikit-learn's split."""
    order = np.random.RandomState(SEED).permutation(count)
    held = math.ceil(HELD_OUT * count)
    return order[held:], order[:held]


def balanced(right: NDArray[np.bool_], train: NDArray[np.intp]) -> NDArray[np.intp]:
    """Returns the indices to train on, of which as many are right as wrong; the more frequent kind is drawn from."""
    kinds = [train[right[train] == kind] for kind in (True, False)]
    least = min(map(len, kinds))
    return np.concatenate([kind[np.random.RandomState(SEED).permutation(len(kind))[:least]] for kind in kinds])


def regression(entropies: Array, right: NDArray[np.bool_]) -> Line:
    """Returns the logistic regression with an L2 penalty of weight^2 / 2 (C = 1), the bias unpenalized, by Newton.

    Args:
        entropies: The feature, [n].
        right: The classes, [n].
    """

    def loss(weight: float, bias: float) -> float:
        signed = np.where(right, 1.0, -1.0) * (weight * entropies + bias)
        return float(np.logaddexp(0, -signed).sum()) + weight**2 / 2

    features = np.stack([entropies, np.ones_like(entropies)])
    found = np.zeros(2)
    for _ in range(STEPS):
        probabilities = Line(*found).probabilities(entropies)
        gradient = features @ (probabilities - right) + [found[0], 0]
        curvature = (features * (probabilities * (1 - probabilities))) @ features.T + np.diag([1.0, 1e-12])
        step = np.linalg.solve(curvature, gradient)
        while loss(*(found - step)) > loss(*found) and np.abs(step).max() > 1e-12:  # past the minimum
            step /= 2
        found = found - step
        if np.abs(step).max() < 1e-10:
            break
    return Line(float(found[0]), float(found[1]))


def auc(scores: Array, right: NDArray[np.bool_]) -> float:
    """Returns the share of pairs in which the right step has the higher score, ties as half; nan without a pair."""
    _, places, counts = np.unique(scores, return_inverse=True, return_counts=True)
    ranks = (np.cumsum(counts) - (counts - 1) / 2)[places]  # the mean rank of those that are equal
    rights, wrongs = int(right.sum()), int((~right).sum())
    if not rights * wrongs:
        return math.nan
    return float((ranks[right].sum() - rights * (rights + 1) / 2) / (rights * wrongs))


def about(fit: FittedThreshold) -> dict[str, Any]:
    """Returns what a file says of a threshold, as JSON can hold it."""
    return {
        name: None if isinstance(value, float) and math.isnan(value) else value for name, value in vars(fit).items()
    }
