"""The process: it listens, and ends well when it is told to."""

from __future__ import annotations

import asyncio
import logging
import signal
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

import uvicorn

from outlay.errors import UsageError
from outlay.serve.app import Service
from outlay.serve.log import LogHandler

SIGNALS = (signal.SIGINT, signal.SIGTERM)
LAST_WORDS = 5.0  # seconds for telling clients that their answers were cut off
IDLE_CONNECTION = 30  # seconds that a connection without requests is kept


class Server(uvicorn.Server):
    """A server that drains at the first signal and ends at the second.

    Draining, it takes no new requests and finishes those it has, for `drain_seconds` at most.
    """

    def __init__(self, service: Service) -> None:
        settings = service.settings
        super().__init__(
            uvicorn.Config(
                service.asgi,
                host=settings.host,
                port=settings.port,
                lifespan="on",
                loop="asyncio",
                ws="none",
                log_config=None,
                access_log=False,
                server_header=False,
                timeout_keep_alive=IDLE_CONNECTION,
                timeout_graceful_shutdown=int(settings.drain_seconds + LAST_WORDS),
            )
        )
        self._service = service
        self.status = 0
        service.on_failure = self._give_up

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Within it, signals drain. They are not raised again at the end: a drained server has ended well."""
        if threading.current_thread() is not threading.main_thread():  # Python gives signals to the main thread alone
            yield
            return
        before = {number: signal.signal(number, self.handle_exit) for number in SIGNALS}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Begins to drain at the first signal; at the next one ends at once."""
        if self._service.desk.draining:
            self.force_exit, self.status = True, 128 + sig
        self._service.desk.draining = self.should_exit = True

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Begins to listen, and logs where."""
        await super().startup(sockets)
        for server in getattr(self, "servers", ()):
            host, port = server.sockets[0].getsockname()[:2]
            self._service.log("listening", url=f"http://{f'[{host}]' if ':' in host else host}:{port}")

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Finishes what runs; what has not ended after `drain_seconds` is cut off, and its client told."""
        self._service.log("stopping", running=self._service.turns.running, waiting=self._service.turns.waiting)
        loop = asyncio.get_running_loop()
        timer = loop.call_later(
            self._service.settings.drain_seconds,
            lambda: loop.run_in_executor(None, self._service.models.engine.close),
        )
        try:
            await super().shutdown(sockets)
        finally:
            timer.cancel()

    def _give_up(self) -> None:
        self.should_exit = True


def serve(service: Service) -> int:
    """Serves until a signal ends it; returns the exit status.

    Raises:
        UsageError: where the server can't listen at its address.
        OutlayError: where a model can't decode with the server's method.
    """
    settings = service.settings
    logging.getLogger().addHandler(LogHandler(service.log))
    listening = _listen(settings.host, settings.port)
    server = Server(service)
    try:
        server.run(sockets=[listening])
    finally:
        listening.close()
    if service.failure is not None:
        raise service.failure
    return server.status


def _listen(host: str, port: int) -> socket.socket:
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listening = socket.socket(family, kind, protocol)
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind(address)
    except OSError as error:
        raise UsageError(f"can't listen at {host} port {port}: {error.strerror or error}") from error
    return listening
