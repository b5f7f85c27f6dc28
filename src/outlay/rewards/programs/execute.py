"""Runs a program on tests, outside of the engine's process."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from outlay.errors import FailureError
from outlay.rewards.programs.tests import Test

CHILD = Path(__file__).resolve().with_name("child.py")  # not imported: it needs what only some systems have
WAITS = 5  # times the limit of CPU seconds that a test may take on the clock, as on a busy machine or in a sleep
SECONDS_TO_START = 60.0  # that the process may take beside its tests, on a machine with much else to do
ENVIRONMENT = {"PYTHONHASHSEED": "0", "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
"""All that a program's environment holds: the same order of sets each time, and no thread for each processor."""


@dataclass(frozen=True)
class Limits:
    """What a program may take for each test."""

    seconds: int = 4
    """Seconds of CPU time, those of APPS; on the clock five times as many."""
    memory: int = 512
    """Megabytes of address space."""


def run_tests(program: str, tests: Sequence[Test], limits: Limits) -> list[bool]:
    """Tells which tests a program passes.

    The process starts in an empty folder with an environment of its own, each test gets a fork of it, and whatever
    belongs to it is killed when the time is over.

    Args:
        program: The program's text.
        tests: The tests.
        limits: What it may take for each.

    Raises:
        FailureError: The process could not be run, whatever the program.
    """
    job = {
        "program": program,
        "tests": [test.as_job() for test in tests],
        "seconds": limits.seconds,
        "alarm": WAITS * limits.seconds,
        "memory": limits.memory << 20,
    }
    most = SECONDS_TO_START + len(tests) * WAITS * limits.seconds
    command = [sys.executable, "-B", "-s", "-P", str(CHILD)]
    with (
        tempfile.TemporaryDirectory(prefix="outlay-program-") as folder,
        subprocess.Popen(
            command, cwd=folder, env=ENVIRONMENT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            start_new_session=True,
        ) as process,
    ):  # fmt: skip
        try:
            written, failed = process.communicate(json.dumps(job).encode(), timeout=most)
        except subprocess.TimeoutExpired:
            return [False] * len(tests)
        finally:
            with contextlib.suppress(ProcessLookupError):  # its group is empty
                os.killpg(process.pid, signal.SIGKILL)
    if process.returncode < 0:  # killed, as by a system without memory
        return [False] * len(tests)
    if process.returncode:
        reason = (failed.decode(errors="replace").strip().splitlines() or ["it said nothing"])[-1]
        raise FailureError(f"the process that tests programs failed: {reason}")
    return [bool(passed) for passed in json.loads(written)]
