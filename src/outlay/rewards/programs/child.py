"""The process in which a program is tested: a script that reads a job from its input and imports none of ours.

For each test it forks: the fork takes its limits, runs the program and then the test, and says by its status whether
that went well. The limits keep a program that goes wrong from doing harm. They are no prison for a hostile one.
"""

from __future__ import annotations

import json
import os
import resource
import signal
import sys
import tempfile
from typing import IO, Any, NoReturn

PASSED = 77  # the status of a fork whose test passed; that of a program which ends itself before the test is 0 or 1
OUTPUT_BYTES = 1 << 20  # that a program may write
FILES = 64  # that a program may hold open
REFUSED = (
    "socket.", "subprocess.", "shutil.", "os.fork", "os.exec", "os.posix_spawn", "os.spawn", "os.system", "os.kill",
    "os.remove", "os.rename", "os.rmdir", "os.mkdir", "os.link", "os.symlink", "os.truncate", "os.chmod", "os.chown",
    "os.chflags", "os.utime", "os.setxattr", "os.removexattr", "pty.", "ftplib.", "smtplib.",
)  # fmt: skip
"""Beginnings of the audit events that a program may not cause: connections, processes, changes of files."""
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND


def main() -> None:
    """Runs all tests of the job, and writes whether each passed."""
    job = json.load(sys.stdin)
    print(json.dumps([passes(job, test) for test in job["tests"]]))


def passes(job: dict[str, Any], test: dict[str, str]) -> bool:
    """Tells whether the job's program passes a test, in a fork."""
    here = os.getcwd()
    with tempfile.TemporaryFile(dir=here) as given, tempfile.TemporaryFile(dir=here) as written:
        given.write(test.get("input", "").encode())
        given.seek(0)
        child = os.fork()
        if not child:
            _run(job, test, given, written)
        _, status = os.waitpid(child, 0)
        if os.waitstatus_to_exitcode(status) != PASSED:
            return False
        if "output" not in test:
            return True
        written.seek(0)
        return same_output(written.read().decode(errors="replace"), test["output"])


def same_output(written: str, wanted: str) -> bool:
    """Tells whether two outputs are equal but for the space between and around their words."""
    return written.split() == wanted.split()


def _run(job: dict[str, Any], test: dict[str, str], given: IO[bytes], written: IO[bytes]) -> NoReturn:
    """Runs the program and the test, and ends the process."""
    status = 1
    try:
        for file, number in ((given, 0), (written, 1)):
            os.dup2(file.fileno(), number)
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
        sys.stdin = open(0, encoding="utf-8", closefd=False)  # noqa: SIM115 - they last as long as the process
        sys.stdout = open(1, "w", encoding="utf-8", closefd=False)  # noqa: SIM115
        signal.alarm(job["alarm"])
        _take_limits(job["seconds"], job["memory"])
        _execute(job["program"], test)
        sys.stdout.flush()
        status = PASSED
    finally:
        os._exit(status)


def _take_limits(seconds: int, memory: int) -> None:
    """Limits the process: CPU seconds, bytes of memory, output, open files, and what it may do at all."""
    for what, most in (
        (resource.RLIMIT_CPU, seconds),
        (resource.RLIMIT_AS, memory),
        (resource.RLIMIT_FSIZE, OUTPUT_BYTES),
        (resource.RLIMIT_NOFILE, FILES),
        (resource.RLIMIT_CORE, 0),
    ):
        hard = resource.getrlimit(what)[1]
        most = most if hard == resource.RLIM_INFINITY else min(most, hard)
        resource.setrlimit(what, (most, most))
    sys.addaudithook(_refuse)


def _refuse(event: str, arguments: tuple[Any, ...]) -> None:
    writes = event == "open" and isinstance(arguments[2], int) and arguments[2] & WRITING
    if writes or event.startswith(REFUSED):
        raise PermissionError(f"a program under test may not do this: {event}")


def _execute(program: str, test: dict[str, str]) -> None:
    """Runs a program: as a script where its output is tested, else as a module, and then the test's code in it."""
    names: dict[str, Any] = {"__name__": "program" if "code" in test else "__main__"}
    try:
        exec(compile(program, "program.py", "exec"), names)
    except SystemExit as ended:
        if "code" in test or ended.code not in (None, 0):
            raise
    if "code" in test:
        exec(compile(test["code"], "test.py", "exec"), names)


if __name__ == "__main__":
    main()
