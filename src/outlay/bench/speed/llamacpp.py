"""`llama-cpp-python`, through llama.cpp's own interface of batches with several sequences."""

from __future__ import annotations

import ctypes
import time
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np

from outlay.bench.interleave import Participant, Values
from outlay.bench.peer import peer
from outlay.bench.speed.tasks import Decode, Prompt, decode_values, prompts
from outlay.errors import FailureError


class LlamaCpp(Participant):
    """Greedy decoding of up to `sequences` prompts of `length` tokens, new ones included; and long prompts."""

    name = "llama-cpp-python"

    def __init__(self, path: Path, sequences: int, length: int) -> None:
        self.path, self.sequences, self.length = path, sequences, length
        self._seeds = count()

    def takes(self, task: Any) -> bool:
        """Decodes and reads prompts."""
        return isinstance(task, Decode | Prompt)

    def load(self) -> dict[str, Any]:
        """Loads the model and makes a context that holds all sequences."""
        if self.path.suffix != ".gguf":
            raise FailureError("reads .gguf files only")
        self._llama, version = peer("llama_cpp", "llama-cpp-python")
        llama = self._llama
        llama.llama_backend_init()
        self._model = llama.llama_model_load_from_file(str(self.path).encode(), llama.llama_model_default_params())
        if not self._model:
            raise FailureError("could not load the file")
        self._batch_tokens = max(self.sequences * self.length, 512)
        self._context = self._make_context(self.sequences, -(-self.length // 256) * 256, self._batch_tokens)
        self._vocab = llama.llama_vocab_n_tokens(llama.llama_model_get_vocab(self._model))
        return {"version": version, "system": llama.llama_print_system_info().decode().strip()}

    def _make_context(self, sequences: int, length: int, batch: int) -> Any:
        options = self._llama.llama_context_default_params()
        options.n_ctx, options.n_seq_max, options.n_batch = sequences * length, sequences, batch
        context = self._llama.llama_init_from_model(self._model, options)
        if not context:
            raise FailureError(f"could not make a context of {options.n_ctx} tokens")
        return context

    def measure(self, task: Decode | Prompt) -> Values:
        """Returns `tokens_per_second`, and `step_ms` of a `Decode`."""
        return self._measure_prompt(task) if isinstance(task, Prompt) else self._measure_decode(task)

    def _measure_prompt(self, task: Prompt) -> Values:
        llama, length = self._llama, -(-task.length // 256) * 256
        context = self._make_context(1, length, length)
        llama.llama_set_n_threads(context, task.threads, task.threads)
        (prompt,) = prompts(1, task.length, self._vocab, next(self._seeds))
        batch = llama.llama_batch_init(task.length, 0, 1)
        started = time.perf_counter()
        self._decode(context, batch, [(token, at, 0) for at, token in enumerate(prompt)], last=task.length - 1)
        self._most_probable(context, task.length - 1)
        seconds = time.perf_counter() - started
        llama.llama_batch_free(batch)
        llama.llama_free(context)
        return {"tokens_per_second": task.length / seconds}

    def _measure_decode(self, task: Decode) -> Values:
        llama, context = self._llama, self._context
        llama.llama_set_n_threads(context, task.threads, task.threads)
        llama.llama_memory_clear(llama.llama_get_memory(context), True)
        starts = prompts(task.batch, task.prompt, self._vocab, next(self._seeds))
        batch = llama.llama_batch_init(self._batch_tokens, 0, 1)
        tokens = [(token, at, seq) for seq, start in enumerate(starts) for at, token in enumerate(start)]
        times = []
        for step in range(task.new):
            self._decode(context, batch, tokens, last=task.prompt - 1 + step)
            rows = [row for row, (_, at, _) in enumerate(tokens) if at == task.prompt - 1 + step]
            tokens = [(self._most_probable(context, row), task.prompt + step, seq) for seq, row in enumerate(rows)]
            times.append(time.perf_counter())
        llama.llama_batch_free(batch)
        return decode_values([times] * task.batch)

    def _decode(self, context: Any, batch: Any, tokens: list[tuple[int, int, int]], last: int) -> None:
        """Computes tokens, each with its position and sequence; those at position `last` get logits."""
        batch.n_tokens = len(tokens)
        for row, (token, at, seq) in enumerate(tokens):
            batch.token[row], batch.pos[row] = token, at
            batch.n_seq_id[row], batch.seq_id[row][0] = 1, seq
            batch.logits[row] = at == last
        if self._llama.llama_decode(context, batch):
            raise FailureError(f"llama_decode failed for {len(tokens)} tokens")

    def _most_probable(self, context: Any, row: int) -> int:
        logits = self._llama.llama_get_logits_ith(context, row)
        return int(np.ctypeslib.as_array(ctypes.cast(logits, ctypes.POINTER(ctypes.c_float)), (self._vocab,)).argmax())
