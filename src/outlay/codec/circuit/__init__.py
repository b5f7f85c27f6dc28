"""Probabilistic circuits: exact models of small pictures, tables and latents, whose every marginal is one pass."""

from __future__ import annotations

from outlay.codec.circuit.general import Circuit, Input, Product, Sum
from outlay.codec.circuit.latent_tree import LatentTree

__all__ = ["Circuit", "Input", "LatentTree", "Product", "Sum"]
