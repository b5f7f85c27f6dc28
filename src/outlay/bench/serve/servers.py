"""The servers that are measured, each a process of its own that waits while the others have their turn."""

from __future__ import annotations

import contextlib
import http.client
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from outlay.errors import FailureError

START_LIMIT = 300.0  # seconds until a server answers
END_LIMIT = 20.0  # seconds until it has ended
LOOK_LIMIT = 60.0  # seconds in which a Python looks for a package
OURS = "outlay"
NAMES = (OURS, "llama-cpp-python", "transformers")
MODULES = {"llama-cpp-python": ("llama_cpp", "uvicorn"), "transformers": ("transformers",)}
EXTRAS = {"llama-cpp-python": "llama-cpp-python[server]", "transformers": "transformers[serving]"}


@dataclass(frozen=True)
class Server:
    """A server that answers at `url`, and the name of its model."""

    name: str
    url: str
    model: str


@contextmanager
def serving(
    name: str, model: Path, threads: int, clients: int, pythons: Mapping[str, str] | None = None
) -> Iterator[Server]:
    """Starts a server of a model, and ends it.

    Args:
        name: which server.
        model: a `.gguf` file or a folder.
        threads: that it computes with.
        clients: that ask it together, at most.
        pythons: the interpreters of servers that have an environment of their own.

    Raises:
        FailureError: where it isn't installed, can't serve this file, or does not answer in time.
    """
    port = _free_port()
    words, served = _command(name, model, port, threads, clients, (pythons or {}).get(name, sys.executable))
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
    process = subprocess.Popen(words, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        _wait(name, process, port)
        yield Server(name, f"http://127.0.0.1:{port}", served)
    finally:
        process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(END_LIMIT)
        process.kill()


def _command(name: str, model: Path, port: int, threads: int, clients: int, python: str) -> tuple[list[str], str]:
    """Returns a server's command, and what it calls its model."""
    number = str(port)
    if name == OURS:
        words = ["-m", "outlay", "serve", f"bench={model}", "--port", number, "--threads", str(threads), "--no-page"]
        return [python, *words, "--waiting-per-key", str(max(64, clients))], "bench"
    for module in MODULES[name]:
        _require(python, module, EXTRAS[name])
    if name == "llama-cpp-python":
        if model.suffix != ".gguf":
            raise FailureError("it serves .gguf files alone")
        words = ["-m", "llama_cpp.server", "--model", str(model), "--port", number, "--n_threads", str(threads)]
        return [python, *words, "--n_ctx", "8192"], str(model)
    if not model.is_dir():
        raise FailureError("it serves folders alone")
    words = ["serve", str(model), "--host", "127.0.0.1", "--port", number, "--device", "cpu", "--continuous-batching"]
    return [str(Path(python).parent / "transformers"), *words], str(model)


def _require(python: str, module: str, distribution: str) -> None:
    look = f"import importlib.util, sys; sys.exit(importlib.util.find_spec({module!r}) is None)"
    try:
        found = subprocess.run([python, "-c", look], timeout=LOOK_LIMIT, capture_output=True).returncode == 0
    except (OSError, subprocess.TimeoutExpired) as error:
        raise FailureError(f"{python} does not run: {error}") from error
    if not found:
        raise FailureError(f"not installed: pip install '{distribution}'")


def _wait(name: str, process: subprocess.Popen[bytes], port: int) -> None:
    """Waits until a server answers: ours when it is ready, another one when it lists its models."""
    path = "/ready" if name == OURS else "/v1/models"
    last = time.monotonic() + START_LIMIT
    while time.monotonic() < last:
        if process.poll() is not None:
            raise FailureError(f"it ended with status {process.returncode} instead of serving")
        with contextlib.suppress(OSError, http.client.HTTPException):
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
            connection.request("GET", path)
            if connection.getresponse().status == 200:
                return
        time.sleep(0.2)
    raise FailureError(f"it does not answer after {START_LIMIT:.0f} s")


def _free_port() -> int:
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        return int(listening.getsockname()[1])
