"""GGUF files: every type of tensor, every family's names and metadata, against `gguf`'s and `transformers`' reading."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
import transformers
from gguf import GGMLQuantizationType as Kind

from outlay import kernels
from outlay.engine.passes import FusedPass, LayeredPass, Pass, pass_for
from outlay.errors import UsageError
from outlay.models.gguf_blocks import HELD
from outlay.models.gguf_file import GgufFile
from outlay.models.load import load_model
from outlay.tree.cache import Cache
from outlay.tree.plan import plan_pass
from outlay.tree.token_tree import Tree

QUANTIZED = [kind.name for kind in gguf.quants._type_traits if kind.name != "BF16"]
EXACT = ["Q4_0", "Q4_1", "Q5_0", "Q8_0", "IQ4_NL", "MXFP4", "TQ1_0", "TQ2_0"]
# Where the float16 scale of a block lies, for types that `gguf` cannot write.
SCALES = {"Q2_K": (80, 82), "Q3_K": (108,), "Q6_K": (208,), "IQ1_M": ()}
VOCAB, HIDDEN, INNER, LAYERS, HEADS, KV_HEADS = 320, 64, 96, 2, 4, 2


def blocks(kind: str, rows: int, columns: int, rng: np.random.Generator) -> np.ndarray:
    """Random bytes of a type that `gguf` cannot write, with scales of a sensible size: uint8 [rows, bytes]."""
    per_block, size = gguf.GGML_QUANT_SIZES[Kind[kind]]
    data = rng.integers(0, 256, (rows * columns // per_block, size), dtype=np.uint8)
    for at in SCALES.get(kind, (0, 2) if kind in ("Q4_K", "Q5_K") else (0,)):
        data[:, at : at + 2] = rng.uniform(1e-4, 1e-3, (len(data), 1)).astype(np.float16).view(np.uint8)
    if kind == "IQ1_M":  # the scale's four half bytes lie in the upper ones of the last four words
        data[:, 49:56:2] = data[:, 49:56:2] & 15 | np.array([0x00, 0x00, 0x80, 0x10], np.uint8)
    if kind == "NVFP4":
        data[:, :4] = rng.integers(1, 64, (len(data), 4), dtype=np.uint8)
    return data.reshape(rows, -1)


def encoded(kind: str, rows: int, columns: int) -> np.ndarray:
    rng = np.random.default_rng(0)
    try:
        return gguf.quants.quantize(rng.normal(0, 0.05, (rows, columns)).astype(np.float32), Kind[kind])
    except NotImplementedError:
        return blocks(kind, rows, columns, rng)


def write(
    path: Path, tensors: dict[str, tuple[np.ndarray, str]], metadata: dict[str, Any], arch: str = "llama"
) -> None:
    writer = gguf.GGUFWriter(path, arch)
    for key, value in metadata.items():
        if isinstance(value, bool):
            writer.add_bool(key, value)
        elif isinstance(value, int):
            writer.add_uint32(key, value)
        elif isinstance(value, float):
            writer.add_float32(key, value)
        elif isinstance(value, str):
            writer.add_string(key, value)
        else:
            writer.add_array(key, value)
    for name, (data, kind) in tensors.items():
        writer.add_tensor(name, data, raw_dtype=Kind[kind] if data.dtype == np.uint8 else None)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


@pytest.mark.parametrize("kind", QUANTIZED)
def test_blocks_mean_what_gguf_says(kind: str, tmp_path: Path) -> None:
    data = encoded(kind, 6, 512)
    write(tmp_path / "x.gguf", {"w": (data, kind)}, {})
    file = GgufFile(tmp_path / "x.gguf")
    expected = torch.from_numpy(gguf.quants.dequantize(data, Kind[kind]))
    assert file.shape("w") == (6, 512)
    torch.testing.assert_close(file.floats("w"), expected, atol=0, rtol=0)
    held = file.integers("w")
    assert kind in HELD[held.kind]
    ours = held.dequantize()
    if kind in EXACT:
        torch.testing.assert_close(ours, expected, atol=0, rtol=0)
    else:
        # q4: float16 scales and minimums, each within 2^-11; q8: half a step, and its float16 scale.
        group, limit = (256, 2**-10) if held.kind == "q4" else (32, 0.52 / 127)
        largest = expected.unflatten(1, (-1, group)).abs().amax(-1)
        assert (ours - expected).unflatten(1, (-1, group)).abs().amax(-1).le(limit * largest).all()


@pytest.mark.parametrize("kind", ["F32", "F16", "BF16"])
def test_floats_are_kept_as_they_are(kind: str, tmp_path: Path) -> None:
    values = torch.randn(3, 64).to({"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}[kind])
    data = values.view(torch.int16).numpy().view(np.uint8) if kind == "BF16" else values.numpy()
    write(tmp_path / "x.gguf", {"w": (data, kind)}, {})
    assert torch.equal(GgufFile(tmp_path / "x.gguf").floats("w"), values)


def test_metadata_reads_as_the_gguf_package_reads_it(tmp_path: Path) -> None:
    metadata = {"a.text": "λ🙂", "a.yes": True, "a.no": False, "a.n": 7, "a.x": 0.5, "a.words": ["x", "", "é"]}
    metadata["a.ids"] = [1, 2]
    write(tmp_path / "x.gguf", {"w": (np.zeros((2, 32), np.float32), "F32")}, metadata)
    ours = GgufFile(tmp_path / "x.gguf").metadata
    theirs = gguf.GGUFReader(tmp_path / "x.gguf").fields
    assert {key: theirs[key].contents() for key in ours} == ours
    assert metadata.items() <= ours.items()


def byte_vocabulary() -> dict[str, Any]:
    pieces = [f"<0x{byte:02X}>" for byte in range(256)] + [f"t{i}" for i in range(VOCAB - 256)]
    return {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": pieces,
        "tokenizer.ggml.scores": [0.0] * VOCAB,
        "tokenizer.ggml.token_type": [6] * 256 + [1] * (VOCAB - 256),
    }


def network(family: str, **options: Any) -> Any:
    torch.manual_seed(1)
    base = {
        "vocab_size": VOCAB,
        "hidden_size": HIDDEN,
        "intermediate_size": INNER,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS,
        "num_key_value_heads": KV_HEADS,
        "max_position_embeddings": 64,
        "initializer_range": 0.2,
        "pad_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": 2,
    }
    config = getattr(transformers, f"{family}Config")(**(base | options))
    model = transformers.AutoModelForCausalLM.from_config(config, attn_implementation="eager").float().eval()
    with torch.no_grad():
        for weight in model.parameters():
            if weight.dim() == 1:
                weight.add_(torch.randn_like(weight) * 0.2)
    return model


def interleave(weight: torch.Tensor, heads: int) -> torch.Tensor:
    """What llama.cpp's converter does to the queries and keys of llama files."""
    return weight.reshape(heads, 2, -1, *weight.shape[1:]).transpose(1, 2).reshape(weight.shape)


