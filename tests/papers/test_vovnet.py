"""VoVNet: the properties that its specification lists, its peers, and the claims of the paper at small scale."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import nn
from vision.peer import needs, run
from vision.test_fold import norms, randomised

from outlay import Budget, UsageError
from outlay.bench import vision_blocks
from outlay.vision import VoVNetModel, count, names, open_network, profiles, save_folder, under_budget, weights
from outlay.vision.dense import DenseBlock, DenseNet
from outlay.vision.networks import load
from outlay.vision.osa import ConvNorm, OSABlock, OSAOptions
from outlay.vision.profiler import ranked
from outlay.vision.vovnet import DESIGNS

V1 = {"vovnet-27-slim": 27, "vovnet-39": 39, "vovnet-57": 57}
TIMM = [name for name in DESIGNS if names.origin(name) == names.TIMM and "vovnet" in name]
SMALL = ("ese_vovnet19b_slim_dw", "ese_vovnet19b_slim", "hgnetv2_b0")


def on_meta(name, **options):
    with torch.device("meta"):
        return VoVNetModel(name, **options).eval()


@pytest.mark.parametrize(
    ("name", "parameters"),
    [("vovnet-27-slim", 3_525_736), ("vovnet-39", 22_600_296), ("vovnet-57", 36_640_296), ("vovnet39a", 22_600_296)],
)
def test_parameter_counts_to_the_unit(name, parameters):
    assert sum(parameter.numel() for parameter in on_meta(name).parameters()) == parameters
    backbone = sum(parameter.numel() for parameter in on_meta(name, classes=0).parameters())
    assert backbone == parameters - 1000 * (on_meta(name).classifier.in_features + 1)


@pytest.mark.parametrize(
    ("name", "mult_adds", "mem_elements"),
    [("vovnet-27-slim", 2.176, 11.93), ("vovnet-39", 7.071, 36.83), ("vovnet-57", 8.929, 53.12)],
)
def test_multiply_adds_and_memory_access_cost_at_224(name, mult_adds, mem_elements):
    """The specification's totals take a strided convolution's input at the output's size; the formula takes its own."""
    cost = count(on_meta(name), torch.empty(1, 3, 224, 224))
    convs = [layer for layer, kind in cost.kinds.items() if kind == "Conv2d"]
    assert sum(cost.layers[conv].flops for conv in convs) / 2e9 == pytest.approx(mult_adds, abs=5e-4)
    strided = 3 * (224**2 - 112**2) + 64 * (112**2 - 56**2)
    counted = sum(cost.layers[conv].mem_elements for conv in convs)
    assert (counted - strided) / 1e6 == pytest.approx(mem_elements, abs=6e-3)


@pytest.mark.parametrize("name", V1)
def test_the_number_in_the_name_counts_the_convolutions(name):
    assert sum(isinstance(part, nn.Conv2d) for part in on_meta(name).modules()) == V1[name]


def test_the_block_concatenates_its_input_unchanged():
    block, x = randomised(OSABlock(6, 4, 8, 5)), torch.randn(2, 6, 9, 7)
    maps = block.maps(x)
    assert maps.shape[1] == 6 + 5 * 4
    assert torch.equal(maps[:, :6], x)


def test_a_block_of_one_layer_is_two_convolutions():
    block, x = randomised(OSABlock(6, 4, 8, 1)), torch.randn(2, 6, 9, 7)
    layer, mix = block.layers[0], block.aggregate[0]
    y = F.relu(layer.norm(layer.conv(x)))
    assert torch.allclose(block(x), F.relu(mix.norm(mix.conv(torch.cat([x, y], 1)))), atol=1e-6)


def test_the_identity_is_added_after_the_relu():
    plain, x = randomised(OSABlock(6, 4, 6, 2)), torch.randn(2, 6, 9, 7)
    with_identity = OSABlock(6, 4, 6, 2, residual=True).eval()
    with_identity.load_state_dict(plain.state_dict())
    assert torch.equal(with_identity(x), plain(x) + x)
    assert (with_identity(x) < 0).any()


