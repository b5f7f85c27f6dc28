"""`outlay train draft`: distills a draft head from a model on text that the model wrote itself.

The loss is the cross-entropy between the target's and the draft head's distribution over the drafted vocabulary, at
each of the unrolled steps (EAGLE-3's training-time test, which needs no distance of hidden states). Later steps weigh
less.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from outlay.engine.random import mix
from outlay.errors import UsageError
from outlay.lm import LM
from outlay.models import fitted
from outlay.models.decoder import Decoder, Layer
from outlay.models.draft_head import KIND, PROMPT_TOKENS, draft_head_config, lm_head_rows, load_draft_head
from outlay.models.linear import NativeLinear, weight_of
from outlay.models.load import Model
from outlay.models.mlp import Mlp
from outlay.models.norm import RMSNorm
from outlay.train.batches import Batch, as_batch, batches, frequent_tokens, own_tokens
from outlay.train.checkpoint import Checkpoint
from outlay.train.corpus import Corpus, Passage
from outlay.train.draft_head_net import DraftHeadNet
from outlay.train.schedule import schedule

Progress = Callable[[str, int, int], None]
HitRates = dict[str, list[float]]  # "steps" and "prompts" -> share of places where both best tokens agree, by depth

PROMPTS_FASTER = 5.0  # learning rate of the prompt tokens over that of the layers, which start trained
KEEP_EVERY = 200  # steps between checkpoints
FASTER = 1.5  # speed of bfloat16 products over float32 ones from which they are used; AVX-512 gave 1.7 in training
HELD_OUT = 16  # every 16th passage is held out for measuring


@dataclass(frozen=True)
class DraftHeadRecipe:
    """How a draft head is trained."""

    layers: int = 1
    """Decoder layers of the draft head."""
    vocabulary: int = 8192
    """Tokens that it drafts: those that the model writes most."""
    unroll: int = 3
    """Steps that are trained, each fed with the output of the one before."""
    ahead: int = PROMPT_TOKENS
    """Prompt tokens that guess further ahead in the same pass."""
    decay: float = 0.8
    """Weight of a step's loss over that of the step before."""
    epochs: int = 2
    """Times that the text is gone through; the first of several trains the first step only."""
    batch: int = 256
    """Tokens of a batch, padding included."""
    lr: float = 2e-3
    """Highest learning rate of AdamW."""
    warmup: float = 0.03
    """Share of the steps in which the learning rate rises."""
    clip: float = 0.5
    """Largest norm of a step's gradient."""
    tokens: int | None = None
    """The model's own tokens that the corpus was grown to; None: all that it holds."""
    seed: int = 0
    """Seed of all draws."""

    def __post_init__(self) -> None:
        for name in ("layers", "vocabulary", "unroll", "epochs", "batch"):
            if getattr(self, name) < 1:
                raise UsageError(f"{name} must be 1 or more, not {getattr(self, name)}")


