"""The linear layers alone: our kernels beside torch's products, milliseconds for all layers of a model in one run.

    python benchmarks/linear_layers.py [--threads 1] [--rows 1,4,16,64]

The shapes are those of the default model: 30 layers, and no head. Contenders take turns, and the fastest turn counts.
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
Product = Callable[[Tensor], Tensor]


def native(form: str, weight: Tensor) -> Product:
    if form == "int4":
        return kernels.pack_q4(*kernels.quantize_q4(weight))
    return kernels.pack_q8(*kernels.quantize_q8(weight)) if form == "int8" else kernels.pack_bf16(weight)


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
    options = parser.parse_args()
    widths = [int(rows) for rows in options.rows.split(",")]
    torch.set_num_threads(options.threads)
    kernels.set_threads(options.threads)
    contenders: dict[str, list[tuple[int, Product]]] = {}
    for form in ("int4", "int8", "bfloat16"):
        for name, make in (("outlay", native), ("torch", torchs)):
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