def test_layers_read_a_constant_width_and_dense_ones_ever_more():
    osa, dense = OSABlock(8, 4, 8, 5), DenseBlock(8, 4, 5)
    assert [layer.conv.in_channels for layer in osa.layers] == [8, 4, 4, 4, 4]
    assert [layer.conv.in_channels for layer in dense.layers] == [8, 12, 16, 20, 24]


def test_the_memory_access_ratio_of_dense_to_osa_increases_with_the_layers():
    def cost(block):
        return count(block.eval(), torch.empty(1, 64, 40, 40)).total.mem_elements

    ratios = [cost(DenseBlock(64, 16, n)) / cost(OSABlock(64, 16, 64 + 16 * n, n)) for n in (2, 4, 8, 16, 32)]
    assert ratios == sorted(ratios)


@pytest.mark.parametrize("name", ["vovnet-27-slim", "ese_vovnet19b_slim_dw", "hgnetv2-atto"])
def test_folding_removes_every_normalisation_and_keeps_the_outputs(name):
    torch.manual_seed(0)
    net = randomised(VoVNetModel(name, classes=10))
    x = torch.rand(2, 3, 64, 64)
    folded = net.fold()
    assert not norms(folded)
    assert (folded(x) - net(x)).norm() < 1e-5 * net(x).norm()


def test_memory_formats_give_equal_outputs():
    net, x = randomised(VoVNetModel("vovnet-27-slim", classes=10)), torch.rand(1, 3, 64, 64)
    expected = net(x)
    got = net.to(memory_format=torch.channels_last)(x.to(memory_format=torch.channels_last))
    assert torch.allclose(got, expected, rtol=1e-5, atol=1e-5 * expected.abs().max().item())


@pytest.mark.parametrize(
    ("side", "sides"),
    [(224, (56, 28, 14, 7)), (320, (80, 40, 20, 10)), (512, (128, 64, 32, 16)), (259, (65, 32, 16, 8))],
)
def test_sides_of_the_features(side, sides):
    net = on_meta("vovnet-27-slim", classes=0)
    features = net(torch.empty(1, 3, side, side, device="meta"))
    assert list(features) == ["s4", "s8", "s16", "s32"]
    assert [tuple(value.shape[1:]) for value in features.values()] == [
        (width, size, size) for width, size in zip((128, 256, 384, 512), sides, strict=True)
    ]


def test_hgnetv2_for_small_detectors_ends_at_stride_16():
    assert list(on_meta("hgnetv2-pico", classes=0).widths) == ["s4", "s8", "s16"]
    sizes = [sum(p.numel() for p in on_meta(f"hgnetv2-{size}", classes=0).parameters()) for size in ("atto", "femto")]
    assert sizes == [230_344, 389_832]
    assert sum(p.numel() for p in on_meta("hgnetv2_b0", classes=0).parameters()) == 1_850_396


def test_answers_are_the_same_alone_and_in_a_batch():
    net, x = randomised(VoVNetModel("ese_vovnet19b_slim_dw", classes=10)), torch.rand(3, 3, 64, 64)
    alone = torch.cat([net(image[None]) for image in x])
    assert torch.allclose(net(x), alone, atol=1e-5 * alone.abs().max().item())


def test_options_build_one_block_for_every_family():
    x = torch.rand(1, 16, 8, 8)
    for options in (OSAOptions(), OSAOptions(depthwise=True), OSAOptions(5, "two", light=True, affine=True)):
        block = OSABlock(16, 8, 16, 3, gate=True, residual=True, options=options).eval()
        assert block(x).shape == x.shape
    assert count(OSABlock(16, 8, 16, 3, options=OSAOptions(aggregation="two")), x).kinds["aggregate.1"] == "ConvNorm"


# Weights


