"""What layers do to tokens: measured of CRATE, of any torch network, of decoders, and what the command says."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from torch import nn

from outlay import UsageError, cli
from outlay.testing import tiny_diffusion_model, tiny_model
from outlay.vision import crate
from outlay.vision.crate.diagnostics import EPS2, Heads, parse_heads, passages

SMALL = {"image_size": 8, "patch": 4, "channels": 1, "classes": 3, "dim": 16, "heads": 2, "depth": 3}


@pytest.fixture(scope="module")
def net():
    torch.manual_seed(0)
    return crate.build("crate-tiny", **SMALL)


def released_coding_rate(w):
    """The rate as the released measure has it: by tokens, eps^2 = 0.01."""
    unit = (w / w.norm(dim=-1, keepdim=True)).double()
    n, width = w.shape[-2:]
    inner = torch.eye(n).double() + width / (n * 0.01) * unit @ unit.mT
    return torch.logdet(inner).sum(-1) / 2


def test_every_layer_is_measured_as_the_released_measure_does(net):
    images, x = torch.rand(5, 1, 8, 8), []
    hook = net.transformer.register_forward_pre_hook(lambda module, args: x.append(args[0]))
    found = crate.diagnose(net, images)
    hook.remove()
    assert [layer.layer for layer in found] == [f"transformer.layers.{i}" for i in range(3)]
    tokens = x[0]
    for block, layer in zip(net.transformer.layers, found, strict=True):
        with torch.no_grad():
            rates = released_coding_rate(block[0].fn.coordinates(block[0].norm(tokens)))
            unit = tokens / tokens.norm(dim=-1, keepdim=True)
            whole = crate.rate(unit.double(), EPS2).mean()
            tokens = block(tokens)
        assert layer.coding_rate == pytest.approx(rates.mean().item(), rel=1e-5)
        assert layer.spread == pytest.approx(rates.std().item(), rel=1e-4)
        assert layer.rate == pytest.approx(whole.item(), rel=1e-5)
        assert layer.reduction == layer.rate - layer.coding_rate
        assert layer.nonzero == pytest.approx((tokens != 0).double().mean().item())
    assert net.training


@pytest.mark.parametrize(
    "other",
    [
        crate.build("crate-tiny", **SMALL, variant="theory"),
        crate.build("crate-mae-tiny", image_size=8, patch=4, channels=1, dim=16, heads=2, depth=2),
    ],
    ids=["theory", "autoencoder"],
)
def test_both_variants_and_the_autoencoder_are_measured(other):
    found = crate.diagnose(other, torch.rand(2, 1, 8, 8))
    assert len(found) == (3 if isinstance(other, crate.CrateClassifier) else 4)
    assert all(layer.coding_rate > 0 for layer in found)
    assert len({layer.layer for layer in found}) == len(found)


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.qkv = nn.Linear(12, 36)

    def forward(self, x):
        q, k, v = self.qkv(x).chunk(3, -1)
        return nn.functional.scaled_dot_product_attention(q, k, v)


class Other(nn.Module):
    def __init__(self):
        super().__init__()
        self.blocks = nn.Sequential(*(nn.Sequential(Attention(), nn.ReLU()) for _ in range(2)))

    def forward(self, x):
        return self.blocks(x)


def test_any_network_is_measured_once_its_heads_are_named():
    torch.manual_seed(0)
    net, x = Other(), torch.randn(3, 7, 12)
    found = crate.diagnose(net, x, Heads("blocks.*.0.qkv", 4, "v"))
    assert [layer.layer for layer in found] == ["blocks.0", "blocks.1"]
    w = net.blocks[0][0].qkv(x).chunk(3, -1)[2].unflatten(-1, (4, 3)).transpose(1, 2)
    assert found[0].coding_rate == pytest.approx(released_coding_rate(w).mean().item(), rel=1e-5)
    assert found[0].nonzero == pytest.approx((net.blocks[0](x) != 0).double().mean().item())


@pytest.mark.parametrize(
    ("heads", "message"),
    [
        (None, "Other is not CRATE: say which of its layers write heads"),
        (Heads("layers.*", 2), r"no layer of the network is called layers\.\*"),
        (Heads("blocks.*.qkv", 7), "which 7 heads don't divide"),
    ],
)
def test_a_network_without_named_heads_is_refused(heads, message):
    with pytest.raises(UsageError, match=message):
        crate.diagnose(Other(), torch.randn(1, 7, 12), heads)


def test_heads_are_read_from_text():
    assert parse_heads("blocks.*.qkv=12/q") == Heads("blocks.*.qkv", 12, "q")
    assert parse_heads("a.b=3") == Heads("a.b", 3)
    for text in ("a.b", "a.b=0", "a=3/x", "=3"):
        with pytest.raises(UsageError, match="PATTERN=COUNT"):
            parse_heads(text)


@pytest.mark.parametrize("model", [tiny_model(), tiny_diffusion_model()], ids=["decoder", "canvas"])
def test_a_decoder_is_measured_by_the_values_of_its_heads(model):
    texts = [list(b"The quick brown fox"), list(b"jumps over the dog!")]
    found = crate.diagnose_decoder(model.decoder, texts)
    assert [layer.layer for layer in found] == ["layer 0", "layer 1"]
    decoder, w = model.decoder, []
    for text in texts:
        x = decoder.inputs(torch.tensor(text), torch.arange(len(text)))
        w.append(decoder.before_attention(0, x, decoder.rotations(torch.arange(len(text))))[2].transpose(0, 1))
    assert found[0].coding_rate == pytest.approx(released_coding_rate(torch.stack(w)).mean().item(), rel=1e-5)
    assert found[0].nonzero == 1


def test_a_decoder_reads_a_text_as_the_engine_does():
    from outlay.vision.crate.diagnostics import _reading

    model, text = tiny_model(), list(b"The quick brown fox")
    mine = model.decoder.forward(torch.tensor(text), torch.arange(len(text)), _reading(model.decoder, len(text), []))
    from outlay import LM
    from outlay.engine.engine import Engine

    result = LM(model, Engine()).generate(text, max_tokens=1, logprobs=5)
    expected = mine[-1].log_softmax(-1).topk(5)
    assert [token for token, _ in result.logprobs[0].top] == expected.indices.tolist()
    assert [logprob for _, logprob in result.logprobs[0].top] == pytest.approx(expected.values.tolist(), abs=1e-4)


def test_passages_are_spread_over_a_text():
    assert passages(range(10), 4, 3) == [[0, 1, 2, 3], [6, 7, 8, 9]]
    assert passages(range(3), 4, 3) == [[0, 1, 2]]
    assert [each[0] for each in passages(range(100), 10, 4)] == [0, 30, 60, 90]


# The command


@pytest.fixture
def pictures(tmp_path):
    from PIL import Image

    for number in range(3):
        pixels = np.random.default_rng(number).integers(0, 255, (9, 12, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"{number}.png")
    return tmp_path


@pytest.fixture
def folder(net, tmp_path):
    from outlay import vision

    vision.save_folder(tmp_path / "net", vision.Network("crate-tiny", net, SMALL))
    return tmp_path / "net"


def test_the_command_measures_a_network_that_sees(folder, pictures, capsys):
    assert cli.main(["diagnose", str(folder), "--images", str(pictures), "--json"]) == 0
    layers = json.loads(capsys.readouterr().out)
    assert [layer["layer"] for layer in layers] == [f"transformer.layers.{i}" for i in range(3)]
    assert set(layers[0]) == {"layer", "rate", "coding_rate", "spread", "nonzero", "reduction"}
    assert cli.main(["diagnose", str(folder), "--images", str(pictures)]) == 0
    assert "R^c of transformer.layers.2 is" in capsys.readouterr().out


def test_the_command_measures_a_language_model(tmp_path, capsys):
    (tmp_path / "text.txt").write_text("first 3 + 4 = 7\n" * 20)
    command = ["diagnose", "outlay/tiny-reasoner", "--text", str(tmp_path / "text.txt"), "--length", "32", "--json"]
    assert cli.main(command) == 0
    assert len(json.loads(capsys.readouterr().out)) == 3


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "say what the network reads: --text FILE for a language model, or --images DIR"),
        (["--images", "nowhere"], "there is no folder nowhere"),
        (["--images", "{empty}"], "has no pictures"),
        (["--images", "{empty}", "--heads", "qkv"], "heads are given as PATTERN=COUNT"),
        (["--text", "nowhere"], "can't read nowhere"),
        (["--text", "nowhere", "--heads", "qkv=3"], "are for networks that read --images"),
    ],
)
def test_what_was_typed_wrong_is_said_in_one_line(words, message, tmp_path, capsys):
    words = [word.format(empty=tmp_path) for word in words]
    assert cli.main(["diagnose", "crate-tiny", *words]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
