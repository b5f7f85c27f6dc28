"""CRATE: the steps of sparse rate reduction, the released blocks, the autoencoder, and what trained layers do."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import nn

from outlay import UsageError, vision
from outlay.bench.encoders.white_box import TransformerOfDigits, accuracy, crate_of_digits, digits, fit, rates
from outlay.vision import crate
from outlay.vision.crate import autoencoder
from outlay.vision.crate.blocks import SubspaceAttention
from outlay.vision.crate.rates import coordinates
from outlay.vision.networks import open_network

RELEASED_EPS2 = "0.01"


def drawn(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def orthonormal(dim, heads, seed=0):
    """Subspaces [heads, dim, dim / heads] that together are an orthonormal basis."""
    return torch.linalg.qr(drawn(dim, dim, seed=seed)).Q.view(dim, heads, -1).transpose(0, 1)


# Rates and steps


@pytest.mark.parametrize(("n", "dim"), [(5, 12), (12, 5), (8, 8)])
def test_the_rate_is_the_same_by_tokens_and_by_dimensions_and_never_negative(n, dim):
    z, scale = drawn(3, n, dim), dim / (n * 0.25)
    by_tokens = torch.logdet(torch.eye(n).double() + scale * z @ z.mT) / 2
    by_dimensions = torch.logdet(torch.eye(dim).double() + scale * z.mT @ z) / 2
    assert torch.allclose(by_tokens, by_dimensions, rtol=1e-12)
    assert torch.allclose(crate.rate(z, 0.25), by_tokens, rtol=1e-12)
    assert (crate.rate(z, 0.25) > 0).all()
    assert crate.rate(torch.zeros(n, dim), 0.25) == 0


def test_the_subspace_rate_does_not_change_with_the_order_of_tokens_or_a_rotation_within_a_head():
    w = drawn(2, 4, 10, 6)
    expected = crate.subspace_rate(w, 0.01)
    rotations = torch.linalg.qr(drawn(4, 6, 6, seed=1)).Q
    assert torch.allclose(crate.subspace_rate(w[:, :, torch.randperm(10)], 0.01), expected, rtol=1e-12)
    assert torch.allclose(crate.subspace_rate(w @ rotations, 0.01), expected, rtol=1e-12)


def test_the_gradient_is_that_of_autograd():
    z, subspaces = drawn(2, 9, 12).requires_grad_(), drawn(3, 12, 4, seed=1)
    crate.subspace_rate(coordinates(z, subspaces), 0.25).sum().backward()
    assert torch.allclose(crate.rate_gradient(z.detach(), subspaces, 0.25), z.grad, rtol=0, atol=1e-12)


@pytest.mark.parametrize("eps2", [1.0, 0.25])
@pytest.mark.parametrize("kappa", [1e-3, 1e-2, 1e-1])
@pytest.mark.parametrize(("n", "dim", "heads"), [(32, 24, 4), (16, 32, 4), (64, 16, 2)])
def test_both_compression_steps_lower_the_subspace_rate(n, dim, heads, kappa, eps2):
    subspaces = orthonormal(dim, heads)
    for seed in range(3):
        z = drawn(n, dim, seed=seed)
        before = crate.subspace_rate(coordinates(z, subspaces), eps2)
        for after in (z - kappa * crate.rate_gradient(z, subspaces, eps2), crate.compress(z, subspaces, kappa, eps2)):
            assert crate.subspace_rate(coordinates(after, subspaces), eps2) < before


@pytest.mark.parametrize("share", [1.0, 0.5, 0.01])
def test_the_sparsification_step_never_raises_the_lasso_objective(share):
    for seed in range(5):
        dictionary, half, lam = drawn(12, 12, seed=seed), drawn(20, 12, seed=seed + 50), 0.1
        eta = share / torch.linalg.matrix_norm(dictionary, 2).item() ** 2

        def objective(z, dictionary=dictionary, half=half, lam=lam):
            return lam * z.abs().sum() + (half - z @ dictionary.mT).square().sum() / 2

        start = half.relu()
        assert objective(crate.sparsify(start, dictionary, eta, lam, half)) <= objective(start)


def test_the_dictionary_multiplies_a_token_as_a_column():
    z, dictionary = drawn(7), drawn(7, 7, seed=1)
    expected = torch.relu(z + 0.2 * (dictionary.T @ z - dictionary.T @ dictionary @ z) - 0.2 * 0.3)
    assert torch.allclose(crate.sparsify(z[None], dictionary, 0.2, 0.3)[0], expected, rtol=1e-12)


@pytest.mark.parametrize("share", [1.0, 0.3])
def test_steps_in_a_wide_dictionary_never_raise_the_lasso_objective(share):
    for seed in range(5):
        dictionary, x, lam = drawn(8, 32, seed=seed), drawn(20, 8, seed=seed + 50), 0.1
        eta = share / torch.linalg.matrix_norm(dictionary, 2).item() ** 2
        codes = [torch.zeros(20, 32).double(), *(crate.sparse_code(x, dictionary, eta, lam, n) for n in (1, 2, 3))]
        values = [lam * z.sum() + (x - z @ dictionary.mT).square().sum() / 2 for z in codes]
        assert all(later < earlier for earlier, later in itertools.pairwise(values))
        assert all((z >= 0).all() for z in codes)


# Blocks


@pytest.fixture(scope="module", params=["released", "theory"])
def block(request):
    torch.manual_seed(0)
    made = crate.EncoderBlock(24, 4) if request.param == "released" else crate.TheoryBlock(24, 4)
    return made.double()


def test_a_block_writes_no_negative_number_and_minds_no_order_of_tokens(block):
    x, order = drawn(2, 10, 24), torch.randperm(10)
    out = block(x)
    assert (out >= 0).all()
    assert (out == 0).any()
    assert torch.allclose(block(x[:, order]), out[:, order], rtol=1e-10)


def test_a_masked_token_is_not_read(block):
    x, mask = drawn(1, 6, 24), torch.ones(6, 6, dtype=torch.bool).tril()
    other = x.clone()
    other[:, 4:] = 7
    assert torch.allclose(block(x, mask)[:, :4], block(other, mask)[:, :4])
    assert not torch.allclose(block(x)[:, :4], block(other)[:, :4])


def test_the_released_block_is_its_formula():
    torch.manual_seed(0)
    block, z = crate.EncoderBlock(12, 3, eta=0.2, lam=0.05).double(), drawn(1, 5, 12)
    attention, ista = block
    for norm in (attention.norm, ista.norm):
        nn.init.normal_(norm.weight)
        nn.init.normal_(norm.bias)
    w = (attention.norm(z) @ attention.fn.qkv.weight.T).view(5, 3, 4).transpose(0, 1)
    scores = w @ w.mT
    assert torch.allclose(scores, scores.mT)
    assert (torch.linalg.eigvalsh(scores) > -1e-12).all()
    o = ((scores / 4**0.5).softmax(-1) @ w).transpose(0, 1).reshape(1, 5, 12)
    y = z + o @ attention.fn.to_out[0].weight.T + attention.fn.to_out[0].bias
    g, d = ista.norm(y), ista.fn.weight
    expected = torch.relu(g + 0.2 * (g @ d - (g @ d.T) @ d) - 0.2 * 0.05)
    assert torch.allclose(block(z), expected, rtol=1e-12)
    with torch.no_grad():
        assert torch.allclose(block(z), expected, rtol=1e-12)


def test_the_decoder_block_subtracts_its_attention():
    torch.manual_seed(0)
    block, z = crate.DecoderBlock(12, 3).double(), drawn(2, 5, 12)
    half = block[0].norm(z) @ block[0].fn.weight.T
    assert torch.allclose(block(z), half - block[1].fn(block[1].norm(half)), rtol=1e-12)


@pytest.mark.parametrize("residual", [False, True])
def test_a_wide_dictionary_codes_a_token_in_two_steps_and_another_makes_a_token_of_the_code(residual):
    torch.manual_seed(0)
    block, x = crate.EncoderBlock(6, 2, 0.2, 0.05, dict_ratio=3, residual=residual).double(), drawn(1, 4, 6)
    attention, second = block
    y = x + attention(x)
    for token, found in zip(y[0], block(x)[0], strict=True):
        g, d, d1 = second.norm(token), second.fn.D, second.fn.D1
        first = torch.relu(0.2 * d.T @ g - 0.2 * 0.05)
        code = torch.relu(first - 0.2 * d.T @ (d @ first - g) - 0.2 * 0.05)
        assert torch.allclose(found, d1 @ code + (token if residual else 0), rtol=1e-12)
    assert sum(p.numel() for p in block.parameters()) == (2 + 2 * 3) * 6**2 + 5 * 6


def test_a_residual_adds_the_sparsification_to_the_tokens():
    torch.manual_seed(0)
    plain, added = (crate.EncoderBlock(12, 3, residual=residual).double() for residual in (False, True))
    added.load_state_dict(plain.state_dict())
    x = drawn(1, 5, 12)
    assert torch.allclose(added(x), x + plain[0](x) + plain(x), rtol=1e-12)


def test_a_classifier_of_wide_dictionaries_learns_and_is_measured_layer_by_layer():
    torch.manual_seed(0)
    options = {"image_size": 8, "patch": 4, "channels": 1, "classes": 3, "dim": 16, "heads": 2, "depth": 2}
    net = crate.build("crate-tiny", **options, dict_ratio=4, residual=True)
    images, labels = torch.rand(12, 1, 8, 8), torch.arange(12) % 3
    optimizer, losses = torch.optim.AdamW(net.parameters(), lr=1e-2), []
    for _ in range(30):
        loss = nn.functional.cross_entropy(net(images), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] / 4
    assert [layer.layer for layer in crate.diagnose(net, images)] == ["transformer.layers.0", "transformer.layers.1"]


def test_one_head_has_no_output_layer():
    assert isinstance(SubspaceAttention(8, 1).to_out, nn.Identity)


@pytest.mark.parametrize("dim", [64, 384])
def test_a_block_has_a_quarter_of_the_parameters_of_a_transformer(dim):
    ours = sum(p.numel() for p in crate.EncoderBlock(dim, 4).parameters())
    theirs = sum(p.numel() for p in nn.TransformerEncoderLayer(dim, 4, 4 * dim).parameters())
    assert ours == 3 * dim**2 + 5 * dim
    assert ours <= 0.26 * theirs


def test_a_token_costs_at_most_ten_squares_of_its_width_in_flops_beside_attention():
    dim, n = 64, 10
    found = vision.count(crate.EncoderBlock(dim, 4).eval(), torch.empty(1, n, dim))
    attention = 4 * n * n * dim
    assert found.total.flops - attention <= 10 * dim**2 * n


# Networks and weights


@pytest.mark.parametrize(
    ("name", "parameters"),
    [("crate-tiny", 6.1), ("crate-small", 13.1), ("crate-base", 22.8), ("crate-large", 77.6)],
)
def test_the_sizes_have_the_parameters_of_the_paper(name, parameters):
    with torch.device("meta"):
        net = crate.build(name)
    assert sum(p.numel() for p in net.parameters()) / 1e6 == pytest.approx(parameters, abs=0.05)


def released(net):
    """A state dict as the released training program saves it."""
    return {"state_dict": {f"module.{name}": value.clone() for name, value in net.state_dict().items()}}


CLASSIFIER_NAMES = {
    "pos_embedding", "cls_token", "to_patch_embedding.2.weight", "transformer.layers.11.0.norm.weight",
    "transformer.layers.0.0.fn.qkv.weight", "transformer.layers.0.0.fn.to_out.0.bias",
    "transformer.layers.11.1.fn.weight", "mlp_head.1.weight",
}  # fmt: skip
MAE_NAMES = {
    "mask_token", "patch_embed.proj.weight", "decoder_pos_embed", "blocks.11.layers.0.0.fn.qkv.weight",
    "blocks.0.layers.0.1.fn.weight", "decoder_blocks.11.layers.0.0.fn.weight",
    "decoder_blocks.0.layers.0.1.fn.to_out.0.weight", "decoder_norm.weight", "decoder_pred.bias",
}  # fmt: skip


def test_released_weights_load_by_their_names(tmp_path):
    torch.manual_seed(1)
    net = crate.build("crate-tiny")
    assert {*net.state_dict()} >= CLASSIFIER_NAMES
    assert not any("qkv.bias" in name for name in net.state_dict())
    torch.save(released(net), tmp_path / "crate.pth")
    again = open_network("CRATE_tiny", tmp_path / "crate.pth").module
    images = torch.rand(1, 3, 224, 224)
    with torch.no_grad():
        assert torch.equal(again(images), net.eval()(images))


def test_released_weights_of_the_autoencoder_load_without_what_nothing_reads(tmp_path):
    torch.manual_seed(1)
    net = crate.build("crate-mae-tiny")
    assert {*net.state_dict()} >= MAE_NAMES
    unused = {"pos_embed": torch.zeros(1, 197, 384), "decoder_embed.weight": torch.zeros(384, 384)}
    unused["decoder_embed.bias"] = torch.zeros(384)
    torch.save({"model": net.state_dict() | unused}, tmp_path / "mae.pth")
    again = open_network("crate-mae-tiny", tmp_path / "mae.pth").module
    assert all(torch.equal(value, again.state_dict()[name]) for name, value in net.state_dict().items())


def test_a_trained_network_of_any_size_is_written_and_read_again(tmp_path):
    options = {"image_size": 8, "patch": 2, "channels": 1, "classes": 10, "dim": 16, "heads": 2, "depth": 2}
    net = crate.build("crate-tiny", **options).eval()
    vision.save_folder(tmp_path, vision.Network("crate-tiny", net, options))
    images = torch.rand(2, 1, 8, 8)
    assert torch.equal(open_network(str(tmp_path)).module(images), net(images))


def test_patches_are_in_rows_with_channels_last():
    images = torch.arange(2 * 4 * 6).view(1, 2, 4, 6)
    patches = crate.classifier.Patches(2)(images)
    assert patches.shape == (1, 6, 8)
    assert patches[0, 1].tolist() == images[0, :, :2, 2:4].permute(1, 2, 0).flatten().tolist()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dim": 10, "heads": 4}, "10 dimensions can't be split among 4 heads"),
        ({"image_size": 30}, "patches of 16 x 16 don't cover 30 x 30 pixels"),
        ({"eta": 0}, "eta is a step size above 0, not 0"),
        ({"lam": -1}, "lam weighs an L1 norm and is 0 or more, not -1"),
        ({"variant": "paper"}, "no variant 'paper'"),
        ({"variant": "theory", "kappa": 0}, "kappa and eps are above 0"),
        ({"pool": "max"}, "pool is cls or mean"),
        ({"dict_ratio": 0}, "dict_ratio is 1 or more atoms for each dimension, not 0"),
        ({"variant": "theory", "residual": True}, "are of the released variant"),
    ],
)
def test_sizes_and_steps_that_do_not_fit_are_refused_in_one_line(options, message):
    with pytest.raises(UsageError, match=message) as caught:
        crate.build("crate-tiny", **options)
    assert "\n" not in str(caught.value)


def test_other_pictures_and_other_names_are_refused():
    net = crate.build("crate-tiny", image_size=8, patch=4, dim=8, heads=2, depth=1)
    with pytest.raises(UsageError, match="reads 3 x 8 x 8, not 1 x 8 x 8"):
        net(torch.rand(1, 1, 8, 8))
    with pytest.raises(UsageError, match="did you mean 'crate-tiny'"):
        crate.build("crate-tinny")


# The autoencoder


def tiny_mae(**options):
    torch.manual_seed(0)
    return crate.build("crate-mae-tiny", image_size=16, patch=4, dim=16, heads=2, depth=1, **options).eval()


def test_the_encoder_reads_every_patch_with_mask_tokens_among_them():
    net, images = tiny_mae(), torch.rand(2, 3, 16, 16)
    masked = net.masks(images, torch.Generator().manual_seed(0))
    assert masked.sum(1).tolist() == [12, 12]
    assert net.encode(images, masked).shape == (2, 17, 16)
    changed = torch.where(masked.view(2, 1, 4, 1, 4, 1).expand(2, 3, 4, 4, 4, 4).reshape(images.shape), 5.0, images)
    assert torch.equal(net.encode(changed, masked), net.encode(images, masked))
    assert not torch.equal(net.encode(images, masked), net.encode(images))


@pytest.mark.parametrize("normalise", [False, True])
def test_the_loss_is_of_masked_patches_only(normalise):
    net, images = tiny_mae(normalise=normalise), torch.rand(2, 3, 16, 16)
    found = net(images, torch.Generator().manual_seed(0))
    target = images.view(2, 3, 4, 4, 4, 4).permute(0, 2, 4, 3, 5, 1).reshape(2, 16, 48)
    if normalise:
        target = (target - target.mean(-1, keepdim=True)) / (target.var(-1, keepdim=True) + 1e-6).sqrt()
    error = (found.patches - target).square().mean(-1)
    assert found.loss.item() == pytest.approx(error[found.masked].mean().item(), rel=1e-5)


def test_positions_are_sines_of_columns_then_of_rows():
    positions = autoencoder.grid_positions(3, 8)
    assert positions.shape == (9, 8)
    assert torch.allclose(positions[:, 0], torch.arange(3.0).sin().repeat(3))
    assert torch.allclose(positions[:, 4], torch.arange(3.0).sin().repeat_interleave(3))
    assert torch.equal(tiny_mae().decoder_pos_embed[0, 0], torch.zeros(16))


# Claims, on digits, as `outlay bench encoders` trains them


@pytest.mark.slow
def test_on_digits_the_coding_rate_falls_layer_by_layer_and_four_in_five_are_right(capsys):
    torch.set_num_threads(1)
    images, labels = digits()
    for seed in range(3):
        torch.manual_seed(seed)
        net = crate_of_digits()
        before, seconds = rates(net, images), fit(net, images, labels)
        after, right = rates(net, images), accuracy(net, images, labels)
        with capsys.disabled():
            print(f"\nseed {seed}: accuracy {right:.1%}, {seconds:.0f} s")
            for eps2, trained in after.items():
                new, old = ([round(rate, 1) for rate in each] for each in (before[eps2], trained))
                print(f"eps^2 {eps2}: R^c new {new}, trained {old}, last over first {trained[-1] / trained[0]:.3f}")
        assert right >= 0.8
        by_layer = after[RELEASED_EPS2]
        assert all(later < earlier for earlier, later in itertools.pairwise(by_layer[1:]))
        assert by_layer[-1] <= 0.9 * by_layer[0]


@pytest.mark.slow
def test_on_digits_a_transformer_gets_more_right_with_four_times_the_block_parameters(capsys):
    torch.set_num_threads(1)
    torch.manual_seed(0)
    images, labels = digits()
    for dim in (64, 32):
        net = TransformerOfDigits(dim)
        seconds = fit(net, images, labels)
        count = sum(p.numel() for p in net.outer.transformer.parameters())
        right = accuracy(net, images, labels)
        with capsys.disabled():
            print(f"\ntransformer of width {dim}: {count} block parameters, {right:.1%}, {seconds:.0f} s")
        assert right >= 0.8
