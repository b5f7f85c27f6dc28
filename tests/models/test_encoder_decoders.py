"""Every encoder-decoder that we run gives what `transformers` gives, from tiny random checkpoints that it saved."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors

import outlay
from outlay import UsageError
from outlay.budget import Account, Budget, Ledger
from outlay.cli import main
from outlay.engine.engine import Engine
from outlay.engine.forward import Forward
from outlay.lm import LM
from outlay.models.load import Model, load_model

VOCAB = 99
PAD, BOS, EOS = 0, 1, 2
T5 = {
    "vocab_size": VOCAB, "d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 3, "num_decoder_layers": 2, "num_heads": 4,
    "relative_attention_num_buckets": 8, "relative_attention_max_distance": 12, "decoder_start_token_id": PAD,
    "pad_token_id": PAD, "eos_token_id": EOS,
}  # fmt: skip
BART = {
    "vocab_size": VOCAB, "d_model": 32, "encoder_layers": 3, "decoder_layers": 2, "encoder_ffn_dim": 48,
    "decoder_ffn_dim": 40, "encoder_attention_heads": 4, "decoder_attention_heads": 2, "max_position_embeddings": 64,
    "pad_token_id": PAD, "bos_token_id": BOS, "eos_token_id": EOS, "decoder_start_token_id": EOS,
    "forced_eos_token_id": EOS, "init_std": 0.3,
}  # fmt: skip
MARIAN = BART | {"decoder_start_token_id": PAD, "scale_embedding": True, "activation_function": "swish"}
GEMMA = {
    "vocab_size": VOCAB, "intermediate_size": 48, "num_hidden_layers": 3, "num_attention_heads": 4, "head_dim": 16,
    "num_key_value_heads": 2, "max_position_embeddings": 64, "query_pre_attn_scalar": 24, "initializer_range": 0.2,
    "sliding_window": 5, "attn_logit_softcapping": 4.0, "final_logit_softcapping": 5.0, "pad_token_id": PAD,
    "bos_token_id": BOS, "eos_token_id": EOS,
}  # fmt: skip
T5GEMMA = {
    "encoder": GEMMA | {"hidden_size": 48}, "decoder": GEMMA | {"hidden_size": 32, "num_hidden_layers": 2},
    "vocab_size": VOCAB, "pad_token_id": PAD, "bos_token_id": BOS, "eos_token_id": EOS,
}  # fmt: skip

CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "t5": ("T5", T5),
    "t5-gated": ("T5", T5 | {"feed_forward_proj": "gated-gelu", "tie_word_embeddings": False}),
    "flan-t5-untied": ("T5", T5 | {"feed_forward_proj": "gated-gelu", "tie_word_embeddings": False, "untied": True}),
    "mt5": ("MT5", T5 | {"feed_forward_proj": "gated-gelu"}),
    "bart": ("Bart", BART),
    "bart-scaled": ("Bart", BART | {"scale_embedding": True, "activation_function": "relu"}),
    "marian": ("Marian", MARIAN),
    "t5gemma": ("T5Gemma", T5GEMMA),
    "mbart": ("MBart", BART | {"scale_embedding": True}),
}
INPUTS = [[5, 6, 7, 8, EOS], [11, 12, 13, 11, 12, 13, 14, 15, 9, 31, 32, 33, 34, 35, 36, 37, 38, EOS], [90, EOS]]
TARGET = [4, 60, 61, 62, 4, 60, 12, 13, 14, 20, 21, 22, 23, 24, 25, 26]


def tokenizer() -> Tokenizer:
    """A tokenizer of letters, which ends each text with the end token."""
    pieces = ["<pad>", "<s>", "</s>", *sorted(pre_tokenizers.ByteLevel.alphabet())[: VOCAB - 3]]
    inner = Tokenizer(models.BPE(vocab={piece: place for place, piece in enumerate(pieces)}, merges=[]))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    inner.decoder = decoders.ByteLevel()
    inner.add_special_tokens(["<pad>", "<s>", "</s>"])
    inner.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", EOS)])
    return inner


def save(folder, kind: str, options: dict[str, Any], **generation: Any):
    """Saves a random checkpoint, and returns the network of `transformers`."""
    torch.manual_seed(3)
    options = dict(options)
    untied = options.pop("untied", False)
    config = getattr(transformers, f"{kind}Config")(**options)
    head = "MTModel" if kind == "Marian" else "ForConditionalGeneration"
    network = getattr(transformers, f"{kind}{head}")(config).eval()
    with torch.no_grad():
        for name, weight in network.named_parameters():  # norms and biases that say something
            if weight.dim() == 1:
                weight += torch.randn_like(weight) * 0.2
            elif "relative_attention_bias" in name:
                weight.normal_(0, 1.0)
        if hasattr(network, "final_logits_bias"):
            network.final_logits_bias.normal_(0, 0.5)
    for name, value in generation.items():
        setattr(network.generation_config, name, value)
    network.save_pretrained(folder)
    if untied:
        weights = load_file(folder / "model.safetensors")
        weights["lm_head.weight"] = torch.randn(VOCAB, config.hidden_size)
        save_file(weights, folder / "model.safetensors", {"format": "pt"})
    (folder / "tokenizer.json").write_text(tokenizer().to_str())
    named = {"eos_token": "</s>", "pad_token": "<pad>", "bos_token": "<s>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(named))
    return type(network).from_pretrained(folder).eval()


@pytest.fixture(scope="module", params=CASES)
def pair(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp(request.param)
    network = save(folder, *CASES[request.param])
    return network, load_model(folder, dtype="float32")


def logits_of(model: Model, inputs: list[list[int]], target: list[int]) -> list[torch.Tensor]:
    """The logits after each token of a decoder's text over several inputs, from one pass."""
    worker = Engine().worker(model)
    forwards = []
    for tokens in inputs:
        tree, _ = worker.plant(target, 0, memory=worker.open_memory(tokens))
        forwards.append(Forward(Account(Budget(), Ledger()), worker, tuple(tree.tip.path()), [tree]))
    worker.advance(forwards)
    assert worker.passes == 1
    return [forward.result for forward in forwards]


