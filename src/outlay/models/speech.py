"""Sound as the input of an encoder: a clip of samples, and what makes the first layer's input of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from hashlib import sha256
from math import prod
from typing import NamedTuple, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

STRIDES = (64, 3, 2)
KERNELS = (127, 7, 3)
"""Strides and widths of Moonshine's convolutions, in the samples or frames that each reads."""


@dataclass(frozen=True, eq=False)
class Clip:
    """Sound that an encoder reads. Clips of the same samples and frames are equal."""

    samples: Tensor
    """Float32 [n], from -1 to 1, at the model's rate."""
    frames: int
    """How many frames the encoder reads; `SpeechForm.clip` says it."""

    def __len__(self) -> int:
        """How many frames the encoder reads."""
        return self.frames

    def __bool__(self) -> bool:
        return self.frames > 0

    @cached_property
    def digest(self) -> bytes:
        """Identifies the samples."""
        return sha256(self.samples.contiguous().numpy().tobytes()).digest()

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Clip) and (self.digest, self.frames) == (other.digest, other.frames)

    def __hash__(self) -> int:
        return hash(self.digest)


class Stem(Protocol):
    """Makes frames of the samples of a clip."""

    nbytes: int
    """Bytes of its weights."""
    multiplies: int
    """Multiply-adds that a frame takes."""

    def __call__(self, samples: Tensor) -> Tensor:
        """samples float32 [n] -> the first layer's input, [frames, hidden_size]"""
        ...


class Convolution(NamedTuple):
    """The weights of a convolution over time."""

    weight: Tensor
    """[out, in, width]."""
    bias: Tensor | None
    """[out]."""
    stride: int
    """Steps from one output to the next."""
    padding: int = 0
    """Zeros before the first and behind the last input."""

    def __call__(self, x: Tensor) -> Tensor:
        """x [1, in, n] -> [1, out, m]"""
        return F.conv1d(x, self.weight, self.bias, self.stride, self.padding)


def moonshine_frames(samples: int) -> int:
    """Returns how many frames Moonshine's convolutions make of a number of samples."""
    for width, stride in zip(KERNELS, STRIDES, strict=True):
        samples = max(0, (samples - width) // stride + 1)
    return samples


class MoonshineStem:
    """Three convolutions over the samples of a clip, with a norm over the whole clip behind the first (Moonshine).

    Attributes:
        nbytes: bytes of its weights.
        multiplies: multiply-adds that a frame takes.
    """

    def __init__(self, convolutions: Sequence[Convolution], norm_weight: Tensor, norm_bias: Tensor) -> None:
        self._convolutions, self._norm = tuple(convolutions), (norm_weight, norm_bias)
        self.nbytes = sum(each.weight.nbytes for each in convolutions)
        outputs = [prod(STRIDES[place + 1 :]) for place in range(len(STRIDES))]  # of each convolution, for a frame
        self.multiplies = sum(count * each.weight.numel() for count, each in zip(outputs, convolutions, strict=True))

    @torch.inference_mode()
    def __call__(self, samples: Tensor) -> Tensor:
        """samples float32 [n] -> the first layer's input, [moonshine_frames(n), hidden_size]"""
        first, second, third = self._convolutions
        x = torch.tanh(first(samples[None, None]))
        x = F.group_norm(x, 1, *self._norm, eps=1e-5)
        return F.gelu(third(F.gelu(second(x))))[0].T
