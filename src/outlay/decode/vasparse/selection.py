"""Visual-aware token selection: which written tokens a layer keeps (section "S^tau" of the paper)."""

from __future__ import annotations

import torch
from torch import Tensor


def scores(attention: Tensor) -> Tensor:
    """Returns the squared attention weights that the last token gives to each, [layers, tokens] as its argument."""
    return attention.square()


def sight(saliency: Tensor) -> Tensor:
    """Returns P, how much each token looked at the picture beside the others: softmax over tokens, [layers, tokens].

    Args:
        saliency: The attention that each token gave to the picture when it was read, [layers, tokens].
    """
    return saliency.softmax(-1)


def selection_value(attention: Tensor, saliency: Tensor, lam: float) -> Tensor:
    """Returns delta = score^2 + lambda * P, [layers, tokens]: what keeping a token is worth.

    Args:
        attention: Mean over heads of the last token's attention, [layers, tokens].
        saliency: As in `sight`.
        lam: The weight of P.
    """
    value = scores(attention)
    return value + lam * sight(saliency) if lam else value


def best(value: Tensor, count: int) -> Tensor:
    """Returns the places of the `count` tokens of largest value, the last one always, int64 [layers, count] ascending.

    Among all sets of this size that hold the last token, they have the largest sum; among equals the first are taken.
    """
    value = value.clone()
    value[:, -1] = torch.inf
    return value.sort(dim=1, descending=True, stable=True).indices[:, :count].sort(dim=1).values
