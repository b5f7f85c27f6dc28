"""`openvino-genai` and its `LLMPipeline`, which reads a GGUF file as it is."""

from __future__ import annotations

import time
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np

from outlay.bench.interleave import Participant, Values
from outlay.bench.peer import peer
from outlay.bench.speed.tasks import Decode, Prompt, decode_values, prompts
from outlay.errors import FailureError


class OpenVino(Participant):
    """Its number of threads belongs to a compiled model, so there is a pipeline for each."""

    name = "openvino-genai"

    def __init__(self, path: Path, threads: tuple[int, ...]) -> None:
        self.path, self.threads = path, threads
        self._genai: Any = None
        self._openvino: Any = None
        self._pipelines: dict[int, Any] = {}
        self._seeds = count()

    def takes(self, task: Any) -> bool:
        """Decodes and reads prompts."""
        return isinstance(task, Decode | Prompt)

    def load(self) -> dict[str, Any]:
        """Compiles the model for each number of threads, which are not bound to cores."""
        self._openvino, _ = peer("openvino", "openvino")
        self._genai, version = peer("openvino_genai", "openvino-genai")
        if self.path.suffix != ".gguf" and not (self.path / "openvino_model.xml").exists():
            raise FailureError("reads .gguf files and models exported to its own format, not safetensors")
        for threads in self.threads:
            options = {"INFERENCE_NUM_THREADS": threads, "ENABLE_CPU_PINNING": False}
            self._pipelines[threads] = self._genai.LLMPipeline(str(self.path), "CPU", options)
        tokenizer = self._pipelines[self.threads[0]].get_tokenizer()
        self._vocab = len(tokenizer.get_vocab())
        return {"version": version}

    def measure(self, task: Decode | Prompt) -> Values:
        """Returns `tokens_per_second`, and `step_ms` of a `Decode`, from the times that the pipeline notes at each of
        its steps.
        """
        if isinstance(task, Prompt):
            started = time.perf_counter()
            self._generate(task.threads, prompts(1, task.length, self._vocab, next(self._seeds)), 1)
            return {"tokens_per_second": task.length / (time.perf_counter() - started)}
        metrics = self._generate(
            task.threads, prompts(task.batch, task.prompt, self._vocab, next(self._seeds)), task.new
        )
        times = [milliseconds / 1000 for milliseconds in metrics.raw_metrics.m_new_token_times]
        return decode_values([times] * task.batch)

    def _generate(self, threads: int, starts: list[list[int]], new: int) -> Any:
        """Returns what the pipeline measured while it wrote `new` tokens after each of `starts`."""
        tokens = np.array(starts, dtype=np.int64)
        inputs = self._genai.TokenizedInputs(self._openvino.Tensor(tokens), self._openvino.Tensor(np.ones_like(tokens)))
        options = self._genai.GenerationConfig()
        options.max_new_tokens = new
        options.ignore_eos = True
        options.apply_chat_template = False
        return self._pipelines[threads].generate(inputs, options).perf_metrics
