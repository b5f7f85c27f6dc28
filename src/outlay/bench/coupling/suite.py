"""`outlay bench coupling`: greedy codes beside uniform ones, the Markov coding game, and texts that carry messages."""

from __future__ import annotations

import argparse
import math
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from outlay.bench.coupling.report import report
from outlay.bench.suite import Suite
from outlay.coupling import Quantizer, ebim, entropy, uniform_quantizer
from outlay.coupling.entropy import Probs
from outlay.coupling.markov_game import grid, play, rate_of, soft_policy
from outlay.decode.steer.mecb import MECB
from outlay.engine.handle import Result
from outlay.lm import LM, load
from outlay.progress import ShowProgress
from outlay.reveal import reveal

SHARES = (0.25, 0.5, 1.0)  # of the source's entropy
STATIC = (0.4, 0.6, 0.8)
MESSAGES = 64
BETA = math.exp(-5)
BYTES = 16  # of a text's message
TOKENS = 160
PROMPTS = ("Tell me a story about a lighthouse.", "Describe a walk through an old town.", "Write a letter to a friend.",
           "What could a holiday by the sea be like?")  # fmt: skip


@dataclass(frozen=True)
class CouplingSettings:
    """What is measured."""

    episodes: int
    texts: int


class CouplingSuite(Suite[CouplingSettings]):
    """Codes, games and texts."""

    def add_options(self, parser: argparse.ArgumentParser) -> None:
        """Adds the options that no other suite has."""
        parser.add_argument("--episodes", type=int, default=400, metavar="N", help="games of each row (%(default)s)")
        parser.add_argument(
            "--texts", type=int, default=20, metavar="N", help="texts of a rate, 2 or more (%(default)s)"
        )

    def settings(self, args: argparse.Namespace) -> CouplingSettings:
        """Returns what the options ask for."""
        return CouplingSettings(args.episodes, args.texts)

    def measure(self, settings: CouplingSettings, model: Path, progress: ShowProgress) -> dict[str, Any]:
        """Returns the information of codes, how games end, and what texts take and tell."""
        games = []
        for place, share in enumerate(SHARES):
            progress("playing", place, len(SHARES))
            games += [
                {"rate": share, "code": name, **played(share, code, settings.episodes)}
                for name, code in (("greedy", None), ("uniform", uniform_quantizer))
            ]
        usual = played(None, None, settings.episodes)
        lm = load(str(model))
        texts = []
        for place, share in enumerate(SHARES):
            progress("writing", place, len(SHARES))
            texts.append({"rate": share} | written(lm, settings.texts, share))
        return {
            "static": static(), "games": games, "usual": usual["reward"], "episodes": settings.episodes,
            "texts": texts, "usual_surprise": usual_surprise(lm, settings.texts), "count": settings.texts,
        }  # fmt: skip

    def report(self, found: Mapping[str, Any]) -> str:
        """Returns the report as text."""
        return report(found)


def sources() -> dict[str, Probs]:
    """Returns the sources of the specification."""
    geometric = 0.85 ** np.arange(40)
    binomial = np.array([math.comb(39, k) for k in range(40)]) / 2.0**39
    return {"geometric(0.85), 40": geometric / geometric.sum(), "binomial(39, 0.5)": binomial,
            "uniform, 512": np.full(512, 1 / 512)}  # fmt: skip


def static() -> list[dict[str, Any]]:
    """Returns I(X;T) of both codes, for each source and rate."""
    codes: dict[str, Callable[[Probs, float], Any]] = {
        "greedy": ebim,
        "refined": lambda p, rate: ebim(p, rate, refine=True),
        "uniform": uniform_quantizer,
    }
    return [
        {"source": name, "rate": share, "bits": share * entropy(p)}
        | {code: make(p, share * entropy(p)).information for code, make in codes.items()}
        for name, p in sources().items()
        for share in STATIC
    ]


def played(share: float | None, code: Quantizer | None, episodes: int) -> dict[str, float]:
    """Returns the means of games on the grid; without a share of the entropy, the player acts by its policy alone."""
    process, prior = grid(), np.full(MESSAGES, 1 / MESSAGES)
    policy = soft_policy(process, BETA)
    hits, beliefs, rewards = [], [], []
    for number in range(episodes):
        draws = np.random.default_rng(number)
        message = int(draws.integers(MESSAGES))
        rate = 0.0 if share is None else rate_of(share, prior)
        done = play(process, policy, None if share is None else message, prior, rate, draws, code)
        hits.append(done.hit)
        beliefs.append(float(done.belief[message]))
        rewards.append(done.reward)
    return {"right": float(np.mean(hits)), "belief": float(np.mean(beliefs)), "reward": float(np.mean(rewards))}


def written(lm: LM, count: int, rate: float) -> dict[str, Any]:
    """Writes texts that carry drawn messages, reads them back, and returns what they took."""
    took, right, surprises = [], 0, []
    with lm.engine.together():
        handles = [
            lm.submit(prompt_of(number), method=MECB(message_of(number), "key", rate), seed=number, **SAMPLED)
            for number in range(count)
        ]
    for number, handle in enumerate(handles):
        result = handle.result()
        found = reveal(lm, prompt_of(number), result.tokens, MECB(None, "key", rate), temperature=1.0)
        right += found.certain and found.message == message_of(number)
        took.append(found.tokens if found.certain else None)
        surprises.append(_surprise(result))
    told = sorted(each for each in took if each is not None)
    return {"whole": len(told), "right": right, "tokens": told[len(told) // 2] if told else None,
            "surprise": _spread(surprises)}  # fmt: skip


SAMPLED: dict[str, Any] = {"temperature": 1.0, "max_tokens": TOKENS, "ignore_eos": True, "logprobs": 0}


def usual_surprise(lm: LM, count: int) -> tuple[float, float]:
    """Returns the mean -log2 p of the tokens of texts without a message, and its standard error over texts."""
    with lm.engine.together():
        handles = [lm.submit(prompt_of(k), method="sample", seed=k, **SAMPLED) for k in range(count)]
    return _spread([_surprise(handle.result()) for handle in handles])


def _spread(values: Sequence[float]) -> tuple[float, float]:
    return float(np.mean(values)), float(np.std(values, ddof=1) / math.sqrt(len(values)))


def prompt_of(number: int) -> str:
    """Returns the prompt of a text."""
    return PROMPTS[number % len(PROMPTS)]


def message_of(number: int) -> str:
    """Returns a message of 16 drawn letters."""
    return "".join(random.Random(number).choices("abcdefghijklmnopqrstuvwxyz ", k=BYTES))


def _surprise(result: Result) -> float:
    assert result.logprobs is not None
    return -float(np.mean([each.logprob for each in result.logprobs])) / math.log(2)


SUITE = CouplingSuite()
