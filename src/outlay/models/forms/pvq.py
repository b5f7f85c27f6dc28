"""The form of `pvq`: for each group of inputs the number of a point of a pyramid and a level of its amplitude.

A module has `pvq_index` uint8, the points' numbers as one stream of bits, the lowest first, row by row; `pvq_amp`
uint8, the levels likewise; `pvq_norms` float16 [out], the lengths of the rotated rows. A group's weights are
norm * level * p / |p|_2 in the rotated inputs. Levels are those of a random direction's amplitudes and aren't stored.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cache, cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from outlay.errors import UsageError
from outlay.kernels.bits import pack_bits, unpack_bits
from outlay.models.forms import pyramid
from outlay.models.forms.form import Form, Tensors
from outlay.models.forms.rotation import Rotation
from outlay.models.quantized import GROUP, QuantizedWeight, quantize
from outlay.models.stored import StoredMatrix

_POINTS = 1 << 16  # of the density of an amplitude


@dataclass(frozen=True)
class PvqCode:
    """How a matrix is coded."""

    group: int
    """Inputs of a group, D."""
    pulses: int
    """Pulses of a point, K."""
    amp_bits: int
    """Bits of an amplitude's level."""
    amp_mode: str
    """"lloyd" or "cdf": how the levels are placed."""
    seed: int | None
    """Which rotation the inputs have; None: none."""

    @property
    def index_bits(self) -> int:
        """Bits of a point's number."""
        return pyramid.index_bits(self.group, self.pulses)

    def levels(self, inputs: int) -> Tensor:
        """Returns the levels of amplitudes for a number of inputs, float32 [2^amp_bits], rising."""
        return torch.from_numpy(levels(self.group, inputs, self.amp_bits, self.amp_mode)).float()

    def file_bits(self, outputs: int, inputs: int) -> int:
        """Returns the bits of a matrix: ceil(log2 N(D, K)) + amp_bits for each group, and 16 for each row."""
        return outputs * (inputs // self.group * (self.index_bits + self.amp_bits) + 16)


@cache
def levels(group: int, inputs: int, bits: int, mode: str) -> np.ndarray[Any, np.dtype[np.float64]]:
    """Returns the levels of u = |w| / r of a group w of a random direction of length r: u^2 ~ Beta(D/2, (N-D)/2).

    Args:
        group: D.
        inputs: N, above D.
        bits: Their number is 2^bits.
        mode: "lloyd": those of least squared error, by Lloyd's and Max's fixed point; "cdf": the density's quantiles
            (j + 1/2) / L.

    Returns:
        Rising, [2^bits].
    """
    spread = math.sqrt(1 / (2 * inputs))
    centre = math.sqrt(group / inputs)
    u = np.linspace(max(centre - 12 * spread, 1e-9), min(centre + 12 * spread, 1 - 1e-9), _POINTS)
    log = (group - 1) * np.log(u) + ((inputs - group) / 2 - 1) * np.log1p(-u * u)
    density = np.exp(log - log.max())
    steps = np.diff(u)

    def running(values: Any) -> Any:
        return np.concatenate([[0.0], np.cumsum((values[1:] + values[:-1]) / 2 * steps)])

    mass, moment = running(density), running(density * u)
    mass, moment = mass / mass[-1], moment / mass[-1]
    quantiles = (np.arange(2**bits) + 0.5) / 2**bits
    found = np.interp(quantiles, mass, u)
    if mode == "cdf":
        return found
    for _ in range(20000):
        edges = np.concatenate([[u[0]], (found[1:] + found[:-1]) / 2, [u[-1]]])
        new = np.diff(np.interp(edges, u, moment)) / np.maximum(np.diff(np.interp(edges, u, mass)), 1e-300)
        done, found = np.abs(new - found).max() < 1e-9, new
        if done:
            break
    return found


@dataclass(frozen=True)
class PvqMatrix(StoredMatrix):
    """A matrix [n, k] in PVQ's form, its numbers unpacked."""

    index: Tensor
    """int64 [n, groups]: the points' numbers, without sign."""
    amplitudes: Tensor
    """uint8 [n, groups]: their levels."""
    norms: Tensor
    """float16 [n]."""
    code: PvqCode
    """How it is coded."""

    @property
    def shape(self) -> tuple[int, int]:
        """[n, k]"""
        return self.index.shape[0], self.index.shape[1] * self.code.group

    @property
    def nbytes(self) -> int:
        """Bytes of the matrix in its file."""
        return -(-self.code.file_bits(*self.shape) // 8)

    @property
    def format(self) -> str:
        """int8, to which the decoded weights are rounded; bfloat16 where the inputs have no groups of 32."""
        return "int8" if self.shape[1] % GROUP == 0 else "bfloat16"

    @cached_property
    def points(self) -> Tensor:
        """int64 [n, groups, D]: the points."""
        code = self.code
        return pyramid.decode(self.index.flatten(), code.group, code.pulses).view(*self.index.shape, code.group)

    @property
    def amplitude(self) -> Tensor:
        """float32 [n, groups]: the lengths of the groups."""
        return self.code.levels(self.shape[1])[self.amplitudes.long()] * self.norms.float()[:, None]

    def rotated(self) -> Tensor:
        """Returns the weights of the rotated inputs, float32 [n, k]."""
        points = self.points.float()
        return (points * (self.amplitude / points.norm(dim=-1))[..., None]).flatten(1)

    def rows(self, index: Tensor | None) -> Tensor:
        """Returns the rows `index` (None: all) in float32."""
        part = self if index is None else self.take(index)
        weight, seed = part.rotated(), self.code.seed
        return weight if seed is None else Rotation(self.shape[1], seed).inverse(weight)

    def take(self, index: Tensor) -> PvqMatrix:
        """Returns the rows `index` in the same form."""
        return replace(self, index=self.index[index], amplitudes=self.amplitudes[index], norms=self.norms[index])

    def plain(self) -> QuantizedWeight:
        """Returns the decoded matrix, rotated back, rounded to q8."""
        return quantize(self.dequantize(), "q8")


class PvqForm(Form):
    """Reads PVQ's form."""

    mark = "pvq_index"

    def __init__(self, config: Mapping[str, Any]) -> None:
        self._code = _code_of(config)
        self._own = {name: _code_of({**config, **each}) for name, each in config.get("config_for_layers", {}).items()}

    def shape(self, module: str, tensors: Tensors) -> tuple[int, int]:
        """Returns [out, in]."""
        code, norms = self._own.get(module, self._code), tensors.shape(f"{module}.pvq_norms")
        amplitudes = tensors.shape(f"{module}.pvq_amp")
        if norms is None or amplitudes is None:
            raise UsageError(f"the model's files lack {module}.pvq_norms or {module}.pvq_amp")
        return norms[0], amplitudes[0] * 8 // code.amp_bits // norms[0] * code.group

    def matrix(self, module: str, tensors: Tensors) -> PvqMatrix:
        """Returns a module's matrix."""
        code = self._own.get(module, self._code)
        n, k = self.shape(module, tensors)
        norms = self.tensor(module, "pvq_norms", tensors)
        if not bool(norms.isfinite().all()):
            raise UsageError(f"{module}.pvq_norms holds numbers that are not finite")
        index = _from_stream(self.tensor(module, "pvq_index", tensors), code.index_bits, n * k // code.group, module)
        amplitudes = _from_stream(self.tensor(module, "pvq_amp", tensors), code.amp_bits, n * k // code.group, module)
        unsigned = index.numpy().view(np.uint64)
        if int(unsigned.max()) >= pyramid.count(code.group, code.pulses):
            raise UsageError(f"{module}.pvq_index has the number {int(unsigned.max())}, which is none of a point's")
        return PvqMatrix(index.view(n, -1), amplitudes.to(torch.uint8).view(n, -1), norms, code)


def pvq_tensors(points: Tensor, amplitudes: Tensor, norms: Tensor, code: PvqCode) -> dict[str, Tensor]:
    """Returns the tensors of a module.

    Args:
        points: int64 [out, groups, D].
        amplitudes: int64 [out, groups], levels.
        norms: float16 [out].
        code: How they are coded.
    """
    return {
        "pvq_index": _stream(pyramid.encode(points.flatten(0, 1)), code.index_bits),
        "pvq_amp": _stream(amplitudes.flatten(), code.amp_bits),
        "pvq_norms": norms,
    }


def _code_of(config: Mapping[str, Any]) -> PvqCode:
    names = ("group", "pulses", "amp_bits", "amp_mode", "seed")
    missing = [name for name in names if name not in config]
    if missing:
        raise UsageError(f"the quantization_config of a pvq folder lacks {missing[0]}")
    return PvqCode(**{name: config[name] for name in names})


def _stream(numbers: Tensor, bits: int) -> Tensor:
    """Packs numbers as one stream: int64 [n] -> uint8 [ceil(n * bits / 8)]."""
    padded = torch.cat([numbers, numbers.new_zeros(-len(numbers) % 8)]).view(-1, 8)
    return pack_bits(padded, bits).flatten()[: -(-len(numbers) * bits // 8)]


def _from_stream(stream: Tensor, bits: int, n: int, module: str) -> Tensor:
    """Unpacks a stream: uint8 [ceil(n * bits / 8)] -> int64 [n]."""
    if stream.dim() != 1 or len(stream) != -(-n * bits // 8):
        raise UsageError(f"a stream of {module} has {stream.numel()} bytes; {n} numbers of {bits} bits fill others")
    missing = -n % 8
    whole = torch.cat([stream, stream.new_zeros((n + missing) * bits // 8 - len(stream))])
    return unpack_bits(whole.view(-1, bits), bits, 8).flatten()[:n]
