"""The libraries beside ours: genlm-control's AWRS, xgrammar's masks in `transformers`, and llama.cpp's grammars."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Callable
from itertools import count
from pathlib import Path
from typing import Any

import torch

from outlay.bench.interleave import Participant, Values
from outlay.bench.peer import peer
from outlay.bench.steer.ours import Clock
from outlay.bench.steer.tasks import DATE, JSON, OWN, PERSON, Texts, constraint_of, form
from outlay.errors import FailureError
from outlay.models.load import load_model

PARTICLES, ESS = 5, 0.5  # the authors' settings


class Peer(Participant):
    """Writes texts by a method of its own, from the prompt's tokens as ours."""

    def takes(self, task: Any) -> bool:
        """Writes texts."""
        return isinstance(task, Texts) and task.method == OWN

    def measure(self, task: Texts) -> Values:
        """Returns the share that is `valid`, and a text's `seconds`, `cpu_seconds` and `tokens`."""
        valid, tokens, seconds, cpu_seconds = 0, 0, 0.0, 0.0
        for _ in range(task.count):
            with Clock() as clock:
                text, length = self.write(task)
            seconds, cpu_seconds = seconds + clock.spent["seconds"], cpu_seconds + clock.spent["cpu_seconds"]
            valid, tokens = valid + (text is not None and constraint_of(task.constraint).check(text)), tokens + length
        found = {"valid": valid, "tokens": tokens, "seconds": seconds, "cpu_seconds": cpu_seconds}
        return {name: amount / task.count for name, amount in found.items()}

    def write(self, task: Texts) -> tuple[str | None, int]:
        """Returns one text, None where it came to no end, and how many tokens it has."""
        raise NotImplementedError


class InTransformers(Peer):
    """A library over `transformers`, in float32."""

    def __init__(self, path: Path) -> None:
        self.source = str(path)

    @property
    def environment(self) -> dict[str, str]:
        """Keeps the package off the hub, since the files are here."""
        return {"HF_HUB_OFFLINE": os.environ.get("HF_HUB_OFFLINE", "1"), "TQDM_DISABLE": "1"}

    def expand(self) -> dict[str, Any]:
        """Loads the model and its tokenizer; a GGUF file's weights are expanded to float32."""
        package, version = peer("transformers", "transformers")
        options: dict[str, Any] = {}
        folder = self.source
        if os.path.isfile(folder):
            peer("accelerate", "accelerate")
            folder, options["gguf_file"] = os.path.split(folder)
        torch.set_num_threads(1)
        self._hf = package.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, **options)
        self._hf_tokenizer = package.AutoTokenizer.from_pretrained(folder, **options)
        self._tokenizer = load_model(self.source).tokenizer
        return {"version": version}


class GenlmControl(InTransformers):
    """genlm-control: AWRS with SMC, over the same checker. It writes dates alone, as a schema takes it far longer."""

    name = "genlm-control, float32"

    def takes(self, task: Any) -> bool:
        """Writes dates."""
        return super().takes(task) and task.constraint == DATE

    def load(self) -> dict[str, Any]:
        """Loads the library and the model."""
        self._library, version = peer("genlm.control", "genlm-control")
        backend, _ = peer("genlm.backend.llm.hf", "genlm-backend")
        self.expand()
        ends = [self._hf_tokenizer.convert_ids_to_tokens(token).encode() for token in self._tokenizer.eos_token_ids]
        model = backend.AsyncTransformer(self._hf, self._hf_tokenizer)
        self._llm = self._library.PromptedLLM(model, eos_byte_strings=ends)
        self._loop = asyncio.new_event_loop()
        return {"version": version}

    def write(self, task: Texts) -> tuple[str | None, int]:
        """Returns the text of highest weight."""
        return self._loop.run_until_complete(self._sample(task))

    async def _sample(self, task: Texts) -> tuple[str | None, int]:
        self._llm.prompt_ids = list(task.prompt)
        self._llm.model.clear_cache()  # each text is of a request of its own
        condition = self._condition(task.constraint).coerce(self._llm, f=b"".join)
        sampler = self._library.AWRS(self._llm, condition)
        found = await sampler.smc(n_particles=PARTICLES, ess_threshold=ESS, max_tokens=task.max_tokens)
        if not found.ess:  # all are dead
            return None, 0
        *context, end = next(iter(found.posterior))
        if end is not self._library.EOS:
            return None, len(context) + 1
        return b"".join(bytes(token) for token in context).decode(errors="replace"), len(context) + 1

    def _condition(self, constraint: str) -> Any:
        complete_ok, prefix_ok = form(constraint).checks()

        class Checker(self._library.Potential):  # type: ignore[name-defined]
            async def complete(self, context: Any) -> float:
                return 0.0 if complete_ok(bytes(context)) else float("-inf")

            async def prefix(self, context: Any) -> float:
                return 0.0 if prefix_ok(bytes(context)) else float("-inf")

        return Checker(list(range(256)))


