"""The cache policy that the documentation shows, for the tests that run under it."""

from __future__ import annotations

import re
import sys
import types
from pathlib import Path

MODULE = "first_and_last"


def source_of_the_page() -> str:
    """Returns the policy's source as docs/cache.md has it."""
    page = (Path(__file__).parents[2] / "docs" / "cache.md").read_text()
    return next(block for block in re.findall(r"```python\n(.*?)```", page, re.DOTALL) if "class FirstAndLast" in block)


def policy_of_the_page():
    """Returns the policy's class."""
    module = sys.modules[MODULE] = types.ModuleType(MODULE)
    exec(compile(source_of_the_page(), MODULE, "exec"), vars(module))
    return module.FirstAndLast


FirstAndLast = policy_of_the_page()
