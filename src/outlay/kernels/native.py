"""Loads the native library and mirrors its structures (see native/abi.h for what the fields mean)."""

import ctypes
import functools
import os
import zlib
from ctypes import (
    POINTER,
    Structure,
    c_char_p,
    c_double,
    c_float,
    c_int32,
    c_int64,
    c_uint16,
    c_uint32,
    c_uint64,
    c_void_p,
)
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path

from torch import Tensor


class CodebookStruct(Structure):
    """The entries of a codebook."""

    _fields_ = [
        ("entries", c_void_p),
        ("residual", c_void_p),
        ("planes", c_void_p),
        ("residual_planes", c_void_p),
        ("v", c_int32),
        ("bits", c_int32),
        ("residual_bits", c_int32),
        ("step", c_uint16),
    ]


class LinearStruct(Structure):
    """The weights of output channels that share a format."""

    _fields_ = [
        ("weights", c_void_p),
        ("format", c_int32),
        ("m", c_int32),
        ("k", c_int32),
        ("kept", c_int32),
        ("codebook", POINTER(CodebookStruct)),
    ]


class StackStruct(Structure):
    """A linear layer of parts, with its bias."""

    _fields_ = [
        ("parts", POINTER(LinearStruct)),
        ("n_parts", c_int32),
        ("m", c_int32),
        ("k", c_int32),
        ("bias", c_void_p),
    ]


class TableStruct(Structure):
    """A table of quantized rows."""

    _fields_ = [("q", c_void_p), ("scales", c_void_p), ("mins", c_void_p), ("k", c_int64)]


class AttentionSpanStruct(Structure):
    """A run of keys and values, and the rows of the pass that attend to it."""

    _fields_ = [
        ("start", c_int64),
        ("length", c_int64),
        ("slots", c_void_p),
        ("n_rows", c_int64),
        ("rows", c_void_p),
        ("mask", c_void_p),
        ("limits", c_void_p),
    ]


class AttentionPlanStruct(Structure):
    """The spans of a pass."""

    _fields_ = [("spans", POINTER(AttentionSpanStruct)), ("n_spans", c_int64)]


class KVCacheStruct(Structure):
    """One layer's KV cache."""

    _fields_ = [
        ("k", c_void_p),
        ("v", c_void_p),
        ("k_scales", c_void_p),
        ("v_scales", c_void_p),
        ("head_stride", c_int64),
        ("slot_stride", c_int64),
        ("format", c_int32),
        ("group", c_int32),
    ]


class NormStruct(Structure):
    """RMSNorm, or LayerNorm where there is a bias; the identity where there is no weight."""

    _fields_ = [("weight", c_void_p), ("bias", c_void_p)]


class LayerStruct(Structure):
    """One layer of a decoder with its KV cache."""

    _fields_ = [
        ("attn_norm", NormStruct),
        ("qkv", StackStruct),
        ("q_norm", c_void_p),
        ("k_norm", c_void_p),
        ("out", StackStruct),
        ("post_attn_norm", NormStruct),
        ("mlp_norm", NormStruct),
        ("gate_up", StackStruct),
        ("down", StackStruct),
        ("post_mlp_norm", NormStruct),
        ("kv", KVCacheStruct),
        ("plan", c_int64),
        ("cos", c_void_p),
        ("sin", c_void_p),
    ]


class ModelStruct(Structure):
    """A decoder."""

    _fields_ = [
        ("n_layers", c_int32),
        ("hidden_size", c_int32),
        ("n_heads", c_int32),
        ("n_kv_heads", c_int32),
        ("head_dim", c_int32),
        ("rope_dim", c_int32),
        ("intermediate_size", c_int32),
        ("activation", c_int32),
        ("gated", c_int32),
        ("eps", c_float),
        ("attention_scale", c_float),
        ("attention_softcap", c_float),
        ("logit_softcap", c_float),
        ("embed_scale", c_float),
        ("residual_scale", c_float),
        ("logit_scale", c_float),
        ("wide_qk_norms", c_int32),
        ("layers", POINTER(LayerStruct)),
        ("final_norm", NormStruct),
        ("lm_head", LinearStruct),
        ("embed", TableStruct),
        ("fuse", StackStruct),
    ]


class SamplingStruct(Structure):
    """How probabilities are made of logits."""

    _fields_ = [("temperature", c_float), ("top_k", c_int32), ("top_p", c_double), ("min_p", c_double)]


class DrawStruct(Structure):
    """A token to draw from a row's probabilities."""

    _fields_ = [("row", c_int64), ("sampling", SamplingStruct), ("uniform", c_double)]


class AnsStreamStruct(Structure):
    """A stream of coded symbols."""

    _fields_ = [("state", c_uint64), ("words", c_void_p), ("left", c_int64)]


class PassStruct(Structure):
    """The inputs and outputs of one pass."""

    _fields_ = [
        ("n", c_int64),
        ("residual", c_void_p),
        ("tokens", c_void_p),
        ("inputs_embeds", c_void_p),
        ("positions", c_void_p),
        ("slots", c_void_p),
        ("plans", POINTER(AttentionPlanStruct)),
        ("n_plans", c_int64),
        ("layer_begin", c_int64),
        ("layer_end", c_int64),
        ("n_lm_head_rows", c_int64),
        ("lm_head_rows", c_void_p),
        ("logits", c_void_p),
        ("top_k", c_int64),
        ("top_tokens", c_void_p),
        ("top_logits", c_void_p),
        ("lse", c_void_p),
        ("n_picks", c_int64),
        ("picks", c_void_p),
        ("picked", c_void_p),
        ("n_draws", c_int64),
        ("draws", POINTER(DrawStruct)),
        ("drawn", c_void_p),
        ("hidden_states", c_void_p),
        ("weights", c_void_p),
        ("weight_stride", c_int64),
    ]