def test_the_logits_are_those_of_transformers_whatever_else_is_read(pair):
    network, model = pair
    target = [model.rules.start[0], *TARGET]
    together = logits_of(model, INPUTS, target)
    for tokens, found in zip(INPUTS, together, strict=True):
        with torch.inference_mode():
            wanted = network(torch.tensor([tokens]), decoder_input_ids=torch.tensor([target])).logits[0]
        assert (found - wanted).abs().max() < 1e-4
        (alone,) = logits_of(model, [tokens], target)
        assert (alone - wanted).abs().max() < 1e-4


def written(network, tokens: list[int], **options: Any) -> list[int]:
    with torch.inference_mode():
        out = network.generate(torch.tensor([tokens]), do_sample=False, **options)[0].tolist()
    return out[1:]


@pytest.mark.parametrize("beams", [1, 3])
def test_greedy_and_beams_write_what_transformers_writes_alone_and_together(pair, beams):
    network, model = pair
    lm = LM(model, Engine())
    method = "greedy" if beams == 1 else f"beam:width={beams}"
    results = lm.generate_batch(INPUTS, method=method, max_tokens=12)
    for tokens, result in zip(INPUTS, results, strict=True):
        wanted = written(network, tokens, num_beams=beams, max_new_tokens=12)
        assert result.tokens == wanted[: len(result.tokens)]
        assert set(wanted[len(result.tokens) :]) <= {PAD}
        assert lm.generate(tokens, method=method, max_tokens=12).tokens == result.tokens
        assert result.ledger.encoder_passes == 1
        assert result.ledger.encoder_tokens == len(tokens)


RULES = {
    "forced_bos_token_id": 44, "suppress_tokens": [30, 31, 97], "begin_suppress_tokens": [7, 60], "min_length": 9,
    "no_repeat_ngram_size": 2, "repetition_penalty": 1.3, "forced_eos_token_id": EOS,
}  # fmt: skip


@pytest.fixture(scope="module")
def ruled(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ruled")
    network = save(folder, "Bart", BART, **RULES)
    return network, LM(load_model(folder, dtype="float32"), Engine())


@pytest.mark.parametrize("beams", [1, 4])
def test_the_rules_of_a_generation_config_are_kept(ruled, beams):
    network, lm = ruled
    method = "greedy" if beams == 1 else f"beam:width={beams},length_penalty=2.0,early_stopping=true"
    for tokens in INPUTS:
        wanted = written(
            network, tokens, num_beams=beams, length_penalty=2.0, early_stopping=beams > 1, max_new_tokens=14
        )
        found = lm.generate(tokens, method=method, max_tokens=14).tokens
        assert found == wanted[: len(found)]
        assert set(wanted[len(found) :]) <= {PAD}
        assert found[0] == 44
        assert found[-1] == EOS


@pytest.mark.parametrize("method", ["lookup", "auto", "aded"])
def test_exact_methods_keep_the_rules_too(ruled, method):
    _, lm = ruled
    for tokens in INPUTS:
        assert lm.generate(tokens, method=method, max_tokens=14).tokens == lm.generate(tokens, max_tokens=14).tokens


def test_a_rule_that_is_not_kept_is_refused_by_name(tmp_path):
    save(tmp_path, "Bart", BART)
    path = tmp_path / "generation_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"guidance_scale": 1.5}))
    with pytest.raises(UsageError, match="asks for guidance_scale, which outlay does not do"):
        load_model(tmp_path)


def test_what_does_not_run_is_refused_by_name(tmp_path):
    save(tmp_path, "T5", T5)
    path = tmp_path / "config.json"
    whole = json.loads(path.read_text())
    for change, said in [
        ({"feed_forward_proj": "gated-swoosh"}, "feed_forward_proj 'gated-swoosh' is not one that outlay runs"),
        ({"d_model": "x"}, "a value of the wrong type"),
        ({"model_type": "bart", "normalize_before": True}, "this BART has normalize_before True"),
        ({"decoder_start_token_id": None}, "lacks decoder_start_token_id"),
    ]:
        path.write_text(json.dumps(whole | change))
        (tmp_path / "generation_config.json").unlink(missing_ok=True)
        with pytest.raises(UsageError, match=said):
            load_model(tmp_path)


@pytest.mark.parametrize("dtype", ["bfloat16", "int8"])
def test_other_formats_write_a_text_too(tmp_path, dtype):
    save(tmp_path, "T5", T5)
    lm = outlay.load(tmp_path, dtype=dtype)
    result = lm.generate("AB$", max_tokens=4)
    assert len(result.tokens) == 4
    assert result.prompt_tokens == 3 + 1 + 1


def test_a_folder_answers_on_the_command_line(tmp_path, capsys):
    save(tmp_path, "T5", T5)
    assert main(["run", "AB$", "--model", str(tmp_path), "--max-tokens", "5", "--json", "--dtype", "float32"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert len(shown["tokens"]) == 5
    assert shown["ledger"]["encoder_tokens"] == 4
    assert shown["ledger"]["ran_on"] == [load_model(tmp_path, dtype="float32").decoder.runs_on]
    assert main(["models", str(tmp_path)]) == 0
    assert "native" in capsys.readouterr().out
