"""Rotary positions: the frequencies of every scaling that runs here, the tables that a decoder looks up, the rotation.

Dimension i of an attention head is rotated with dimension i + dim / 2, as in the hub's checkpoints. GGUF files of the
llama architecture have the two side by side and are reordered when they are loaded.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from outlay.errors import UsageError

# "divided" is ours: the frequency factors that GGUF files hold, llama3's scaling among them.
KINDS = ("default", "linear", "dynamic", "llama3", "yarn", "longrope", "divided")


@dataclass(frozen=True)
class Rope:
    """How attention heads are rotated. The options have their names from `config.json`."""

    theta: float
    """Base of the wavelengths."""
    dim: int
    """How many dimensions of each head are rotated, from the first on."""
    kind: str = "default"
    """How frequencies are scaled for longer contexts: one of `KINDS`."""
    factor: float = 1.0
    """How many times longer the context is than the original one."""
    original_max_positions: int = 0
    """Tokens of the original context."""
    low_freq_factor: float = 1.0
    """llama3: turns within the original context below which a frequency is divided by the whole factor."""
    high_freq_factor: float = 4.0
    """llama3: turns above which a frequency is kept."""
    beta_fast: float = 32.0
    """yarn: turns within the original context above which a frequency is kept."""
    beta_slow: float = 1.0
    """yarn: turns below which a frequency is divided by the whole factor."""
    truncate: bool = True
    """yarn: round the dimensions where the two meet."""
    amplitude: float = 1.0
    """Multiplies cosines and sines."""
    divisors: tuple[float, ...] = ()
    """longrope and divided: divides each frequency, [dim / 2]."""

    def frequencies(self) -> Tensor:
        """Returns the angle that each pair of dimensions turns in one position, float32 [dim / 2]."""
        # In float64 and rounded once: every machine's library of functions then gives the same bits.
        base = (self.theta ** -(torch.arange(0, self.dim, 2, dtype=torch.float64) / self.dim)).float()
        if self.divisors:
            base = base / torch.tensor(self.divisors, dtype=torch.float32)
        if self.kind == "linear":
            return base / self.factor
        if self.kind == "llama3":
            return self._llama3(base)
        if self.kind == "yarn":
            return self._yarn(base)
        return base

    def tables(self, max_positions: int, device: torch.device | str) -> tuple[Tensor, Tensor]:
        """Returns cosines and sines of all positions, times the amplitude: float32 [max_positions, dim / 2] each.

        The angles are float32 products, as in the checkpoints' own code. What follows is rounded once, from float64.
        """
        angles = torch.outer(torch.arange(max_positions, dtype=torch.float32), self.frequencies()).double()
        cos, sin = angles.cos().float(), angles.sin().float()
        return (cos * self.amplitude).to(device), (sin * self.amplitude).to(device)

    def _llama3(self, base: Tensor) -> Tensor:
        turns = self.original_max_positions * base / (2 * math.pi)
        smooth = (turns - self.low_freq_factor) / (self.high_freq_factor - self.low_freq_factor)
        smooth = smooth.clamp(0.0, 1.0)
        return (1 - smooth) * base / self.factor + smooth * base

    def _yarn(self, base: Tensor) -> Tensor:
        low, high = self._dim_that_turns(self.beta_fast), self._dim_that_turns(self.beta_slow)
        if self.truncate:
            low, high = math.floor(low), math.ceil(high)
        low, high = max(low, 0), min(high, self.dim - 1)
        span = high - low or 0.001
        ramp = ((torch.arange(self.dim // 2, dtype=torch.float32) - low) / span).clamp(0, 1)
        return base / self.factor * ramp + base * (1 - ramp)

    def _dim_that_turns(self, times: float) -> float:
        """Returns the dimension that turns `times` times within the original context."""
        return self.dim * math.log(self.original_max_positions / (times * 2 * math.pi)) / (2 * math.log(self.theta))


def rotate(heads: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotates the first dimensions of each head.

    Args:
        heads: [n, heads, head_dim].
        cos: [n, 1, dim], the cosines of the pairs twice.
        sin: [n, 1, dim], the sines of the pairs twice, first negated.
    """
    dim = cos.shape[-1]
    turned = heads[..., :dim]
    turned = torch.addcmul(turned * cos, turned.roll(dim // 2, -1), sin)
    return turned if dim == heads.shape[-1] else torch.cat((turned, heads[..., dim:]), dim=-1)


def rope_from_hf(raw: dict[str, Any], head_dim: int, theta: float = 10000.0, long_context: bool = False) -> Rope:
    """Returns the rotary options of a `config.json`, in the form of either generation of `transformers`.

    Args:
        raw: the content of `config.json`.
        head_dim: size of an attention head.
        theta: the family's default.
        long_context: whether longrope uses its divisors for long contexts.

    Raises:
        UsageError: if the scaling does not run here.
    """
    options = raw.get("rope_parameters") or raw.get("rope_scaling") or {}
    if any(isinstance(value, dict) for value in options.values()):
        raise UsageError("this model rotates its layers differently from each other, which outlay does not run")
    kind = options.get("rope_type", options.get("type")) or "default"
    if raw.get("model_type") == "phi3" and kind in ("su", "yarn"):
        kind = "longrope"
    if kind not in KINDS:
        raise UsageError(f"rope scaling {kind!r} is not one that outlay runs ({', '.join(KINDS)})")
    theta = float(options.get("rope_theta") or raw.get("rope_theta") or theta)
    partial = options.get("partial_rotary_factor") or raw.get("partial_rotary_factor") or 1.0
    dim = int(head_dim * partial)
    if kind in ("default", "dynamic"):
        # Dynamic scaling begins beyond max_position_embeddings, which is where our context ends.
        return Rope(theta, dim)
    if kind == "divided":
        return Rope(theta, dim, kind, divisors=tuple(options["divisors"]))

    max_positions = raw.get("max_position_embeddings", 0)
    original = raw.get("original_max_position_embeddings") or options.get("original_max_position_embeddings")
    original = int(original or max_positions)
    factor = options.get("factor") or max_positions / original
    amplitude = options.get("attention_factor")

    if kind == "longrope":
        if amplitude is None:
            amplitude = math.sqrt(1 + math.log(factor) / math.log(original)) if factor > 1 else 1.0
        divisors = options["long_factor" if long_context else "short_factor"]
        return Rope(theta, dim, kind, factor, original, amplitude=amplitude, divisors=tuple(divisors))

    if kind == "yarn" and amplitude is None:
        amplitude = _yarn_amplitude(factor, options.get("mscale"), options.get("mscale_all_dim"))
    return Rope(
        theta,
        dim,
        kind,
        factor,
        original,
        low_freq_factor=options.get("low_freq_factor") or 1.0,
        high_freq_factor=options.get("high_freq_factor") or 4.0,
        beta_fast=options.get("beta_fast") or 32.0,
        beta_slow=options.get("beta_slow") or 1.0,
        truncate=options.get("truncate", True),
        amplitude=amplitude or 1.0,
    )


def _yarn_amplitude(factor: float, mscale: float | None, mscale_all_dim: float | None) -> float:
    def scale(weight: float) -> float:
        return 0.1 * weight * math.log(factor) + 1.0 if factor > 1 else 1.0

    return scale(mscale) / scale(mscale_all_dim) if mscale and mscale_all_dim else scale(1.0)
