"""Native CPU kernels: quantized linear layers, attention over a KV cache, and a whole decoder pass in one call.

They are optional: ask `available()`. A row's results have the same bits at any width of the pass.
"""

from outlay.kernels.attention import AttentionPlan, AttentionSpan, KeyValues, attend, store
from outlay.kernels.codebook import VECTORS, CodebookEntries
from outlay.kernels.coding import ARITHMETIC, AnsReader, CoderWeights, ans_encode, coder_weights, intervals
from outlay.kernels.functions import Table, activate, exp, layer_norm, nearest, rms_norm
from outlay.kernels.fused import FusedDecoder, FusedLayer, FusedLinear, FusedNorm, FusedWeights, PassInputs, Top
from outlay.kernels.native import available, choose, isa, set_threads, threads
from outlay.kernels.packing import (
    PackedLinear,
    PackedPart,
    pack_bf16,
    pack_codebook,
    pack_f32,
    pack_q4,
    pack_q8,
    pack_sparse,
    quantize_q4,
    quantize_q8,
    stack,
)
from outlay.kernels.sampling import TokenDraw, Truncation, draw, probs

__all__ = [
    "ARITHMETIC",
    "VECTORS",
    "AnsReader",
    "AttentionPlan",
    "AttentionSpan",
    "CodebookEntries",
    "CoderWeights",
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
    "ans_encode",
    "attend",
    "available",
    "choose",
    "coder_weights",
    "draw",
    "exp",
    "intervals",
    "isa",
    "layer_norm",
    "nearest",
    "pack_bf16",
    "pack_codebook",
    "pack_f32",
    "pack_q4",
    "pack_q8",
    "pack_sparse",
    "probs",
    "quantize_q4",
    "quantize_q8",
    "rms_norm",
    "set_threads",
    "stack",
    "store",
    "threads",
]
