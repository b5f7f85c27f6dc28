"""Packed formats: what a tile is unpacked to, and so every bit of a product, is the plain format's."""

import pytest
import torch
from kernel_helpers import codebook_of, rows_of

from outlay import kernels

WIDTHS = (1, 3, 40, 130)  # the last of several panels of rows
PATTERNS = [(2, 4), (1, 4), (3, 8), (1, 16), (5, 32)]


def mask_of(m, k, n, of, seed=0):
    order = torch.rand(m, k // of, of, generator=torch.Generator().manual_seed(seed)).argsort(2).argsort(2)
    return (order < n).view(m, k)


def same_bits(packed, plain, k):
    assert torch.equal(packed.dequantize(), plain.dequantize())
    for width in WIDTHS:
        x = rows_of(width, k, seed=width)
        assert torch.equal(packed(x), plain(x))


@pytest.mark.parametrize("v", kernels.VECTORS)
@pytest.mark.parametrize(
    ("entries", "residual"), [(256, 0), (256, 16), (256, 256), (2, 0), (1024, 512), (4096, 4096), (65536, 64)]
)
def test_a_codebook_gives_the_bits_of_its_weights_in_8_bits(v, entries, residual, each_isa):
    m, k, step = 90, 96, 11 * 2.0**-14
    codebook, index, more = codebook_of(m, k, 0, {"v": v, "k": entries, "k_res": residual})
    weight = codebook.entries[index].int()
    if more is not None:
        weight = weight + codebook.residual[more].int()
    weight = weight.transpose(1, 2).flatten(0, 1)[:m].to(torch.int8)
    packed, plain = (
        kernels.pack_codebook(codebook, index, more, m),
        kernels.pack_q8(weight, torch.full((m, 3), step).half()),
    )
    for _ in each_isa():
        same_bits(packed, plain, k)


@pytest.mark.parametrize(("n", "m"), PATTERNS)
def test_sparse_weights_give_the_bits_of_dense_ones(n, m, each_isa):
    outputs, k = 70, 288  # two pieces of 128 inputs and a part of one
    mask, random = mask_of(outputs, k, n, m), torch.Generator().manual_seed(1)
    # Halves of every size, the subnormal ones included, whose minima of 4 bits are -8 times as large.
    exponents = torch.randint(-24, 12, (outputs, k // 32), generator=random).float()
    scales = (torch.randint(1, 2048, exponents.shape, generator=random) * 2.0 ** (exponents - 10)).half()
    q8 = torch.randint(-128, 128, (outputs, k), generator=random, dtype=torch.int8)
    q4 = torch.randint(-8, 8, (outputs, k), generator=random, dtype=torch.int8)
    floats = rows_of(outputs, k).bfloat16()
    pairs = [
        (kernels.pack_sparse(q8, mask, scales), kernels.pack_q8(q8 * mask, scales)),
        (
            kernels.pack_sparse(q4, mask, scales, 4),
            kernels.pack_q4((q4 * mask + 8).to(torch.uint8), scales, -8 * scales),
        ),
        (kernels.pack_sparse(floats, mask), kernels.pack_bf16(floats * mask)),
    ]
    for _ in each_isa():
        for packed, plain in pairs:
            same_bits(packed, plain, k)


@pytest.mark.parametrize(("form", "bits"), [("q8", 5.5), ("q4", 3.5), ("bf16", 9.0)])
def test_bytes_of_2_of_4_are_kept_values_a_mask_and_scales(form, bits):
    mask, scales = mask_of(64, 128, 2, 4), torch.ones(64, 4).half()
    values = torch.ones(64, 128, dtype=torch.int8)
    layer = (
        kernels.pack_sparse(values, mask) if form == "bf16" else kernels.pack_sparse(values, mask, scales, int(form[1]))
    )
    assert layer.nbytes * 8 == bits * 64 * 128


def test_bytes_of_a_codebook_are_indices_and_entries():
    layer = kernels.pack_codebook(*codebook_of(64, 128, 0, {"v": 4, "k": 256, "k_res": 16}), 64)
    assert layer.nbytes == 64 * 128 * 3 // 8 + 4 * (256 + 16)


def test_a_step_is_refused_that_halves_lack_and_sums_that_bytes_lack():
    entries = torch.full((4, 4), 100, dtype=torch.int8)
    with pytest.raises(ValueError, match="float16"):
        kernels.CodebookEntries(entries, None, 1 / 3)
    with pytest.raises(ValueError, match="at most 127"):
        kernels.CodebookEntries(entries, entries, 1.0)
    with pytest.raises(ValueError, match="int8"):
        kernels.CodebookEntries(torch.zeros(4, 3, dtype=torch.int8), None, 1.0)


def test_masks_that_keep_more_in_some_places_are_refused():
    mask = mask_of(32, 64, 2, 4)
    mask[3, :8] = True
    with pytest.raises(ValueError, match="as many of every 32"):
        kernels.pack_sparse(torch.ones(32, 64), mask)


@pytest.mark.parametrize(("k", "v"), [(256, 4), (13, 8), (4096, 2), (16, 1)])
def test_the_nearest_point_is_that_of_float64_and_the_first_of_equals(k, v, each_isa):
    random = torch.Generator().manual_seed(0)
    points, vectors = torch.randn(k, v, generator=random), torch.randn(500, v, generator=random)
    expected = torch.cdist(vectors.double(), points.double())
    found = {isa: kernels.nearest(vectors, points) for isa in each_isa()}
    first = next(iter(found.values()))
    assert all(torch.equal(each, first) for each in found.values())
    assert torch.allclose(expected.gather(1, first[:, None])[:, 0], expected.amin(1), atol=1e-6)
    twice = torch.cat([points, points])
    assert torch.equal(kernels.nearest(vectors, twice), first)
