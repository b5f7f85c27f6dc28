"""Round to nearest: each weight to the nearest of 2^bits values between the least and the largest of its group.

The baseline of all others: it looks at no data. Written in GPTQ's public form.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from outlay.about import About
from outlay.errors import UsageError
from outlay.models.forms.gptq import BITS, gptq_tensors
from outlay.shrink.grid import check_group, rounded
from outlay.shrink.shrinker import TASK, Moment, Shrinker, Shrunk


@dataclass(frozen=True)
class RTN(Shrinker):
    """Rounds each weight to the nearest value of its group's grid."""

    bits: int = 4
    """Bits of a weight: 2, 3, 4 or 8."""
    group: int = 64
    """Inputs that share a scale and a zero point."""
    symmetric: bool = False
    """Whether the grid is symmetric around 0."""

    about: ClassVar[About] = About(
        name="rtn",
        summary="weights rounded to the nearest of 2^bits values of their group",
        paper="",
        family="quantization",
        spends="nothing",
        saves="bytes of weights",
        exact=False,
        task=TASK,
        command="outlay shrink smollm2-135m --method rtn --bits 4 --out DIR",
    )

    def __post_init__(self) -> None:
        if self.bits not in BITS:
            raise UsageError(f"bits of rtn must be 2, 3, 4 or 8, not {self.bits}")
        if self.group < 1:
            raise UsageError(f"group of rtn must be 1 or more, not {self.group}")

    @classmethod
    def at_bits(cls, bits: float) -> dict[str, Any]:
        """Returns the options for some bits a weight, scales not counted."""
        if bits not in BITS:
            raise UsageError(f"rtn holds 2, 3, 4 or 8 bits a weight, not {bits:g}")
        return {"bits": int(bits)}

    def shrink(self, weight: Tensor, moment: Moment, name: str) -> Shrunk:
        """Shrinks one matrix."""
        check_group(weight.shape[1], self.group, name)
        grid, codes, values = rounded(weight, self.bits, self.group, self.symmetric)
        of = torch.arange(weight.shape[1]) // self.group
        tensors = gptq_tensors(codes.long(), grid.scales, grid.zeros.long(), of, self.bits)
        return Shrunk(tensors, values)

    def quantization_config(self) -> dict[str, Any]:
        """Returns what config.json says about the form."""
        return {
            "quant_method": "gptq", "bits": self.bits, "group_size": self.group, "sym": self.symmetric,
            "desc_act": False, "lm_head": False, "checkpoint_format": "gptq",
        }  # fmt: skip
