"""`outlay train length`: fits a length predictor to a frozen model, for budget guidance (Li et al. 2025, section 3.2).

It learns from texts with a thinking span, the user's or those that the model writes itself. At each token of the span
the predictor reads the model's hidden states of all layers and is told how many tokens the span still had; only the
predictor gets gradients. The hidden states are computed as they are needed, a text at a time, and never kept.
"""

from __future__ import annotations

import random
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import ClassVar

import torch
from torch import Tensor

from outlay.decode.steer.budget_guidance.predictor import (
    KIND,
    LengthPredictor,
    PredictorShape,
    gamma_nll,
    layer_outputs,
    most_likely_length,
)
from outlay.engine.engine import Engine
from outlay.engine.method import About, Method, Work
from outlay.engine.random import mix
from outlay.engine.tree_run import TreeRun
from outlay.errors import FailureError, UsageError
from outlay.lm import LM
from outlay.models import fitted
from outlay.models.load import Model
from outlay.models.reasoning import Tags
from outlay.train.checkpoint import Checkpoint
from outlay.train.thinking_texts import Thoughts, short_copy

Progress = Callable[[str, int, int], None]
PAPER_RATE = 10.0  # the authors' threshold on the rate; a fitted one is no higher, and excludes no token that was right
HELD_OUT = 10  # every tenth text is measured on
TOGETHER = 32  # texts that are read in one batch
CHUNK = 256  # positions whose logits, or activations of the predictor, are held at once
HELD = 1 << 27  # numbers of hidden states that are held of several texts, 512 MiB
KEEP_EVERY = 500  # steps between checkpoints


@dataclass(frozen=True)
class LengthRecipe:
    """How a length predictor is trained."""

    width: int = 128
    """Width of the encoder. Paper: 768, BERT's."""
    layers: int = 2
    """Layers of the encoder; 0: the heads read the last hidden state. Paper: 12."""
    heads: int = 4
    """Attention heads of a layer. Paper: 12."""
    epochs: int = 1
    """Times that the texts are gone through. Paper: 1."""
    batch: int = 1
    """Texts of a step. Paper: 1."""
    lr: float | None = None
    """Learning rate of AdamW; None: 1e-4 * 768 / width, which is the paper's at its width."""
    warmup: float = 0.05
    """Share of the steps over which the learning rate rises. Paper: 0.05."""
    longest: int = 8192
    """Tokens of a text that are read; lengths are those of the whole text. Paper: 8192."""
    short_copies: bool = True
    """Whether each text is learned from again with its answer in place of its thinking. Paper: true."""
    seed: int = 0
    """Seed of all draws."""

    def __post_init__(self) -> None:
        for name in ("epochs", "batch", "longest"):
            if getattr(self, name) < 1:
                raise UsageError(f"{name} must be 1 or more, not {getattr(self, name)}")
        PredictorShape(self.width, self.layers, self.heads)

    @property
    def rate(self) -> float:
        """The learning rate."""
        return 1e-4 * 768 / self.width if self.lr is None else self.lr


class ReadStates(Method):
    """Keeps the hidden states of all layers at the positions from `begin` to `end` of a prompt."""

    about: ClassVar[About] = About(
        name="read_states",
        summary="reads a prompt, and keeps the hidden states of all layers",
        paper="",
        family="training",
        spends="the prompt's passes",
        saves="",
    )

    def __init__(self, begin: int, end: int) -> None:
        self.begin, self.end = begin, end
        self.states = torch.empty(0)

    def decode(self, run: TreeRun) -> Work:
        """Asks for the states in chunks, and ends the run."""
        nodes, found = run.tip.path()[self.begin : self.end], list[Tensor]()
        for first in range(0, len(nodes), CHUNK):
            _, states = yield run.target.forward_with_states(nodes[first : first + CHUNK])
            found.append(layer_outputs(run.model.decoder, states))
        self.states = torch.cat(found)
        run.commit(run.tip.token)


