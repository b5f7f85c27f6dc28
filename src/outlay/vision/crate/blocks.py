"""The blocks of CRATE: a step that compresses, then a step that sparsifies (Yu et al. 2023).

Modules have the names of the released code, so that its weights load as they are: in a block, `0.norm`, `0.fn.qkv`,
`0.fn.to_out.0`, `1.norm` and `1.fn.weight`.
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from outlay.errors import UsageError
from outlay.vision.crate.rates import compress, sparse_code, sparsify

Variant = Literal["released", "theory"]
SHORT = (
    256  # tokens up to which torch's fused attention takes longer backwards than the plain products, heads being narrow
)


class SubspaceAttention(nn.Module):
    """MSSA as released: one projection is query, key and value; its output layer is learned apart from it.

    Args:
        dim: Width of a token.
        heads: Subspaces, each `dim / heads` wide.
    """

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        check_heads(dim, heads)
        self.heads = heads
        self.qkv = nn.Linear(dim, dim, bias=False)
        self.to_out: nn.Module = nn.Sequential(nn.Linear(dim, dim)) if heads > 1 else nn.Identity()

    def coordinates(self, x: Tensor) -> Tensor:
        """Returns the normed tokens x [..., n, dim] in each subspace, [..., heads, n, width]."""
        return self.qkv(x).unflatten(-1, (self.heads, -1)).transpose(-3, -2)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """Attends.

        Args:
            x: Normed tokens, [batch, n, dim].
            mask: Which tokens (columns) a token (row) attends to, bool [n, n]; None: all of them.

        Returns:
            [batch, n, dim].
        """
        w = self.coordinates(x)
        if w.requires_grad and x.shape[-2] <= SHORT:
            attended = _attended(w, mask)
        else:
            attended = F.scaled_dot_product_attention(w, w, w, attn_mask=mask)
        out: Tensor = self.to_out(attended.transpose(-3, -2).flatten(-2))
        return out


class Sparsification(nn.Module):
    """ISTA: one proximal step towards a sparse, non-negative code of the tokens.

    Args:
        dim: Width of a token, and atoms of the dictionary.
        eta: The step size.
        lam: The weight of the L1 norm.
    """

    def __init__(self, dim: int, eta: float = 0.1, lam: float = 0.1) -> None:
        super().__init__()
        check_steps(eta, lam)
        self.eta, self.lam = eta, lam
        self.weight = nn.Parameter(torch.empty(dim, dim))
        nn.init.kaiming_uniform_(self.weight)

    def forward(self, x: Tensor) -> Tensor:
        """Takes normed tokens [..., n, dim] and returns what replaces them."""
        return sparsify(x, self.weight, self.eta, self.lam)


class OvercompleteSparsification(nn.Module):
    """CRATE-alpha's: two proximal steps from zero in a wide dictionary, and another that makes tokens of the code.

    Args:
        dim: Width of a token.
        ratio: Atoms of each dictionary for a dimension of a token.
        eta: The step size.
        lam: The weight of the L1 norm.
    """

    def __init__(self, dim: int, ratio: int, eta: float = 0.1, lam: float = 0.1) -> None:
        super().__init__()
        check_steps(eta, lam)
        self.eta, self.lam = eta, lam
        self.D, self.D1 = (nn.Parameter(torch.empty(dim, ratio * dim)) for _ in range(2))
        for dictionary in (self.D, self.D1):
            nn.init.kaiming_uniform_(dictionary)

    def forward(self, x: Tensor) -> Tensor:
        """Takes normed tokens [..., n, dim] and returns D1 z of their code z, [..., n, dim]."""
        return sparse_code(x, self.D, self.eta, self.lam) @ self.D1.mT


class Normed(nn.Module):
    """A module that reads tokens after a layer norm."""

    def __init__(self, dim: int, fn: nn.Module) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(dim)
        self.fn = fn

    def forward(self, x: Tensor, *rest: Tensor | None) -> Tensor:
        """Takes and returns [..., n, dim]."""
        out: Tensor = self.fn(self.norm(x), *rest)
        return out


class EncoderBlock(nn.ModuleList):
    """The released block: attention with a residual, then sparsification, which replaces the tokens.

    It has 3 dim^2 + 5 dim parameters. With `dict_ratio` and `residual` it is CRATE-alpha's (Yang et al. 2024), of
    (2 + 2 dict_ratio) dim^2 + 5 dim.

    Args:
        dim: Width of a token.
        heads: Subspaces.
        eta: The step size of the sparsification.
        lam: Its weight of the L1 norm.
        dict_ratio: Atoms of the dictionary for a dimension of a token; above 1 another dictionary makes tokens of them.
        residual: Whether the sparsification is added to the tokens in place of replacing them.

    Raises:
        UsageError: For sizes that don't divide, or steps that are no steps.
    """

    def __init__(
        self, dim: int, heads: int, eta: float = 0.1, lam: float = 0.1, dict_ratio: int = 1, residual: bool = False
    ) -> None:
        if dict_ratio < 1:
            raise UsageError(f"dict_ratio is 1 or more atoms for each dimension, not {dict_ratio}")
        attention = SubspaceAttention(dim, heads)  # drawn first, as the weights of a seed always were
        second = (
            Sparsification(dim, eta, lam) if dict_ratio == 1 else OvercompleteSparsification(dim, dict_ratio, eta, lam)
        )
        super().__init__([Normed(dim, attention), Normed(dim, second)])
        self.residual = residual

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """Takes tokens [batch, n, dim], and a mask as `SubspaceAttention` does; returns the next layer's tokens."""
        attention, sparsification = self
        x = x + attention(x, mask)
        out: Tensor = sparsification(x)
        return x + out if self.residual else out


