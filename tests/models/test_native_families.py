"""The native pass against the decoder's own layers in torch, for every family that it runs, and which it leaves."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from models.test_families import CASES, VOCAB, save

from outlay import kernels
from outlay.engine.passes import FusedPass, LayeredPass, pass_for
from outlay.models.decoder import Decoder
from outlay.models.draft_head import untrained_draft_head
from outlay.models.load import load_model
from outlay.testing import tiny_model
from outlay.tree.cache import Cache
from outlay.tree.plan import plan_pass
from outlay.tree.token_tree import NO_TOKEN, Tree

# Heads of 12 dimensions, norms after the sum with narrower embeddings, and mixtures of experts.
LEFT_TO_TORCH = {"llama-head-dim", "opt-350m", "mixtral", "qwen3-moe", "qwen3-moe-plain"}
TOKENS = torch.randint(3, VOCAB, (24,), generator=torch.Generator().manual_seed(0)).tolist()

pytestmark = pytest.mark.skipif(not kernels.available(), reason="the native kernels are not built")


def logits(decoder: Decoder, make: type[LayeredPass] | None, sizes: list[int]) -> torch.Tensor:
    """Logits of one text, passed in chunks: in torch's layers, or however it is fastest."""
    cache = Cache(decoder.config, torch.float32, torch.device("cpu"), limit=64)
    run = make(decoder, cache) if make is not None else pass_for(decoder, cache)
    assert isinstance(run, make or FusedPass)
    tree, rows, first = Tree(cache), [], 0
    for size in sizes:
        tree.append(TOKENS[first : first + size])
        assert tree.tip is not None
        path = tree.tip.path()[first:]
        output = run(plan_pass([(tree, path)], cache.positions, decoder.config.windows), list(range(size)))
        assert output.logits is not None
        rows.append(output.logits)
        first += size
    return torch.cat(rows)


@pytest.mark.parametrize("case", [case for case in CASES if case not in LEFT_TO_TORCH])
def test_the_native_pass_gives_the_logits_of_torch_and_the_same_bits_in_any_chunks(case: str, tmp_path: Path) -> None:
    save(tmp_path, *CASES[case])
    decoder = load_model(tmp_path, dtype="bfloat16").decoder
    stepped = logits(decoder, None, [1] * 24)
    torch.testing.assert_close(stepped, logits(decoder, LayeredPass, [24]), atol=1e-4, rtol=1e-4)
    for sizes in ([24], [9, 1, 14]):
        assert torch.equal(logits(decoder, None, sizes), stepped)


@pytest.mark.parametrize("case", sorted(LEFT_TO_TORCH))
def test_what_the_kernels_lack_runs_in_torch(case: str, tmp_path: Path) -> None:
    save(tmp_path, *CASES[case])
    decoder = load_model(tmp_path, dtype="bfloat16").decoder
    run = pass_for(decoder, Cache(decoder.config, torch.float32, torch.device("cpu"), limit=64))
    assert isinstance(run, LayeredPass)
    assert run.name == f"torch with native {kernels.isa()} products"


@pytest.mark.parametrize("case", ["llama2", "gemma2", "gpt2"])
def test_tokens_are_to_the_native_pass_what_the_decoder_makes_of_them(case: str, tmp_path: Path) -> None:
    """With a scale (Gemma 2); learned positions (GPT-2) leave it to the decoder."""
    family, sizes = CASES[case]
    save(tmp_path, family, sizes | {"intermediate_size": 64})  # in whole groups of 32
    decoder = load_model(tmp_path, dtype="int8").decoder
    cache = Cache(decoder.config, torch.float32, torch.device("cpu"), limit=64)
    run, tree = pass_for(decoder, cache), Tree(cache)
    assert isinstance(run, FusedPass)
    tree.append(TOKENS)
    assert tree.tip is not None
    plan = plan_pass([(tree, tree.tip.path())], cache.positions, decoder.config.windows)
    assert (run._weights.embed is None) == (case == "gpt2")
    by_decoder = FusedPass(decoder, cache, replace(run._weights, embed=None))
    found, expected = run(plan, [5, 23]).logits, by_decoder(plan, [5, 23]).logits
    assert found is not None
    assert expected is not None
    assert torch.equal(found, expected)


@pytest.mark.parametrize("dtype", ["int4", "int8"])
def test_a_draft_head_reads_natively_what_it_reads_in_torch(dtype: str) -> None:
    """Hidden states with tokens, a token without one, and prompt tokens without a token."""
    head = untrained_draft_head(tiny_model(dtype=dtype), 2, 96).decoder
    draw = torch.Generator().manual_seed(0)
    embeds = [torch.randn(head.config.hidden_size, generator=draw) for _ in range(6)]
    found = []
    for make in (pass_for, LayeredPass):
        cache = Cache(head.config, torch.float32, torch.device("cpu"), limit=64)
        run, tree = make(head, cache), Tree(cache)
        tree.append(TOKENS[:4])
        assert tree.tip is not None
        nodes = tree.tip.path()
        for node, embed in zip(nodes[1:], embeds, strict=False):
            node.input_embed = embed
        nodes += tree.extend([-1, 0, 1], [NO_TOKEN] * 3, inputs_embeds=embeds[3:])
        found.append(run(plan_pass([(tree, nodes)], cache.positions), list(range(7))).logits)
    assert isinstance(pass_for(head, cache), FusedPass)
    torch.testing.assert_close(found[0], found[1], atol=1e-4, rtol=1e-4)


def test_hidden_states_are_kept_natively_from_when_they_are_asked_for_and_where_the_cache_moves() -> None:
    decoder = tiny_model(dtype="int4").decoder
    cache = Cache(decoder.config, torch.float32, torch.device("cpu"), limit=64, capacity=8)
    run, tree = pass_for(decoder, cache), Tree(cache, reserve=8)
    assert isinstance(run, FusedPass)
    for count in (4, 4, 16):  # not kept, kept, and after the cache has grown
        tree.append(TOKENS[:count])
        assert tree.tip is not None
        nodes = tree.tip.path()[-count:]
        run(plan_pass([(tree, nodes)], cache.positions), [count - 1])
        cache.keep_hidden_states()
    assert cache.capacity > 8
    assert cache.hidden_states is not None
    kept = [bool(cache.hidden_states[node.slot].any()) for node in tree.tip.path()]
    assert kept == [False] * 4 + [True] * 20
