"""Linear layers: `pack` puts a weight into a format and returns the layer that multiplies with it.

This is the one place where kernels are chosen: our own where they run, torch's elsewhere. Every `Linear` takes
activations [n, in] of any float dtype and returns [n, out] in the same dtype; rows never influence each other.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from outlay import kernels
from outlay.errors import UsageError
from outlay.kernels import PackedLinear
from outlay.models.quantized import GROUP, QuantizedWeight, fits, quantize
from outlay.models.stored import StoredMatrix

FORMATS = ("float32", "bfloat16", "float16", "int8", "int4")
NATIVE_FLOATS = {"float32": kernels.pack_f32, "bfloat16": kernels.pack_bf16}
FLOATS = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


class Linear:
    """x [n, in] -> x W^T + b [n, out]."""

    format: str
    in_features: int
    out_features: int
    nbytes: int

    def __call__(self, x: Tensor) -> Tensor:
        """x [n, in] -> [n, out], in the dtype of x."""
        raise NotImplementedError


class FloatLinear(Linear):
    """A weight of floats. From `wide_from` rows on, it is multiplied in float32 (0: never)."""

    def __init__(self, weight: Tensor, bias: Tensor | None, wide_from: int = 0) -> None:
        self.weight, self.wide_from = weight, wide_from
        self.bias = bias.to(weight.dtype) if bias is not None else None
        self.format = str(weight.dtype).removeprefix("torch.")
        self.out_features, self.in_features = weight.shape
        self.nbytes = weight.nbytes

    def __call__(self, x: Tensor) -> Tensor:
        """x [n, in] -> [n, out], in the dtype of x."""
        weight, bias = self.weight, self.bias
        if x.dtype == weight.dtype:
            return F.linear(x, weight, bias)
        if self.wide_from and x.shape[0] >= self.wide_from:
            return F.linear(x.float(), weight.float(), bias.float() if bias is not None else None).to(x.dtype)
        return F.linear(x.to(weight.dtype), weight, bias).to(x.dtype)


class Int4Linear(Linear):
    """q4 through torch's int4 products: bfloat16 activations, scales and minimums rounded to bfloat16."""

    format = "int4"

    def __init__(self, weight: QuantizedWeight, bias: Tensor | None) -> None:
        assert weight.mins is not None
        self.out_features, self.in_features = weight.shape
        if weight.q.device.type == "cpu":
            self.packed = torch.ops.aten._convert_weight_to_int4pack_for_cpu(weight.q.to(torch.int32), 2)
            self._product = torch.ops.aten._weight_int4pack_mm_for_cpu
        else:
            self.packed = torch.ops.aten._convert_weight_to_int4pack(nibbles(weight.q), 2)
            self._product = torch.ops.aten._weight_int4pack_mm
        scales, mins = weight.scales.T.float(), weight.mins.T.float()
        # torch's product is (q - 8) * scale + zero
        self.scales_and_zeros = torch.stack((scales, mins + 8 * scales), dim=-1).to(torch.bfloat16)
        self.bias = bias
        self.nbytes = self.packed.nbytes + self.scales_and_zeros.nbytes

    def __call__(self, x: Tensor) -> Tensor:
        """x [n, in] -> [n, out], in the dtype of x."""
        y = self._product(x.to(torch.bfloat16), self.packed, GROUP, self.scales_and_zeros).to(x.dtype)
        return y if self.bias is None else y.add_(self.bias)


class Int8Linear(Linear):
    """q8 rounded again, to one scale for each row of the weight, through torch's int8 product.

    From `wide_from` rows on, it is multiplied in float32 (0: never).
    """

    format = "int8"

    def __init__(self, weight: Tensor, scales: Tensor, bias: Tensor | None, wide_from: int = 0) -> None:
        self.weight, self.scales, self.bias, self.wide_from = weight, scales, bias, wide_from
        self.out_features, self.in_features = weight.shape
        self.nbytes = weight.nbytes + scales.nbytes

    def __call__(self, x: Tensor) -> Tensor:
        """x [n, in] -> [n, out], in the dtype of x."""
        if self.wide_from and x.shape[0] >= self.wide_from:
            y = F.linear(x.float(), self.weight.float()).mul_(self.scales).to(x.dtype)
        else:
            y = torch.ops.aten._weight_int8pack_mm(x.to(torch.bfloat16), self.weight, self.scales).to(x.dtype)
        return y if self.bias is None else y.add_(self.bias)


class NativeLinear(Linear):
    """Weights in the layouts of our own kernels; float32 activations, and the same bits for a row at any width."""

    def __init__(self, packed: PackedLinear, bias: Tensor | None, format: str) -> None:
        self.packed, self.bias, self.format = packed, bias, format
        self.out_features, self.in_features = packed.out_features, packed.in_features
        self.nbytes = packed.nbytes

    def __call__(self, x: Tensor) -> Tensor:
        """x [n, in] -> [n, out], in the dtype of x."""
        return self.packed(x.float(), self.bias).to(x.dtype)


class SplitLinear(Linear):
    """Parts that are held in different formats, one below the other; torch multiplies at least one of them."""

    def __init__(self, parts: Sequence[Linear]) -> None:
        self.parts = tuple(parts)
        self.format = "+".join(dict.fromkeys(part.format for part in parts))
        self.in_features = parts[0].in_features
        self.out_features = sum(part.out_features for part in parts)
        self.nbytes = sum(part.nbytes for part in parts)

    def __call__(self, x: Tensor) -> Tensor:
        """x [n, in] -> [n, out], in the dtype of x."""
        return torch.cat([part(x) for part in self.parts], dim=-1)


