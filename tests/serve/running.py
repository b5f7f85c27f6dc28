"""A server in a thread of this process, methods for it that write what a test wants, and what to ask of it."""

from __future__ import annotations

import asyncio
import io
import json
import socket
import threading
import time
from dataclasses import dataclass, field
from typing import ClassVar

import outlay
from outlay.engine.method import About, Method
from outlay.serve.app import Service
from outlay.serve.hosted import Hosted, Models
from outlay.serve.log import Log
from outlay.serve.server import Server
from outlay.serve.settings import Settings
from outlay.testing import tiny_reward_model

SCRIPTS = []
RELEASE = threading.Event()


@dataclass(frozen=True)
class Script(Method):
    """Writes one of `SCRIPTS`, a token a pass, whatever the model says; a special token is spelled out."""

    number: int = 0
    about: ClassVar[About] = About(
        name="script", summary="", paper="", family="search", spends="", saves="", exact=False, runs_code=True
    )

    def decode(self, run):
        for token in run.model.tokenizer.encode(SCRIPTS[self.number], special=True):
            yield run.target.forward([run.tip])
            run.commit(token)


@dataclass(frozen=True)
class Breaks(Method):
    """Fails after some tokens."""

    tokens: int = 3
    about: ClassVar[About] = About(
        name="breaks", summary="", paper="", family="search", spends="", saves="", exact=False, runs_code=True
    )

    def decode(self, run):
        for _ in range(self.tokens):
            run.commit((yield from run.next_token(run.tip)))
        raise RuntimeError("/secret/path is not for clients")


@dataclass(frozen=True)
class Silent(Method):
    """Commits nothing before its last pass, as beam search does."""

    passes: int = 50
    nap: float = 0.02
    about: ClassVar[About] = About(
        name="silent", summary="", paper="", family="search", spends="", saves="", exact=False, runs_code=True
    )

    def decode(self, run):
        for _ in range(self.passes):
            yield run.target.forward([run.tip])
            time.sleep(self.nap)
        run.commit((yield from run.next_token(run.tip)))


@dataclass(frozen=True)
class Held(Method):
    """Commits nothing before `RELEASE` is set."""

    about: ClassVar[About] = About(
        name="held", summary="", paper="", family="search", spends="", saves="", exact=False, runs_code=True
    )

    def decode(self, run):
        while not RELEASE.is_set():
            yield run.target.forward([run.tip])
            time.sleep(0.005)
        run.commit((yield from run.next_token(run.tip)))


def letters(prompt, texts):
    """Likes texts with many letters that the prompt has, too."""
    return [0.1 + 0.8 * sum(letter in prompt for letter in text) / max(1, len(text)) for text in texts]


SCORERS = {"self": "self", "letters": letters, "prm": tiny_reward_model()}
METHODS = {"script": Script, "breaks": Breaks, "silent": Silent, "held": Held}


@dataclass
class Running:
    """A server that listens."""

    service: Service
    server: Server
    thread: threading.Thread
    log: io.StringIO
    url: str
    settings: Settings = field(repr=False)

    @property
    def engine(self):
        return self.service.models.engine

    def lines(self, event):
        """The log's lines about an event."""
        rows = [json.loads(line) for line in self.log.getvalue().splitlines()]
        return [row for row in rows if row["event"] == event]

    def line_of(self, headers):
        """The log's line about the request that was answered with these headers; it is written after the answer."""
        identity = headers["x-request-id"]
        assert until(lambda: any(row["id"] == identity for row in self.lines("request")))
        return next(row for row in self.lines("request") if row["id"] == identity)

    def idle(self, seconds=60.0):
        """Waits until no run is at work; returns whether that came about."""
        return until(lambda: not self.engine._runs.live and not self.engine._queue, seconds)

    def stop(self):
        self.server.should_exit = True
        self.thread.join(20)
        assert not self.thread.is_alive()


def start(sources, *, drafts=None, scorers=None, log=None, cache_tokens=None, **settings):
    """Starts a server of checkpoints by name, in an engine of its own. `self` and `letters` are always scorers."""
    how = {"port": 0, "method": None, "warm_up": False, "allowed": tuple(METHODS)} | settings
    chosen = Settings(**how)
    hosted, engine = [], None
    for name, source in sources.items():
        of_engine = {"cache_tokens": cache_tokens} if engine is None else {"engine": engine}
        lm = outlay.load(source, dtype="float32", **of_engine)
        engine = lm.engine
        known = {"lookup": lm.draft("lookup")} | {draft: lm.draft(str(path)) for draft, path in (drafts or {}).items()}
        rating = {each: lm.scorer(given) for each, given in (SCORERS | (scorers or {})).items()}
        hosted.append(Hosted(name, lm, known, rating))
    log = log or io.StringIO()
    service = Service(Models(hosted, engine, chosen.allowed), chosen, Log(log))
    listening = socket.socket()
    listening.bind(("127.0.0.1", 0))
    server = Server(service)
    thread = threading.Thread(target=lambda: asyncio.run(server.serve(sockets=[listening])), daemon=True)
    thread.start()
    running = Running(service, server, thread, log, f"http://127.0.0.1:{listening.getsockname()[1]}", chosen)
    assert until(lambda: service.desk.ready and server.started)  # a server without warm-up is ready before it listens
    return running


def until(holds, seconds=60.0):
    """Waits until something holds; returns whether it did in time."""
    last = time.monotonic() + seconds
    while time.monotonic() < last:
        if holds():
            return True
        time.sleep(0.005)
    return bool(holds())
