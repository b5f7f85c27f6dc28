"""PVQ: the pyramid's points and their numbers, rotations, amplitudes, and what coded matrices lose."""

from __future__ import annotations

import itertools
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from scipy import stats
from scipy.special import beta, betainc

from outlay import shrink
from outlay.errors import UsageError
from outlay.models.checkpoint import Checkpoint, read_json
from outlay.models.forms import form_of, pyramid
from outlay.models.forms.pvq import PvqCode, levels
from outlay.models.forms.rotation import Rotation
from outlay.models.load import load_model
from outlay.shrink.feedback import proxy_error
from outlay.shrink.pvq import PVQ, Pyramids
from outlay.shrink.shrinker import Moment

LARGE = [(16, 12), (16, 27), (8, 36), (16, 40), (16, 58)]


def points_of(dimension, pulses):
    """All points of a small pyramid."""
    every = itertools.product(range(-pulses, pulses + 1), repeat=dimension)
    return torch.tensor([point for point in every if sum(map(abs, point)) == pulses])


def moment(inputs, seed=0, rows=600):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(rows, inputs, generator=generator).cumsum(1) * torch.rand(inputs, generator=generator).exp()
    return Moment((x.double().T @ x.double()) / rows, rows, "a test")


def normal(*shape, seed=1):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_counts_are_those_of_the_literature():
    golden = {(3, 2): 18, (8, 16): 15158272, (16, 12): 3575055360, (16, 27): 212749286539872}
    assert {key: pyramid.count(*key) for key in golden} == golden
    assert all(pyramid.count(2, k) == 4 * k and pyramid.count(3, k) == 4 * k * k + 2 for k in range(1, 30))
    for d, k in itertools.product(range(1, 20), repeat=2):
        assert k * pyramid.count(d, k) == d * pyramid.count(k, d)
    most = {2: 12, 2.5: 18, 3: 27, 3.5: 40, 4: 58}
    assert {bits: pyramid.pulses_for(16, int(16 * bits)) for bits in most} == most


@pytest.mark.parametrize(("dimension", "pulses"), [(1, 3), (2, 5), (3, 4), (4, 3), (5, 2)])
def test_points_and_numbers_are_one_to_one(dimension, pulses):
    points = points_of(dimension, pulses)
    numbers = pyramid.encode(points)
    assert sorted(numbers.tolist()) == list(range(pyramid.count(dimension, pulses)))
    assert torch.equal(pyramid.decode(numbers, dimension, pulses), points)


