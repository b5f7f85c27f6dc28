"""Native CPU kernels: quantized linear layers, attention over a cache, and a whole decoder pass in one call.

They are optional: ask `available()`. Whatever they compute for a row has the same bits at any width of the pass.
"""

from outlay.kernels.attention import Piece, Plan, attend
from outlay.kernels.functions import exp, rms_norm, silu_mul
from outlay.kernels.fused import FusedDecoder, FusedLayer, FusedWeights
from outlay.kernels.native import available, isa, set_threads, threads
from outlay.kernels.packing import (
    PackedLinear,
    pack_bf16,
    pack_f32,
    pack_q4,
    pack_q8,
    quantize_q4,
    quantize_q8,
)

__all__ = [
    "FusedDecoder",
    "FusedLayer",
    "FusedWeights",
    "PackedLinear",
    "Piece",
    "Plan",
    "attend",
    "available",
    "exp",
    "isa",
    "pack_bf16",
    "pack_f32",
    "pack_q4",
    "pack_q8",
    "quantize_q4",
    "quantize_q8",
    "rms_norm",
    "set_threads",
    "silu_mul",
    "threads",
]