def official(state, name):
    """Our state dict under the names of the authors' code."""
    renamed = {}
    for key, value in state.items():
        parts = key.split(".")
        if parts[0] == "stem":
            kind = {"depthwise": "dw_conv3x3", "conv": "conv", "norm": "norm"}[parts[2]]
            if DESIGNS[name].depthwise and parts[1] != "0" and kind != "dw_conv3x3":
                kind = {"conv": "pw_conv1x1", "norm": "pw_norm"}[kind]
            key = f"stem.stem_{int(parts[1]) + 1}/{kind}.{parts[3]}"
        elif parts[0] == "stages":
            block = f"OSA{int(parts[1]) + 2}_{int(parts[3]) + 1}"
            start = f"stage{int(parts[1]) + 2}.{block}."
            if parts[4] == "layers":
                kind = {"depthwise": "dw_conv3x3", "conv": "conv", "norm": "norm"}[parts[6]]
                if DESIGNS[name].depthwise and kind != "dw_conv3x3":
                    kind = {"conv": "pw_conv1x1", "norm": "pw_norm"}[kind]
                key = f"{start}layers.{parts[5]}.{block}_{parts[5]}/{kind}.{parts[7]}"
            elif parts[4] == "aggregate":
                key = f"{start}concat.{block}_concat/{parts[6]}.{parts[7]}"
            elif parts[4] == "reduce":
                key = f"{start}conv_reduction.{block}_reduction_0/{parts[5]}.{parts[6]}"
            else:
                key = f"{start}ese.fc.{parts[6]}"
        renamed[key] = value
    return renamed


@pytest.mark.parametrize("name", ["vovnet-27-slim", "V-19-slim-dw-eSE"])
def test_the_official_names_are_loaded(tmp_path, name):
    net = VoVNetModel(name, classes=10)
    state = official(net.state_dict(), name)
    if name == "vovnet-27-slim":
        assert "stage2.OSA2_1.layers.0.OSA2_1_0/conv.weight" in state
    torch.save({"state_dict": {f"module.{key}": value for key, value in state.items()}}, tmp_path / "weights.pth")
    other = VoVNetModel(name, classes=10)
    load(other, tmp_path / "weights.pth")
    assert all(torch.equal(value, net.state_dict()[key]) for key, value in other.state_dict().items())


def test_a_backbone_takes_the_weights_of_a_classifier(tmp_path):
    net = VoVNetModel("vovnet-27-slim", classes=10)
    save_file(net.state_dict(), tmp_path / "weights.safetensors")
    backbone = VoVNetModel("vovnet-27-slim", classes=0)
    load(backbone, tmp_path / "weights.safetensors")
    assert torch.equal(backbone.stem[0].conv.weight, net.stem[0].conv.weight)


def test_a_file_of_another_code_is_refused_for_same_shapes(tmp_path):
    state = official(VoVNetModel("vovnet-27-slim").state_dict(), "vovnet-27-slim")
    save_file(state, tmp_path / "weights.safetensors")
    with pytest.raises(UsageError, match="names of the authors' code, which computes something else"):
        load(VoVNetModel("ese_vovnet19b_slim"), tmp_path / "weights.safetensors")


class Payload:
    """Runs code when it is unpickled."""

    def __reduce__(self):
        return (print, ("never",))


def without(state, *keys):
    return {key: value for key, value in state.items() if key not in keys}


def test_weights_that_do_not_fit_are_refused_by_name(tmp_path):
    net = VoVNetModel("hgnetv2-atto", classes=10)
    state = net.state_dict()
    cases = [
        (without(state, "stem.first.conv.weight"), "lacks stem.first.conv.weight"),
        (state | {"other": torch.ones(1)}, "has unknown other"),
        (state | {"stem.first.conv.weight": torch.ones(2, 3)}, "stem.first.conv.weight is 2x3, not 16x3x3x3"),
        (state | {"classifier.weight": torch.ones(7, 2048)}, "has 7 classes, the network 10"),
    ]
    for number, (changed, message) in enumerate(cases):
        path = tmp_path / f"{number}.safetensors"
        save_file({key: value.clone() for key, value in changed.items()}, path)
        with pytest.raises(UsageError, match=message) as caught:
            load(net, path)
        assert "\n" not in str(caught.value)
    torch.save({"a": Payload()}, tmp_path / "code.pth")
    (tmp_path / "cut.safetensors").write_bytes((tmp_path / "0.safetensors").read_bytes()[:1000])
    for name, message in [
        ("code.pth", "reading it could run code"),
        ("cut.safetensors", "is not a whole weight file"),
        ("gone.pth", "there is no file"),
    ]:
        with pytest.raises(UsageError, match=message) as caught:
            weights.read(tmp_path / name)
        assert "\n" not in str(caught.value)


