"""Families that run through the code of `transformers`: its logits, over our trees, and every property of a method."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from models.test_families import BASE, MOE, VOCAB, save
from torch import Tensor

import outlay
from outlay.engine.engine import Engine
from outlay.engine.passes import LayeredPass, LogitsWanted, pass_for
from outlay.errors import UsageError
from outlay.lm import LM
from outlay.models.load import Model, load_model
from outlay.models.via_transformers.probe import window_of
from outlay.tree.attention import beside_sinks
from outlay.tree.cache import Cache
from outlay.tree.plan import plan_pass
from outlay.tree.token_tree import Node, Tree

WINDOW = {"sliding_window": 7}
LATENT = MOE | {
    "num_key_value_heads": 4, "q_lora_rank": 16, "kv_lora_rank": 16, "qk_rope_head_dim": 8, "qk_nope_head_dim": 8,
    "v_head_dim": 12, "n_routed_experts": 4, "n_group": 1, "topk_group": 1, "first_k_dense_replace": 1,
}  # fmt: skip
KINDS = {"layer_types": ["sliding_attention", "full_attention", "sliding_attention"]}
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "gpt_neox": ("GPTNeoX", BASE | {"rotary_pct": 0.5}),  # attention and MLP side by side, layer norms
    "cohere2": ("Cohere2", BASE | WINDOW | KINDS | {"logit_scale": 2.0}),  # rotated where there is a window
    "gpt_oss": ("GptOss", MOE | WINDOW | KINDS | {"head_dim": 8}),  # attention sinks
    "deepseek_v3": ("DeepseekV3", LATENT),  # values narrower than keys
    "olmoe": ("Olmoe", MOE),
    "starcoder2": ("Starcoder2", BASE | WINDOW),
    "llama4_text": ("Llama4Text", MOE | {"head_dim": 8, "attention_chunk_size": 48, "intermediate_size_mlp": 48}),
}
STATES: dict[str, tuple[str, dict[str, Any]]] = {
    "mamba": ("Mamba", {"vocab_size": VOCAB, "hidden_size": 32, "num_hidden_layers": 2}),
    "lfm2": ("Lfm2", BASE | {"layer_types": ["conv", "full_attention", "conv"]}),
}
TOKENS = torch.randint(3, VOCAB, (24,), generator=torch.Generator().manual_seed(0)).tolist()


def tree_logits(model: Model, prompt: list[int], drafted: list[tuple[int, int]]) -> tuple[list[Node], Tensor]:
    """The logits of a prompt's last token and of (parent, token) below it, each in one pass of all of its nodes."""
    decoder = model.decoder
    cache = Cache(decoder.config, torch.float32, torch.device("cpu"), limit=64)
    run, tree = pass_for(decoder, cache), Tree(cache)
    assert isinstance(run, LayeredPass)

    def logits(nodes: list[Node], rows: list[int]) -> Tensor:
        found = run(plan_pass([(tree, nodes)], cache.positions, decoder.config.windows), rows).logits
        assert found is not None
        return found

    tree.append(prompt[:9])
    assert tree.tip is not None
    logits(tree.tip.path(), [8])
    tree.append(prompt[9:])
    last = logits(tree.tip.path()[9:], [len(prompt) - 10])
    nodes = tree.extend([parent for parent, _ in drafted], [token for _, token in drafted])
    return [tree.tip, *nodes], torch.cat([last, logits(nodes, list(range(len(nodes))))])


@pytest.mark.parametrize("case", CASES)
def test_logits_are_those_of_transformers(case: str, tmp_path: Path) -> None:
    """A text in two passes, then a drafted tree in one: each node's logits are those of its path read alone."""
    network = save(tmp_path, *CASES[case])
    model = load_model(tmp_path, dtype="float32")
    assert model.decoder.code == "transformers"
    drafted = [(-1, 5), (-1, 9), (0, 11), (1, 11), (0, 5), (2, 7)]
    nodes, found = tree_logits(model, TOKENS, drafted)
    for node, row in zip(nodes, found, strict=True):
        text = [above.token for above in node.path()]
        with torch.no_grad():
            expected = network(torch.tensor([text])).logits[0, -1]
        torch.testing.assert_close(row, expected, atol=1e-4, rtol=1e-4)


