"""How the layers of an encoder-decoder are best split: `plan_split` predicts the time of each split of a budget.

Żelasko et al. 2025 (Canary) moved layers from the decoder, which runs once a token, to the encoder, which runs once an
input: t = t_encoder(F) + G (layers t_layer + t_head). The times of a layer are measured on this machine, over as many
rows as a pass of each part has.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor

from outlay.errors import UsageError
from outlay.models import names
from outlay.models.build import Builder
from outlay.models.config import decoder_config
from outlay.models.load import Model
from outlay.progress import ShowProgress, silent
from outlay.speculation.costs import LONG, SHORT, Measurement, PassCosts
from outlay.testing import tiny_model

ENCODER_WEIGHTS, DECODER_WEIGHTS = 12, 16  # of a layer, over the width squared; the decoder's has cross-attention too
MEMORY_WEIGHTS = 2  # of these, what makes keys and values of the memory, once an input
WIDTHS = (1, 2, 4, 8, 32)  # rows of passes that are timed, beside those of the task
HEAD = 64  # width of an attention head of the networks that are timed
TOLERANCE = 0.02  # of the budget, within which splits are compared
FEW = 4  # decoder layers below which long or translated outputs lose accuracy, by the specification
PUBLISHED = {
    (24, 24): "canary-1b", (32, 4): "canary-1b-flash", (17, 4): "canary-180m-flash", (32, 32): "whisper-large-v3",
    (20, 10): "Mu 330M",
}  # fmt: skip
"""Splits whose quality was published, (encoder, decoder) layers."""


@dataclass(frozen=True)
class SplitTask:
    """What the split is planned for."""

    params: float
    """Weights of all layers, without embeddings."""
    hidden: int
    """Width of the hidden states."""
    inputs: int
    """Encoder places of an input: frames or tokens."""
    outputs: int
    """Tokens of an output."""
    batch: int = 1
    """Inputs that are read and answered together."""
    seconds: float | None = None
    """Audio seconds of an input; None: inputs are counted by their places."""

    def __post_init__(self) -> None:
        if min(self.params, self.hidden, self.inputs, self.outputs, self.batch) < 1:
            raise UsageError("parameters, width, inputs, outputs and batch must all be 1 or more")


@dataclass(frozen=True)
class LayerCosts:
    """Measured times, in seconds."""

    layer: PassCosts
    """Of one layer of self-attention and MLP, by its rows."""
    head: PassCosts
    """Of the rest of a pass: embedding, LM head, and what a pass costs at all."""


@dataclass(frozen=True)
class Split:
    """One split and its predicted times."""

    encoder: int
    """Encoder layers."""
    decoder: int
    """Decoder layers."""
    params: float
    """Weights of all layers."""
    encode_seconds: float
    """Time of the one encoder pass over all inputs of the batch."""
    decode_seconds: float
    """Time of all decoder passes."""
    rate: float
    """RTFx: seconds of audio, else input places, that are processed a second."""
    quality: str
    """Where the quality of this split was measured, or that it was not."""

    @property
    def seconds(self) -> float:
        """Time of a batch, from its inputs to its last tokens."""
        return self.encode_seconds + self.decode_seconds

    def as_json(self) -> dict[str, Any]:
        """Returns the fields and the time of a batch by name."""
        return asdict(self) | {"seconds": self.seconds}


def plan_split(task: SplitTask, costs: LayerCosts, tolerance: float = TOLERANCE) -> list[Split]:
    """Predicts the time of every split of a budget of parameters, those with the most decoder layers first.

    The encoder runs once over each input, and so do the products that make the decoder layers' keys and values of the
    memory. Each of the `outputs` decoder passes has a row of each input of the batch; a decoder layer takes the time of
    a layer by the weights that it reads, and reads the memory as it would its own keys and values.

    Args:
        task: The budget and the lengths.
        costs: Measured times of a layer and of the rest of a pass.
        tolerance: Share of the budget by which the weights of a split may differ from it.

    Raises:
        UsageError: The budget is too small for one layer of each kind, or no split comes near enough to it.
    """
    unit = task.hidden**2
    most = int(task.params * (1 + tolerance) / unit)
    if most < ENCODER_WEIGHTS + DECODER_WEIGHTS:
        least = (ENCODER_WEIGHTS + DECODER_WEIGHTS) * unit
        raise UsageError(f"two layers of width {task.hidden} have {least:,} weights; give that many parameters")
    found = []
    for decoder in range((most - ENCODER_WEIGHTS) // DECODER_WEIGHTS, 0, -1):
        encoder = round((task.params / unit - decoder * DECODER_WEIGHTS) / ENCODER_WEIGHTS)
        params = (encoder * ENCODER_WEIGHTS + decoder * DECODER_WEIGHTS) * unit
        if encoder >= 1 and abs(params - task.params) <= tolerance * task.params:
            found.append(_predicted(task, costs, encoder, decoder, params))
    if not found:
        raise UsageError(
            f"no split comes within {tolerance:.0%} of {task.params:,.0f} weights; give another number or width"
        )
    return found


def _predicted(task: SplitTask, costs: LayerCosts, encoder: int, decoder: int, params: float) -> Split:
    read = task.batch * costs.layer(task.inputs, task.inputs / 2)  # every place sees all, not those before it
    encode = (encoder + decoder * MEMORY_WEIGHTS / ENCODER_WEIGHTS) * read
    own = costs.layer(task.batch, task.outputs / 2) * (DECODER_WEIGHTS - MEMORY_WEIGHTS) / ENCODER_WEIGHTS
    memory = costs.layer(task.batch, SHORT + task.inputs) - costs.layer(task.batch, SHORT)
    decode = task.outputs * (decoder * (own + memory) + costs.head(task.batch))
    amount = task.batch * (task.inputs if task.seconds is None else task.seconds)
    published = PUBLISHED.get((encoder, decoder))
    quality = f"published: {published}" if published else "not measured"
    quality += f"; fewer than {FEW} decoder layers" if decoder < FEW else ""
    return Split(encoder, decoder, params, encode, decode, amount / (encode + decode), quality)


def measure_layers(
    hidden: int,
    vocab: int,
    rows: Sequence[int],
    dtype: str = "float32",
    clock: Callable[[], float] = time.perf_counter,
    progress: ShowProgress = silent,
) -> LayerCosts:
    """Measures passes of random networks of one and of three layers; a layer takes half of the difference.

    Args:
        hidden: Width of the hidden states.
        vocab: Entries of the vocabulary.
        rows: Rows of passes that are timed beside those of `WIDTHS`; between and above them, times are linear.
        dtype: How the weights are held.
        clock: Tells the seconds; with one thread, processor time leaves out what else the machine does.
        progress: Called now and then.

    Raises:
        UsageError: The width is no multiple of 64.
    """
    if hidden % HEAD:
        raise UsageError(f"the width must be a multiple of {HEAD}, the width of a head, not {hidden}")
    widths = sorted({*WIDTHS, *rows})
    vocab = max(vocab, max(widths) + 2)  # the tokens of a pass that is timed are all different
    measured = [
        Measurement(_random_model(layers, hidden, vocab, LONG + max(widths) + 8, dtype), widths, clock=clock)
        for layers in (1, 3)
    ]
    while not measured[-1].done:  # in turns, so that a machine that drifts drifts for both
        progress("timing passes", len(measured[-1].seconds), 2 * (len(widths) + 1))
        for each in measured:
            each.step()
    few, many = (each.costs() for each in measured)
    differences = (max(1e-9, (c - a) / 2) for a, c in zip(few.seconds, many.seconds, strict=True))
    layer = tuple(accumulate(differences, max))  # more rows never take less, whatever else the machine did meanwhile
    head = tuple(max(1e-9, a - one) for a, one in zip(few.seconds, layer, strict=True))
    return LayerCosts(
        PassCosts(few.widths, layer, max(0.0, (many.slope - few.slope) / 2)), PassCosts(few.widths, head, 0.0)
    )


def _random_model(layers: int, hidden: int, vocab: int, context: int, dtype: str) -> Model:
    """Returns a random network of the Llama family, whose layers have 12 hidden^2 weights, to be timed."""
    inner = round(8 / 3 * hidden / 32) * 32
    config = decoder_config(
        {
            "model_type": "llama", "vocab_size": vocab, "hidden_size": hidden, "intermediate_size": inner,
            "num_hidden_layers": layers, "num_attention_heads": hidden // HEAD, "max_position_embeddings": context,
            "eos_token_id": 0, "tie_word_embeddings": True,
        }
    )  # fmt: skip
    builder = Builder(
        config, _RandomStore(hidden, inner, vocab), names.HF[config.names], format=dtype, float_format=dtype,
        device=torch.device("cpu"), interleaved=False, transposed=False, plus_one=False,
    )  # fmt: skip
    return replace(tiny_model(), name="random", decoder=builder.build(), format=dtype)


@dataclass(frozen=True)
class _RandomStore:
    """Weights of a Llama by name, all of them random."""

    hidden: int
    inner: int
    vocab: int

    def shape(self, name: str) -> tuple[int, ...] | None:
        part = name.split(".")[-2]
        if "norm" in part:
            return (self.hidden,)
        if part in ("embed_tokens", "lm_head"):
            return (self.vocab, self.hidden)
        out = self.inner if part in ("gate_proj", "up_proj") else self.hidden
        return (out, self.inner if part == "down_proj" else self.hidden) if name.endswith(".weight") else None

    def stored(self, name: str) -> None:
        return None

    def floats(self, name: str) -> Tensor:
        shape = self.shape(name)
        assert shape is not None
        return torch.ones(shape) if len(shape) == 1 else torch.randn(shape) * shape[-1] ** -0.5
