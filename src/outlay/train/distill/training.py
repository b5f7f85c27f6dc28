"""The training of a student: batches of two lengths, targets from three sources, the loss, checkpoints, the folder.

L = alpha KL(teacher || student) + (1 - alpha) cross-entropy of the gold target. The text that the KL is taken on is the
student's own (on-policy, as released), the teacher's, or the gold target.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from outlay.batching import Buckets, DynamicBucketSampler
from outlay.batching.buckets import BUCKETS, SUB_BUCKETS
from outlay.engine.random import mix
from outlay.errors import FailureError, UsageError
from outlay.lm import LM
from outlay.models.tokenizer import Tokenizer
from outlay.progress import ShowProgress
from outlay.prompt_logits import PromptLogits
from outlay.train.checkpoint import Checkpoint
from outlay.train.distill.layout import (
    StudentLayout,
    TeacherLayout,
    gold_loss,
    kl_loss,
    same_vocabulary,
    student_layout,
    teacher_layout,
)
from outlay.train.distill.net import INIT_STD, Mu, MuConfig

HELD_OUT = 16  # every 16th pair is held out for validation
BATCHES_OF_A_BUCKET = 8  # at least; few buckets on little data, whose batches would all be alike
WEIGHTS, LOSS = "model.safetensors", "validation_loss"
TARGETS = ("student", "teacher", "gold")


class Pair(NamedTuple):
    """An example as token ids."""

    source: list[int]
    """What the encoder reads."""
    target: list[int]
    """What is to be written, with the token that ends it."""


@dataclass(frozen=True)
class DistillRecipe:
    """How a student is trained; the defaults are those of the paper's code."""

    n_encoder_layer: int = 20
    """Encoder blocks of the student."""
    n_decoder_layer: int = 10
    """Decoder blocks."""
    n_embd: int = 1024
    """Width of the hidden states."""
    qkv_embd: int = 384
    """Width of all query heads together."""
    n_head: int = 6
    """Query heads."""
    n_kv_head: int = 3
    """Heads of keys and values."""
    hidden_dim: int = 4096
    """Width within an MLP."""
    dropout: float = 0.1
    """Share that is dropped of attention probabilities and MLP outputs."""
    init_std: float = INIT_STD
    """Deviation of the weights at the start; 0: one over the square root of a matrix's inputs, for narrow students."""
    n_enc: int = 1024
    """Longest source, in tokens; longer ones are cut, and counted."""
    n_dec: int = 256
    """Longest target, in tokens."""
    alpha: float = 0.9
    """Weight of the KL to the teacher; the rest is the cross-entropy of the gold target."""
    targets: str = "student"
    """Whose text the KL is taken on: student, teacher or gold."""
    temperature: float = 0.9
    """At which the student draws its own targets."""
    top_k: int = 128
    """Tokens from which it draws them."""
    mask_pad: bool = True
    """Leave padding out of the KL; the released code counts it."""
    slice_vocab: bool = False
    """Cut the logits of both to the smaller vocabulary, instead of refusing different sizes."""
    lr: float = 1e-4
    """Highest learning rate of AdamW."""
    betas: tuple[float, float] = (0.9, 0.98)
    """AdamW's decay rates of the moments."""
    weight_decay: float = 0.01
    """Weight decay, of matrices only."""
    warmup: int = 4
    """Steps over which the learning rate rises; it then falls by a cosine to 0."""
    clip: float = 1.0
    """Largest norm of a step's gradient."""
    batch: int = 128
    """Examples of a step."""
    micro: int = 6
    """Examples of a pass; gradients of a step are summed, so only memory depends on it."""
    epochs: int = 128
    """Times that the pairs are gone through."""
    measure_every: int = 32
    """Steps between two measurements of the validation loss; the best student so far is kept."""
    seed: int = 0
    """Fixes the weights at the start, dropout and all draws."""

    def __post_init__(self) -> None:
        """Checks the options.

        Raises:
            UsageError: One is out of its range.
        """
        if not 0 <= self.alpha <= 1:
            raise UsageError(f"alpha must be from 0 to 1, not {self.alpha}")
        if self.targets not in TARGETS:
            raise UsageError(f"targets are {', '.join(TARGETS)}, not {self.targets!r}")
        for name in ("n_enc", "n_dec", "batch", "micro", "epochs", "measure_every"):
            if getattr(self, name) < 1:
                raise UsageError(f"{name} must be 1 or more, not {getattr(self, name)}")

    def shape(self, vocab: int) -> MuConfig:
        """Returns the student's shape over a vocabulary."""
        return MuConfig(
            self.n_encoder_layer, self.n_decoder_layer, self.n_embd, self.qkv_embd, self.n_head, self.n_kv_head,
            self.hidden_dim, vocab, max(self.n_enc, self.n_dec), self.dropout,
        )  # fmt: skip


