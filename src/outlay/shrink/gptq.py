"""GPTQ: columns rounded one after the other, each error made up for by the columns that follow.

Frantar, Ashkboos, Hoefler, Alistarh (2022), "GPTQ: Accurate Post-Training Quantization for Generative Pre-trained
Transformers", arXiv:2210.17323. The walk over columns is `feedback.walk`; this file has the grid that a column is
rounded to. Written in GPTQ's public form.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from outlay.about import About
from outlay.errors import UsageError
from outlay.models.forms.gptq import BITS, gptq_tensors
from outlay.shrink.feedback import damped, inverse_factor, walk
from outlay.shrink.grid import Grid, check_group, rounded
from outlay.shrink.shrinker import TASK, Moment, Shrinker, Shrunk


@dataclass(frozen=True)
class GPTQ(Shrinker):
    """Rounds column by column with error feedback."""

    bits: int = 4
    """Bits of a weight: 2, 3, 4 or 8."""
    group: int = 64
    """Inputs that share a scale and a zero point."""
    symmetric: bool = False
    """Whether the grid is symmetric around 0."""
    act_order: bool = False
    """Whether columns go in the order of their inputs' mean squares, the largest first, on the grids of the weights as
    they were; else from left to right, on grids of the weights as they are when a group begins."""
    damping: float = 0.01
    """Share of the mean of the second moments' diagonal that is added to it."""

    about: ClassVar[About] = About(
        name="gptq",
        summary="weights rounded column by column, each error made up for by the columns that follow",
        paper="Frantar et al. 2022, arXiv:2210.17323",
        family="quantization",
        spends="a calibration pass",
        saves="bytes of weights",
        exact=False,
        task=TASK,
        command="outlay shrink smollm2-135m --method gptq --bits 4 --out DIR",
    )

    def __post_init__(self) -> None:
        if self.bits not in BITS:
            raise UsageError(f"bits of gptq must be 2, 3, 4 or 8, not {self.bits}")
        if self.group < 1:
            raise UsageError(f"group of gptq must be 1 or more, not {self.group}")
        if self.damping <= 0:
            raise UsageError(f"damping of gptq must be above 0, not {self.damping:g}")

    @classmethod
    def at_bits(cls, bits: float) -> dict[str, Any]:
        """Returns the options for some bits a weight, scales not counted."""
        if bits not in BITS:
            raise UsageError(f"gptq holds 2, 3, 4 or 8 bits a weight, not {bits:g}")
        return {"bits": int(bits)}

    def shrink(self, weight: Tensor, moment: Moment, name: str) -> Shrunk:
        """Shrinks one matrix."""
        check_group(weight.shape[1], self.group, name)
        order = moment.h.diagonal().argsort(descending=True, stable=True) if self.act_order else None
        factor = moment.once(("gptq", self.damping, self.act_order), lambda: self._factor(moment, order))
        weight = weight * (moment.h.diagonal() > 0)  # an input that is always 0 needs no weight
        fed = GridColumns(weight, self)
        walked = walk(weight, factor, fed, order)
        tensors = gptq_tensors(fed.codes.long(), fed.grid.scales, fed.grid.zeros.long(), fed.of, self.bits)
        return Shrunk(tensors, walked.weight, rounded(weight, self.bits, self.group, self.symmetric)[2])

    def _factor(self, moment: Moment, order: Tensor | None) -> Tensor:
        h = damped(moment.h, self.damping)
        return inverse_factor(h if order is None else h[order][:, order], moment.name)

    def quantization_config(self) -> dict[str, Any]:
        """Returns what config.json says about the form. The groups never leave the order of the inputs."""
        return {
            "quant_method": "gptq", "bits": self.bits, "group_size": self.group, "sym": self.symmetric,
            "desc_act": False, "static_groups": self.act_order, "damp_percent": self.damping, "lm_head": False,
            "checkpoint_format": "gptq",
        }  # fmt: skip


class GridColumns:
    """Rounds one column at a time to its group's grid."""

    columns = 1

    def __init__(self, weight: Tensor, options: GPTQ) -> None:
        """Takes the matrix, float32 [out, in]. With `act_order` all grids are made of it now."""
        self.group, self._bits = options.group, options.bits
        self._symmetric, self._static = options.symmetric, options.act_order
        self.of = torch.arange(weight.shape[1]) // options.group
        self.grid = Grid.of(weight.unflatten(1, (-1, options.group)), options.bits, options.symmetric)
        self.codes = torch.empty(weight.shape, dtype=torch.uint8)

    def quantize(self, ahead: Tensor, places: Tensor, factor: Tensor) -> Tensor:
        """Rounds the next column."""
        place = int(places[0])
        group = place // self.group
        if not self._static and place % self.group == 0:
            new = Grid.of(ahead[:, None, : self.group], self._bits, self._symmetric)
            self.grid.scales[:, group], self.grid.zeros[:, group] = new.scales[:, 0], new.zeros[:, 0]
        grid = Grid(self.grid.scales[:, group, None], self.grid.zeros[:, group, None])
        codes = grid.codes(ahead[:, :1], self._bits)
        self.codes[:, place] = codes[:, 0].to(torch.uint8)
        return grid.values(codes)
