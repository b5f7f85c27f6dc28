"""LLaDA and Dream from GGUF files, as llama.cpp's converter writes them, against `transformers`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from diffuse.checkpoints import aligned, logits
from models.test_gguf import VOCAB, common, converted, interleave, network, write

from outlay import UsageError
from outlay.diffuse.threshold import Threshold
from outlay.engine.engine import Engine
from outlay.lm import LM
from outlay.models.load import load_model

MASK = 310
PROMPT = torch.randint(3, 250, (7,), generator=torch.Generator().manual_seed(1)).tolist()
KINDS = {"llada": "Llama", "dream": "Qwen2"}


class Seen(Threshold):
    """Threshold decoding that keeps what it sees."""

    def __init__(self, **options: object) -> None:
        super().__init__(**options)  # type: ignore[arg-type]
        object.__setattr__(self, "seen", [])

    def proposals(self, run: Any, block: Any, positions: Any, logits: Any) -> Any:
        self.seen.append(([cell.token for cell in run.canvas.cells], list(positions), logits))  # type: ignore[attr-defined]
        return super().proposals(run, block, positions, logits)


def save(path: Path, arch: str, **metadata: Any) -> Any:
    """Writes a file of the architecture; returns the network of `transformers` with its weights."""
    model = network(KINDS[arch])
    tensors = converted(model, arch)
    if arch == "llada":
        heads = {"attn_q": 4, "attn_k": 2}
        for name, tensor in tensors.items():
            part = name.split(".")[-2]
            tensors[name] = interleave(tensor, heads[part]) if part in heads else tensor
    told = {"tokenizer.ggml.mask_token_id": MASK, "tokenizer.ggml.eos_token_id": 2} | metadata
    entries = {key: value for key, value in (common(arch) | told).items() if value is not None}
    write(path, {name: (tensor.contiguous().numpy(), "F32") for name, tensor in tensors.items()}, entries, arch)
    return model


@pytest.mark.parametrize(
    ("arch", "told", "shift"),
    [
        ("llada", {}, False),
        ("llada", {"diffusion.shift_logits": False}, False),
        ("dream", {}, True),
        ("dream", {"diffusion.shift_logits": True}, True),
        ("dream", {"diffusion.shift_logits": False}, False),
    ],
)
def test_its_logits_in_each_round_are_those_of_transformers(
    arch: str, told: dict[str, Any], shift: bool, tmp_path: Path
) -> None:
    model = save(tmp_path / "x.gguf", arch, **told)
    method = Seen(tau=0.3)
    lm = LM(load_model(tmp_path / "x.gguf", dtype="float32"), Engine())
    result = lm.generate(PROMPT, method=method, max_tokens=12, ignore_eos=True)
    assert len(result.tokens) == 12
    assert MASK not in result.tokens
    assert len(method.seen) == result.ledger.rounds > 1  # type: ignore[attr-defined]
    for tokens, positions, found in method.seen:  # type: ignore[attr-defined]
        expected = aligned(logits(model, tokens, 0), shift, MASK)[positions]
        torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)


def test_the_mask_in_a_prompt_is_text_and_among_ids_refused(tmp_path: Path) -> None:
    save(tmp_path / "x.gguf", "llada")
    model = load_model(tmp_path / "x.gguf")
    assert model.decoder.config.vocab_size == VOCAB
    with pytest.raises(UsageError, match=f"token {MASK}, the mask of"):
        LM(model, Engine()).generate([3, MASK, 4])


def test_a_file_without_a_mask_is_refused(tmp_path: Path) -> None:
    save(tmp_path / "x.gguf", "dream", **{"tokenizer.ggml.mask_token_id": None})
    with pytest.raises(UsageError, match=r"add tokenizer\.ggml\.mask_token_id"):
        load_model(tmp_path / "x.gguf")
