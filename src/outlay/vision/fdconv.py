"""Frequency dynamic convolution (Chen et al. 2025): a kernel that adapts to each picture, for the parameters of one.

The kernel is stored as Fourier coefficients of its flattened matrix, cut by frequency into disjoint groups; each group
alone is a full kernel, and a gain per picture and group makes many kernels of one (FDW). Two modulators follow: gains
on channels, filters, positions and single weights of the kernel (KSM), and gains on frequency bands of the map, place
by place (FBM). With all gains at 1, where a layer starts, it computes the convolution that it was made of.

Layers learn their gains: what a trained layer computes is its own function, not an approximation of the convolution.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import pairwise
from typing import Any, ClassVar, Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from outlay.about import About, Entry
from outlay.errors import UsageError
from outlay.vision import networks, weights
from outlay.vision.cost import COUNTS

ORDERS = {"official": 0, "paired-v1": 1}
MATRIX_SIDE = 64  # up to it, matrix products split bands faster than Fourier transforms do
BANDS = (2, 4, 8)  # the thresholds of FBM are 0.5 over these
KERNEL_ELEMENTS = 1 << 24  # of all kernels that are made at once; the batch is cut into parts
KSM = Literal["local+global", "global", "gain"]


@dataclass(frozen=True)
class FDConv(Entry):
    """Convolutions whose kernels adapt to each picture, stored as the Fourier coefficients of one kernel."""

    groups: int = 64
    """Frequency groups (n), each with a gain of its own."""

    ksm: KSM = "local+global"
    """Gains on the kernel. `local+global`: for each weight, channel, filter and position, and each frequency group.
    `global`: without those for single weights. `gain`: for frequency groups alone."""

    fbm: bool = True
    """Whether frequency bands of the map get gains, place by place, before kernels larger than 1x1."""

    param_ratio: int = 1
    """Copies of the coefficients, each with its own gains."""

    param_reduction: float = 1.0
    """Share of the coefficients that is kept, the lowest frequencies first. Below 1 the start is not the original."""

    order: Literal["paired-v1", "official"] = "paired-v1"
    """Which coefficients form a group. `paired-v1`: sorted by radius, stable, conjugate pairs kept together.
    `official`: as the authors' code sorts them, which their checkpoints need."""

    norm: Literal["layer", "batch"] = "layer"
    """In the global branch. `layer` works at batch 1; `batch` is the authors'."""

    about: ClassVar[About] = About(
        name="fdconv",
        summary="convolutions that adapt to each picture without storing more kernels",
        paper="Chen et al. 2025, Frequency Dynamic Convolution for Dense Image Prediction, arXiv 2503.18783",
        family="vision",
        spends="time: a transform, and a kernel for each picture",
        saves="parameters of dynamic convolution",
        exact=False,
        task="adapt",
        command="outlay vision adapt vovnet-39 --method fdconv --groups 64 --out DIR",
        counts=COUNTS,
    )

    def __post_init__(self) -> None:
        if self.groups < 1:
            raise UsageError(f"fdconv needs 1 frequency group or more, not {self.groups}")
        if self.param_ratio < 1 or not 0 < self.param_reduction <= 1:
            raise UsageError("fdconv needs a param_ratio of 1 or more, and a param_reduction above 0 and at most 1")


# Which coefficient belongs to which group


