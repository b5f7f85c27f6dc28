"""The workers of an engine: each is made when it is first asked for, and closed with the engine."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from contextlib import suppress

from outlay.engine.request import Worker
from outlay.engine.worker import ModelWorker, Role
from outlay.models.load import Model

Wake = Callable[[], None]
"""Tells the engine, from any thread, that a job has ended. An engine that waits for nothing else sleeps until then."""


class Workers:
    """Models by what they are to a run, and services by their key.

    `employ(model, role)` makes a model's worker; `wake` is handed to services that work while the engine sleeps.
    """

    def __init__(self, employ: Callable[[Model, Role], ModelWorker], wake: Wake) -> None:
        self._employ, self._wake = employ, wake
        self._models: dict[tuple[str, Role], ModelWorker] = {}
        self._services: dict[Hashable, Worker] = {}

    @property
    def models(self) -> list[ModelWorker]:
        """The models at work."""
        return list(self._models.values())

    @property
    def services(self) -> list[Worker]:
        """All other workers."""
        return list(self._services.values())

    def model(self, model: Model, role: Role) -> ModelWorker:
        """Returns the worker that runs `model` in a role; each role has a cache of its own."""
        key = (f"{model.fingerprint} {model.format} {model.decoder.device}", role)
        if key not in self._models:
            self._models[key] = self._employ(model, role)
        return self._models[key]

    def service(self, key: Hashable, make: Callable[[Wake], Worker]) -> Worker:
        """Returns the worker under `key`, made by `make(wake)` for the first who asks."""
        if key not in self._services:
            self._services[key] = make(self._wake)
        return self._services[key]

    def close(self) -> None:
        """Closes all services; who asks for one later gets a new one."""
        services, self._services = self._services, {}
        for service in services.values():
            with suppress(Exception):  # one that can't be closed must not keep the others open
                service.close()
