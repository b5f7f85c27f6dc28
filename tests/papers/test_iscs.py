"""ISCS: what the order and the groups of a picture codec's channels keep, and what they are worth on a tiny codec."""

from __future__ import annotations

import pytest
import torch
from codec.make_tiny_codec import FOLDER, SIZE, photos_of_tests, train, training_pictures
from scipy.stats import spearmanr

from outlay import kernels
from outlay.codec.circuit.arrays import unpack_streams
from outlay.codec.container import unpack
from outlay.codec.files import decompress_all
from outlay.codec.lic import ISCS, Codec, Form, Layout, PictureCodec, PictureCoder, channel_scores, load
from outlay.codec.lic.conditional import Latents, fit, saved_bits
from outlay.codec.lic.iscs import (
    ablation,
    core_channels,
    deal,
    filter_correlation,
    inactive_channels,
    pair,
    psnr,
    reorder,
)
from outlay.errors import UsageError

ARCHITECTURES = ("tiny", "bmshj2018-factorized", "bmshj2018-hyperprior", "mbt2018-mean")


@pytest.fixture(autouse=True)
def native():
    if not kernels.available():
        raise AssertionError("the native kernels are not built")


@pytest.fixture(scope="module")
def tiny():
    return load(FOLDER)


@pytest.fixture(scope="module")
def photos():
    return photos_of_tests()


def floats(picture):
    return picture.permute(2, 0, 1).float() / 255