class Teacher(Protocol):
    """A decoder-only model that is learned from."""

    def logits(self, layout: TeacherLayout) -> Tensor:
        """Returns the logits that predict the targets, float32 [batch, n_d, vocab]; 0 at padding."""
        ...

    def write(self, sources: Sequence[list[int]], most: int) -> list[list[int]]:
        """Returns what the teacher writes after each source, its end included, `most` tokens at most."""
        ...


class EngineTeacher:
    """Any model that loads, run by the engine: rows have no padding there, and the positions that the masks give."""

    def __init__(self, lm: LM) -> None:
        self.lm = lm

    def logits(self, layout: TeacherLayout) -> Tensor:
        """Returns the logits that predict the targets, float32 [batch, n_d, vocab]; 0 at padding."""
        methods = []
        with self.lm.engine.together():
            handles = []
            for tokens, mask in zip(layout.tokens, layout.mask, strict=True):
                row = tokens[mask].tolist()
                first = int(mask[: layout.first + 1].sum()) - 1
                methods.append(PromptLogits(range(first, len(row) - 1)))
                handles.append(self.lm.submit(row[:-1], method=methods[-1], max_tokens=1))
        for handle in handles:
            handle.result()
        found = [method.logits.clone() for method in methods]  # made in inference mode
        held = torch.zeros(len(found), layout.tokens.shape[1] - 1 - layout.first, found[0].shape[-1])
        for row, logits in zip(held, found, strict=True):
            row[: len(logits)] = logits
        return held

    def write(self, sources: Sequence[list[int]], most: int) -> list[list[int]]:
        """Returns what the teacher writes greedily after each source."""
        with self.lm.engine.together():
            handles = [self.lm.submit(source, method="greedy", max_tokens=most) for source in sources]
        texts = [list(handle.result().tokens) for handle in handles]
        ends = self.lm.model.tokenizer.eos_token_ids
        return [
            text if len(text) == most or text[-1:] in ([end] for end in ends) else [*text, ends[0]] for text in texts
        ]


@dataclass
class Distilled:
    """What a training came to."""

    validation_loss: float
    """Cross-entropy of the held-out targets, of the best student."""
    steps: int
    """Steps of the training."""
    losses: list[float] = field(default_factory=list)
    """Loss of each step that this process took."""
    truncated: int = 0
    """Sources and targets that were cut to the longest length."""