class LengthTrainer:
    """A predictor in training; the model is frozen."""

    def __init__(self, model: Model, tags: Tags, recipe: LengthRecipe) -> None:
        """Draws the weights.

        Args:
            model: The model.
            tags: What stands around its thinking.
            recipe: How the predictor is trained.

        Raises:
            UsageError: The model has an encoder.
        """
        if model.encoder is not None:
            raise UsageError(f"{model.name} has an encoder, for which no length predictor is trained")
        torch.manual_seed(recipe.seed)
        config = model.decoder.config
        self.model, self.tags, self.recipe = model, tags, recipe
        self.net = LengthPredictor(
            config.hidden_size, config.vocab_size, PredictorShape(recipe.width, recipe.layers, recipe.heads)
        )
        self._reader = LM(model, Engine(prefix_cache=False))

    def fit(self, texts: Sequence[Thoughts], checkpoint: Path | None, progress: Progress) -> None:
        """Trains for `recipe.epochs`; goes on from `checkpoint`, if that is there, and removes it at the end."""
        recipe = self.recipe
        optimizer = torch.optim.AdamW(self.net.parameters(), lr=recipe.rate, weight_decay=0.0)
        order = [each for epoch in range(recipe.epochs) for each in self._shuffled(texts, epoch)]
        batches = [order[first : first + recipe.batch] for first in range(0, len(order), recipe.batch)]
        kept = Checkpoint(checkpoint, recipe, self.net.state_dict(), optimizer)
        rise = max(1, round(recipe.warmup * len(batches)))
        self.net.train()
        begin = kept.resume()
        states = self._states_of(text for batch in batches[begin:] for text in batch)
        for step, batch in enumerate(batches[begin:], begin):
            optimizer.param_groups[0]["lr"] = recipe.rate * min(1.0, (step + 1) / rise)
            torch.manual_seed(mix(recipe.seed, step))  # of the dropout, the same where a training was stopped
            loss = sum(self.learn(text, next(states)) for text in batch) / len(batch)
            for parameter in self.net.parameters():
                assert parameter.grad is not None
                parameter.grad /= len(batch)
            optimizer.step()
            optimizer.zero_grad()
            progress(f"training, loss {loss:.3f}", step + 1, len(batches))
            if (step + 1) % KEEP_EVERY == 0:
                kept.save(step + 1)
        kept.remove()
        self.net.eval()

    def learn(self, text: Thoughts, states: Tensor) -> float:
        """Adds the gradients of a text's loss, the mean over its thinking; returns the loss.

        Args:
            text: The text.
            states: Hidden states before each token of the span, [positions, layers + 1, hidden_size].
        """
        total = 0.0
        for first in range(0, len(states), CHUNK):
            shape, rate, lengths = self.predicted(text, states[first : first + CHUNK], first)
            loss = gamma_nll(shape, rate, lengths).sum() / len(states)
            loss.backward()
            total += loss.item()
        return total

    def predicted(self, text: Thoughts, states: Tensor, first: int = 0) -> tuple[Tensor, Tensor, Tensor]:
        """Returns shape and rate at the tokens that follow, and the true remaining lengths, float32 [positions].

        Args:
            text: The text.
            states: Hidden states before tokens of its span, [positions, layers + 1, hidden_size].
            first: The place in the span of the first of these tokens.
        """
        begin = text.begin + first
        stop = begin + len(states)
        shape, rate = self.net.at(states, torch.tensor(text.tokens[begin:stop]))
        return shape, rate, text.end - torch.arange(begin, stop, dtype=torch.float32)

    @torch.no_grad()
    def measure(self, texts: Sequence[Thoughts], progress: Progress) -> LengthReport:
        """Measures the predictor on held-out texts, at the tokens that follow."""
        self.net.eval()
        found = list[tuple[Tensor, Tensor, Tensor, Tensor]]()
        for done, (text, states) in enumerate(zip(texts, self._states_of(texts), strict=True), 1):
            for first in range(0, len(states), CHUNK):
                shape, rate, lengths = self.predicted(text, states[first : first + CHUNK], first)
                found.append((rate, most_likely_length(shape, rate), lengths, lengths / (text.end - text.begin)))
            progress("measuring", done, len(texts))
        return report(*(torch.cat(parts) for parts in zip(*found, strict=True)))

    def save(self, path: Path, found: LengthReport) -> None:
        """Writes the predictor with what was measured."""
        shape = asdict(self.net.shape)
        fitted.write(
            path, KIND, self.model, self.net.state_dict(), shape=shape, tags=list(self.tags),
            min_rate=found.min_rate, correlation=found.correlation, errors=found.errors, recipe=asdict(self.recipe),
        )  # fmt: skip

    def _shuffled(self, texts: Sequence[Thoughts], epoch: int) -> list[Thoughts]:
        return random.Random(f"{self.recipe.seed}/{epoch}").sample(list(texts), len(texts))

    def _states_of(self, texts: Iterable[Thoughts]) -> Iterator[Tensor]:
        """Yields the hidden states before each token of the texts' spans, as far as they are read."""
        config, group, held = self.model.decoder.config, list[Thoughts](), 0
        for text in texts:
            size = (text.end - text.begin) * (config.num_layers + 1) * config.hidden_size
            if group and (held + size > HELD or len(group) == TOGETHER):
                yield from self._read(group)
                group, held = [], 0
            group.append(text)
            held += size
        yield from self._read(group)

    def _read(self, texts: Sequence[Thoughts]) -> list[Tensor]:
        longest = min(self.recipe.longest, self.model.decoder.config.max_positions)
        stops = [min(text.end, longest) for text in texts]
        readers = [ReadStates(text.begin - 1, stop - 1) for text, stop in zip(texts, stops, strict=True)]
        with self._reader.engine.together():
            handles = [
                self._reader.submit(text.tokens[: stop - 1], method=reader, max_tokens=1, ignore_eos=True)
                for text, stop, reader in zip(texts, stops, readers, strict=True)
            ]
        for handle in handles:
            handle.result()
        return [reader.states.clone() for reader in readers]  # made for inference, they can't be learned from


