"""Acceptance rates of the verifiers at one node, computed from the distributions of draft and target.

No draft model is needed: the target itself, seeing the last `SEEN` tokens only, is the draft.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from statistics import mean
from typing import Any

import torch
from torch import Tensor

from outlay.bench.drafts.rates import optimal_acceptance, recursive_acceptance, single_acceptance
from outlay.decode.draft.rsd import reject_without_replacement
from outlay.decode.draft.spectr import kseq_acceptance
from outlay.lm import LM
from outlay.progress import ShowProgress
from outlay.prompt_logits import PromptLogits
from outlay.python_sources import library_sources
from outlay.speculation.trees import draw_distinct

TEMPERATURES, DRAFT_COUNTS = (0.3, 0.6, 1.0), (1, 2, 4, 8)
SEEN = 8  # tokens that the draft sees
DRAWS = 12  # of drafts without replacement at each position


def node_acceptance(lm: LM, data: Path, count: int, progress: ShowProgress) -> dict[str, Any]:
    """Measures the mean acceptance rate of each verifier over positions of prose and code.

    Args:
        lm: the target, in float32.
        data: the folder of the novel.
        count: about how many positions.
        progress: is told how far the work is.

    Returns:
        `positions`, and in `rows` the rates by temperature and number of drafts.
    """
    texts = _texts(lm, data)
    every = max(1, len(texts) * 160 // count)
    logits = []
    for done, text in enumerate(texts):
        progress("logits of text", done, len(texts))
        logits += _target_and_draft(lm, text, range(32, 192, every))
        lm.engine.clear()

    rows = []
    for temperature in TEMPERATURES:
        # In float64: where the two hardly overlap, what float32 misses of 1 is more than what can be accepted.
        pairs = [
            ((target.double() / temperature).softmax(-1), (draft.double() / temperature).softmax(-1))
            for target, draft in logits
        ]
        for done, k in enumerate(DRAFT_COUNTS):
            progress(f"acceptance at temperature {temperature}", done, len(DRAFT_COUNTS))
            rows.append({"temperature": temperature, "k": k, **_acceptance_rates(pairs, k)})
    return {"positions": len(logits), "rows": rows}


def _texts(lm: LM, data: Path) -> list[list[int]]:
    """Passages of 200 tokens of the novel and of the standard library."""
    tokenizer = lm.model.tokenizer
    prose = tokenizer.encode((data / "war_and_peace.txt").read_text()[:40_000])
    code = tokenizer.encode(next(library_sources(10_000_000)))
    return [
        tokens[start : start + 200] for tokens in (prose, code) for start in range(0, min(len(tokens), 4000) - 200, 800)
    ]


def _target_and_draft(lm: LM, text: Sequence[int], positions: Sequence[int]) -> list[tuple[Tensor, Tensor]]:
    """Returns the logits of target and draft at each position of a text, float32 [vocab] each."""
    target = PromptLogits(positions)
    drafts = [PromptLogits([SEEN - 1]) for _ in positions]
    with lm.engine.together():
        handles = [lm.submit(text, method=target, max_tokens=1)]
        handles += [
            lm.submit(text[at + 1 - SEEN : at + 1], method=draft, max_tokens=1)
            for at, draft in zip(positions, drafts, strict=True)
        ]
    for handle in handles:
        handle.result()
    return list(zip(target.logits, (draft.logits[0] for draft in drafts), strict=True))


def _acceptance_rates(pairs: Sequence[tuple[Tensor, Tensor]], k: int) -> dict[str, float]:
    """Returns the mean rate of each verifier with k drafts. `pairs` are target and draft probabilities, [vocab]."""
    optima = [optimal_acceptance(draft, target, k) for target, draft in pairs]
    kseq = [kseq_acceptance(draft, target, k) for target, draft in pairs]
    rsd = [_without_replacement(target, draft, k, place) for place, (target, draft) in enumerate(pairs)]
    return {
        "single": mean(single_acceptance(draft, target) for target, draft in pairs),
        "recursive": mean(recursive_acceptance(draft, target, k) for target, draft in pairs),
        "kseq": mean(kseq),
        "optimum": mean(optima),
        "least_share": min(mine / best for mine, best in zip(kseq, optima, strict=True)),
        "rsd": mean(rsd),
        "rsd_error": torch.tensor(rsd).std().item() / math.sqrt(len(rsd)),
    }


def _without_replacement(target: Tensor, draft: Tensor, k: int, seed: int) -> float:
    """Returns how often one of k drafts drawn without replacement is accepted, over `DRAWS` draws."""
    generator = torch.Generator().manual_seed(seed)
    accepted = 0
    for _ in range(DRAWS):
        drafted = [token for token, _ in draw_distinct(draft, k, generator)]
        accepted += reject_without_replacement(target, draft, drafted, generator) in drafted
    return accepted / DRAWS