def stack(layers: Sequence[Linear]) -> Linear:
    """Returns one layer of the output channels of all layers, which read the same input: native if all of them are."""
    if len(layers) == 1:
        return layers[0]
    native = [layer for layer in layers if isinstance(layer, NativeLinear)]
    if len(native) < len(layers):
        return SplitLinear(layers)
    packed = kernels.stack([layer.packed for layer in native])
    biases = [layer.bias for layer in native if layer.bias is not None]
    assert len(biases) in (0, len(native)), "either all parts have a bias or none"
    formats = dict.fromkeys(layer.format for layer in native)
    return NativeLinear(packed, torch.cat(biases) if biases else None, "+".join(formats))


def pack(
    weight: Tensor | StoredMatrix,
    format: str,
    bias: Tensor | None = None,
    *,
    device: torch.device | str = "cpu",
    exact_output: bool = False,
) -> Linear:
    """Puts a weight into a format.

    If the format cannot hold the weight (rows that do not divide into groups, a device without packed products), the
    nearest wider format does.

    Args:
        weight: [out, in].
        format: one of `FORMATS`.
        bias: [out].
        device: where the layer runs.
        exact_output: whether results must not be rounded to bfloat16, as an LM head's must not.
    """
    device = torch.device(device)
    bias = bias.to(device, torch.float32) if bias is not None else None
    if format in ("int4", "int8"):
        packed = _pack_integers(weight, format, bias, device, exact_output)
        if packed is not None:
            return packed
        format = "float16" if exact_output or device.type == "cpu" else "bfloat16"
    native = format in NATIVE_FLOATS and device.type == "cpu" and native_kernels()
    if isinstance(weight, StoredMatrix):
        floats = weight.packed_floats() if native and format == "bfloat16" else None
        if floats is not None:
            return NativeLinear(floats, bias, format)
        weight = weight.dequantize()
    dtype = FLOATS[format]
    if native:
        return NativeLinear(NATIVE_FLOATS[format](weight), bias, format)
    return FloatLinear(weight.to(device, dtype).contiguous(), bias, _wide_from(dtype, device))


def _pack_integers(
    weight: Tensor | StoredMatrix, format: str, bias: Tensor | None, device: torch.device, exact_output: bool
) -> Linear | None:
    if device.type != "cpu" and not _gpu_product(format, device):
        return None
    if isinstance(weight, Tensor):
        if not fits(weight):
            return None
        weight = quantize(weight, "q4" if format == "int4" else "q8")
    if device.type == "cpu" and native_kernels():
        return NativeLinear(weight.packed(), bias, format)
    if exact_output:
        return None
    plain = weight.plain()
    if plain.mins is not None:
        return Int4Linear(plain.to(device), bias) if plain.shape[0] % 16 == 0 else None
    return _int8_by_row(plain, bias, device)


def _gpu_product(format: str, device: torch.device) -> bool:
    """Tells whether torch multiplies a packed format here: on CUDA from Ampere on; int8 only in newer versions."""
    name = f"aten::_weight_{format}pack_mm"
    return (
        device.type == "cuda"
        and torch.cuda.get_device_capability(device) >= (8, 0)
        and torch._C._dispatch_has_kernel_for_dispatch_key(name, "CUDA")
    )


def nibbles(q: Tensor) -> Tensor:
    """q uint8 [n, k] in 0..15 -> uint8 [n, k / 2], the even columns in the upper halves."""
    even, odd = q.unflatten(1, (-1, 2)).unbind(-1)
    return even << 4 | odd


def _int8_by_row(
    weight: QuantizedWeight, bias: Tensor | None, device: torch.device, tolerance: float = 0.02
) -> Linear | None:
    """Rounds to one scale a row, or returns None if that changes a group by more than `tolerance` on average."""
    exact = weight.dequantize()
    scales = (exact.abs().amax(1, keepdim=True) / 127).clamp_(min=1e-10).bfloat16()
    q = (exact / scales.float()).round_().clamp_(-127, 127)
    change = torch.linalg.vector_norm((q * scales.float() - exact).unflatten(1, (-1, GROUP)), dim=-1)
    size = torch.linalg.vector_norm(exact.unflatten(1, (-1, GROUP)), dim=-1).clamp_(min=1e-20)
    if (change / size).mean() > tolerance:
        return None
    wide_from = 0 if device.type != "cpu" or fast_bfloat16() else 48
    return Int8Linear(q.to(device, torch.int8).contiguous(), scales.squeeze(1).to(device), bias, wide_from)


def weight_of(linear: Linear) -> Tensor:
    """Returns the weights of a linear layer, float32 [out, in].

    Raises:
        UsageError: The layer is held in a format that can't be dequantized here.
    """
    if isinstance(linear, NativeLinear):
        return linear.packed.dequantize()
    if isinstance(linear, FloatLinear):
        return linear.weight.float()
    raise UsageError(f"weights held as {linear.format} can't be made floats again; load the model with dtype float32")


def _wide_from(dtype: torch.dtype, device: torch.device) -> int:
    """Returns the rows from which converting the weight to float32 first is quicker (0: never).

    Measured on a processor with AVX2, for the 120 layers of SmolLM2-135M on one thread, in milliseconds at 4, 8 and 16
    rows: bfloat16 55, 125, 255; float16 54, 116, 230; float32 52, 62, 83, and about 15 for the conversion. Likewise for
    the 48 rows of int8: 361 at 64 rows against 245. Processors that multiply bfloat16 seldom multiply float16 as well.
    """
    if device.type != "cpu" or dtype == torch.float32 or (dtype == torch.bfloat16 and fast_bfloat16()):
        return 0
    return 8


def native_kernels() -> bool:
    """Tells whether our own kernels run here; without them torch's products do."""
    return kernels.available()


def fast_bfloat16() -> bool:
    """Tells whether this processor multiplies bfloat16 matrices natively."""
    return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
