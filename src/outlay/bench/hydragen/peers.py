"""The engines beside ours: `transformers`, torch's attention over copies, llama.cpp and a fork of it with copies."""

from __future__ import annotations

import ctypes
import gc
import os
import time
from typing import Any

import torch
from torch.nn.functional import scaled_dot_product_attention

from outlay.bench.hydragen.tasks import AttentionAlone, Texts, decode_values, least_ms, prefix_of
from outlay.bench.interleave import Participant, Values
from outlay.bench.peer import peer
from outlay.bench.speed.llamacpp import IkLlamaCpp, LlamaCpp
from outlay.models.load import load_model


class TransformersCopies(Participant):
    """`generate` with as many samples as rows. The prompt is computed once and its cache repeated: its decoding is that
    of `num_return_sequences`, which computes the prompt for each.
    """

    def __init__(self, source: str, dtype: str, prefix: int) -> None:
        """`prefix`: the one length of a prefix after which it writes, since it takes its time."""
        self.source, self.dtype, self.prefix = source, dtype, prefix
        self.name = f"transformers, {dtype}"

    @property
    def environment(self) -> dict[str, str]:
        """Keeps the package off the hub, since the files are here."""
        return {"HF_HUB_OFFLINE": os.environ.get("HF_HUB_OFFLINE", "1"), "TQDM_DISABLE": "1"}

    def takes(self, task: Any) -> bool:
        """Writes texts after its prefix."""
        return isinstance(task, Texts) and task.prefix == self.prefix

    def load(self) -> dict[str, Any]:
        """Loads the model; a GGUF file's weights are expanded."""
        self._package, version = peer("transformers", "transformers")
        options: dict[str, Any] = {"dtype": getattr(torch, self.dtype)}
        folder = self.source
        if os.path.isfile(folder):
            peer("accelerate", "accelerate")
            folder, options["gguf_file"] = os.path.split(folder)
        torch.set_num_threads(1)
        self._model = self._package.AutoModelForCausalLM.from_pretrained(folder, **options)
        return {"version": version}

    @torch.inference_mode()
    def measure(self, task: Texts) -> Values:
        """Returns `tokens_per_second`, `step_ms` and `held_bytes`."""
        prompt = torch.tensor([prefix_of(task.prefix, self._model.config.vocab_size)])
        cache = self._model(prompt[:, :-1], use_cache=True, logits_to_keep=1).past_key_values
        cache.batch_repeat_interleave(task.rows)
        times: list[float] = []

        def stamp(ids: torch.Tensor, scores: Any, **_: Any) -> torch.Tensor:
            times.append(time.process_time())
            return torch.zeros(len(ids), dtype=torch.bool)

        tokens = prompt.repeat(task.rows, 1)
        self._model.generate(
            tokens,
            attention_mask=torch.ones_like(tokens),
            past_key_values=cache,
            do_sample=True,
            temperature=0.8,
            top_k=0,
            min_new_tokens=task.new,
            max_new_tokens=task.new,
            pad_token_id=0,
            stopping_criteria=[stamp],
        )
        held = sum(layer.keys.nbytes + layer.values.nbytes for layer in cache.layers)
        del cache
        gc.collect()
        return decode_values(times, task) | {"held_bytes": float(held)}


class TorchAttention(Participant):
    """torch's own attention over a copy of the prefix for each row, with the grouped heads folded into rows."""

    def __init__(self, source: str, dtype: str) -> None:
        self.source, self.dtype = source, dtype
        self.name = f"torch over copies, {dtype}"

    def takes(self, task: Any) -> bool:
        """Attends."""
        return isinstance(task, AttentionAlone)

    def load(self) -> dict[str, Any]:
        """Takes over the model's shape."""
        torch.set_num_threads(1)
        self._config = load_model(self.source).decoder.config
        return {"version": torch.__version__}

    @torch.inference_mode()
    def measure(self, task: AttentionAlone) -> Values:
        """Returns `ms`."""
        config, dtype = self._config, getattr(torch, self.dtype)
        heads, group = config.num_kv_heads, config.num_heads // config.num_kv_heads
        k, v = (torch.randn(task.rows, heads, task.prefix, config.head_dim).to(dtype) for _ in range(2))
        q = torch.randn(task.rows, heads, group, config.head_dim).to(dtype)
        return {"ms": least_ms(lambda: scaled_dot_product_attention(q, k, v), task.repeats)}


class _Copies(LlamaCpp):
    """llama.cpp: the prompt as one sequence, copied to all others, which then share its cells of one cache."""

    def __init__(self, source: Any) -> None:
        super().__init__(source, 1, 512)

    def takes(self, task: Any) -> bool:
        """Writes texts."""
        return isinstance(task, Texts)

    def measure(self, task: Texts) -> Values:  # type: ignore[override]  # tasks of another suite
        """Returns `tokens_per_second` and `step_ms`; the most probable token is taken, which costs less than a draw."""
        llama = self._llama
        slots = -(-(task.prefix + task.rows * task.new) // 256) * 256
        options = llama.llama_context_default_params()
        options.n_ctx, options.n_seq_max, options.n_batch = slots, task.rows, max(task.prefix, task.rows)
        options.n_threads = options.n_threads_batch = 1
        self._share_cells(options)
        self._choose(options, task.rows)
        context = llama.llama_init_from_model(self._model, options)
        batch = llama.llama_batch_init(options.n_batch, 0, 1)
        prompt = prefix_of(task.prefix, self._vocab)
        self._decode(context, batch, [(token, at, 0) for at, token in enumerate(prompt)], first=task.prefix - 1)
        for sequence in range(1, task.rows):
            self._copy(context, sequence)
        token = self._most_probable(context, task.prefix - 1)
        tokens = [(token, task.prefix, sequence) for sequence in range(task.rows)]
        times = [time.process_time()]
        for step in range(1, task.new):
            self._decode(context, batch, tokens, first=0)
            tokens = [(self._most_probable(context, row), task.prefix + step, row) for row in range(task.rows)]
            times.append(time.process_time())
        llama.llama_batch_free(batch)
        llama.llama_free(context)
        return decode_values(times, task)

    def _share_cells(self, options: Any) -> None:
        """Asks for one cache of all sequences, where that has to be asked for."""

    def _copy(self, context: Any, sequence: int) -> None:
        """Has a sequence begin with all that sequence 0 holds."""
        raise NotImplementedError


class LlamaCppCopies(_Copies):
    """llama.cpp itself."""

    def _share_cells(self, options: Any) -> None:
        options.kv_unified = True

    def _copy(self, context: Any, sequence: int) -> None:
        self._llama.llama_memory_seq_cp(self._llama.llama_get_memory(context), 0, sequence, -1, -1)


class IkLlamaCppCopies(_Copies, IkLlamaCpp):
    """ik_llama.cpp, whose cache is one for all sequences."""

    def load(self) -> dict[str, Any]:
        """Loads the model, and declares what the package leaves out of its bindings."""
        found = super().load()
        self._seq_cp = self._llama._lib.llama_kv_cache_seq_cp
        self._seq_cp.argtypes = [ctypes.c_void_p, *[ctypes.c_int32] * 4]
        self._seq_cp.restype = None
        return found

    def _copy(self, context: Any, sequence: int) -> None:
        self._seq_cp(context, 0, sequence, -1, -1)
