"""What rounds take: with chains from draft heads of any size, and by the batch."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median, stdev

import numpy as np

from outlay.budget import Budget
from outlay.decode.draft.specinfer import Speculative
from outlay.decode.greedy import Greedy
from outlay.engine.method import Method
from outlay.engine.submission import DraftSource
from outlay.lm import LM, Result
from outlay.models.draft_head import untrained_draft_head
from outlay.models.load import Model
from outlay.scaling.points import Point

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class CostTiming:
    """How rounds are timed to price drafts."""

    turns: int = 5
    """Turns that are counted."""
    warmup: int = 3
    """Turns before them (the specification's)."""
    rounds: int = 12
    """Rounds of a turn."""
    context: int = 128
    """Tokens of each prompt."""
    depths: tuple[int, ...] = (1, 4, 8)
    """Tokens of the chains that are timed; others are interpolated."""


@dataclass(frozen=True)
class SpeedTiming:
    """How decoding is timed at several batches."""

    turns: int = 3
    """Turns that are counted, after one that is not."""
    tokens: int = 48
    """Tokens that each request decodes in a turn."""


@dataclass(frozen=True)
class RoundCosts:
    """The seconds of a round of a batch; between the timed sizes and depths they are interpolated."""

    plain: float
    """Seconds of a round without drafts."""
    drafted: Mapping[int, Mapping[int, float]]
    """layers -> depth -> seconds of a round with a chain from a draft head."""

    def __call__(self, layers: int, depth: int) -> float:
        """Returns the seconds of a round with a chain of `depth` tokens from a draft head of `layers`."""
        at = [np.interp(depth, list(timed), list(timed.values())) for timed in self.drafted.values()]
        return float(np.interp(layers, list(self.drafted), at))


def round_costs(
    lm: LM,
    sizes: Sequence[int],
    vocabulary: int,
    batch: int,
    progress: Progress,
    timing: CostTiming = CostTiming(),
) -> RoundCosts:
    """Times rounds, without drafts and with chains from untrained draft heads; all kinds of rounds take turns.

    An untrained draft head takes what a trained one does. Its tokens are rejected.

    Args:
        lm: The target.
        sizes: Layers of the draft heads, ascending.
        vocabulary: Tokens that they draft.
        batch: Requests that are decoded together.
        progress: Called before each turn of each kind.
        timing: How long it is timed.
    """
    config = lm.model.decoder.config
    context = max(1, min(timing.context, config.max_positions - timing.rounds * (max(timing.depths) + 1)))
    prompts = [[(place + request) % config.vocab_size for place in range(context)] for request in range(batch)]
    kinds: dict[tuple[int, int], tuple[Method, Model | None]] = {(0, 0): (Greedy(), None)}
    for layers in sizes:
        draft_head = untrained_draft_head(lm.model, layers, vocabulary)
        kinds |= {(layers, depth): (Speculative(depth), draft_head) for depth in timing.depths}

    seconds: dict[tuple[int, int], list[float]] = {kind: [] for kind in kinds}
    turns = timing.warmup + timing.turns
    for turn in range(turns):
        for place, (kind, (method, draft)) in enumerate(kinds.items()):
            progress(f"timing rounds, {batch} at a time", turn * len(kinds) + place, turns * len(kinds))
            most = timing.rounds * (kind[1] + 1)
            took, _ = timed(lm, prompts, method, draft, most, Budget(target_passes=timing.rounds))
            if turn >= timing.warmup:
                seconds[kind].append(took / timing.rounds)
    at = {kind: median(each) for kind, each in seconds.items()}
    return RoundCosts(at[0, 0], {layers: {depth: at[layers, depth] for depth in timing.depths} for layers in sizes})


def batch_speeds(
    lm: LM,
    draft: Model | DraftSource,
    prompts: Sequence[list[int]],
    batches: Sequence[int],
    progress: Progress,
    timing: SpeedTiming = SpeedTiming(),
) -> dict[str, list[Point]]:
    """Times decoding with and without a chain of drafts at several batches (theorem 1.3), in turns.

    Args:
        lm: The target.
        draft: The draft.
        prompts: Token ids, repeated where a batch is larger.
        batches: Requests that are decoded together.
        progress: Called before each turn.
        timing: How long it is timed.

    Returns:
        "plain" and "drafted" -> tokens a second of each batch, as points of a law.
    """
    methods: dict[str, Method] = {"plain": Greedy(), "drafted": Speculative()}
    found: dict[str, list[Point]] = {name: [] for name in methods}
    turns = timing.turns + 1
    for place, batch in enumerate(batches):
        speeds: dict[str, list[float]] = {name: [] for name in methods}
        for turn in range(turns):
            progress(f"decoding {batch} at a time", place * turns + turn, len(batches) * turns)
            for name, method in methods.items():
                some = [prompts[index % len(prompts)] for index in range(batch)]
                lm.engine.clear()
                seconds, results = timed(lm, some, method, draft, timing.tokens)
                if turn:
                    speeds[name].append(sum(len(result.tokens) for result in results) / seconds)
        for name, each in speeds.items():
            found[name].append(Point(median(each), stdev(each), batch=batch, what=f"tokens a second, {name}"))
    return found


def timed(
    lm: LM,
    prompts: Sequence[list[int]],
    method: Method,
    draft: Model | DraftSource | None,
    most: int,
    budget: Budget | None = None,
) -> tuple[float, list[Result]]:
    """Decodes up to `most` tokens after each prompt.

    Returns:
        The seconds that it takes, without the prefill of target and draft; and the results.
    """
    lm.generate_batch(prompts, method=method, draft=draft, max_tokens=3, ignore_eos=True)
    started = time.perf_counter()
    results = lm.generate_batch(prompts, method=method, draft=draft, max_tokens=most, ignore_eos=True, budget=budget)
    return time.perf_counter() - started, results
