"""The linear layers alone: our kernels beside torch's products, milliseconds for all layers of a model in one run.

    python benchmarks/linear_layers.py [--threads 1] [--rows 1,4,16,64] [--forms bfloat16,2:4-bfloat16]

The shapes are those of the default model: 30 layers, and no head. Contenders take turns, and the fastest turn counts.
The packed forms of `outlay shrink` (2:4 and codebooks), which torch has not, are there where --forms names them.
"""

import argparse
import time
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from outlay import kernels

LAYERS = 30
SHAPES = ((960, 576), (576, 576), (3072, 576), (576, 1536))
GROUP = 32
FORMS = ("int4", "int8", "bfloat16")
PACKED = ("2:4-int4", "2:4-int8", "2:4-bfloat16", "codebook-2-bits")
Product = Callable[[Tensor], Tensor]


def native(form: str, weight: Tensor) -> Product:
    if form == "int4":
        return kernels.pack_q4(*kernels.quantize_q4(weight))
    return kernels.pack_q8(*kernels.quantize_q8(weight)) if form == "int8" else kernels.pack_bf16(weight)


def packed(form: str, weight: Tensor) -> Product:
    m, k = weight.shape
    if form == "codebook-2-bits":
        entries = kernels.CodebookEntries(torch.randint(-127, 128, (256, 4), dtype=torch.int8), None, 2**-10)
        return kernels.pack_codebook(entries, torch.randint(256, (m // 4, k)), None, m)
    mask = torch.rand(m, k // 4, 4).argsort(2).argsort(2).flatten(1) < 2
    kept = weight * mask
    if form == "2:4-bfloat16":
        return kernels.pack_sparse(kept.bfloat16(), mask)
    bits = 4 if form == "2:4-int4" else 8
    scales = kept.unflatten(1, (-1, GROUP)).abs().amax(2).clamp(min=1e-8) / (2 ** (bits - 1) - 1)
    values = (kept / scales.repeat_interleave(GROUP, 1)).round().to(torch.int8)
    return kernels.pack_sparse(values, mask, scales.half(), bits)


def torchs(form: str, weight: Tensor) -> Product:
    if form == "bfloat16":
        narrow = weight.bfloat16()
        return lambda x: F.linear(x.bfloat16(), narrow)
    if form == "int8":
        scales = weight.abs().amax(dim=1) / 127
        q = (weight / scales[:, None]).round().to(torch.int8)
        return lambda x: torch.ops.aten._weight_int8pack_mm(x.bfloat16(), q, scales.bfloat16())
    q4, scale, minimum = kernels.quantize_q4(weight)
    packed = torch.ops.aten._convert_weight_to_int4pack_for_cpu(q4.to(torch.int32), 2)
    pairs = torch.stack((scale.float(), minimum.float() + 8 * scale.float()), dim=-1)
    zeros = pairs.transpose(0, 1).contiguous().bfloat16()
    return lambda x: torch.ops.aten._weight_int4pack_mm_for_cpu(x.bfloat16(), packed, GROUP, zeros)


def seconds(products: list[tuple[int, Product]], rows: int) -> float:
    inputs = {k: torch.randn(rows, k) for k in {k for k, _ in products}}
    start = time.perf_counter()
    for k, product in products:
        product(inputs[k])
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description="Times linear layers: our kernels beside torch's products.")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rows", default="1,2,4,8,16,32,64,128")
    parser.add_argument("--turns", type=int, default=7)
    parser.add_argument("--forms", default=",".join(FORMS), help=f"some of {', '.join((*FORMS, *PACKED))}")
    options = parser.parse_args()
    widths = [int(rows) for rows in options.rows.split(",")]
    torch.set_num_threads(options.threads)
    kernels.set_threads(options.threads)
    contenders: dict[str, list[tuple[int, Product]]] = {}
    for form in options.forms.split(","):
        if form not in FORMS + PACKED:
            parser.error(f"--forms has no {form!r}; there are {', '.join((*FORMS, *PACKED))}")
        for name, make in (("outlay", packed),) if form in PACKED else (("outlay", native), ("torch", torchs)):
            weights = ((k, torch.randn(m, k) * 0.05) for _ in range(LAYERS) for m, k in SHAPES)
            contenders[f"{name} {form}"] = [(k, make(form, weight)) for k, weight in weights]
    best: dict[tuple[str, int], float] = {}
    for _ in range(options.turns):
        for rows in widths:
            for name, products in contenders.items():
                best[name, rows] = min(best.get((name, rows), 1e9), seconds(products, rows))
    print(f"kernels: {kernels.isa()}, threads: {options.threads}; milliseconds for {len(SHAPES) * LAYERS} layers\n")
    print("| rows | " + " | ".join(str(rows) for rows in widths) + " |\n" + "| --- " * (len(widths) + 1) + "|")
    for name in contenders:
        print(f"| {name} | " + " | ".join(f"{1000 * best[name, rows]:.1f}" for rows in widths) + " |")


if __name__ == "__main__":
    main()
