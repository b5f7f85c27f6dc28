"""Trainings that make the points of scaling laws (Scylla, Yan et al. 2025, section 4).

A study trains draft heads on more and more text, and with more and more layers, and measures the acceptance of each on
held-out text.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from outlay.errors import UsageError
from outlay.lm import LM
from outlay.models.load import Model
from outlay.scaling.points import Point
from outlay.train.batches import as_batch
from outlay.train.corpus import WARM_EVERY, Corpus, Passage
from outlay.train.draft_head import HELD_OUT, DraftHeadRecipe, DraftHeadTrainer

Progress = Callable[[str, int, int], None]
DEPTH = 5  # tokens of the chain that tau is measured with (the specification's)
TAU_LIMITS = (1.0, DEPTH + 1.0)  # the bonus token alone, and the whole chain with it
CONTEXTS = 200  # texts that a draft head is measured on, at most; about the specification's 192
RESAMPLES = 200  # of the bootstrap (the specification's)


@dataclass(frozen=True)
class Measured:
    """A draft head with its acceptance."""

    layers: int
    """Its decoder layers."""
    tokens: int
    """Tokens that it was trained on."""
    parameters: int
    """Its trained parameters."""
    tau: float
    """Mean acceptance length of a greedy chain of `DEPTH` tokens."""
    tau_error: float
    """Standard error of tau over texts."""
    alpha: float
    """Mean acceptance rate of a drafted token at temperature 1: the overlap of both distributions."""
    alpha_error: float
    """Standard error of alpha over texts."""
    right: tuple[float, ...]
    """Hit rate at each depth of the chain, after hits at all depths before."""

    def point(self, of: str = "tau") -> Point:
        """Returns a point of a law in `of`, "tau" or "alpha"."""
        what = f"tau at depth {DEPTH}" if of == "tau" else "alpha"
        value, error = (self.tau, self.tau_error) if of == "tau" else (self.alpha, self.alpha_error)
        return Point(value, error, self.tokens, self.layers, what=what)


class DraftStudy:
    """Draft heads of several sizes for one model, trained on one corpus.

    They are kept in a folder with what was measured, so that a study can be stopped and gone on with.
    """

    def __init__(self, model: Model, passages: Sequence[Passage], recipe: DraftHeadRecipe, folder: Path) -> None:
        """Opens a study.

        Args:
            model: The target.
            passages: Greedy texts; every `HELD_OUT`-th is held out.
            recipe: How draft heads are trained, but for their layers and tokens.
            folder: Where they are kept.
        """
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
        """Trains a draft head of `layers` on `tokens` tokens and measures it, unless that was done before.

        Raises:
            UsageError: The folder holds draft heads of another recipe.
        """
        if self._recipe != asdict(self.recipe):
            raise UsageError(f"{self.folder} holds draft heads of another recipe; choose another folder")
        for known in self.found:
            if (known.tokens, known.layers) == (tokens, layers):
                return known
        path = self.path(tokens, layers)
        trainer = DraftHeadTrainer(self.model, replace(self.recipe, layers=layers, tokens=tokens), self._first(tokens))
        trainer.fit(path.with_suffix(".checkpoint"), progress)
        trainer.save(path)
        measured = replace(measure_file(path, self.model, self.held), tokens=tokens)
        self.found.append(measured)
        kept = {"recipe": asdict(self.recipe), "heads": [asdict(each) for each in self.found]}
        self._file.write_text(json.dumps(kept, indent=1))
        return measured

    def path(self, tokens: int, layers: int) -> Path:
        """Returns where the draft head of a size is kept."""
        return self.folder / f"{layers}x{tokens}.safetensors"

    @property
    def _file(self) -> Path:
        return self.folder / "study.json"

    def _first(self, tokens: int) -> list[Passage]:
        """Returns the fewest first passages that hold `tokens` tokens of the model's own."""
        some: list[Passage] = []
        for passage in self.rest:
            if tokens <= 0:
                break
            some.append(passage)
            tokens -= len(passage.tokens) - passage.begin
        return some


