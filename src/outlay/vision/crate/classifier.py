"""CRATE: a classifier of pictures whose every layer is a step of sparse rate reduction (Yu et al. 2023).

A layer compresses the tokens towards learned subspaces, by attention whose one projection is query, key and value, and
then sparsifies them in a learned dictionary. A block has 3 d^2 + 5 d parameters where a transformer's has 12 d^2.
The released block is the default; the one that is derived in the paper, with tied outputs, is `variant="theory"`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from outlay.about import About, Entry
from outlay.errors import UsageError, nearest
from outlay.vision.cost import COUNTS
from outlay.vision.crate.blocks import Blocks, Variant, encoder_block

SIZES: Mapping[str, Mapping[str, int]] = {
    "crate-tiny": {"dim": 384, "heads": 6, "depth": 12},
    "crate-small": {"dim": 576, "heads": 12, "depth": 12},
    "crate-base": {"dim": 768, "heads": 12, "depth": 12},
    "crate-large": {"dim": 1024, "heads": 16, "depth": 24},
}
"""The sizes of the paper; all read 224 x 224 pixels in patches of 16."""

RELEASED = {"CRATE_tiny": "crate-tiny", "CRATE_small": "crate-small", "CRATE_base": "crate-base",
            "CRATE_large": "crate-large"}  # fmt: skip
"""The names that the released code gives to them."""


class Patches(nn.Module):
    """Cuts pictures into patches."""

    def __init__(self, patch: int) -> None:
        super().__init__()
        self.patch = patch

    def forward(self, images: Tensor) -> Tensor:
        """Takes [batch, channels, height, width]; returns [batch, patches, patch * patch * channels], row by row."""
        side = self.patch
        batch, channels, height, width = images.shape
        cut = images.view(batch, channels, height // side, side, width // side, side)
        return cut.permute(0, 2, 4, 3, 5, 1).reshape(batch, -1, side * side * channels)


class CrateClassifier(nn.Module):
    """A classifier. Weights of the released code load by their names.

    Args:
        image_size: Pixels of a side, or height and width.
        patch: Pixels of a patch's side.
        channels: Of a picture.
        classes: Outputs.
        dim: Width of a token.
        heads: Subspaces.
        depth: Blocks.
        eta: The step size of the sparsification.
        lam: Its weight of the L1 norm.
        pool: What is classified: the class token, or the mean of all tokens.
        variant: The block, "released" or "theory".
        kappa: The step size of the theory's compression.
        eps: The quantisation error of the theory's rates.
        dict_ratio: Atoms of the released block's dictionary for a dimension, as CRATE-alpha has them.
        residual: Whether the released block adds its sparsification to the tokens, as CRATE-alpha does.

    Raises:
        UsageError: For sizes that don't divide, or steps that are no steps.
    """

    def __init__(
        self,
        *,
        image_size: int | tuple[int, int] = 224,
        patch: int = 16,
        channels: int = 3,
        classes: int = 1000,
        dim: int,
        heads: int,
        depth: int,
        eta: float = 0.1,
        lam: float = 0.1,
        pool: Literal["cls", "mean"] = "cls",
        variant: Variant = "released",
        kappa: float = 0.1,
        eps: float = 0.5,
        dict_ratio: int = 1,
        residual: bool = False,
    ) -> None:
        super().__init__()
        self.sides = check_sides(image_size, patch)
        if pool not in ("cls", "mean"):
            raise UsageError(f"pool is cls or mean, not {pool!r}")
        self.channels, self.pool = channels, pool
        count, inner = self.sides[0] * self.sides[1] // patch**2, patch * patch * channels
        self.to_patch_embedding = nn.Sequential(
            Patches(patch), nn.LayerNorm(inner), nn.Linear(inner, dim), nn.LayerNorm(dim)
        )
        self.pos_embedding = nn.Parameter(torch.randn(1, count + 1, dim))
        self.cls_token = nn.Parameter(torch.randn(1, 1, dim))
        block = (variant, dim, heads, eta, lam, kappa, eps, dict_ratio, residual)
        self.transformer = Blocks([encoder_block(*block) for _ in range(depth)])
        self.mlp_head = nn.Sequential(nn.LayerNorm(dim), nn.Linear(dim, classes))

    def forward(self, images: Tensor) -> Tensor:
        """Takes pictures [batch, channels, height, width]; returns logits [batch, classes]."""
        check_images(images, self.channels, self.sides)
        x = self.to_patch_embedding(images)
        x = torch.cat([self.cls_token.expand(len(x), -1, -1), x], dim=1) + self.pos_embedding
        x = self.transformer(x)
        out: Tensor = self.mlp_head(x.mean(1) if self.pool == "mean" else x[:, 0])
        return out


def check_sides(image_size: int | tuple[int, int], patch: int) -> tuple[int, int]:
    """Returns height and width. Raises `UsageError` where patches don't cover them."""
    height, width = (image_size, image_size) if isinstance(image_size, int) else image_size
    if patch < 1 or height < 1 or width < 1 or height % patch or width % patch:
        raise UsageError(f"patches of {patch} x {patch} don't cover {height} x {width} pixels: give a divisor of both")
    return height, width