class DraftHeadTrainer:
    """A draft head in training.

    The first of several epochs trains the first step alone: the other steps build on it, and it is the cheapest.
    """

    def __init__(
        self, model: Model, recipe: DraftHeadRecipe, passages: Sequence[Passage], vocabulary: Tensor | None = None
    ) -> None:
        """Makes a draft head that begins as the target's last layers.

        Args:
            model: The target.
            recipe: How it is trained.
            passages: What it is trained on.
            vocabulary: The tokens that it drafts; None: the most frequent ones of `passages`.

        Raises:
            UsageError: The target is not of the Llama family.
        """
        config = model.decoder.config
        if config.rope is None or not config.pre_norm or config.layer_norm:
            raise UsageError(f"draft heads are trained for models of the Llama family, not {config.architecture}")
        torch.manual_seed(recipe.seed)
        self.recipe, self.passages = recipe, passages
        self.vocabulary = frequent_tokens(passages, recipe.vocabulary) if vocabulary is None else vocabulary
        self.net = DraftHeadNet(draft_head_config(config, recipe.layers, len(self.vocabulary)), recipe.ahead)
        self.lm_head = lm_head_rows(model, self.vocabulary)
        self._model = model
        if passages:
            _initialise(self.net, model, passages[0])

    @classmethod
    def of_file(cls, path: Path, model: Model) -> tuple[DraftHeadTrainer, int]:
        """Reads a trained draft head, with its weights rounded as the drafting model holds them.

        Returns:
            The draft head, and the number of tokens that it was trained on.

        Raises:
            UsageError: The file holds no draft head of this model.
        """
        tensors, about = fitted.read(path, KIND, model)
        trainer = cls(model, DraftHeadRecipe(**about["recipe"]), (), tensors.pop("vocabulary").long())
        trainer.net.load_state_dict({name: tensor.float() for name, tensor in tensors.items()}, strict=False)
        trainer._round_to(load_draft_head(path, model).decoder)
        return trainer, int(about["trained_on"])

    def embed(self, tokens: Tensor) -> Tensor:
        """Returns the target's input embeddings, [*tokens.shape, hidden_size]."""
        return self._model.decoder.embed(tokens.flatten()).view(*tokens.shape, -1)

    def full_lm_head(self) -> Tensor:
        """Returns the target's LM head over its whole vocabulary, float32 [vocab, hidden_size]."""
        return lm_head_rows(self._model, torch.arange(self._model.decoder.config.vocab_size))

    def fit(self, checkpoint: Path | None, progress: Progress) -> None:
        """Trains on all passages, `recipe.epochs` times.

        Args:
            checkpoint: A file to go on from, kept every `KEEP_EVERY` steps and removed at the end.
            progress: Called after each step.
        """
        recipe, passages = self.recipe, self.passages
        plan = [
            batch for epoch in range(recipe.epochs) for batch in batches(passages, recipe.batch, recipe.seed, epoch)
        ]
        optimizer = self._optimizer()
        kept = Checkpoint(checkpoint, recipe, self.net.state_dict(), optimizer)
        for step in range(kept.resume(), len(plan)):
            for group in optimizer.param_groups:
                group["lr"] = group["speed"] * recipe.lr * schedule(step, len(plan), recipe.warmup)
            warming = recipe.epochs > 1 and step < len(plan) // recipe.epochs
            depth = (1, 0) if warming else (recipe.unroll, recipe.ahead)
            draw = torch.Generator().manual_seed(mix(recipe.seed, step) >> 1)
            with torch.autocast("cpu", torch.bfloat16, enabled=bfloat16_is_faster()):
                loss, hits = self.loss(as_batch([passages[index] for index in plan[step]]), *depth, draw)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(self.net.parameters(), recipe.clip)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)

            shown = ", ".join(" ".join(f"{hit:.0%}" for hit in kind) for kind in hits.values())
            progress(f"training, loss {loss.item():.3f}, hits {shown}", step + 1, len(plan))
            if (step + 1) % KEEP_EVERY == 0:
                kept.save(step + 1)
        kept.remove()

    def loss(
        self, batch: Batch, unroll: int, ahead: int, draw: torch.Generator | None = None
    ) -> tuple[Tensor, HitRates]:
        """Computes the loss of a batch.

        Args:
            batch: The passages.
            unroll: Steps of a chain. The first step is trained at all places.
            ahead: Prompt tokens.
            draw: Chooses a third of the places, at which chains begin; None: chains begin at all.

        Returns:
            The cross-entropy, summed over steps and prompt tokens with their weights; and the hit rates.
        """
        with torch.no_grad():
            embeddings = self.embed(batch.tokens)
            target_probs = batch.own.new_zeros((*batch.own.shape, len(self.vocabulary)), dtype=torch.float32)
            target_probs[batch.own] = (batch.hidden_states[batch.own] @ self.lm_head.T).float().softmax(-1)
        starts = _starts(batch, max(unroll - 1, ahead), draw)
        first, steps, guesses = self.net(batch.before, embeddings, starts, unroll, ahead)

        total, hits = torch.zeros(()), {"steps": list[float](), "prompts": list[float]()}
        outputs = [("steps", 0, first)]
        outputs += [("steps", depth, output) for depth, output in enumerate(steps[1:], 1)]
        outputs += [("prompts", depth, output) for depth, output in enumerate(guesses, 1)]
        for kind, depth, output in outputs:
            seen, wanted = batch.own, target_probs
            if depth:
                seen, wanted = batch.own[:, starts] & batch.own[:, starts + depth], target_probs[:, starts + depth]
            entropy, hit_count = self._cross_entropy(output[seen], wanted[seen])
            places = max(1, int(seen.sum()))
            total = total + self.recipe.decay**depth * entropy / places
            hits[kind].append(hit_count / places)
        return total, hits

    @torch.no_grad()
    def measure(self, passages: Sequence[Passage]) -> HitRates:
        """Returns the hit rates on held-out passages; empty where all are too short."""
        sums: HitRates = {}
        total = 0
        for passage in passages:
            own = len(passage.tokens) - passage.begin
            if own < self.recipe.unroll + self.recipe.ahead + 2:
                continue
            _, hits = self.loss(as_batch([passage]), self.recipe.unroll, self.recipe.ahead)
            for kind, rates in hits.items():
                before = sums.get(kind, [0.0] * len(rates))
                sums[kind] = [old + rate * own for old, rate in zip(before, rates, strict=True)]
            total += own
        return {kind: [round(each / max(total, 1), 4) for each in weighted] for kind, weighted in sums.items()}

    def save(self, path: Path, **measured: Any) -> None:
        """Writes the draft head in bfloat16, with its recipe and what was measured of it."""
        tensors = {
            name: tensor.bfloat16() for name, tensor in self.net.state_dict().items() if name not in ("cos", "sin")
        }
        recipe = asdict(self.recipe)
        about = {"layers": self.recipe.layers, "recipe": recipe, "trained_on": own_tokens(self.passages), **measured}
        fitted.write(path, KIND, self._model, {**tensors, "vocabulary": self.vocabulary.int()}, **about)

    def _cross_entropy(self, output: Tensor, target_probs: Tensor) -> tuple[Tensor, float]:
        """Returns the sums over n places of the cross-entropy and of the hits.

        Args:
            output: [n, hidden], of the draft head.
            target_probs: [n, vocabulary].
        """
        logits = (output @ self.lm_head.T).float()
        entropy = -(target_probs * logits.log_softmax(-1)).sum()
        return entropy, float((logits.argmax(-1) == target_probs.argmax(-1)).sum())

    def _optimizer(self) -> torch.optim.Optimizer:
        layers = [parameter for name, parameter in self.net.named_parameters() if name != "prompts"]
        groups = [{"params": layers, "speed": 1.0}, {"params": [self.net.prompts], "speed": PROMPTS_FASTER}]
        return torch.optim.AdamW(groups, lr=self.recipe.lr, betas=(0.9, 0.95), weight_decay=0.01, fused=True)

    @torch.no_grad()
    def _round_to(self, decoder: Decoder) -> None:
        """Rounds the weights to those that the drafting decoder holds."""
        assert decoder.fuse is not None
        for layer, held in zip(self.net.layers, decoder.layers, strict=True):
            _copy_layer(layer, held)
        self.net.fuse.weight.copy_(weight_of(decoder.fuse))
        self.lm_head = weight_of(decoder.lm_head).to(self.lm_head)


