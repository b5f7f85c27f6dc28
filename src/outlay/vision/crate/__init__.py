"""White-box transformers (CRATE): blocks, classifier, autoencoder, coding rates and what a network does to them."""

from __future__ import annotations

from typing import Any

from outlay.vision.crate import autoencoder, classifier
from outlay.vision.crate.autoencoder import UNUSED, CrateMAE, Reconstruction
from outlay.vision.crate.blocks import DecoderBlock, EncoderBlock, TheoryBlock
from outlay.vision.crate.classifier import Crate, CrateClassifier
from outlay.vision.crate.diagnostics import Heads, LayerRates, diagnose, diagnose_decoder
from outlay.vision.crate.rates import compress, rate, rate_gradient, sparse_code, sparsify, subspace_rate

SIZES = {**classifier.SIZES, **autoencoder.SIZES}
"""Width, heads and depth of each network by its name."""

RELEASED = {**classifier.RELEASED, **autoencoder.RELEASED}
"""Our names of the networks, by those of the released code."""

__all__ = [
    "RELEASED",
    "SIZES",
    "UNUSED",
    "Crate",
    "CrateClassifier",
    "CrateMAE",
    "DecoderBlock",
    "EncoderBlock",
    "Heads",
    "LayerRates",
    "Reconstruction",
    "TheoryBlock",
    "build",
    "compress",
    "diagnose",
    "diagnose_decoder",
    "rate",
    "rate_gradient",
    "sparse_code",
    "sparsify",
    "subspace_rate",
]


def build(name: str, **options: Any) -> CrateClassifier | CrateMAE:
    """Returns a network with new weights.

    Args:
        name: One of `SIZES` or `RELEASED`, such as crate-tiny or crate-mae-base.
        options: Of `CrateClassifier` or `CrateMAE`, in place of the size's.

    Raises:
        UsageError: For an unknown name, and for sizes that don't fit.
    """
    if RELEASED.get(name, name) in autoencoder.SIZES:
        return autoencoder.build(name, **options)
    return classifier.build(name, **options)
