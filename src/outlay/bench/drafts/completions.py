"""Three completions of a text at once: superposed drafts beside nucleus samples and greedy decoding."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean
from typing import Any

from outlay.decode.draft.superposed import Superposed
from outlay.engine.handle import Result
from outlay.lm import LM
from outlay.models import hub
from outlay.progress import ShowProgress
from outlay.speculation.ngrams import NgramTable, tokenizer_fingerprint

PREFIX, COMPLETED = 15, 10  # tokens of a prompt that is completed, and of a completion
NUCLEUS: dict[str, Any] = {"method": "sample", "temperature": 0.6, "top_p": 0.9, "logprobs": 0}
DRAFTS = 3  # completions of a prompt


@dataclass(frozen=True)
class Drafted:
    """The completions of one prompt: their tokens, and the mean log-probability of each under the model."""

    result: Result
    """The run that is counted."""
    texts: Sequence[Sequence[int]]
    logprobs: Sequence[float]
    seconds: float


def superposed(lm: LM, data: Path, count: int, progress: ShowProgress) -> dict[str, Any]:
    """Returns what superposed drafts cost, and how good they are, beside three nucleus samples and greedy decoding.

    Args:
        lm: the model.
        data: the folder of the novel, of which a part gives n-grams and the rest gives the prompts.
        count: how many prompts.
        progress: is told how far the work is.
    """
    table, prefixes, following = _split(lm, data, count)
    methods = {
        "superposed": Superposed(),
        "superposed, n-grams of the text": Superposed(ngram=str(table)),
        "superposed, not ranked again": Superposed(rescore=False),
    }
    rows, steps = [], len(methods) + 2
    for done, (name, method) in enumerate(methods.items()):
        progress(f"completions: {name}", done, steps)
        rows.append(_row(name, [_alternatives(lm, prefix, method) for prefix in prefixes], following))

    progress("completions: nucleus", len(methods), steps)
    three = [_samples(lm, prefix) for prefix in prefixes]
    rows.append(_row("nucleus, three samples", three, following, positions=DRAFTS * (COMPLETED - 1) + 1))
    seconds = mean(_together(lm, prefix) for prefix in prefixes)
    rows.append({"name": "nucleus, three samples together", "seconds": seconds})

    progress("completions: greedy", len(methods) + 1, steps)
    rows.append(_row("greedy", [_one(lm, prefix, logprobs=0) for prefix in prefixes], following))
    return {"prefix": PREFIX, "new": COMPLETED, "rows": rows}


def _split(lm: LM, data: Path, count: int) -> tuple[Path, list[list[int]], list[int]]:
    """Returns a file of n-grams of most of the novel, prompts from the rest, and the token that follows each prompt."""
    tokenizer = lm.model.tokenizer
    tokens = tokenizer.encode((data / "war_and_peace.txt").read_text())
    split = len(tokens) * 4 // 5
    table = NgramTable.build(
        [tokens[:split]], tokenizer_fingerprint(tokenizer), lengths=(1, 2, 3, 4, 5), successors=None
    )
    path = hub.cache_folder().parent / "tables" / "bench-superposed.safetensors"
    table.save(path)

    rest = tokens[split:]
    step = (len(rest) - PREFIX - COMPLETED) // count
    starts = range(0, step * count, step)
    return path, [rest[start : start + PREFIX] for start in starts], [rest[start + PREFIX] for start in starts]


def _alternatives(lm: LM, prefix: list[int], method: Superposed) -> Drafted:
    result, seconds = _complete(lm, prefix, method=method)
    alternatives = result.alternatives
    return Drafted(
        result, [each.tokens for each in alternatives], [each.score or 0.0 for each in alternatives], seconds
    )


def _samples(lm: LM, prefix: list[int]) -> Drafted:
    """Three samples one after the other; what the first one counts stands for each."""
    runs = [_one(lm, prefix, seed=seed, **NUCLEUS) for seed in range(DRAFTS)]
    texts = [run.texts[0] for run in runs]
    return Drafted(runs[0].result, texts, [run.logprobs[0] for run in runs], sum(run.seconds for run in runs))


def _one(lm: LM, prefix: list[int], **options: Any) -> Drafted:
    result, seconds = _complete(lm, prefix, **options)
    assert result.logprobs is not None
    return Drafted(result, [result.tokens], [mean(token.logprob for token in result.logprobs)], seconds)


def _complete(lm: LM, prefix: list[int], **options: Any) -> tuple[Result, float]:
    lm.engine.clear()
    started = time.perf_counter()
    result = lm.generate(prefix, max_tokens=COMPLETED, ignore_eos=True, **options)
    return result, time.perf_counter() - started


def _together(lm: LM, prefix: list[int]) -> float:
    """Returns the seconds of three samples in one batch."""
    lm.engine.clear()
    started = time.perf_counter()
    with lm.engine.together():
        handles = [
            lm.submit(prefix, seed=seed, max_tokens=COMPLETED, ignore_eos=True, **NUCLEUS) for seed in range(DRAFTS)
        ]
    for handle in handles:
        handle.result()
    return time.perf_counter() - started


def _row(
    name: str, drafted: Sequence[Drafted], following: Sequence[int], positions: int | None = None
) -> dict[str, Any]:
    """Sums up the completions of all prompts.

    Args:
        name: the row's name.
        drafted: the completions of each prompt.
        following: the token that the text itself has after each prompt.
        positions: how many positions a prompt's completions computed, where that is not what the counted run computed.

    Returns:
        Passes, positions and seconds a prompt, perplexities (geometric means over prompts) of the best and of all
        drafts, and how often one of the drafts begins with the text's own next token.
    """
    decoded = [each.result.ledger.target_tokens - PREFIX for each in drafted]
    covered = [token in {text[0] for text in each.texts} for each, token in zip(drafted, following, strict=True)]
    return {
        "name": name,
        "passes": mean(each.result.ledger.target_passes for each in drafted),
        "positions": positions if positions is not None else mean(decoded),
        "best": math.exp(-mean(max(each.logprobs) for each in drafted)),
        "mean": math.exp(-mean(mean(each.logprobs) for each in drafted)),
        "covered": mean(covered),
        "seconds": mean(each.seconds for each in drafted),
    }
