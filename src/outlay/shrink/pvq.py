"""PVQ: a group of weights as a point of a pyramid, its direction, and one of a few amplitudes.

After an orthogonal rotation of the inputs, groups of D weights look like isotropic Gaussian vectors. The direction of a
group is the nearest point of {p in Z^D : sum |p_i| = K}, which is numbered, so that no codebook is stored or searched;
the amplitude has a known distribution, for which the levels are computed. Errors are fed forward as in GPTQ, D columns
at a time.

van der Ouderaa, Croci, Hilmkil, Hensman (2024), "Pyramid Vector Quantization for LLMs", arXiv:2410.16926. The
projection and the numbering are exact; the amplitude's distribution is exact for rows of a random direction.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from outlay.about import About
from outlay.errors import UsageError
from outlay.models.forms import pyramid
from outlay.models.forms.own import own_config
from outlay.models.forms.pvq import PvqCode, pvq_tensors
from outlay.models.forms.rotation import Rotation
from outlay.shrink.feedback import damped, inverse_factor, walk
from outlay.shrink.shrinker import TASK, Moment, Shrinker, Shrunk


@dataclass(frozen=True)
class PVQ(Shrinker):
    """Codes groups of weights by direction and amplitude."""

    pulses: int = 27
    """K, the sum of the sizes of a point's coordinates: the bits of a direction grow with its logarithm."""
    group: int = 16
    """D, the inputs of a group."""
    amp_bits: int = 4
    """Bits of a group's amplitude."""
    amp_mode: Literal["lloyd", "cdf"] = "lloyd"
    """How amplitudes are placed: at least squared error, or at quantiles of their distribution."""
    rotate: bool = True
    """Whether the inputs are rotated first, by random signs, a Hadamard transform and a DCT of the odd factor."""
    feedback: bool = True
    """Whether each group's error is made up for by the groups that follow."""
    refine: bool = False
    """Whether pulses are moved one by one from the nearest point towards the best direction."""
    damping: float = 0.01
    """Share of the mean of the second moments' diagonal that is added to it."""
    seed: int = 0
    """Which signs the rotation has."""

    about: ClassVar[About] = About(
        name="pvq",
        summary="groups of weights as points of a pyramid and amplitudes, at any rate",
        paper="van der Ouderaa et al. 2024, arXiv:2410.16926",
        family="quantization",
        spends="a calibration pass",
        saves="bytes of the file",
        exact=False,
        task=TASK,
        command="outlay shrink smollm2-135m --method pvq --bits 3.25 --out DIR",
    )

    def __post_init__(self) -> None:
        for name in ("pulses", "group", "amp_bits"):
            if getattr(self, name) < 1:
                raise UsageError(f"{name} of pvq must be 1 or more, not {getattr(self, name)}")
        if self.amp_bits > 8:
            raise UsageError(f"amp_bits of pvq must be at most 8, not {self.amp_bits}")
        if pyramid.index_bits(self.group, self.pulses) > 64:
            most = pyramid.pulses_for(self.group, 64)
            raise UsageError(f"points of {self.group} inputs have 64 bits at most: pulses={most}, not {self.pulses}")
        if self.damping <= 0:
            raise UsageError(f"damping of pvq must be above 0, not {self.damping:g}")

    @classmethod
    def at_bits(cls, bits: float) -> dict[str, Any]:
        """Returns the options for some bits a weight, row norms not counted."""
        pulses = pyramid.pulses_for(cls.group, min(int(bits * cls.group + 1e-9) - cls.amp_bits, 64))
        if pulses < 1:
            least = (pyramid.index_bits(cls.group, 1) + cls.amp_bits) / cls.group
            raise UsageError(f"pvq needs {least:g} bits a weight at least, not {bits:g}")
        if bits > (64 + cls.amp_bits) / cls.group:
            raise UsageError(f"pvq holds {(64 + cls.amp_bits) / cls.group:g} bits a weight at most, not {bits:g}")
        return {"pulses": pulses}

    @property
    def code(self) -> PvqCode:
        """How matrices are coded."""
        return PvqCode(self.group, self.pulses, self.amp_bits, self.amp_mode, self.seed if self.rotate else None)

    def shrink(self, weight: Tensor, moment: Moment, name: str) -> Shrunk:
        """Shrinks one matrix."""
        inputs = weight.shape[1]
        self.check_inputs(inputs, name)
        rotation = Rotation(inputs, self.seed) if self.rotate else None
        rotated = weight if rotation is None else rotation(weight)
        norms = rotated.norm(dim=1).half()
        plain = Pyramids(norms, inputs, self)
        unfed = plain.quantize_all(rotated)
        found, coded = plain, unfed
        if self.feedback:
            found = Pyramids(norms, inputs, self)
            coded = walk(rotated, self._factor(moment, rotation), found).weight
        tensors = pvq_tensors(found.points, found.amplitudes, norms, self.code)
        back = (lambda each: each) if rotation is None else rotation.inverse
        return Shrunk(tensors, back(coded), back(unfed), {"clamped": found.clamped})

    def check_inputs(self, inputs: int, name: str) -> None:
        """Raises `UsageError` where groups don't divide a layer's inputs, or one group is all of them."""
        if inputs % self.group or inputs == self.group:
            fitting = next(size for size in range(min(self.group, inputs - 1), 0, -1) if inputs % size == 0)
            raise UsageError(f"group={self.group} doesn't divide the {inputs} inputs of {name}; group={fitting} does")

    def coded(self, x: Tensor) -> Tensor:
        """Returns rows as their code gives them back, each by itself and without feedback: what becomes of activations.

        Args:
            x: Float32 [n, in]: tokens. Each is rotated, and has a norm in float16.
        """
        rotation = Rotation(x.shape[1], self.seed) if self.rotate else None
        rotated = x if rotation is None else rotation(x)
        norms = rotated.norm(dim=1).half()
        found = Pyramids(norms, x.shape[1], self).quantize_all(rotated)
        return found if rotation is None else rotation.inverse(found)

    def _factor(self, moment: Moment, rotation: Rotation | None) -> Tensor:
        def make() -> Tensor:
            h = moment.h if rotation is None else rotation.of_moment(moment.h)
            return inverse_factor(damped(h, self.damping), moment.name)

        return moment.once(("pvq", self.damping, rotation), make)

    def quantization_config(self) -> dict[str, Any]:
        """Returns what config.json says about the form."""
        return own_config("pvq", **self._coded())

    def module_config(self, shape: tuple[int, int]) -> dict[str, Any]:
        """Returns the code, which a plan may choose for each matrix."""
        return self._coded()

    def _coded(self) -> dict[str, Any]:
        code = self.code
        return {"group": code.group, "pulses": code.pulses, "amp_bits": code.amp_bits, "amp_mode": code.amp_mode,
                "seed": code.seed}  # fmt: skip


