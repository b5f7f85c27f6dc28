"""Passes in recorded segments give what the decoder gives; a recorder that only runs again stands in for a GPU's."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from test_families import CASES, VOCAB, save

from outlay.models.graphed import WIDTHS, CudaGraphs, GraphedForward, graphed
from outlay.models.load import load_model


def run_again(segment: Any) -> Any:
    """Keeps the results where they are and fills them anew at each replay, as a CUDA graph does."""
    results = segment()

    def replay() -> None:
        for old, new in zip(results, segment(), strict=True):
            old.copy_(new)

    return results, replay


@pytest.mark.parametrize(
    "case",
    ["llama-biases", "qwen3", "phi4-mini", "gemma2", "gemma3", "smollm3", "olmo2", "granite", "gpt2", "opt-350m"],
)
def test_recorded_segments_give_what_the_decoder_gives(case: str, tmp_path: Path, dense: Any) -> None:
    save(tmp_path, *CASES[case])
    decoder = load_model(tmp_path, dtype="float32").decoder
    forward = GraphedForward(decoder, run_again)
    caches = dense.Cache(decoder), dense.Cache(decoder)
    start = 0
    for count in (7, 1, 1, 3, 8, 1):  # widths 8, 1, 4: some recorded anew, some replayed
        tokens, positions = torch.randint(3, VOCAB, (count,)), torch.arange(start, start + count)
        for cache in caches:
            cache.length = start
        rows = torch.tensor([count - 1, 0])
        got = decoder.logits(forward(tokens, positions, caches[0].attend)[rows])
        torch.testing.assert_close(
            got, decoder.forward(tokens, positions, caches[1].attend, rows), atol=1e-5, rtol=1e-5
        )
        start += count


def test_a_wider_pass_than_any_that_is_recorded_runs_as_it_is(tmp_path: Path, dense: Any) -> None:
    save(tmp_path, *CASES["gpt2"])
    decoder = load_model(tmp_path, dtype="float32").decoder

    def refuse(segment: Any) -> Any:
        raise AssertionError("nothing to record")

    tokens = torch.randint(3, VOCAB, (WIDTHS[-1] + 1,))
    positions = torch.zeros(len(tokens), dtype=torch.int64)
    got = GraphedForward(decoder, refuse)(tokens, positions, dense.Cache(decoder).attend)
    assert torch.equal(decoder.logits(got), decoder.forward(tokens, positions, dense.Cache(decoder).attend))


def test_only_decoders_on_a_gpu_without_experts_are_recorded(tmp_path: Path) -> None:
    save(tmp_path, *CASES["mixtral"])
    decoder = load_model(tmp_path, dtype="float32").decoder
    assert not graphed(decoder)
    decoder.device = torch.device("cuda")
    assert not graphed(decoder)
    save(tmp_path / "plain", *CASES["llama2"])
    plain = load_model(tmp_path / "plain", dtype="float32").decoder
    assert not graphed(plain)
    plain.device = torch.device("cuda")
    assert graphed(plain)


@pytest.mark.gpu
@pytest.mark.parametrize("case", ["qwen3", "opt-350m"])
def test_cuda_graphs_give_what_the_decoder_gives(case: str, tmp_path: Path) -> None:
    save(tmp_path, *CASES[case])
    decoder = load_model(tmp_path, dtype="float32", device="cuda").decoder
    forward = GraphedForward(decoder, CudaGraphs())
    for count in (7, 1, 1, 3, 8, 1):
        tokens, positions = torch.randint(3, VOCAB, (count,)).cuda(), torch.arange(count).cuda()
        places = torch.arange(count).cuda()

        def attend(layer: int, q: Any, k: Any, v: Any, places: Any = places) -> Any:
            k, v = (x.repeat_interleave(q.shape[1] // x.shape[1], 1) for x in (k, v))
            scores = torch.einsum("qhd,khd->hqk", q, k).masked_fill(places[:, None] < places, float("-inf"))
            return torch.einsum("hqk,khd->qhd", scores.softmax(-1), v)

        got = decoder.logits(forward(tokens, positions, attend))
        torch.testing.assert_close(got, decoder.forward(tokens, positions, attend), atol=1e-4, rtol=1e-4)
