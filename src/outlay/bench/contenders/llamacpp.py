"""`llama-cpp-python`, through llama.cpp's own interface of batches with several sequences."""

from __future__ import annotations

import ctypes
import time
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np

from outlay.bench.contenders.peer import peer
from outlay.bench.interleave import Contender, Values
from outlay.bench.tasks import Decode, decode_values, prompts
from outlay.errors import FailureError


class LlamaCpp(Contender):
    """Greedy decoding of up to `sequences` prompts of `length` tokens, new ones included."""

    name = "llama-cpp-python"

    def __init__(self, path: Path, sequences: int, length: int) -> None:
        self.path, self.sequences, self.length = path, sequences, length
        self._seeds = count()

    def takes(self, task: Any) -> bool:
        """Decodes."""
        return isinstance(task, Decode)

    def load(self) -> dict[str, Any]:
        """Loads the model and makes a context with room for all sequences."""
        if self.path.suffix != ".gguf":
            raise FailureError("reads .gguf files only")
        self._llama, version = peer("llama_cpp", "llama-cpp-python")
        llama = self._llama
        llama.llama_backend_init()
        model = llama.llama_model_load_from_file(str(self.path).encode(), llama.llama_model_default_params())
        if not model:
            raise FailureError("could not load the file")
        options = llama.llama_context_default_params()
        options.n_ctx = self.sequences * -(-self.length // 256) * 256
        options.n_seq_max = self.sequences
        options.n_batch = self._room = max(self.sequences * self.length, 512)
        self._context = llama.llama_init_from_model(model, options)
        if not self._context:
            raise FailureError(f"could not make a context of {options.n_ctx} tokens")
        self._vocab = llama.llama_vocab_n_tokens(llama.llama_model_get_vocab(model))
        return {"version": version, "system": llama.llama_print_system_info().decode().strip()}

    def measure(self, task: Decode) -> Values:
        """Returns `tokens_per_second` and `step_ms`."""
        llama, context = self._llama, self._context
        llama.llama_set_n_threads(context, task.threads, task.threads)
        llama.llama_memory_clear(llama.llama_get_memory(context), True)
        starts = prompts(task.batch, task.prompt, self._vocab, next(self._seeds))
        batch = llama.llama_batch_init(self._room, 0, 1)
        tokens = [(token, at, seq) for seq, start in enumerate(starts) for at, token in enumerate(start)]
        times = []
        for step in range(task.new):
            self._decode(batch, tokens, last=task.prompt - 1 + step)
            rows = [row for row, (_, at, _) in enumerate(tokens) if at == task.prompt - 1 + step]
            tokens = [(self._best(row), task.prompt + step, seq) for seq, row in enumerate(rows)]
            times.append(time.perf_counter())
        llama.llama_batch_free(batch)
        return decode_values([times] * task.batch)

    def _decode(self, batch: Any, tokens: list[tuple[int, int, int]], last: int) -> None:
        """Computes tokens, each with its position and sequence; those at position `last` get logits."""
        batch.n_tokens = len(tokens)
        for row, (token, at, seq) in enumerate(tokens):
            batch.token[row], batch.pos[row] = token, at
            batch.n_seq_id[row], batch.seq_id[row][0] = 1, seq
            batch.logits[row] = at == last
        if self._llama.llama_decode(self._context, batch):
            raise FailureError(f"llama_decode failed for {len(tokens)} tokens")

    def _best(self, row: int) -> int:
        logits = self._llama.llama_get_logits_ith(self._context, row)
        return int(np.ctypeslib.as_array(ctypes.cast(logits, ctypes.POINTER(ctypes.c_float)), (self._vocab,)).argmax())
