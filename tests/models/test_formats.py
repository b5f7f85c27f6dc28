"""What the native kernels' formats cost on the default model and a real text, beside the same weights in float32."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch

import outlay
from outlay.bench.accuracy.measure import compare, layer_errors, tap, windows
from outlay.models import linear
from outlay.prompt_logits import logits_from

TEXT = Path(__file__).parents[2] / "benchmarks" / "data" / "war_and_peace.txt"
FIRST = 255  # the row from which on predictions count


@pytest.fixture(scope="module")
def reference(default_path):
    """Tokens, the reference's log-probabilities after `FIRST`, and taps that hold real hidden states."""
    if not linear.native_kernels():
        pytest.skip("our own kernels do not run on this machine")
    lm = outlay.load(default_path, dtype="float32")
    taps = tap(lm.model.decoder)
    (tokens,) = windows(lm.encode(TEXT.read_text(), chat=False), 1024, 1)
    logits = logits_from(lm, tokens[:-1], FIRST)
    return tokens, logits.log_softmax(-1), taps


def test_the_native_default_costs_at_most_a_hundredth_of_its_weights_perplexity_in_float32(default_path, reference):
    tokens, expected, _ = reference
    logits = logits_from(outlay.load(default_path), tokens[:-1], FIRST)
    found = compare(expected, logits, torch.tensor(tokens[FIRST + 1 :]))
    assert found["tokens"] == 768
    assert math.exp((found["nll"] - found["reference_nll"]) / found["tokens"]) < 1.01
    assert found["kl"] / found["tokens"] < 0.005  # less noisy than the perplexity, so the tighter bound


@pytest.mark.parametrize(
    ("dtype", "average", "worst"), [("auto", 0.01, 0.02), ("int8", 0.012, 0.02), ("bfloat16", 0.003, 0.005)]
)
def test_no_native_layer_is_far_from_float32_on_real_hidden_states(default_path, reference, dtype, average, worst):
    errors = layer_errors(reference[2], outlay.load(default_path, dtype=dtype).model.decoder)
    assert len(errors) == 4 * 30 + 1
    assert sum(errors.values()) / len(errors) < average
    assert max(errors.values()) < worst
