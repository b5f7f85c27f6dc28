"""`transformers` and its `generate`, in one float type; a GGUF file's weights are expanded to it."""

from __future__ import annotations

import os
import time
from itertools import count
from pathlib import Path
from typing import Any

import torch

from outlay.bench.interleave import Participant, Values
from outlay.bench.peer import peer
from outlay.bench.speed.tasks import Decode, Likelihood, Prompt, chunks, decode_values, likelihood_values, prompts


class Transformers(Participant):
    """`dtype` is "bfloat16" or "float32"."""

    def __init__(self, path: Path, dtype: str, batches: tuple[int, ...] = (1, 16)) -> None:
        self.path, self.dtype, self.batches = path, dtype, batches
        self.name = f"transformers {dtype}"
        self._model: Any = None
        self._seeds = count()

    @property
    def environment(self) -> dict[str, str]:
        """Keeps the package off the hub, since the files are here."""
        return {"HF_HUB_OFFLINE": os.environ.get("HF_HUB_OFFLINE", "1"), "TQDM_DISABLE": "1"}

    def takes(self, task: Any) -> bool:
        """Reads prompts and texts, and decodes the batches that it was made for."""
        return isinstance(task, Prompt | Likelihood) or (isinstance(task, Decode) and task.batch in self.batches)

    def load(self) -> dict[str, Any]:
        """Loads the model."""
        transformers, version = peer("transformers", "transformers")
        options: dict[str, Any] = {"dtype": getattr(torch, self.dtype)}
        folder = self.path
        if self.path.is_file():
            peer("accelerate", "accelerate")
            folder, options["gguf_file"] = self.path.parent, self.path.name
        self._model = transformers.AutoModelForCausalLM.from_pretrained(folder, **options)
        return {"version": version}

    def measure(self, task: Decode | Prompt | Likelihood) -> Values:
        """Returns `tokens_per_second`, and `step_ms` of a `Decode`; `nats` of a `Likelihood`."""
        torch.set_num_threads(task.threads)
        if isinstance(task, Likelihood):
            past, rows = None, []
            with torch.inference_mode():
                for chunk in chunks(task):
                    found = self._model(torch.tensor([chunk]), past_key_values=past, use_cache=True)
                    past = found.past_key_values
                    rows.append(found.logits[0].float())
            return likelihood_values(task, torch.cat(rows).numpy())
        if isinstance(task, Prompt):
            tokens = torch.tensor(prompts(1, task.length, self._model.config.vocab_size, next(self._seeds)))
            started = time.perf_counter()
            with torch.inference_mode():
                self._model(tokens, use_cache=True, logits_to_keep=1)
            return {"tokens_per_second": task.length / (time.perf_counter() - started)}
        tokens = torch.tensor(prompts(task.batch, task.prompt, self._model.config.vocab_size, next(self._seeds)))
        times: list[float] = []

        def stamp(ids: torch.Tensor, scores: Any, **_: Any) -> torch.Tensor:
            times.append(time.perf_counter())
            return torch.zeros(len(ids), dtype=torch.bool)

        with torch.inference_mode():
            self._model.generate(
                tokens,
                attention_mask=torch.ones_like(tokens),
                do_sample=False,
                min_new_tokens=task.new,
                max_new_tokens=task.new,
                pad_token_id=0,
                stopping_criteria=[stamp],
            )
        return decode_values([times] * task.batch)
