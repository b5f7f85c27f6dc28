"""N:M sparsity: patterns, sparse training, the packed form (Bambhaniya et al. 2024, arXiv 2402.04744).

Networks are trained whose weights keep N of every M. Pruned weights put noise into the gradients, so progressive
recipes let them take part at first and shut them off by and by: by a decaying mask (MDGF) or by a pattern that tightens
in stages (SDGF). Training is approximate; masks, packing and export are exact.
"""

from __future__ import annotations

from outlay.shrink.nm.packed import PackedNM, load_packed, save_packed
from outlay.shrink.nm.pattern import Pattern, nm_mask, violations
from outlay.shrink.nm.schedule import NMSparse, Schedule
from outlay.shrink.nm.sparsify import Sparsified, masked_weight, sparsify

__all__ = [
    "NMSparse",
    "PackedNM",
    "Pattern",
    "Schedule",
    "Sparsified",
    "load_packed",
    "masked_weight",
    "nm_mask",
    "save_packed",
    "sparsify",
    "violations",
]