def random_codec(architecture="tiny", inner=6, latents=12, seed=0):
    """A codec with random weights whose scales and filters differ from channel to channel."""
    torch.manual_seed(seed)
    codec = Codec(Form(architecture, inner, latents))
    with torch.no_grad():
        codec.last.weight *= torch.rand(latents, 1, 1, 1) + 0.5
        codec.last.bias += torch.randn(latents)
        for parameter in codec.factorized.parameters():
            parameter += 0.1 * torch.rand_like(parameter)
        codec.g_a[-1].weight *= 20
        if codec.form.hyper:
            codec.h_s[4].bias += 1
    return codec.eval()


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_reordering_keeps_the_function(architecture):
    codec = random_codec(architecture)
    layout = ISCS(slices=3).layout(codec)
    twin, pixels = reorder(codec, layout), torch.rand(2, 3, 64, 64)
    order = list(layout.channels)
    with torch.no_grad():
        latents = codec.analyse(pixels)
        assert torch.equal(twin.analyse(pixels), latents[:, order])
        assert (twin.synthesize(latents[:, order].round()) - codec.synthesize(latents.round())).abs().max() <= 1e-5
    before = PictureCoder(PictureCodec.of(codec), "before")
    after = PictureCoder(PictureCodec(twin, layout), "after")
    picture = (pixels[0] * 255).to(torch.uint8).permute(1, 2, 0)
    bits = [coder.compress(picture).ideal_bits for coder in (before, after)]
    assert bits[1] == pytest.approx(bits[0], rel=1e-3)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_groups_are_a_partition_and_slices_hold_whole_groups(architecture):
    codec = random_codec(architecture)
    for order in ("progressive", "interleaved"):
        layout = ISCS("prior", slices=3, order=order).layout(codec)
        cores = [c for c, core in enumerate(layout.core_of) if core == c]
        assert sorted(layout.channels) == list(range(12))
        assert len(cores) == 3
        assert all(layout.slice_of[c] == layout.slice_of[core] for c, core in enumerate(layout.core_of))
        members = [layout.core_of.count(core) - 1 for core in cores]
        assert max(members) <= -(-9 // 3) + 1
        if order == "progressive":
            assert cores == [0, 1, 2]
        else:
            assert all(core in (c, layout.core_of[c - 1]) for c, core in enumerate(layout.core_of))


def test_the_order_depends_on_the_weights_alone():
    codec = random_codec()
    for score in ("weights", "variance", "prior", "probe"):
        torch.manual_seed(1)
        first = ISCS(score, slices=2).layout(codec)
        torch.manual_seed(2)
        assert ISCS(score, slices=2).layout(codec) == first
    with pytest.raises(UsageError, match="ablation measures on pictures"):
        ISCS("ablation", slices=2).layout(codec)


def test_channels_that_are_relabelled_get_the_same_groups():
    codec, shuffled = random_codec(), torch.randperm(12, generator=torch.Generator().manual_seed(3)).tolist()
    twin = reorder(codec, Layout(tuple(shuffled), tuple(range(12)), (0,) * 12, "none"))
    for score in ("weights", "variance", "prior", "probe"):
        first, second = (ISCS(score, slices=3).layout(each) for each in (codec, twin))
        assert [shuffled[c] for c in second.channels] == list(first.channels), score
        assert (second.core_of, second.slice_of) == (first.core_of, first.slice_of)


def test_equal_scores_keep_the_lower_index_first():
    assert core_channels(torch.tensor([1.0, 3, 3, 2], dtype=torch.float64), torch.ones(4), 3) == [1, 2, 3]


def test_a_share_of_the_importance_takes_the_fewest_channels_that_reach_it():
    importance = torch.tensor([5.0, 1, 3, 1], dtype=torch.float64)
    assert core_channels(importance, importance, 0.8) == [0, 2]
    assert core_channels(importance, importance, 0.81) == [0, 2, 1]


def test_auxiliaries_choose_the_most_correlated_core_with_room():
    correlation = torch.eye(6, dtype=torch.float64)
    for channel, rho in zip(range(2, 6), (0.9, -0.8, 0.7, 0.6), strict=True):
        correlation[channel, 0] = correlation[0, channel] = rho
        correlation[channel, 1] = correlation[1, channel] = 0.1
    assert pair([0, 1], correlation) == {0: [2, 3, 4], 1: [5]}
    assert pair([0, 1], correlation, {3}) == {0: [2, 4, 5], 1: []}


def test_a_channel_without_a_filter_is_inactive_and_last():
    codec = random_codec()
    with torch.no_grad():
        codec.last.weight[4] *= 1e-3
    assert inactive_channels(codec) == {4}
    layout = ISCS(slices=2).layout(codec)
    assert layout.channels[-1] == 4
    assert layout.core_of[-1] == -1


def test_cores_are_dealt_in_snake_order():
    assert deal(7, 3) == [0, 1, 2, 2, 1, 0, 0]


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("fitted", [False, True])
def test_latents_come_back_exactly_at_any_number_of_channels(architecture, fitted):
    codec = PictureCodec.of(random_codec(architecture)).reordered(ISCS(slices=3))
    picture = (torch.rand(50, 75, 3, generator=torch.Generator().manual_seed(5)) * 255).to(torch.uint8)
    if fitted:
        codec = codec.fitted([floats(picture)], steps=20)
    integers, _, code = codec.integers(codec.padded(floats(picture)))
    for channels in (1, 5, 12):
        coder = PictureCoder(codec, "codec", channels=channels)
        written = coder.compress(picture)
        for workers in (1, 3):
            reader = PictureCoder(codec, "codec", workers=workers)
            ((_, container, decoded),) = decompress_all([(0, unpack(written.container.pack()))], reader)
            assert not decoded.missing
            sent = integers.clone()
            sent[channels:] = 0
            shown = (codec.picture(sent, code)[:, :50, :75] * 255).round().to(torch.uint8).permute(1, 2, 0)
            assert torch.equal(reader.render(container, decoded), shown)
        coded = 8 * sum(block.coded for block in container.blocks)
        assert coded <= written.ideal_bits * 1.005 + 64 * 2 * len(container.blocks)


def test_more_channels_never_take_fewer_bits(tiny, photos):
    codec = tiny.reordered(ISCS("prior", slices=4)).fitted([floats(photos[1])], steps=20)
    bits = [PictureCoder(codec, "tiny", channels=count).compress(photos[0]).ideal_bits for count in range(1, 33)]
    assert bits == sorted(bits)


def test_a_damaged_slice_costs_itself_alone(tiny, photos):
    codec = tiny.reordered(ISCS("prior", slices=4))
    coder = PictureCoder(codec, "tiny")
    written = coder.compress(photos[0]).container
    body = bytearray(written.body)
    body[written.blocks[0].coded + 7] ^= 1  # in the second slice
    damaged = unpack(written.pack()[: -len(body)] + bytes(body))
    ((_, _, decoded),) = decompress_all([(0, damaged)], coder)
    ((_, _, whole),) = decompress_all([(0, written)], coder)
    assert decoded.missing == {1: "block 1: its bytes are damaged"}
    assert [decoded.blocks[place] for place in (0, 2, 3)] == [whole.blocks[place] for place in (0, 2, 3)]
    shown, expected = coder.render(damaged, decoded), floats(photos[0])
    assert shown.shape == (224, 320, 3)
    assert 8 < psnr(floats(shown), expected) < psnr(floats(coder.render(written, whole)), expected)


def test_fitting_auxiliaries_changes_no_picture_and_spends_no_more_on_what_it_was_fitted_to(tiny, photos):
    plain = tiny.reordered(ISCS("prior", slices=4))
    fitted = plain.fitted([floats(photos[0])], steps=60)
    before, after = (PictureCoder(codec, "tiny").compress(photos[0]) for codec in (plain, fitted))
    shown = []
    for codec, written in ((plain, before), (fitted, after)):
        coder = PictureCoder(codec, "tiny")
        ((_, container, decoded),) = decompress_all([(0, written.container)], coder)
        shown.append(coder.render(container, decoded))
    assert before.container.digest == after.container.digest
    assert torch.equal(*shown)
    assert after.ideal_bits < before.ideal_bits


def test_stage_b_finds_the_slope_and_the_narrowing_of_normal_latents():
    generator = torch.Generator().manual_seed(0)
    core = (torch.randn(1, 100, 100, generator=generator) * 9).round()
    mine = (0.5 * core + torch.randn(1, 100, 100, generator=generator) * 2).round()
    values = torch.cat([core, mine]).long()
    latents = [Latents(values, torch.full((2, 100, 100), 9.0), None)]
    layout = Layout((0, 1), (0, 0), (0, 0), "prior")
    found = fit(
        latents, layout, torch.tensor([[1.0, 0.9], [0.9, 1.0]], dtype=torch.float64), values.flatten(1).float().std(1)
    )
    assert bool(found.used[1])
    assert not bool(found.used[0])
    assert float(found.slope[1]) == pytest.approx(0.5, abs=0.02)
    left = float(found.scale[1] * found.narrowing[1])
    assert left == pytest.approx(2.0, rel=0.08)
    correlation = torch.corrcoef(values.flatten(1).double())[0, 1]
    assert saved_bits(latents, layout.core_of) == pytest.approx(float(-0.5 * torch.log2(1 - correlation**2)))


def test_filter_correlation_is_the_cosine_of_filters_without_their_means():
    codec = random_codec()
    rows = codec.last.weight.detach().double().flatten(1)
    assert filter_correlation(codec)[2, 5] == pytest.approx(float(torch.corrcoef(rows)[2, 5]))


def measured(codec, photos):
    """Rank correlations with ablation, the rate and error with a quarter pruned, pairing, and bytes of auxiliaries."""
    expected = [floats(photo) for photo in photos]
    truth = ablation(codec.codec, expected[:1])
    ranks = {score: spearmanr(channel_scores(codec.codec, score), truth)[0] for score in ("variance", "prior", "probe")}
    ordered = codec.reordered(ISCS("prior", slices=4))
    integers, _, code = ordered.integers(expected[0])
    pruned = integers.clone()
    pruned[24:] = 0
    lost = psnr(ordered.picture(integers, code), expected[0]) - psnr(ordered.picture(pruned, code), expected[0])
    sizes = [len(PictureCoder(ordered, "x", channels=n).compress(photos[0]).container.pack()) for n in (24, 32)]
    generator, chance = torch.Generator().manual_seed(0), []
    for _ in range(40):
        dropped = integers.clone()
        dropped[torch.randperm(32, generator=generator)[:8]] = 0
        chance.append(
            psnr(ordered.picture(integers, code), expected[0]) - psnr(ordered.picture(dropped, code), expected[0])
        )
    grouped = codec.reordered(ISCS(slices=4))
    latents = [grouped.latents(each) for each in expected]
    strangers = []
    for _ in range(20):
        cores = [
            c if core == c else int(torch.randint(8, (), generator=generator))
            for c, core in enumerate(grouped.layout.core_of)
        ]
        strangers.append(saved_bits(latents, cores))
    pairing = saved_bits(latents, grouped.layout.core_of) / (sum(strangers) / len(strangers))
    fitted = ordered.fitted(training_pictures(size=SIZE), steps=100)
    bytes_b = []
    for each in (ordered, fitted):
        files = [PictureCoder(each, "x").compress(photo).container for photo in photos]
        bytes_b.append(sum(4 * len(unpack_streams(file.coded(part), 2)[1]) for file in files for part in range(4)))
    return {
        **ranks, "rate": sizes[0] / sizes[1], "lost": lost, "random": sum(chance) / len(chance), "pairing": pairing,
        "auxiliaries": bytes_b[1] / bytes_b[0],
    }  # fmt: skip


def hold(found):
    assert found["variance"] >= 0.6
    assert found["prior"] >= 0.8
    assert found["probe"] >= 0.9
    assert found["rate"] <= 0.9
    assert found["lost"] <= 0.6
    assert found["random"] >= found["lost"] + 2
    assert found["pairing"] >= 2.5
    assert found["auxiliaries"] <= 0.99


def test_on_the_kept_codec_the_weights_alone_rank_prune_and_pair(tiny, photos):
    hold(measured(tiny, photos))


@pytest.mark.slow
def test_on_three_trainings_the_weights_alone_rank_prune_and_pair(photos):
    """Means of three seeds, a minute of training each."""
    every = [measured(train(seed), photos) for seed in range(3)]
    hold({name: sum(each[name] for each in every) / 3 for name in every[0]})
