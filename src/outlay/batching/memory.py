"""What a training step takes of memory, by the batch and its two lengths: a model fitted to probes, and a formula."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import combinations
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from outlay.errors import UsageError

TERMS = 6
LAYER_BYTES = {"transformer": 34, "conformer": 86}  # kept for the way back, of a place and a unit of the width
LAYER_WEIGHTS = {"transformer": 12, "conformer": 24}  # over the width squared
ADAM_BYTES = (
    18  # of a parameter in mixed precision: 16-bit weight and gradient, and a float32 weight, gradient, moments
)


class Probe(NamedTuple):
    """The bytes that one training step was seen to take."""

    batch: int
    input: float
    output: float
    bytes: float


@dataclass(frozen=True)
class MemoryModel:
    """Bytes of a step over B examples of lengths S and T: fixed + B (a1 S + a2 S^2 + b1 T + b2 T^2 + c S T)."""

    fixed: float
    """Weights, gradients and the optimizer's state."""
    a1: float
    """Bytes of a unit of input length."""
    a2: float = 0.0
    """Bytes of a pair of input places: attention scores of the encoder."""
    b1: float = 0.0
    """Bytes of an output token."""
    b2: float = 0.0
    """Bytes of a pair of output tokens."""
    c: float = 0.0
    """Bytes of an input place and an output token: scores of cross-attention."""

    def bytes(self, batch: int, input: float, output: float = 0.0) -> float:
        """Returns the bytes that a step takes."""
        terms = _terms(np.array([[batch, input, output]], dtype=np.float64))
        return float(terms[0] @ np.array([self.fixed, self.a1, self.a2, self.b1, self.b2, self.c]))

    @classmethod
    def fit(cls, probes: Sequence[Probe]) -> MemoryModel:
        """Fits the coefficients, none of them negative, to probes by least squares of the relative errors.

        Raises:
            UsageError: There are fewer probes than coefficients, or one is of no bytes.
        """
        if len(probes) < TERMS:
            raise UsageError(f"{len(probes)} probes are too few for the {TERMS} coefficients; give {TERMS} or more")
        rows = np.array([list(probe) for probe in probes], dtype=np.float64)
        if not (np.isfinite(rows).all() and (rows[:, 3] > 0).all() and (rows[:, 0] >= 1).all()):
            raise UsageError("a probe is a batch of 1 or more, two lengths and its bytes, all of them numbers")
        return cls(*_non_negative(_terms(rows[:, :3]) / rows[:, 3:], np.ones(len(rows))).tolist())

    def as_json(self) -> dict[str, Any]:
        """Returns the coefficients by name."""
        return asdict(self)


def transformer_memory(
    encoder: int,
    decoder: int,
    hidden: int,
    heads: int,
    vocab: int,
    per_input: float = 1.0,
    kind: str = "transformer",
) -> MemoryModel:
    """Returns the memory of training an encoder-decoder in 16 bits with Adam, nothing recomputed.

    A layer over s places keeps s h (34 + 5 a s / h) bytes of an example for the way back (Korthikanti et al. 2022,
    equation 1): 11 s h and 5 a s^2 of self-attention, 19 s h of the MLP, 4 s h of the norms. Cross-attention adds the
    same as self-attention with its own scores, and a norm. The logits of a token are kept in 16 bits and in float32. A
    Conformer layer keeps 86 s h by the same count: two MLPs of 25, 17 of attention, whose queries are kept with two
    biases, 17 of the convolution and 2 of the last norm.

    Args:
        encoder: Encoder layers.
        decoder: Decoder layers.
        hidden: Width of the hidden states.
        heads: Attention heads.
        vocab: Entries of the vocabulary.
        per_input: Encoder places of a unit of input length, such as 12.5 a second of audio.
        kind: Encoder layers: "transformer" or "conformer".

    Raises:
        UsageError: A size is not above 0, or there is no such kind.
    """
    if kind not in LAYER_BYTES:
        raise UsageError(f"encoder layers are of the kind {' or '.join(LAYER_BYTES)}, not {kind!r}")
    if min(encoder, decoder, hidden, heads, vocab, per_input) <= 0:
        raise UsageError("layers, hidden, heads, vocab and places of an input must be above 0")
    parameters = encoder * LAYER_WEIGHTS[kind] * hidden**2 + decoder * 16 * hidden**2 + vocab * hidden
    scores = 5 * heads
    return MemoryModel(
        fixed=ADAM_BYTES * parameters,
        a1=per_input * (encoder * LAYER_BYTES[kind] + decoder * 4) * hidden,
        a2=per_input**2 * encoder * scores,
        b1=decoder * (34 + 9) * hidden + 6 * vocab,
        b2=decoder * scores,
        c=per_input * decoder * scores,
    )


def memory_size(text: str) -> float:
    """Returns the bytes in "8GiB", "500MB" or "1e9".

    Raises:
        ValueError: The text is none of these.
    """
    found = re.fullmatch(r"\s*([\d.]+(?:e\d+)?)\s*([kMGT]?)(i?)B?\s*", text, re.IGNORECASE)
    if found is None or not float(found[1]) > 0:
        raise ValueError(f"must be an amount of memory like 8GiB or 500MB, not {text!r}")
    power = "kmgt".index(found[2].lower()) + 1 if found[2] else 0
    return float(found[1]) * (1024 if found[3] else 1000) ** power


def _terms(shapes: NDArray[np.float64]) -> NDArray[np.float64]:
    """Returns what the coefficients multiply, [n, 6], for rows of batch, input and output."""
    batch, s, t = shapes.T
    return np.stack([np.ones(len(shapes)), batch * s, batch * s * s, batch * t, batch * t * t, batch * s * t], axis=1)


def _non_negative(terms: NDArray[np.float64], wanted: NDArray[np.float64]) -> NDArray[np.float64]:
    """Returns the non-negative least squares solution: of the subsets of terms, the best with no negative one."""
    scale = np.maximum(np.abs(terms).max(0), 1e-300)
    best, least = np.zeros(TERMS), float(wanted @ wanted)
    for size in range(1, TERMS + 1):
        for chosen in map(list, combinations(range(TERMS), size)):
            part = terms[:, chosen] / scale[chosen]
            found = np.linalg.lstsq(part, wanted, rcond=None)[0]
            error = float(((part @ found - wanted) ** 2).sum())
            if (found >= 0).all() and error < least * (1 - 1e-9):
                best, least = np.zeros(TERMS), error
                best[chosen] = found / scale[chosen]
    return best
