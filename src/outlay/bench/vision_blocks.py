"""The three blocks of VoVNet's acceptance experiment: 64 channels of 40x40 are read, 352 written.

`outlay vision profile outlay.bench.vision_blocks:osa --compare ... --input 64x40x40` sets them side by side.
"""

from __future__ import annotations

from outlay.vision.dense import DenseBlock
from outlay.vision.osa import OSABlock

C_IN = 64
C_OUT = 352


def dense() -> DenseBlock:
    """Returns a dense block of 12 layers, 508 thousand weights."""
    return DenseBlock(C_IN, 24, 12).eval()


def bottleneck() -> DenseBlock:
    """Returns its form with bottlenecks, 475 thousand weights."""
    return DenseBlock(C_IN, 24, 12, bottleneck=True).eval()


def osa() -> OSABlock:
    """Returns one-shot aggregation of 5 layers, 440 thousand weights."""
    return OSABlock(C_IN, 80, C_OUT, 5).eval()
