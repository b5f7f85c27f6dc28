"""The participants that answer prompts: our methods, and the peers that draft."""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Any

import torch

from outlay.bench.data import prompts_of
from outlay.bench.interleave import Participant, Values
from outlay.bench.peer import peer
from outlay.errors import FailureError

BESIDE = ("greedy", "auto")  # methods that are measured beside other engines
BATCHED = (*BESIDE, "lookup", "speculative")  # and in a batch
LEDGER = ("target_passes", "draft_passes", "drafted", "rounds")  # entries that are reported
DEPTHS = 4  # of the draft tree whose acceptance rates are reported


@dataclass(frozen=True)
class Speculate:
    """Decodes some prompts of a set."""

    prompts: str
    """The set."""
    temperature: float
    threads: int
    spread: int
    """How many prompts are chosen, evenly spread over the set."""
    count: int
    """How many of these are decoded."""
    new: int
    """Tokens of an answer at most."""
    batch: int = 1
    """Prompts that are decoded together."""
    beside: bool = False
    """Whether other engines take the task too."""
    first: int = 0
    """Index of the first prompt that is decoded."""


def summed(parts: Sequence[Values]) -> Values:
    """Returns the rates over tasks that were measured one by one, and one `digest` of all their tokens."""
    total: Counter[str] = Counter()
    for part in parts:
        total.update(part)
    found = {"tokens_per_second": total["tokens"] / total["seconds"], "digest": total["digest"]}
    if passes := total["target_passes"]:
        found |= {
            "tokens_per_pass": total["tokens"] / passes,
            "drafted_per_token": total["drafted"] / total["tokens"],
            "draft_passes_per_pass": total["draft_passes"] / passes,
        }
    for depth in range(1, DEPTHS + 1):
        if tried := total[f"verified_{depth}"]:
            found[f"accepted_{depth}"] = total[f"accepted_{depth}"] / tried
    if expected := total["expected_tokens"]:
        found["expected_per_pass"] = expected / max(total["rounds"], 1)
    return found


def name_of(method: str, draft: str | None) -> str:
    """Returns the name of a method of ours in results."""
    return f"outlay {method}" + (f" ({draft})" if draft else "")


class Speculator(Participant):
    """Answers prompts.

    When it gets a task for the first time it only warms up: on the first prompt of the set, or on the first batch.
    """

    def __init__(self, name: str, folder: Path) -> None:
        self.name, self.folder = name, folder
        self._met: set[Speculate] = set()

    def takes(self, task: Any) -> bool:
        """Answers prompts one at a time, beside others."""
        return isinstance(task, Speculate) and task.beside

    def measure(self, task: Speculate) -> Values:
        """Returns what `summed` adds up: `tokens`, `seconds`, a `digest` of the tokens, and what `answer` counted."""
        count = task.count if task in self._met else 0 if task.first else max(1, task.batch)
        self._met.add(task)
        self.use(task.threads)
        prompts = prompts_of(self.folder, task.prompts, task.spread)[task.first : task.first + count]
        texts = [self.encode(prompt) for prompt in prompts]
        started = time.perf_counter()
        written, counted = self.answer(texts, task)
        seconds = time.perf_counter() - started
        digest = int.from_bytes(blake2b(json.dumps(written).encode(), digest_size=6).digest(), "big")
        return {"tokens": float(sum(map(len, written))), "seconds": seconds, "digest": float(digest), **counted}

    def use(self, threads: int) -> None:
        """Computes with this number of threads from now on."""
        torch.set_num_threads(threads)

    def encode(self, prompt: str) -> list[int]:
        """Returns the tokens of a prompt in the model's chat format."""
        raise NotImplementedError

    def answer(self, prompts: Sequence[list[int]], task: Speculate) -> tuple[list[list[int]], Values]:
        """Returns the tokens of every answer, and what was counted."""
        raise NotImplementedError


class OurMethod(Speculator):
    """One of our methods, with a draft if it takes one."""

    def __init__(self, source: str, method: str, draft: str | None, folder: Path) -> None:
        super().__init__(name_of(method, draft), folder)
        self.source, self.method, self.draft = source, method, draft

    def takes(self, task: Any) -> bool:
        """Answers prompts one at a time; `BATCHED` methods in a batch too, those in `BESIDE` beside other engines."""
        if not isinstance(task, Speculate):
            return False
        some = BESIDE if task.beside else BATCHED
        return (task.batch == 1 and not task.beside) or (self.draft is None and self.method in some)

    def load(self) -> dict[str, Any]:
        """Loads the model."""
        from outlay.lm import load

        self._lm = load(self.source)
        return {"held": self._lm.model.format}

    def use(self, threads: int) -> None:
        """As for all; the kernels' threads too."""
        from outlay import kernels

        super().use(threads)
        if kernels.available():
            kernels.set_threads(threads)
        self._lm.generate("Hello", method=self.method, draft=self.draft, max_tokens=2)
        self._lm.engine.settle()  # what passes cost is measured beside the first texts

    def encode(self, prompt: str) -> list[int]:
        """Through the model's chat template."""
        return self._lm.encode(prompt)

    def answer(self, prompts: Sequence[list[int]], task: Speculate) -> tuple[list[list[int]], Values]:
        """Through the engine, as a user would; above temperature 0 `sample` takes the place of `greedy`."""
        from outlay.budget import Ledger

        self._lm.engine.clear(learned=task.first == 0)  # what drafters learn from one set doesn't count for the next
        method = "sample" if self.method == "greedy" and task.temperature else self.method
        options: dict[str, Any] = {"method": method, "draft": self.draft, "temperature": task.temperature}
        results = []
        for start in range(0, len(prompts), task.batch):
            part = prompts[start : start + task.batch]
            with self._lm.engine.together():
                handles = [
                    self._lm.submit(prompt, seed=start + place, max_tokens=task.new, **options)
                    for place, prompt in enumerate(part)
                ]
            results += [handle.result() for handle in handles]
        ledger = sum((result.ledger for result in results), start=Ledger())
        counted = {name: float(getattr(ledger, name)) for name in LEDGER}
        return [result.tokens for result in results], counted | ledger.extras


