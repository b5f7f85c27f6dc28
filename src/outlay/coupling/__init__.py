"""Couplings of two distributions: as informative as they can be, also through a code of bounded entropy.

from outlay import coupling

found = coupling.bottleneck(p_x, p_y, rate=2.5)  # Ebrahimi, Chen and Khisti 2024; all entropies are in bits
found.information, found.encoder.entropy, found.joint()
"""

from __future__ import annotations

from outlay.coupling.bottleneck import Bottleneck, Encoder, Quantizer, bottleneck, ebim, uniform_quantizer
from outlay.coupling.entropy import distribution, entropy, information, meet
from outlay.coupling.minimum import Coupling, min_entropy

__all__ = [
    "Bottleneck",
    "Coupling",
    "Encoder",
    "Quantizer",
    "bottleneck",
    "distribution",
    "ebim",
    "entropy",
    "information",
    "meet",
    "min_entropy",
    "uniform_quantizer",
]
