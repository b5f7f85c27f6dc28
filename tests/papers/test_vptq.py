"""VPTQ: k-means, the pass over columns, its public form, and what it loses."""

from __future__ import annotations

import math

import pytest
import torch

from outlay import shrink
from outlay.errors import UsageError
from outlay.models.checkpoint import Checkpoint, read_json
from outlay.models.forms import form_of
from outlay.models.forms.vptq import VptqForm, grid_step
from outlay.models.load import load_model
from outlay.shrink.feedback import damped, inverse_factor, proxy_error, walk
from outlay.shrink.gptq import GPTQ, GridColumns
from outlay.shrink.shrinker import Moment
from outlay.shrink.vptq import VPTQ, Table, Vectors, kmeans, nearest

SHAPES = [(8, 65536, 0), (8, 65536, 256), (8, 65536, 4096), (8, 65536, 65536), (12, 65536, 4096), (16, 65536, 64),
          (16, 65536, 1024), (16, 65536, 65536), (8, 256, 256), (8, 1024, 512)]  # fmt: skip


def moment(inputs, seed=0, rows=600):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(rows, inputs, generator=generator).cumsum(1) * torch.rand(inputs, generator=generator).exp()
    return Moment((x.double().T @ x.double()) / rows, rows, "a test")


def normal(*shape, seed=1):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


class Held(dict):
    def shape(self, name):
        return tuple(self[name].shape) if name in self else None

    def tensor(self, name):
        return self[name]


def read(found, options, shape):
    """The matrix that a reader makes of what a method wrote."""
    config = {"quant_method": "vptq", "config_for_layers": {"m": options.module_config(shape)}}
    held = Held({f"m.{part}": tensor for part, tensor in found.tensors.items()})
    return form_of({"quantization_config": config}).matrix("m", held)


def loss(vectors, weights, entries):
    return float((weights * (vectors - entries[nearest(vectors, entries)]).square().sum(1)).sum())


def test_means_never_get_worse_and_are_the_same_each_time():
    vectors, weights = normal(3000, 4), normal(3000, seed=2).exp()
    losses = [loss(vectors, weights, kmeans(vectors, weights, 32, iterations, 0.0, 0)) for iterations in range(1, 12)]
    assert losses == sorted(losses, reverse=True)
    assert losses[-1] < 0.95 * losses[0]
    assert torch.equal(kmeans(vectors, weights, 32, 9, 0.0, 5), kmeans(vectors, weights, 32, 9, 0.0, 5))


def test_weights_weigh_the_means_and_not_the_distances():
    vectors, weights = torch.tensor([[0.0], [1.0], [10.0]]), torch.tensor([1.0, 3.0, 100.0])
    entries = kmeans(vectors, weights, 2, 50, 0.0, 1)
    assert sorted(entries.flatten().tolist()) == [0.75, 10.0]


def test_enough_entries_lose_nothing():
    vectors = normal(40, 3).round()
    entries = kmeans(vectors, torch.ones(40), 64, 20, 0.0, 0)
    assert loss(vectors, torch.ones(40), entries) == 0


def test_single_weights_on_a_uniform_grid_are_gptq():
    weight, h = normal(32, 64), damped(moment(64).h, 0.01)
    columns = GridColumns(weight, GPTQ(bits=4, group=64, act_order=True))
    scale = columns.grid.scales[0, 0]
    columns.grid.scales[:], columns.grid.zeros[:] = scale, 8
    entries = (torch.arange(16.0)[:, None] - 8) * scale
    factor, every = inverse_factor(h), torch.arange(64)
    ours = walk(weight, factor, Vectors([Table(entries)], [every]))
    theirs = walk(weight, factor, columns)
    assert torch.equal(ours.weight, theirs.weight)
    assert torch.equal(ours.adjusted, theirs.adjusted)


def test_equal_uncorrelated_inputs_change_nothing():
    weight, each = normal(32, 64), Moment(3 * torch.eye(64, dtype=torch.float64), 1, "a test")
    found = VPTQ(k=64, k_res=8).shrink(weight, each, "a layer")
    torch.testing.assert_close(found.weight, found.unfed, rtol=0, atol=1e-6)


def test_the_order_of_the_inputs_does_not_matter():
    weight, each = normal(32, 64), moment(64)
    options, order = VPTQ(k=64, k_res=0, iters=4), torch.randperm(64, generator=torch.Generator().manual_seed(5))
    other = Moment(each.h[order][:, order], each.tokens, "a test")
    found, moved = (options.shrink(w, m, "a layer").weight for w, m in ((weight, each), (weight[:, order], other)))
    # k-means begins at vectors of other places, so the books differ; the errors do not by much
    errors = proxy_error(weight, found, each.h), proxy_error(weight[:, order], moved, other.h)
    assert errors[0] == pytest.approx(errors[1], rel=0.15)


