"""A study of drafts of several sizes: trains heads on more and more text, and of more and more layers, and measures how
many tokens of a chain each of them gets right (Scylla, Yan et al. 2025, section 4).
"""

from __future__ import annotations

import json
import random
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import median, stdev

import numpy as np
import torch
from torch import Tensor

from outlay.budget import Budget
from outlay.decode.draft.specinfer import Speculative
from outlay.decode.greedy import Greedy
from outlay.engine.method import Method
from outlay.engine.submission import DraftSource
from outlay.errors import UsageError
from outlay.lm import LM, Result
from outlay.models.draft_head import untrained_draft_head
from outlay.models.load import Model
from outlay.scaling.laws import Point
from outlay.train.corpus import WARM_EVERY, Corpus, Passage
from outlay.train.head import HELD_OUT, HeadRecipe, HeadTrainer, as_batch

Progress = Callable[[str, int, int], None]
DEPTH = 5  # tokens of the chain
CONTEXTS = 200  # texts on which a head is measured
HELD_TOKENS = 200_000  # of which as many texts are held out, where nothing is trained
RESAMPLES = 200
BATCH_ROUNDS, BATCH_TOKENS = 3, 48
COST_TURNS, COST_WARM, COST_ROUNDS = 5, 3, 12  # turns, those before them that are not counted, the rounds of each
COST_CONTEXT = 128  # tokens of text before them
COST_DEPTHS = (1, 4, 8)  # of the chains that are timed


@dataclass(frozen=True)
class Measured:
    """A head of a study: its size, what it was trained on, tau and alpha with their standard errors."""

    layers: int
    tokens: int
    parameters: int
    tau: float
    tau_error: float
    alpha: float
    alpha_error: float
    right: tuple[float, ...]  # at each depth, where all before it were right

    def point(self, of: str = "tau") -> Point:
        """Returns it as a point of a law in `of`, "tau" or "alpha"."""
        what = f"tau at depth {DEPTH}" if of == "tau" else "alpha"
        value, error = (self.tau, self.tau_error) if of == "tau" else (self.alpha, self.alpha_error)
        return Point(value, error, self.tokens, self.layers, what=what)


class DraftStudy:
    """Heads for one model on one corpus; heads and what was measured of them are kept in `folder`, so that a study can
    be gone on with.
    """

    def __init__(self, model: Model, passages: Sequence[Passage], recipe: HeadRecipe, folder: Path) -> None:
        self.model, self.recipe, self.folder = model, recipe, folder
        self.held = [p for place, p in enumerate(passages) if place % HELD_OUT == 0][:CONTEXTS]
        self.rest = [p for place, p in enumerate(passages) if place % HELD_OUT]
        self.found: list[Measured] = []
        self._recipe = asdict(recipe)
        if self._file.exists():
            kept = json.loads(self._file.read_text())
            self._recipe = kept["recipe"]
            self.found = [Measured(**{**row, "right": tuple(row["right"])}) for row in kept["heads"]]

    def measure(self, tokens: int, layers: int, progress: Progress) -> Measured:
        """Trains a head on `tokens` tokens and measures it, unless that was done before. Raises `UsageError` where the
        folder holds heads of another recipe.
        """
        if self._recipe != asdict(self.recipe):
            raise UsageError(f"{self.folder} holds heads of another recipe; choose another folder")
        for known in self.found:
            if (known.tokens, known.layers) == (tokens, layers):
                return known
        trainer = HeadTrainer(self.model, replace(self.recipe, layers=layers, tokens=tokens), self._first(tokens))
        trainer.fit(self.head(tokens, layers).with_suffix(".checkpoint"), progress)
        trainer.save(self.head(tokens, layers), self.model)
        measured = replace(measure_file(self.head(tokens, layers), self.model, self.held), tokens=tokens)
        self.found.append(measured)
        kept = {"recipe": asdict(self.recipe), "heads": [asdict(each) for each in self.found]}
        self._file.write_text(json.dumps(kept, indent=1))
        return measured

    def head(self, tokens: int, layers: int) -> Path:
        """Returns where the head of a size is kept."""
        return self.folder / f"{layers}x{tokens}.safetensors"

    @property
    def _file(self) -> Path:
        return self.folder / "study.json"

    def _first(self, tokens: int) -> list[Passage]:
        """Returns the first passages that hold `tokens` tokens of the model's own, or a few more."""
        kept: list[Passage] = []
        for passage in self.rest:
            if tokens <= 0:
                break
            kept.append(passage)
            tokens -= len(passage.tokens) - passage.begin
        return kept