def test_hidden_states_between_layers_are_those_of_transformers(tmp_path: Path) -> None:
    network = save(tmp_path, *CASES["gpt_neox"])
    decoder = load_model(tmp_path, dtype="float32").decoder
    cache = Cache(decoder.config, torch.float32, torch.device("cpu"), limit=64)
    tree = Tree(cache)
    tree.append(TOKENS)
    assert tree.tip is not None
    plan = plan_pass([(tree, tree.tip.path())], cache.positions, decoder.config.windows)
    found = pass_for(decoder, cache)(plan, [4, 20], LogitsWanted(layer_states=True)).layer_states
    assert found is not None
    with torch.no_grad():
        states = network(torch.tensor([TOKENS]), output_hidden_states=True).hidden_states
        last = network.gpt_neox.final_layer_norm(found[:, -1])
    expected = torch.stack([state[0, [4, 20]] for state in states], dim=1)
    torch.testing.assert_close(torch.cat([found[:, :-1], last[:, None]], dim=1), expected, atol=1e-4, rtol=1e-4)


def test_windows_sinks_and_widths_are_found(tmp_path: Path) -> None:
    found = {}
    for case in ("gpt_oss", "deepseek_v3", "starcoder2", "llama4_text"):
        save(tmp_path / case, *CASES[case])
        found[case] = load_model(tmp_path / case, dtype="float32").decoder
    assert found["gpt_oss"].config.windows == (7, None, 7)
    assert [len(sinks) for sinks in found["gpt_oss"].sinks if sinks is not None] == [4, 4, 4]
    assert found["deepseek_v3"].config.head_dim == 16
    assert found["starcoder2"].config.windows == (7, 7, 7)
    assert found["llama4_text"].config.max_positions == 48  # beyond, its chunks of attention would begin


@pytest.mark.parametrize("case", STATES)
def test_families_with_other_memory_are_refused_by_name(case: str, tmp_path: Path) -> None:
    save(tmp_path, *STATES[case])
    with pytest.raises(UsageError, match=f"{case} remembers a text by more than attention's keys and values"):
        load_model(tmp_path)


