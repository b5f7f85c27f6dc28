"""VPTQ: short vectors of weights as entries of learned codebooks, chosen column by column with error feedback.

A vector is v consecutive outputs of one input. Codebooks come from k-means in which a vector weighs as much as its
input's mean square; columns are then quantized one after the other, each error fed into the columns that follow, and
inside a column the nearest entry is the best one. A second codebook may hold what the first leaves, a third the most
sensitive inputs. Written in the public form.

Liu, Wen, Wang, Ye, Zhang, Cao, Li, Yang (2024), "VPTQ: Extreme Low-bit Vector Post-Training Quantization for Large
Language Models", EMNLP, arXiv:2409.17066, Algorithm 1. The codebooks' entries are put on an 8-bit grid before indices
are chosen, so that half precision and a kernel's bytes hold them exactly.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from outlay import kernels
from outlay.about import About
from outlay.errors import UsageError
from outlay.models.forms.form import Held
from outlay.models.forms.vptq import LEVELS, Codebook, VptqForm, VptqMatrix, grid_step, vptq_tensors
from outlay.shrink.block import Block, Tuning
from outlay.shrink.feedback import damped, inverse_factor, walk
from outlay.shrink.shrinker import TASK, Moment, Shrinker, Shrunk, Tuned

REGULAR = 1e-2  # of the diagonal's mean, added to the second moments before all else (the official code's)
_TOGETHER = 1 << 10  # vectors whose distances are computed at once, in a processor's second-level cache


@dataclass(frozen=True)
class VPTQ(Shrinker):
    """Quantizes vectors of weights with codebooks, residuals and outliers."""

    v: int = 4
    """Outputs of a vector."""
    k: int = 256
    """Entries of a codebook, a power of two."""
    k_res: int = 16
    """Entries of the residual codebook, a power of two; 0: there is none."""
    groups: int = 1
    """Groups of inputs, each with codebooks of its own."""
    outlier_pct: float = 0.0
    """Percent of the inputs, those of the largest mean square, that have a codebook of their own."""
    v0: int = 2
    """Outputs of an outlier's vector."""
    k0: int = 256
    """Entries of the outliers' codebook."""
    perm: bool = True
    """Whether the columns of the largest inputs go first."""
    norm: bool = False
    """Whether each input's weights are shifted and scaled to lie from 0 to 1."""
    norm_compat: bool = False
    """Whether feedback then goes by the second moments of the inputs as they are, as in the official code."""
    grid: bool = True
    """Whether codebooks are put on an 8-bit grid before indices are chosen."""
    iters: int = 100
    """Iterations of k-means at most."""
    tol: float = 1e-5
    """Relative shift of the entries below which k-means ends."""
    damping: float = 0.01
    """Share of the mean of the second moments' diagonal that is added to it."""
    seed: int = 0
    """Seed of the first entries."""

    about: ClassVar[About] = About(
        name="vptq",
        summary="vectors of weights as entries of learned codebooks, chosen with error feedback",
        paper="Liu et al. 2024, arXiv:2409.17066",
        family="quantization",
        spends="a calibration pass, and k-means of every matrix",
        saves="bytes of the file",
        exact=False,
        task=TASK,
        command="outlay shrink smollm2-135m --method vptq --bits 3 --out DIR",
    )

    def __post_init__(self) -> None:
        for name in ("k", "k0", "k_res"):
            value = getattr(self, name)
            if (value != 0 or name != "k_res") and (value < 2 or value & (value - 1) or value > 65536):
                raise UsageError(f"{name} of vptq must be a power of two from 2 to 65536, not {value}")
        for name in ("v", "groups", "iters"):
            if getattr(self, name) < 1:
                raise UsageError(f"{name} of vptq must be 1 or more, not {getattr(self, name)}")
        if not 0 <= self.outlier_pct < 100:
            raise UsageError(f"outlier_pct of vptq must be from 0 to 100, not {self.outlier_pct:g}")
        if self.outlier_pct and (self.v0 < 2 or not self.perm):
            raise UsageError("outliers of vptq need v0=2 or more, and perm=true")
        if self.damping <= 0:
            raise UsageError(f"damping of vptq must be above 0, not {self.damping:g}")

    @classmethod
    def at_bits(cls, bits: float) -> dict[str, Any]:
        """Returns the options for some bits of indices a weight; codebooks are not counted."""
        for v in (8, 4):
            extra = bits * v - 8
            if extra == int(extra) and 0 <= extra <= 8 and (v == 4 or bits < 2):
                return {"v": v, "k": 256, "k_res": 2 ** int(extra) if extra else 0}
        raise UsageError(f"vptq has 1 to 2 bits a weight in steps of 0.125 and 2 to 4 in steps of 0.25, not {bits:g}")

    def shrink(self, weight: Tensor, moment: Moment, name: str) -> Shrunk:
        """Shrinks one matrix."""
        outputs, inputs = weight.shape
        outliers = self._outliers(outputs, inputs, name)
        scale = bias = None
        if self.norm:
            bias = weight.amin(0).half().float()
            scale = (weight.amax(0) - bias).half().float()
            scale = torch.where(scale > 0, scale, 1.0)
            weight = (weight - bias) / scale
        stretch = scale if scale is not None and not self.norm_compat else None
        h, order, factor = moment.once(
            ("vptq", self.damping, self.perm, None if stretch is None else name),
            lambda: self._prepare(moment, stretch),
        )
        weight = weight * (moment.h.diagonal() > 0)
        padded = torch.cat([weight, weight.new_zeros(-outputs % self._rows, inputs)])
        parts = [order[:outliers]] * (outliers > 0) + list(order[outliers:].tensor_split(self.groups))
        sizes = [(self.v0, self.k0)] * (outliers > 0) + [(self.v, self.k)] * self.groups
        tables = [
            Table(self._fitted(padded, h, columns, *size, i))
            for i, (columns, size) in enumerate(zip(parts, sizes, strict=True))
        ]
        if self.k_res:
            walked = walk(padded, factor, Vectors(tables, parts), order)
            left = walked.adjusted - walked.weight
            for i in range(int(outliers > 0), len(tables)):
                residual = self._fitted(left, h, parts[i], self.v, self.k_res, i)
                tables[i] = Table(tables[i].entries, residual)
        if self.grid:
            tables = on_grid(tables)
        fed = Vectors(tables, parts)
        walk(padded, factor, fed, order)
        absorbed = self.groups == 1 and not outliers
        books = fed.books(outputs, order.argsort() if absorbed else None)
        matrix = VptqMatrix(tuple(books), None if absorbed else order, scale, bias, outputs, 0)
        unfed = Vectors(tables, parts).all(padded)[:outputs]
        if scale is not None and bias is not None:
            unfed = unfed * scale + bias
        return Shrunk(vptq_tensors(matrix, outliers > 0), matrix.dequantize(), unfed)

    def _fitted(self, target: Tensor, h: Tensor, columns: Tensor, v: int, k: int, at: int) -> Tensor:
        """Returns the entries fitted to the vectors of some columns, float32 [k, v], each exactly a float16.

        Args:
            target: Float32 [out, in], its rows padded.
            h: How much a column's vectors weigh, float32 [in].
            columns: int64 [columns].
            v: Outputs of a vector.
            k: Entries.
            at: Which codebook of the matrix it is.
        """
        vectors = target[:, columns].T.reshape(-1, v)
        weights = h[columns].repeat_interleave(len(target) // v)
        return kmeans(vectors, weights, k, self.iters, self.tol, self.seed + at).half().float()

    @property
    def _rows(self) -> int:
        """Rows of which a matrix gets a multiple, padded with zeros."""
        return self.v * self.v0 if self.outlier_pct else self.v

    def _outliers(self, outputs: int, inputs: int, name: str) -> int:
        """Returns the number of outlier columns, so that the rest splits into the groups."""
        if self.v > outputs:
            raise UsageError(f"v={self.v} is more than the {outputs} outputs of {name}")
        codebooks = 16 * self.v * self.groups * (self.k + self.k_res)
        if codebooks >= 16 * outputs * inputs:
            raise UsageError(f"the codebooks of {self.label} are larger than {name} itself, {outputs} x {inputs}")
        found = -(-round(self.outlier_pct * inputs) // 100) if self.outlier_pct else 0
        found += (inputs - found) % self.groups if found else 0
        if (inputs - found) % self.groups:
            raise UsageError(f"groups={self.groups} doesn't divide the {inputs} inputs of {name}")
        return found

    def _prepare(self, moment: Moment, stretch: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        """Returns the weights of the columns, their order, and the factor in that order (the algorithm's section A)."""
        h = moment.h / moment.h.diagonal().mean()
        if stretch is not None:
            h = h * stretch.double()[:, None] * stretch.double()
        weights = h.diagonal() + REGULAR
        fixed = damped(h + torch.diag((h.diagonal() == 0).double()) + REGULAR * torch.eye(len(h)), self.damping)
        order = weights.argsort(descending=True, stable=True) if self.perm else torch.arange(len(h))
        return weights.float(), order, inverse_factor(fixed[order][:, order], moment.name)

    def tune(self, block: Block, tensors: Mapping[str, Tensor], tuning: Tuning) -> Tuned:
        """Tunes the layer's codebooks and norms (the paper's layer-wise tuning)."""
        from outlay.shrink.vptq.tuning import tuned

        form, held = VptqForm({"config_for_layers": block.configs}), Held(tensors)
        matrices = {module: form.matrix(module, held) for module in block.configs}
        found, norms, errors = tuned(block, matrices, tuning, self.grid)
        made: dict[str, Tensor] = {}
        for module, matrix in found.items():
            outliers = len(matrix.books) > int(block.configs[module]["group_num"])
            made |= {f"{module}.{part}": tensor for part, tensor in vptq_tensors(matrix, outliers).items()}
        return Tuned(made, {module: matrix.dequantize() for module, matrix in found.items()}, norms, errors)

    def quantization_config(self) -> dict[str, Any]:
        """Returns what config.json says about the form."""
        return {"quant_method": "vptq"}

    def module_config(self, shape: tuple[int, int]) -> dict[str, Any]:
        """Returns the entry of `config_for_layers`."""
        outputs, inputs = shape
        outliers = self._outliers(outputs, inputs, "a matrix")
        return {
            "in_features": inputs, "out_features": outputs, "vector_quant_dim": "out", "is_indice_packed": True,
            "vector_lens": [self.v0 if outliers else -1, self.v],
            "num_centroids": [self.k0 if outliers else -1, self.k],
            "num_res_centroids": [-1, self.k_res if self.k_res else -1],
            "group_num": self.groups, "group_size": (inputs - outliers) // self.groups, "outlier_size": outliers,
            "enable_norm": self.norm, "enable_perm": self.groups > 1 or outliers > 0, "indices_as_float": False,
            "bias": False,
        }  # fmt: skip


class Table(NamedTuple):
    """The entries of a codebook, and of its residual codebook."""

    entries: Tensor
    """Float32 [k, v]."""
    residual: Tensor | None = None
    """Float32 [k_res, v]; None: there is none."""

    def nearest(self, vectors: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        """Returns what vectors [n, v] become, and the indices in both codebooks, the residual's chosen second."""
        index = nearest(vectors, self.entries)
        coded = self.entries[index]
        if self.residual is None:
            return coded, index, None
        extra = nearest(vectors - coded, self.residual)
        return coded + self.residual[extra], index, extra


class Vectors:
    """Chooses the entries of one column at a time."""

    columns, group = 1, 1

    def __init__(self, tables: Sequence[Table], parts: Sequence[Tensor]) -> None:
        """Takes codebooks, and the columns of each, in the order in which they come."""
        self._tables, self._parts = tables, parts
        self._table_of = {int(column): at for at, columns in enumerate(parts) for column in columns}
        self._index: list[list[Tensor]] = [[] for _ in tables]
        self._extra: list[list[Tensor]] = [[] for _ in tables]

    def quantize(self, ahead: Tensor, places: Tensor, factor: Tensor) -> Tensor:
        """Takes the nearest entry for each vector of the next column, then the nearest for what it leaves."""
        at = self._table_of[int(places[0])]
        table = self._tables[at]
        coded, index, extra = table.nearest(ahead[:, 0].reshape(-1, table.entries.shape[1]))
        self._index[at].append(index)
        if extra is not None:
            self._extra[at].append(extra)
        return coded.view(-1, 1)

    def all(self, weight: Tensor) -> Tensor:
        """Returns a whole matrix, each column by itself."""
        found = torch.empty_like(weight)
        for table, columns in zip(self._tables, self._parts, strict=True):
            coded, _, _ = table.nearest(weight[:, columns].T.reshape(-1, table.entries.shape[1]))
            found[:, columns] = coded.view(len(columns), -1).T
        return found

    def books(self, outputs: int, back: Tensor | None) -> list[Codebook]:
        """Returns the codebooks with what was chosen.

        Args:
            outputs: Rows of the matrix without its padding.
            back: The place of each input's column, to store them in the inputs' order; None: in that of the columns.
        """
        found = []
        for (entries, residual), index, extra in zip(self._tables, self._index, self._extra, strict=True):
            vectors = -(-outputs // entries.shape[1])
            one = torch.stack(index, 1)[:vectors]
            two = torch.stack(extra, 1)[:vectors] if extra else None
            if back is not None:
                one, two = one[:, back], None if two is None else two[:, back]
            found.append(Codebook(entries, residual, one, two))
        return found


def nearest(vectors: Tensor, entries: Tensor) -> Tensor:
    """Returns the nearest of entries [k, v], the first of equals, for each of vectors [n, v]: int64 [n]."""
    if kernels.available():
        return kernels.nearest(vectors, entries)
    half = (entries * entries).sum(1) / 2
    return torch.cat([(half - part @ entries.T).argmin(1) for part in vectors.split(_TOGETHER)])


def kmeans(vectors: Tensor, weights: Tensor, k: int, iterations: int, tolerance: float, seed: int) -> Tensor:
    """Fits entries by Lloyd's iterations in which each vector has a weight. Deterministic.

    Args:
        vectors: Float32 [n, v].
        weights: Float32 [n], not negative; they weigh the means, not the distances.
        k: Entries.
        iterations: At most.
        tolerance: Ends once the entries' shift is below this share of their size.
        seed: Of the vectors that the entries begin as.

    Returns:
        Float32 [k, v]. An entry that lost all its vectors begins anew as one of them.
    """
    generator = torch.Generator().manual_seed(seed)
    begin = torch.randperm(len(vectors), generator=generator)[:k]
    entries = vectors[begin.repeat(-(-k // len(begin)))[:k]].clone()
    wide, mass = (vectors * weights[:, None]).double(), weights.double()
    for _ in range(iterations):
        index = nearest(vectors, entries)
        total = torch.zeros(k, dtype=torch.float64).index_add_(0, index, mass)
        sums = torch.zeros(k, vectors.shape[1], dtype=torch.float64).index_add_(0, index, wide)
        new = (sums / total.clamp(min=1e-300)[:, None]).float()
        empty = (total <= 0).nonzero()[:, 0]
        if len(empty) and len(vectors) > k:
            new[empty] = vectors[torch.randint(len(vectors), (len(empty),), generator=generator)]
        elif len(empty):
            new[empty] = entries[empty]
        shift, entries = (new - entries).norm() / entries.norm().clamp(min=1e-30), new
        if float(shift) < tolerance:
            break
    return entries


def on_grid(tables: Sequence[Table]) -> list[Table]:
    """Rounds all entries to one grid, on which a main and a residual entry add up to `LEVELS` steps at most."""
    main = max(float(table.entries.abs().amax()) for table in tables)
    extra = max((float(table.residual.abs().amax()) for table in tables if table.residual is not None), default=0.0)
    step = grid_step((main + extra) * LEVELS / (LEVELS - 1))  # each may be rounded up by half a step

    def rounded(entries: Tensor) -> Tensor:
        return (entries / step).round() * step

    return [Table(rounded(one), None if two is None else rounded(two)) for one, two in tables]
