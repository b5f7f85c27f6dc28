"""Native CPU kernels: quantized linear layers, attention over a KV cache, and a whole decoder pass in one call.

They are optional: ask `available()`. A row's results have the same bits at any width of the pass.
"""

from outlay.kernels.attention import AttentionPlan, AttentionSpan, KeyValues, attend, store
from outlay.kernels.functions import Table, activate, exp, layer_norm, rms_norm
from outlay.kernels.fused import FusedDecoder, FusedLayer, FusedLinear, FusedNorm, FusedWeights, PassInputs, Top
from outlay.kernels.native import available, isa, set_threads, threads
from outlay.kernels.packing import (
    PackedLinear,
    PackedPart,
    pack_bf16,
    pack_f32,
    pack_q4,
    pack_q8,
    quantize_q4,
    quantize_q8,
    stack,
)
from outlay.kernels.sampling import TokenDraw, Truncation, draw, probs

__all__ = [
    "AttentionPlan",
    "AttentionSpan",
    "FusedDecoder",
    "FusedLayer",
    "FusedLinear",
    "FusedNorm",
    "FusedWeights",
    "KeyValues",
    "PackedLinear",
    "PackedPart",
    "PassInputs",
    "Table",
    "TokenDraw",
    "Top",
    "Truncation",
    "activate",
    "attend",
    "available",
    "draw",
    "exp",
    "isa",
    "layer_norm",
    "pack_bf16",
    "pack_f32",
    "pack_q4",
    "pack_q8",
    "probs",
    "quantize_q4",
    "quantize_q8",
    "rms_norm",
    "set_threads",
    "stack",
    "store",
    "threads",
]
