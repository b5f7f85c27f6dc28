"""Probabilistic circuits for lossless compression (Liu, Mandt & Van den Broeck 2022), as the catalogue lists them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from outlay.about import About, Entry
from outlay.errors import UsageError


@dataclass(frozen=True)
class PC(Entry):
    """A hidden Chow-Liu tree, fitted to the user's data, and an entropy coder with its exact conditionals."""

    latents: int = 16
    """States of each latent."""

    schedule: Literal["tour", "lca", "naive"] = "tour"
    """How the conditionals are computed: an Euler tour, the paper's order, or each anew."""

    stream: Literal["batch", "sample"] = "batch"
    """Whether the samples of a block share a stream of the coder, or each has its own."""

    about: ClassVar[About] = About(
        name="pc",
        summary="small pictures and tables of integers, compressed with an exact circuit",
        paper="Liu et al. 2022, https://openreview.net/forum?id=X_hByk2-5je",
        family="compression",
        spends="2 (D - 1) products of M x M for D variables",
        saves="bytes, beside xz and PNG",
        task="compression",
        command="outlay train circuit",
        counts={"bytes_in": "", "bytes_out": "", "ideal_bits": "bits", "sum_evals": "products"},
    )

    def __post_init__(self) -> None:
        if self.latents < 1:
            raise UsageError(f"pc needs latents of 1 or more, not {self.latents}")
