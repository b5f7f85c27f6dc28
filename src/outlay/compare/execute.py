"""Runs a program that a model wrote against tests, as HumanEval is scored."""

from __future__ import annotations

import re

from outlay.rewards.programs.execute import Limits, run_tests
from outlay.rewards.programs.tests import Test, code_in

SECONDS = 10
MEMORY = 2048  # megabytes


def passes_tests(prompt: str, text: str, tests: str, entry_point: str | None) -> bool:
    """Tells whether the program in a reply runs through its tests without an error, as HumanEval is scored.

    Args:
        prompt: the prompt; the program continues it where it does not define `entry_point` itself.
        text: the reply. The program is its first fenced block, else the whole text.
        tests: code that is run after the program. Where it defines `check(candidate)`, that is called.
        entry_point: the function that the tests are about.
    """
    if entry_point and re.search(r"^def check\(", tests, re.MULTILINE):
        tests += f"\ncheck({entry_point})\n"
    (passed,) = run_tests(program_of(prompt, text, entry_point), [Test(code=tests)], Limits(SECONDS, MEMORY))
    return passed


def program_of(prompt: str, text: str, entry_point: str | None) -> str:
    """Returns the program in a model's reply to a prompt."""
    code = code_in(text)
    complete = entry_point is None or re.search(rf"^\s*def {re.escape(entry_point)}\b", code, re.MULTILINE)
    return code if complete else prompt + code
