"""`outlay train draft`: distills a draft head from a model on text that the model wrote itself.

The loss is the cross-entropy of the target's distribution over the drafted tokens with the head's, at each of the
unrolled steps (EAGLE-3's training-time test, which needs no distance of features), weighted less with each step.
"""

from __future__ import annotations

import json
import math
import random
import shutil
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
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
from outlay.models.linear import NativeLinear
from outlay.models.load import Model
from outlay.models.mlp import Mlp
from outlay.models.norm import RMSNorm
from outlay.train.corpus import Corpus, Passage
from outlay.train.frozen import weight_of
from outlay.train.head_net import HeadNet

Progress = Callable[[str, int, int], None]
CONTEXT = 128  # tokens before a model's own words that the head reads in training
PROMPTS_FASTER = 5.0  # the learning rate of the prompt tokens, over that of the layers
KEEP_EVERY = 200  # steps between checkpoints
FASTER = 1.5  # times that products in bfloat16 must be, to be worth their rounding
HELD_OUT = 16  # every so many passages one is kept for measuring


@dataclass(frozen=True)
class HeadRecipe:
    """How a head is trained. `vocabulary` is how many tokens it drafts; `tokens` how many of a corpus's own tokens it
    is trained on (None: all), once each in an epoch; `batch` counts tokens.
    """

    layers: int = 1
    vocabulary: int = 8192
    unroll: int = 3
    ahead: int = PROMPT_TOKENS
    decay: float = 0.8
    epochs: int = 2
    batch: int = 256
    lr: float = 2e-3
    warmup: float = 0.03
    clip: float = 0.5
    tokens: int | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("layers", "vocabulary", "unroll", "epochs", "batch"):
            if getattr(self, name) < 1:
                raise UsageError(f"{name} must be 1 or more, not {getattr(self, name)}")


@dataclass(frozen=True)
class Batch:
    """Padded passages: `features` and `embeddings` [batch, time, hidden] are f_{t-1} and e_t at place t, `wanted` is
    f_t, `own` [batch, time] tells where the next token is the model's own and f_t is known."""

    tokens: Tensor
    features: Tensor
    wanted: Tensor
    own: Tensor