_SIGNATURES: dict[str, tuple[list[type], type | None]] = {
    "outlay_abi": ([], c_uint32),
    "outlay_choose": ([c_char_p], c_char_p),
    "outlay_set_threads": ([c_int32], None),
    "outlay_threads": ([], c_int32),
    "outlay_linear": ([POINTER(StackStruct), c_void_p, c_int64, c_int32, c_void_p], c_int32),
    "outlay_rms_norm": ([c_void_p, c_void_p, c_int64, c_int32, c_float, c_void_p], c_int32),
    "outlay_layer_norm": ([*[c_void_p] * 3, c_int64, c_int32, c_float, c_void_p], c_int32),
    "outlay_activate": ([c_int32, c_void_p, c_void_p, c_int32, c_void_p], c_int32),
    "outlay_exp": ([c_void_p, c_int32, c_void_p], c_int32),
    "outlay_nearest": ([c_void_p, c_int64, c_int32, c_void_p, c_void_p, c_int32, c_void_p], c_int32),
    "outlay_rows": ([POINTER(TableStruct), c_void_p, c_int64, c_void_p], None),
    "outlay_attend": (
        [
            c_void_p,
            POINTER(KVCacheStruct),
            c_int64,
            *[c_int32] * 3,
            *[c_float] * 2,
            POINTER(AttentionPlanStruct),
            *[c_void_p] * 3,
            c_int64,
        ],
        c_int32,
    ),
    "outlay_store": ([POINTER(KVCacheStruct), *[c_void_p] * 3, c_int64, *[c_int32] * 2], c_int32),
    "outlay_draw": ([c_void_p, c_int64, POINTER(DrawStruct), c_int64, c_void_p], c_int32),
    "outlay_probs": ([c_void_p, *[c_int64] * 2, POINTER(SamplingStruct), c_void_p], c_int32),
    "outlay_coder_weights": ([c_void_p, *[c_int64] * 3, *[c_void_p] * 4], c_int32),
    "outlay_intervals": ([c_void_p, *[c_int64] * 2, *[c_void_p] * 2], c_int32),
    "outlay_ans_encode": ([c_void_p, c_int64, c_void_p], c_int64),
    "outlay_ans_decode": ([POINTER(AnsStreamStruct), *[c_void_p] * 2, *[c_int64] * 2, c_void_p], c_int32),
    "outlay_pass": ([POINTER(ModelStruct), POINTER(PassStruct)], c_int32),
}


@functools.cache
def _load() -> tuple[ctypes.CDLL | None, str]:
    """Returns the library and its instruction set; (None, "none") where there is none."""
    folder = Path(__file__).parent
    path = next((p for suffix in EXTENSION_SUFFIXES if (p := folder / f"_native{suffix}").exists()), None)
    if path is None:
        return None, "none"
    try:
        library = ctypes.CDLL(str(path))
        for name, (arguments, result) in _SIGNATURES.items():
            function = getattr(library, name)
            function.argtypes, function.restype = arguments, result
    except (OSError, AttributeError):  # built for another system, or by another version
        return None, "none"
    if library.outlay_abi() != zlib.crc32((folder / "native" / "abi.h").read_bytes()):
        return None, "none"  # its structures or numbers mean something else
    name = library.outlay_choose(os.environ.get("OUTLAY_ISA", "").encode()).decode()
    return (None, "none") if name == "none" else (library, name)


def isa() -> str:
    """Returns the instruction set in use: "amx", "avx512vnni", "avx2", "neon", or "none".

    The environment variable OUTLAY_ISA sets an upper limit to it. "scalar" and "amx-emulated" run only when it
    names them.
    """
    return _load()[1]


def choose(name: str) -> bool:
    """Has the kernels of one instruction set compute from now on, for tests and benchmarks; tells whether they can.

    Where they can't, those of `isa()` do.
    """
    if library().outlay_choose(name.encode()).decode() == name:
        return True
    library().outlay_choose(isa().encode())
    return False


def available() -> bool:
    """Tells whether the native kernels can be used here."""
    return _load()[0] is not None


def library() -> ctypes.CDLL:
    """Returns the loaded library.

    Raises:
        RuntimeError: Where `available()` is false.
    """
    found = _load()[0]
    if found is None:
        raise RuntimeError("the native kernels are not available: the package was built without a C++ compiler")
    return found


def set_threads(n: int) -> None:
    """Sets how many threads a pass uses, the calling one included."""
    library().outlay_set_threads(n)


def threads() -> int:
    """Returns how many threads a pass uses, the calling one included."""
    return int(library().outlay_threads())


def address(tensor: Tensor | None) -> int | None:
    """Returns where the tensor's data lie, as the structures hold it."""
    return None if tensor is None else tensor.data_ptr()


def check(status: int) -> None:
    """Raises the error that a native call reports by its status."""
    if status:
        raise MemoryError("the native kernels ran out of memory")
