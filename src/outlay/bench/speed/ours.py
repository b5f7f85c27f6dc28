"""Our own engine, as anyone would use it, with the weights in one format."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from itertools import count
from typing import Any

import torch

from outlay import kernels
from outlay.bench.interleave import Participant, Values
from outlay.bench.options import WITHOUT_KERNELS
from outlay.bench.speed.tasks import (
    Decode,
    Likelihood,
    PassCost,
    PeakProducts,
    Prompt,
    ReadMemory,
    chunks,
    decode_values,
    likelihood_values,
    prompts,
)
from outlay.decode.greedy import Greedy
from outlay.engine.engine import Engine
from outlay.engine.method import Method, Work
from outlay.engine.submission import Submission
from outlay.engine.tree_run import TreeRun
from outlay.lm import LM
from outlay.models.decoder import Decoder
from outlay.models.linear import Linear, SplitLinear
from outlay.models.load import Model, load_model
from outlay.models.mlp import Mlp


class Ours(Participant):
    """`format` is a dtype that `outlay.load` takes, with "/torch" behind it to leave our native kernels out."""

    def __init__(self, source: str, format: str) -> None:
        self.source, self.format = source, format
        self.name = f"outlay {format}"
        self._model: Model
        self._lms: dict[int, LM] = {}
        self._seeds = count()

    @property
    def environment(self) -> dict[str, str]:
        """Turns the kernels off for a format without them."""
        return {"OUTLAY_ISA": "none"} if self.format.endswith(WITHOUT_KERNELS) else {}

    def takes(self, task: Any) -> bool:
        """Decodes, makes passes and reads texts."""
        return not isinstance(task, ReadMemory | PeakProducts)

    def load(self) -> dict[str, Any]:
        """Loads the model; returns how its weights are held and how many of their bytes a pass over one token reads."""
        self._model = load_model(self.source, dtype=self.format.removesuffix(WITHOUT_KERNELS))
        return {
            "held": self._model.format,
            "weight_bytes": self._model.decoder.pass_weight_bytes(1),
            "kernels": kernels.isa(),
            "products": products(self._model.decoder),
            "head_products": products_of([self._model.decoder.lm_head]),
        }

    def measure(self, task: Decode | Prompt | PassCost | Likelihood) -> Values:
        """Returns `tokens_per_second` of a `Decode` or a `Prompt`; `step_ms` and `own_ms` of a `Decode` too.

        Of a `PassCost` it returns `ms1`, `ms2` ..., the milliseconds of a pass by its width; of a `Likelihood`, `nats`.
        """
        lm = self._lm(task.threads)
        if isinstance(task, Likelihood):
            return self._likelihood(lm, task)
        if isinstance(task, Prompt):
            return self._prompt(lm, task)
        return self._decode(lm, task) if isinstance(task, Decode) else self._pass_cost(lm, task)

    def _lm(self, threads: int) -> LM:
        """Each number of threads has an engine of its own: torch keeps that number for each thread that computes."""
        torch.set_num_threads(threads)
        if kernels.available():
            kernels.set_threads(threads)
        if threads not in self._lms:
            self._lms[threads] = LM(self._model, Engine())
        return self._lms[threads]

    def _decode(self, lm: LM, task: Decode) -> Values:
        worker = lm.engine.worker(self._model)
        methods = [Stamped(Greedy(), lambda: worker.pass_seconds) for _ in range(task.batch)]
        batch = prompts(task.batch, task.prompt, self._model.decoder.config.vocab_size, next(self._seeds))
        handles = [
            lm.submit(prompt, method=method, max_tokens=task.new, ignore_eos=True)
            for prompt, method in zip(batch, methods, strict=True)
        ]
        for handle in handles:
            handle.result()
        lm.engine.clear()
        return decode_values([method.times for method in methods]) | {"own_ms": own_ms(methods)}

    def _prompt(self, lm: LM, task: Prompt) -> Values:
        (prompt,) = prompts(1, task.length, self._model.decoder.config.vocab_size, next(self._seeds))
        started = time.perf_counter()
        lm.submit(prompt, method=Greedy(), max_tokens=1).result()
        seconds = time.perf_counter() - started
        lm.engine.clear()
        return {"tokens_per_second": task.length / seconds}

    def _pass_cost(self, lm: LM, task: PassCost) -> Values:
        config = self._model.decoder.config
        length = min(task.prompt, config.max_positions - task.widest - 1)
        (prompt,) = prompts(1, length, config.vocab_size, next(self._seeds))
        method = ChainPasses(task.widths, task.repeats)
        lm.submit(prompt, method=method, max_tokens=1).result()
        lm.engine.clear()
        return {f"ms{width}": 1000 * min(seconds) for width, seconds in method.seconds.items()}

    def _likelihood(self, lm: LM, task: Likelihood) -> Values:
        method = ReadChunks(task)
        lm.submit([task.tokens[0]], method=method, max_tokens=1).result()
        lm.engine.clear()
        return likelihood_values(task, torch.cat(method.logits).numpy())


class Stamped(Method):
    """Runs another method and records, for each of its requests, when it is answered and what `read` returns then."""

    about = Greedy.about

    def __init__(self, method: Method, read: Callable[[], float]) -> None:
        self.method = method
        self.times: list[float] = []
        self.readings: list[float] = []
        self._read = read

    @property
    def label(self) -> str:
        """The other method's."""
        return self.method.label

    def check(self, submission: Submission) -> None:
        """As the other method does."""
        self.method.check(submission)

    def decode(self, run: TreeRun) -> Work:
        """Passes requests on, and their answers back."""
        work = self.method.decode(run)
        request = next(work)
        while True:
            answer = yield request
            self.times.append(time.perf_counter())
            self.readings.append(self._read())
            try:
                request = work.send(answer)
            except StopIteration:
                return


