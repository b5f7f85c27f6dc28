"""`outlay train nm`: trains a language model of the Llama family to an N:M pattern, its weights as parameters.

The text is what the model writes itself, or a file. Embeddings and LM head stay as they are.
"""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor, nn

from outlay.errors import FailureError, UsageError
from outlay.lm import LM
from outlay.models.decoder import Layer
from outlay.models.forms.nm import NmCode, nm_tensors
from outlay.models.forms.own import own_config
from outlay.models.linear import Linear, weight_of
from outlay.models.load import Model, open_model
from outlay.models.mlp import Mlp
from outlay.models.norm import RMSNorm
from outlay.models.quantized import GROUP
from outlay.shrink.nm.pattern import nm_mask
from outlay.shrink.nm.schedule import NMSparse
from outlay.shrink.nm.sparsify import Sparsified, sparsify
from outlay.shrink.source import Source
from outlay.train.checkpoint import Checkpoint
from outlay.train.corpus import Corpus
from outlay.train.draft_head import bfloat16_is_faster
from outlay.train.frozen import FrozenDecoder, LayerParts
from outlay.train.schedule import schedule

Progress = Callable[[str, int, int], None]
HELD_OUT = 0.1  # share of the text, its end, on which the loss is measured
MEASURED = 8192  # held-out tokens at most
WEIGHTS, REPORT = "model.safetensors", "report.json"


@dataclass(frozen=True)
class SparseModelRecipe:
    """How a language model is trained to a pattern."""

    sparse: NMSparse = field(default_factory=NMSparse)
    """The pattern, the layers, and how they get there."""
    steps: int = 2000
    """Training steps."""
    batch: int = 8
    """Passages of a step."""
    context: int = 128
    """Tokens of a passage."""
    lr: float = 1e-4
    """Highest learning rate of AdamW."""
    warmup: float = 0.04
    """Share of the steps in which the learning rate rises: 15 of the paper's 350 epochs."""
    weight_decay: float = 0.01
    """Weight decay, on dense weights, as in the paper."""
    clip: float = 1.0
    """Largest norm of a step's gradient, as in the paper."""
    measure: int = 100
    """Steps between two measurements, at which a checkpoint is kept too."""
    seed: int = 0
    """Seed of all draws."""

    def __post_init__(self) -> None:
        for name in ("steps", "batch", "measure"):
            if getattr(self, name) < 1:
                raise UsageError(f"{name} must be 1 or more, not {getattr(self, name)}")
        if self.context < 2:
            raise UsageError(f"context must be 2 tokens or more, not {self.context}")


@dataclass(frozen=True)
class Measured:
    """Losses on held-out text, in nats a token."""

    step: int
    """Steps done."""
    beta: float
    """The mask's value on pruned weights at the last of them."""
    binary: float
    """With the final binary mask, as it will be written: the loss that counts."""
    decayed: float
    """With the weights that training computes with."""


