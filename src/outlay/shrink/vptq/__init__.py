"""VPTQ: vectors of weights as entries of learned codebooks, and the tuning of those codebooks layer by layer."""

from __future__ import annotations

from outlay.shrink.vptq.method import VPTQ, Table, Vectors, kmeans, nearest, on_grid

__all__ = ["VPTQ", "Table", "Vectors", "kmeans", "nearest", "on_grid"]
