"""The layer: a convolution whose kernel adapts to each picture."""

from __future__ import annotations

import math
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from outlay.errors import UsageError
from outlay.vision.fdconv.frequency_bands import BandGains
from outlay.vision.fdconv.frequency_groups import ORDERS, frequency_groups
from outlay.vision.fdconv.kernel_gains import GlobalGains, LocalGains
from outlay.vision.fdconv.options import FDConv

KERNEL_ELEMENTS = 1 << 24  # of all kernels that are made at once; the batch is cut into parts


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