class HeadTrainer:
    """A head in training: `fit` trains it, and goes on from a checkpoint if there is one.

    The first of several epochs trains the first step alone, which the others build on and which is the cheapest.
    """

    def __init__(
        self, model: Model, recipe: HeadRecipe, passages: Sequence[Passage], vocabulary: Tensor | None = None
    ) -> None:
        """`passages` are what it is trained on; it drafts the tokens of `vocabulary`, by default those that they hold
        most often.
        """
        config = model.decoder.config
        if config.rope is None or not config.pre_norm or config.layer_norm:
            raise UsageError(f"draft heads are trained for models of the Llama family, not {config.architecture}")
        torch.manual_seed(recipe.seed)
        self.recipe, self.passages = recipe, passages
        self._model = model
        self._whole: Tensor | None = None
        self.vocabulary = frequent_tokens(passages, recipe.vocabulary) if vocabulary is None else vocabulary
        self.config = draft_head_config(config, recipe.layers, len(self.vocabulary))
        self.net = HeadNet(self.config, recipe.ahead)
        self.embed = model.decoder.embed
        self.head = lm_head_rows(model, self.vocabulary)
        if passages:
            _initialise(self.net, model, passages)

    @classmethod
    def of_file(cls, path: Path, model: Model) -> tuple[HeadTrainer, int]:
        """Returns a head that was trained before, with its weights as they are held where it drafts, and on how many
        tokens it was trained. Raises `UsageError` for what is none.
        """
        tensors, about = fitted.read(path, KIND, model)
        trainer = cls(model, HeadRecipe(**about["recipe"]), (), tensors.pop("vocabulary").long())
        trainer.net.load_state_dict({name: tensor.float() for name, tensor in tensors.items()}, strict=False)
        trainer._hold(load_draft_head(path, model).decoder)
        return trainer, int(about["trained_on"])

    @torch.no_grad()
    def _hold(self, decoder: Decoder) -> None:
        """Rounds the weights to those of the decoder that drafts."""
        assert decoder.fuse is not None
        for layer, held in zip(self.net.layers, decoder.layers, strict=True):
            _copy_layer(layer, held)
        self.net.fuse.weight.copy_(weight_of(decoder.fuse))
        self.head = weight_of(decoder.lm_head).to(self.head)

    def whole_head(self) -> Tensor:
        """Returns the target's own head, float32 [vocab, hidden_size]."""
        if self._whole is None:
            self._whole = lm_head_rows(self._model, torch.arange(self._model.decoder.config.vocab_size))
        return self._whole

    def fit(self, checkpoint: Path | None, progress: Progress) -> None:
        """Trains on all passages, `recipe.epochs` times; keeps a checkpoint now and then, and removes it at the end."""
        recipe, passages = self.recipe, self.passages
        plan = [batch for epoch in range(recipe.epochs) for batch in batches(passages, recipe, epoch)]
        layers = [parameter for name, parameter in self.net.named_parameters() if name != "prompts"]
        groups = [{"params": layers, "speed": 1.0}, {"params": [self.net.prompts], "speed": PROMPTS_FASTER}]
        optimizer = torch.optim.AdamW(groups, lr=recipe.lr, betas=(0.9, 0.95), weight_decay=0.01, fused=True)
        step = self._resume(checkpoint, optimizer)
        for step in range(step, len(plan)):  # noqa: B020 - goes on from there
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
            progress(f"training, loss {loss.item():.3f}, right {shown}", step + 1, len(plan))
            if checkpoint is not None and (step + 1) % KEEP_EVERY == 0:
                self._keep(checkpoint, optimizer, step + 1)
        if checkpoint is not None:
            checkpoint.unlink(missing_ok=True)

    def loss(
        self, batch: Batch, unroll: int, ahead: int, draw: torch.Generator | None = None
    ) -> tuple[Tensor, dict[str, list[float]]]:
        """Returns the loss of a batch over `unroll` steps and `ahead` prompt tokens, and how often the target's best
        token is the head's, at each of them. The first step is judged at all places; `draw` chooses a third of them to
        begin chains of the others (None: all begin one).
        """
        with torch.no_grad():
            embeddings = self.embed(batch.tokens.flatten()).view(*batch.tokens.shape, -1)
            teacher = batch.own.new_zeros((*batch.own.shape, len(self.vocabulary)), dtype=torch.float32)
            teacher[batch.own] = (batch.wanted[batch.own] @ self.head.T).float().softmax(-1)
        begin = int(batch.own.any(0).float().argmax())
        starts = torch.arange(begin, batch.own.shape[1] - max(unroll - 1, ahead))
        if draw is not None:
            starts = starts[torch.randperm(len(starts), generator=draw)[: -(-len(starts) // 3)]].sort().values
        first, steps, guesses = self.net(batch.features, embeddings, starts, unroll, ahead)
        total, hits = torch.zeros(()), {"steps": list[float](), "prompts": list[float]()}
        judged = [("steps", 0, first, batch.own)]
        for kind, outputs in (("steps", steps[1:]), ("prompts", guesses)):
            for depth, output in enumerate(outputs, 1):
                judged.append((kind, depth, output, batch.own[:, starts] & batch.own[:, starts + depth]))
        for kind, depth, output, seen in judged:
            wanted = (teacher if output is first else teacher[:, starts + depth])[seen]
            logits = (output[seen] @ self.head.T).float()
            entropy = -(wanted * logits.log_softmax(-1)).sum()
            total = total + self.recipe.decay**depth * entropy / max(1, len(wanted))
            right = (logits.argmax(-1) == wanted.argmax(-1)).sum()
            hits[kind].append(float(right) / max(1, len(wanted)))
        return total, hits

    @torch.no_grad()
    def measure(self, passages: Sequence[Passage]) -> dict[str, list[float]]:
        """Returns how often the head's best token is the target's, on texts that it was not trained on."""
        sums: dict[str, list[float]] = {}
        total = 0
        for passage in passages:
            own = len(passage.tokens) - passage.begin
            if own < self.recipe.unroll + self.recipe.ahead + 2:
                continue
            _, hits = self.loss(as_batch([passage]), self.recipe.unroll, self.recipe.ahead)
            for kind, shares in hits.items():
                kept = sums.setdefault(kind, [0.0] * len(shares))
                for depth, share in enumerate(shares):
                    kept[depth] += share * own
            total += own
        return {kind: [round(share / max(total, 1), 4) for share in shares] for kind, shares in sums.items()}

    def save(self, path: Path, model: Model, **measured: Any) -> None:
        """Writes the head in bfloat16, with how it was trained and what was measured of it."""
        tensors = {
            name: tensor.bfloat16() for name, tensor in self.net.state_dict().items() if name not in ("cos", "sin")
        }
        recipe = asdict(self.recipe)
        about = {"layers": self.recipe.layers, "recipe": recipe, "trained_on": own_tokens(self.passages), **measured}
        fitted.write(path, KIND, model, {**tensors, "vocabulary": self.vocabulary.int()}, **about)

    def _resume(self, checkpoint: Path | None, optimizer: torch.optim.Optimizer) -> int:
        if checkpoint is None or not checkpoint.exists():
            return 0
        held = torch.load(checkpoint, weights_only=True)
        if held["recipe"] != json.dumps(asdict(self.recipe)):
            raise UsageError(f"{checkpoint} is of another recipe; remove it, or train into another file")
        self.net.load_state_dict(held["net"])
        optimizer.load_state_dict(held["optimizer"])
        return int(held["step"])

    def _keep(self, checkpoint: Path, optimizer: torch.optim.Optimizer, step: int) -> None:
        part = checkpoint.with_suffix(".part")
        held = {"recipe": json.dumps(asdict(self.recipe)), "step": step}
        torch.save({**held, "net": self.net.state_dict(), "optimizer": optimizer.state_dict()}, part)
        part.replace(checkpoint)


def train_head(
    lm: LM, recipe: HeadRecipe, tokens: int, prompts: Sequence[list[int]] | None, out: Path, progress: Progress
) -> dict[str, list[float]]:
    """Has a model write text, trains a head on it, and writes the head to `out`; what is done so far is kept beside it
    until the head is there. Returns how often it is right on texts that were held out, by depth.
    """
    work = out.with_name(f"{out.name}.work")
    corpus = Corpus(work / "corpus", lm.model, recipe.seed)
    corpus.grow(lm, tokens, prompts, progress)
    passages = list(corpus.passages())
    held, rest = passages[::HELD_OUT], [passage for place, passage in enumerate(passages) if place % HELD_OUT]
    trainer = HeadTrainer(lm.model, replace(recipe, tokens=tokens), rest or held)
    trainer.fit(work / "head.checkpoint", progress)
    found = trainer.measure(held)
    trainer.save(out, lm.model, right=found)
    shutil.rmtree(work)
    return found


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


def own_tokens(passages: Sequence[Passage]) -> int:
    """Returns how many tokens of passages are the model's own."""
    return sum(len(passage.tokens) - passage.begin for passage in passages)


def frequent_tokens(passages: Sequence[Passage], count: int) -> Tensor:
    """Returns the `count` tokens that the model writes most, int64 in ascending order; fewer if it writes fewer."""
    counts: Counter[int] = Counter()
    for passage in passages:
        counts.update(passage.tokens[passage.begin :].tolist())
    common = sorted(counts, key=lambda token: (-counts[token], token))[:count]
    return torch.tensor(sorted(common))


def batches(passages: Sequence[Passage], recipe: HeadRecipe, epoch: int) -> Iterator[list[int]]:
    """Yields groups of passages of about `recipe.batch` tokens with padding, alike in length, in a random order."""
    draw = random.Random(f"{recipe.seed}/{epoch}")
    order = sorted(range(len(passages)), key=lambda index: (_length(passages[index]), index))
    groups: list[list[int]] = [[]]
    for index in order:
        if groups[-1] and (len(groups[-1]) + 1) * _length(passages[index]) > recipe.batch:
            groups.append([])
        groups[-1].append(index)
    draw.shuffle(groups)
    yield from groups


def schedule(step: int, steps: int, warmup: float) -> float:
    """Returns the share of the learning rate: a linear rise, then half a cosine down to a tenth."""
    rise = max(1, round(warmup * steps))
    if step < rise:
        return (step + 1) / rise
    return 0.1 + 0.45 * (1 + math.cos(math.pi * (step - rise) / max(1, steps - rise)))


def _length(passage: Passage) -> int:
    return len(passage.tokens) - max(0, passage.begin - CONTEXT)


def as_batch(passages: Sequence[Passage]) -> Batch:
    """Returns passages side by side, each with up to `CONTEXT` tokens before the model's own words."""
    time, hidden = max(map(_length, passages)), passages[0].features.shape[1]
    tokens = torch.zeros(len(passages), time, dtype=torch.int64)
    features, wanted = (torch.zeros(len(passages), time, hidden) for _ in range(2))
    own = torch.zeros(len(passages), time, dtype=torch.bool)
    for row, passage in enumerate(passages):
        start, n = max(0, passage.begin - CONTEXT), _length(passage)
        tokens[row, :n], wanted[row, :n] = passage.tokens[start:], passage.features[start:]
        features[row, 1:n] = passage.features[start : start + n - 1]
        own[row, passage.begin - start : n - 1] = True
    return Batch(tokens, features, wanted, own)


def _initialise(net: HeadNet, model: Model, passages: Sequence[Passage]) -> None:
    """The layers begin as the target's last ones, and what they read as the embeddings, with the features, as they were
    before the last norm weighed them, a third as large beside them: it saves half of the training.
    """
    decoder, hidden = model.decoder, net.config.hidden_size
    some = passages[0]
    embeddings, features = decoder.embed(some.tokens), some.features[:-1].float()
    norm = decoder.final_norm
    weights = norm.weight if isinstance(norm, RMSNorm) else torch.ones(hidden)
    with torch.no_grad():
        net.fuse.bias.zero_()
        net.fuse.weight[:, :hidden] = torch.diag(2 / weights) / _rms(features / weights)
        net.fuse.weight[:, hidden:] = torch.eye(hidden) * 6 / _rms(embeddings)
        net.final_norm.weight.copy_(weights)
        mean = net.fuse(torch.cat([features.mean(0), embeddings[1:].mean(0)]))
        net.prompts.copy_(mean + 0.5 * mean.std() * torch.randn(net.prompts.shape))
        for back, layer in enumerate(reversed(net.layers), 1):  # a head may have more layers than the target
            _copy_layer(layer, decoder.layers[-min(back, len(decoder.layers))])


def _copy_layer(layer: Any, last: Layer) -> None:
    """Copies the weights of a decoder's layer, where they are of the same kind."""
    if not isinstance(last.mlp, Mlp):
        return
    pairs = [(layer.qkv, last.qkv), (layer.out, last.out)]
    pairs += [(layer.gate_up, last.mlp.gate_up), (layer.down, last.mlp.down)]
    for linear, packed in pairs:
        weight = packed.packed.dequantize() if isinstance(packed, NativeLinear) else getattr(packed, "weight", None)
        if isinstance(weight, Tensor) and weight.shape == linear.weight.shape and weight.is_floating_point():
            linear.weight.copy_(weight)
    for mine, theirs in ((layer.attn_norm, last.attn_norm), (layer.mlp_norm, last.mlp_norm)):
        mine.weight.copy_(theirs.weight)


def _rms(x: Tensor) -> float:
    return float(x.square().mean().sqrt()) + 1e-6