def measure_file(path: Path, model: Model, passages: Sequence[Passage]) -> Measured:
    """Measures a head that was trained before. Raises `UsageError` for what is none, or another model's."""
    trainer, tokens = HeadTrainer.of_file(path, model)
    return replace(measure(trainer, passages), tokens=tokens)


@torch.no_grad()
def measure(trainer: HeadTrainer, passages: Sequence[Passage]) -> Measured:
    """Returns tau and alpha of a head.

    tau: the mean over places of texts of 1 plus the tokens that a chain of `DEPTH` gets right before it first errs.
    alpha: the mean over places of the sum of min(p, q) over the target's whole vocabulary.
    """
    taus, alphas, firsts, runs = [], [], [], []
    for passage in passages:
        batch = as_batch([passage])
        if int(batch.own.sum()) < DEPTH + 2:
            continue
        embeddings = trainer.embed(batch.tokens.flatten()).view(*batch.tokens.shape, -1)
        starts = torch.arange(int(batch.own[0].float().argmax()), batch.tokens.shape[1] - 1 - DEPTH)
        _, steps, _ = trainer.net(batch.features, embeddings, starts, DEPTH, 0)
        right = [_right(trainer, step[0], batch.tokens[0, starts + depth]) for depth, step in enumerate(steps, 1)]
        run = torch.stack(right).float().cumprod(0)
        taus.append(1 + run.sum(0).mean())
        firsts.append(run.mean(1))
        runs.append(run.shape[1])
        alphas.append(_overlap(trainer, batch.wanted[0, starts], steps[0][0]))
    tau, alpha = torch.stack(taus).double(), torch.stack(alphas).double()
    reach = torch.stack(firsts).mean(0)
    shares = reach / torch.cat([torch.ones(1), reach[:-1]]).clamp_min(1e-9)
    return Measured(
        layers=trainer.recipe.layers,
        tokens=0,
        parameters=sum(parameter.numel() for parameter in trainer.net.parameters()),
        tau=float(tau.mean()),
        tau_error=_error(tau),
        alpha=float(alpha.mean()),
        alpha_error=_error(alpha),
        right=tuple(round(share, 4) for share in shares.tolist()),
    )


def _right(trainer: HeadTrainer, step: Tensor, tokens: Tensor) -> Tensor:
    """Tells where the head's best token is the one that comes: step [chains, hidden], tokens and result [chains]."""
    return trainer.vocabulary[(step @ trainer.head.T).argmax(-1)] == tokens


def _overlap(trainer: HeadTrainer, wanted: Tensor, guess: Tensor) -> Tensor:
    q = (wanted @ trainer.whole_head().T).softmax(-1)[:, trainer.vocabulary]
    p = (guess @ trainer.head.T).softmax(-1)
    return torch.minimum(p, q).sum(-1).mean()


def _error(values: Tensor) -> float:
    """The standard error of a mean over texts, by the bootstrap."""
    draw = random.Random(0)
    means = [float(values[[draw.randrange(len(values)) for _ in range(len(values))]].mean()) for _ in range(RESAMPLES)]
    return float(torch.tensor(means).std())


