"""The attention function that `transformers` calls in each layer: it hands the layer's call to the pass that runs.

`transformers` looks attention up by name (`AttentionInterface`), so the function is one for all models, and a context
variable tells it which pass is running. The same name has a mask function: our attention needs no masks, but a mask
tells which keys a layer sees, so while a model is examined it is kept with the tensor that stands for it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

NAME = "outlay"
"""What our attention is registered as."""

MaskFunction = Callable[[int, int, Tensor, Tensor], Tensor]
"""(batch, head, query's place, key's place) -> whether the query sees the key, of the places' broadcast shape."""


class LayerCall(NamedTuple):
    """What a layer asks of attention for n rows."""

    q: Tensor
    """[n, num_heads, head_dim]"""
    k: Tensor
    """[n, num_kv_heads, head_dim]"""
    v: Tensor
    """[n, num_kv_heads, value_dim]"""
    scale: float
    """Multiplies the scores."""
    mask: Tensor | None
    """The mask that the model made."""
    options: Mapping[str, Any]
    """Its other arguments by name."""


class _Serving(NamedTuple):
    """The pass that runs."""

    serve: Callable[[LayerCall], Tensor]
    with_masks: bool


_serving: ContextVar[_Serving] = ContextVar("serving")


@contextmanager
def serving(serve: Callable[[LayerCall], Tensor], *, with_masks: bool = False) -> Iterator[None]:
    """Lets `serve` compute attention, [n, num_heads, value_dim], while a model's own code runs.

    Args:
        serve: called once for each call of attention, in the order of the layers.
        with_masks: whether calls carry a mask; its function is then found by `mask_function`.
    """
    token = _serving.set(_Serving(serve, with_masks))
    try:
        yield
    finally:
        _serving.reset(token)


def register() -> None:
    """Makes our attention known to `transformers`."""
    from transformers import AttentionInterface
    from transformers.masking_utils import AttentionMaskInterface

    AttentionInterface.register(NAME, _attention)
    AttentionMaskInterface.register(NAME, _mask)


def mask_function(mask: Tensor) -> MaskFunction | None:
    """Returns the function that a mask stands for; None if the model's own code made or changed the mask."""
    return getattr(mask, "outlay_mask_function", None)


def _attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    **options: Any,
) -> tuple[Tensor, None]:
    """query [1, num_heads, n, head_dim], key and value alike -> [1, n, num_heads, value_dim]."""
    q, k, v = (x[0].transpose(0, 1).contiguous() for x in (query, key, value))
    scale = q.shape[-1] ** -0.5 if scaling is None else float(scaling)
    return _serving.get().serve(LayerCall(q, k, v, scale, attention_mask, options)).contiguous()[None], None


def _mask(q_length: int, kv_length: int, mask_function: MaskFunction, **options: Any) -> Tensor | None:
    if not _serving.get().with_masks:
        return None
    mask = torch.ones((1, 1, q_length, kv_length), dtype=torch.bool)
    mask.outlay_mask_function = mask_function  # type: ignore[attr-defined]
    return mask
