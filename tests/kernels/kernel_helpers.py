"""Layers with random weights, and attention in float64."""

import math
from itertools import pairwise

import torch

from outlay import kernels

FORMATS = ("q4", "q8", "bf16", "f32", "mixed")


def make_layer(form, m, k, seed=0):
    """A layer in one format; "mixed": of parts in all of them, which end within a tile of channels if m is large."""
    if form == "mixed":
        parts = [(each, part) for each, part in zip(FORMATS, cut(m, 4), strict=False) if part]
        return kernels.stack([make_layer(each, part, k, seed + i) for i, (each, part) in enumerate(parts)])
    weight = torch.randn(m, k, generator=torch.Generator().manual_seed(seed)) * 0.05
    if form == "q4":
        return kernels.pack_q4(*kernels.quantize_q4(weight))
    if form == "q8":
        return kernels.pack_q8(*kernels.quantize_q8(weight))
    return kernels.pack_bf16(weight) if form == "bf16" else kernels.pack_f32(weight)


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
