"""VPTQ's public form: vectors of consecutive outputs of one input as entries of codebooks, with residuals and outliers.

`indices` hold a number for each vector and input of a group: packed, int32 [groups, vectors, words], the bits of the
residual's above the main one's, those of consecutive inputs in one stream, the lowest first; or unpacked, 16 bits
each, beside `res_indices`. `centroids.weight` and `res_centroids.weight` are [groups, k * v]. Outliers are whole inputs
with a codebook of their own, in front. `perm` has each column's input; `weight_scale`, `weight_bias` are of inputs.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from outlay import kernels
from outlay.errors import UsageError
from outlay.kernels.bits import pack_bits, to_bytes, to_words, unpack_bits
from outlay.models.forms.form import Form, Tensors
from outlay.models.quantized import GROUP, QuantizedWeight, quantize
from outlay.models.stored import StoredMatrix

LEVELS = 127  # of codebooks on the 8-bit grid, main and residual entries added
_SMALLEST = 2.0**24  # of which half precision's smallest number is one part
_TOLERANCE = 0.02  # by which rounding a public codebook may change a group of 32 weights on average, as of int8 by rows


@dataclass(frozen=True)
class Codebook:
    """The entries of some inputs' vectors."""

    entries: Tensor
    """float [k, v]."""
    residual: Tensor | None
    """float [k_res, v], added to the entries."""
    index: Tensor
    """int64 [vectors, inputs]."""
    residual_index: Tensor | None
    """int64 [vectors, inputs]."""

    def columns(self, outputs: int) -> Tensor:
        """Returns the weights of its inputs, float32 [outputs, inputs]."""
        found = F.embedding(self.index, self.entries.float())  # whose gradient has one order of sums at any threads
        if self.residual is not None and self.residual_index is not None:
            found = found + F.embedding(self.residual_index, self.residual.float())
        return found.transpose(1, 2).flatten(0, 1)[:outputs]


