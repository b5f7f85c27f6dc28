"""One layer in plain torch, through which gradients flow to its weights: for methods that tune what they made of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from outlay.errors import UsageError
from outlay.models.config import DecoderConfig
from outlay.models.decoder import Layer
from outlay.models.mlp import Mlp
from outlay.models.norm import RMSNorm
from outlay.train.frozen import LayerParts, layer_output, require_llama


@dataclass(frozen=True)
class Tuning:
    """How a method tunes a layer that it has shrunk (VPTQ's paper: 100 iterations at 1e-4 for 7B models)."""

    iterations: int = 100
    """Steps of Adam for each layer, a batch of the calibration each."""
    lr: float = 1e-4
    """Learning rate."""

    def __post_init__(self) -> None:
        if self.iterations < 1:
            raise UsageError(f"iterations of a tuning must be 1 or more, not {self.iterations}")
        if not self.lr > 0:
            raise UsageError(f"lr of a tuning must be above 0, not {self.lr:g}")


@dataclass(frozen=True)
class Batch:
    """Sequences that go through a layer together."""

    inputs: Tensor
    """Float32 [tokens, hidden_size], what the layer reads."""
    targets: Tensor
    """Float32 [tokens, hidden_size], what the float layer gives."""
    lengths: Sequence[int]
    """Tokens of each sequence."""


@dataclass(frozen=True)
class Norms:
    """The weights of a layer's norms."""

    attn: Tensor
    """[hidden_size], before attention."""
    mlp: Tensor
    """[hidden_size], before the MLP."""


class Block:
    """One layer of the Llama family, with other weights than its own."""

    def __init__(
        self,
        layer: Layer,
        config: DecoderConfig,
        index: int,
        rope: tuple[Tensor, Tensor],
        modules: Mapping[str, Sequence[str]],
        floats: Mapping[str, Tensor],
        configs: Mapping[str, Mapping[str, Any]],
        batches: Sequence[Batch],
    ) -> None:
        """Takes a layer and what of it was shrunk.

        Args:
            layer: The float layer.
            config: Its model's.
            index: Which layer it is.
            rope: Cosines and sines of positions, [positions, rope dim / 2] each.
            modules: The modules that read "qkv", "out", "gate_up" and "down", in the order of their rows.
            floats: The weights of the modules that were not shrunk.
            configs: What the form says of each module that was.
            batches: The calibration.

        Raises:
            UsageError: The layer is of another family, or has experts.
        """
        require_llama(config)
        if not isinstance(layer.mlp, Mlp) or config.attention_softcap is not None:
            raise UsageError("layers are tuned in models of the Llama family without experts")
        assert isinstance(layer.attn_norm, RMSNorm)
        assert isinstance(layer.mlp_norm, RMSNorm)
        self.norms, self.configs, self.batches = Norms(layer.attn_norm.weight, layer.mlp_norm.weight), configs, batches
        linears = {"qkv": layer.qkv, "out": layer.out, "gate_up": layer.mlp.gate_up, "down": layer.mlp.down}
        self._biases = {name: getattr(linear, "bias", None) for name, linear in linears.items()}
        self._config, self._window, self._rope = config, config.windows[index], rope
        self._modules, self._floats = modules, floats

    def output(self, batch: Batch, weights: Mapping[str, Tensor], norms: Norms) -> Tensor:
        """Returns what the layer gives, [tokens, hidden_size].

        Args:
            batch: What it reads.
            weights: Float32 [out, in] of each module that was shrunk.
            norms: The weights of its norms.
        """
        known = {**self._floats, **weights}

        def product(name: str) -> Any:
            weight = torch.cat([known[module] for module in self._modules[name]])
            return lambda x: F.linear(x, weight, self._biases[name])

        parts = LayerParts(
            norms.attn, product("qkv"), product("out"), norms.mlp, product("gate_up"), product("down")
        )  # fmt: skip
        positions = torch.cat([torch.arange(length) for length in batch.lengths])
        cos, sin = (part[positions][:, None] for part in self._rope)

        def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            each = zip(*(x.split(list(batch.lengths)) for x in (q, k, v)), strict=True)
            return torch.cat([self._attended(*heads) for heads in each])

        return layer_output(batch.inputs, parts, self._config, (cos, sin), attend)

    @torch.no_grad()
    def error(self, weights: Mapping[str, Tensor], norms: Norms) -> float:
        """Returns the mean square difference of the layer's output from the float layer's, over all batches."""
        sums = [float((self.output(each, weights, norms) - each.targets).square().sum()) for each in self.batches]
        return sum(sums) / sum(each.targets.numel() for each in self.batches)

    def _attended(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Returns what one sequence attends to: q [n, heads, dim], k and v [n, kv heads, dim] -> [n, heads, dim]."""
        group = q.shape[1] // k.shape[1]
        q, k, v = (x.transpose(0, 1) for x in (q, k, v))
        at = torch.arange(q.shape[1])
        seen = at[None] <= at[:, None]
        if self._window is not None:
            seen &= at[None] > at[:, None] - self._window
        k, v = k.repeat_interleave(group, 0), v.repeat_interleave(group, 0)
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=seen, scale=self._config.attention_scale)
        return out.transpose(0, 1)