LAYER_NAMES = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.qkv_proj": "attn_qkv",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "self_attn.o_proj": "attn_output",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.gate_up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "mlp.gate": "ffn_gate_inp",
    "mlp.experts.gate_up_proj": "ffn_gate_up_exps",
    "mlp.experts.down_proj": "ffn_down_exps",
    "ln_1": "attn_norm",
    "ln_2": "ffn_norm",
    "attn.c_attn": "attn_qkv",
    "attn.c_proj": "attn_output",
    "mlp.c_fc": "ffn_up",
    "mlp.c_proj": "ffn_down",
}
GEMMA_NAMES = {
    "post_attention_layernorm": "post_attention_norm",
    "pre_feedforward_layernorm": "ffn_norm",
    "post_feedforward_layernorm": "post_ffw_norm",
}
OUTER_NAMES = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
    "transformer.wte": "token_embd",
    "transformer.wpe": "position_embd",
    "transformer.ln_f": "output_norm",
}


def converted(model: Any, arch: str) -> dict[str, torch.Tensor]:
    """The tensors of a `transformers` network as llama.cpp's converter names and arranges them."""
    names, out = LAYER_NAMES | (GEMMA_NAMES if arch in ("gemma2", "gemma3", "olmo2") else {}), {}
    for name, tensor in model.state_dict().items():
        if name == "lm_head.weight" and model.config.tie_word_embeddings:
            continue
        module, _, kind = name.rpartition(".")
        if module.endswith("mlp.experts"):
            module, kind = name, "weight"
        if module in OUTER_NAMES:
            ours = OUTER_NAMES[module]
        else:
            _, _, index, part = module.split(".", 3)
            ours = f"blk.{index}.{names[part]}"
        if arch in ("llama", "granite", "smollm3") and ours.endswith(("attn_q", "attn_k")):
            tensor = interleave(tensor, HEADS if ours.endswith("q") else KV_HEADS)
        if arch == "gpt2" and tensor.dim() == 2 and ours.startswith("blk"):
            tensor = tensor.T
        if arch in ("gemma2", "gemma3") and "norm" in ours:
            tensor = tensor + 1
        if ours.endswith("gate_up_exps"):
            gate, up = tensor.chunk(2, dim=1)
            out[ours.replace("gate_up", "gate") + ".weight"], out[ours.replace("gate_up", "up") + ".weight"] = gate, up
        else:
            out[f"{ours}.{kind}"] = tensor.contiguous()
    return out


