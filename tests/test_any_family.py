"""What holds for every method holds on a family that runs through the code of `transformers`."""

from __future__ import annotations

from typing import Any

import pytest
from models.test_families import BASE, save

from outlay import testing
from outlay.engine.engine import Engine
from outlay.lm import LM
from outlay.models.load import Model, load_model
from outlay.testing import MethodProperties


@pytest.fixture(scope="module")
def interface_model(tmp_path_factory: pytest.TempPathFactory) -> Model:
    """A tiny GPT-NeoX over bytes, as `outlay.testing.tiny_model` is a tiny Llama."""
    folder = tmp_path_factory.mktemp("gpt_neox")
    shape = {"vocab_size": 257, "max_position_embeddings": 512, "eos_token_id": 256, "num_hidden_layers": 1}
    save(folder, "GPTNeoX", BASE | shape)
    model = load_model(folder, dtype="float32")
    return Model("tiny-neox", model.decoder, testing.tiny_model().tokenizer, model.fingerprint, model.format)


@pytest.fixture
def _interface_lm(interface_model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    def lm(*, prefix_cache: bool = True) -> LM:
        return LM(interface_model, Engine(prefix_cache=prefix_cache))

    monkeypatch.setattr(testing, "tiny_lm", lm)


@pytest.mark.usefixtures("_interface_lm")
class TestThroughTheInterface(MethodProperties):
    method = "rsd:variant=s"
    options = {"temperature": 0.9}  # noqa: RUF012
    draft = testing.tiny_model(1)


@pytest.mark.parametrize("method", ["speculative", "lookup", "beam", "superposed"])
def test_methods_write_what_they_write_alone(method: str, interface_model: Model) -> None:
    """Superposed decoding gives rows input embeddings in place of tokens."""
    lm = LM(interface_model, Engine())
    options: dict[str, Any] = {"method": method, "max_tokens": 16, "ignore_eos": True}
    if method == "speculative":
        options["draft"] = testing.tiny_model(1)
    handles = [lm.submit(prompt, **options) for prompt in testing.PROMPTS[:4]]
    together = [handle.result(60) for handle in handles]
    assert all(result.ledger.ran_on[0].startswith("transformers") for result in together if method != "speculative")
    for prompt, result in zip(testing.PROMPTS, together, strict=False):
        assert LM(interface_model, Engine()).generate(prompt, **options).tokens == result.tokens
    if method in ("speculative", "lookup"):
        greedy = lm.generate(testing.PROMPTS[0], max_tokens=16, ignore_eos=True)
        assert together[0].tokens == greedy.tokens
