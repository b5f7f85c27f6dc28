"""Our engine: texts that share a prefix, and the same texts with a copy of its keys and values for each."""

from __future__ import annotations

import gc
import time
import zlib
from typing import Any

import torch

from outlay import kernels
from outlay.bench.hydragen.tasks import AttentionAlone, Planting, Sharing, Texts, decode_values, least_ms, prefix_of
from outlay.bench.interleave import Participant, Values
from outlay.decode.hydragen import Hydragen, Text
from outlay.engine.engine import Engine
from outlay.engine.method import Method, Work
from outlay.engine.sharing import ROWS, SharingMeasurement
from outlay.engine.tree_run import TreeRun
from outlay.engine.worker import ModelWorker
from outlay.kernels import AttentionPlan, AttentionSpan, KeyValues
from outlay.lm import LM, set_threads
from outlay.models.load import load_model
from outlay.tree.cache import KV_DTYPES, Cache
from outlay.tree.token_tree import Tree


class Ours(Participant):
    """`kv` is how keys and values are held, `copies` whether each text has a copy of those of the prefix."""

    def __init__(self, source: str, kv: str, *, copies: bool = False) -> None:
        self.source, self.kv, self.copies = source, kv, copies
        self.name = f"{'a copy for each' if copies else 'hydragen'}, {kv}"

    def takes(self, task: Any) -> bool:
        """Writes texts, and tells what sharing takes."""
        return isinstance(task, Texts) or not self.copies

    def load(self) -> dict[str, Any]:
        """Loads the model."""
        set_threads(1)
        self._model = load_model(self.source)
        return {"weights": self._model.format, "runs_on": f"native {kernels.isa()}" if kernels.available() else "torch"}

    @torch.inference_mode()
    def measure(self, task: Texts | AttentionAlone | Planting | Sharing) -> Values:
        """Returns `tokens_per_second`, `step_ms`, `held_bytes`, a digest of `tokens`, and without copies whether the
        last text is what it is `alone`; or `ms`; or lengths by rows.
        """
        if isinstance(task, Texts):
            return self._texts(task)
        if isinstance(task, Planting):
            return self._planting(task)
        if isinstance(task, Sharing):
            measurement = SharingMeasurement(self._model.decoder, KV_DTYPES[self.kv])
            while not measurement.done:
                measurement.step()
            return {str(rows): float(length) for rows, length in zip(ROWS, measurement.lengths, strict=True)}
        return {"ms": least_ms(self._attention(task), task.repeats)}

    def _texts(self, task: Texts) -> Values:
        method = Stamped((Copies if self.copies else Hydragen)(n=task.rows))
        room = (task.rows + 1) * (task.prefix + task.new + 64)
        lm = LM(self._model, Engine(kv_dtype=KV_DTYPES[self.kv], prefix_cache=False, cache_tokens=room))
        prompt = prefix_of(task.prefix, self._model.decoder.config.vocab_size)
        options: dict[str, Any] = {"temperature": 0.8, "max_tokens": task.new, "ignore_eos": True}
        result = lm.generate(prompt, method=method, **options)
        found = {}
        if not self.copies:
            alone = lm.generate(prompt, method="sample", seed=task.rows - 1, **options)
            found["alone"] = float(alone.tokens == result.alternatives[-1].tokens)
        lm.engine.close()
        del lm
        gc.collect()  # a cache of gigabytes, before the others take their turn
        written = str([each.tokens for each in result.alternatives])
        digest = float(zlib.crc32(written.encode()))
        return decode_values(method.times, task) | {"held_bytes": float(method.held), "tokens": digest} | found

    def _planting(self, task: Planting) -> Values:
        worker = ModelWorker(
            self._model, role="side", cache_tokens=task.prefix + 256, kv_dtype=KV_DTYPES[self.kv], prefix_cache=True
        )
        prefix = prefix_of(task.prefix, self._model.decoder.config.vocab_size)
        tree, _ = worker.plant(prefix, 0)
        assert tree.tip is not None, "a prefix has tokens"
        held = worker.hold(tree.tip, torch.zeros(1))

        def plant(on: Any) -> None:
            worker.plant([*prefix, 5, 6, 7], 0, held=on)[0].release()

        return {
            "held_ms": least_ms(lambda: plant(held), task.repeats),
            "found_ms": least_ms(lambda: plant(None), task.repeats),
            "fork_ms": least_ms(lambda: tree.fork().release(), task.repeats),
        }

    def _attention(self, task: AttentionAlone) -> Any:
        config = self._model.decoder.config
        if not kernels.available():
            raise ValueError("attention alone is measured with the native kernels, which are not built")
        cache = Cache(
            config, KV_DTYPES[self.kv], torch.device("cpu"), limit=task.prefix, capacity=task.prefix
        )  # of which one layer is read
        held: KeyValues = cache.layers[0]
        shape = (task.prefix, config.num_kv_heads, config.head_dim)
        cache.write(0, slice(0, task.prefix), torch.randn(shape), torch.randn(shape))
        q = torch.randn(task.rows, config.num_heads, config.head_dim)
        plan = AttentionPlan([AttentionSpan(0, task.prefix)], task.rows)
        return lambda: kernels.attend(q, held, plan, config.attention_scale)


class Copies(Hydragen):
    """Writes the same texts; all but the first have slots of their own for the prefix, whose keys and values are copied
    there.
    """

    def decode(self, run: TreeRun) -> Work:
        """Yields the pass over the prefix, then what Hydragen does over the copies."""
        yield run.target.forward([run.tip])
        yield from super().decode(run)

    def _begin(self, run: TreeRun) -> list[Text]:
        texts = super()._begin(run)
        shared = run.tip.path()
        cache = run.target.worker.cache
        for text in texts[1:]:
            text.tree.release()
            text.tree = Tree(cache, reserve=len(shared) + text.limit)
            text.tree.append([node.token for node in shared])
            assert text.tree.tip is not None, "a prefix has tokens"
            own = text.tree.tip.path()
            cache.copy([node.slot for node in shared], [node.slot for node in own])
            for node in own:
                node.computed = True
        return texts


class Stamped(Method):
    """Runs a method, and notes when each of its steps begins and the most that it holds."""

    about = Hydragen.about

    def __init__(self, method: Hydragen) -> None:
        self.times: list[float] = []
        self.held = 0
        self._method = method

    def decode(self, run: TreeRun) -> Work:
        """Yields what the method does."""
        cache, work = run.target.worker.cache, self._method.decode(run)
        answer = None
        while True:
            try:
                asked = work.send(answer)
            except StopIteration:
                return
            self.times.append(time.process_time())
            self.held = max(self.held, cache.bytes())
            answer = yield asked