@dataclass(frozen=True)
class LengthReport:
    """What a predictor is good for, measured on held-out texts."""

    min_rate: float
    """The threshold on the rate below which tokens count as untrained."""
    correlation: float
    """Spearman's, of the most likely remaining length and the true one."""
    errors: dict[str, float]
    """Mean error in tokens without the largest tenth, over the last 10, 25, 50 and 100 % of the spans."""


def report(rates: Tensor, predicted: Tensor, true: Tensor, shares: Tensor) -> LengthReport:
    """Returns the report of positions, all [positions]; `shares` are the shares of their spans that remain."""
    errors = {}
    for percent in (10, 25, 50, 100):
        sizes = (predicted - true)[shares <= percent / 100].abs().sort().values
        if len(sizes):
            errors[str(percent)] = round(float(sizes[: max(1, int(0.9 * len(sizes)))].mean()), 2)
    return LengthReport(min(PAPER_RATE, float(rates.min())), round(rank_correlation(predicted, true), 4), errors)


def rank_correlation(one: Tensor, other: Tensor) -> float:
    """Returns Spearman's rank correlation of two samples [n]; equal values share their mean rank."""
    ranks = torch.stack([mean_ranks(one), mean_ranks(other)])
    return float(torch.corrcoef(ranks)[0, 1].nan_to_num())


def mean_ranks(values: Tensor) -> Tensor:
    """Returns the rank of each value, float64 [n], the mean rank among equals."""
    _, groups, counts = torch.unique(values, return_inverse=True, return_counts=True)
    ends = counts.cumsum(0).double()
    return (ends - (counts.double() - 1) / 2)[groups]


def train_length(
    lm: LM, recipe: LengthRecipe, tags: Tags, texts: Sequence[Thoughts], out: Path, progress: Progress
) -> LengthReport:
    """Trains a length predictor on texts, measures it on every tenth, and writes it to `out`.

    A checkpoint is kept beside `out` until that is there, so that the training can be stopped and gone on with.

    Args:
        lm: The model.
        recipe: How the predictor is trained.
        tags: What stands around the thinking.
        texts: What it learns from.
        out: The file.
        progress: Called now and then.

    Raises:
        FailureError: There are too few texts.
    """
    longest = min(recipe.longest, lm.model.decoder.config.max_positions)
    texts = [text for text in texts if text.begin < longest]
    if len(texts) < 2:
        raise FailureError(f"{len(texts)} texts think up to {tags.closing!r} and end, of which 2 or more are needed")
    work = out.with_name(f"{out.name}.work")
    work.mkdir(parents=True, exist_ok=True)
    held = list(texts[::HELD_OUT])
    rest = [text for place, text in enumerate(texts) if place % HELD_OUT]
    if recipe.short_copies:
        copies = (short_copy(lm.model.tokenizer, tags, text) for text in rest)
        rest += [copy for copy in copies if copy is not None]
    trainer = LengthTrainer(lm.model, tags, recipe)
    trainer.fit(rest, work / "length.checkpoint", progress)
    found = trainer.measure(held, progress)
    trainer.save(out, found)
    shutil.rmtree(work)
    return found
