"""`outlay bench serve`: loads of several sizes on this server, on other servers, and on the engine without one."""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from outlay.bench.options import names, refuse_below_one
from outlay.bench.serve.client import Load, load
from outlay.bench.serve.report import ENGINE, report
from outlay.bench.serve.servers import NAMES, Server, serving
from outlay.bench.suite import Suite
from outlay.errors import FailureError, UsageError
from outlay.lm import LM
from outlay.lm import load as load_model
from outlay.progress import ShowProgress

SUBJECTS = ("the sea", "bread", "clocks", "a bridge", "snow", "the moon", "rivers", "a violin")


@dataclass(frozen=True)
class ServeSettings:
    """How much is asked of which servers."""

    servers: tuple[str, ...]
    clients: tuple[int, ...]
    """Clients at a time, one size after the other."""
    new: int
    """Tokens of an answer at most."""
    threads: int
    rounds: int
    """Rounds, after a warm-up."""
    method: str
    """Our method; the other servers have none to choose."""
    pythons: Mapping[str, str] = field(default_factory=dict)
    """Interpreters of servers that have an environment of their own."""


class ServeSuite(Suite[ServeSettings]):
    """The load table of servers."""

    packages = ("outlay", "torch", "fastapi", "uvicorn", "llama-cpp-python", "transformers")

    def add_options(self, parser: argparse.ArgumentParser) -> None:
        parser.add_argument("--servers", default=",".join(NAMES), metavar="NAMES", help="(%(default)s)")
        parser.add_argument("--clients", default="1,8,32", metavar="N,N", help="clients at a time (%(default)s)")
        parser.add_argument("--new", type=int, default=48, metavar="N", help="tokens of an answer (%(default)s)")
        parser.add_argument("--threads", type=int, default=os.cpu_count() or 1, metavar="N", help="(%(default)s)")
        parser.add_argument("--rounds", type=int, default=3, metavar="N", help="after a warm-up (%(default)s)")
        parser.add_argument("--python", action="append", default=[], metavar="NAME=PYTHON",
                            help="the interpreter of a server's own environment; repeatable")  # fmt: skip
        parser.add_argument("--method", default="greedy", metavar="M", help="our method (%(default)s)")

    def settings(self, args: argparse.Namespace) -> ServeSettings:
        refuse_below_one(args, "new", "threads", "rounds")
        try:
            clients = tuple(int(count) for count in args.clients.split(","))
        except ValueError:
            clients = ()
        if not clients or min(clients) < 1:
            raise UsageError(f"--clients must be numbers of 1 or more with commas between them, not {args.clients!r}")
        servers = names("server", args.servers, NAMES)
        pythons = dict(_python_of(given) for given in args.python)
        return ServeSettings(servers, clients, args.new, args.threads, args.rounds, args.method, pythons)

    def measure(self, settings: ServeSettings, model: Path, progress: ShowProgress) -> dict[str, Any]:
        rows: dict[str, dict[str, list[Any]]] = {}
        failures: dict[str, str] = {}
        alone = load_model(model, threads=settings.threads)
        with ExitStack() as stack:
            running: list[Server] = []
            for name in settings.servers:
                progress(f"starting {name}", len(running), len(settings.servers))
                try:
                    started = serving(name, model, settings.threads, max(settings.clients), settings.pythons)
                    running.append(stack.enter_context(started))
                except FailureError as error:
                    failures[name] = str(error)
            for turn in range(settings.rounds + 1):
                progress("rounds", turn, settings.rounds + 1)
                for clients in settings.clients:
                    prompts = _prompts(clients, turn)
                    found = {ENGINE: _engine_alone(alone, prompts, settings)}
                    found |= _ask(running, prompts, settings, failures)
                    for name, row in found.items() if turn else ():
                        rows.setdefault(name, {}).setdefault(str(clients), []).append(row)
        return {"settings": asdict(settings), "rows": rows, "failures": failures}

    def report(self, found: Mapping[str, Any]) -> str:
        return report(found)

    def failure(self, found: Mapping[str, Any]) -> str | None:
        return found["failures"].get("outlay")


def _python_of(given: str) -> tuple[str, str]:
    """Returns a server's name and its interpreter."""
    name, equals, python = given.partition("=")
    if not equals or not python or name not in NAMES[1:]:
        raise UsageError(f"--python is NAME=PYTHON with one of {', '.join(NAMES[1:])}, not {given!r}")
    return name, python


def _prompts(clients: int, turn: int) -> list[str]:
    """Prompts that differ, between the clients and between the rounds, so that no cache knows them."""
    return [f"Write {3 + place} sentences, number {turn}, about {SUBJECTS[place % 8]}." for place in range(clients)]


def _engine_alone(lm: LM, prompts: list[str], settings: ServeSettings) -> dict[str, Any]:
    started = time.perf_counter()
    messages = [[{"role": "user", "content": prompt}] for prompt in prompts]
    results = lm.generate_batch(messages, method=settings.method, max_tokens=settings.new)
    seconds = time.perf_counter() - started
    return {"per_second": sum(len(result.tokens) for result in results) / seconds}


def _ask(
    running: list[Server], prompts: list[str], settings: ServeSettings, failures: dict[str, str]
) -> dict[str, dict[str, Any]]:
    """Puts one load on each server; one that fails is asked no more."""
    found = {}
    for server in list(running):
        fields = {"method": settings.method} if server.name == "outlay" else {}
        try:
            found[server.name] = _figures(load(server.url, server.model, prompts, settings.new, **fields))
        except (FailureError, OSError, TimeoutError) as error:
            failures[server.name] = f"{type(error).__name__}: {error}"
            running.remove(server)
    return found


def _figures(done: Load) -> dict[str, Any]:
    return {
        "per_second": sum(answer.tokens for answer in done.answers) / done.seconds,
        "first": [answer.first for answer in done.answers],
        "gaps": [gap for answer in done.answers for gap in answer.gaps],
    }


SUITE = ServeSuite()
