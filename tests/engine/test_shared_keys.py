"""CRATE in the engine: its own torch network is written, half of a GPT-2's cache is held, every method's laws hold."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import pytest
import torch

import outlay.testing as testing
from outlay import LM, UsageError
from outlay.engine.engine import Engine
from outlay.models.config import decoder_config
from outlay.models.load import load_model
from outlay.testing import MethodProperties, tiny_model
from outlay.train.crate import CrateLM, CrateRecipe, CrateTraining
from outlay.tree.cache import Cache

TEXT = "It was in July, 1805, and the speaker was the well-known Anna Pavlovna Scherer. " * 30
SMALL = {"layers": 2, "hidden": 32, "heads": 4, "positions": 100, "passage": 16, "batch": 64, "steps": 2}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A CRATE of two training steps and its twin, which know nothing."""
    out = tmp_path_factory.mktemp("crate")
    for net in ("crate", "gpt2"):
        CrateTraining(CrateRecipe(**SMALL, net=net), TEXT, out / net).fit(lambda phase, done, total: None)
    return out


def network(decoder_folder):
    """The torch network with the weights of a folder."""
    from safetensors.torch import load_file

    recipe = CrateRecipe(**SMALL)
    net = CrateLM(257, recipe.hidden, recipe.heads, recipe.layers, recipe.positions, recipe.eta, recipe.lam)
    net.load_state_dict(
        {name: value.float() for name, value in load_file(decoder_folder / "model.safetensors").items()}
    )
    return net.eval()


def whole(net, tokens):
    """Logits of the network that computes everything anew, float32 [n, vocab]."""
    with torch.no_grad():
        return net(torch.tensor([tokens]))[0]


def test_cached_logits_are_those_of_the_network_computed_anew(folders):
    net, lm = network(folders / "crate"), LM(load_model(folders / "crate", dtype="float32"), Engine())
    result = lm.generate("It was", max_tokens=60, ignore_eos=True, logprobs=5)
    tokens = lm.encode("It was") + result.tokens
    logprobs = whole(net, tokens[:-1]).log_softmax(-1)[-60:]
    assert result.tokens == logprobs.argmax(-1).tolist()
    for row, written in zip(logprobs, result.logprobs, strict=True):
        assert [logprob for _, logprob in written.top] == pytest.approx(row.topk(5).values.tolist(), abs=1e-5)


@pytest.mark.parametrize("kv_dtype", ["float32", "bfloat16", "int8"])
def test_a_token_holds_half_of_what_it_holds_in_the_twin(folders, kv_dtype):
    spent = {}
    for net in ("crate", "gpt2"):
        model = load_model(folders / net, dtype="float32")
        dtype = {"float32": torch.float32, "bfloat16": torch.bfloat16, "int8": torch.int8}[kv_dtype]
        cache = Cache(model.decoder.config, dtype, torch.device("cpu"), limit=4096)
        held = sum(part.nbytes for layer in cache.layers for part in layer.parts)
        assert held == cache.capacity * cache.bytes_per_slot
        spent[net] = held
    assert spent["crate"] * 2 == spent["gpt2"]


def test_the_ledger_reads_half_of_the_twins_keys_and_values_at_every_length(folders):
    models = {net: LM(load_model(folders / net, dtype="float32"), Engine()) for net in ("crate", "gpt2")}
    for length in (1, 7, 40):
        spent = {
            net: lm.generate("It was", max_tokens=length, ignore_eos=True).ledger.kv_bytes for net, lm in models.items()
        }
        assert spent["crate"] * 2 == spent["gpt2"] > 0


def test_slots_of_shared_keys_are_written_copied_and_grown(folders):
    config = load_model(folders / "crate", dtype="float32").decoder.config
    for dtype in (torch.float32, torch.int8):
        cache = Cache(config, dtype, torch.device("cpu"), limit=64, capacity=4)
        w = torch.randn(3, config.num_heads, config.head_dim)
        cache.write(1, slice(0, 3), w, w)
        before = cache.read(1, slice(0, 3), torch.float32)
        cache.copy([0, 2], [3, 1])
        cache.region(40)
        keys, values = cache.read(1, torch.tensor([0, 3, 2, 1]), torch.float32)
        assert cache.capacity > 4
        assert torch.equal(keys, values)
        assert torch.equal(keys, before[0][:, [0, 0, 2, 2]])
        assert cache.layers[1].values is cache.layers[1].keys


@dataclass(frozen=True)
class Case:
    method: str
    draft: Any = None
    options: dict[str, Any] = field(default_factory=dict)

    def __str__(self):
        return self.method


SAMPLED = {"temperature": 0.9, "top_p": 0.95}
CASES = [
    Case("greedy"), Case("sample", None, SAMPLED), Case("beam"), Case("best_of", None, SAMPLED),
    Case("rsd", "model", SAMPLED), Case("lookup"), Case("auto"),
]  # fmt: skip


@pytest.fixture(params=CASES, ids=str)
def _each(request, folders, monkeypatch):
    case, model = request.param, load_model(folders / "crate", dtype="float32")
    monkeypatch.setattr(
        testing,
        "tiny_lm",
        lambda seed=0, *, prefix_cache=True, max_runs=64, context=512: LM(
            model, Engine(prefix_cache=prefix_cache, max_runs=max_runs)
        ),
    )
    TestEveryMethodOverCrate.method, TestEveryMethodOverCrate.options = case.method, case.options
    TestEveryMethodOverCrate.draft = tiny_model(1) if case.draft else None


@pytest.mark.usefixtures("_each")
class TestEveryMethodOverCrate(MethodProperties):
    pass


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_attention_heads": 3}, "a CRATE of width 32 can't have 3 heads"),
        ({"num_attention_heads": 1}, "give a divisor of 32, 2 or more"),
        ({"ista_eta": 0}, "ista_eta is above 0"),
        ({"ista_lambda": -1}, "ista_lambda 0 or more"),
    ],
)
def test_a_config_that_is_no_crate_is_refused_in_one_line(changes, message):
    raw = CrateLM(257, 32, 4, 1, 100).config() | {"vocab_size": 257}
    with pytest.raises(UsageError, match=message) as caught:
        decoder_config(raw | changes)
    assert "\n" not in str(caught.value)


def test_the_model_that_comes_with_the_package_writes_and_keeps_one_tensor_a_layer():
    lm = LM(load_model("outlay/tiny-crate", dtype="float32"), Engine())
    config = lm.model.decoder.config
    assert (config.hidden_size, config.num_layers, config.shared_qkv) == (256, 6, True)
    result = lm.generate("Prince Andrew", max_tokens=16)
    assert result.text.isascii()
    cache = next(iter(lm.engine.models)).cache
    assert cache.bytes_per_slot == config.num_layers * config.hidden_size * cache.dtype.itemsize
