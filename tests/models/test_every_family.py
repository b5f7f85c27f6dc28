"""Every family that `outlay models` lists for the path through `transformers`, as a tiny random network."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from models.test_families import BASE, save_tokenizer
from models.test_via_transformers import TOKENS, tree_logits
from transformers import AutoConfig, AutoModelForCausalLM

from outlay.models.load import load_model
from outlay.models.via_transformers.families import STATEFUL, TRIED, path_of

# The sizes of all kinds of families; each takes those that it knows.
SIZES = BASE | {
    "num_key_value_heads": 4, "head_dim": 8, "sliding_window": 8, "num_local_experts": 4, "num_experts": 4,
    "n_routed_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 24, "n_embd": 32, "n_layer": 3,
    "n_head": 4, "n_positions": 64, "n_inner": 48, "q_lora_rank": 16, "kv_lora_rank": 16, "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 8, "v_head_dim": 8, "n_group": 1, "topk_group": 1, "first_k_dense_replace": 1, "dim": 32,
    "n_heads": 4, "n_layers": 3, "d_model": 32, "num_layers": 3,
}  # fmt: skip

OTHER_SIZES = {"mimo_v2_flash": {"num_key_value_heads": 2}}  # layers with a window have twice as many


def test_no_family_takes_two_paths() -> None:
    assert not set(TRIED) & set(STATEFUL)
    assert {path_of(family) for family in TRIED} == {"transformers"}


@pytest.mark.slow
@pytest.mark.parametrize("family", TRIED)
def test_its_logits_over_a_tree_are_those_of_transformers(family: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    config = type(AutoConfig.for_model(family))(**(SIZES | OTHER_SIZES.get(family, {})))
    network = AutoModelForCausalLM.from_config(config, attn_implementation="eager").float().eval()
    with torch.no_grad():
        for weight in network.parameters():
            if weight.dim() == 1:
                weight.add_(torch.randn_like(weight) * 0.2)
            elif weight.abs().max() < 0.15:
                weight.copy_(torch.randn_like(weight) * 0.2)
    network.save_pretrained(tmp_path)
    save_tokenizer(tmp_path)
    nodes, found = tree_logits(load_model(tmp_path, dtype="float32"), TOKENS, [(-1, 5), (-1, 9), (0, 11), (1, 11)])
    for node, row in zip(nodes, found, strict=True):
        text = torch.tensor([[above.token for above in node.path()]])
        with torch.no_grad():
            expected = network(text).logits[0, -1]
        torch.testing.assert_close(row, expected, atol=2e-4, rtol=2e-4)
