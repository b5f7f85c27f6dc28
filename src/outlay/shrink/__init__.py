"""Weights made smaller: one calibration and one error feedback, into which every method plugs, and sparse training."""

from __future__ import annotations

from outlay.shrink.block import Tuning
from outlay.shrink.nm import NMSparse, Sparsified, sparsify
from outlay.shrink.run import Report, check, run
from outlay.shrink.shrinker import Moment, Shrinker, Shrunk

__all__ = ["Moment", "NMSparse", "Report", "Shrinker", "Shrunk", "Sparsified", "Tuning", "check", "run", "sparsify"]