class ChainPasses(Method):
    """Grows a chain of each width below the prompt, times the pass over it, and prunes it again."""

    about = Greedy.about

    def __init__(self, widths: list[int], repeats: int) -> None:
        self.seconds: dict[int, list[float]] = {width: [] for width in widths}
        self._repeats = repeats

    def decode(self, run: TreeRun) -> Work:
        """Yields the passes; the first of each width warms up."""
        yield run.target.forward([run.tip])
        for width, seconds in self.seconds.items():
            for _ in range(self._repeats + 1):
                nodes = run.tree.extend(range(-1, width - 1), range(width))
                started = time.perf_counter()
                yield run.target.forward(nodes)
                seconds.append(time.perf_counter() - started)
                run.tree.prune(())
            del seconds[0]


class ReadChunks(Method):
    """Reads a text in chunks below its first token, which is the prompt, and keeps all logits."""

    about = Greedy.about

    def __init__(self, task: Likelihood) -> None:
        self.logits: list[torch.Tensor] = []
        self._task = task

    def decode(self, run: TreeRun) -> Work:
        """Yields a pass for each chunk."""
        for chunk in chunks(self._task):
            run.tree.append(chunk if self.logits else chunk[1:])
            self.logits.append((yield run.target.forward(run.tip.path()[-len(chunk) :])))


def products(decoder: Decoder) -> dict[str, int]:
    """Returns how many multiplications a pass does for each row, by the format of the weights; none for experts."""
    layers = [part for layer in decoder.layers for part in (layer.qkv, layer.out)]
    layers += [part for layer in decoder.layers if isinstance(layer.mlp, Mlp) for part in _parts(layer.mlp)]
    return products_of([*layers, decoder.lm_head])


def _parts(mlp: Mlp) -> tuple[Linear, Linear]:
    return mlp.gate_up, mlp.down


def products_of(layers: Sequence[Linear]) -> dict[str, int]:
    """Returns the multiplications of linear layers for each row, by the format of their weights."""
    found: dict[str, int] = {}
    for layer in layers:
        for part in layer.parts if isinstance(layer, SplitLinear) else (layer,):
            found[part.format] = found.get(part.format, 0) + part.in_features * part.out_features
    return found


def own_ms(methods: list[Stamped]) -> float:
    """Returns the mean milliseconds that a tick takes beside its pass, in the decode phase.

    Args:
        methods: those of runs that tick together. Each has recorded the worker's seconds in passes at every answer;
            between two answers to a run lies exactly one pass.
    """
    last = max(methods, key=lambda method: method.times[0])
    end = min(method.times[-1] for method in methods)
    ticks = sum(moment <= end for moment in last.times) - 1
    elapsed = last.times[ticks] - last.times[0]
    return 1000 * (elapsed - (last.readings[ticks] - last.readings[0])) / ticks
