"""The servers that are measured, each a process of its own that waits while the others have their turn."""

from __future__ import annotations

import contextlib
import http.client
import importlib.util
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from outlay.errors import FailureError

START_LIMIT = 300.0  # seconds until a server answers
END_LIMIT = 20.0  # seconds until it has ended
NAMES = ("outlay", "llama-cpp-python", "transformers")


@dataclass(frozen=True)
class Server:
    """A server that answers at `url`, and the name of its model."""

    name: str
    url: str
    model: str


@contextmanager
def serving(name: str, model: Path, threads: int, clients: int) -> Iterator[Server]:
    """Starts a server of a model, and ends it.

    Raises:
        FailureError: where it isn't installed, can't serve this file, or does not answer in time.
    """
    port = _free_port()
    words, served = _command(name, model, port, threads, clients)
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


def _command(name: str, model: Path, port: int, threads: int, clients: int) -> tuple[list[str], str]:
    """Returns a server's command, and what it calls its model."""
    python, number = sys.executable, str(port)
    if name == "outlay":
        words = ["-m", "outlay", "serve", f"bench={model}", "--port", number, "--threads", str(threads), "--no-page"]
        return [python, *words, "--waiting-per-key", str(max(64, clients))], "bench"
    if name == "llama-cpp-python":
        _require("llama_cpp", name)
        _require("uvicorn", "llama-cpp-python[server]")
        if model.suffix != ".gguf":
            raise FailureError("it serves .gguf files alone")
        words = ["-m", "llama_cpp.server", "--model", str(model), "--port", number, "--n_threads", str(threads)]
        return [python, *words, "--n_ctx", "8192"], str(model)
    _require("transformers", name)
    if not model.is_dir():
        raise FailureError("it serves folders alone")
    words = ["serve", str(model), "--host", "127.0.0.1", "--port", number, "--device", "cpu", "--continuous-batching"]
    return [str(Path(python).parent / "transformers"), *words], str(model)


def _require(module: str, distribution: str) -> None:
    if importlib.util.find_spec(module) is None:
        raise FailureError(f"not installed: pip install '{distribution}'")


def _wait(name: str, process: subprocess.Popen[bytes], port: int) -> None:
    """Waits until a server answers: ours when it is ready, another one when it lists its models."""
    path = "/ready" if name == "outlay" else "/v1/models"
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
