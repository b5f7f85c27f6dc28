"""Each set of kernels that the processor can run gives the same bits, and none runs that was masked."""

import os
import subprocess
import sys

import pytest

PROGRAM = """
import hashlib, torch
from outlay import kernels
from outlay.kernels import Piece, Plan
print(kernels.isa())
if kernels.available():
    torch.manual_seed(0)
    w, x = torch.randn(40, 96), torch.randn(7, 96)
    layers = [kernels.pack_q4(*kernels.quantize_q4(w)), kernels.pack_q8(*kernels.quantize_q8(w))]
    layers += [kernels.pack_bf16(w), kernels.pack_f32(w)]
    results = [layer(x) for layer in layers]
    q, k, v = torch.randn(7, 4, 40), torch.randn(2, 90, 40), torch.randn(2, 90, 40)
    plan = Plan([Piece(0, 70), Piece(75, 13, mask=torch.rand(7, 13) < 0.5)], 7)
    results += kernels.attend(q, k, v, plan, 0.2, lse=True)
    results += [kernels.rms_norm(x, w[0], 1e-5), kernels.silu_mul(x, -x), kernels.exp(torch.linspace(-90, 90, 1001))]
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


@pytest.mark.parametrize("limit", ["avx2", ""])
def test_same_bits_as_scalar(limit):
    name, digest = run_under("scalar")
    assert name == "scalar"
    found = run_under(limit)
    if found == ["none"]:
        pytest.skip("this processor has no AVX2")
    assert limit in ("", found[0])
    assert found[1] == digest
