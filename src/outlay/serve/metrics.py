"""What Prometheus reads: requests, tokens, passes, acceptance, the queue, the cache, and how long clients wait."""

from __future__ import annotations

from collections.abc import Iterator

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from outlay.engine.engine import Engine
from outlay.engine.worker import ModelWorker
from outlay.serve.answers import Answer
from outlay.serve.turns import Turns

SECONDS = (0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0, 60.0)


class Metrics:
    """The server's own counters, and the engine's at the time of reading."""

    def __init__(self, engine: Engine, turns: Turns) -> None:
        self._registry = CollectorRegistry()
        self._registry.register(_EngineMetrics(engine, turns))

        def counter(name: str, help: str, *labels: str) -> Counter:
            return Counter(f"outlay_{name}", help, labels, registry=self._registry)

        def histogram(name: str, help: str) -> Histogram:
            return Histogram(f"outlay_{name}", help, ("model",), registry=self._registry, buckets=SECONDS)

        self._requests = counter("requests", "Requests by path and status.", "path", "status")
        self._left = counter("clients_left", "Requests whose client left before the end.")
        self._prompt = counter("prompt_tokens", "Tokens of prompts.", "model")
        self._cached = counter("cached_prompt_tokens", "Tokens of prompts that were in the cache.", "model")
        self._written = counter("generated_tokens", "Tokens of answers.", "model", "method")
        self._drafted = counter("drafted_tokens", "Tokens that drafts proposed.", "model", "method")
        self._accepted = counter(
            "accepted_tokens", "Tokens that drafts proposed and the model took.", "model", "method"
        )
        self._ends = counter("answers", "Texts by why they ended.", "model", "finish_reason")
        self._first = histogram("time_to_first_token_seconds", "Seconds from a request's arrival to its first token.")
        self._gaps = histogram("token_gap_seconds", "Seconds between two pieces of a text.")

    def request(self, path: str, status: int) -> None:
        """Counts a request that was answered."""
        self._requests.labels(path, str(status)).inc()

    def client_left(self) -> None:
        """Counts a client that left before its answer was complete."""
        self._left.inc()

    def first_tokens(self, model: str) -> Histogram:
        """Returns what observes how long a request waited for its first token."""
        first: Histogram = self._first.labels(model)
        return first

    def gaps(self, model: str) -> Histogram:
        """Returns what observes how long a text stood still."""
        gaps: Histogram = self._gaps.labels(model)
        return gaps

    def answer(self, model: str, answer: Answer) -> None:
        """Counts a text that has ended."""
        method = answer.method.partition(":")[0]
        self._prompt.labels(model).inc(answer.prompt_tokens)
        self._cached.labels(model).inc(answer.cached_tokens)
        self._written.labels(model, method).inc(len(answer.tokens))
        self._drafted.labels(model, method).inc(answer.ledger.drafted)
        self._accepted.labels(model, method).inc(answer.ledger.accepted)
        self._ends.labels(model, answer.finish_reason).inc()

    def text(self) -> bytes:
        """Returns all of it in Prometheus' text format."""
        return generate_latest(self._registry)


class _EngineMetrics(Collector):
    """Reads the engine's models and the queue when Prometheus asks."""

    def __init__(self, engine: Engine, turns: Turns) -> None:
        self._engine, self._turns = engine, turns

    def collect(self) -> Iterator[Metric]:
        yield GaugeMetricFamily("outlay_requests_waiting", "Requests that wait for their turn.", self._turns.waiting)
        yield GaugeMetricFamily("outlay_texts_running", "Texts at work.", self._turns.running)
        labels = ("model", "role")
        passes = CounterMetricFamily("outlay_passes", "Forward passes.", labels=labels)
        rows = CounterMetricFamily("outlay_pass_rows", "Positions that passes computed.", labels=labels)
        seconds = CounterMetricFamily("outlay_pass_seconds", "Seconds within passes.", labels=labels)
        slots = GaugeMetricFamily("outlay_cache_tokens", "Tokens whose keys and values are held.", labels=labels)
        held = GaugeMetricFamily("outlay_cache_bytes", "Bytes of the KV cache.", labels=labels)
        for worker in self._engine.workers:
            if not isinstance(worker, ModelWorker):
                continue
            place = (worker.model.name, worker.role)
            passes.add_metric(place, worker.passes)
            rows.add_metric(place, getattr(worker.ledger, f"{worker.role}_tokens"))
            seconds.add_metric(place, worker.pass_seconds)
            slots.add_metric(place, worker.cache.in_use)
            held.add_metric(place, worker.cache.bytes())
        yield from (passes, rows, seconds, slots, held)
