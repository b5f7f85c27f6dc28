"""FastConformer, the encoder of Canary and Parakeet (Rekesh et al. 2023), in torch: a clip at a time, without padding.

Three strided convolutions make a frame of eight of the spectrogram. A block is half an MLP, attention with relative
positions (Dai et al. 2019), a convolution over time, and half an MLP, each added to the stream, and a norm.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from outlay.errors import UsageError
from outlay.models.mel import ParakeetMel

Weights = Callable[[str], Tensor]
EPS = 1e-5  # of layer norms and of the norm over the batch, whose statistics are fixed


@dataclass(frozen=True)
class FastConformerConfig:
    """The shape of an encoder."""

    size: int
    """Width of a hidden state."""
    layers: int
    """Blocks."""
    heads: int
    """Attention heads."""
    bands: int
    """Mel bands."""
    kernel: int
    """Frames that a block's convolution reads."""
    steps: int
    """Strided convolutions at the beginning; each halves the frames."""
    subsampling_kernel: int
    """Width of these, in time and in bands."""
    bias: bool
    """Whether linear layers have biases."""
    conv_bias: bool
    """Whether the blocks' convolutions have."""
    scale: float
    """Multiplies the first block's input."""

    def frames(self, mels: int) -> int:
        """Returns how many frames the encoder makes of the spectrogram's."""
        for _ in range(self.steps):
            mels = (mels + 2 * ((self.subsampling_kernel - 1) // 2) - self.subsampling_kernel) // 2 + 1
        return max(0, mels)


def fast_conformer_config(raw: Mapping[str, Any]) -> FastConformerConfig:
    """Returns the shape that a `config.json` gives to a Parakeet encoder.

    Raises:
        UsageError: for what doesn't run here.
    """
    act, stride, factor = (
        raw.get(name, default)
        for name, default in (("hidden_act", "silu"), ("subsampling_conv_stride", 2), ("subsampling_factor", 8))
    )
    if act != "silu" or stride != 2 or factor < 2 or factor & (factor - 1):
        raise UsageError(
            f"this FastConformer has hidden_act {act!r}, subsampling_conv_stride {stride} and subsampling_factor "
            f"{factor}; outlay runs silu, a stride of 2 and a power of 2"
        )
    size, heads = raw.get("hidden_size", 1024), raw.get("num_attention_heads", 8)
    if size % heads or size % 2:
        raise UsageError(f"{size} dimensions cannot be divided among {heads} attention heads evenly")
    return FastConformerConfig(
        size=size,
        layers=raw.get("num_hidden_layers", 24),
        heads=heads,
        bands=raw.get("num_mel_bins", 80),
        kernel=raw.get("conv_kernel_size", 9),
        steps=factor.bit_length() - 1,
        subsampling_kernel=raw.get("subsampling_conv_kernel_size", 3),
        bias=raw.get("attention_bias", True),
        conv_bias=raw.get("convolution_bias", True),
        scale=math.sqrt(size) if raw.get("scale_input", True) else 1.0,
    )


class FastConformer:
    """The whole encoder, from samples to what a decoder reads.

    Attributes:
        nbytes: bytes of its weights.
        multiplies: multiply-adds that a frame takes, without attention's.
    """

    def __init__(self, config: FastConformerConfig, mel: ParakeetMel, weights: Weights, prefix: str) -> None:
        """Takes weights under the names of `transformers` behind `prefix`."""
        self._config, self._mel = config, mel
        self.nbytes = self.multiplies = 0

        def read(name: str) -> Tensor:
            tensor = weights(prefix + name)
            self.nbytes += tensor.nbytes
            return tensor

        self._subsampling = [
            (read(f"subsampling.layers.{place}.weight"), read(f"subsampling.layers.{place}.bias"))
            for place in self._convolutions()
        ]
        self._linear = (read("subsampling.linear.weight"), read("subsampling.linear.bias"))
        self._blocks = [_Block(config, _within(read, f"layers.{i}.")) for i in range(config.layers)]
        self.multiplies = sum(block.multiplies for block in self._blocks) + self._linear[0].numel()

    def _convolutions(self) -> list[int]:
        """Returns the places of convolutions among the layers: the first, then pairs by channel and across them."""
        return [0, *(place + offset for place in range(2, 3 * self._config.steps - 1, 3) for offset in (0, 1))]

    @torch.inference_mode()
    def __call__(self, samples: Tensor) -> Tensor:
        """samples float32 [n] -> float32 [frames, size]"""
        x = self._subsampled(self._mel(samples)) * self._config.scale
        positions = relative_positions(len(x), self._config.size, x.device)
        for block in self._blocks:
            x = block(x, positions)
        return x

    def _subsampled(self, mel: Tensor) -> Tensor:
        """mel [mels, bands] -> [frames, size]"""
        padding = (self._config.subsampling_kernel - 1) // 2
        x = mel[None, None]
        for number, (weight, bias) in enumerate(self._subsampling):
            if number and number % 2 == 0:  # across channels
                x = F.relu(F.conv2d(x, weight, bias))
                continue
            x = F.conv2d(x, weight, bias, stride=2, padding=padding, groups=x.shape[1] if number else 1)
            x = x if number else F.relu(x)
        return F.linear(x[0].transpose(0, 1).flatten(1), *self._linear)


def relative_positions(length: int, size: int, device: torch.device) -> Tensor:
    """Returns sines and cosines side by side of the distances length - 1, ..., 1 - length, [2 length - 1, size]."""
    rates = 10000.0 ** -(torch.arange(0, size, 2, dtype=torch.float32, device=device) / size)
    angles = torch.arange(length - 1, -length, -1, device=device)[:, None].float() * rates
    return torch.stack([angles.sin(), angles.cos()], dim=-1).flatten(1)


def _within(read: Weights, prefix: str) -> Weights:
    """Returns what reads the tensors behind a prefix."""
    return lambda name: read(prefix + name)


class _Block:
    """A block: half an MLP, attention, a convolution, half an MLP, a norm."""

    def __init__(self, config: FastConformerConfig, read: Weights) -> None:
        self._heads, self._kernel = config.heads, config.kernel

        def linear(name: str, bias: bool) -> tuple[Tensor, Tensor | None]:
            return read(f"{name}.weight"), read(f"{name}.bias") if bias else None

        def norm(name: str) -> tuple[Tensor, Tensor]:
            return read(f"{name}.weight"), read(f"{name}.bias")

        self._mlps = [
            (norm(f"norm_feed_forward{n}"), linear(f"feed_forward{n}.linear1", config.bias),
             linear(f"feed_forward{n}.linear2", config.bias))
            for n in (1, 2)
        ]  # fmt: skip
        self._attn_norm, self._conv_norm, self._norm_out = map(norm, ("norm_self_att", "norm_conv", "norm_out"))
        self._q, self._k, self._v, self._o = (linear(f"self_attn.{name}_proj", config.bias) for name in "qkvo")
        self._relative = read("self_attn.relative_k_proj.weight")
        self._content, self._position = read("self_attn.bias_u"), read("self_attn.bias_v")
        self._into, self._over, self._out = (
            linear(f"conv.{name}", config.conv_bias)
            for name in ("pointwise_conv1", "depthwise_conv", "pointwise_conv2")
        )
        self._statistics = [read(f"conv.norm.{name}") for name in ("running_mean", "running_var", "weight", "bias")]
        matrices = [self._q, self._k, self._v, self._o, self._into, self._over, self._out]
        matrices += [part for _, first, second in self._mlps for part in (first, second)]
        self.multiplies = sum(weight.numel() for weight, _ in matrices)

    def __call__(self, x: Tensor, positions: Tensor) -> Tensor:
        """x [n, size] and `relative_positions` -> [n, size]"""
        size = x.shape[-1:]
        x = x + 0.5 * self._mlp(0, x)
        x = x + self._attended(F.layer_norm(x, size, *self._attn_norm, eps=EPS), positions)
        x = x + self._convolved(F.layer_norm(x, size, *self._conv_norm, eps=EPS))
        x = x + 0.5 * self._mlp(1, x)
        return F.layer_norm(x, size, *self._norm_out, eps=EPS)

    def _mlp(self, which: int, x: Tensor) -> Tensor:
        norm, first, second = self._mlps[which]
        return F.linear(F.silu(F.linear(F.layer_norm(x, x.shape[-1:], *norm, eps=EPS), *first)), *second)

    def _attended(self, x: Tensor, positions: Tensor) -> Tensor:
        """Attention whose scores are q k + q r, r of the distance, each q with a bias of its own."""
        n = len(x)
        q, k, v = (F.linear(x, *part).view(n, self._heads, -1).transpose(0, 1) for part in (self._q, self._k, self._v))
        r = F.linear(positions, self._relative).view(2 * n - 1, self._heads, -1).transpose(0, 1)
        by_distance = (q + self._position[:, None]) @ r.mT  # [heads, n, 2n - 1], from n - 1 before to n - 1 behind
        places = torch.arange(n, device=x.device)
        shifted = by_distance.gather(2, (places - places[:, None] + n - 1).expand(self._heads, n, n))
        scale = q.shape[-1] ** -0.5
        scores = ((q + self._content[:, None]) @ k.mT + shifted) * scale
        return F.linear((scores.softmax(-1) @ v).transpose(0, 1).flatten(1), *self._o)

    def _convolved(self, x: Tensor) -> Tensor:
        """A gated layer, a convolution over time by channel, a norm with fixed statistics, and a layer back."""
        y = F.glu(F.conv1d(x.T[None], *self._into), dim=1)
        y = F.conv1d(y, *self._over, padding=(self._kernel - 1) // 2, groups=y.shape[1])
        mean, variance, weight, bias = self._statistics
        y = F.silu(F.batch_norm(y, mean, variance, weight, bias, eps=EPS))
        return F.conv1d(y, *self._out)[0].T