class XGrammar(InTransformers):
    """xgrammar: masks of a grammar in `generate`."""

    name = "xgrammar in transformers, float32"

    def load(self) -> dict[str, Any]:
        """Loads the library and the model."""
        self._library, version = peer("xgrammar", "xgrammar")
        self._hooks, _ = peer("xgrammar.contrib.hf", "xgrammar")
        self.expand()
        self._size = self._hf.config.vocab_size
        info = self._library.TokenizerInfo.from_huggingface(
            self._hf_tokenizer, vocab_size=self._size, stop_token_ids=list(self._tokenizer.eos_token_ids)
        )
        self._compiler = self._library.GrammarCompiler(info, max_threads=1)
        self._seeds = count()
        return {"version": version}

    @torch.inference_mode()
    def write(self, task: Texts) -> tuple[str | None, int]:
        """Returns a drawn text."""
        if task.constraint == JSON:
            grammar = self._compiler.compile_json_schema(json.dumps(PERSON))
        else:
            grammar = self._compiler.compile_regex(form(task.constraint).pattern)
        torch.manual_seed(next(self._seeds))
        prompt = torch.tensor([task.prompt])
        ends = list(self._tokenizer.eos_token_ids)
        (found,) = self._hf.generate(
            prompt, attention_mask=torch.ones_like(prompt), do_sample=True, temperature=1.0, top_k=0, top_p=1.0,
            max_new_tokens=task.max_tokens, eos_token_id=ends, pad_token_id=ends[0],
            logits_processor=[self._hooks.LogitsProcessor(grammar)],
        ).tolist()  # fmt: skip
        tokens = found[len(task.prompt) :]
        return (self._tokenizer.decode(tokens) if tokens[-1] in ends else None), len(tokens)


class LlamaCppGrammar(Peer):
    """llama.cpp's grammars, which its samplers obey."""

    name = "llama-cpp-python"

    def __init__(self, path: Path) -> None:
        self.path = path

    def load(self) -> dict[str, Any]:
        """Loads the library and the model."""
        if self.path.suffix != ".gguf":
            raise FailureError("reads .gguf files only")
        self._library, version = peer("llama_cpp", "llama-cpp-python")
        self._llama = self._library.Llama(str(self.path), n_ctx=1024, n_threads=1, n_threads_batch=1, verbose=False)
        self._seeds = count()
        return {"version": version}

    def write(self, task: Texts) -> tuple[str | None, int]:
        """Returns a drawn text."""
        grammars = self._library.LlamaGrammar
        if task.constraint == JSON:
            grammar = grammars.from_json_schema(json.dumps(PERSON), verbose=False)
        else:
            grammar = grammars.from_string(gbnf(form(task.constraint).parts), verbose=False)
        self._llama.reset()
        found = self._llama.create_completion(
            list(task.prompt), grammar=grammar, temperature=1.0, top_k=0, top_p=1.0, min_p=0.0, repeat_penalty=1.0,
            max_tokens=task.max_tokens, seed=next(self._seeds),
        )  # fmt: skip
        choice = found["choices"][0]
        text = choice["text"] if choice["finish_reason"] == "stop" else None
        return text, found["usage"]["completion_tokens"]


def gbnf(parts: tuple[str, ...]) -> str:
    """Returns a grammar in llama.cpp's syntax of a row of byte patterns."""
    words = [part if part[0] == "[" else json.dumps(part.removeprefix("\\")) for part in parts]
    return "root ::= " + " ".join(words)


PEERS: dict[str, Callable[[Path], Peer]] = {
    "genlm-control": GenlmControl,
    "xgrammar": XGrammar,
    "llama-cpp-python": LlamaCppGrammar,
}
