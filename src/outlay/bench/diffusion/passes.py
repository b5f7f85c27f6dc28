"""What passes over a canvas cost, beside those of the same network as an autoregressive model.

A canvas beats one token a pass where its rounds fill more tokens than their passes cost in passes of one row.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

import torch

from outlay.engine.passes import pass_for
from outlay.lm import set_threads
from outlay.models.config import MaskedDiffusion
from outlay.models.decoder import Decoder
from outlay.models.load import load_model
from outlay.progress import ShowProgress
from outlay.tree.cache import Cache
from outlay.tree.canvas import Canvas, Row
from outlay.tree.plan import plan_pass
from outlay.tree.token_tree import Tree

PROMPT, CANVAS, BLOCK = 64, 256, 32
BLOCKS = (4, 8, 16, 32, 64)
SIDE = 16  # canvases that are filled together
ROUNDS = 9  # times that each pass is measured, taking turns


def measured(model: Path, progress: ShowProgress) -> dict[str, Any]:
    """Returns the CPU seconds of passes on one thread: medians of rounds in which all kinds take turns.

    The network is the model's, with its last token for a mask; what it writes doesn't matter here.
    """
    threads = torch.get_num_threads()
    set_threads(1)
    loaded = load_model(model)
    decoder = loaded.decoder
    decoder.config = replace(decoder.config, diffusion=MaskedDiffusion(decoder.config.vocab_size - 1))
    kinds = passes(decoder)
    taken: dict[str, list[float]] = {name: [] for name in kinds}
    for number in range(ROUNDS + 1):  # the first one is not counted
        progress("passes", number, ROUNDS + 1)
        for name, run in kinds.items():
            started = time.process_time()
            run()
            if number:
                taken[name].append(time.process_time() - started)
    set_threads(threads)
    seconds = {name: median(values) for name, values in taken.items()}
    return {"prompt": PROMPT, "canvas": CANVAS, "format": loaded.format, "seconds": seconds}


def passes(decoder: Decoder) -> dict[str, Callable[[], Any]]:
    """Returns passes: "one" row of a text, the "whole" canvas, a "block" of rows, "side" blocks together."""
    cache = Cache(decoder.config, decoder.dtype, decoder.device, limit=(SIDE + 2) * (PROMPT + CANVAS) + 64)
    run, mask = pass_for(decoder, cache), decoder.config.vocab_size - 1
    tokens = [*range(10, 10 + PROMPT), *[mask] * CANVAS]
    canvases = [Canvas(Tree(cache), tokens, mask=mask) for _ in range(SIDE)]
    text = Tree(cache)
    text.append([5] * (PROMPT + CANVAS // 2))
    assert text.tip is not None, "a text of that many tokens"
    rows: list[Row] = [*(cell for canvas in canvases for cell in canvas.cells), *text.tip.path()]
    for row in rows:
        row.computed = True
    windows = decoder.config.windows

    def over(count: int, side: int = 1) -> Callable[[], Any]:
        cells = [(canvas, canvas.cells[PROMPT : PROMPT + count]) for canvas in canvases[:side]]
        plan = plan_pass([], cache.positions, windows, cells)
        return lambda: run(plan, list(range(count * side)))

    whole = plan_pass([], cache.positions, windows, [(canvases[0], canvases[0].cells)])
    one = plan_pass([(text, [text.tip])], cache.positions, windows)
    return {
        "one": lambda: run(one, [0]),
        "whole": lambda: run(whole, list(range(PROMPT, PROMPT + BLOCK))),
        **{f"block {size}": over(size) for size in BLOCKS},
        "side": over(BLOCK, SIDE),
    }