def test_a_folder_that_was_written_is_read_again(tmp_path):
    network = open_network("hgnetv2-atto")
    save_folder(tmp_path / "net", network)
    again = open_network(str(tmp_path / "net"))
    x = torch.rand(1, 3, 32, 32)
    assert again.spec == "hgnetv2-atto"
    assert torch.equal(again.module(x), network.module(x))


@needs("timm")
def test_timms_weights_give_timms_outputs(tmp_path):
    compare_with_timm(tmp_path, SMALL, (97, 128))


@needs("timm")
@pytest.mark.slow
def test_all_of_timms_weights_give_timms_outputs(tmp_path):
    compare_with_timm(tmp_path, [*TIMM, "hgnetv2_b1", "hgnetv2_b4"], (224, 225, 320))


def compare_with_timm(folder, designs, sides):
    run(
        f"import timm\nfrom safetensors.torch import save_file\n"
        f"for name in {list(designs)}:\n"
        "    torch.manual_seed(0)\n"
        "    net = timm.create_model(name).eval()\n"
        "    for part in net.modules():\n"
        "        if isinstance(part, torch.nn.BatchNorm2d):\n"
        "            torch.nn.init.uniform_(part.running_var, 0.5, 1.5)\n"
        "            torch.nn.init.normal_(part.running_mean)\n"
        "    save_file(net.state_dict(), f'{folder}/{name}.safetensors')\n"
        f"    for side in {list(sides)}:\n"
        "        x = torch.rand(1, 3, side, side, generator=torch.Generator().manual_seed(side))\n"
        "        with torch.no_grad():\n"
        "            save_file({'y': net(x)}, f'{folder}/{name}-{side}.safetensors')\n",
        folder,
    )
    for name in designs:
        net = VoVNetModel(name).eval()
        load(net, folder / f"{name}.safetensors")
        for side in sides:
            x = torch.rand(1, 3, side, side, generator=torch.Generator().manual_seed(side))
            expected = load_file(folder / f"{name}-{side}.safetensors")["y"]
            with torch.no_grad():
                assert (net(x) - expected).abs().max() <= 1e-5 * max(1, expected.abs().max())


def test_timms_folder_names_its_network(tmp_path):
    net = VoVNetModel("hgnetv2-atto", classes=10)
    save_file(net.state_dict(), tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps({"architecture": "hgnetv2-atto.some_tag", "num_classes": 10}))
    assert open_network(str(tmp_path)).module.classes == 10


# Choosing


def test_the_largest_design_under_a_budget():
    some = ["hgnetv2-atto", "vovnet-27-slim", "vovnet-39"]
    assert under_budget(Budget(flops=5e9), names=some) == "vovnet-27-slim"
    assert under_budget(Budget(flops=5e9, moved_bytes=1e8), names=some) == "hgnetv2-atto"
    with pytest.raises(UsageError, match=r"the closest is hgnetv2-atto, \d+% above it"):
        under_budget(Budget(flops=3e8), names=some)
    with pytest.raises(UsageError, match="seconds has to be measured"):
        under_budget(Budget(seconds=1))


# The paper's claims


def blocks():
    """The specification's blocks: 64 channels of 40x40 read, 352 written."""
    torch.manual_seed(0)
    return {make.__name__: make() for make in (vision_blocks.dense, vision_blocks.bottleneck, vision_blocks.osa)}