def common(arch: str, **more: Any) -> dict[str, Any]:
    metadata = {
        "block_count": LAYERS,
        "context_length": 64,
        "embedding_length": HIDDEN,
        "feed_forward_length": INNER,
        "attention.head_count": HEADS,
        "attention.head_count_kv": KV_HEADS,
        "attention.layer_norm_rms_epsilon": 1e-6,
        "rope.freq_base": 10000.0,
    }
    return {f"{arch}.{key}": value for key, value in (metadata | more).items()} | byte_vocabulary()


ROPE_FREQS = [1.0, 1.5, 2.0, 2.5, 3.0, 4.0, 6.0, 8.0]
CASES: dict[str, tuple[str, str, dict[str, Any], dict[str, Any]]] = {
    "llama": ("llama", "Llama", {}, {"rope.dimension_count": 16}),
    "llama-tied": ("llama", "Llama", {"tie_word_embeddings": True}, {}),
    "qwen2": ("qwen2", "Qwen2", {}, {}),
    "qwen3": ("qwen3", "Qwen3", {"head_dim": 32}, {"attention.key_length": 32}),
    "phi3": ("phi3", "Phi3", {"rms_norm_eps": 1e-6}, {"rope.dimension_count": 16}),
    "gemma2": (
        "gemma2",
        "Gemma2",
        {"head_dim": 16, "query_pre_attn_scalar": 16, "sliding_window": 8},
        {"attention.key_length": 16, "attention.sliding_window": 8},
    ),
    "gemma3": (
        "gemma3",
        "Gemma3Text",
        {"head_dim": 16, "query_pre_attn_scalar": 16, "sliding_window": 8, "num_hidden_layers": 6}
        | {
            "rope_parameters": {
                "sliding_attention": {"rope_type": "default", "rope_theta": 10000.0},
                "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6},
            }
        },
        {"attention.key_length": 16, "attention.sliding_window": 8, "block_count": 6, "rope.freq_base": 1e6}
        | {"rope.scaling.type": "linear", "rope.scaling.factor": 8.0},
    ),
    "smollm3": ("smollm3", "SmolLM3", {"num_hidden_layers": 4}, {"block_count": 4, "rope.freq_base": 2e6}),
    "olmo2": ("olmo2", "Olmo2", {"rms_norm_eps": 1e-6}, {}),
    "granite": (
        "granite",
        "Granite",
        {"embedding_multiplier": 12.0, "attention_multiplier": 0.2, "residual_multiplier": 0.3, "logits_scaling": 4.0},
        {"embedding_scale": 12.0, "attention.scale": 0.2, "residual_scale": 0.3, "logit_scale": 4.0},
    ),
    "gpt2": (
        "gpt2",
        "GPT2",
        {"n_embd": HIDDEN, "n_layer": LAYERS, "n_head": HEADS, "n_positions": 64, "n_inner": INNER},
        {"attention.layer_norm_epsilon": 1e-5},
    ),
    "qwen3moe": (
        "qwen3moe",
        "Qwen3Moe",
        {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32, "norm_topk_prob": True}
        | {"head_dim": 16},
        {"expert_count": 4, "expert_used_count": 2, "expert_feed_forward_length": 32, "attention.key_length": 16},
    ),
    "mixtral": (
        "llama",
        "Mixtral",
        {"num_local_experts": 4, "num_experts_per_tok": 2, "rope_theta": 10000.0, "rms_norm_eps": 1e-6},
        {"expert_count": 4, "expert_used_count": 2},
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_logits_of_each_family_are_those_of_transformers(case: str, tmp_path: Path, dense: Any) -> None:
    arch, family, options, metadata = CASES[case]
    model = network(family, **options)
    tensors = {name: (tensor.numpy(), "F32") for name, tensor in converted(model, arch).items()}
    write(tmp_path / "x.gguf", tensors, common(arch, **metadata), arch)
    tokens = list(range(3, 23))
    with torch.no_grad():
        expected = model(torch.tensor([tokens])).logits[0]
    got = dense.logits(load_model(tmp_path / "x.gguf", dtype="float32").decoder, tokens)
    torch.testing.assert_close(got, expected, atol=1e-4, rtol=1e-4)


def test_llama3s_frequency_factors_are_used(tmp_path: Path, dense: Any) -> None:
    model = network("Llama")
    tensors = {name: (tensor.numpy(), "F32") for name, tensor in converted(model, "llama").items()}
    tensors["rope_freqs.weight"] = (np.array(ROPE_FREQS, np.float32), "F32")
    write(tmp_path / "x.gguf", tensors, common("llama"))
    model.model.rotary_emb.inv_freq /= torch.tensor(ROPE_FREQS)
    tokens = list(range(3, 23))
    with torch.no_grad():
        expected = model(torch.tensor([tokens])).logits[0]
    got = dense.logits(load_model(tmp_path / "x.gguf", dtype="float32").decoder, tokens)
    torch.testing.assert_close(got, expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("case", ["llama", "qwen3moe", "phi3"])
@pytest.mark.parametrize("kinds", [("Q4_0", "Q8_0"), ("Q4_1", "Q5_1"), ("Q5_0", "F16"), ("Q8_0", "Q8_0")])
def test_quantized_files_run_near_their_dequantized_selves(
    case: str, kinds: tuple[str, str], tmp_path: Path, dense: Any
) -> None:
    arch, family, options, metadata = CASES[case]
    tensors = {}
    for name, tensor in converted(network(family, initializer_range=0.05, **options), arch).items():
        kind = "F32" if tensor.dim() == 1 or "gate_inp" in name else kinds["attn_v" in name or "token_embd" in name]
        data = tensor.numpy()
        tensors[name] = (gguf.quants.quantize(data, Kind[kind]), kind) if kind[0] == "Q" else (data, "F32")
    write(tmp_path / "x.gguf", tensors, common(arch, **metadata), arch)
    tokens = list(range(3, 23))
    exact = dense.logits(load_model(tmp_path / "x.gguf", dtype="float32").decoder, tokens)
    model = load_model(tmp_path / "x.gguf")
    assert model.format.split("+")[0] == ("int4" if kinds[0].startswith("Q4") else "int8")
    assert (dense.logits(model.decoder, tokens) - exact).norm() < 0.06 * exact.norm()


def mixed_file(path: Path, arch: str, family: str, options: dict[str, Any], metadata: dict[str, Any]) -> Path:
    """A file like Q4_K_M's: 4 bits, but for the values, every other MLP's output and the embeddings."""
    tensors = {}
    rng = np.random.default_rng(0)
    for name, tensor in converted(network(family, initializer_range=0.05, **options), arch).items():
        wide = "attn_v" in name or "blk.0.ffn_down" in name or "token_embd" in name or "output.weight" in name
        kind = "F32" if tensor.dim() == 1 else "Q6_K" if wide else "Q4_K"
        if kind == "F32":
            tensors[name] = (tensor.numpy(), kind)
        else:
            tensors[name] = (blocks(kind, *tensor.shape, rng), kind)
    write(path, tensors, common(arch, **metadata), arch)
    return path


MIXED = {"hidden_size": 256, "intermediate_size": 512}
MIXED_METADATA = {"embedding_length": 256, "feed_forward_length": 512}


@pytest.mark.parametrize("case", ["llama", "qwen2"])
def test_a_mixed_file_runs_in_one_native_call_with_the_same_bits_at_any_width(case: str, tmp_path: Path) -> None:
    if not kernels.available():
        pytest.skip("the native kernels are not built")
    path = mixed_file(tmp_path / "x.gguf", case, case.capitalize(), MIXED, MIXED_METADATA)
    model = load_model(path)
    assert model.format == "int4+int8"
    assert model.decoder.layers[0].qkv.format == "int4+int8"
    decoder, tokens = model.decoder, list(range(3, 23))
    cache = Cache(decoder.config, torch.float32, torch.device("cpu"), limit=256)
    native, layered = pass_for(decoder, cache), LayeredPass(decoder, cache)
    assert isinstance(native, FusedPass)
    stepped = logits_of(native, cache, tokens, 1)
    for width in (3, 20):
        assert torch.equal(logits_of(native, cache, tokens, width), stepped)
    assert (logits_of(layered, cache, tokens, 20) - stepped).norm() < 0.05 * stepped.norm()


def logits_of(run: Pass, cache: Cache, tokens: list[int], width: int) -> torch.Tensor:
    """The logits of a sequence, in passes of `width` tokens over a tree of its own."""
    tree, parts = Tree(cache), []
    tree.append(tokens)
    path = tree.tip.path()
    for first in range(0, len(path), width):
        nodes = path[first : first + width]
        plan = plan_pass([(tree, nodes)], cache.positions, run._decoder.config.windows)
        logits = run(plan, list(range(len(nodes)))).logits
        assert logits is not None
        parts.append(logits)
        for node in nodes:
            node.computed = True
    tree.release()
    return torch.cat(parts)


def test_types_that_are_not_read_are_named(tmp_path: Path) -> None:
    data = np.zeros((2, gguf.GGML_QUANT_SIZES[Kind.Q8_1][1]), np.uint8)
    write(tmp_path / "x.gguf", {"w": (data, "Q8_1")}, {})
    with pytest.raises(UsageError, match="Q8_1"):
        GgufFile(tmp_path / "x.gguf").floats("w")


@pytest.mark.parametrize("kind", ["NVFP4", "Q4_0"])
def test_a_tensors_factor_beside_it_is_used(kind: str, tmp_path: Path) -> None:
    data = encoded(kind, 6, 512)
    factors = np.array([0.5, 3.0], np.float32)
    tensors = {"w.weight": (data.reshape(2, 3, -1), kind), "w.scale": (factors, "F32")}
    write(tmp_path / "x.gguf", tensors, {})
    file = GgufFile(tmp_path / "x.gguf")
    expected = torch.from_numpy(gguf.quants.dequantize(data, Kind[kind])).view(2, 3, 512)
    expected *= torch.tensor([0.5, 3.0]).view(2, 1, 1)
    assert torch.equal(file.floats("w.weight"), expected)
    ours = file.integers("w.weight").dequantize().view(2, 3, 512)
    assert (ours - expected).abs().max() < 0.01 * expected.abs().max()


def split(path: Path, tensors: dict[str, tuple[np.ndarray, str]], metadata: dict[str, Any], count: int) -> list[Path]:
    """A model in `count` files, the metadata in the first."""
    names, paths = list(tensors), []
    for number in range(count):
        mine = {name: tensors[name] for name in names[number::count]}
        about = {"split.no": number, "split.count": count, "split.tensors.count": len(names)}
        paths.append(path.with_name(f"{path.stem}-{number + 1:05}-of-{count:05}.gguf"))
        write(paths[-1], mine, about | (metadata if number == 0 else {}))
    return paths


def test_a_split_model_is_read_from_any_of_its_files(tmp_path: Path, dense: Any) -> None:
    tensors = {name: (tensor.numpy(), "F32") for name, tensor in converted(network("Llama"), "llama").items()}
    write(tmp_path / "whole.gguf", tensors, common("llama"))
    paths = split(tmp_path / "x.gguf", tensors, common("llama"), 3)
    tokens = list(range(3, 23))
    expected = dense.logits(load_model(tmp_path / "whole.gguf", dtype="float32").decoder, tokens)
    models = [load_model(path, dtype="float32") for path in (paths[0], paths[2])]
    for model in models:
        assert torch.equal(dense.logits(model.decoder, tokens), expected)
    assert models[0].fingerprint == models[1].fingerprint


def test_what_is_wrong_with_a_split_model_is_said(tmp_path: Path) -> None:
    tensors = {name: (np.zeros((2, 32), np.float32), "F32") for name in "abc"}
    first, second = split(tmp_path / "x.gguf", tensors, {}, 2)
    second.rename(tmp_path / "y.gguf")
    with pytest.raises(UsageError, match=r"x-00002-of-00002\.gguf is not beside it"):
        GgufFile(first)
    with pytest.raises(UsageError, match=r"must end in -00001-of-00002\.gguf"):
        GgufFile(tmp_path / "y.gguf")
    write(second, {}, {"split.no": 1, "split.count": 2, "split.tensors.count": 3})
    with pytest.raises(UsageError, match="lack 1 tensors"):
        GgufFile(first)


def test_the_default_model_answers_in_every_format(default_path: Path, dense: Any) -> None:
    prompt = [{"role": "user", "content": "What is the capital of France?"}]
    reference = load_model(default_path, dtype="float32")
    tokens = reference.tokenizer.render_chat(prompt)
    tokens += [*reference.tokenizer.encode("The capital of France is Paris."), 2]
    exact = dense.logits(reference.decoder, tokens)
    assert exact[-9:-1].argmax(-1).tolist() == tokens[-8:]
    for dtype, limit in {"auto": 0.12, "int8": 0.12, "bfloat16": 0.03, "int4": 0.12}.items():
        model = load_model(default_path, dtype=dtype)
        assert model.fingerprint == reference.fingerprint
        assert (dense.logits(model.decoder, tokens) - exact).norm() / exact.norm() < limit