class TransformersAssisted(Speculator):
    """`transformers`' assisted generation in bfloat16: with its prompt lookup, or with its own first layers."""

    def __init__(self, path: Path, options: dict[str, Any], label: str, folder: Path) -> None:
        super().__init__(f"transformers {label}", folder)
        self.path, self.options = path, options

    @property
    def environment(self) -> dict[str, str]:
        """Keeps the package off the hub, since the files are here."""
        return {"HF_HUB_OFFLINE": "1", "TQDM_DISABLE": "1", "TRANSFORMERS_VERBOSITY": "error"}

    def load(self) -> dict[str, Any]:
        """Loads the model."""
        transformers, version = peer("transformers", "transformers")
        peer("accelerate", "accelerate")
        folder, file = (self.path.parent, {"gguf_file": self.path.name}) if self.path.is_file() else (self.path, {})
        self._model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16, **file)
        self._tokenizer = transformers.AutoTokenizer.from_pretrained(folder, **file)
        return {"version": version}

    def encode(self, prompt: str) -> list[int]:
        """Through the model's chat template."""
        messages = [{"role": "user", "content": prompt}]
        text = self._tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        return list(self._tokenizer(text, add_special_tokens=False).input_ids)

    def answer(self, prompts: Sequence[list[int]], task: Speculate) -> tuple[list[list[int]], Values]:
        """One prompt after the other: it assists no batch."""
        written = []
        sampling = {"do_sample": True, "temperature": task.temperature} if task.temperature else {"do_sample": False}
        for seed, prompt in enumerate(prompts):
            torch.manual_seed(seed)
            tokens = torch.tensor([prompt])
            with torch.inference_mode():
                out = self._model.generate(
                    tokens,
                    attention_mask=torch.ones_like(tokens),
                    max_new_tokens=task.new,
                    pad_token_id=0,
                    **sampling,
                    **self.options,
                )
            written.append(out[0, len(prompt) :].tolist())
        return written, {}


class LlamaSpeculative(Speculator):
    """`llama-cpp-python`, plain or with its prompt lookup."""

    def __init__(self, path: Path, lookup: bool, folder: Path) -> None:
        super().__init__("llama-cpp-python" + (" lookup" if lookup else ""), folder)
        self.path, self.lookup = path, lookup
        self._loaded: dict[int, Any] = {}

    def load(self) -> dict[str, Any]:
        """Finds the package."""
        if self.path.suffix != ".gguf":
            raise FailureError("reads .gguf files only")
        self._llama, version = peer("llama_cpp", "llama-cpp-python")
        return {"version": version}

    def use(self, threads: int) -> None:
        """Each number of threads has a context of its own."""
        if threads not in self._loaded:
            draft: Callable[[], Any] = lambda: None  # noqa: E731 - made only where it is wanted
            if self.lookup:
                from llama_cpp.llama_speculative import LlamaPromptLookupDecoding

                draft = lambda: LlamaPromptLookupDecoding(num_pred_tokens=10)  # noqa: E731
            self._loaded[threads] = self._llama.Llama(
                str(self.path), n_ctx=2048, n_threads=threads, n_threads_batch=threads, verbose=False,
                draft_model=draft(), logits_all=self.lookup,
            )  # fmt: skip
        self._model = self._loaded[threads]

    def encode(self, prompt: str) -> list[int]:
        """The chat format of the default model, as its template writes it."""
        system = "You are a helpful AI assistant named SmolLM, trained by Hugging Face"
        text = f"<|im_start|>system\n{system}<|im_end|>\n<|im_start|>user\n{prompt}<|im_end|>\n<|im_start|>assistant\n"
        return list(self._model.tokenize(text.encode(), add_bos=False, special=True))

    def answer(self, prompts: Sequence[list[int]], task: Speculate) -> tuple[list[list[int]], Values]:
        """One prompt after the other."""
        written = []
        for seed, prompt in enumerate(prompts):
            self._model.reset()
            self._model.set_seed(seed)
            tokens: list[int] = []
            for token in self._model.generate(
                prompt, temp=task.temperature, top_k=0, top_p=1.0, min_p=0.0, repeat_penalty=1.0
            ):
                tokens.append(token)
                if token == self._model.token_eos() or len(tokens) >= task.new:
                    break
            written.append(tokens)
        return written, {}
