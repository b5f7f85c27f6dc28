"""DEIMv2's encoders: maps of several strides, mixed top-down and bottom-up. With the authors' names of parts."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

TEMPERATURE = 10_000.0  # of the sines and cosines of positions


class ConvNorm(nn.Module):
    """A convolution, batch normalisation, and SiLU where wanted."""

    def __init__(
        self, reads: int, writes: int, kernel: int, stride: int = 1, groups: int = 1, *, act: bool = False
    ) -> None:
        super().__init__()
        self.conv = nn.Conv2d(reads, writes, kernel, stride, (kernel - 1) // 2, groups=groups, bias=False)
        self.norm: nn.Module = nn.BatchNorm2d(writes)
        self.act = nn.SiLU(inplace=True) if act else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """Takes [batch, reads, height, width]."""
        found: Tensor = self.act(self.norm(self.conv(x)))
        return found


class VGGBlock(nn.Module):
    """A 3x3 and a 1x1 convolution side by side, each normalised; one 3x3 convolution once it is deployed."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv1: nn.Module = ConvNorm(width, width, 3)
        self.conv2: nn.Module | None = ConvNorm(width, width, 1)
        self.act = nn.SiLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        """Takes and returns [batch, width, height, w]."""
        mixed = self.conv1(x) if self.conv2 is None else self.conv1(x) + self.conv2(x)
        found: Tensor = self.act(mixed)
        return found

    def add_up(self) -> None:
        """Makes one convolution of both branches, whose normalisation is folded already."""
        if self.conv2 is None:
            return
        assert isinstance(self.conv1, ConvNorm)
        assert isinstance(self.conv2, ConvNorm)
        wide, narrow = self.conv1.conv, self.conv2.conv
        assert wide.bias is not None
        assert narrow.bias is not None
        made = nn.Conv2d(wide.in_channels, wide.out_channels, 3, padding=1)
        with torch.no_grad():
            made.weight.copy_(wide.weight + F.pad(narrow.weight, (1, 1, 1, 1)))
            made.bias.copy_(wide.bias + narrow.bias)  # type: ignore[union-attr]
        self.conv1, self.conv2 = made, None


class CSPLayer(nn.Module):
    """Half of the channels go through bottlenecks and are added to the other half."""

    def __init__(self, reads: int, writes: int, bottlenecks: int) -> None:
        super().__init__()
        self.conv1 = ConvNorm(reads, 2 * writes, 1, act=True)
        self.bottlenecks = nn.Sequential(*(VGGBlock(writes) for _ in range(bottlenecks)))

    def forward(self, x: Tensor) -> Tensor:
        """Takes [batch, reads, height, width]."""
        left, right = self.conv1(x).chunk(2, 1)
        found: Tensor = left + self.bottlenecks(right)
        return found


class FusionBlock(nn.Module):
    """RepNCSPELAN: two chained CSP layers, all of whose maps are concatenated; 3x3 convolutions in D-FINE's form."""

    def __init__(self, width: int, expansion: float, depth: float, *, dfine: bool) -> None:
        super().__init__()
        inner, bottlenecks = round(expansion * width // 2), round(3 * depth)

        def chain(reads: int) -> nn.Sequential:
            last = [ConvNorm(inner, inner, 3, act=True)] if dfine else []
            return nn.Sequential(CSPLayer(reads, inner, bottlenecks), *last)

        self.cv1 = ConvNorm(width, 2 * width, 1, act=True)
        self.cv2, self.cv3 = chain(width), chain(inner)
        self.cv4 = ConvNorm(2 * width + 2 * inner, width, 1, act=True)

    def forward(self, x: Tensor) -> Tensor:
        """Takes and returns [batch, width, height, w]."""
        maps = list(self.cv1(x).chunk(2, 1))
        maps.append(self.cv2(maps[-1]))
        maps.append(self.cv3(maps[-1]))
        found: Tensor = self.cv4(torch.cat(maps, 1))
        return found


def projection(reads: int, writes: int) -> nn.Module:
    """Returns a 1x1 convolution with normalisation, or nothing where widths agree."""
    if reads == writes:
        return nn.Identity()
    return lateral(reads, writes)


def lateral(reads: int, writes: int) -> nn.Sequential:
    """Returns a 1x1 convolution with normalisation."""
    return nn.Sequential(OrderedDict(conv=nn.Conv2d(reads, writes, 1, bias=False), norm=nn.BatchNorm2d(writes)))


class EncoderLayer(nn.Module):
    """A transformer layer with normalisation behind, position embeddings added to queries and keys."""

    def __init__(self, width: int, heads: int, inner: int) -> None:
        super().__init__()
        self.self_attn = nn.MultiheadAttention(width, heads, batch_first=True)
        self.linear1, self.linear2 = nn.Linear(width, inner), nn.Linear(inner, width)
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)

    def forward(self, x: Tensor, positions: Tensor) -> Tensor:
        """Takes and returns [batch, tokens, width]."""
        read = x + positions
        x = self.norm1(x + self.self_attn(read, read, x, need_weights=False)[0])
        found: Tensor = self.norm2(x + self.linear2(F.gelu(self.linear1(x))))
        return found