@dataclass(frozen=True)
class VptqMatrix(StoredMatrix):
    """A matrix [n, k] in VPTQ's form, its indices unpacked."""

    books: tuple[Codebook, ...]
    """Those of the outliers, if any, and of each group, in the order of the columns."""
    order: Tensor | None
    """int64 [k]: the input of each column; None: as they are."""
    scale: Tensor | None
    """float [k] of inputs; None: there is none."""
    bias: Tensor | None
    """float [k] of inputs, added after `scale`."""
    outputs: int
    """n."""
    file_bytes: int
    """Bytes in the file."""
    chosen: Tensor | None = None
    """int64 [r]: the rows that `take` chose; None: all."""

    @property
    def shape(self) -> tuple[int, int]:
        """[n, k]"""
        rows = self.outputs if self.chosen is None else len(self.chosen)
        return rows, sum(book.index.shape[1] for book in self.books)

    @property
    def nbytes(self) -> int:
        """Bytes of the matrix in its file."""
        return self.file_bytes

    @property
    def format(self) -> str:
        """int8, as which packed indices are multiplied too; bfloat16 where the inputs have no groups of 32."""
        return "int8" if self.shape[1] % GROUP == 0 else "bfloat16"

    def rows(self, index: Tensor | None) -> Tensor:
        """Returns the rows `index` (None: all) in float32."""
        weight = torch.cat([book.columns(self.outputs) for book in self.books], 1)
        if self.order is not None:
            weight = weight[:, self.order.argsort()]
        if self.scale is not None and self.bias is not None:
            weight = weight * self.scale.float() + self.bias.float()
        weight = weight if self.chosen is None else weight[self.chosen]
        return weight if index is None else weight[index]

    def take(self, index: Tensor) -> VptqMatrix:
        """Returns the rows `index` in the same form."""
        return replace(self, chosen=index if self.chosen is None else self.chosen[index])

    @property
    def step(self) -> float | None:
        """The largest step of which all entries are multiples, as half precision stores them; None with a scale."""
        if self.scale is not None:
            return None
        tables = [table for book in self.books for table in (book.entries, book.residual) if table is not None]
        units = torch.cat([(table.double() * _SMALLEST).flatten() for table in tables]).round().long()
        return max(int(np.gcd.reduce(units.numpy())), 1) / _SMALLEST

    def plain(self) -> QuantizedWeight:
        """Returns the matrix in q8: exactly where all entries lie on one 8-bit grid, else rounded."""
        weight, step = self.dequantize(), self.step
        if step is None or float(weight.abs().amax()) > LEVELS * step:
            return quantize(weight, "q8")
        scales = torch.full((weight.shape[0], weight.shape[1] // GROUP), step).half()
        if float(scales[0, 0]) != step:
            return quantize(weight, "q8")
        return QuantizedWeight("q8", (weight / step).round().to(torch.int8), scales)

    def packed(self) -> kernels.PackedLinear:
        """Returns the matrix in the layout of the native kernels: its indices, where one codebook serves all inputs."""
        book, entries = self.books[0], self._on_grid()
        if entries is None:
            return super().packed()
        return kernels.pack_codebook(entries, book.index, book.residual_index, self.outputs)

    def _on_grid(self) -> kernels.CodebookEntries | None:
        """Returns the only codebook in steps of a grid; None where there are more or rounding changes too much."""
        book, (n, k) = self.books[0], self.shape
        one = len(self.books) == 1 and self.order is None and self.scale is None and self.chosen is None
        if not one or k % GROUP or book.entries.shape[1] not in kernels.VECTORS:
            return None
        tables = [book.entries.float()] + ([] if book.residual is None else [book.residual.float()])
        largest, step = sum(float(table.abs().amax()) for table in tables), self.step
        is_exact = step is not None and largest <= LEVELS * step and float(torch.tensor(step).half()) == step
        if step is None or not is_exact:
            step = grid_step(largest * LEVELS / (LEVELS - 1))  # each may be rounded up by half a step
            if float(torch.tensor(step).half()) != step:
                return None
        steps = [(table / step).round() for table in tables]
        codebook = kernels.CodebookEntries(
            steps[0].to(torch.int8), steps[1].to(torch.int8) if steps[1:] else None, step
        )
        if codebook.nbytes + n * k * (codebook.bits + codebook.residual_bits) / (8 * codebook.v) >= n * k:
            return None
        if not is_exact:
            rounded = Codebook(steps[0], steps[1] if steps[1:] else None, book.index, book.residual_index)
            if _mean_change(self.dequantize(), rounded.columns(n) * step) > _TOLERANCE:
                return None
        return codebook


def _mean_change(weight: Tensor, rounded: Tensor) -> float:
    """Returns the change of a group of 32 weights as a share of it, on average."""
    groups = (each.unflatten(1, (-1, GROUP)) for each in (rounded - weight, weight))
    change, size = (torch.linalg.vector_norm(each, dim=-1) for each in groups)
    return float((change / size.clamp_(min=1e-20)).mean())


def grid_step(largest: float) -> float:
    """Returns the least step m * 2^e, m from 8 to 15, of which `LEVELS` reach a size; half precision holds these."""
    if largest <= 0:
        return 1.0
    exponent = math.floor(math.log2(largest / LEVELS)) - 3
    step = math.ceil(largest / LEVELS / 2.0**exponent) * 2.0**exponent
    return step


class VptqForm(Form):
    """Reads VPTQ's form."""

    mark = "indices"

    def __init__(self, config: Mapping[str, Any]) -> None:
        self._own = config.get("config_for_layers") or {}
        self._shared = config.get("shared_layer_config") or {}
        if not self._own and not self._shared:
            raise UsageError("the quantization_config of a vptq folder has config_for_layers or shared_layer_config")

    def shape(self, module: str, tensors: Tensors) -> tuple[int, int]:
        """Returns [out, in]."""
        config = self._config(module)
        return int(config["out_features"]), int(config["in_features"])

    def matrix(self, module: str, tensors: Tensors) -> VptqMatrix:
        """Returns a module's matrix."""
        config, (n, k) = self._config(module), self.shape(module, tensors)
        groups, size, outliers = (int(config[name]) for name in ("group_num", "group_size", "outlier_size"))
        (v0, v), (k0, entries) = config["vector_lens"], config["num_centroids"]
        residual = max(int(config["num_res_centroids"][1]), 0)
        used = ["indices", "centroids.weight"]
        main = self._table(module, "centroids", groups, entries, v, tensors)
        extra = self._table(module, "res_centroids", groups, residual, v, tensors) if residual > 0 else None
        index, extra_index = self._indices(module, config, (groups, -(-n // v), size), tensors)
        if int(index.max()) >= entries or (extra_index is not None and int(extra_index.max()) >= residual):
            raise UsageError(f"{module}.indices names an entry that its codebook of {entries} lacks")
        used += ["res_centroids.weight", "res_indices"] if extra is not None else []
        books = []
        if v0 > 1 and k0 > 0:
            table = self._table(module, "outlier_centroids", 1, k0, v0, tensors)
            place = _unsigned(self.tensor(module, "outlier_indices", tensors)).view(-1, outliers)
            if int(place.max()) >= k0:
                raise UsageError(f"{module}.outlier_indices names an entry that its codebook of {k0} lacks")
            books.append(Codebook(table[0], None, place, None))
            used += ["outlier_centroids.weight", "outlier_indices"]
        for g in range(groups):
            rest = (None, None) if extra is None or extra_index is None else (extra[g], extra_index[g])
            books.append(Codebook(main[g], rest[0], index[g], rest[1]))
        order = scale = bias = None
        if config.get("enable_perm"):
            perm = self.tensor(module, "perm", tensors)
            order = perm.long() if perm.dtype == torch.int64 else _unsigned(perm)
            if not torch.equal(order.sort().values, torch.arange(k)):
                raise UsageError(f"{module}.perm is no order of {k} inputs")
            used.append("perm")
        if config.get("enable_norm"):
            scale, bias = self.tensor(module, "weight_scale", tensors), self.tensor(module, "weight_bias", tensors)
            used += ["weight_scale", "weight_bias"]
        if sum(book.index.shape[1] for book in books) != k:
            raise UsageError(f"{module} has columns for another number of inputs than its {k}")
        sizes = [tensors.tensor(f"{module}.{part}").nbytes for part in used if tensors.shape(f"{module}.{part}")]
        return VptqMatrix(tuple(books), order, scale, bias, n, sum(sizes))

    def _config(self, module: str) -> Mapping[str, Any]:
        found = self._own.get(module) or self._shared.get(module.rpartition(".")[2])
        if found is None:
            raise UsageError(f"the quantization_config says nothing of {module}")
        return dict(found)

    def _table(self, module: str, part: str, groups: int, entries: int, length: int, tensors: Tensors) -> Tensor:
        table = self.tensor(module, f"{part}.weight", tensors)
        if table.numel() != groups * entries * length or not bool(table.isfinite().all()):
            raise UsageError(f"{module}.{part}.weight should hold finite entries {[groups, entries * length]}")
        return table.view(groups, entries, length)

    def _indices(
        self, module: str, config: Mapping[str, Any], shape: tuple[int, int, int], tensors: Tensors
    ) -> tuple[Tensor, Tensor | None]:
        """Returns the indices of main and residual codebooks, int64 [groups, vectors, inputs of a group]."""
        stored, residual = self.tensor(module, "indices", tensors), max(int(config["num_res_centroids"][1]), 0)
        if not config.get("is_indice_packed"):
            index = _unsigned(stored).view(shape)
            return index, _unsigned(self.tensor(module, "res_indices", tensors)).view(shape) if residual else None
        main_bits, extra_bits = _bits(int(config["num_centroids"][1])), _bits(residual) if residual else 0
        words = -(-shape[2] * (main_bits + extra_bits) // 32)
        if stored.numel() != shape[0] * shape[1] * words:
            raise UsageError(f"{module}.indices should be int32 {[*shape[:2], words]}, not {list(stored.shape)}")
        merged = unpack_bits(to_bytes(stored.reshape(-1, words)), main_bits + extra_bits, shape[2]).view(shape)
        return merged & ((1 << main_bits) - 1), merged >> main_bits if residual else None


def vptq_tensors(matrix: VptqMatrix, outliers: bool) -> dict[str, Tensor]:
    """Returns the tensors of a module, its indices packed.

    Args:
        matrix: The matrix; entries, scale and bias are rounded to float16.
        outliers: Whether the first codebook is the outliers'.
    """
    books = matrix.books[1:] if outliers else matrix.books
    tensors, first = {}, books[0]
    merged = torch.stack([book.index for book in books])
    bits = _bits(len(first.entries))
    if first.residual is not None:
        merged = (
            merged | torch.stack([book.residual_index for book in books if book.residual_index is not None]) << bits
        )
        bits += _bits(len(first.residual))
        residuals = [book.residual.flatten() for book in books if book.residual is not None]
        tensors["res_centroids.weight"] = torch.stack(residuals).half()
    packed = to_words(pack_bits(merged.flatten(0, 1), bits))
    tensors["indices"] = packed.view(*merged.shape[:2], -1)
    tensors["centroids.weight"] = torch.stack([book.entries.flatten() for book in books]).half()
    if outliers:
        tensors["outlier_centroids.weight"] = matrix.books[0].entries.flatten()[None].half()
        tensors["outlier_indices"] = matrix.books[0].index[None].int().to(torch.int16)
    if matrix.order is not None:
        tensors["perm"] = matrix.order.int().to(torch.int16)
    if matrix.scale is not None and matrix.bias is not None:
        tensors["weight_scale"], tensors["weight_bias"] = matrix.scale.half(), matrix.bias.half()
    return tensors


def _bits(entries: int) -> int:
    return (entries - 1).bit_length()


def _unsigned(stored: Tensor) -> Tensor:
    """Returns 16-bit numbers without sign, whatever they are stored as, as int64."""
    if stored.dtype in (torch.int64, torch.int32):
        return stored.long() & 0xFFFF
    return stored.view(torch.int16).long() & 0xFFFF