def test_the_blocks_of_the_acceptance_experiment_have_its_weights_and_memory_access():
    x = torch.rand(1, 64, 40, 40)
    cost = {name: count(block, x).total for name, block in blocks().items()}
    weights_of = {name: sum(p.numel() for p in block.parameters() if p.dim() == 4) for name, block in blocks().items()}
    assert {name: round(amount / 1e3) for name, amount in weights_of.items()} == {
        "dense": 508, "bottleneck": 475, "osa": 440,
    }  # fmt: skip
    assert {name: round(amounts.mem_elements / 1e6, 2) for name, amounts in cost.items()} == {
        "dense": 4.73, "bottleneck": 8.39, "osa": 3.0,
    }  # fmt: skip
    assert cost["dense"].mem_elements / cost["osa"].mem_elements >= 1.5
    assert cost["bottleneck"].flops / cost["osa"].flops < 1.1  # FLOPs hardly tell them apart


def test_densenets_have_the_published_parameters():
    for name, parameters in [("densenet-121", 7_978_856), ("densenet-161", 28_681_000), ("densenet-201", 20_013_928)]:
        with torch.device("meta"):
            assert sum(p.numel() for p in DenseNet(name).parameters()) == parameters


@pytest.mark.slow
def test_osa_takes_less_time_than_dense_blocks_and_profile_ranks_them_by_it():
    """The paper's ratios, which depend on the processor: docs/vision.md says on which they fail, and why."""
    x = torch.rand(1, 64, 40, 40)
    found = {p.name: p for p in profiles({name: (block, (x,)) for name, block in blocks().items()}, rounds=15)}
    osa = found["osa"]
    assert ranked([*found.values()])[0] is osa
    for name in ("dense", "bottleneck"):
        assert found[name].cpu_seconds / osa.cpu_seconds >= 1.4
        assert osa.flops_per_second / found[name].flops_per_second >= 1.3


@pytest.mark.slow
def test_on_digits_osa_is_as_accurate_as_dense_and_faster():
    """Dense growth 12, 6 layers; OSA of 5 layers with 28 % fewer parameters. 12 epochs, 3 seeds, about a minute."""
    from sklearn.datasets import load_digits

    images, labels = load_digits(return_X_y=True)
    order = np.random.default_rng(0).permutation(len(images))
    x = torch.tensor(images[order], dtype=torch.float32).view(-1, 1, 8, 8) / 16
    y = torch.tensor(labels[order])

    def dense():
        return nn.Sequential(
            ConvNorm(1, 16, 3), DenseBlock(16, 12, 6), nn.MaxPool2d(2), DenseBlock(88, 12, 6),
            nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(160, 10),
        )  # fmt: skip

    def osa():
        return nn.Sequential(
            ConvNorm(1, 16, 3), OSABlock(16, 20, 72), nn.MaxPool2d(2), OSABlock(72, 22, 100),
            nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(100, 10),
        )  # fmt: skip

    accuracy = {make: np.mean([trained(make, x, y, seed)[1] for seed in range(3)]) for make in (dense, osa)}
    found = profiles({make.__name__: (make().eval(), (x[1437:],)) for make in (dense, osa)}, rounds=15)
    print({make.__name__: value for make, value in accuracy.items()}, [p.cpu_seconds for p in found])
    assert accuracy[osa] >= accuracy[dense] - 0.015
    assert found[1].cpu_seconds <= 0.95 * found[0].cpu_seconds


def trained(make, x, y, seed):
    torch.manual_seed(seed)
    net = make()
    optimiser = torch.optim.AdamW(net.parameters(), 3e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, 12 * 23)
    for _ in range(12):
        for batch in torch.randperm(1437).split(64):
            F.cross_entropy(net(x[batch]), y[batch]).backward()
            optimiser.step()
            optimiser.zero_grad()
            schedule.step()
    net.eval()
    with torch.no_grad():
        return net, (net(x[1437:]).argmax(1) == y[1437:]).float().mean().item()
