"""`llama-cpp-python` and `ik-llama-cpp-python`, through llama.cpp's interface of batches with several sequences."""

from __future__ import annotations

import ctypes
import time
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np

from outlay.bench.interleave import Participant, Values
from outlay.bench.peer import peer
from outlay.bench.speed.tasks import Decode, Likelihood, Prompt, chunks, decode_values, likelihood_values, prompts
from outlay.errors import FailureError


class LlamaCpp(Participant):
    """Greedy decoding of up to `sequences` prompts of `length` tokens, new ones included; and long prompts."""

    name = "llama-cpp-python"
    module = "llama_cpp"

    def __init__(self, path: Path, sequences: int, length: int) -> None:
        self.path, self.sequences, self.length = path, sequences, length
        self._seeds = count()

    def takes(self, task: Any) -> bool:
        """Decodes, and reads prompts and texts."""
        return isinstance(task, Decode | Prompt | Likelihood)

    def load(self) -> dict[str, Any]:
        """Loads the model."""
        if self.path.suffix != ".gguf":
            raise FailureError("reads .gguf files only")
        self._llama, version = peer(self.module, self.name)
        llama = self._llama
        llama.llama_backend_init()
        self._model = llama.llama_model_load_from_file(str(self.path).encode(), llama.llama_model_default_params())
        if not self._model:
            raise FailureError("could not load the file")
        self._batch_tokens = max(self.sequences * self.length, 512)
        self._contexts: dict[int, Any] = {}
        self._vocab = llama.llama_vocab_n_tokens(llama.llama_model_get_vocab(self._model))
        return {"version": version}

    def _make_context(self, sequences: int, length: int, batch: int, threads: int) -> Any:
        options = self._llama.llama_context_default_params()
        options.n_ctx, options.n_seq_max, options.n_batch = sequences * length, sequences, batch
        options.n_threads = options.n_threads_batch = threads
        self._choose(options, sequences)
        context = self._llama.llama_init_from_model(self._model, options)
        if not context:
            raise FailureError(f"could not make a context of {options.n_ctx} tokens")
        return context

    def _empty_context(self, threads: int) -> Any:
        """Returns a context that holds all sequences, and has none."""
        if threads not in self._contexts:
            length = -(-self.length // 256) * 256
            self._contexts[threads] = self._make_context(self.sequences, length, self._batch_tokens, threads)
        self._clear(self._contexts[threads])
        return self._contexts[threads]

    def _choose(self, options: Any, sequences: int) -> None:
        """Changes a context's options where the defaults don't run."""

    def _clear(self, context: Any) -> None:
        self._llama.llama_memory_clear(self._llama.llama_get_memory(context), True)

    def measure(self, task: Decode | Prompt | Likelihood) -> Values:
        """Returns `tokens_per_second`, and `step_ms` of a `Decode`; `nats` of a `Likelihood`."""
        if isinstance(task, Likelihood):
            return self._measure_likelihood(task)
        return self._measure_prompt(task) if isinstance(task, Prompt) else self._measure_decode(task)

    def _measure_likelihood(self, task: Likelihood) -> Values:
        context = self._make_context(1, 512, 512, task.threads)
        batch = self._llama.llama_batch_init(len(task.tokens), 0, 1)
        rows, at = [], 0
        for chunk in chunks(task):
            self._decode(context, batch, [(token, at + place, 0) for place, token in enumerate(chunk)], first=at)
            rows += [self._logits(context, row).copy() for row in range(len(chunk))]
            at += len(chunk)
        self._llama.llama_batch_free(batch)
        self._llama.llama_free(context)
        return likelihood_values(task, np.stack(rows))

    def _measure_prompt(self, task: Prompt) -> Values:
        llama, length = self._llama, -(-task.length // 256) * 256
        context = self._make_context(1, length, length, task.threads)
        (prompt,) = prompts(1, task.length, self._vocab, next(self._seeds))
        batch = llama.llama_batch_init(task.length, 0, 1)
        started = time.perf_counter()
        self._decode(context, batch, [(token, at, 0) for at, token in enumerate(prompt)], first=task.length - 1)
        self._most_probable(context, task.length - 1)
        seconds = time.perf_counter() - started
        llama.llama_batch_free(batch)
        llama.llama_free(context)
        return {"tokens_per_second": task.length / seconds}

    def _measure_decode(self, task: Decode) -> Values:
        llama, context = self._llama, self._empty_context(task.threads)
        starts = prompts(task.batch, task.prompt, self._vocab, next(self._seeds))
        batch = llama.llama_batch_init(self._batch_tokens, 0, 1)
        tokens = [(token, at, seq) for seq, start in enumerate(starts) for at, token in enumerate(start)]
        times = []
        for step in range(task.new):
            self._decode(context, batch, tokens, first=task.prompt - 1 + step)
            rows = [row for row, (_, at, _) in enumerate(tokens) if at == task.prompt - 1 + step]
            tokens = [(self._most_probable(context, row), task.prompt + step, seq) for seq, row in enumerate(rows)]
            times.append(time.perf_counter())
        llama.llama_batch_free(batch)
        return decode_values([times] * task.batch)

    def _decode(self, context: Any, batch: Any, tokens: list[tuple[int, int, int]], first: int) -> None:
        """Computes tokens, each with its position and sequence; those from position `first` on get logits."""
        batch.n_tokens = len(tokens)
        for row, (token, at, seq) in enumerate(tokens):
            batch.token[row], batch.pos[row] = token, at
            batch.n_seq_id[row], batch.seq_id[row][0] = 1, seq
            batch.logits[row] = at >= first
        if self._llama.llama_decode(context, batch):
            raise FailureError(f"llama_decode failed for {len(tokens)} tokens")

    def _most_probable(self, context: Any, row: int) -> int:
        return int(self._logits(context, row).argmax())

    def _logits(self, context: Any, row: int) -> np.ndarray:
        logits = self._llama.llama_get_logits_ith(context, row)
        return np.ctypeslib.as_array(ctypes.cast(logits, ctypes.POINTER(ctypes.c_float)), (self._vocab,))


class IkLlamaCpp(LlamaCpp):
    """ik_llama.cpp, a fork with kernels of its own."""

    name = "ik-llama-cpp-python"
    module = "ik_llama_cpp._ctypes_api"

    def _choose(self, options: Any, sequences: int) -> None:
        # Its flash attention ends the process (`S > 0`) at a block of keys that a row sees none of.
        options.flash_attn = sequences == 1

    def _clear(self, context: Any) -> None:
        self._llama.llama_kv_cache_clear(context)