def study_of(lm: LM, recipe: HeadRecipe, tokens: int, folder: Path, progress: Progress) -> DraftStudy:
    """Returns a study on `tokens` tokens that the model writes itself, kept in `folder`. Only greedy texts are taken:
    tau is what a chain gives at temperature 0.
    """
    corpus = Corpus(folder / "corpus", lm.model, recipe.seed)
    own = tokens * WARM_EVERY // (WARM_EVERY - 1)
    corpus.grow(lm, own + own // (HELD_OUT - 1) + 1, None, progress)
    greedy = [p for place, p in enumerate(corpus.passages()) if place % WARM_EVERY != WARM_EVERY - 1]
    return DraftStudy(lm.model, greedy, recipe, folder)


def batch_speeds(
    lm: LM, draft: Model | DraftSource, prompts: Sequence[list[int]], batches: Sequence[int], progress: Progress
) -> dict[str, list[Point]]:
    """Returns the tokens a second of plain decoding and of a chain of drafts at several batches, as points of laws in
    the batch (theorem 1.3); the rounds of both alternate, and the first is not counted.
    """
    methods: dict[str, Method] = {"plain": Greedy(), "drafted": Speculative()}
    found: dict[str, list[Point]] = {name: [] for name in methods}
    turns = len(batches) * (BATCH_ROUNDS + 1)
    for place, batch in enumerate(batches):
        speeds: dict[str, list[float]] = {name: [] for name in methods}
        for turn in range(BATCH_ROUNDS + 1):
            progress(f"decoding {batch} at a time", place * (BATCH_ROUNDS + 1) + turn, turns)
            for name, method in methods.items():
                some = [prompts[index % len(prompts)] for index in range(batch)]
                lm.engine.clear()
                seconds, done = _timed(lm, some, method, draft, BATCH_TOKENS, None)
                if turn:
                    speeds[name].append(sum(len(each.tokens) for each in done) / seconds)
        for name, each in speeds.items():
            found[name].append(Point(median(each), stdev(each), batch=batch, what=f"tokens a second, {name}"))
    return found


@dataclass(frozen=True)
class RoundCosts:
    """The seconds of rounds with so many requests together: `plain` of one without drafts, `drafted[layers][depth]` of
    one with a chain of `depth` from a head of `layers`. Between those that were timed they are taken to be linear.
    """

    plain: float
    drafted: Mapping[int, Mapping[int, float]]

    def __call__(self, layers: int, depth: int) -> float:
        """Returns the seconds of a round."""
        at = [np.interp(depth, list(timed), list(timed.values())) for timed in self.drafted.values()]
        return float(np.interp(layers, list(self.drafted), at))


def round_costs(lm: LM, sizes: Sequence[int], vocabulary: int, batch: int, progress: Progress) -> RoundCosts:
    """Times rounds with `batch` requests together, without drafts and with chains from heads of some numbers of layers,
    in ascending order. The heads are not trained: they take what trained ones do, and none of their tokens is kept. All
    kinds of rounds take turns.
    """
    config = lm.model.decoder.config
    context = max(1, min(COST_CONTEXT, config.max_positions - COST_ROUNDS * (max(COST_DEPTHS) + 1)))
    prompts = [[(place + request) % config.vocab_size for place in range(context)] for request in range(batch)]
    kinds: dict[tuple[int, int], tuple[Method, Model | None]] = {(0, 0): (Greedy(), None)}
    for layers in sizes:
        head = untrained_draft_head(lm.model, layers, vocabulary)
        kinds |= {(layers, depth): (Speculative(depth), head) for depth in COST_DEPTHS}
    seconds: dict[tuple[int, int], list[float]] = {kind: [] for kind in kinds}
    turns = COST_WARM + COST_TURNS
    for turn in range(turns):
        for place, (kind, (method, draft)) in enumerate(kinds.items()):
            progress(f"timing rounds, {batch} at a time", turn * len(kinds) + place, turns * len(kinds))
            most = COST_ROUNDS * (kind[1] + 1)
            took, _ = _timed(lm, prompts, method, draft, most, Budget(target_passes=COST_ROUNDS))
            if turn >= COST_WARM:
                seconds[kind].append(took / COST_ROUNDS)
    at = {kind: median(each) for kind, each in seconds.items()}
    return RoundCosts(at[0, 0], {layers: {depth: at[layers, depth] for depth in COST_DEPTHS} for layers in sizes})


def _timed(
    lm: LM,
    prompts: Sequence[list[int]],
    method: Method,
    draft: Model | DraftSource | None,
    most: int,
    budget: Budget | None,
) -> tuple[float, list[Result]]:
    """Returns the seconds that up to `most` tokens behind each prompt take, and the results. That the target and the
    draft read the prompts is not counted.
    """
    lm.generate_batch(prompts, method=method, draft=draft, max_tokens=3, ignore_eos=True)
    started = time.perf_counter()
    done = lm.generate_batch(prompts, method=method, draft=draft, max_tokens=most, ignore_eos=True, budget=budget)
    return time.perf_counter() - started, done