class DecoderBlock(nn.ModuleList):
    """A block of the autoencoder's decoder: the encoder's steps in reverse, so attention is subtracted.

    Args:
        dim: Width of a token.
        heads: Subspaces.
    """

    def __init__(self, dim: int, heads: int) -> None:
        linear = nn.Linear(dim, dim, bias=False)
        super().__init__([Normed(dim, linear), Normed(dim, SubspaceAttention(dim, heads))])
        self.reset()

    def reset(self) -> None:
        """Draws the dictionary anew, as the encoder's."""
        for module in self[0].modules():
            if isinstance(module, nn.Linear):
                nn.init.kaiming_uniform_(module.weight)

    def forward(self, x: Tensor) -> Tensor:
        """Takes and returns tokens [batch, n, dim]."""
        dictionary, attention = self
        x = dictionary(x)
        return x - attention(x)


class TheoryBlock(nn.Module):
    """The block as it is derived: orthonormal subspaces that are their own output layer, norms without weights.

    Args:
        dim: Width of a token.
        heads: Subspaces.
        eta: The step size of the sparsification.
        lam: Its weight of the L1 norm.
        kappa: The step size of the compression.
        eps: The quantisation error of the rates.
    """

    def __init__(
        self, dim: int, heads: int, eta: float = 0.1, lam: float = 0.1, kappa: float = 0.1, eps: float = 0.5
    ) -> None:
        super().__init__()
        check_heads(dim, heads)
        if not kappa > 0 or not eps > 0:
            raise UsageError(f"kappa and eps are above 0, not {kappa:g} and {eps:g}")
        self.heads, self.kappa, self.eps2 = heads, kappa, eps**2
        self.qkv = nn.Linear(dim, dim, bias=False)
        nn.init.orthogonal_(self.qkv.weight)
        self.sparsification = Sparsification(dim, eta, lam)

    @property
    def subspaces(self) -> Tensor:
        """The bases, [heads, dim, width]."""
        return self.qkv.weight.unflatten(0, (self.heads, -1)).mT

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """Takes tokens [batch, n, dim], and a mask as `compress` does; returns the next layer's tokens."""
        size = x.shape[-1:]
        normed = F.layer_norm(x, size)
        w = self.qkv(normed).unflatten(-1, (self.heads, -1)).transpose(-3, -2)
        half = compress(normed, self.subspaces, self.kappa, self.eps2, mask, w)
        out: Tensor = self.sparsification(F.layer_norm(half, size))
        return out


class Blocks(nn.Module):
    """Blocks one after the other, under the name `layers`."""

    def __init__(self, blocks: list[nn.Module]) -> None:
        super().__init__()
        self.layers = nn.ModuleList(blocks)

    def forward(self, x: Tensor, *mask: Tensor | None) -> Tensor:
        """Takes and returns tokens [batch, n, dim]."""
        for block in self.layers:
            x = block(x, *mask)
        return x


def encoder_block(
    variant: Variant,
    dim: int,
    heads: int,
    eta: float,
    lam: float,
    kappa: float,
    eps: float,
    dict_ratio: int = 1,
    residual: bool = False,
) -> nn.Module:
    """Returns a block of a variant; `kappa` and `eps` are those of `TheoryBlock`, the last two of `EncoderBlock`.

    Raises:
        UsageError: For a variant that isn't there, and for sizes or steps that don't fit.
    """
    if variant == "theory":
        if dict_ratio != 1 or residual:
            raise UsageError("dict_ratio and residual are of the released variant; the theory's block has neither")
        return TheoryBlock(dim, heads, eta, lam, kappa, eps)
    if variant != "released":
        raise UsageError(f"there is no variant {variant!r} of CRATE's block; there are released and theory")
    return EncoderBlock(dim, heads, eta, lam, dict_ratio, residual)


def _attended(w: Tensor, mask: Tensor | None) -> Tensor:
    """Returns the attention of coordinates w [batch, heads, n, width] over themselves, by plain products."""
    scores = w @ w.mT * w.shape[-1] ** -0.5
    if mask is not None:
        scores = scores.masked_fill(~mask, -torch.inf)
    return scores.softmax(-1) @ w


def check_heads(dim: int, heads: int) -> None:
    """Raises `UsageError` where the width of a token isn't a multiple of the heads."""
    if heads < 1 or dim < 1 or dim % heads:
        raise UsageError(f"a token of {dim} dimensions can't be split among {heads} heads: give a divisor of {dim}")


def check_steps(eta: float, lam: float) -> None:
    """Raises `UsageError` where a proximal step has no size, or its norm a weight below 0."""
    if not eta > 0:
        raise UsageError(f"eta is a step size above 0, not {eta:g}")
    if not lam >= 0:
        raise UsageError(f"lam weighs an L1 norm and is 0 or more, not {lam:g}")
