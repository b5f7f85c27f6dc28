"""The prompts, texts and tasks in the repository's folder `benchmarks`."""

from __future__ import annotations

import json
from pathlib import Path

ROOT = Path(__file__).parents[3]
DATA = ROOT / "benchmarks" / "data"
TASKS = ROOT / "benchmarks" / "tasks"
NOVEL = DATA / "war_and_peace.txt"


def prompts_of(folder: Path, name: str, count: int) -> list[str]:
    """Returns prompts of a set, evenly spread over it, since those beside each other are often of one kind.

    Args:
        folder: where the set is, as `NAME.jsonl`.
        name: the set.
        count: how many prompts; all where the set has fewer.
    """
    lines = (folder / f"{name}.jsonl").read_text().splitlines()
    count = min(count, len(lines))
    return [json.loads(lines[place * len(lines) // count])["prompt"] for place in range(count)]