def train_draft_head(
    lm: LM,
    recipe: DraftHeadRecipe,
    tokens: int,
    prompts: Sequence[list[int]] | None,
    out: Path,
    progress: Progress,
) -> HitRates:
    """Has a model write text, trains a draft head on it, and writes the draft head to `out`.

    Text and checkpoints are kept beside `out` until it is there, so that the training can be stopped and gone on with.

    Args:
        lm: The target.
        recipe: How the draft head is trained.
        tokens: Tokens of its own that the target writes.
        prompts: Token ids of prompts for it to answer; None: its own.
        out: The file.
        progress: Called now and then.

    Returns:
        The hit rates on held-out passages.
    """
    work = out.with_name(f"{out.name}.work")
    corpus = Corpus(work / "corpus", lm.model, recipe.seed)
    corpus.grow(lm, tokens, prompts, progress)
    passages = list(corpus.passages())
    held, rest = passages[::HELD_OUT], [passage for place, passage in enumerate(passages) if place % HELD_OUT]

    trainer = DraftHeadTrainer(lm.model, replace(recipe, tokens=tokens), rest or held)
    trainer.fit(work / "head.checkpoint", progress)
    hits = trainer.measure(held)
    trainer.save(out, right=hits)
    shutil.rmtree(work)
    return hits


