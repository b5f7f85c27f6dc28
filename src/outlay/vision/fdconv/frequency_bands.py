"""FBM: gains on the frequency bands of a map, place by place."""

from __future__ import annotations

from functools import lru_cache
from itertools import pairwise
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from outlay.vision.fdconv.kernel_gains import zeroed

MATRIX_SIDE = 64  # up to it, matrix products split bands faster than Fourier transforms do
BANDS = (2, 4, 8)  # the thresholds of FBM are 0.5 over these


class BandGains(nn.Module):
    """FBM: splits a map into frequency bands, and gives all but the lowest a gain at each place."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.convs = nn.ModuleList(zeroed(nn.Conv2d(channels, 1, 3, padding=1)) for _ in BANDS)

    def forward(self, x: Tensor) -> Tensor:
        """Takes and returns `[batch, channels, height, width]`; the bands are split in float32, or float64."""
        weight, bias = (torch.cat([getattr(conv, name) for conv in self.convs]) for name in ("weight", "bias"))
        first, *later = (2 * torch.sigmoid(F.conv2d(x, weight, bias, padding=1))).split(1, dim=1)
        out, above = first * x, first
        for low, gain in zip(low_passes(x), [*later, None], strict=True):
            below = 1.0 if gain is None else gain
            out = torch.addcmul(out, low, below - above)  # sum of gain x band, each map read once
            above = above if gain is None else gain
        return out.to(x.dtype)


def low_passes(x: Tensor) -> list[Tensor]:
    """Returns what of a map lies below each threshold of the bands, the highest threshold first.

    The thresholds cut a square out of the spectrum, so a low pass is one matrix over the rows and one over the columns:
    for small sides their products are faster than Fourier transforms.

    Args:
        x: `[batch, channels, height, width]`.
    """
    height, width = x.shape[-2:]
    with torch.autocast(x.device.type, enabled=False):
        wide = x if x.dtype == torch.float64 else x.float()
        if max(height, width) <= MATRIX_SIDE:
            sides = [(_low_pass(height, band), _low_pass(width, band)) for band in BANDS]
            return [
                torch.from_numpy(rows).to(wide) @ wide @ torch.from_numpy(columns).to(wide) for rows, columns in sides
            ]
        spectrum = torch.fft.rfft2(wide, norm="ortho")
        radius = torch.maximum(
            torch.fft.fftfreq(height, device=x.device).abs()[:, None], torch.fft.rfftfreq(width, device=x.device)[None]
        )
        masks = [radius < 0.5 / band + 1e-8 for band in BANDS]
        return [torch.fft.irfft2(spectrum * mask, s=(height, width), norm="ortho") for mask in masks]


@lru_cache(maxsize=1024)
def _low_pass(side: int, band: int) -> np.ndarray[Any, Any]:
    """The symmetric matrix that keeps the frequencies of a sequence up to 0.5 / `band`."""
    frequencies = np.abs(np.fft.fftfreq(side)).astype(np.float32)
    kept = frequencies < np.float32(0.5 / band + 1e-8)  # as torch compares: in float32, 1/4 is not below 1/4 + 1e-8
    return np.fft.ifft(kept[:, None] * np.fft.fft(np.eye(side), axis=0), axis=0).real.copy()


def split_bands(x: Tensor) -> list[Tensor]:
    """Returns the bands of a map, the highest first: they add up to it, and no two share a frequency.

    Args:
        x: `[batch, channels, height, width]`.
    """
    edges = [x, *low_passes(x)]
    return [*(above - low for above, low in pairwise(edges)), edges[-1]]