class Distillation:
    """A student in training.

    Args:
        recipe: How it is trained.
        pairs: What it is trained on.
        tokenizer: The tokenizer of student and teacher.
        teacher: The teacher; None where alpha is 0.
        vocab: Entries of the student's vocabulary; None: the tokenizer's.

    Raises:
        UsageError: There is no pair or no teacher, or the tokenizer has no token that ends a text.
    """

    def __init__(
        self,
        recipe: DistillRecipe,
        pairs: Sequence[Pair],
        tokenizer: Tokenizer,
        teacher: Teacher | None = None,
        vocab: int | None = None,
    ) -> None:
        if not pairs:
            raise UsageError("there are no pairs to learn from")
        if recipe.alpha > 0 and teacher is None:
            raise UsageError("a student with alpha above 0 needs a teacher: --teacher M")
        if not tokenizer.eos_token_ids:
            raise UsageError("the tokenizer has no token that ends a text, so a student could not learn to end")
        self.recipe, self.tokenizer, self.teacher = recipe, tokenizer, teacher
        self.end = tokenizer.eos_token_ids[0]
        self.begin = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else self.end
        cut = [Pair(pair.source[: recipe.n_enc], pair.target[: recipe.n_dec]) for pair in pairs]
        self.truncated = sum(short != long for short, long in zip(cut, pairs, strict=True))
        self.held = cut[HELD_OUT - 1 :: HELD_OUT] or cut
        self.pairs = [pair for place, pair in enumerate(cut) if len(cut) < HELD_OUT or (place + 1) % HELD_OUT]
        torch.manual_seed(recipe.seed)
        self.net = Mu(recipe.shape(tokenizer.vocab_size if vocab is None else vocab), recipe.init_std)
        self._written: dict[int, list[int]] = {}

    def epoch(self, number: int) -> list[list[int]]:
        """Returns the batches of an epoch, as indices of `pairs`: all of them once."""
        inputs, outputs = ([len(part) for part in parts] for parts in zip(*self.pairs, strict=True))
        count = max(1, min(BUCKETS, len(inputs) // (BATCHES_OF_A_BUCKET * self.recipe.batch)))
        buckets = Buckets.fit_2d(inputs, outputs, count, SUB_BUCKETS if count > 1 else 1, math.inf)
        sizes = dict.fromkeys(range(len(buckets)), self.recipe.batch)
        lengths = list(zip(inputs, outputs, strict=True))
        return list(DynamicBucketSampler(lengths, buckets, sizes, seed=self.recipe.seed, epoch=number))

    def fit(self, out: Path, progress: ShowProgress) -> Distilled:
        """Trains, and writes the best student into a folder in the hub's layout.

        What was stopped goes on from its checkpoint, which lies in the folder until the end.

        Raises:
            UsageError: The checkpoint is of another recipe.
            FailureError: The folder can't be written.
        """
        recipe = self.recipe
        plan = [batch for number in range(recipe.epochs) for batch in self.epoch(number)]
        optimizer = self.optimizer()
        out.mkdir(parents=True, exist_ok=True)
        kept = Checkpoint(out / "distill.checkpoint", recipe, self.net.state_dict(), optimizer)
        begin = kept.resume()
        best = self._loss_of(out) if begin else math.inf
        found = Distilled(best, len(plan), truncated=self.truncated)
        self.net.train()
        for step in range(begin, len(plan)):
            torch.manual_seed(mix(recipe.seed, step) >> 1)  # dropout is the same where a training goes on
            for group in optimizer.param_groups:
                group["lr"] = recipe.lr * rate(step, len(plan), recipe.warmup)
            found.losses.append(self.step(plan[step], step, optimizer))
            progress(f"training, loss {found.losses[-1]:.3f}, validation {best:.3f}", step + 1, len(plan))
            if (step + 1) % recipe.measure_every and step + 1 < len(plan):
                continue
            loss = self.validation_loss()
            if loss < best:
                best = found.validation_loss = loss
                self.save(out, loss)
            kept.save(step + 1)
        kept.remove()
        return found

    def step(self, batch: Sequence[int], step: int, optimizer: torch.optim.Optimizer) -> float:
        """Takes a training step over some pairs, in passes of `micro`; returns the loss."""
        total = 0.0
        for begin in range(0, len(batch), self.recipe.micro):
            part = batch[begin : begin + self.recipe.micro]
            loss = self.loss(part, mix(self.recipe.seed, step, begin)) * (len(part) / len(batch))
            loss.backward()
            total += loss.item()
        torch.nn.utils.clip_grad_norm_(self.net.parameters(), self.recipe.clip)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return total

    def loss(self, indices: Sequence[int], seed: int = 0) -> Tensor:
        """Returns the loss of some pairs; without KL nothing is drawn or asked of the teacher."""
        recipe, pairs = self.recipe, [self.pairs[index] for index in indices]
        gold = student_layout([pair.source for pair in pairs], [pair.target for pair in pairs], self.begin)
        if recipe.alpha == 0:
            return gold_loss(self._logits(gold), gold.targets)
        assert self.teacher is not None
        targets = self._targets(indices, gold, seed)
        layout = student_layout([pair.source for pair in pairs], targets, self.begin)
        wanted = self.teacher.logits(teacher_layout([pair.source for pair in pairs], targets))
        logits = self._logits(layout)
        teacher, student = same_vocabulary(wanted, logits, recipe.slice_vocab)
        distilled = recipe.alpha * kl_loss(teacher, student, layout.targets, recipe.mask_pad)
        if recipe.alpha == 1:
            return distilled
        own = logits if recipe.targets == "gold" else self._logits(gold)
        return distilled + (1 - recipe.alpha) * gold_loss(own, gold.targets)

    def optimizer(self) -> torch.optim.Optimizer:
        """Returns AdamW, which decays matrices only."""
        matrices = [parameter for parameter in self.net.parameters() if parameter.dim() > 1]
        others = [parameter for parameter in self.net.parameters() if parameter.dim() < 2]
        groups = [
            {"params": matrices, "weight_decay": self.recipe.weight_decay},
            {"params": others, "weight_decay": 0.0},
        ]
        return torch.optim.AdamW(groups, lr=self.recipe.lr, betas=self.recipe.betas)

    @torch.no_grad()
    def validation_loss(self) -> float:
        """Returns the mean cross-entropy of a held-out target token."""
        self.net.eval()
        total = count = 0.0
        for begin in range(0, len(self.held), self.recipe.micro):
            part = self.held[begin : begin + self.recipe.micro]
            layout = student_layout([pair.source for pair in part], [pair.target for pair in part], self.begin)
            tokens = sum(len(pair.target) for pair in part)
            total, count = total + tokens * gold_loss(self._logits(layout), layout.targets).item(), count + tokens
        self.net.train()
        return total / count

    @torch.no_grad()
    def exact_match(self, pairs: Sequence[Pair]) -> float:
        """Returns the share of pairs whose target the student writes greedily."""
        right = 0
        for begin in range(0, len(pairs), max(32, self.recipe.micro)):
            part = pairs[begin : begin + max(32, self.recipe.micro)]
            layout = student_layout([pair.source for pair in part], [pair.target for pair in part], self.begin)
            texts = self.net.generate(layout.source, layout.source_mask, self.begin, self.end, self.recipe.n_dec)
            right += sum(text == pair.target for text, pair in zip(texts, part, strict=True))
        return right / len(pairs)

    def save(self, folder: Path, loss: float) -> None:
        """Writes the student as it is now, as a folder in the hub's layout.

        Raises:
            FailureError: It can't be written.
        """
        marks: dict[str, Any] = {
            "decoder_start_token_id": self.begin,
            "eos_token_id": self.end,
            "pad_token_id": self.end,
        }
        config = self.net.config.as_json() | marks | {"bos_token_id": self.begin, "torch_dtype": "float32"}
        names = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": self.tokenizer.name_of(self.end)}
        try:
            folder.mkdir(parents=True, exist_ok=True)
            (folder / "config.json").write_text(json.dumps(config, indent=1) + "\n")
            (folder / "generation_config.json").write_text(json.dumps(marks, indent=1) + "\n")
            (folder / "tokenizer_config.json").write_text(json.dumps(names, indent=1) + "\n")
            self.tokenizer.inner.save(str(folder / "tokenizer.json"), pretty=False)
            part = folder / f"{WEIGHTS}.part"
            save_file(dict(self.net.named_parameters()), part, {"format": "pt", LOSS: repr(loss)})
            part.replace(folder / WEIGHTS)
        except OSError as error:
            raise FailureError(f"can't write {folder}: {error.strerror}") from error

    def _logits(self, layout: StudentLayout) -> Tensor:
        logits: Tensor = self.net(layout.source, layout.source_mask, layout.tokens)
        return logits

    def _targets(self, indices: Sequence[int], gold: StudentLayout, seed: int) -> list[list[int]]:
        """Returns the texts that the KL is taken on."""
        recipe = self.recipe
        if recipe.targets == "gold":
            return [self.pairs[index].target for index in indices]
        if recipe.targets == "student":
            draw = torch.Generator().manual_seed(seed >> 1)
            return self.net.generate(
                gold.source,
                gold.source_mask,
                self.begin,
                self.end,
                recipe.n_dec,
                recipe.temperature,
                recipe.top_k,
                draw,
            )
        assert self.teacher is not None
        new = [index for index in indices if index not in self._written]  # what it writes does not change
        if new:
            texts = self.teacher.write([self.pairs[index].source for index in new], recipe.n_dec)
            self._written |= {index: text or [self.end] for index, text in zip(new, texts, strict=True)}
        return [self._written[index] for index in indices]

    def _loss_of(self, folder: Path) -> float:
        """Returns the validation loss of a student that was written before."""
        if not (folder / WEIGHTS).exists():
            return math.inf
        with safe_open(folder / WEIGHTS, framework="pt") as file:
            return float((file.metadata() or {}).get(LOSS, math.inf))


def rate(step: int, steps: int, warmup: int) -> float:
    """Returns the share of the learning rate at a step: a linear rise over `warmup` steps, then a cosine down to 0."""
    if step < warmup:
        return (step + 1) / warmup
    return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup)))
