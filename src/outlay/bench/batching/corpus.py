"""Lengths of a made-up corpus of speech: short commands, read sentences, long passages."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

SHARES = (0.35, 0.45, 0.20)
SHORTEST, LONGEST = 0.5, 40.0
RATE, SPREAD = 3.4, 0.35  # tokens a second, and the deviation of their logarithm
PROMPT = 8  # tokens that the decoder reads before a transcript


def speech_lengths(examples: int, seed: int = 0) -> tuple[NDArray[Any], NDArray[Any]]:
    """Returns durations in seconds and numbers of tokens, [examples] each, of the corpus with this seed.

    35 % of the durations are log-normal around 3.5 s, 45 % normal around 13 s, 20 % uniform from 15 s on; the tokens of
    a second are log-normal.
    """
    draw = np.random.default_rng(seed)
    kind = draw.choice(3, size=examples, p=SHARES)
    drawn = np.stack(
        [
            draw.lognormal(np.log(3.5), 0.5, examples),
            draw.normal(13.0, 3.0, examples),
            draw.uniform(15.0, LONGEST, examples),
        ]
    )
    seconds = drawn[kind, np.arange(examples)].clip(SHORTEST, LONGEST).round(3)
    tokens = np.rint(draw.lognormal(np.log(RATE), SPREAD, examples) * seconds) + PROMPT
    return seconds, tokens.astype(np.int64)