def check_images(images: Tensor, channels: int, sides: tuple[int, int]) -> None:
    """Raises `UsageError` for pictures of another shape than the network's."""
    if images.ndim != 4 or tuple(images.shape[1:]) != (channels, *sides):
        found = " x ".join(map(str, images.shape[1:]))
        raise UsageError(f"this network reads {channels} x {sides[0]} x {sides[1]}, not {found}")


def build(name: str, **options: Any) -> CrateClassifier:
    """Returns a classifier with new weights.

    Args:
        name: One of `SIZES`, or the released code's name of it.
        options: Of `CrateClassifier`, in place of the size's.

    Raises:
        UsageError: For an unknown name.
    """
    name = RELEASED.get(name, name)
    if name not in SIZES:
        raise UsageError(f"there is no size {name!r}{nearest(name, SIZES)}; the sizes are {', '.join(SIZES)}")
    return CrateClassifier(**{**SIZES[name], **options})


@dataclass(frozen=True)
class Crate(Entry):
    """A classifier whose blocks have a quarter of a transformer's parameters, and can be looked into layer by layer."""

    name: str = "crate-tiny"
    """The size: crate-tiny, crate-small, crate-base or crate-large."""

    classes: int = 1000
    """Outputs of the classifier."""

    variant: Variant = "released"
    """The block: that of the released code, or the theory's, whose subspaces are their own output layer."""

    eta: float = 0.1
    """Step size of the sparsification."""

    lam: float = 0.1
    """Weight of its L1 norm."""

    kappa: float = 0.1
    """Step size of the compression, in the theory's block."""

    eps: float = 0.5
    """Quantisation error of the coding rates, in the theory's block."""

    dict_ratio: int = 1
    """Atoms of the dictionary for each dimension of a token; CRATE-alpha has 4. Experimental."""

    residual: bool = False
    """Adds the sparsification to the tokens, as CRATE-alpha does, in place of replacing them. Experimental."""

    about: ClassVar[About] = About(
        name="crate",
        summary="blocks that compress and sparsify, with a quarter of a transformer's parameters",
        paper="Yu et al. 2023, White-Box Transformers via Sparse Rate Reduction, arXiv 2311.13110",
        family="vision",
        spends="accuracy at equal width",
        saves="parameters, time and, where it writes text, half of the keys and values",
        exact=False,
        task="classify",
        command="outlay vision profile crate-tiny",
        counts=COUNTS,
    )

    def __post_init__(self) -> None:
        with torch.device("meta"):
            self.build()

    def build(self) -> CrateClassifier:
        """Returns the network with new weights."""
        names = ("classes", "variant", "eta", "lam", "kappa", "eps", "dict_ratio", "residual")
        return build(self.name, **{name: getattr(self, name) for name in names})
