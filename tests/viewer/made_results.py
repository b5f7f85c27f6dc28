"""Results of comparisons that never took place, in the form of `results.json`, for the tests of their report."""

from __future__ import annotations

import random

METHODS = [
    "greedy", "rsd:branching=3x2x1", "rsd:branching=2x2", "lookup", "aded", "best_of:n=4", "beam:width=4",
    "spectr:drafts=4", "sample", "ppd",
]  # fmt: skip
ENTRIES = [
    "target_passes", "draft_passes", "target_tokens", "drafted", "accepted", "tokens_out", "flops", "weight_bytes",
    "kv_bytes", "seconds", "tokens_per_second", "passes_per_token",
]  # fmt: skip
SCALE = {"flops": 5e10, "weight_bytes": 1.4e10, "kv_bytes": 7e8, "seconds": 0.85, "tokens_per_second": 173.0,
         "passes_per_token": 1.0}  # fmt: skip
SYLLABLES = ["ri", "ver", "wa", "ter", "lo", "na", "ste", "mo", "qu", "ei", "tal", "un", "or", "bis"]


def made_results(methods=4, prompts=6, tokens=40, *, metric=True, seed=0):
    """Returns results of the first `methods` of `METHODS`; the third on write texts of their own."""
    chance = random.Random(seed)
    words = [" " + "".join(chance.choices(SYLLABLES, k=chance.randint(1, 3))) for _ in range(3000)] + [
        "\n",
        ".",
        " <b>",
        "é",
        "",
    ]
    contenders, runs, texts = [], [], []
    common = [chance.choices(words, k=tokens) for _ in range(prompts)]
    for index, label in enumerate(METHODS[:methods]):
        exact = index < 3 or index == 7
        mean = round(0.45 + 0.02 * (index % 5), 4)
        quality = {"mean": mean, "low": mean - 0.05, "high": mean + 0.05, "n": prompts} if metric else None
        contenders.append(
            {
                "label": label, "method": label, "budget": "", "reference": 0,
                "entries": {name: _spread(chance, SCALE.get(name, 40.0), index, name) for name in ENTRIES},
                "quality": quality,
                "ratios": {name: _ratio(chance, index, name) for name in ENTRIES},
                "identical": prompts if exact else prompts // 3, "compared": prompts,
                "first_difference": None if exact else 12.0, "errors": 1 if index == 3 else 0,
                "first_error": "prompt 2: the cache is full" if index == 3 else None, "unsteady": 0, "frontier": [],
            }
        )  # fmt: skip
        for prompt in range(prompts):
            pieces = list(common[prompt])
            at = None if exact or prompt % 3 == 0 else tokens // 3
            if at is not None:
                pieces[at:] = chance.choices(words, k=tokens - at - prompt % 4)
            drafted = "lookup" if label == "lookup" else "draft"
            origins = [drafted if index in (1, 2, 3, 7) and chance.random() < 0.6 else "" for _ in pieces]
            for each in (0, 1):
                runs.append(
                    {"contender": index, "prompt": prompt, "seed": each, "tokens_out": len(pieces),
                     "quality": float(chance.random() < 0.5) if metric else None, "first_difference": at,
                     "trace": f"traces/{index:02d}-{prompt:04d}-0.jsonl" if each == 0 and index == 1 else None}
                )  # fmt: skip
            texts.append(
                {"contender": index, "prompt": prompt, "pieces": pieces, "origins": origins, "finish_reason": "length"}
            )
    return {
        "manifest": {
            "version": "0.1.0", "created": "2026-11-24T04:00:00", "command": ["outlay", "compare", "--out", "out"],
            "model": {"name": "smollm2-135m", "format": "q4_1", "fingerprint": "0123456789abcdef"}, "draft": None,
            "methods": METHODS[:methods], "prompts": {"source": "prompts.txt", "sha256": "ab" * 32, "count": prompts},
            "metric": "number" if metric else None, "seeds": [0, 1], "repeats": 3,
            "machine": {"processor": "a processor", "cores": 2}, "packages": {"torch": "2.13.0"},
        },
        "prompts": [
            {"index": n, "text": f"Question {n}: " + "".join(chance.choices(words, k=30)), "answer": str(n)}
            for n in range(prompts)
        ],
        "contenders": contenders, "runs": runs, "texts": texts,
    }  # fmt: skip


def _spread(chance, scale, index, name):
    value = scale * (1 + 0.35 * index * chance.random()) * (40 ** (index / 9) if name == "flops" else 1)
    value = round(value) if name not in SCALE else value
    return {"median": value, "low": value * 0.93, "high": value * 1.06, "mean": value * 1.01, "total": value * 50}


def _ratio(chance, index, name):
    if index == 0:
        return {"median": 1.0, "low": 1.0, "high": 1.0}
    value = chance.uniform(0.7, 2.1) if name == "tokens_per_second" else chance.uniform(0.4, 3)
    return {"median": value, "low": value * 0.95, "high": value * 1.07}
