"""Runs a program that a model wrote against tests, in a process of its own with limits of time and memory.

That keeps accidents small; it is no protection against code that means harm.
"""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
import tempfile

SECONDS = 10
MEMORY = 2 << 30  # bytes
PASSED = 42  # the exit status of a program that came to its end, where leaving early gives 0
LIMITS = (
    "import resource, sys\n"
    "for kind, most in ((resource.RLIMIT_AS, {memory}), (resource.RLIMIT_CPU, {seconds}), (resource.RLIMIT_CORE, 0)):\n"
    "    resource.setrlimit(kind, (most, most))\n"
    "source = sys.stdin.read()\n"
    "sys.stdin.close()\n"
    "exec(compile(source, 'program', 'exec'), {{'__name__': '__main__'}})\n"
    "__import__('os')._exit({passed})\n"
)
FENCE = re.compile(r"```[\w+-]*[ \t]*\n(.*?)(?:\n```|\Z)", re.DOTALL)


def passes_tests(prompt: str, text: str, tests: str, entry_point: str | None) -> bool:
    """Tells whether the program in a reply runs through its tests without an error, as HumanEval is scored.

    Args:
        prompt: the prompt; the program continues it where it does not define `entry_point` itself.
        text: the reply. The program is its first fenced block, else the whole text.
        tests: code that is run after the program. Where it defines `check(candidate)`, that is called.
        entry_point: the function that the tests are about.
    """
    program = program_of(prompt, text, entry_point) + "\n\n" + tests + "\n"
    if entry_point and re.search(r"^def check\(", tests, re.MULTILINE):
        program += f"\ncheck({entry_point})\n"
    return _runs(program)


def program_of(prompt: str, text: str, entry_point: str | None) -> str:
    """Returns the program in a model's reply to a prompt."""
    fenced = FENCE.search(text)
    code = fenced[1] if fenced else text
    complete = entry_point is None or re.search(rf"^\s*def {re.escape(entry_point)}\b", code, re.MULTILINE)
    return code if complete else prompt + code


def _runs(program: str) -> bool:
    with tempfile.TemporaryDirectory() as folder:
        process = subprocess.Popen(
            [sys.executable, "-I", "-c", LIMITS.format(memory=MEMORY, seconds=SECONDS, passed=PASSED)],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            cwd=folder,
            env={},
            start_new_session=True,
        )
        try:
            process.communicate(program.encode("utf-8", "replace"), timeout=SECONDS)
        except subprocess.TimeoutExpired:
            return False
        finally:
            _end(process)
        return process.returncode == PASSED


def _end(process: subprocess.Popen[bytes]) -> None:
    """Ends the program and whatever it started."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