def test_memory_that_no_option_names_is_found_by_reading(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A layer that looks at the row before it is no attention, whatever the network says of itself."""
    from transformers.models.gpt_neox import modeling_gpt_neox

    plain = modeling_gpt_neox.GPTNeoXMLP.forward
    monkeypatch.setattr(
        modeling_gpt_neox.GPTNeoXMLP, "forward", lambda self, x: plain(self, x + 0.3 * x.roll(1, dims=1))
    )
    save(tmp_path, *CASES["gpt_neox"])
    with pytest.raises(UsageError, match="gpt_neox remembers a text by more than attention's keys and values"):
        load_model(tmp_path, dtype="float32")


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        ({"model_type": "bloom"}, "bloom computes attention in its own code"),
        ({"model_type": "bert"}, "bert reads in both directions"),
    ],
    ids=lambda value: value["model_type"] if isinstance(value, dict) else "",
)
def test_attention_that_is_not_ours_to_give_is_refused(raw: dict[str, Any], message: str, tmp_path: Path) -> None:
    family = {"bloom": "Bloom", "bert": "Bert"}[raw["model_type"]]
    save(tmp_path, family, BASE | {"num_key_value_heads": 4})
    with pytest.raises(UsageError, match=message):
        load_model(tmp_path)


def test_unknown_families_and_missing_weights_are_refused(tmp_path: Path) -> None:
    save(tmp_path, *CASES["gpt_neox"])
    path = tmp_path / "config.json"
    raw = json.loads(path.read_text())
    path.write_text(json.dumps(raw | {"num_hidden_layers": 4}))
    with pytest.raises(UsageError, match=r"lack the tensor gpt_neox\.layers\.3\."):
        load_model(tmp_path)
    path.write_text(json.dumps(raw | {"model_type": "nonesuch"}))
    with pytest.raises(UsageError, match=r"'nonesuch' is not one that outlay runs natively .* knows no causal"):
        load_model(tmp_path)


def test_without_transformers_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save(tmp_path, *CASES["gpt_neox"])
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(UsageError, match=r"pip install 'outlay\[transformers\]'"):
        load_model(tmp_path)


@pytest.mark.parametrize("family", ["gpt_neox", "llama"])
def test_packed_weights_are_refused_by_name(family: str, tmp_path: Path) -> None:
    save(tmp_path, "Llama", BASE)
    path = tmp_path / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"quantization_config": {"quant_method": "awq"}}))
    with pytest.raises(UsageError, match=r"weights are packed \(awq in the quantization_config"):
        load_model(tmp_path)


def test_weights_that_are_packed_in_a_form_that_is_read_are_refused_for_a_family_that_does_not_read_it(
    tmp_path: Path,
) -> None:
    save(tmp_path, *CASES["gpt_neox"])
    path = tmp_path / "config.json"
    quantization = {"quant_method": "gptq", "bits": 4, "group_size": 32}
    path.write_text(json.dumps(json.loads(path.read_text()) | {"quantization_config": quantization}))
    with pytest.raises(UsageError, match=r"packed weights are read for .*, not for gpt_neox"):
        load_model(tmp_path)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "int8", "int4"])
def test_narrow_formats_stay_near_float32(dtype: str, tmp_path: Path) -> None:
    wide = {"hidden_size": 64, "intermediate_size": 96, "initializer_range": 0.05}
    save(tmp_path, "Starcoder2", BASE | WINDOW | wide)
    expected = tree_logits(load_model(tmp_path, dtype="float32"), TOKENS, [(-1, 5)])[1]
    model = load_model(tmp_path, dtype=dtype)
    found = tree_logits(model, TOKENS, [(-1, 5)])[1]
    limit = {"bfloat16": 0.03, "float16": 0.01, "int8": 0.06, "int4": 0.35}[dtype]
    assert (found - expected).norm() / expected.norm() < limit
    bytes_per_weight = {"bfloat16": 2, "float16": 2, "int8": 1.07, "int4": 0.7}[dtype]
    linears = 3 * (2 * 64 * 64 + 2 * 32 * 64 + 2 * 64 * 96)
    assert model.decoder.pass_weight_bytes(1) < bytes_per_weight * linears + 30_000


def test_costs_count_a_rows_experts_only(tmp_path: Path) -> None:
    save(tmp_path, *CASES["olmoe"])
    decoder = load_model(tmp_path, dtype="float32").decoder
    expert, count, layers = 3 * 32 * 48, 6, 3
    assert decoder.pass_weight_bytes(2) - decoder.pass_weight_bytes(1) == layers * 2 * expert * 4 + 32 * 4
    assert decoder.pass_weight_bytes(9) - decoder.pass_weight_bytes(3) == 6 * 32 * 4  # all experts are read
    attention = 2 * 32 * 32 + 2 * 16 * 32
    row = layers * (attention + count * 32 + 2 * expert)
    assert decoder.linear_flops(5, 2) == 2 * (5 * row + 2 * VOCAB * 32)


def test_masks_tell_what_a_query_sees() -> None:
    from transformers import masking_utils as masks

    device, start = torch.device("cpu"), torch.zeros(1, dtype=torch.int64)
    assert window_of(masks.causal_mask_function, 512, "x", device) == (None, 512)
    assert window_of(masks.sliding_window_causal_mask_function(9), 512, "x", device) == (9, 512)
    assert window_of(masks.sliding_window_causal_mask_function(900), 512, "x", device) == (None, 512)
    assert window_of(masks.chunked_causal_mask_function(48, start), 512, "x", device) == (None, 48)
    with pytest.raises(UsageError, match="x reads in both directions"):
        window_of(masks.bidirectional_mask_function, 512, "x", device)
    with pytest.raises(UsageError, match="neither causal nor a sliding window"):
        window_of(lambda b, h, q, k: (k <= q) & (k % 2 == q % 2), 512, "x", device)


def test_a_sink_takes_the_share_of_a_key_of_value_0() -> None:
    scores, values, sinks = torch.randn(3, 2, 5), torch.randn(3, 2, 5, 8), torch.randn(2)
    shares = torch.cat([scores, sinks.expand(3, 2)[..., None]], dim=-1).softmax(-1)[..., :5]
    plain = torch.einsum("nhk,nhkd->nhd", scores.softmax(-1), values)
    expected = torch.einsum("nhk,nhkd->nhd", shares, values)
    torch.testing.assert_close(beside_sinks(plain, scores.logsumexp(-1), sinks), expected)


def test_drafts_of_the_model_itself_are_refused_by_name(tmp_path: Path) -> None:
    save(tmp_path, *CASES["gpt_neox"])
    lm = LM(load_model(tmp_path, dtype="float32"), Engine())
    with pytest.raises(UsageError, match="gpt_neox runs through transformers' code"):
        lm.generate([3, 4, 5], method="speculative", draft="self:skip")


def test_a_folder_takes_the_interface_by_itself(tmp_path: Path) -> None:
    save(tmp_path, *CASES["gpt_neox"])
    result = outlay.load(tmp_path).generate([3, 4, 5], max_tokens=4, ignore_eos=True)
    assert result.ledger.tokens_out == 4