class TrainedDecoder(nn.Module):
    """A model of the Llama family whose layers are parameters, under the names that they have on the hub."""

    def __init__(self, model: Model) -> None:
        """Copies the weights in float32.

        Raises:
            UsageError: The model is not of the Llama family, or has experts.
        """
        super().__init__()
        self.frozen = FrozenDecoder(model)
        self.frozen.layers = []
        config = self.frozen.config
        heads = [count * config.head_dim for count in (config.num_heads, config.num_kv_heads, config.num_kv_heads)]
        self.layers = nn.ModuleList(_TrainedLayer(layer, heads) for layer in model.decoder.layers)

    def forward(self, tokens: Tensor) -> Tensor:
        """Returns logits, [batch, time, vocab], of tokens, int64 [batch, time]."""
        frozen, (batch, time) = self.frozen, tokens.shape

        def attend(index: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            q, k, v = (x.unflatten(0, (batch, time)).transpose(1, 2) for x in (q, k, v))
            group = q.shape[1] // k.shape[1]
            k, v = k.repeat_interleave(group, 1), v.repeat_interleave(group, 1)
            out = F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=frozen.config.attention_scale)
            return out.transpose(1, 2).flatten(0, 1)

        x = frozen.embed(tokens.flatten()).float()
        positions = torch.arange(time).repeat(batch)
        parts = [layer.parts() for layer in self.layers if isinstance(layer, _TrainedLayer)]
        hidden_states = frozen.forward(x, positions, attend, parts)
        return F.linear(hidden_states, frozen.lm_head).unflatten(0, (batch, time))

    def loss(self, tokens: Tensor) -> Tensor:
        """Returns the cross-entropy of the tokens after the first, in nats a token; `tokens` is [batch, time]."""
        with torch.autocast("cpu", torch.bfloat16, enabled=bfloat16_is_faster()):
            logits = self(tokens[:, :-1])
        return F.cross_entropy(logits.float().flatten(0, 1), tokens[:, 1:].flatten())


class _TrainedLayer(nn.Module):
    def __init__(self, layer: Layer, heads: Sequence[int]) -> None:
        super().__init__()
        assert isinstance(layer.mlp, Mlp)
        assert isinstance(layer.attn_norm, RMSNorm)
        assert isinstance(layer.mlp_norm, RMSNorm)
        q, k, v = _split(layer.qkv, heads)
        gate, up = _split(layer.mlp.gate_up, [layer.mlp.width] * 2)
        self.self_attn = nn.ModuleDict({"q_proj": q, "k_proj": k, "v_proj": v, "o_proj": _split(layer.out)[0]})
        self.mlp = nn.ModuleDict({"gate_proj": gate, "up_proj": up, "down_proj": _split(layer.mlp.down)[0]})
        self.input_layernorm = nn.ParameterDict({"weight": layer.attn_norm.weight.float().clone()})
        self.post_attention_layernorm = nn.ParameterDict({"weight": layer.mlp_norm.weight.float().clone()})

    def parts(self) -> LayerParts:
        """Returns what the layer computes with now."""
        attention, mlp = self.self_attn, self.mlp
        return LayerParts(
            self.input_layernorm["weight"],
            lambda x: torch.cat([attention["q_proj"](x), attention["k_proj"](x), attention["v_proj"](x)], -1),
            attention["o_proj"],
            self.post_attention_layernorm["weight"],
            lambda x: torch.cat([mlp["gate_proj"](x), mlp["up_proj"](x)], -1),
            mlp["down_proj"],
        )


def _split(linear: Linear, rows: Sequence[int] | None = None) -> list[nn.Linear]:
    """Returns a layer's parts, by the rows of each (None: the whole), as layers with parameters."""
    weight, bias = weight_of(linear), getattr(linear, "bias", None)
    sizes, found, begin = rows or [len(weight)], list[nn.Linear](), 0
    for size in sizes:
        part = nn.Linear(weight.shape[1], size, bias=bias is not None, device="meta")
        part.weight = nn.Parameter(weight[begin : begin + size].clone())
        if bias is not None:
            part.bias = nn.Parameter(bias[begin : begin + size].float().clone())
        found.append(part)
        begin += size
    return found