class Pyramids:
    """Codes the groups of a matrix, one column of groups at a time."""

    group = 1

    def __init__(self, norms: Tensor, inputs: int, options: PVQ) -> None:
        """Begins with none.

        Args:
            norms: The lengths of the rows, float16 [out]. They stay what they were, whatever the feedback adds.
            inputs: Inputs of the matrix.
            options: How they are coded.
        """
        self.columns, self._options = options.group, options
        self._norms, self._levels = norms.float(), options.code.levels(inputs)
        groups = inputs // options.group
        self.points = torch.zeros(len(norms), groups, options.group, dtype=torch.int64)
        self.amplitudes = torch.zeros(len(norms), groups, dtype=torch.int64)
        self.clamped = 0

    def quantize(self, ahead: Tensor, places: Tensor, factor: Tensor) -> Tensor:
        """Codes the next group of all rows."""
        at = int(places[0]) // self.columns
        points, amplitudes, coded = self._code(ahead[:, : self.columns], self._norms)
        self.points[:, at], self.amplitudes[:, at] = points, amplitudes
        return coded

    def quantize_all(self, weight: Tensor) -> Tensor:
        """Codes a whole matrix at once, each group by itself."""
        groups = weight.shape[1] // self.columns
        norms = self._norms.repeat_interleave(groups)
        points, amplitudes, coded = self._code(weight.reshape(-1, self.columns), norms)
        self.points, self.amplitudes = points.view_as(self.points), amplitudes.view_as(self.amplitudes)
        return coded.view(weight.shape)

    def _code(self, w: Tensor, norms: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Codes groups w [count, D] of rows of lengths [count]: points, levels, and what these stand for."""
        points = pyramid.project(w, self._options.pulses)
        if self._options.refine:
            points = pyramid.refine(w, points)
        direction = points.float()
        direction = direction / direction.norm(dim=1, keepdim=True)
        share = (w * direction).sum(1).clamp(min=0) / torch.where(norms > 0, norms, 1.0)
        edges = (self._levels[1:] + self._levels[:-1]) / 2
        amplitudes = torch.bucketize(share, edges)
        last = self._levels[-1] + (self._levels[-1] - edges[-1]) if len(edges) else self._levels[-1]
        self.clamped += int((share > last).sum())
        return points, amplitudes, (self._levels[amplitudes] * norms)[:, None] * direction