@pytest.mark.parametrize(("dimension", "pulses"), LARGE)
def test_numbers_of_large_pyramids_come_back(dimension, pulses):
    points = pyramid.project(normal(20_000, dimension).pow(3), pulses)
    numbers = pyramid.encode(points)
    assert torch.equal(pyramid.decode(numbers, dimension, pulses), points)
    count = pyramid.count(dimension, pulses)
    assert int(numbers.numpy().view(np.uint64).max()) < count
    ends = torch.from_numpy(np.array([0, 1, count // 3, count - 1], np.uint64).view(np.int64))
    decoded = pyramid.decode(ends, dimension, pulses)
    assert (decoded.abs().sum(1) == pulses).all()
    assert torch.equal(pyramid.encode(decoded), ends)


def test_a_number_of_no_point_is_refused():
    with pytest.raises(UsageError, match="numbered 18, but there are 18"):
        pyramid.decode(torch.tensor([3, 18]), 3, 2)


@pytest.mark.parametrize(("dimension", "pulses"), [(2, 6), (3, 5), (4, 4), (5, 3)])
def test_the_projection_is_the_nearest_point(dimension, pulses):
    w, points = normal(200, dimension).double(), points_of(dimension, pulses).double()
    scaled = pulses * w / w.abs().sum(1, keepdim=True)
    found = pyramid.project(w, pulses).double()
    nearest = torch.cdist(scaled, points).min(1).values
    torch.testing.assert_close((scaled - found).norm(dim=1), nearest, rtol=0, atol=1e-9)


def test_the_projection_follows_signs_scales_and_order_and_its_sum_is_exact():
    w = normal(500, 16)
    found = pyramid.project(w, 27)
    assert (found.abs().sum(1) == 27).all()
    signs, order = torch.where(normal(16, seed=3) < 0, -1, 1), torch.randperm(16)
    assert torch.equal(pyramid.project(w * 8.0, 27), found)
    assert torch.equal(pyramid.project(w * signs, 27), found * signs)
    assert torch.equal(pyramid.project(w[:, order], 27), found[:, order])
    assert pyramid.project(torch.zeros(1, 4), 3).tolist() == [[3, 0, 0, 0]]


def test_refining_keeps_the_pyramid_and_never_turns_away():
    w = normal(300, 8)
    before = pyramid.project(w, 6)
    after = pyramid.refine(w, before)
    cosine = [torch.cosine_similarity(w.double(), each.double()) for each in (before, after)]
    assert (after.abs().sum(1) == 6).all()
    assert (cosine[1] >= cosine[0] - 1e-12).all()
    assert (cosine[1] > cosine[0] + 1e-9).any()


@pytest.mark.parametrize("n", [64, 576, 1536, 320, 45])
def test_rotations_are_orthogonal(n):
    rotation = Rotation(n, 7)
    matrix = rotation(torch.eye(n, dtype=torch.float64))
    assert (matrix @ matrix.T - torch.eye(n)).norm() < 1e-5
    x = normal(3, n).double()
    torch.testing.assert_close(rotation.inverse(rotation(x)), x, rtol=0, atol=1e-10)
    h = x.T @ x
    torch.testing.assert_close(rotation.of_moment(h), rotation(x).T @ rotation(x), rtol=1e-9, atol=1e-9)


def test_amplitudes_of_random_rows_have_the_beta_law():
    w = normal(4000, 576)
    share = (w[:, :16].norm(dim=1) / w.norm(dim=1)).square()
    assert stats.kstest(share.numpy(), stats.beta(8, 280).cdf).pvalue > 0.01  # the seed is fixed


@pytest.mark.parametrize(("group", "inputs"), [(8, 576), (16, 576), (64, 1536)])
def test_lloyds_levels_satisfy_both_conditions(group, inputs):
    found, a, b = levels(group, inputs, 4, "lloyd"), group / 2, (inputs - group) / 2
    edges = np.concatenate([[0.0], (found[1:] + found[:-1]) / 2, [1.0]])
    mass = np.diff(betainc(a, b, edges**2))
    moments = np.diff(betainc(a + 0.5, b, edges**2)) * beta(a + 0.5, b) / beta(a, b)
    assert np.abs(moments / mass - found).max() < 1e-6


def error_of(source, group, pulses, mode="lloyd"):
    coded = Pyramids(source.norm(dim=1).half(), source.shape[1], PVQ(pulses=pulses, group=group, amp_mode=mode))
    return float((coded.quantize_all(source) - source).square().mean())


@pytest.mark.parametrize(
    ("group", "pulses", "expected"),
    [
        (8, 6, 0.0936), (8, 16, 0.0151), (8, 36, 0.0035), (16, 12, 0.0880), (16, 27, 0.0196), (16, 58, 0.0046),
    ],
)  # fmt: skip
def test_the_distortion_of_gaussian_sources_is_the_specifications(group, pulses, expected):
    assert error_of(normal(256, 1024), group, pulses) == pytest.approx(expected, rel=0.03)


@pytest.mark.parametrize(("pulses", "expected"), [(43, 0.1002), (96, 0.0232), (199, 0.0056)])
def test_the_distortion_of_long_groups_is_the_specifications(pulses, expected):
    """Of 64 weights: the points have more than 64 bits, so that none is numbered or stored."""
    code = PvqCode(64, pulses, 4, "lloyd", None)
    options = SimpleNamespace(group=64, pulses=pulses, refine=False, code=code)
    source = normal(256, 1024)
    coded = Pyramids(source.norm(dim=1).half(), 1024, options).quantize_all(source)
    assert float((coded - source).square().mean()) == pytest.approx(expected, rel=0.03)


def test_lloyds_levels_err_less_than_quantiles():
    source = normal(128, 1024)
    assert error_of(source, 16, 58) < error_of(source, 16, 58, "cdf")


def test_equal_uncorrelated_inputs_change_nothing():
    weight, each = normal(32, 128), Moment(3 * torch.eye(128, dtype=torch.float64), 1, "a test")
    found = PVQ().shrink(weight, each, "a layer")
    torch.testing.assert_close(found.weight, found.unfed, rtol=0, atol=1e-6)


def test_feedback_and_rotation_each_lower_the_error():
    """Of weights with a few large columns, as those of attention have."""
    weight, each = normal(96, 256), moment(256)
    weight[:, ::50] *= 8
    errors = {
        key: proxy_error(weight, PVQ(feedback=key[0], rotate=key[1]).shrink(weight, each, "a layer").weight, each.h)
        for key in itertools.product((True, False), repeat=2)
    }
    assert errors[False, True] > 2 * errors[True, True]
    assert errors[True, False] > 1.2 * errors[True, True]


def test_activations_are_coded_as_rows_without_feedback_each_by_itself():
    code, x = PVQ(pulses=27), normal(12, 96).cumsum(1)
    coded = code.coded(x)
    torch.testing.assert_close(coded, code.shrink(x, moment(96), "x").unfed)
    torch.testing.assert_close(torch.cat([code.coded(row[None]) for row in x]), coded)
    assert 0 < float((coded - x).norm() / x.norm()) < 0.2
    assert torch.equal(code.coded(torch.zeros(1, 96)), torch.zeros(1, 96))


def test_the_file_has_the_bits_of_the_formula_and_gives_the_matrix_back(tmp_path):
    texts = [[token % 500 for token in range(start, start + 40)] for start in range(0, 400, 40)]
    report = shrink.run("outlay/tiny-reasoner", "pvq", tmp_path / "a", bits=3.25, calib=texts)
    assert report.method == "pvq"
    for row in report.rows:
        assert row["bits"] == pytest.approx((48 + 4) / 16 + 16 / row["shape"][1])
        assert row["error"] < row["unfed_error"]
    store = Checkpoint(tmp_path / "a", form_of(read_json(tmp_path / "a" / "config.json")))
    name = "model.layers.1.mlp.down_proj"
    matrix = store.stored(f"{name}.weight")
    assert matrix.shape == (128, 320)
    assert matrix.nbytes == sum(store.tensor(f"{name}.{part}").nbytes for part in ("pvq_index", "pvq_amp", "pvq_norms"))
    index = torch.tensor([5, 3])
    assert torch.equal(matrix.rows(index), matrix.dequantize()[index])
    plain = matrix.plain().dequantize()
    assert (plain - matrix.dequantize()).norm() < 0.006 * plain.norm()
    assert load_model(tmp_path / "a").format == "int8"
    assert all(not row["wrong"] for row in shrink.check(tmp_path / "a"))


def test_what_is_written_is_what_the_walk_made():
    weight, each = normal(32, 128), moment(128)
    for options in (PVQ(), PVQ(pulses=58), PVQ(rotate=False, refine=True, amp_mode="cdf", amp_bits=3)):
        found = options.shrink(weight, each, "a layer")
        tensors = {f"m.{part}": tensor for part, tensor in found.tensors.items()}

        class Held(dict):
            def shape(self, name):
                return tuple(self[name].shape) if name in self else None

            def tensor(self, name):
                return self[name]

        read = form_of({"quantization_config": options.quantization_config()}).matrix("m", Held(tensors))
        torch.testing.assert_close(read.dequantize(), found.weight, rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: PVQ.at_bits(0.3), "pvq needs 0.5625 bits a weight at least, not 0.3"),
        (lambda: PVQ.at_bits(5), "pvq holds 4.25 bits a weight at most, not 5"),
        (lambda: PVQ(pulses=60), "64 bits at most: pulses=58, not 60"),
        (lambda: PVQ().shrink(normal(4, 40), moment(40), "a layer"),
         "group=16 doesn't divide the 40 inputs of a layer; group=10"),
        (lambda: replace(PVQ(), damping=0), "damping of pvq must be above 0"),
        (lambda: form_of({"quantization_config": {"quant_method": "outlay", "version": 2, "form": "pvq"}}),
         "version 2 of the form"),
    ],
)  # fmt: skip
def test_bad_input_is_refused_in_one_line(make, message):
    with pytest.raises(UsageError, match=message):
        make()
