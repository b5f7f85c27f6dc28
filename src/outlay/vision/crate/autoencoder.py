"""CRATE-MAE: an autoencoder that fills masked patches, its decoder the encoder's steps in reverse (Yu et al. 2023).

Mask tokens stand in the encoder's input, so that it reads all patches. Modules have the names of the released code.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from outlay.errors import UsageError, nearest
from outlay.vision.crate import classifier
from outlay.vision.crate.blocks import Blocks, DecoderBlock, EncoderBlock
from outlay.vision.crate.classifier import Patches, check_images, check_sides

SIZES: Mapping[str, Mapping[str, int]] = {name.replace("-", "-mae-"): size for name, size in classifier.SIZES.items()}
"""The sizes by name; encoder and decoder are equally deep."""

RELEASED = {name.replace("-", "_").replace("crate_mae", "mae_crate"): name for name in SIZES}
"""The names that the released code gives to them."""

UNUSED = ("pos_embed", "decoder_embed.weight", "decoder_embed.bias")
"""Weights of released files that nothing reads."""


class Reconstruction(NamedTuple):
    """What an autoencoder made of pictures."""

    loss: Tensor
    """The mean squared error of masked patches."""

    patches: Tensor
    """All patches as they were predicted, [batch, patches, patch * patch * channels]."""

    masked: Tensor
    """Which patches were masked, bool [batch, patches]."""


class Projected(nn.Module):
    """Patches as tokens, by a convolution named `proj`."""

    def __init__(self, proj: nn.Conv2d) -> None:
        super().__init__()
        self.proj = proj

    def forward(self, images: Tensor) -> Tensor:
        """Takes [batch, channels, height, width] and returns [batch, patches, dim]."""
        out: Tensor = self.proj(images)
        return out.flatten(2).mT


class CrateMAE(nn.Module):
    """A masked autoencoder.

    Args:
        image_size: Pixels of a side.
        patch: Pixels of a patch's side.
        channels: Of a picture.
        dim: Width of a token, in encoder and decoder.
        heads: Subspaces.
        depth: Blocks of the encoder, and of the decoder.
        eta: The step size of the sparsification.
        lam: Its weight of the L1 norm.
        mask_ratio: Share of the patches that is masked.
        normalise: Whether each patch is normalised before it is compared.

    Raises:
        UsageError: For sizes that don't divide.
    """

    decoder_pos_embed: Tensor

    def __init__(
        self,
        *,
        image_size: int = 224,
        patch: int = 16,
        channels: int = 3,
        dim: int,
        heads: int,
        depth: int,
        eta: float = 0.1,
        lam: float = 0.5,
        mask_ratio: float = 0.75,
        normalise: bool = False,
    ) -> None:
        super().__init__()
        self.sides = check_sides(image_size, patch)
        if dim % 4:
            raise UsageError(f"positions of rows and columns need a width that is a multiple of 4, not {dim}")
        if not 0 < mask_ratio < 1:
            raise UsageError(f"mask_ratio is above 0 and below 1, not {mask_ratio:g}")
        self.channels, self.mask_ratio, self.normalise = channels, mask_ratio, normalise
        self.patches = Patches(patch)
        self.patch_embed = Projected(nn.Conv2d(channels, dim, patch, patch))
        self.cls_token, self.mask_token = nn.Parameter(torch.empty(1, 1, dim)), nn.Parameter(torch.empty(1, 1, dim))
        positions = grid_positions(image_size // patch, dim)
        self.register_buffer("decoder_pos_embed", torch.cat([torch.zeros(1, dim), positions])[None])
        self.blocks = nn.Sequential(*(Blocks([EncoderBlock(dim, heads, eta, lam)]) for _ in range(depth)))
        self.norm = nn.LayerNorm(dim, eps=1e-6)
        self.decoder_blocks = nn.Sequential(*(Blocks([DecoderBlock(dim, heads)]) for _ in range(depth)))
        self.decoder_norm = nn.LayerNorm(dim, eps=1e-6)
        self.decoder_pred = nn.Linear(dim, patch * patch * channels)
        self.reset()

    def reset(self) -> None:
        """Draws new weights: linear layers Xavier-uniform, tokens normal (0.02), dictionaries Kaiming-uniform."""
        nn.init.xavier_uniform_(self.patch_embed.proj.weight.view(self.cls_token.shape[-1], -1))
        for token in (self.cls_token, self.mask_token):
            nn.init.normal_(token, std=0.02)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        for module in self.modules():
            if isinstance(module, DecoderBlock):
                module.reset()

    def forward(self, images: Tensor, generator: torch.Generator | None = None) -> Reconstruction:
        """Masks patches and predicts them.

        Args:
            images: [batch, channels, height, width].
            generator: What the masks are drawn from.
        """
        check_images(images, self.channels, self.sides)
        masked = self.masks(images, generator)
        predicted = self.decode(self.encode(images, masked))
        target = self.patches(images)
        if self.normalise:
            target = (target - target.mean(-1, keepdim=True)) / (target.var(-1, keepdim=True) + 1e-6).sqrt()
        return Reconstruction((predicted - target)[masked].square().mean(), predicted, masked)

    def masks(self, images: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Returns which patches of each picture to mask, drawn evenly: bool [batch, patches]."""
        count = self.decoder_pos_embed.shape[1] - 1
        order = torch.rand(len(images), count, generator=generator, device=images.device).argsort(1)
        return order >= int(count * (1 - self.mask_ratio))

    def encode(self, images: Tensor, masked: Tensor | None = None) -> Tensor:
        """Returns the tokens that the decoder reads, the class token first.

        Args:
            images: [batch, channels, height, width].
            masked: Which patches are replaced by the mask token, bool [batch, patches]; None: no patch is.

        Returns:
            [batch, patches + 1, dim].
        """
        x = self.patch_embed(images)
        if masked is not None:
            x = torch.where(masked[..., None], self.mask_token, x)
        x = torch.cat([self.cls_token.expand(len(x), -1, -1), x], dim=1) + self.decoder_pos_embed
        out: Tensor = self.norm(self.blocks(x))
        return out

    def decode(self, tokens: Tensor) -> Tensor:
        """Returns the patches of tokens [batch, patches + 1, dim]: [batch, patches, patch * patch * channels]."""
        out: Tensor = self.decoder_pred(self.decoder_norm(self.decoder_blocks(tokens)))
        return out[:, 1:]


def grid_positions(side: int, dim: int) -> Tensor:
    """Returns sines and cosines of columns, then of rows, of a square grid, [side * side, dim]."""
    rates = 10000.0 ** -(torch.arange(dim // 4, dtype=torch.float64) / (dim // 4))
    waves = torch.arange(side)[:, None] * rates  # [side, dim / 4]
    along = torch.cat([waves.sin(), waves.cos()], dim=1)
    columns, rows = along.repeat(side, 1), along.repeat_interleave(side, 0)
    return torch.cat([columns, rows], dim=1).float()


def build(name: str, **options: Any) -> CrateMAE:
    """Returns an autoencoder with new weights.

    Args:
        name: One of `SIZES`, or the released code's name of it.
        options: Of `CrateMAE`, in place of the size's.

    Raises:
        UsageError: For an unknown name.
    """
    name = RELEASED.get(name, name)
    if name not in SIZES:
        raise UsageError(f"there is no size {name!r}{nearest(name, SIZES)}; the sizes are {', '.join(SIZES)}")
    return CrateMAE(**{**SIZES[name], **options})
