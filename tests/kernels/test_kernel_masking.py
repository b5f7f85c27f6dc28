"""Each set of kernels that the processor can run gives the same bits, and none runs that was masked."""

import os
import subprocess
import sys

import pytest

PROGRAM = """
import hashlib, torch
from outlay import kernels
from outlay.kernels import AttentionPlan, AttentionSpan, KeyValues, TokenDraw, Truncation
print(kernels.isa())
if kernels.available():
    torch.manual_seed(0)
    w, x = torch.randn(90, 96), torch.randn(37, 96)
    layers = [kernels.pack_q4(*kernels.quantize_q4(w)), kernels.pack_q8(*kernels.quantize_q8(w))]
    layers += [kernels.pack_bf16(w), kernels.pack_f32(w)]
    mask, scales = torch.rand(90 * 24, 4).argsort(1).argsort(1).view(90, 96) < 2, torch.rand(90, 3).half()
    small = torch.randint(-8, 8, (90, 96), dtype=torch.int8)
    layers += [kernels.pack_sparse(small, mask, scales, bits) for bits in (4, 8)]
    layers += [kernels.pack_sparse(w, mask)]
    for v in kernels.VECTORS:
        for bits, more in ((8, 0), (8, 4), (8, 8), (11, 3), (16, 9)):
            entries, residual = (torch.randint(-63, 64, (2**each, v), dtype=torch.int8) for each in (bits, more))
            index, extra = (torch.randint(0, 2**each, (-(-90 // v), 96)) for each in (bits, more))
            book = kernels.CodebookEntries(entries, residual if more else None, 0.01171875)
            layers += [kernels.pack_codebook(book, index, extra if more else None, 90)]
    layers += [kernels.stack(layers)]
    results = [layer(part) for layer in layers for width in (1, 3, 6, 10, 12, 18, 37) for part in x.split(width)]
    q, k, v = torch.randn(7, 4, 40), torch.randn(2, 90, 40), torch.randn(2, 90, 40)
    plan = AttentionPlan([AttentionSpan(0, 70), AttentionSpan(75, 13, mask=torch.rand(7, 13) < 0.5)], 7)
    for dtype in (torch.float32, torch.bfloat16, torch.int8):
        scales = [torch.zeros(2, 90, 5) for _ in range(2)] if dtype == torch.int8 else []
        cache = KeyValues(*(torch.zeros(2, 90, 40, dtype=dtype) for _ in range(2)), *scales)
        kernels.store(cache, torch.arange(90), k.transpose(0, 1), v.transpose(0, 1))
        results += [part.view(torch.uint8) for part in (cache.keys, cache.values, *scales)]
        results += kernels.attend(q, cache, plan, 0.2, softcap=3.0, lse=True)
    results += [kernels.rms_norm(x, w[0], 1e-5), kernels.layer_norm(x, w[0], w[1], 1e-5)]
    results += [kernels.activate(kind, x, -x) for kind in ("silu", "gelu", "gelu_tanh", "relu")]
    results += [kernels.exp(torch.linspace(-90, 90, 1001))]
    logits = torch.randn(3, 2000) * torch.tensor([[0.3], [2.0], [6.0]])
    for options in ((0.7,), (1.0, 40), (0.8, None, 0.9), (1.0, None, None, 0.01), (0.9, 300, 0.95, 0.001)):
        results.append(kernels.probs(logits, Truncation(*options)))
        numbers = torch.rand(50, dtype=torch.float64).tolist()
        draws = [TokenDraw(Truncation(*options), number) for number in numbers]
        results += [torch.tensor([kernels.draw(row.expand(50, -1), draws) for row in logits])]
    print(hashlib.sha256(b"".join(r.numpy().tobytes() for r in results)).hexdigest())
"""


def run_under(limit):
    environment = {**os.environ, "OUTLAY_ISA": limit, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
    result = subprocess.run(
        [sys.executable, "-c", PROGRAM], env=environment, capture_output=True, text=True, check=True
    )
    return result.stdout.split()


def test_none_masks_everything():
    assert run_under("none") == ["none"]


def test_an_unknown_limit_masks_everything():
    assert run_under("avx99") == ["none"]


@pytest.fixture(scope="module")
def scalar_digest():
    name, digest = run_under("scalar")
    assert name == "scalar"
    return digest


# From the fastest to the slowest. Under a limit, what is faster must not run.
LEVELS = ["amx", "avx512vnni", "avx2"]


@pytest.mark.parametrize("limit", ["", *LEVELS])
def test_same_bits_as_scalar(limit, scalar_digest):
    found = run_under(limit)
    if found == ["none"]:
        pytest.skip("this processor has no AVX2")
    assert found[0] in (LEVELS[LEVELS.index(limit) :] if limit else LEVELS)
    assert found[1] == scalar_digest


def test_emulated_amx_gives_the_bits_of_scalar(scalar_digest):
    found = run_under("amx-emulated")
    if found[0] in ("avx2", "none"):
        pytest.skip("this processor has no AVX-512")
    assert found == ["amx-emulated", scalar_digest]
