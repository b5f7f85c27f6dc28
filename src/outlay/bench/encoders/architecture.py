"""Random encoder-decoders of equal size whose layers stand in the encoder or in the decoder: what a batch takes."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from outlay.bench.arch.nets import write_mu
from outlay.lm import LM, load
from outlay.progress import ShowProgress
from outlay.train.distill import MuConfig

HIDDEN, HEAD, VOCAB = 256, 64, 512
FRAMES, TOKENS, SECONDS = 125, 40, 10.0  # encoder places and tokens of an utterance, and its seconds
SPLITS = {"12/12": (12, 12), "24/2": (24, 2)}
"""Layers of encoder and decoder."""
BATCHES = (1, 16)


def measure_splits(folder: Path, rounds: int, progress: ShowProgress) -> dict[str, Any]:
    """Measures both splits.

    Args:
        folder: Where the networks are written.
        rounds: How often each is measured, in turns.
        progress: Is told how far the work is.

    Returns:
        `parameters` by split, and `rows`: for each batch, the processor seconds of each round by split.
    """
    heads = HIDDEN // HEAD
    parameters = {
        name: write_mu(
            folder / f"split-{decoder}",
            MuConfig(encoder, decoder, HIDDEN, HIDDEN, heads, heads, 4 * HIDDEN, VOCAB, FRAMES + TOKENS),
        )
        for name, (encoder, decoder) in SPLITS.items()
    }
    models = {
        name: load(str(folder / f"split-{decoder}"), dtype="float32", threads=1)
        for name, (_, decoder) in SPLITS.items()
    }
    rows = [{"batch": batch, "cpu": _seconds(models, batch, rounds, progress)} for batch in BATCHES]
    return {"parameters": parameters, "frames": FRAMES, "tokens": TOKENS, "seconds": SECONDS, "rows": rows}


def _seconds(models: Mapping[str, LM], batch: int, rounds: int, progress: ShowProgress) -> dict[str, list[float]]:
    prompts = [[1 + (place * 7 + row) % 250 for place in range(FRAMES)] for row in range(batch)]
    found: dict[str, list[float]] = {name: [] for name in models}
    for lm in models.values():
        lm.generate(prompts[0], method="greedy", max_tokens=2, ignore_eos=True)
    for turn in range(rounds):
        for name, lm in models.items():
            progress(f"{name} layers, batch {batch}", turn, rounds)
            lm.engine.clear()
            started = time.process_time()
            lm.generate_batch(prompts, method="greedy", max_tokens=TOKENS, ignore_eos=True)
            found[name].append(time.process_time() - started)
    return found