@pytest.mark.parametrize(
    "options",
    [
        VPTQ(k=64, k_res=0), VPTQ(k=64, k_res=8), VPTQ(v=6, k=32, k_res=0), VPTQ(k=64, k_res=8, groups=2),
        VPTQ(k=64, k_res=8, outlier_pct=4, groups=3, k0=32), VPTQ(k=64, k_res=0, norm=True, grid=False),
        VPTQ(k=64, k_res=0, norm=True, norm_compat=True, grid=False), VPTQ(k=64, k_res=8, perm=False),
    ],
    ids=lambda options: options.label,
)  # fmt: skip
def test_what_is_written_is_what_the_pass_made(options):
    weight, each = normal(64, 96), moment(96)
    found = options.shrink(weight, each, "a layer")
    matrix = read(found, options, (64, 96))
    assert matrix.shape == (64, 96)
    torch.testing.assert_close(matrix.dequantize(), found.weight, rtol=2e-3, atol=2e-3 if options.norm else 1e-6)
    index = torch.tensor([50, 3])
    assert torch.equal(matrix.take(index).dequantize(), matrix.dequantize()[index])
    assert matrix.nbytes == found.file_bytes
    assert proxy_error(weight, found.weight, each.h) < proxy_error(weight, found.unfed, each.h)


def test_books_on_the_grid_are_held_in_bytes_exactly():
    weight, each = normal(64, 96), moment(96)
    for options in (VPTQ(k=64, k_res=8), VPTQ(k=64, k_res=0, groups=2), VPTQ(k=64, k_res=8, outlier_pct=4, k0=32)):
        matrix = read(options.shrink(weight, each, "a layer"), options, (64, 96))
        assert torch.equal(matrix.plain().dequantize(), matrix.dequantize())
    errors = [
        proxy_error(weight, VPTQ(k=64, k_res=8, grid=grid).shrink(weight, each, "a layer").weight, each.h)
        for grid in (True, False)
    ]
    assert errors[0] < 1.1 * errors[1]


def test_a_grids_step_has_four_bits_and_reaches():
    for size in (0.013, 1.0, 0.7, 127.0, 300.0, 1e-4):
        step = grid_step(size)
        mantissa = math.frexp(step)[0] * 16
        assert mantissa == int(mantissa)
        assert size <= 127 * step < size * 1.13
        multiples = torch.arange(-127.0, 128) * step
        assert torch.equal(multiples.half().float(), multiples) or step < 2**-20