class _Encoder(nn.Module):
    def __init__(self, width: int, inner: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList([EncoderLayer(width, 8, inner)])


class HybridEncoder(nn.Module):
    """A transformer layer on the coarsest map, then top-down and bottom-up fusion by sums."""

    def __init__(
        self, reads: Sequence[int], width: int, inner: int, expansion: float, depth: float, *, dfine: bool
    ) -> None:
        super().__init__()
        self.width, levels = width, len(reads)
        self.input_proj = nn.ModuleList(projection(each, width) for each in reads)
        self.encoder = nn.ModuleList([_Encoder(width, inner)])
        self.lateral_convs = nn.ModuleList(ConvNorm(width, width, 1) for _ in range(levels - 1))
        self.fpn_blocks = nn.ModuleList(FusionBlock(width, expansion, depth, dfine=dfine) for _ in range(levels - 1))
        self.downsample_convs = nn.ModuleList(nn.Sequential(_Down(width)) for _ in range(levels - 1))
        self.pan_blocks = nn.ModuleList(FusionBlock(width, expansion, depth, dfine=dfine) for _ in range(levels - 1))

    def forward(self, maps: Sequence[Tensor]) -> list[Tensor]:
        """Takes maps from fine to coarse, returns as many of `width` channels."""
        found = [proj(each) for proj, each in zip(self.input_proj, maps, strict=True)]
        height, width = found[-1].shape[2:]
        tokens = found[-1].flatten(2).transpose(1, 2)
        for layer in self.encoder[0].layers:  # type: ignore[union-attr]
            tokens = layer(tokens, sincos_positions(height, width, self.width).to(tokens))
        found[-1] = tokens.transpose(1, 2).unflatten(2, (height, width))
        for place, (across, block) in enumerate(zip(self.lateral_convs, self.fpn_blocks, strict=True)):
            level = len(found) - 1 - place
            found[level] = across(found[level])
            found[level - 1] = block(F.interpolate(found[level], scale_factor=2.0) + found[level - 1])
        for level, (down, block) in enumerate(zip(self.downsample_convs, self.pan_blocks, strict=True)):
            found[level + 1] = block(down(found[level]) + found[level + 1])
        return found


class _Down(nn.Module):
    """A 1x1 convolution, then a depthwise one of stride 2."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.cv1 = ConvNorm(width, width, 1)
        self.cv2 = ConvNorm(width, width, 3, 2, width)

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.cv2(self.cv1(x))
        return found


class LiteEncoder(nn.Module):
    """A coarser map by pooling, with its own mean added, and one fusion each way."""

    def __init__(self, reads: int, width: int, expansion: float, depth: float) -> None:
        super().__init__()
        self.input_proj = nn.ModuleList([lateral(reads, width)])
        self.down_sample1, self.down_sample2 = _pooled(width), _pooled(width)
        self.bi_fusion = _MeanFusion(width)
        self.fpn_block = FusionBlock(width, expansion, depth, dfine=True)
        self.pan_block = FusionBlock(width, expansion, depth, dfine=True)

    def forward(self, maps: Sequence[Tensor]) -> list[Tensor]:
        """Takes a map of stride 16, returns those of 16 and 32."""
        fine = self.input_proj[0](maps[0])
        coarse = self.bi_fusion(self.down_sample1(fine))
        fine = self.fpn_block(fine + F.interpolate(coarse, scale_factor=2.0))
        return [fine, self.pan_block(coarse + self.down_sample2(fine))]


def _pooled(width: int) -> nn.Sequential:
    return nn.Sequential(
        nn.AvgPool2d(3, 2, 1), nn.Conv2d(width, width, 1, bias=False), nn.BatchNorm2d(width), nn.SiLU(inplace=True)
    )


class _MeanFusion(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.cv = ConvNorm(width, width, 1, act=True)

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.cv(x + x.mean((2, 3), keepdim=True))
        return found


def sincos_positions(height: int, width: int, features: int) -> Tensor:
    """Returns position embeddings, float32 [1, height * width, features].

    The authors lay them out column by column, and read them row by row.
    """
    omega = TEMPERATURE ** -(torch.arange(features // 4, dtype=torch.float32) / (features // 4))
    column, row = torch.meshgrid(torch.arange(width).float(), torch.arange(height).float(), indexing="ij")
    angles = [grid.flatten()[:, None] * omega for grid in (column, row)]
    return torch.cat([angles[0].sin(), angles[0].cos(), angles[1].sin(), angles[1].cos()], 1)[None]
