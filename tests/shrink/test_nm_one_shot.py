"""One-shot N:M pruning: what is kept, what feedback gains, the packed form, and the public forms of sparse weights."""

from __future__ import annotations

import json
import math
import shutil
from itertools import combinations

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from outlay import cli, shrink
from outlay.bench.data import NOVEL
from outlay.errors import UsageError
from outlay.kernels.bits import pack_stream, unpack_stream
from outlay.models.checkpoint import Checkpoint, read_json
from outlay.models.forms import form_of
from outlay.models.forms.bitmask import BitmaskForm
from outlay.models.forms.nm import NmForm
from outlay.models.load import load_model, open_model
from outlay.shrink.calibration import Hidden, text_of
from outlay.shrink.catalog import make
from outlay.shrink.feedback import damped, inverse_factor, proxy_error
from outlay.shrink.nm import Pattern, nm_mask, violations
from outlay.shrink.nm.one_shot import NM, best_mask
from outlay.shrink.shrinker import Moment
from outlay.shrink.source import Source

REASONER = "outlay/tiny-reasoner"
TEXTS = [[token % 500 for token in range(start, start + 40)] for start in range(0, 400, 40)]
OPTIONS = [
    {}, {"by": "wanda"}, {"by": "magnitude"}, {"bits": 8}, {"bits": 4}, {"n": 1, "m": 16, "bits": 8},
    {"n": 4, "m": 16}, {"n": 2, "m": 64, "bits": 8}, {"n": 3, "m": 4, "bits": 4, "group": 16}, {"n": 4, "m": 4},
]  # fmt: skip


def moment(inputs, rows=2000):
    """Second moments of correlated inputs of very different sizes."""
    generator = torch.Generator().manual_seed(0)
    mixed = torch.randn(inputs, inputs, generator=generator).double()
    x = torch.randn(rows, inputs, generator=generator).double() @ (mixed * torch.logspace(0, -1, inputs).double())
    return Moment(x.T @ x / rows, rows, "a test")


def matrix(outputs, inputs):
    return torch.randn(outputs, inputs, generator=torch.Generator().manual_seed(1))


class Held:
    """Tensors by name, as a folder holds them."""

    def __init__(self, tensors):
        self.tensors = tensors

    def shape(self, name):
        return tuple(self.tensors[name].shape) if name in self.tensors else None

    def tensor(self, name):
        return self.tensors[name]


def read(shrinker, shrunk):
    held = Held({f"x.{name}": tensor for name, tensor in shrunk.tensors.items()})
    return NmForm(shrinker.quantization_config()).matrix("x", held)


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_what_is_read_is_what_was_pruned_in_the_bits_of_the_formula(options):
    method, weight = NM(**options), matrix(48, 64)
    shrunk = method.shrink(weight, moment(64), "x")
    found = read(method, shrunk)
    assert torch.equal(found.dequantize(), shrunk.weight)
    assert violations(shrunk.weight, Pattern(method.n, method.m)) == 0
    assert shrunk.file_bytes == found.nbytes
    places = (method.m - 1).bit_length()
    scales = 0 if method.bits == 16 else 16 / method.group
    assert 8 * shrunk.file_bytes == 48 * 64 * (method.n / method.m * (method.bits + places) + scales)
    assert torch.equal(found.take(torch.tensor([3, 1])).dequantize(), shrunk.weight[[3, 1]])


@pytest.mark.parametrize("bits", [8, 4])
def test_integers_run_in_the_plain_groups_of_the_kernels_exactly(bits):
    method = NM(bits=bits)
    found = read(method, method.shrink(matrix(48, 64), moment(64), "x"))
    assert found.format == f"int{bits}"
    assert torch.equal(found.plain().dequantize(), found.dequantize())


def test_feedback_loses_less_than_wanda_and_wanda_less_than_magnitude():
    weight, each = matrix(64, 64), moment(64)
    errors = [
        proxy_error(weight, NM(by=by).shrink(weight, each, "x").weight, each.h)
        for by in ("feedback", "wanda", "magnitude")
    ]
    assert errors[0] < 0.5 * errors[1]
    assert errors[1] < errors[2]


def test_equal_uncorrelated_inputs_keep_the_largest_as_they_are():
    weight = matrix(16, 64).bfloat16().float()
    each = Moment(3.0 * torch.eye(64, dtype=torch.float64), 1, "a test")
    for by in ("feedback", "wanda", "magnitude"):
        assert torch.equal(NM(by=by).shrink(weight, each, "x").weight, weight * nm_mask(weight, Pattern(2, 4)))


