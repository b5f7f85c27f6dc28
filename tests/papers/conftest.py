"""What the slow tests of methods take from the repository: real prompts."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

DATA = Path(__file__).parents[2] / "benchmarks" / "data"


def prompts_of(name):
    return [json.loads(line)["prompt"] for line in (DATA / name).read_text().splitlines()]


@pytest.fixture(scope="session")
def code_prompts():
    """Beginnings of functions, from HumanEval."""
    return prompts_of("code.jsonl")


@pytest.fixture(scope="session")
def chat_prompts():
    """Questions of MT-Bench, Vicuna-Bench and Alpaca."""
    return prompts_of("chat.jsonl")


@pytest.fixture(scope="session")
def summary_prompts():
    """Passages of War and Peace to summarise."""
    return prompts_of("summary.jsonl")


@pytest.fixture(scope="session")
def varied_prompts():
    """Forty prompts: chat, code, JSON, lists, translations, other scripts."""
    return prompts_of("varied.jsonl")
