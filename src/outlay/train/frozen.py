"""A frozen model of the Llama family in plain torch, through which gradients flow to its inputs.

Another set of layers, whose products have parameters, makes it one that is trained.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from outlay.errors import UsageError
from outlay.models.config import DecoderConfig
from outlay.models.linear import Linear, weight_of
from outlay.models.load import Model
from outlay.models.mlp import Mlp
from outlay.models.norm import RMSNorm

# (layer, q [n, num_heads, head_dim], k, v [n, num_kv_heads, head_dim]) -> [n, num_heads, head_dim]
Attend = Callable[[int, Tensor, Tensor, Tensor], Tensor]
Product = Callable[[Tensor], Tensor]  # [n, in] -> [n, out]


@dataclass(frozen=True)
class LayerParts:
    """What a layer computes with."""

    attn_norm: Tensor
    """[hidden]."""
    qkv: Product
    """To queries, keys and values, one behind the other."""
    out: Product
    """From the heads to the hidden state."""
    mlp_norm: Tensor
    """[hidden]."""
    gate_up: Product
    """To the gate and the inner state, one behind the other."""
    down: Product
    """From the inner state to the hidden state."""


class FrozenDecoder:
    """The layers of a model with its weights in float32, and its LM head."""

    def __init__(self, model: Model) -> None:
        """Copies the weights.

        Raises:
            UsageError: The model is not of the Llama family, or has experts.
        """
        decoder, config = model.decoder, model.decoder.config
        require_llama(config)
        if not isinstance(decoder.final_norm, RMSNorm):
            raise UsageError(f"this is trained for models of the Llama family, not {config.architecture}")
        self.config, self.embed = config, decoder.embed
        self.layers: list[LayerParts] = []

        for layer in decoder.layers:
            if not isinstance(layer.mlp, Mlp):
                raise UsageError("this is trained for models without experts")
            self.layers.append(
                LayerParts(
                    _norm(layer.attn_norm),
                    _product(layer.qkv),
                    _product(layer.out),
                    _norm(layer.mlp_norm),
                    _product(layer.mlp.gate_up),
                    _product(layer.mlp.down),
                )
            )
        self.final_norm, self.lm_head = decoder.final_norm.weight, weight_of(decoder.lm_head)
        self._cos, self._sin = decoder.rope_tables[0]

    def forward(
        self, x: Tensor, positions: Tensor, attend: Attend, layers: Sequence[LayerParts] | None = None
    ) -> Tensor:
        """Computes the hidden states that the LM head reads.

        Args:
            x: [n, hidden], the input embeddings.
            positions: int64 [n].
            attend: Attention over the keys that the caller chooses.
            layers: What to compute with; None: the model's own weights.

        Returns:
            [n, hidden], after the final norm.
        """
        rotation = self._cos[positions][:, None], self._sin[positions][:, None]
        for index, layer in enumerate(self.layers if layers is None else layers):
            x = layer_output(x, layer, self.config, rotation, partial(attend, index))
        return _normed(x, self.final_norm, self.config)


def require_llama(config: DecoderConfig) -> None:
    """Raises `UsageError` for a model of another family than Llama's."""
    plain = config.rope is not None and config.pre_norm and not config.layer_norm and config.activation == "silu"
    plain = plain and not config.layer_ropes and config.residual_scale == 1.0 and not config.norm_plus_one
    if not plain or config.qk_norm or config.post_norms:
        raise UsageError(f"this is trained for models of the Llama family, not {config.architecture}")


def layer_output(
    x: Tensor,
    layer: LayerParts,
    config: DecoderConfig,
    rotation: tuple[Tensor, Tensor],
    attend: Callable[[Tensor, Tensor, Tensor], Tensor],
) -> Tensor:
    """Computes one layer.

    Args:
        x: [n, hidden].
        layer: What it computes with.
        config: Its model's.
        rotation: Cosines and sines of the rows, [n, 1, rope dim / 2] each.
        attend: Attention of queries to keys and values, as `Attend` without the layer.

    Returns:
        [n, hidden].
    """
    heads = layer.qkv(_normed(x, layer.attn_norm, config)).view(len(x), -1, config.head_dim)
    q, k, v = heads.split((config.num_heads, config.num_kv_heads, config.num_kv_heads), dim=1)
    x = x + layer.out(attend(rotated(q, *rotation), rotated(k, *rotation), v).flatten(1))
    gate, up = layer.gate_up(_normed(x, layer.mlp_norm, config)).chunk(2, -1)
    return x + layer.down(F.silu(gate) * up)


def _normed(x: Tensor, weight: Tensor, config: DecoderConfig) -> Tensor:
    return F.rms_norm(x, weight.shape, weight, config.norm_eps)


def _product(linear: Linear) -> partial[Tensor]:
    return partial(F.linear, weight=weight_of(linear), bias=getattr(linear, "bias", None))


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
