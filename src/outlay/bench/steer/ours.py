"""Our engine under constraints, as anyone would use it."""

from __future__ import annotations

import time
from collections.abc import Callable
from itertools import count
from typing import Any

from outlay import kernels
from outlay.bench.interleave import Participant, Values
from outlay.bench.steer.tasks import (
    OWN,
    Checks,
    FirstMask,
    Pace,
    SteerTask,
    Texts,
    constraint_of,
    form,
)
from outlay.constrain import JsonSchema, Predicate
from outlay.constrain.constraint import compile_constraint
from outlay.engine.engine import Engine
from outlay.engine.handle import Result
from outlay.lm import LM, set_threads
from outlay.models.load import load_model


class Ours(Participant):
    """`format` is how weights are held; `methods` are those whose texts are measured, None: everything is."""

    def __init__(self, source: str, format: str = "auto", methods: tuple[str, ...] | None = None) -> None:
        self.source, self.format, self.methods = source, format, methods
        self.name = "outlay" if format == "auto" else f"outlay, {format}"
        self._seeds = count()

    def takes(self, task: Any) -> bool:
        """Does all but a peer's own, or writes texts by its methods."""
        if isinstance(task, Texts):
            return task.method != OWN if self.methods is None else task.method in self.methods
        return self.methods is None

    def load(self) -> dict[str, Any]:
        """Loads the model."""
        set_threads(1)
        model = load_model(self.source, dtype=self.format)
        self._lm = LM(model, Engine())
        return {"weights": model.format, "runs_on": f"native {kernels.isa()}" if kernels.available() else "torch"}

    def measure(self, task: SteerTask) -> Values:
        """Does a task."""
        if isinstance(task, Texts):
            return self._texts(task)
        if isinstance(task, Checks):
            return self._checks(task)
        if isinstance(task, Pace):
            return self._pace(task)
        return self._first_mask(task)

    def _texts(self, task: Texts) -> Values:
        """Returns the share that is `valid`, and a text's `seconds`, `cpu_seconds`, `passes`, `checks` and `tokens`."""
        constraint, found = constraint_of(task.constraint), list[Result]()
        with Clock() as clock:
            for _ in range(task.count):
                found.append(
                    self._lm.generate(
                        list(task.prompt), method=task.method, constraint=constraint, temperature=1.0,
                        max_tokens=task.max_tokens, seed=next(self._seeds),
                    )
                )  # fmt: skip
        spent = {
            "passes": sum(result.ledger.target_passes for result in found),
            "checks": sum(result.ledger.checks for result in found),
            "tokens": sum(len(result.tokens) for result in found),
        }
        valid = sum(result.finish_reason == "stop" and constraint.check(result.text) for result in found)
        return {name: amount / task.count for name, amount in (spent | clock.spent | {"valid": valid}).items()}

    def _checks(self, task: Checks) -> Values:
        """Returns whether the text is `valid`, and a token's `checks` with the `seconds` that they take."""
        complete_ok, prefix_ok = form(task.form).checks()
        calls = Calls()
        constraint = Predicate(calls.counted(complete_ok), calls.counted(prefix_ok))
        result = self._lm.generate(
            list(task.prompt), method=task.method, constraint=constraint, temperature=1.0, max_tokens=task.max_tokens,
            seed=next(self._seeds),
        )  # fmt: skip
        tokens = max(1, len(result.tokens))
        valid = result.finish_reason == "stop" and form(task.form).checks()[0](result.text.encode())
        return {"valid": float(valid), "checks": calls.count / tokens, "seconds": calls.seconds / tokens}

    def _pace(self, task: Pace) -> Values:
        """Returns the `seconds` and `cpu_seconds` of a token after the first, the `passes` of one, and the `tokens`."""
        constraint = JsonSchema(task.schema) if task.schema else None
        handle = self._lm.submit(
            list(task.prompt), method=task.method, constraint=constraint, temperature=task.temperature,
            max_tokens=task.new, seed=next(self._seeds), ignore_eos=constraint is None,
        )  # fmt: skip
        chunks = [(time.perf_counter(), time.process_time(), len(chunk.tokens)) for chunk in handle.chunks()]
        result, after_first = handle.result(), sum(count for *_, count in chunks[1:])
        (wall, cpu, _), (last_wall, last_cpu, _) = chunks[0], chunks[-1]
        return {
            "seconds": (last_wall - wall) / after_first,
            "cpu_seconds": (last_cpu - cpu) / after_first,
            "passes": result.ledger.target_passes / len(result.tokens),
            "tokens": float(len(result.tokens)),
        }

    def _first_mask(self, task: FirstMask) -> Values:
        """Returns the `cpu_seconds` from the text of a schema to its first mask, the least of some."""
        model, taken = self._lm.model, list[float]()
        for _ in range(task.repeats):
            started = time.process_time()
            schema = JsonSchema(task.schema)
            compile_constraint(schema, model.tokenizer, model.decoder.config.vocab_size).state.mask()
            taken.append(time.process_time() - started)
        return {"cpu_seconds": min(taken)}


class Calls:
    """Counts calls of functions, and their seconds."""

    def __init__(self) -> None:
        self.count, self.seconds = 0, 0.0

    def counted(self, function: Callable[[bytes], bool]) -> Callable[[bytes], bool]:
        """Returns a function that does the same, and is counted."""

        def call(data: bytes) -> bool:
            started = time.perf_counter()
            answer = function(data)
            self.seconds += time.perf_counter() - started
            self.count += 1
            return answer

        return call


class Clock:
    """Measures what a block takes: `spent` has its `seconds` and the `cpu_seconds` of the whole process."""

    def __enter__(self) -> Clock:
        self._began = time.perf_counter(), time.process_time()
        return self

    def __exit__(self, *_: object) -> None:
        wall, cpu = self._began
        self.spent = {"seconds": time.perf_counter() - wall, "cpu_seconds": time.process_time() - cpu}
