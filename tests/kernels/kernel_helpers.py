"""Layers with random weights, and attention in float64."""

import math
from itertools import pairwise

import torch

from outlay import kernels

PLAIN = ("q4", "q8", "bf16", "f32")
SPARSE = ("sparse_q8", "sparse_q4", "sparse_bf16")
CODEBOOKS = ("codebook", "codebook_of_8", "codebook_with_residual")
FORMATS = (*PLAIN, *SPARSE, *CODEBOOKS, "mixed")


def make_layer(form, m, k, seed=0):
    """A layer in one format; "mixed": of parts in all of them, which end within a tile of channels if m is large."""
    if form == "mixed":
        mixed = ("q4", "codebook", "q8", "sparse_q8", "bf16", "sparse_bf16", "f32")
        parts = [(each, part) for each, part in zip(mixed, cut(m, len(mixed)), strict=True) if part]
        return kernels.stack([make_layer(each, part, k, seed + i) for i, (each, part) in enumerate(parts)])
    if form in CODEBOOKS:
        return make_codebook_layer(m, k, seed, CODES[form])
    weight = torch.randn(m, k, generator=torch.Generator().manual_seed(seed)) * 0.05
    if form in SPARSE:
        return make_sparse_layer(form, weight)
    if form == "q4":
        return kernels.pack_q4(*kernels.quantize_q4(weight))
    if form == "q8":
        return kernels.pack_q8(*kernels.quantize_q8(weight))
    return kernels.pack_bf16(weight) if form == "bf16" else kernels.pack_f32(weight)


# The published shapes have indices of whole bytes, of 12 bits, and residuals of any number of bits.
CODES = {
    "codebook": {"v": 4, "k": 256, "k_res": 0},
    "codebook_of_8": {"v": 8, "k": 1024, "k_res": 8},
    "codebook_with_residual": {"v": 4, "k": 256, "k_res": 16},
}


def make_codebook_layer(m, k, seed, code):
    return kernels.pack_codebook(*codebook_of(m, k, seed, code), m)


def codebook_of(m, inputs, seed, code):
    """Random entries, and random indices of all vectors."""
    v, k, k_res = code["v"], code["k"], code["k_res"]
    random = torch.Generator().manual_seed(seed)
    entries = torch.randint(-90, 91, (k, v), generator=random, dtype=torch.int8)
    residual = torch.randint(-37, 38, (k_res, v), generator=random, dtype=torch.int8) if k_res else None
    vectors = -(-m // v)
    index = torch.randint(0, k, (vectors, inputs), generator=random)
    residual_index = torch.randint(0, k_res, (vectors, inputs), generator=random) if k_res else None
    return kernels.CodebookEntries(entries, residual, 11 * 2.0**-14), index, residual_index


def make_sparse_layer(form, weight, n=2, m=4):
    """Keeps the n largest of every m."""
    mask = torch.zeros_like(weight, dtype=torch.bool).view(-1, m)
    mask = mask.scatter_(1, weight.abs().view(-1, m).topk(n, dim=1).indices, True).view(weight.shape)
    if form == "sparse_bf16":
        return kernels.pack_sparse(weight, mask)
    bits = int(form[-1])
    scales = (weight.view(len(weight), -1, 32).abs().amax(2) / (2 ** (bits - 1) - 1)).half()
    wide = scales.float().repeat_interleave(32, 1)
    return kernels.pack_sparse((weight / wide).round().to(torch.int8), mask, scales, bits)


def cut(m, n):
    """Cuts m into n numbers that are no multiples of each other."""
    bounds = [m * i * i // (n * n) for i in range(n + 1)]
    return [end - begin for begin, end in pairwise(bounds)]


def rows_of(n, k, seed=1):
    return torch.randn(n, k, generator=torch.Generator().manual_seed(seed))


def visible_keys(spans, n):
    """For each row, the slots that it sees, in order."""
    seen = [[] for _ in range(n)]
    for span in spans:
        rows = range(n) if span.rows is None else span.rows
        for i, row in enumerate(rows):
            limit = span.length if span.limits is None else int(span.limits[i])
            for j in range(min(limit, span.length)):
                if span.mask is None or span.mask[i, j]:
                    seen[row].append(span.start + j if span.slots is None else int(span.slots[j]))
    return seen


def attend_exactly(q, keys, values, seen, scale):
    """q [n, heads, dim] over keys [kv heads, capacity, dim] -> output and log-sum-exp in float64."""
    n, heads, _ = q.shape
    group = heads // keys.shape[0]
    out, sums = torch.zeros(q.shape, dtype=torch.float64), torch.full((n, heads), -math.inf, dtype=torch.float64)
    for row, slots in enumerate(seen):
        for h in range(heads if slots else 0):
            scores = keys[h // group, slots].double() @ q[row, h].double() * scale
            out[row, h] = torch.softmax(scores, 0) @ values[h // group, slots].double()
            sums[row, h] = torch.logsumexp(scores, 0)
    return out, sums
