"""Shrunk matrices that a pass reads packed: the bits of the plain formats, and the bytes that are the point of it."""

from __future__ import annotations

import pytest
import torch

import outlay
from outlay import kernels, shrink
from outlay.engine.passes import runs_whole
from outlay.models.forms.bitmask import BitmaskMatrix
from outlay.models.forms.nm import NmMatrix
from outlay.models.forms.vptq import Codebook, VptqMatrix
from outlay.models.linear import pack
from outlay.models.load import held_in_passes
from outlay.models.stored import StoredMatrix
from outlay.prompt_logits import logits_from

REASONER = "outlay/tiny-reasoner"
TEXTS = [[token % 500 for token in range(start, start + 40)] for start in range(0, 400, 40)]
# The default model's linear layers, how many of each it has, and its LM head.
SHAPES = {(576, 576): 60, (192, 576): 60, (1536, 576): 60, (576, 1536): 30}
HEAD = (49152, 576)


@pytest.fixture(autouse=True)
def _with_kernels():
    if not kernels.available():
        pytest.skip("the native kernels are not built")


@pytest.mark.parametrize(
    ("method", "form", "narrower"),
    [
        ("vptq:k_res=0", "codebook", 0.4),
        ("vptq:v=8,k=64,k_res=16", "codebook", 0.4),
        ("nm:bits=8", "sparse_q8", 0.66),
        ("nm:bits=4", "sparse_q4", 0.71),
        ("nm:bits=16", "sparse_bf16", 0.57),
    ],
)
def test_a_folder_runs_packed_in_one_native_call_with_the_bits_of_the_plain_format(method, form, narrower, tmp_path):
    shrink.run(REASONER, method, tmp_path / "small", calib=TEXTS)
    small = outlay.load(tmp_path / "small", prefix_cache=False)
    layers = small.model.decoder.layers
    parts = [
        part for each in layers for linear in (each.qkv, each.out, *each.mlp.linears) for part in linear.packed.parts
    ]
    assert {part.format for part in parts} == {form}
    assert runs_whole(small.model.decoder)
    assert held_in_passes(tmp_path / "small") == {form: 21}
    packed = logits_from(small, TEXTS[0], 0)

    with pytest.MonkeyPatch.context() as patch:
        for kind in (VptqMatrix, NmMatrix):
            patch.setattr(kind, "packed", StoredMatrix.packed)
            patch.setattr(kind, "packed_floats", StoredMatrix.packed_floats)
        wide = outlay.load(tmp_path / "small", prefix_cache=False)
    assert torch.equal(packed, logits_from(wide, TEXTS[0], 0))
    assert small.model.format == wide.model.format
    bytes_of = [sum(linear.nbytes for each in lm.model.decoder.layers for linear in (each.qkv, *each.mlp.linears))
                for lm in (small, wide)]  # fmt: skip
    assert bytes_of[0] < narrower * bytes_of[1]


def linear_bytes(layer_of):
    return sum(count * layer_of(m, k).nbytes for (m, k), count in SHAPES.items())


def test_a_pass_at_two_bits_reads_less_than_two_thirds_of_one_in_4_bits():
    def two_bits(m, k):
        entries = kernels.CodebookEntries(torch.zeros(256, 4, dtype=torch.int8), None, 0.5)
        return kernels.pack_codebook(entries, torch.zeros(m // 4, k, dtype=torch.int64), None, m)

    head = kernels.pack_q8(*kernels.quantize_q8(torch.zeros(HEAD))).nbytes
    four = linear_bytes(lambda m, k: kernels.pack_q4(*kernels.quantize_q4(torch.zeros(m, k))))
    share = (linear_bytes(two_bits) + head) / (four + head)
    print(f"bytes of a pass, VPTQ at 2 bits over 4 bits, the head in 8 bits: {share:.3f}")
    assert share < 0.62


def test_linear_layers_of_2_of_4_in_8_bits_read_less_than_two_thirds_of_dense_ones():
    def sparse(m, k):
        mask = (torch.arange(k) % 4 < 2).expand(m, k)
        return kernels.pack_sparse(torch.zeros(m, k, dtype=torch.int8), mask, torch.zeros(m, k // 32).half())

    dense = linear_bytes(lambda m, k: kernels.pack_q8(*kernels.quantize_q8(torch.zeros(m, k))))
    share = linear_bytes(sparse) / dense
    print(f"bytes of linear layers, 2:4 in 8 bits over 8 bits: {share:.3f}")
    assert share < 0.66


def public(spread, k=256, k_res=16, outputs=66, inputs=64):
    """A matrix whose entries lie on no grid, of which one may be `spread` times as large as the others."""
    random = torch.Generator().manual_seed(0)
    entries, residual = (torch.randn(n, 4, generator=random).half().float() for n in (k, k_res))
    entries[0, 0] *= spread
    index, extra = (torch.randint(1, n, (-(-outputs // 4), inputs), generator=random) for n in (k, k_res))
    return VptqMatrix((Codebook(entries, residual / 8, index, extra),), None, None, None, outputs, 0)


def test_public_entries_are_rounded_where_that_changes_little():
    matrix = public(1)
    layer = matrix.packed()
    assert {part.format for part in layer.parts} == {"codebook"}
    assert layer.out_features == 66
    exact, found = matrix.dequantize(), layer.dequantize()
    assert 0 < float((found - exact).norm() / exact.norm()) < 0.02


def test_a_codebook_is_held_wider_where_rounding_would_change_much_or_columns_differ():
    assert {part.format for part in public(1000).packed().parts} == {"q8"}
    books = public(1).books * 2
    assert {part.format for part in VptqMatrix(books, None, None, None, 66, 0).packed().parts} == {"q8"}
    shuffled = VptqMatrix(public(1).books, torch.arange(64).flip(0), None, None, 66, 0)
    assert {part.format for part in shuffled.packed().parts} == {"q8"}


@pytest.mark.parametrize("even", [True, False])
def test_public_sparse_bfloat16_is_held_sparse_where_all_inputs_keep_as_many(even):
    random = torch.Generator().manual_seed(0)
    mask = torch.rand(40, 16, 4, generator=random).argsort(2).argsort(2).flatten(1) < 2
    if not even:
        mask[0, :8] = True
    dense = (torch.randn(40, 64, generator=random) * mask).bfloat16()
    layer = pack(BitmaskMatrix(dense, mask, 0), "bfloat16")
    assert {part.format for part in layer.packed.parts} == {"sparse_bf16" if even else "bf16"}
    assert torch.equal(layer.packed.dequantize(), dense.float())
