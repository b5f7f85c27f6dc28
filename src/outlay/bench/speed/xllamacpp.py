"""`xllamacpp`, llama.cpp's server inside of the process, which decodes prompts that come together in one batch."""

from __future__ import annotations

import json
import time
from concurrent.futures import ThreadPoolExecutor
from itertools import count
from pathlib import Path
from typing import Any

from outlay.bench.interleave import Participant, Values
from outlay.bench.peer import peer
from outlay.bench.speed.tasks import Decode, Prompt, prompts
from outlay.errors import FailureError

ROOM = 1280  # tokens of a long prompt and what follows


class XLlamaCpp(Participant):
    """Its number of threads belongs to a server, so there is one for each. It states no likelihood of a given text."""

    name = "xllamacpp"

    def __init__(self, path: Path, sequences: int, length: int, threads: tuple[int, ...], vocab: int) -> None:
        self.path, self.sequences, self.length, self.threads, self.vocab = path, sequences, length, threads, vocab
        self._servers: dict[int, Any] = {}
        self._seeds = count()

    def takes(self, task: Any) -> bool:
        """Decodes and reads prompts."""
        return isinstance(task, Decode | Prompt)

    def load(self) -> dict[str, Any]:
        """Starts a server for each number of threads."""
        if self.path.suffix != ".gguf":
            raise FailureError("reads .gguf files only")
        xllamacpp, version = peer("xllamacpp", "xllamacpp")
        for threads in self.threads:
            options = xllamacpp.CommonParams()
            options.model.path = str(self.path)
            options.n_parallel = self.sequences
            options.n_ctx = max(self.sequences * (-(-self.length // 256) * 256), ROOM)
            options.kv_unified = True  # a long prompt may take the room of all sequences
            options.cpuparams.n_threads = options.cpuparams_batch.n_threads = threads
            options.verbosity = 0
            self._servers[threads] = xllamacpp.Server(options)
        return {"version": version}

    def measure(self, task: Decode | Prompt) -> Values:
        """Returns `tokens_per_second`, and `step_ms` of a `Decode`, from the times that the server notes."""
        if isinstance(task, Prompt):
            (prompt,) = prompts(1, task.length, self.vocab, next(self._seeds))
            started = time.perf_counter()
            self._complete(task.threads, prompt, 1)
            return {"tokens_per_second": task.length / (time.perf_counter() - started)}
        starts = prompts(task.batch, task.prompt, self.vocab, next(self._seeds))
        with ThreadPoolExecutor(task.batch) as pool:
            timings = list(pool.map(lambda prompt: self._complete(task.threads, prompt, task.new), starts))
        step = max(timing["predicted_ms"] for timing in timings) / (task.new - 1)
        return {"tokens_per_second": 1000 * task.batch / step, "step_ms": step}

    def _complete(self, threads: int, prompt: list[int], new: int) -> dict[str, float]:
        """Returns the server's times of a completion of `new` tokens."""
        asked = {"prompt": prompt, "n_predict": new, "temperature": 0, "ignore_eos": True, "cache_prompt": False}
        found = self._servers[threads].handle_completions(asked)
        answer = json.loads(found) if isinstance(found, str | bytes) else found
        if "timings" not in answer:
            raise FailureError(f"a completion failed: {str(answer)[:200]}")
        timings: dict[str, float] = answer["timings"]
        return timings