def test_a_group_s_mask_is_the_one_whose_loss_is_least_once_all_other_inputs_make_up_for_it():
    """Against least squares for each of the six masks of the first group, all columns after it free."""
    weight, h = matrix(12, 16), damped(moment(16).h, 0.01)
    mask = best_mask(weight[:, :4], inverse_factor(h)[:4, :4], 2)
    w = weight.double()
    losses = []
    for pruned in map(list, combinations(range(4), 2)):
        free = [column for column in range(16) if column not in pruned]
        move = -torch.linalg.solve(h[free][:, free], h[free][:, pruned] @ -w[:, pruned].T).T
        change = torch.zeros_like(w)
        change[:, pruned], change[:, free] = -w[:, pruned], move
        losses.append(((change @ h) * change).sum(1))
    best = torch.stack(losses).argmin(0)
    sets = torch.tensor(list(combinations(range(4), 2)))
    expected = torch.ones(12, 4, dtype=torch.bool).scatter_(1, sets[best], False)
    assert torch.equal(mask, expected)


def test_inputs_that_are_always_0_need_no_weight():
    each = moment(64)
    each.h[5], each.h[:, 5] = 0, 0
    assert not NM().shrink(matrix(8, 64), each, "x").weight[:, 5].any()


def test_a_stream_holds_numbers_of_any_bits():
    numbers = torch.arange(37) % 7
    for bits in (3, 4, 5, 9):
        stream = pack_stream(numbers, bits)
        assert len(stream) == -(-37 * bits // 8)
        assert torch.equal(unpack_stream(stream, bits, 37), numbers)


def test_bits_choose_the_options():
    assert make("nm", 9) == NM(bits=16)
    assert make("nm", 6) == NM(bits=8)
    assert make("nm", 3.5) == NM(bits=4)
    with pytest.raises(UsageError, match=r"nm holds 3\.5 bits a weight at 2:4 at least, not 2; sparser"):
        make("nm", 2)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"n": 5}, "keeps 1 to M"), ({"bits": 5}, "bits of nm must be 16, 8 or 4"),
        ({"damping": 0.0}, "damping of nm must be above 0"), ({"group": 0}, "group of nm must be 1 or more"),
    ],
)  # fmt: skip
def test_options_that_make_no_sense_are_refused(options, said):
    with pytest.raises(UsageError, match=said):
        NM(**options)


def test_groups_that_do_not_divide_a_layer_are_refused_by_name():
    for options, said in (({"m": 48, "n": 1}, "m=48 doesn't"), ({"bits": 8, "group": 48}, "group=48 doesn't")):
        with pytest.raises(UsageError, match=f"{said} divide the 64 inputs of mlp.up"):
            NM(**options).shrink(matrix(8, 64), moment(64), "mlp.up")


@pytest.fixture(scope="session")
def pruned(tmp_path_factory):
    """The tiny reasoner in 2:4 of 8 bits."""
    out = tmp_path_factory.mktemp("pruned") / "two"
    return out, shrink.run(REASONER, "nm:bits=8", out, calib=TEXTS[:4])


def test_a_folder_loads_and_its_check_names_what_breaks_the_pattern(pruned, tmp_path, capsys):
    folder, report = pruned
    assert report.bits == 5.5
    assert report.mean_error() < 0.8 * report.mean_error("unfed_error")
    model = load_model(folder)
    assert model.format == "int8"
    store = Checkpoint(folder, form_of(read_json(folder / "config.json")))
    assert violations(store.stored("model.layers.0.mlp.up_proj.weight").dequantize(), Pattern(2, 4)) == 0
    assert cli.main(["shrink", "--check", str(folder)]) == 0
    bad = shutil.copytree(folder, tmp_path / "bad")
    tensors = load_file(bad / "model-00002.safetensors")
    tensors["model.layers.1.mlp.up_proj.nm_places"][0] = 0b00000000
    save_file(tensors, bad / "model-00002.safetensors")
    capsys.readouterr()
    assert cli.main(["shrink", "--check", str(bad)]) == 1
    assert "model.layers.1.mlp.up_proj.nm_places breaks 2:4 in 2 of" in capsys.readouterr().out


def public(weight, form):
    """A module in a public form, made from its definition."""
    mask = weight != 0
    bits = torch.from_numpy(np.packbits(mask.numpy(), axis=1, bitorder="little"))
    values = weight[mask]
    tensors = {"bitmask": bits, "shape": torch.tensor(weight.shape).reshape(-1, 1)}
    if form == "sparse-24-bitmask":
        return tensors | {"compressed": values.view(len(weight), -1)}
    counts = mask.sum(1)
    offsets = counts.cumsum(0) - counts
    return tensors | {"compressed": values, "row_offsets": offsets, "shape": torch.tensor(weight.shape)}


