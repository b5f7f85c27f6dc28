"""Frequency dynamic convolution (Chen et al. 2025): a kernel that adapts to each picture, for the parameters of one.

The kernel is stored as Fourier coefficients of its flattened matrix, cut by frequency into disjoint groups; each group
alone is a full kernel, and a gain per picture and group makes many kernels of one (FDW). Two modulators follow: gains
on channels, filters, positions and single weights of the kernel (KSM), and gains on frequency bands of the map, place
by place (FBM). With all gains at 1, where a layer starts, it computes the convolution that it was made of.

Layers learn their gains: what a trained layer computes is its own function, not an approximation of the convolution.
"""

from outlay.vision.fdconv.layer import FDConv2d, FDLinear
from outlay.vision.fdconv.networks import Converted, convert_fdconv, freeze_fdconv, paper_layers
from outlay.vision.fdconv.options import FDConv

__all__ = ["Converted", "FDConv", "FDConv2d", "FDLinear", "convert_fdconv", "freeze_fdconv", "paper_layers"]
