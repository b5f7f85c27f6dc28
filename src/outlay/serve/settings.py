"""What the operator decides: where the server listens, who may use it, and how much a request may ask for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from ipaddress import ip_address

LOOPBACK_NAMES = ("localhost", "127.0.0.1", "[::1]")


@dataclass(frozen=True)
class Limits:
    """The most that one request may ask for. What is above is refused with the limit's name."""

    body_bytes: int = 4 << 20
    """Bytes of a request's body."""

    prompt_tokens: int | None = None
    """Tokens of a prompt; None: as many as the model reads."""

    max_tokens: int = 4096
    """New tokens, and how many there are at most where a request doesn't say."""

    choices: int = 16
    """Texts of one request: prompts times `n`."""

    seconds: float = 600.0
    """Seconds from a request's arrival to its end. A text that isn't finished then ends as a budget ends it."""

    audio_seconds: float = 1800.0
    """Seconds of a recording."""

    tools: int = 128
    """Tools that a request describes."""


@dataclass(frozen=True)
class Queue:
    """How many requests are worked on, and how many may wait for their turn."""

    running: int = 64
    """Texts that are worked on at a time."""

    waiting: int = 256
    """Requests that wait at most; later ones get status 503."""

    waiting_per_key: int = 64
    """Requests of one API key that wait at most; later ones get status 429."""


@dataclass(frozen=True)
class Settings:
    """How a server behaves."""

    host: str = "127.0.0.1"
    """The address to listen on."""

    port: int = 8000
    """The port; 0: any that is free."""

    keys: Mapping[str, str] = field(default_factory=dict)
    """API keys, each with the name that logs and turns know it by. Without any, no key is asked for."""

    hosts: tuple[str, ...] = ()
    """Names that requests may address the server by, besides those of the loopback; checked on the loopback alone."""

    limits: Limits = Limits()
    queue: Queue = Queue()

    method: str | None = "auto"
    """The method of a request that names none; None: greedy at temperature 0, sample above."""

    allowed: tuple[str, ...] = ()
    """Methods that are off by default and turned on here: those that run code, and those of other packages."""

    closing_words: str = "\n\nI have to answer now."
    """What is written before the closing tag where a request's `thinking_token_budget` is used up."""

    keep_alive: float = 5.0
    """Seconds without text after which a stream sends a comment line."""

    drain_seconds: float = 30.0
    """Seconds that running requests get to finish after SIGTERM."""

    warm_up: bool = True
    """Whether passes are measured and drafts tried before the server says that it is ready."""

    log_prompts: bool = False
    """Whether the log holds prompts and texts."""

    page: bool = True
    """Whether there is a page at `/`."""

    @property
    def loopback(self) -> bool:
        """Whether only this machine can reach the server."""
        try:
            return ip_address(self.host).is_loopback
        except ValueError:
            return self.host == "localhost"
