"""Dense connections (Huang et al. 2017), the baseline of one-shot aggregation: each layer reads all earlier maps."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from outlay.errors import UsageError, nearest
from outlay.vision.osa import ConvNorm


class DenseBlock(nn.Module):
    """A block whose layers each read the concatenation of the input and all layers before.

    Args:
        c_in: channels of the input; the output has `c_in + layers * growth`.
        growth: channels that a layer adds.
        layers: how many.
        bottleneck: whether a 1x1 convolution to 4 x growth channels stands before each 3x3 one.
    """

    def __init__(self, c_in: int, growth: int, layers: int, *, bottleneck: bool = False) -> None:
        super().__init__()
        self.layers = nn.ModuleList()
        for read in range(c_in, c_in + layers * growth, growth):
            if bottleneck:
                layer: nn.Module = nn.Sequential(ConvNorm(read, 4 * growth, 1), ConvNorm(4 * growth, growth, 3))
            else:
                layer = ConvNorm(read, growth, 3)
            self.layers.append(layer)

    def forward(self, x: Tensor) -> Tensor:
        """Takes `[batch, c_in, height, width]`."""
        for layer in self.layers:
            x = torch.cat([x, layer(x)], dim=1)
        return x


SIZES: Mapping[str, tuple[int, int, tuple[int, ...]]] = {
    "densenet-121": (64, 32, (6, 12, 24, 16)),
    "densenet-161": (96, 48, (6, 12, 36, 24)),
    "densenet-201": (64, 32, (6, 12, 48, 32)),
}
"""By name: channels of the stem, growth, layers of each block."""


class DenseLayer(nn.Sequential):
    """DenseNet's own layer, normalised before each convolution."""

    def __init__(self, c_in: int, growth: int) -> None:
        super().__init__(
            nn.BatchNorm2d(c_in), nn.ReLU(inplace=True), nn.Conv2d(c_in, 4 * growth, 1, bias=False),
            nn.BatchNorm2d(4 * growth), nn.ReLU(inplace=True), nn.Conv2d(4 * growth, growth, 3, padding=1, bias=False),
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        """Returns the input with the layer's maps behind it."""
        return torch.cat([x, super().forward(x)], dim=1)


class DenseNet(nn.Module):
    """DenseNet with bottlenecks and compression by half.

    Args:
        name: one of `SIZES`.
        classes: outputs of the classifier.
        in_chans: channels of the image.

    Raises:
        UsageError: for an unknown name.
    """

    def __init__(self, name: str, classes: int = 1000, in_chans: int = 3) -> None:
        super().__init__()
        if name not in SIZES:
            raise UsageError(f"there is no DenseNet {name!r}{nearest(name, SIZES)}; there are {', '.join(SIZES)}")
        width, growth, blocks = SIZES[name]
        parts: list[nn.Module] = [
            nn.Conv2d(in_chans, width, 7, stride=2, padding=3, bias=False), nn.BatchNorm2d(width),
            nn.ReLU(inplace=True), nn.MaxPool2d(3, 2, padding=1),
        ]  # fmt: skip
        for number, layers in enumerate(blocks):
            if number:
                parts += [nn.BatchNorm2d(width), nn.ReLU(inplace=True), nn.Conv2d(width, width // 2, 1, bias=False),
                          nn.AvgPool2d(2)]  # fmt: skip
                width //= 2
            parts += [DenseLayer(width + place * growth, growth) for place in range(layers)]
            width += layers * growth
        self.features = nn.Sequential(*parts, nn.BatchNorm2d(width), nn.ReLU(inplace=True))
        self.classifier = nn.Linear(width, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Returns logits `[batch, classes]`."""
        out: Tensor = self.classifier(self.features(x).mean((2, 3)))
        return out
