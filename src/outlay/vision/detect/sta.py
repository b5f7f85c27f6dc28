"""DINOv3 and ViT-Tiny with a Spatial Tuning Adapter: three maps of strides 8, 16 and 32 from single-scale tokens."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from outlay.vision.detect.sizes import ViTSize

PATCH, DEPTH = 16, 12
ROPE_BASE = 100.0
STORAGE = 4
"""Tokens of Meta's transformers beside the class token."""


class Rope(nn.Module):
    """Rotary positions in two axes, coordinates from -1 to 1."""

    periods: Tensor

    def __init__(self, head: int) -> None:
        super().__init__()
        self.register_buffer("periods", ROPE_BASE ** (2 * torch.arange(head // 4, dtype=torch.float32) / (head // 2)))

    def forward(self, height: int, width: int) -> tuple[Tensor, Tensor]:
        """Returns sines and cosines, float32 [height * width, head]."""
        rows = torch.arange(0.5, height, device=self.periods.device) / height
        columns = torch.arange(0.5, width, device=self.periods.device) / width
        places = 2 * torch.stack(torch.meshgrid(rows, columns, indexing="ij"), -1).flatten(0, 1) - 1
        angles = (2 * math.pi * places[:, :, None] / self.periods).flatten(1).repeat(1, 2)
        return angles.sin(), angles.cos()


class Attention(nn.Module):
    """Self-attention whose first tokens, which have no place, are not rotated."""

    def __init__(self, width: int, heads: int, *, masked: bool) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = _MaskedLinear(width, 3 * width) if masked else nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor, rope: tuple[Tensor, Tensor]) -> Tensor:
        """Takes and returns [batch, tokens, width]."""
        batch, tokens, width = x.shape
        q, k, v = self.qkv(x).view(batch, tokens, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(_rotated(q, *rope), _rotated(k, *rope), v)
        found: Tensor = self.proj(mixed.transpose(1, 2).reshape(batch, tokens, width))
        return found


class _MaskedLinear(nn.Linear):
    """A linear layer of queries, keys and values, whose bias is multiplied by a mask that is 0 for keys."""

    bias_mask: Tensor

    def __init__(self, reads: int, writes: int) -> None:
        super().__init__(reads, writes)
        mask = torch.ones(writes)
        mask[writes // 3 : 2 * writes // 3] = 0
        self.register_buffer("bias_mask", mask)

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight, self.bias * self.bias_mask)


def _rotated(x: Tensor, sin: Tensor, cos: Tensor) -> Tensor:
    first = x.shape[2] - len(sin)
    plain, placed = x[:, :, :first], x[:, :, first:]
    left, right = placed.chunk(2, -1)
    return torch.cat([plain, placed * cos + torch.cat([-right, left], -1) * sin], 2)


class MLP(nn.Module):
    """Two layers with GELU between."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        """Takes and returns [..., width]."""
        found: Tensor = self.fc2(F.gelu(self.fc1(x)))
        return found


class SwiGLU(nn.Module):
    """A gated network of four times the width."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.w1, self.w2, self.w3 = (
            nn.Linear(width, 4 * width),
            nn.Linear(width, 4 * width),
            nn.Linear(4 * width, width),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Takes and returns [..., width]."""
        found: Tensor = self.w3(F.silu(self.w1(x)) * self.w2(x))
        return found


class _Scale(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.full((width,), 1e-5))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gamma


class Block(nn.Module):
    """A transformer block with normalisation before."""

    def __init__(self, size: ViTSize) -> None:
        super().__init__()
        eps = 1e-5 if size.official else 1e-6
        self.norm1, self.norm2 = nn.LayerNorm(size.width, eps), nn.LayerNorm(size.width, eps)
        self.attn = Attention(size.width, size.heads, masked=size.official)
        self.mlp: nn.Module = SwiGLU(size.width) if size.ffn == "swiglu" else MLP(size.width)
        self.ls1: nn.Module = _Scale(size.width) if size.official else nn.Identity()
        self.ls2: nn.Module = _Scale(size.width) if size.official else nn.Identity()

    def forward(self, x: Tensor, rope: tuple[Tensor, Tensor]) -> Tensor:
        """Takes and returns [batch, tokens, width]."""
        x = x + self.ls1(self.attn(self.norm1(x), rope))
        found: Tensor = x + self.ls2(self.mlp(self.norm2(x)))
        return found


class ViT(nn.Module):
    """Patch tokens behind a class token and, in Meta's form, four storage tokens."""

    def __init__(self, size: ViTSize) -> None:
        super().__init__()
        self.size = size
        self.patch_embed = nn.ModuleDict({"proj": nn.Conv2d(3, size.width, PATCH, PATCH)})
        self.cls_token = nn.Parameter(torch.randn(1, 1, size.width) * 0.02)
        if size.official:
            self.storage_tokens = nn.Parameter(torch.randn(1, STORAGE, size.width) * 0.02)
            self.mask_token = nn.Parameter(torch.zeros(1, size.width))
            self.norm = nn.LayerNorm(size.width, 1e-5)
        self.rope_embed = Rope(size.width // size.heads)
        self.blocks = nn.ModuleList(Block(size) for _ in range(DEPTH))
        for part in self.modules():
            if isinstance(part, nn.Linear):
                nn.init.trunc_normal_(part.weight, std=0.02)
                nn.init.zeros_(part.bias)

    def forward(self, pictures: Tensor) -> list[Tensor]:
        """Returns the patch tokens behind the chosen blocks, [batch, width, height / 16, w / 16] each."""
        x = self.patch_embed["proj"](pictures)
        height, width = x.shape[2:]
        first = [self.cls_token, *([self.storage_tokens] if self.size.official else [])]
        x = torch.cat([*(each.expand(len(x), -1, -1) for each in first), x.flatten(2).transpose(1, 2)], 1)
        rope, found = self.rope_embed(height, width), []
        for place, block in enumerate(self.blocks):
            x = block(x, rope)
            if place in self.size.layers:
                tokens = (self.norm(x) if self.size.official else x)[:, -height * width :]
                found.append(tokens.transpose(1, 2).unflatten(2, (height, width)))
        return found


class DetailNet(nn.Module):
    """A small strided network whose maps keep what patches lose."""

    def __init__(self, c: int) -> None:
        super().__init__()
        self.stem = nn.Sequential(*_strided(3, c), nn.GELU(), nn.MaxPool2d(3, 2, 1))
        self.conv2 = nn.Sequential(*_strided(c, 2 * c))
        self.conv3 = nn.Sequential(nn.GELU(), *_strided(2 * c, 4 * c))
        self.conv4 = nn.Sequential(nn.GELU(), *_strided(4 * c, 4 * c))

    def forward(self, pictures: Tensor) -> list[Tensor]:
        """Returns maps of strides 8, 16 and 32."""
        found = [self.conv2(self.stem(pictures))]
        found.append(self.conv3(found[-1]))
        found.append(self.conv4(found[-1]))
        return found


def _strided(reads: int, writes: int) -> list[nn.Module]:
    return [nn.Conv2d(reads, writes, 3, 2, 1, bias=False), nn.BatchNorm2d(writes)]


class STA(nn.Module):
    """A transformer and a detail network, resized to three strides, concatenated and mixed."""

    def __init__(self, size: ViTSize, width: int) -> None:
        super().__init__()
        vit = ViT(size)
        self.dinov3: nn.Module = vit if size.official else _Wrapped(vit)
        self.sta = DetailNet(size.detail)
        reads = [size.width + size.detail * factor for factor in (2, 4, 4)]
        self.convs = nn.ModuleList(nn.Conv2d(each, width, 1, bias=False) for each in reads)
        self.norms = nn.ModuleList(nn.BatchNorm2d(width) for _ in reads)

    def forward(self, pictures: Tensor) -> list[Tensor]:
        """Returns maps of strides 8, 16 and 32, [batch, width, ...], from fine to coarse."""
        found = []
        for place, (tokens, detail) in enumerate(zip(self.dinov3(pictures), self.sta(pictures), strict=True)):
            height, width = (int(side * 2.0 ** (1 - place)) for side in tokens.shape[2:])
            resized = F.interpolate(tokens, (height, width), mode="bilinear", align_corners=False)
            found.append(self.norms[place](self.convs[place](torch.cat([resized, detail], 1))))
        return found


class _Wrapped(nn.Module):
    """Holds the authors' ViT-Tiny under the name that they give it."""

    def __init__(self, vit: ViT) -> None:
        super().__init__()
        self._model = vit

    def forward(self, pictures: Tensor) -> list[Tensor]:
        found: list[Tensor] = self._model(pictures)
        return found
