"""One of our own models in several formats, each beside the same weights in float32."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from outlay.bench.accuracy.measure import block_changes, code_inputs, compare, layer_errors, same_tokens, tap, windows
from outlay.bench.accuracy.questions import Answer, answers
from outlay.bench.interleave import Participant, Values
from outlay.bench.options import WITHOUT_KERNELS
from outlay.errors import FailureError, UsageError
from outlay.lm import load
from outlay.prompt_logits import logits_from
from outlay.shrink.catalog import make
from outlay.shrink.pvq import PVQ


@dataclass(frozen=True)
class Variant:
    """A format of weights and cache."""

    dtype: str
    """How the weights are held, a `dtype` of `outlay.load`."""
    kernels: bool = True
    """Whether our kernels multiply them, or torch does."""
    kv: str = "auto"
    """How the KV cache is held, a `kv_dtype` of `outlay.load`."""
    source: str | None = None
    """Another checkpoint, whose weights are compared with the model's; None: the model's own."""
    activations: str | None = None
    """`pvq` with options, by which the inputs of linear layers are coded; None: they are as they are."""

    @property
    def name(self) -> str:
        """As the report calls it."""
        if self.source is not None:
            return Path(self.source).name + ("" if self.activations is None else f", activations {self.activations}")
        held = "" if self.kv == "auto" else f"+{self.kv}-cache"
        return self.dtype + ("" if self.kernels else WITHOUT_KERNELS) + held

    @property
    def cache_option(self) -> dict[str, Any]:
        """How the cache is held, as `outlay.load` takes it."""
        return {} if self.kv == "auto" else {"kv_dtype": self.kv}


@dataclass(frozen=True)
class Extent:
    """How much is measured."""

    windows: int
    """Windows of the text; the second half of each is scored."""
    window: int = 2048
    """Tokens of a window."""
    prompts: int = 16
    """Prompts that are continued."""
    prompt: int = 64
    """Tokens of a prompt."""
    new: int = 64
    """Tokens that continue it."""


@dataclass(frozen=True)
class LayerErrors:
    """The error of every linear layer, by name, on the hidden states of the first window's last pass."""

    variant: Variant


@dataclass(frozen=True)
class TextWindow:
    """The predictions of one window, compared with the reference's: see `accuracy.measure.compare`."""

    variant: Variant
    index: int


@dataclass(frozen=True)
class Continuations:
    """Greedy texts beside the reference's.

    Gives the mean number of tokens that are the `same` before the first difference, and the share of texts that are
    `identical`.
    """

    variant: Variant


@dataclass(frozen=True)
class Questions:
    """Documents of a task of `lm_eval`: of document i, `right i` of the variant and `original i`, and `chance i`."""

    variant: Variant
    name: str
    docs: int


AccuracyTask = LayerErrors | TextWindow | Continuations | Questions


def pvq_of(text: str) -> PVQ:
    """Returns the code of activations. Raises `UsageError` for another method, or options that it lacks."""
    code = make(text, None)
    if not isinstance(code, PVQ):
        raise UsageError(f"activations are coded by pvq, not by {code.label}")
    return code


class Formats(Participant):
    """A model in several formats, all with our native kernels or all without, beside float32."""

    def __init__(self, source: str, text: Path, variants: Sequence[Variant], extent: Extent) -> None:
        self.source, self.text, self.variants, self.extent = source, text, tuple(variants), extent
        self.name = "native kernels" if variants[0].kernels else "torch alone"

    @property
    def environment(self) -> dict[str, str]:
        """Turns the kernels off where torch multiplies."""
        quiet = {
            "HF_HUB_OFFLINE": "1",
            "TQDM_DISABLE": "1",
            "TRANSFORMERS_VERBOSITY": "error",
        }  # lm_eval's files are here
        return quiet if self.variants[0].kernels else {**quiet, "OUTLAY_ISA": "none"}

    def load(self) -> dict[str, Any]:
        """Loads all formats; returns how many windows the text gives and how each format's weights are held."""
        self._reference = load(self.source, dtype="float32", prefix_cache=False)
        reference = self._reference.model
        self._taps = tap(reference.decoder)
        self._scored: tuple[int, Tensor] | None = None
        self._answered: dict[tuple[str, int], list[Answer]] = {}

        tokenizer = reference.tokenizer
        tokens = tokenizer.encode(self.text.read_text(encoding="utf-8"))
        prefix = tokenizer.encode_prompt("")
        size = min(self.extent.window, reference.decoder.config.max_positions)
        self._windows = windows(tokens, size, self.extent.windows, prefix)
        if not self._windows:
            raise FailureError(f"{self.text.name} has {len(tokens)} tokens, but one window takes {size}: use more text")

        starts = [i * (len(tokens) - self.extent.prompt) // self.extent.prompts for i in range(self.extent.prompts)]
        self._prompts = [[*prefix, *tokens[start : start + self.extent.prompt]] for start in starts]

        self._lms = {
            each: load(each.source or self.source, dtype=each.dtype, prefix_cache=False, **each.cache_option)
            for each in self.variants
        }
        for each, lm in self._lms.items():
            if each.activations is not None:
                code_inputs(lm.model.decoder, pvq_of(each.activations))
        held = {each.name: lm.model.format for each, lm in self._lms.items()}
        return {"windows": len(self._windows), "window": size, "held": held}

    def measure(self, task: AccuracyTask) -> Values:
        """Returns the values that the task names."""
        lm = self._lms[task.variant]
        if isinstance(task, LayerErrors):
            self._predictions(0)
            with torch.inference_mode():
                return layer_errors(self._taps, lm.model.decoder)
        if isinstance(task, TextWindow):
            tokens, first = self._windows[task.index], self._first(task.index)
            reference = self._predictions(task.index)
            predictions = reference, logits_from(lm, tokens[:-1], first), torch.tensor(tokens[first + 1 :])
            changes = {f"block {index}": change for index, change in enumerate(block_changes(*predictions))}
            return compare(*predictions) | changes
        if isinstance(task, Questions):
            if (task.name, task.docs) not in self._answered:
                self._answered[task.name, task.docs] = answers(self._reference, task.name, task.docs)
            originals = self._answered[task.name, task.docs]
            values: dict[str, float] = {}
            for i, (own, original) in enumerate(zip(answers(lm, task.name, task.docs), originals, strict=True)):
                values |= {f"right {i}": own.right, f"original {i}": original.right, f"chance {i}": original.chance}
            return values
        same = same_tokens(lm, self._prompts, self._written)
        identical = sum(length == self.extent.new for length in same)
        return {"same": sum(same) / len(same), "identical": identical / len(same)}

    def _first(self, window: int) -> int:
        """The row of a window that predicts the first token of its second half."""
        return len(self._windows[window]) // 2 - 1

    def _predictions(self, window: int) -> Tensor:
        """The reference's log-probabilities over a window's second half; the last window's are cached."""
        if self._scored is None or self._scored[0] != window:
            logits = logits_from(self._reference, self._windows[window][:-1], self._first(window))
            self._scored = window, logits.log_softmax(-1)
        return self._scored[1]

    @cached_property
    def _written(self) -> list[list[int]]:
        """The reference's greedy continuations of the prompts."""
        results = self._reference.generate_batch(self._prompts, max_tokens=self.extent.new, ignore_eos=True)
        return [result.tokens for result in results]
