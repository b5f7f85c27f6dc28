"""Every family that we run gives the logits of `transformers`, from tiny random checkpoints that it saved."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from outlay import kernels
from outlay.models.load import Model, load_model

VOCAB = 97
BASE = {
    "vocab_size": VOCAB,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "initializer_range": 0.2,
    "init_std": 0.2,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 500.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}
YARN = {"rope_type": "yarn", "rope_theta": 10000.0, "factor": 4.0, "original_max_position_embeddings": 16}
LONG = {
    "rope_type": "longrope",
    "rope_theta": 10000.0,
    "short_factor": [1.0, 1.1, 1.2, 1.5],
    "long_factor": [1.0, 2.0, 3.0, 4.0],
}
GPT2 = {"n_embd": 32, "n_layer": 3, "n_head": 4, "n_positions": 64, "vocab_size": VOCAB, "initializer_range": 0.2}
GEMMA3 = BASE | {"head_dim": 16, "sliding_window": 8, "query_pre_attn_scalar": 24, "layer_types": [
    "sliding_attention", "full_attention", "sliding_attention"]}  # fmt: skip
GEMMA3_ROPES = {
    "sliding_attention": {"rope_type": "default", "rope_theta": 100.0},
    "full_attention": {"rope_type": "linear", "factor": 4.0, "rope_theta": 5000.0},
}
GRANITE = {"embedding_multiplier": 12.0, "attention_multiplier": 0.2, "residual_multiplier": 0.3, "logits_scaling": 4.0}
OPT = BASE | {"ffn_dim": 48, "word_embed_proj_dim": 32}
MOE = BASE | {"num_local_experts": 6, "num_experts": 6, "num_experts_per_tok": 2, "moe_intermediate_size": 24}

CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama2": ("Llama", BASE),
    "llama-mha": ("Llama", BASE | {"num_key_value_heads": 4}),
    "llama-tied": ("Llama", BASE | {"tie_word_embeddings": True}),
    "llama-biases": ("Llama", BASE | {"attention_bias": True, "mlp_bias": True}),
    "llama-head-dim": ("Llama", BASE | {"head_dim": 12}),
    "llama-linear": ("Llama", BASE | {"rope_parameters": {"rope_type": "linear", "rope_theta": 1e4, "factor": 2.0}}),
    "llama-dynamic": ("Llama", BASE | {"rope_parameters": {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}}),
    "llama3": ("Llama", BASE | {"rope_parameters": LLAMA3}),
    "llama-yarn": ("Llama", BASE | {"rope_parameters": YARN}),
    "mistral": ("Mistral", BASE | {"sliding_window": 7}),
    "mistral-full": ("Mistral", BASE | {"sliding_window": None}),
    "qwen2": ("Qwen2", BASE | {"tie_word_embeddings": True}),
    "qwen2-windows": ("Qwen2", BASE | {"use_sliding_window": True, "sliding_window": 6, "max_window_layers": 1}),
    "qwen3": ("Qwen3", BASE | {"head_dim": 16}),
    "phi3": ("Phi3", BASE | {"sliding_window": 9}),
    "phi3-longrope": ("Phi3", BASE | {"rope_parameters": LONG, "original_max_position_embeddings": 32}),
    "phi4-mini-longrope": (
        "Phi3",
        BASE
        | {
            "partial_rotary_factor": 0.5,
            "rope_parameters": LONG | {"short_factor": [1.0, 1.2], "long_factor": [1.0, 3.0]},
            "original_max_position_embeddings": 32,
        },
    ),
    "phi4-mini": ("Phi3", BASE | {"partial_rotary_factor": 0.5, "tie_word_embeddings": True}),
    "gemma": ("Gemma", BASE | {"head_dim": 16, "num_key_value_heads": 1}),
    "gemma2": ("Gemma2", BASE | {"head_dim": 16, "sliding_window": 8, "query_pre_attn_scalar": 24}),
    "gemma3": ("Gemma3Text", GEMMA3 | {"rope_parameters": GEMMA3_ROPES}),
    "gemma3-capped": ("Gemma3Text", GEMMA3 | {"final_logit_softcapping": 3.0}),
    "smollm3": ("SmolLM3", BASE | {"no_rope_layers": [1, 0, 1], "tie_word_embeddings": True}),
    "smollm3-windows": (
        "SmolLM3",
        BASE | {"no_rope_layer_interval": 2, "use_sliding_window": True, "sliding_window": 6},
    ),
    "olmo2": ("Olmo2", BASE),
    "granite": ("Granite", BASE | GRANITE | {"mlp_bias": True}),
    "gpt2": ("GPT2", GPT2),
    "gpt2-unscaled": ("GPT2", GPT2 | {"scale_attn_weights": False, "n_inner": 40, "activation_function": "relu"}),
    "opt": ("OPT", OPT),
    "opt-350m": ("OPT", OPT | {"do_layer_norm_before": False, "word_embed_proj_dim": 24}),
    "opt-no-biases": ("OPT", OPT | {"enable_bias": False}),
    "mixtral": ("Mixtral", MOE),
    "qwen3-moe": ("Qwen3Moe", MOE | {"head_dim": 16, "norm_topk_prob": True, "mlp_only_layers": [1]}),
    "qwen3-moe-plain": ("Qwen3Moe", MOE | {"norm_topk_prob": False, "decoder_sparse_step": 2}),
}


def save_tokenizer(folder: Path) -> None:
    vocab = {letter: token for token, letter in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.save(str(folder / "tokenizer.json"))


def save(folder: Path, family: str, options: dict[str, Any], **how: Any) -> Any:
    """Saves a random network with norms and biases that are not trivial, and returns it."""
    torch.manual_seed(0)
    config = getattr(transformers, f"{family}Config")(**options)
    network = transformers.AutoModelForCausalLM.from_config(config, attn_implementation="eager").float().eval()
    with torch.no_grad():
        for name, weight in network.named_parameters():
            if weight.dim() == 1:
                weight.add_(torch.randn_like(weight) * 0.2)
            elif "gate.weight" in name:
                weight.copy_(torch.randn_like(weight))
    network.save_pretrained(folder, **how)
    save_tokenizer(folder)
    return network


@pytest.mark.parametrize("case", CASES)
def test_logits_are_those_of_transformers(case: str, tmp_path: Path, dense: Any) -> None:
    network = save(tmp_path, *CASES[case])
    decoder = load_model(tmp_path, dtype="float32").decoder
    first, second = torch.randint(3, VOCAB, (2, 24)).tolist()
    with torch.no_grad():
        expected, other = (network(torch.tensor([tokens])).logits[0] for tokens in (first, second))
    assert expected.std() > 0.1
    close = {"atol": 1e-4, "rtol": 1e-4}
    torch.testing.assert_close(dense.logits(decoder, first), expected, **close)
    torch.testing.assert_close(dense.logits(decoder, first, [5, 1, 9, 1]), expected, **close)
    mine, theirs = dense.mixed_logits(decoder, first, second)
    torch.testing.assert_close(mine, expected, **close)
    torch.testing.assert_close(theirs, other, **close)


def test_only_the_asked_rows_reach_the_head(tmp_path: Path, dense: Any) -> None:
    save(tmp_path, *CASES["llama2"])
    decoder = load_model(tmp_path, dtype="float32").decoder
    tokens = torch.arange(3, 13)
    whole = dense.logits(decoder, tokens.tolist())
    chosen = decoder.forward(tokens, torch.arange(10), dense.Cache(decoder).attend, torch.tensor([9, 2]))
    torch.testing.assert_close(chosen, whole[[9, 2]])


def old_style(folder: Path, **changes: Any) -> None:
    """Rewrites a config.json in the form of `transformers` 4."""
    path = folder / "config.json"
    raw = json.loads(path.read_text())
    rope = raw.pop("rope_parameters")
    raw["rope_theta"] = rope.pop("rope_theta")
    if rope.get("rope_type") != "default":
        rope["type"] = rope.pop("rope_type")
        raw["rope_scaling"] = rope
    raw["torch_dtype"] = raw.pop("dtype", "float32")
    path.write_text(json.dumps(raw | changes))


@pytest.mark.parametrize("case", ["llama2", "llama3", "llama-yarn", "llama-linear"])
def test_configs_of_transformers_4_mean_the_same(case: str, tmp_path: Path) -> None:
    save(tmp_path, *CASES[case])
    new = load_model(tmp_path, dtype="float32").decoder.config
    old_style(tmp_path)
    assert load_model(tmp_path, dtype="float32").decoder.config == new


def test_gemma_3_rotates_as_transformers_4_wrote_it(tmp_path: Path) -> None:
    """Local layers have a base of their own, and scaling is for the others."""
    save(tmp_path, *CASES["gemma3"])
    new = load_model(tmp_path, dtype="float32").decoder.config
    path = tmp_path / "config.json"
    raw = json.loads(path.read_text())
    del raw["rope_parameters"], raw["layer_types"]
    old = {"rope_theta": 5000.0, "rope_local_base_freq": 100.0, "sliding_window_pattern": 2}
    path.write_text(json.dumps(raw | old | {"rope_scaling": {"rope_type": "linear", "factor": 4.0}}))
    assert load_model(tmp_path, dtype="float32").decoder.config == new


@pytest.mark.parametrize("prefix", ["language_model.model.", "model.language_model."])
def test_the_text_of_a_gemma_3_that_also_reads_images(prefix: str, tmp_path: Path, dense: Any) -> None:
    network = save(tmp_path, *CASES["gemma3"])
    weights = load_file(tmp_path / "model.safetensors")
    renamed = {prefix + name.removeprefix("model."): tensor for name, tensor in weights.items()}
    save_file(renamed | {"vision_tower.x": torch.zeros(1)}, tmp_path / "model.safetensors")
    text = json.loads((tmp_path / "config.json").read_text())
    whole = {"model_type": "gemma3", "text_config": text | {"eos_token_id": 1}, "eos_token_id": [1, 5]}
    (tmp_path / "config.json").write_text(json.dumps(whole))
    with torch.no_grad():
        expected = network(torch.arange(3, 20)[None]).logits[0]
    decoder = load_model(tmp_path, dtype="float32").decoder
    assert decoder.config.eos_token_ids == (1, 5)
    torch.testing.assert_close(dense.logits(decoder, list(range(3, 20))), expected, atol=1e-4, rtol=1e-4)


def test_sharded_weights_are_the_same_model(tmp_path: Path, dense: Any) -> None:
    network = save(tmp_path, *CASES["llama2"], max_shard_size="20KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    with torch.no_grad():
        expected = network(torch.arange(3, 20)[None]).logits[0]
    decoder = load_model(tmp_path, dtype="float32").decoder
    torch.testing.assert_close(dense.logits(decoder, list(range(3, 20))), expected, atol=1e-4, rtol=1e-4)


def test_a_base_models_names_are_found(tmp_path: Path, dense: Any) -> None:
    network = save(tmp_path, *CASES["gpt2"])
    network.transformer.save_pretrained(tmp_path)
    with torch.no_grad():
        expected = network(torch.arange(3, 20)[None]).logits[0]
    decoder = load_model(tmp_path, dtype="float32").decoder
    torch.testing.assert_close(dense.logits(decoder, list(range(3, 20))), expected, atol=1e-4, rtol=1e-4)


def test_longrope_beyond_its_original_context_uses_the_long_frequencies(tmp_path: Path, dense: Any) -> None:
    network = save(tmp_path, *CASES["phi3-longrope"])
    tokens = torch.randint(3, VOCAB, (48,))
    with torch.no_grad():
        expected = network(tokens[None]).logits[0]
    model = load_model(tmp_path, dtype="float32", long_context=True)
    assert model.decoder.config.max_positions == 64
    torch.testing.assert_close(dense.logits(model.decoder, tokens.tolist()), expected, atol=1e-4, rtol=1e-4)
    assert load_model(tmp_path, dtype="float32").decoder.config.max_positions == 32


@pytest.mark.parametrize("case", ["llama2", "qwen3-moe", "gpt2", "gemma2"])
@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "int8", "int4"])
def test_narrow_formats_stay_near_the_reference(case: str, dtype: str, tmp_path: Path, dense: Any) -> None:
    wide = {"hidden_size": 64, "intermediate_size": 96, "n_embd": 64, "moe_intermediate_size": 32, "n_inner": 96}
    family, options = CASES[case]
    # Smaller weights than elsewhere: no random network that is this sensitive could stand four bits.
    save(tmp_path, family, options | wide | {"initializer_range": 0.05})
    tokens = list(range(3, 23))
    expected = dense.logits(load_model(tmp_path, dtype="float32").decoder, tokens)
    model = load_model(tmp_path, dtype=dtype)
    got = dense.logits(model.decoder, tokens)
    assert got.dtype == torch.float32
    limit = {"bfloat16": 0.03, "float16": 0.01, "int8": 0.06, "int4": 0.35}[dtype]
    assert (got - expected).norm() / expected.norm() < limit


def test_fingerprints_tell_weights_apart_and_not_places(tmp_path: Path) -> None:
    def fingerprint(name: str, case: str) -> str:
        (tmp_path / name).mkdir()
        save(tmp_path / name, *CASES[case])
        return load_model(tmp_path / name).fingerprint

    assert fingerprint("a", "llama2") == fingerprint("b", "llama2") != fingerprint("c", "llama-tied")


@pytest.fixture
def moe(tmp_path: Path) -> Model:
    save(tmp_path, *CASES["mixtral"])
    return load_model(tmp_path, dtype="float32")


def test_costs_count_what_a_pass_reads_and_multiplies(moe: Model) -> None:
    decoder, config = moe.decoder, moe.decoder.config
    hidden, inner, layers = 32, 48, 3
    attention = hidden * (hidden + 2 * 16) + hidden * hidden
    expert = 3 * hidden * inner
    row = layers * (attention + 6 * hidden + 2 * expert)
    head = hidden * VOCAB
    assert decoder.linear_flops(5, 2) == 2 * (5 * row + 2 * head)
    norms = (2 * layers + 1) * hidden
    fixed = layers * (attention + 6 * hidden) + head + norms
    if kernels.available():  # which hold rows in sixteens
        fixed += (layers * (16 - 6) + -VOCAB % 16) * hidden
    assert decoder.pass_weight_bytes(1) == 4 * (fixed + layers * 2 * expert + hidden)
    assert decoder.pass_weight_bytes(100) == 4 * (fixed + layers * 6 * expert + 100 * hidden)
    assert decoder.weight_bytes_per_pass == decoder.pass_weight_bytes(1)
    assert config.experts is not None
    assert config.experts.count == 6