@cache
def bfloat16_is_faster() -> bool:
    """Tells whether the processor multiplies in bfloat16 by instructions of its own, such as AMX's or AVX-512's."""
    x, weight = torch.randn(256, 576), torch.randn(1024, 576)

    def seconds(dtype: torch.dtype) -> float:
        a, b, taken = x.to(dtype), weight.to(dtype), []
        for _ in range(10):
            started = time.perf_counter()
            a @ b.T
            taken.append(time.perf_counter() - started)
        return min(taken)

    return FASTER * seconds(torch.bfloat16) < seconds(torch.float32)


def _starts(batch: Batch, behind: int, draw: torch.Generator | None) -> Tensor:
    """Returns places where chains begin, int64 [chains]: all that `behind` places follow, or a random third of them."""
    begin = int(batch.own.any(0).float().argmax())
    starts = torch.arange(begin, batch.own.shape[1] - behind)
    if draw is None:
        return starts
    return starts[torch.randperm(len(starts), generator=draw)[: -(-len(starts) // 3)]].sort().values


@torch.no_grad()
def _initialise(net: DraftHeadNet, model: Model, passage: Passage) -> None:
    """Begins the layers as the target's last ones, and their input as the input embedding.

    The hidden state, with the weights of the final norm divided out, is added a third as large. Half of the training
    is saved by it.
    """
    decoder, hidden = model.decoder, net.config.hidden_size
    embeddings, hidden_states = decoder.embed(passage.tokens), passage.hidden_states[:-1].float()
    norm = decoder.final_norm
    weights = norm.weight if isinstance(norm, RMSNorm) else torch.ones(hidden)

    net.fuse.bias.zero_()
    net.fuse.weight[:, :hidden] = torch.diag(2 / weights) / _rms(hidden_states / weights)
    net.fuse.weight[:, hidden:] = torch.eye(hidden) * 6 / _rms(embeddings)
    net.final_norm.weight.copy_(weights)
    mean = net.fuse(torch.cat([hidden_states.mean(0), embeddings[1:].mean(0)]))
    net.prompts.copy_(mean + 0.5 * mean.std() * torch.randn(net.prompts.shape))
    for back, layer in enumerate(reversed(net.layers), 1):  # a draft head may have more layers than the target
        _copy_layer(layer, decoder.layers[-min(back, len(decoder.layers))])


def _copy_layer(layer: Any, source: Layer) -> None:
    """Copies the weights of a decoder's layer, where they are of the same kind."""
    if not isinstance(source.mlp, Mlp):
        return
    pairs = [(layer.qkv, source.qkv), (layer.out, source.out)]
    pairs += [(layer.gate_up, source.mlp.gate_up), (layer.down, source.mlp.down)]
    for linear, held in pairs:
        weight = held.packed.dequantize() if isinstance(held, NativeLinear) else getattr(held, "weight", None)
        if isinstance(weight, Tensor) and weight.shape == linear.weight.shape and weight.is_floating_point():
            linear.weight.copy_(weight)
    for mine, theirs in ((layer.attn_norm, source.attn_norm), (layer.mlp_norm, source.mlp_norm)):
        if theirs is not None:
            mine.weight.copy_(theirs.weight)


def _rms(x: Tensor) -> float:
    return float(x.square().mean().sqrt()) + 1e-6