@lru_cache(maxsize=256)
def frequency_groups(rows: int, columns: int, groups: int, order: str, kept: float = 1.0) -> np.ndarray[Any, Any]:
    """Assigns the coefficients of a real `rows` x `columns` matrix to groups, low frequencies first.

    Args:
        rows: of the matrix.
        columns: of the matrix; its transform has `columns // 2 + 1`.
        groups: how many; sizes differ by rounding, and by one where a boundary would split a conjugate pair.
        order: "paired-v1" or "official".
        kept: share of the coefficients that belong to a group.

    Returns:
        `[rows, columns // 2 + 1]`, int16: the group of each coefficient, -1 for what is not kept.

    Raises:
        UsageError: for more groups than coefficients.
    """
    half = columns // 2 + 1
    ranked = _official_order(rows, columns) if order == "official" else _paired_order(rows, columns)
    count = max(1, int(ranked.size * kept))
    if groups > count:
        raise UsageError(
            f"{groups} frequency groups are more than the {count} coefficients of a {rows}x{columns} matrix"
        )
    of = np.full(ranked.size, -1, np.int16)
    of[ranked[:count]] = np.arange(count) * groups // count
    if order != "official":
        first, second = ranked[:-1], ranked[1:]
        for one, other in zip(first, second, strict=True):
            if of[one] != of[other] and _conjugates(one, other, rows, columns):
                of[other] = of[one]
    return of.reshape(rows, half)


