"""How a planned pass is run: in one native call where the kernels have all that the model needs, layer by layer
elsewhere.
"""

from __future__ import annotations

import torch
from torch import Tensor

from outlay import kernels
from outlay.kernels import FusedDecoder, FusedLayer, FusedWeights
from outlay.models.decoder import Decoder, Layer
from outlay.models.linear import NativeLinear
from outlay.models.mlp import Mlp
from outlay.models.norm import RMSNorm
from outlay.tree.attention import TreeAttention
from outlay.tree.cache import Cache
from outlay.tree.plan import Piece, Plan


class LayeredPass:
    """Runs the decoder's own layers with attention over the tree in torch: any model, any device; the reference."""

    name = "torch"

    def __init__(self, decoder: Decoder, cache: Cache) -> None:
        self._decoder, self._cache = decoder, cache

    def __call__(self, plan: Plan, heads: list[int]) -> Tensor:
        """Computes all rows of the plan and returns the logits of `heads`, float32 [len(heads), vocab]."""
        decoder, device = self._decoder, self._decoder.device
        attend = TreeAttention(self._cache, plan, decoder.config)
        rows = None if len(heads) == len(plan.keys_seen) else torch.tensor(heads, dtype=torch.int64, device=device)
        return decoder.forward(plan.tokens.to(device), plan.positions.to(device), attend, rows)


class FusedPass:
    """Runs the whole pass in one call of the native kernels. What a row gets has the same bits in a pass of any
    width.
    """

    name = "native"

    def __init__(self, decoder: Decoder, cache: Cache, weights: FusedWeights) -> None:
        self._decoder, self._cache, self._weights = decoder, cache, weights
        windows = decoder.config.windows
        self._kinds = list(dict.fromkeys(windows))
        self._plan_of_layer = [self._kinds.index(window) for window in windows]
        self._fused = self._bind()

    def __call__(self, plan: Plan, heads: list[int]) -> Tensor:
        """As `LayeredPass`."""
        if self._bound != self._cache.capacity:
            self._fused = self._bind()
        hidden = self._decoder.embed(plan.tokens)
        rows = len(plan.keys_seen)
        plans = [kernels.Plan([_piece(piece, rows) for piece in plan.pieces[window]], rows) for window in self._kinds]
        wanted = None if len(heads) == rows else torch.tensor(heads, dtype=torch.int64)
        logits, _ = self._fused.run(hidden, plan.positions, plan.slots, plans, wanted, head=bool(heads))
        return logits if logits is not None else torch.empty(0, self._decoder.config.vocab_size)

    def _bind(self) -> FusedDecoder:
        """The kernels hold the cache's addresses, which change when it grows."""
        self._bound = self._cache.capacity
        return FusedDecoder(self._weights, self._cache.keys, self._cache.values, self._plan_of_layer)


Pass = LayeredPass | FusedPass


def pass_for(decoder: Decoder, cache: Cache) -> Pass:
    """Returns the fastest way to run this decoder's passes over this cache."""
    weights = _fused_weights(decoder) if kernels.available() and cache.dtype == torch.float32 else None
    return FusedPass(decoder, cache, weights) if weights is not None else LayeredPass(decoder, cache)


def _piece(piece: Piece, rows: int) -> kernels.Piece:
    everyone = len(piece.rows) == rows
    return kernels.Piece(piece.start, piece.length, None if everyone else torch.tensor(piece.rows), piece.mask)


def _fused_weights(decoder: Decoder) -> FusedWeights | None:
    """Returns the weights as the kernels take them, or None where the model has a part that they lack."""
    config = decoder.config
    plain = (
        decoder.device.type == "cpu"
        and config.pre_norm
        and config.rope is not None
        and config.attention_softcap is None
        and config.logit_softcap is None
        and config.head_dim % 8 == 0
        and config.embedding_size == 0
        and isinstance(decoder.final_norm, RMSNorm)
        and isinstance(decoder.head, NativeLinear)
        and decoder.head.bias is None
        and decoder.positions is None
    )
    if not plain:
        return None
    layers = [_fused_layer(layer) for layer in decoder.layers]
    if any(layer is None for layer in layers):
        return None
    assert isinstance(decoder.final_norm, RMSNorm)
    assert isinstance(decoder.head, NativeLinear)
    return FusedWeights(
        layers=[layer for layer in layers if layer is not None],
        final_norm=decoder.final_norm.weight,
        head=decoder.head.packed,
        cos=decoder.cos,
        sin=decoder.sin,
        num_heads=config.num_heads,
        num_kv_heads=config.num_kv_heads,
        head_dim=config.head_dim,
        eps=config.norm_eps,
        attention_scale=config.attention_scale,
    )


def _fused_layer(layer: Layer) -> FusedLayer | None:
    mlp, norms = layer.mlp, (layer.attn_norm, layer.mlp_norm)
    if not isinstance(mlp, Mlp) or not mlp.gated or mlp.activation_name != "silu":
        return None
    linears = (layer.qkv, layer.out, mlp.gate_up, mlp.down)
    if not all(isinstance(linear, NativeLinear) for linear in linears) or not all(
        isinstance(n, RMSNorm) for n in norms
    ):
        return None
    qkv, out, gate_up, down = (linear for linear in linears if isinstance(linear, NativeLinear))
    if any(linear.bias is not None for linear in (out, gate_up, down)) or layer.post_attn_norm or layer.post_mlp_norm:
        return None
    attn_norm, mlp_norm = (norm for norm in norms if isinstance(norm, RMSNorm))
    return FusedLayer(
        input_norm=attn_norm.weight,
        qkv=qkv.packed,
        o=out.packed,
        post_norm=mlp_norm.weight,
        gate_up=gate_up.packed,
        down=down.packed,
        qkv_bias=qkv.bias,
        q_norm=layer.q_norm.weight if layer.q_norm else None,
        k_norm=layer.k_norm.weight if layer.k_norm else None,
    )