@pytest.mark.parametrize(("v", "k", "k_res"), SHAPES)
@pytest.mark.parametrize("packed", [True, False])
def test_every_published_shape_is_read_by_its_definition(v, k, k_res, packed):
    """Random indices, written here as the form says; a weight is the sum of its vector's two entries."""
    generator = torch.Generator().manual_seed(v + k_res)
    n, inputs, vectors = 37, 45, -(-37 // v)
    index = torch.randint(0, k, (1, vectors, inputs), generator=generator)
    extra = torch.randint(0, max(k_res, 1), (1, vectors, inputs), generator=generator)
    books = [torch.randn(1, entries * v, generator=generator).half() for entries in (k, max(k_res, 1))]
    held = Held({"m.centroids.weight": books[0]})
    if k_res:
        held["m.res_centroids.weight"] = books[1]
    bits, extra_bits = k.bit_length() - 1, k_res.bit_length() - 1 if k_res else 0
    if packed:
        rows = []
        for one, two in zip(index[0].tolist(), extra[0].tolist(), strict=True):
            merged = [a | (b << bits if k_res else 0) for a, b in zip(one, two, strict=True)]
            stream = sum(number << i * (bits + extra_bits) for i, number in enumerate(merged))
            words = [(stream >> 32 * i) % 2**32 for i in range(-(-inputs * (bits + extra_bits) // 32))]
            rows.append([word - 2**32 if word >= 2**31 else word for word in words])
        held["m.indices"] = torch.tensor([rows], dtype=torch.int32)
    else:
        held["m.indices"], held["m.res_indices"] = (each.int().to(torch.int16) for each in (index, extra))
    order = torch.randperm(inputs, generator=generator)
    held["m.perm"] = order.int().to(torch.int16) if packed else order
    held["m.weight_scale"], held["m.weight_bias"] = (torch.rand(inputs, generator=generator).half() for _ in range(2))
    config = {
        "in_features": inputs, "out_features": n, "vector_lens": [-1, v], "num_centroids": [-1, k],
        "num_res_centroids": [-1, k_res or -1], "group_num": 1, "group_size": inputs, "outlier_size": 0,
        "enable_norm": True, "enable_perm": True, "is_indice_packed": packed,
    }  # fmt: skip
    form = VptqForm({"shared_layer_config": {"m": config}})
    found = form.matrix("m", held).dequantize()
    for row, column in [(0, 0), (36, 44), (17, 20), (8, 3)]:
        vector, place = divmod(row, v)
        value = float(books[0][0, int(index[0, vector, column]) * v + place])
        value += float(books[1][0, int(extra[0, vector, column]) * v + place]) if k_res else 0.0
        at = int(order[column])
        expected = value * float(held["m.weight_scale"][at]) + float(held["m.weight_bias"][at])
        assert float(found[row, at]) == pytest.approx(expected, rel=1e-5, abs=1e-6)


def test_an_index_without_an_entry_is_refused():
    options = VPTQ(k=64, k_res=0)
    found = options.shrink(normal(32, 64), moment(64), "a layer")
    config = {"config_for_layers": {"m": options.module_config((32, 64)) | {"num_centroids": [-1, 64]}}}
    held = Held({f"m.{part}": tensor for part, tensor in found.tensors.items()})
    held["m.centroids.weight"] = held["m.centroids.weight"][:, :-4]
    with pytest.raises(UsageError, match=r"m\.centroids\.weight should hold finite entries \[1, 256\]"):
        VptqForm(config).matrix("m", held)
    with pytest.raises(UsageError, match="says nothing of other"):
        VptqForm(config).matrix("other", held)


def test_it_errs_less_than_means_and_than_gptq_with_more_bits():
    weight, each = normal(192, 192), moment(192)
    options = VPTQ(k=256, k_res=0, iters=12)
    found = options.shrink(weight, each, "a layer")
    fed, unfed = (proxy_error(weight, each_weight, each.h) for each_weight in (found.weight, found.unfed))
    assert fed < 0.45 * unfed
    gptq = GPTQ(bits=2, group=64, act_order=True).shrink(weight, each, "a layer")
    assert fed < 0.6 * proxy_error(weight, gptq.weight, each.h)


def test_a_folder_says_what_every_reader_of_the_form_needs(tmp_path):
    texts = [[token % 500 for token in range(start, start + 40)] for start in range(0, 400, 40)]
    report = shrink.run("outlay/tiny-reasoner", "vptq:k=64,iters=4", tmp_path / "a", calib=texts)
    assert all(row["error"] < row["unfed_error"] for row in report.rows)
    config = read_json(tmp_path / "a" / "config.json")["quantization_config"]
    assert config["quant_method"] == "vptq"
    assert config["config_for_layers"]["model.layers.0.mlp.up_proj"]["vector_lens"] == [-1, 4]
    store = Checkpoint(tmp_path / "a", form_of({"quantization_config": config}))
    assert store.shape("model.layers.0.mlp.up_proj.weight") == (320, 128)
    assert load_model(tmp_path / "a").format == "int8"
    assert all(not row["wrong"] for row in shrink.check(tmp_path / "a"))


def test_bits_are_the_specifications():
    """A matrix of 4096 x 4096 at v = 8, k = 256 takes 1.002 bits a weight."""
    config = VPTQ(v=8, k=256, k_res=0).module_config((4096, 4096))
    words = -(-config["group_size"] * 8 // 32)
    file_bits = 32 * words * (4096 // 8) + 16 * 256 * 8
    assert round(file_bits / 4096**2, 3) == 1.002
    options = {bits: VPTQ.at_bits(bits) for bits in (1, 1.5, 2, 3, 4)}
    assert options[2] == {"v": 4, "k": 256, "k_res": 0}
    assert options[3] == {"v": 4, "k": 256, "k_res": 16}
    assert options[1.5] == {"v": 8, "k": 256, "k_res": 16}


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: VPTQ(k=100), "k of vptq must be a power of two from 2 to 65536, not 100"),
        (lambda: VPTQ(outlier_pct=2, perm=False), "outliers of vptq need v0=2 or more, and perm=true"),
        (lambda: VPTQ.at_bits(0.5), "1 to 2 bits a weight in steps of 0.125"),
        (
            lambda: VPTQ(v=40).shrink(normal(32, 64), moment(64), "a layer"),
            "v=40 is more than the 32 outputs of a layer",
        ),
        (lambda: VPTQ(k=1024).shrink(normal(32, 64), moment(64), "a layer"), "are larger than a layer itself, 32 x 64"),
        (
            lambda: VPTQ(k=16, groups=5).shrink(normal(32, 64), moment(64), "it"),
            "groups=5 doesn't divide the 64 inputs",
        ),
        (lambda: VptqForm({}), "has config_for_layers or shared_layer_config"),
    ],
)
def test_bad_input_is_refused_in_one_line(make, message):
    with pytest.raises(UsageError, match=message):
        make()
