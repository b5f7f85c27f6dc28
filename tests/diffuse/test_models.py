"""Models that fill masks, from folders in their public form, against `transformers` with masks in four dimensions."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from diffuse.checkpoints import FAMILIES, MASK, VOCAB, aligned, logits, save

from outlay import Budget, UsageError
from outlay.diffuse.threshold import Threshold
from outlay.engine.engine import Engine
from outlay.lm import LM
from outlay.models.config import MaskedDiffusion, decoder_config
from outlay.models.load import DTYPES, _folder_tokenizer, load_model
from outlay.testing import tiny_lm

PROMPT = torch.randint(3, 80, (11,), generator=torch.Generator().manual_seed(1)).tolist()


class Seen(Threshold):
    """Threshold decoding that keeps what it sees."""

    def __init__(self, **options: object) -> None:
        super().__init__(**options)  # type: ignore[arg-type]
        object.__setattr__(self, "seen", [])

    def proposals(self, run, block, positions, logits):  # type: ignore[no-untyped-def]
        canvas = run.canvas
        tokens = [*run.prompt[: canvas.base], *run.tokens[: max(0, canvas.base - run.begin)]]
        tokens += [cell.token for cell in canvas.cells]
        self.seen.append((tokens, list(positions), logits))  # type: ignore[attr-defined]
        return super().proposals(run, block, positions, logits)


def lm(folder: Path, **options: str) -> LM:
    return LM(load_model(folder, **options), Engine())


@pytest.mark.parametrize("cache", ["auto", "none"])
@pytest.mark.parametrize("family", FAMILIES)
def test_its_logits_in_each_round_are_those_of_transformers(family: str, cache: str, tmp_path: Path) -> None:
    network = save(tmp_path, family)
    _, _, shift, block = FAMILIES[family]
    method = Seen(tau=0.3, cache=cache)
    result = lm(tmp_path, dtype="float32").generate(PROMPT, method=method, max_tokens=21, ignore_eos=True)
    assert len(result.tokens) == 21
    assert len(method.seen) == result.ledger.rounds > 3
    for tokens, positions, found in method.seen:
        expected = aligned(logits(network, tokens, block), shift)[positions]
        torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("family", ["sdar", "Fast_dLLM_Qwen", "llada2_moe"])
@pytest.mark.parametrize("length", [8, 11, 3])
def test_exact_cache_and_full_passes_write_the_same(family: str, length: int, tmp_path: Path) -> None:
    save(tmp_path, family)
    loaded = lm(tmp_path, dtype="float32")
    full, cached = (
        loaded.generate(PROMPT[:length], method=Threshold(tau=0.3, cache=cache), max_tokens=30, ignore_eos=True)
        for cache in ("none", "exact")
    )
    assert cached.tokens == full.tokens
    assert cached.ledger.rounds == full.ledger.rounds
    assert cached.ledger.target_tokens < full.ledger.target_tokens
    again = loaded.generate(PROMPT[:length], method=Threshold(tau=0.3), max_tokens=30, ignore_eos=True)
    assert again.tokens == full.tokens


@pytest.mark.parametrize("dtype", [dtype for dtype in DTYPES if dtype != "auto"])
@pytest.mark.parametrize("family", FAMILIES)
def test_it_runs_in_every_dtype(family: str, dtype: str, tmp_path: Path) -> None:
    save(tmp_path, family)
    loaded = lm(tmp_path, dtype=dtype)
    result = loaded.generate(PROMPT, max_tokens=12, ignore_eos=True)
    assert len(result.tokens) == 12
    assert MASK not in result.tokens
    assert result.method == "threshold"


def test_llama_15_is_read_by_its_own_sizes(tmp_path: Path) -> None:
    save(tmp_path, "llada", embedding_size=..., n_kv_heads=2)
    assert load_model(tmp_path).decoder.config.vocab_size == VOCAB


def test_dream_reads_the_context_that_its_authors_document(tmp_path: Path) -> None:
    save(tmp_path, "Dream", max_position_embeddings=131072)
    assert load_model(tmp_path).decoder.config.max_positions == 2048


def test_the_mask_is_found_in_the_tokenizer(tmp_path: Path) -> None:
    save(tmp_path, "sdar", mask_token_id=...)
    with pytest.raises(UsageError, match="nothing tells which token is the mask of this sdar"):
        load_model(tmp_path)
    tokenizer = json.loads((tmp_path / "tokenizer.json").read_text())
    entry = {"id": 93, "content": "<|MASK|>", "single_word": False, "lstrip": False, "rstrip": False,
             "normalized": False, "special": False}  # fmt: skip
    vocab = {"<|MASK|>" if token == 93 else piece: token for piece, token in tokenizer["model"]["vocab"].items()}
    changed = tokenizer | {"added_tokens": [entry], "model": tokenizer["model"] | {"vocab": vocab}}
    (tmp_path / "tokenizer.json").write_text(json.dumps(changed))
    model = load_model(tmp_path)
    assert model.decoder.config.diffusion == MaskedDiffusion(93, block=4)
    assert 93 not in model.tokenizer.encode("a <|MASK|> in a prompt is text")


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"alibi": True}, "alibi True"),
        ({"block_type": "sequential"}, "block_type 'sequential'"),
        ({"mask_token_id": 4000}, "nothing tells which token is the mask"),
        ({"n_layers": ...}, "lacks 'n_layers'"),
    ],
)
def test_a_llada_that_does_not_run_is_refused(changes: dict[str, object], told: str, tmp_path: Path) -> None:
    save(tmp_path, "llada", **changes)
    with pytest.raises(UsageError, match=told):
        load_model(tmp_path)


def test_a_block_that_is_missing_is_refused(tmp_path: Path) -> None:
    save(tmp_path, "sdar", block_size=...)
    with pytest.raises(UsageError, match="lacks 'block_size'"):
        load_model(tmp_path)


def test_llada2_fills_blocks_of_its_authors_sampler_where_its_config_says_none(tmp_path: Path) -> None:
    save(tmp_path, "llada2_moe", block_size=...)
    assert load_model(tmp_path).decoder.config.diffusion == MaskedDiffusion(MASK, block=32)


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"score_function": "softmax"}, "weights its experts by softmax"),
        ({"n_group": 3}, "2 of 3 groups of 8 experts have fewer than 3"),
        ({"topk_group": 1}, "1 of 4 groups of 8 experts have fewer than 3"),
    ],
)
def test_a_llada2_that_does_not_run_is_refused(changes: dict[str, object], told: str, tmp_path: Path) -> None:
    save(tmp_path, "llada2_moe", **changes)
    with pytest.raises(UsageError, match=told):
        load_model(tmp_path)


def test_an_adapter_is_refused(tmp_path: Path) -> None:
    save(tmp_path, "Dream")
    (tmp_path / "adapter_config.json").write_text("{}")
    with pytest.raises(UsageError, match="is an adapter"):
        load_model(tmp_path)


def test_the_mask_among_token_ids_is_refused(tmp_path: Path) -> None:
    save(tmp_path, "llada")
    with pytest.raises(UsageError, match=f"token {MASK}, the mask of"):
        lm(tmp_path).generate([3, MASK, 4])


def test_methods_of_the_wrong_kind_name_the_right_one(tmp_path: Path) -> None:
    save(tmp_path, "llada")
    with pytest.raises(UsageError, match="such as threshold"):
        lm(tmp_path).generate(PROMPT, method="greedy")
    with pytest.raises(UsageError, match="such as auto"):
        tiny_lm().generate("Hello", method="threshold")


def test_a_canvas_behind_the_context_is_refused(tmp_path: Path) -> None:
    save(tmp_path, "llada")
    loaded = lm(tmp_path)
    with pytest.raises(UsageError, match="max_tokens must be 53 or less, not 54"):
        loaded.generate(PROMPT, max_tokens=54)
    assert len(loaded.generate(PROMPT, ignore_eos=True, budget=Budget(target_passes=1)).tokens) == 53


@pytest.mark.parametrize("family", ["Dream", "sdar", "Fast_dLLM_Qwen"])
def test_the_files_of_a_slow_tokenizer_are_read(family: str, tmp_path: Path) -> None:
    """Dream's public form has no tokenizer.json, but Qwen2's vocab.json and merges.txt."""
    save(tmp_path, family, vocab_size=260)
    vocab = json.loads((tmp_path / "tokenizer.json").read_text())["model"]["vocab"]
    (tmp_path / "tokenizer.json").unlink()
    (tmp_path / "vocab.json").write_text(json.dumps(vocab | {"ab": 256}))
    (tmp_path / "merges.txt").write_text("#version: 0.2\na b\n")
    entry = {"content": "<|mark|>", "special": True}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"added_tokens_decoder": {"257": entry}}))
    raw = json.loads((tmp_path / "config.json").read_text())
    config, tokenizer = _folder_tokenizer(tmp_path, decoder_config(raw))
    assert config.diffusion.mask == MASK
    assert tokenizer.encode("ab a") == [256, vocab["\u0120"], vocab["a"]]
    assert tokenizer.decode(tokenizer.encode("ab, 漢字 12")) == "ab, 漢字 12"
    assert tokenizer.encode("<|mark|>", special=True) == [257]
    (tmp_path / "vocab.json").write_text(json.dumps(vocab | {"ab": 300}))
    with pytest.raises(UsageError, match="leave some out"):
        _folder_tokenizer(tmp_path, decoder_config(raw))
