"""Stands for another program on the same machine: processes that keep cores busy for a limited time."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

SPIN = "import sys, time\nend = time.monotonic() + float(sys.argv[1])\nwhile time.monotonic() < end: pass"


@contextmanager
def busy_cores(count: int, limit: float = 300.0) -> Iterator[None]:
    """Keeps `count` cores busy inside the `with` block, at most for `limit` seconds even if nobody ends it."""
    command = [sys.executable, "-I", "-S", "-c", SPIN, str(limit)]
    spinners = [subprocess.Popen(command, start_new_session=True) for _ in range(count)]
    try:
        time.sleep(0.1)  # until they spin
        yield
    finally:
        for spinner in spinners:
            spinner.kill()
        for spinner in spinners:
            spinner.wait()