def _paired_order(rows: int, columns: int) -> np.ndarray[Any, Any]:
    """Flat places by radius, then so that the two of a conjugate pair are neighbours; the same on every machine."""
    u, v = np.divmod(np.arange(rows * (columns // 2 + 1)), columns // 2 + 1)
    near = np.minimum(u, rows - u)
    radius = np.sqrt((near / rows) ** 2 + (v / columns) ** 2)
    return np.lexsort((u, near, v, np.round(radius, 9)))


def _official_order(rows: int, columns: int) -> np.ndarray[Any, Any]:
    """The order that the authors' code finds: by torch's sort of float32 radii, which does not promise to be stable."""
    grid = torch.stack(torch.meshgrid(torch.fft.fftfreq(rows), torch.fft.rfftfreq(columns), indexing="ij"), dim=-1)
    return torch.sort(torch.norm(grid, dim=-1).view(-1))[1].numpy()


def _conjugates(one: int, other: int, rows: int, columns: int) -> bool:
    """Whether two coefficients are each other's conjugates in any real matrix; only the outer columns hold both."""
    (u, v), (w, x) = divmod(int(one), columns // 2 + 1), divmod(int(other), columns // 2 + 1)
    return v == x and (v == 0 or 2 * v == columns) and (u + w) % rows == 0


# The modulators


class StarReLU(nn.Module):
    """s relu(t)^2 + b with learned s and b."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(1))
        self.bias = nn.Parameter(torch.zeros(1))

    def forward(self, x: Tensor) -> Tensor:
        """Returns the same shape."""
        return self.scale * F.relu(x) ** 2 + self.bias


class RunningNorm(nn.BatchNorm1d):
    """Batch normalisation that takes its running statistics for a batch of one, which has none of its own."""

    def forward(self, x: Tensor) -> Tensor:
        """Takes `[batch, channels]`."""
        if len(x) > 1 or not self.training:
            return super().forward(x)
        return F.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, False, 0.0, self.eps)


class GlobalGains(nn.Module):
    """KSM's global branch: the channels' means give a gain for each frequency group, channel, filter and position.

    Args:
        c_in: channels read.
        c_out: filters.
        positions: weights of a filter and channel (k x k).
        gains: frequency groups, over all copies.
        full: whether channels, filters and positions get gains too.
        norm: "layer" or "batch".
    """

    def __init__(self, c_in: int, c_out: int, positions: int, gains: int, *, full: bool, norm: str) -> None:
        super().__init__()
        hidden = max(c_in // 16, 16)
        self.squeeze = nn.Linear(c_in, hidden, bias=False)
        self.norm = RunningNorm(hidden) if norm == "batch" else nn.LayerNorm(hidden)
        self.act = StarReLU()
        self.groups = _zeroed(nn.Linear(hidden, gains))
        self.channels = _zeroed(nn.Linear(hidden, c_in)) if full else None
        self.filters = _zeroed(nn.Linear(hidden, c_out)) if full else None
        self.positions = _zeroed(nn.Linear(hidden, positions)) if full and positions > 1 else None

    def forward(self, mean: Tensor) -> dict[str, Tensor]:
        """Takes the means `[batch, c_in]` and returns the gains of each kind, `[batch, ...]`."""
        hidden = self.act(self.norm(self.squeeze(mean)))
        kinds = ("groups", "channels", "filters", "positions")
        heads = {name: head for name in kinds if (head := getattr(self, name)) is not None}
        return {name: 2 * torch.sigmoid(head(hidden)) for name, head in heads.items()}


class LocalGains(nn.Module):
    """KSM's local branch: a convolution along the channels gives a gain for each single weight.

    Args:
        c_in: channels read.
        outputs: filters x positions.
    """

    def __init__(self, c_in: int, outputs: int) -> None:
        super().__init__()
        taps = round(math.log2(c_in) / 2 + 0.5) // 2 * 2 + 1
        self.norm = nn.LayerNorm(c_in)
        self.conv = nn.Conv1d(1, outputs, taps, padding=taps // 2, bias=False)
        nn.init.zeros_(self.conv.weight)

    def forward(self, mean: Tensor, c_out: int, sides: tuple[int, int]) -> Tensor:
        """Takes `[batch, c_in]` and returns the gains `[batch, c_out, c_in, *sides]`."""
        logits = self.conv(self.norm(mean)[:, None])  # [batch, c_out x positions, c_in]
        gains = 2 * torch.sigmoid(logits)
        return gains.view(len(mean), c_out, *sides, mean.shape[1]).permute(0, 1, 4, 2, 3)


class BandGains(nn.Module):
    """FBM: splits a map into frequency bands, and gives all but the lowest a gain at each place."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.convs = nn.ModuleList(_zeroed(nn.Conv2d(channels, 1, 3, padding=1)) for _ in BANDS)

    def forward(self, x: Tensor) -> Tensor:
        """Takes and returns `[batch, channels, height, width]`; the bands are split in float32, or float64."""
        weight, bias = (torch.cat([getattr(conv, name) for conv in self.convs]) for name in ("weight", "bias"))
        first, *later = (2 * torch.sigmoid(F.conv2d(x, weight, bias, padding=1))).split(1, dim=1)
        out, above = first * x, first
        for low, gain in zip(low_passes(x), [*later, None], strict=True):
            below = 1.0 if gain is None else gain
            out = torch.addcmul(out, low, below - above)  # sum of gain x band, each map read once
            above = above if gain is None else gain
        return out.to(x.dtype)


def low_passes(x: Tensor) -> list[Tensor]:
    """Returns what of a map lies below each threshold of the bands, the highest threshold first.

    The thresholds cut a square out of the spectrum, so a low pass is one matrix over the rows and one over the columns:
    for small sides their products are faster than Fourier transforms.

    Args:
        x: `[batch, channels, height, width]`.
    """
    height, width = x.shape[-2:]
    with torch.autocast(x.device.type, enabled=False):
        wide = x if x.dtype == torch.float64 else x.float()
        if max(height, width) <= MATRIX_SIDE:
            sides = [(_low_pass(height, band), _low_pass(width, band)) for band in BANDS]
            return [
                torch.from_numpy(rows).to(wide) @ wide @ torch.from_numpy(columns).to(wide) for rows, columns in sides
            ]
        spectrum = torch.fft.rfft2(wide, norm="ortho")
        radius = torch.maximum(
            torch.fft.fftfreq(height, device=x.device).abs()[:, None], torch.fft.rfftfreq(width, device=x.device)[None]
        )
        masks = [radius < 0.5 / band + 1e-8 for band in BANDS]
        return [torch.fft.irfft2(spectrum * mask, s=(height, width), norm="ortho") for mask in masks]


@lru_cache(maxsize=1024)
def _low_pass(side: int, band: int) -> np.ndarray[Any, Any]:
    """The symmetric matrix that keeps the frequencies of a sequence up to 0.5 / `band`."""
    frequencies = np.abs(np.fft.fftfreq(side)).astype(np.float32)
    kept = frequencies < np.float32(0.5 / band + 1e-8)  # as torch compares: in float32, 1/4 is not below 1/4 + 1e-8
    return np.fft.ifft(kept[:, None] * np.fft.fft(np.eye(side), axis=0), axis=0).real.copy()


def split_bands(x: Tensor) -> list[Tensor]:
    """Returns the bands of a map, the highest first: they add up to it, and no two share a frequency.

    Args:
        x: `[batch, channels, height, width]`.
    """
    edges = [x, *low_passes(x)]
    return [*(above - low for above, low in pairwise(edges)), edges[-1]]


def _zeroed(head: Any) -> Any:
    """A layer whose outputs start at 0, so that the gains made of them start at 1."""
    nn.init.zeros_(head.weight)
    nn.init.zeros_(head.bias)
    return head


# The layer


class FDConv2d(nn.Module):
    """A drop-in for `torch.nn.Conv2d` whose kernel adapts to each picture; see `FDConv` for the options.

    Args:
        in_channels: as `torch.nn.Conv2d` has them, and so on to `dtype`; `groups` must be 1.
        how: the method's options; by default the paper's.

    Raises:
        UsageError: for `groups` above 1, and for more frequency groups than coefficients.
    """

    group_of: Tensor
    """The group of each coefficient, -1 for what is not kept."""

    order: Tensor
    """The number of the order in `ORDERS`, which is saved: it decides what the coefficients mean."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | tuple[int, int],
        stride: int | tuple[int, int] = 1,
        padding: int | tuple[int, int] | str = 0,
        dilation: int | tuple[int, int] = 1,
        groups: int = 1,
        bias: bool = True,
        padding_mode: Literal["zeros", "reflect", "replicate", "circular"] = "zeros",
        device: Any = None,
        dtype: Any = None,
        *,
        how: FDConv | None = None,
    ) -> None:
        super().__init__()
        if groups != 1:
            raise UsageError(
                f"fdconv takes convolutions of one group, not of {groups}: their channels don't share a kernel"
            )
        conv = nn.Conv2d(
            in_channels, out_channels, kernel_size, stride, padding, dilation, groups, bias, padding_mode, device, dtype
        )
        self.how = how = how or FDConv()
        self.in_channels, self.out_channels, self.groups = in_channels, out_channels, 1
        self.kernel_size, self.stride, self.dilation = conv.kernel_size, conv.stride, conv.dilation
        self.padding, self.padding_mode = conv.padding, conv.padding_mode
        self._edges = conv._reversed_padding_repeated_twice
        rows, columns = self.matrix_shape
        of = frequency_groups(rows, columns, how.groups, how.order, how.param_reduction)
        self.register_buffer("group_of", torch.from_numpy(of.astype(np.int64)).to(device), persistent=False)
        self.register_buffer("order", torch.tensor(ORDERS[how.order], dtype=torch.uint8, device=device))
        self.bias = conv.bias
        shape = (how.param_ratio, rows, columns // 2 + 1, 2) if how.param_reduction == 1 else (
            how.param_ratio, int((of >= 0).sum()), 2)  # fmt: skip
        self.coefficients = nn.Parameter(torch.empty(shape, device=device, dtype=dtype))
        positions = math.prod(self.kernel_size)
        with torch.device(device or torch.get_default_device()):
            self.global_gains = GlobalGains(
                in_channels,
                out_channels,
                positions,
                how.groups * how.param_ratio,
                full=how.ksm != "gain",
                norm=how.norm,
            ).to(dtype)
            local = how.ksm == "local+global"
            self.local_gains = LocalGains(in_channels, out_channels * positions).to(dtype) if local else None
            self.band_gains = BandGains(in_channels).to(dtype) if how.fbm and positions > 1 else None
        self.set_kernel(conv.weight)

    @classmethod
    def of(cls, conv: nn.Conv2d | nn.Linear, how: FDConv | None = None) -> FDConv2d:
        """Returns a layer that computes what a convolution does; of a linear layer, `FDLinear`."""
        weight, bias = conv.weight, conv.bias
        kind = FDLinear if isinstance(conv, nn.Linear) else cls
        names = ("stride", "padding", "dilation", "groups", "padding_mode") if isinstance(conv, nn.Conv2d) else ()
        options: dict[str, Any] = {name: getattr(conv, name) for name in names}
        c_out, c_in, *sides = weight.shape
        kernel_size = (sides[0], sides[1]) if sides else 1
        c_in *= options.get("groups", 1)
        made = kind(c_in, c_out, kernel_size, **options, device=weight.device, dtype=weight.dtype, how=how)
        if bias is None:
            made.bias = None
        made.set_kernel(weight.view(made.out_channels, made.in_channels, *made.kernel_size))
        if bias is not None:
            made.bias = nn.Parameter(bias.detach().clone(), bias.requires_grad)
        return made.train(conv.training)

    @property
    def matrix_shape(self) -> tuple[int, int]:
        """Rows and columns of the matrix that is transformed: filters x height, channels x width of the kernel."""
        return self.out_channels * self.kernel_size[0], self.in_channels * self.kernel_size[1]

    @property
    def scale(self) -> float:
        """What stored coefficients are multiplied by; it sets how far a step of the optimiser moves the kernel."""
        size = max(1, min(self.in_channels, self.out_channels) // 2)
        if self.how.order == "official" and self.how.param_reduction < 1:
            return 1 / (self.how.groups * self.how.param_ratio)
        return float(size) if self.how.order == "official" else size / self.how.param_ratio

    @property
    def weight(self) -> Tensor:
        """The kernel with all gains at 1, `[out_channels, in_channels, height, width]`."""
        gains = torch.ones(1, self.how.groups * self.how.param_ratio, device=self.coefficients.device)
        return self.kernels(gains)[0]

    def set_kernel(self, kernel: Tensor) -> None:
        """Stores the coefficients of a kernel `[out_channels, in_channels, height, width]`, in all copies."""
        with torch.no_grad():
            matrix = kernel.double().permute(0, 2, 1, 3).reshape(self.matrix_shape)
            spectrum = torch.view_as_real(torch.fft.rfft2(matrix))
            if self.how.param_reduction < 1:
                spectrum = spectrum[self.group_of >= 0]
            stored = max(1, min(self.in_channels, self.out_channels) // 2)
            self.coefficients.copy_((spectrum / stored).expand_as(self.coefficients))

    def kernels(self, gains: Tensor) -> Tensor:
        """Returns the kernels for gains of the frequency groups (FDW).

        Args:
            gains: `[batch, param_ratio * groups]`.

        Returns:
            `[batch, out_channels, in_channels, height, width]`.
        """
        rows, columns = self.matrix_shape
        height, width = self.kernel_size
        with torch.autocast(self.coefficients.device.type, enabled=False):
            wide = torch.float64 if self.coefficients.dtype == torch.float64 else torch.float32
            stored = torch.view_as_complex((self.coefficients.to(wide) * self.scale).contiguous())
            if self.how.param_reduction < 1:
                full = stored.new_zeros(len(stored), rows, columns // 2 + 1)
                full[:, self.group_of >= 0] = stored
                stored = full
            copies = gains.to(wide).view(len(gains), self.how.param_ratio, self.how.groups)
            places = self.group_of.clamp_min(0)
            spectrum = sum(copies[:, copy][:, places] * stored[copy] for copy in range(self.how.param_ratio))
            matrices = torch.fft.irfft2(spectrum, s=(rows, columns))
        return matrices.view(len(gains), self.out_channels, height, self.in_channels, width).transpose(2, 3)

    def adapted(self, mean: Tensor) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """Returns what the statistics of pictures make of the kernel.

        Args:
            mean: the channels' means, `[batch, in_channels]`.

        Returns:
            the kernels `[batch, out_channels, in_channels, height, width]`, and gains of channels and of filters
            `[batch, ...]`, which are still to be applied.
        """
        gains = self.global_gains(mean)
        kernels = self.kernels(gains["groups"]).to(mean.dtype)
        if "positions" in gains:
            kernels = kernels * gains["positions"].view(-1, 1, 1, *self.kernel_size)
        if self.local_gains is not None:
            kernels = kernels * self.local_gains(mean, self.out_channels, self.kernel_size)
        return kernels, gains.get("channels"), gains.get("filters")

    def forward(self, x: Tensor) -> Tensor:
        """Takes `[batch, in_channels, height, width]`; each picture's answer is its own."""
        mean = x.mean((2, 3))
        if self.band_gains is not None:
            x = self.band_gains(x)
        part = max(1, KERNEL_ELEMENTS // math.prod((*self.matrix_shape,)))
        norm_needs_all = self.training and self.how.norm == "batch"
        if len(x) <= part or norm_needs_all:
            return self._convolve(x, mean)
        return torch.cat([self._convolve(*both) for both in zip(x.split(part), mean.split(part), strict=True)])

    def _convolve(self, x: Tensor, mean: Tensor) -> Tensor:
        kernels, channels, filters = self.adapted(mean)
        in_kernel = math.prod(self.matrix_shape) < (self.in_channels + self.out_channels) * x.shape[2] * x.shape[3]
        return self.convolve(x, kernels, channels, filters, in_kernel=in_kernel)

    def convolve(
        self, x: Tensor, kernels: Tensor, channels: Tensor | None, filters: Tensor | None, *, in_kernel: bool
    ) -> Tensor:
        """Applies a kernel to each picture, with the gains of channels and filters in the kernels or on the maps."""
        if channels is not None and filters is not None:
            if in_kernel:
                kernels = kernels * channels[:, None, :, None, None] * filters[:, :, None, None, None]
            else:
                x = x * channels[:, :, None, None]
        padding: Any = self.padding
        if self.padding_mode != "zeros":
            x, padding = F.pad(x, self._edges, mode=self.padding_mode), 0
        joined = x.reshape(1, -1, *x.shape[2:])
        out = F.conv2d(joined, kernels.flatten(0, 1), None, self.stride, padding, self.dilation, len(x))
        out = out.view(len(x), self.out_channels, *out.shape[2:])
        if filters is not None and not in_kernel:
            out = out * filters[:, :, None, None]
        return out if self.bias is None else out + self.bias.view(1, -1, 1, 1)

    def freeze(self, mean: Tensor) -> nn.Conv2d:
        """Returns the plain convolution that this layer is for given statistics.

        What FBM does at each place is no convolution; it is left out, which is exact while its gains are 1.

        Args:
            mean: the channels' means, `[in_channels]`, such as their averages over pictures.
        """
        with torch.no_grad():
            training, _ = self.training, self.eval()
            kernels, channels, filters = self.adapted(mean[None])
            self.train(training)
            if channels is not None and filters is not None:
                kernels = kernels * channels[:, None, :, None, None] * filters[:, :, None, None, None]
            plain = nn.Conv2d(
                self.in_channels, self.out_channels, self.kernel_size, self.stride, self.padding, self.dilation,  # type: ignore[arg-type]
                bias=self.bias is not None, padding_mode=self.padding_mode, device=mean.device, dtype=kernels.dtype,
            )  # fmt: skip
            plain.weight.copy_(kernels[0])
            if plain.bias is not None and self.bias is not None:
                plain.bias.copy_(self.bias)
        return plain

    def _load_from_state_dict(self, state: dict[str, Any], prefix: str, *rest: Any) -> None:
        order = state.get(prefix + "order")
        if order is not None and int(order) != ORDERS[self.how.order]:
            saved = next(name for name, number in ORDERS.items() if number == int(order))
            raise UsageError(
                f"{prefix[:-1]} was saved with order={saved!r}, so its groups differ from {self.how.order!r}"
            )
        super()._load_from_state_dict(state, prefix, *rest)

    def extra_repr(self) -> str:
        """The shape and the options that differ from the defaults."""
        return f"{self.in_channels}, {self.out_channels}, kernel_size={self.kernel_size}, {self.how.label}"


class FDLinear(FDConv2d):
    """A linear layer as a 1x1 convolution over its tokens: `[batch, ..., channels]`, or one vector for each picture."""

    def forward(self, x: Tensor) -> Tensor:
        """Returns `[batch, ..., out_channels]`."""
        tokens = x.flatten(1, -2).transpose(1, 2) if x.dim() > 2 else x[:, :, None]
        out = super().forward(tokens[..., None])[..., 0].transpose(1, 2)
        return out.reshape(*x.shape[:-1], self.out_channels)


# Networks


@dataclass(frozen=True)
class Converted:
    """A layer that was converted, or why it was left."""

    name: str
    """The layer."""

    left: str = ""
    """Why it was left as it is; empty if it was converted."""

    added: int = 0
    """Parameters that it has more than before."""

    added_bytes: int = 0
    """Bytes that these take."""


def paper_layers(name: str, layer: nn.Module) -> bool:
    """The rule of the authors' code: more than 16 channels on both sides, kernels of 1x1 and 3x3; no linear layers."""
    return (
        isinstance(layer, nn.Conv2d)
        and min(layer.in_channels, layer.out_channels) > 16
        and layer.kernel_size in ((1, 1), (3, 3))
    )


def convert_fdconv(
    net: nn.Module, where: Callable[[str, nn.Module], bool] = paper_layers, how: FDConv | None = None
) -> tuple[nn.Module, list[Converted]]:
    """Returns a copy whose layers adapt, which computes what the network does until it is trained.

    Args:
        net: any network.
        where: says of a convolution or a linear layer, by its name and itself, whether to convert it.
        how: the method's options.

    Returns:
        the copy, and a line for each layer that `where` chose.
    """
    how = how or FDConv()
    made = copy.deepcopy(net)
    chosen = [
        (name, layer)
        for name, layer in made.named_modules()
        if isinstance(layer, nn.Conv2d | nn.Linear) and where(name, layer)
    ]
    report = []
    for name, layer in chosen:
        left = _why_left(layer, how)
        if left:
            report.append(Converted(name, left))
            continue
        fresh = FDConv2d.of(layer, how)
        added = _parameters(fresh) - _parameters(layer)
        report.append(Converted(name, "", added, added * fresh.coefficients.element_size()))
        if not name:
            return fresh, report
        parent, _, child = name.rpartition(".")
        setattr(made.get_submodule(parent), child, fresh)
    return made, report


def _why_left(layer: nn.Conv2d | nn.Linear, how: FDConv) -> str:
    if isinstance(layer, nn.Linear):
        rows, columns = layer.out_features, layer.in_features
        return "" if type(layer) is nn.Linear else "a linear layer of its own kind"
    if layer.groups != 1:
        return f"{layer.groups} groups: its channels don't share a kernel"
    pointwise = layer.kernel_size == layer.stride == (1, 1)
    if type(layer) is not nn.Conv2d and not pointwise:
        return f"{type(layer).__name__} may pad in its own way"
    rows, columns = layer.out_channels * layer.kernel_size[0], layer.in_channels * layer.kernel_size[1]
    coefficients = int(rows * (columns // 2 + 1) * how.param_reduction)
    return f"{coefficients} coefficients, fewer than {how.groups} groups" if how.groups > coefficients else ""


def _parameters(layer: nn.Module) -> int:
    return sum(parameter.numel() for parameter in layer.parameters())


def freeze_fdconv(net: nn.Module, *inputs: Any) -> nn.Module:
    """Returns a copy with plain convolutions, each for the average statistics of what it reads in one call.

    Args:
        net: a network with `FDConv2d` layers.
        inputs: what it is called with: pictures like those to come.
    """
    means: dict[str, Tensor] = {}
    layers = {name: layer for name, layer in net.named_modules() if isinstance(layer, FDConv2d)}

    def keep(name: str) -> Callable[..., None]:
        def hook(layer: FDConv2d, given: tuple[Tensor]) -> None:
            x = given[0]
            means[name] = x.flatten(0, -2).mean(0) if isinstance(layer, FDLinear) else x.mean((0, 2, 3))

        return hook

    hooks = [layer.register_forward_pre_hook(keep(name)) for name, layer in layers.items()]
    with torch.no_grad():
        net(*inputs)
    for hook in hooks:
        hook.remove()
    made = copy.deepcopy(net)
    for name, layer in layers.items():
        plain: nn.Module = layer.freeze(means[name])
        if isinstance(layer, FDLinear):
            plain = _linear(plain)
        parent, _, child = name.rpartition(".")
        setattr(made.get_submodule(parent), child, plain)
    return made


def _linear(conv: Any) -> nn.Linear:
    made = nn.Linear(conv.in_channels, conv.out_channels, conv.bias is not None, conv.weight.device, conv.weight.dtype)
    made.weight, made.bias = nn.Parameter(conv.weight.flatten(1)), conv.bias
    return made


def rebuild(net: nn.Module, saved: Mapping[str, Any]) -> nn.Module:
    """Makes the layers of an adapted network again from what its folder says."""
    layers = set(saved["layers"])
    made, report = convert_fdconv(net, lambda name, _: name in layers, FDConv(**saved["options"]))
    if missing := layers - {line.name for line in report if not line.left}:
        raise UsageError(f"the folder was adapted at {', '.join(sorted(missing)[:4])}, which the network lacks")
    return made


networks.ADAPTERS["fdconv"] = rebuild


# The authors' checkpoints

_OFFICIAL = {
    "dft_weight": "coefficients",
    "KSM_Global.fc": "global_gains.squeeze",
    "KSM_Global.bn": "global_gains.norm",
    "KSM_Global.relu": "global_gains.act",
    "KSM_Global.channel_fc": "global_gains.channels",
    "KSM_Global.filter_fc": "global_gains.filters",
    "KSM_Global.spatial_fc": "global_gains.positions",
    "KSM_Global.kernel_fc": "global_gains.groups",
    "KSM_Local.conv": "local_gains.conv",
    "KSM_Local.norm": "local_gains.norm",
    "FBM.freq_weight_conv_list": "band_gains.convs",
}


def official_options(groups: int = 64) -> FDConv:
    """Returns the options of the authors' code: its order of the coefficients, and batch normalisation."""
    return replace(FDConv(groups), order="official", norm="batch")


def load_official(net: nn.Module, state: Mapping[str, Tensor], where: str = "the checkpoint") -> None:
    """Loads weights that the authors' code saved.

    Args:
        net: a network whose layers were converted with `official_options`; all other names are the checkpoint's.
        state: the weights by name: `layer1.0.conv2.dft_weight`, `layer1.0.conv2.KSM_Global.fc.weight`, ...
        where: what they come from, for the errors.

    Raises:
        UsageError: for weights that are missing, left over or of another shape, and for layers in another order.
    """
    layers = {name: layer for name, layer in net.named_modules() if isinstance(layer, FDConv2d)}
    for name, layer in layers.items():
        if layer.how.order != "official":
            raise UsageError(f"{name} has order={layer.how.order!r}; convert with official_options() for {where}")
    renamed = {}
    for name, value in state.items():
        for theirs, mine in _OFFICIAL.items():
            name = name.replace(theirs, mine)
        if ".global_gains." in f".{name}" and name.endswith("weight") and value.dim() == 4:
            value = value.flatten(1)  # their heads are 1x1 convolutions
        renamed[name] = value
    renamed |= {f"{name}.order".lstrip("."): layer.order for name, layer in layers.items()}
    weights.put(net, renamed, where)