def config(form, **more):
    return {"quant_method": "compressed-tensors", "sparsity_config": {"format": form}, "config_groups": {}, **more}


@pytest.mark.parametrize("form", ["sparse-24-bitmask", "sparse-bitmask"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32], ids=str)
def test_the_public_forms_are_read(form, dtype):
    weight = matrix(24, 44).to(dtype)
    weight = weight * nm_mask(weight, Pattern(2, 4))
    held = Held({f"x.{name}": tensor for name, tensor in public(weight, form).items()})
    found = BitmaskForm(config(form)).matrix("x", held)
    assert torch.equal(found.dequantize(dtype), weight)
    assert found.shape == (24, 44)


def test_a_folder_in_a_public_form_runs_as_the_same_weights_in_floats(tmp_path):
    source = load_model(REASONER).path
    folders = [shutil.copytree(source, tmp_path / name) for name in ("floats", "public")]
    tensors = load_file(source / "model.safetensors")
    packed = dict(tensors)
    for name in [name for name in tensors if ".mlp." in name]:
        tensors[name] = tensors[name] * nm_mask(tensors[name].float(), Pattern(2, 4))
        module = name.removesuffix(".weight")
        parts = public(tensors[name], "sparse-24-bitmask")
        del packed[name]
        packed |= {f"{module}.{part}": tensor for part, tensor in parts.items()}
    save_file(tensors, folders[0] / "model.safetensors")
    save_file({name: tensor.contiguous() for name, tensor in packed.items()}, folders[1] / "model.safetensors")
    raw = json.loads((folders[1] / "config.json").read_text())
    (folders[1] / "config.json").write_text(json.dumps({**raw, "quantization_config": config("sparse-24-bitmask")}))
    layers = [load_model(folder, dtype="float32").decoder.layers[1] for folder in folders]
    x = matrix(5, layers[0].mlp.gate_up.in_features)
    assert torch.equal(layers[0].mlp(x), layers[1].mlp(x))


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (config("sparse-24-bitmask", config_groups={"group_0": {}}), "are quantized besides"),
        (config("marlin-24"), "form 'marlin-24' of compressed-tensors, which outlay does not read"),
        ({"quant_method": "compressed-tensors", "format": "pack-quantized"}, "form 'pack-quantized'"),
    ],
)
def test_other_forms_of_compressed_tensors_are_refused_by_name(given, said):
    with pytest.raises(UsageError, match=said):
        form_of({"quantization_config": given})


def test_a_damaged_bitmask_is_refused():
    weight = matrix(8, 16) * nm_mask(matrix(8, 16), Pattern(2, 4))
    for part, change, said in (
        ("bitmask", lambda t: t ^ 1, "values for a bitmask of"),
        ("bitmask", lambda t: t[:4], "should hold bytes"),
        ("bitmask", lambda t: torch.full_like(t, 0b00001111), "breaks 2:4 in 32 groups"),
        ("compressed", lambda t: t.to(torch.int8), "of floats"),
    ):
        tensors = public(weight, "sparse-24-bitmask")
        tensors[part] = change(tensors[part])
        held = Held({f"x.{name}": tensor for name, tensor in tensors.items()})
        with pytest.raises(UsageError, match=said):
            BitmaskForm(config("sparse-24-bitmask")).matrix("x", held)


@pytest.mark.slow
def test_on_the_default_model_feedback_halves_wandas_error_and_is_below_a_third_of_magnitudes():
    """All matrices of three layers of the default model, calibrated on a novel."""
    opened = open_model("smollm2-135m")
    source, hidden = Source(opened), Hidden(opened.builder, text_of(NOVEL, opened, 4096))
    logs = {by: [] for by in ("feedback", "wanda", "magnitude")}
    for i in range(8):
        moments, streams = hidden.moments(i, opened.builder.layer(i))
        hidden.advance(streams)
        for place in source.places(i) if i in (1, 4, 7) else ():
            weight, each = source.matrix(place), moments[place.reads]
            for by, errors in logs.items():
                shrunk = NM(by=by).shrink(weight, each, place.module)
                errors.append(math.log(proxy_error(weight, shrunk.weight, each.h)))
    means = {by: math.exp(sum(errors) / len(errors)) for by, errors in logs.items()}
    assert means["feedback"] <= 0.5 * means["wanda"], means
    assert means["feedback"] <= 0.3 * means["magnitude"], means