def study_of(lm: LM, recipe: DraftHeadRecipe, tokens: int, folder: Path, progress: Progress) -> DraftStudy:
    """Has the model write text and opens a study on it.

    Only greedy texts are taken, since tau is measured at temperature 0.

    Args:
        lm: The target.
        recipe: How draft heads are trained.
        tokens: Tokens of the model's own that the largest training takes.
        folder: Where text and draft heads are kept.
        progress: Called now and then.
    """
    corpus = Corpus(folder / "corpus", lm.model, recipe.seed)
    own = tokens * WARM_EVERY // (WARM_EVERY - 1)
    corpus.grow(lm, own + own // (HELD_OUT - 1) + 1, None, progress)
    greedy = [p for place, p in enumerate(corpus.passages()) if place % WARM_EVERY != WARM_EVERY - 1]
    return DraftStudy(lm.model, greedy, recipe, folder)


def measure_file(path: Path, model: Model, passages: Sequence[Passage]) -> Measured:
    """Measures a trained draft head, with its weights as they are held where it drafts.

    Raises:
        UsageError: The file holds no draft head of this model.
    """
    trainer, tokens = DraftHeadTrainer.of_file(path, model)
    return replace(measure(trainer, passages), tokens=tokens)


@torch.no_grad()
def measure(trainer: DraftHeadTrainer, passages: Sequence[Passage]) -> Measured:
    """Measures tau and alpha of a draft head, with chains that begin at every place of the model's own text.

    tau is the mean of 1 plus the drafted tokens before the first miss. alpha is the mean of the sum of min(draft_probs,
    target_probs) over the target's whole vocabulary.

    Args:
        trainer: The draft head.
        passages: Greedy texts; those too short for a chain are left out.
    """
    full_lm_head = trainer.full_lm_head()
    taus, alphas, reaches = [], [], []
    for passage in passages:
        batch = as_batch([passage])
        if int(batch.own.sum()) < DEPTH + 2:
            continue
        starts = torch.arange(int(batch.own[0].float().argmax()), batch.tokens.shape[1] - 1 - DEPTH)
        _, steps, _ = trainer.net(batch.before, trainer.embed(batch.tokens), starts, DEPTH, 0)
        hits = [_hits(trainer, step[0], batch.tokens[0, starts + depth]) for depth, step in enumerate(steps, 1)]
        accepted = torch.stack(hits).float().cumprod(0)
        taus.append(1 + accepted.sum(0).mean())
        reaches.append(accepted.mean(1))
        alphas.append(_overlap(trainer, batch.hidden_states[0, starts] @ full_lm_head.T, steps[0][0]))
    tau, alpha, reach = torch.stack(taus).double(), torch.stack(alphas).double(), torch.stack(reaches).mean(0)
    hit_rates = reach / torch.cat([torch.ones(1), reach[:-1]]).clamp_min(1e-9)
    return Measured(
        layers=trainer.recipe.layers,
        tokens=0,
        parameters=sum(parameter.numel() for parameter in trainer.net.parameters()),
        tau=float(tau.mean()),
        tau_error=_standard_error(tau),
        alpha=float(alpha.mean()),
        alpha_error=_standard_error(alpha),
        right=tuple(round(rate, 4) for rate in hit_rates.tolist()),
    )


def _hits(trainer: DraftHeadTrainer, output: Tensor, tokens: Tensor) -> Tensor:
    """Tells where the draft head's best token is the text's: output [chains, hidden], tokens and result [chains]."""
    return trainer.vocabulary[(output @ trainer.lm_head.T).argmax(-1)] == tokens


def _overlap(trainer: DraftHeadTrainer, target_logits: Tensor, output: Tensor) -> Tensor:
    """Returns the mean overlap: target_logits [chains, vocab], output [chains, hidden] of the draft head."""
    target_probs = target_logits.softmax(-1)[:, trainer.vocabulary]
    draft_probs = (output @ trainer.lm_head.T).softmax(-1)
    return torch.minimum(draft_probs, target_probs).sum(-1).mean()


def _standard_error(values: Tensor) -> float:
    """Returns the standard error of a mean over texts, by the bootstrap."""
    draw = random.Random(0)
    means = [float(values[[draw.randrange(len(values)) for _ in range(len(values))]].mean()) for _ in range(RESAMPLES)]
    return float(torch.tensor(means).std())