class SparseTrainer:
    """A language model on its way to a pattern.

    Args:
        model: The model.
        recipe: How it is trained.
        tokens: The text, int64 [n]; its end is held out.
    """

    def __init__(self, model: Model, recipe: SparseModelRecipe, tokens: Tensor) -> None:
        span = recipe.context + 1
        held = max(1, min(MEASURED, round(HELD_OUT * len(tokens))) // span)
        if len(tokens) < (held + 1) * span:
            raise UsageError(
                f"the text has {len(tokens)} tokens; a training with passages of {recipe.context} needs "
                f"{(held + 1) * span} or more: give more text, or a smaller context"
            )
        self.model, self.recipe = model, recipe
        self.net = TrainedDecoder(model)
        self._train, self._held = tokens[: -held * span], tokens[-held * span :].view(held, span)
        self.dense = self._held_out_loss()
        self.handle: Sparsified = sparsify(self.net, recipe.sparse, recipe.steps)
        self.history = [self.measured(0)]

    def fit(self, checkpoint: Path | None, progress: Progress) -> None:
        """Trains for `recipe.steps` steps.

        Args:
            checkpoint: A file to go on from, kept at each measurement and removed at the end.
            progress: Called after each step.
        """
        recipe, net = self.recipe, self.net
        optimizer = torch.optim.AdamW(net.parameters(), lr=recipe.lr, weight_decay=recipe.weight_decay)
        kept = Checkpoint(checkpoint, recipe, net.state_dict(), optimizer)
        begin = kept.resume()
        told = None if checkpoint is None else checkpoint.with_name("history.json")
        if begin and told is not None:
            rows = json.loads(told.read_text())
            self.history = [Measured(**row) for row in rows if row["step"] <= begin]
        for step in range(begin, recipe.steps):
            self.handle.set_step(step)
            for group in optimizer.param_groups:
                group["lr"] = recipe.lr * schedule(step, recipe.steps, recipe.warmup)
            loss = net.loss(self.batch(step))
            loss.backward()
            nn.utils.clip_grad_norm_(net.parameters(), recipe.clip)
            optimizer.step()
            optimizer.zero_grad()
            last = self.history[-1]
            progress(f"training, loss {loss.item():.3f}, held out {last.binary:.3f}", step + 1, recipe.steps)
            if (step + 1) % recipe.measure and step + 1 < recipe.steps:
                continue
            self.history.append(self.measured(step + 1))
            if told is not None:
                told.write_text(json.dumps([asdict(row) for row in self.history]))
            if step + 1 < recipe.steps:
                kept.save(step + 1)
        kept.remove()

    def batch(self, step: int) -> Tensor:
        """Returns the passages of a step, int64 [batch, context + 1], which the seed and the step fix."""
        draw, span = random.Random(f"{self.recipe.seed}/{step}"), self.recipe.context + 1
        begins = [draw.randrange(len(self._train) - span + 1) for _ in range(self.recipe.batch)]
        return torch.stack([self._train[begin : begin + span] for begin in begins])

    def measured(self, steps: int) -> Measured:
        """Returns the losses on held-out text after some steps."""
        binary = self._held_out_loss()
        with self.handle.as_trained():
            decayed = self._held_out_loss()
        masked = next(iter(self.handle.layers)).schedule
        return Measured(steps, masked.beta(max(steps - 1, 0)), binary, decayed)

    @property
    def won_back(self) -> float | None:
        """The share of the loss that one-shot pruning costs and training won back; None where it costs nothing."""
        cost = self.history[0].binary - self.dense
        return (self.history[0].binary - self.history[-1].binary) / cost if cost > 0 else None

    @property
    def flops(self) -> int:
        """FLOPs of the sparse layers over the whole training: 6 for each row and weight that takes part."""
        rows, steps = self.recipe.batch * self.recipe.context, range(self.recipe.steps)
        layers = self.handle.layers
        return round(6 * rows * sum(each.weight.numel() * each.schedule.density(t) for each in layers for t in steps))

    @torch.no_grad()
    def _held_out_loss(self) -> float:
        self.net.eval()
        losses = [self.net.loss(rows) * len(rows) for rows in self._held.split(self.recipe.batch)]
        self.net.train()
        return float(sum(losses)) / len(self._held)

    def weights(self, source: Source, packed: bool) -> dict[str, Tensor]:
        """Returns all tensors of the model's folder: the layers' in bfloat16, the others as they are.

        Args:
            source: The model as it was.
            packed: Whether sparse layers are packed in our form; else they hold zeros.
        """
        state = self.handle.export().state_dict()
        named = {f"model.{name}": weight.bfloat16() for name, weight in state.items() if name.startswith("layers.")}
        trained = {name.removesuffix(".weight") for name in named if name.endswith(".weight")}
        found = {name: tensor for name, tensor in source.rest(trained) if name not in named} | named
        if packed:
            for layer in self.handle.layers:
                weight, code = found.pop(f"model.{layer.name}.weight"), _code(layer.options)
                mask = nm_mask(weight.float(), layer.options.pattern)
                found |= {f"model.{layer.name}.{part}": x for part, x in nm_tensors(weight, None, mask, code).items()}
        return found

    def quantization(self) -> dict[str, Any]:
        """Returns what config.json says about packed layers."""
        codes = {f"model.{layer.name}": asdict(_code(layer.options)) for layer in self.handle.layers}
        usual = next(iter(codes.values()))
        own = {name: code for name, code in codes.items() if code != usual}
        return own_config("nm", **usual, **({"config_for_layers": own} if own else {}))

    def save(self, folder: Path, packed: bool = False) -> None:
        """Writes the model as a folder in the hub's layout, with a report of the training, whole or not at all.

        Args:
            folder: The folder.
            packed: Whether sparse layers are packed in our form, which other programs don't read.

        Raises:
            FailureError: It can't be written.
        """
        part = folder.with_name(f"{folder.name}.part")
        report = {
            "recipe": asdict(self.recipe), "dense": self.dense, "won_back": self.won_back, "flops": self.flops,
            "history": [asdict(row) for row in self.history],
        }  # fmt: skip
        try:
            shutil.rmtree(part, ignore_errors=True)
            part.mkdir(parents=True)
            assert self.model.path is not None
            source = Source(open_model(self.model.path))
            source.write_about(part, self.quantization() if packed else None)
            tensors = {name: tensor.contiguous() for name, tensor in self.weights(source, packed).items()}
            save_file(tensors, part / WEIGHTS, {"format": "pt"})
            (part / REPORT).write_text(json.dumps(report, indent=1) + "\n")
            part.replace(folder)
        except OSError as error:
            raise FailureError(f"can't write {folder}: {error.strerror}") from error


def _code(options: NMSparse) -> NmCode:
    return NmCode(options.n, options.m, 16, GROUP)


def train_sparse(
    lm: LM,
    recipe: SparseModelRecipe,
    text: str | None,
    tokens: int,
    prompts: Sequence[list[int]] | None,
    out: Path,
    progress: Progress,
    *,
    packed: bool = False,
) -> SparseTrainer:
    """Trains a model to a pattern and writes it.

    What it writes itself and checkpoints are kept beside `out` until it is there, so that a stopped training goes on.

    Args:
        lm: The model.
        recipe: How it is trained.
        text: What it is trained on; None: what it writes itself.
        tokens: Tokens of its own that it writes then.
        prompts: Token ids of prompts for it to answer then; None: its own.
        out: The folder.
        progress: Called now and then.
        packed: Whether the folder holds sparse layers packed, in our form.

    Returns:
        The trained model with the history of its losses.

    Raises:
        UsageError: The model is not of the Llama family, a layer doesn't fit, or there is too little text.
        FailureError: The folder can't be written.
    """
    work = out.with_name(f"{out.name}.work")
    if text is None:
        corpus = Corpus(work / "corpus", lm.model, recipe.seed)
        corpus.grow(lm, tokens, prompts, progress)
        stream = torch.cat([passage.tokens for passage in corpus.passages()])
    else:
        stream = torch.tensor(lm.model.tokenizer.encode(text))
    trainer = SparseTrainer(lm.model, recipe, stream)
    work.mkdir(parents=True, exist_ok=True)
    trainer.fit(work / "nm.checkpoint", progress)
    trainer.save(out, packed)
    shutil.rmtree(work)
    return trainer
