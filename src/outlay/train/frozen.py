"""A frozen model of the Llama family in plain torch, through which gradients flow to its inputs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from outlay.errors import UsageError
from outlay.models.linear import weight_of
from outlay.models.load import Model
from outlay.models.mlp import Mlp
from outlay.models.norm import RMSNorm

# (layer, q [n, num_heads, head_dim], k, v [n, num_kv_heads, head_dim]) -> [n, num_heads, head_dim]
Attend = Callable[[int, Tensor, Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class _Layer:
    attn_norm: Tensor
    qkv: Tensor
    qkv_bias: Tensor | None
    out: Tensor
    mlp_norm: Tensor
    gate_up: Tensor
    down: Tensor


class FrozenDecoder:
    """The layers of a model with its weights in float32, and its LM head."""

    def __init__(self, model: Model) -> None:
        """Copies the weights.

        Raises:
            UsageError: The model is not of the Llama family, or has experts.
        """
        decoder, config = model.decoder, model.decoder.config
        plain = config.rope is not None and config.pre_norm and not config.layer_norm and config.activation == "silu"
        plain = plain and not config.layer_ropes and config.residual_scale == 1.0
        if not plain or config.qk_norm or config.post_norms or not isinstance(decoder.final_norm, RMSNorm):
            raise UsageError(f"this is trained for models of the Llama family, not {config.architecture}")
        self.config, self.embed = config, decoder.embed
        self.layers: list[_Layer] = []

        for layer in decoder.layers:
            if not isinstance(layer.mlp, Mlp):
                raise UsageError("this is trained for models without experts")
            self.layers.append(
                _Layer(
                    _norm(layer.attn_norm),
                    weight_of(layer.qkv),
                    getattr(layer.qkv, "bias", None),
                    weight_of(layer.out),
                    _norm(layer.mlp_norm),
                    weight_of(layer.mlp.gate_up),
                    weight_of(layer.mlp.down),
                )
            )
        self.final_norm, self.lm_head = decoder.final_norm.weight, weight_of(decoder.lm_head)
        self._cos, self._sin = decoder.rope_tables[0]

    def forward(self, x: Tensor, positions: Tensor, attend: Attend) -> Tensor:
        """Computes the hidden states that the LM head reads.

        Args:
            x: [n, hidden], the input embeddings.
            positions: int64 [n].
            attend: Attention over the keys that the caller chooses.

        Returns:
            [n, hidden], after the final norm.
        """
        config = self.config
        cos, sin = self._cos[positions][:, None], self._sin[positions][:, None]
        for index, layer in enumerate(self.layers):
            qkv = F.linear(self._normed(x, layer.attn_norm), layer.qkv, layer.qkv_bias)
            heads = qkv.view(len(x), -1, config.head_dim)
            q, k, v = heads.split((config.num_heads, config.num_kv_heads, config.num_kv_heads), dim=1)
            attended = attend(index, rotated(q, cos, sin), rotated(k, cos, sin), v)
            x = x + F.linear(attended.flatten(1), layer.out)
            gate, up = F.linear(self._normed(x, layer.mlp_norm), layer.gate_up).chunk(2, -1)
            x = x + F.linear(F.silu(gate) * up, layer.down)
        return self._normed(x, self.final_norm)

    def _normed(self, x: Tensor, weight: Tensor) -> Tensor:
        return F.rms_norm(x, weight.shape, weight, self.config.norm_eps)


def _norm(norm: object) -> Tensor:
    assert isinstance(norm, RMSNorm)
    return norm.weight


def rotated(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Applies rotary positions: dimension i turns with dimension i + rope_dim / 2.

    Args:
        x: [..., head_dim].
        cos: [..., rope_dim / 2], broadcast over x.
        sin: Like `cos`.
    """
    half = cos.shape[-1]
    a, b, rest = x[..., :half], x[..., half : 2 * half], x[..., 2 * half :]
    return torch.cat([a * cos - b * sin, b * cos + a * sin, rest], dim=-1)
