"""What every request passes: its id, who may send it, how large it may be, its headers and its line in the log."""

from __future__ import annotations

import hmac
import json
import time
import traceback
import uuid
from collections.abc import Mapping
from hashlib import sha256
from typing import Any

from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from outlay.serve.errors import ApiError, as_api_error
from outlay.serve.log import Log
from outlay.serve.metrics import Metrics
from outlay.serve.settings import LOOPBACK_NAMES, Settings

OPEN_PATHS = ("/", "/health", "/ready")  # that need no key; the page's own files lie under /page/
PAGE = "/page/"
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
SAFE_HEADERS = (
    (b"content-security-policy", POLICY.encode()),
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"cross-origin-resource-policy", b"same-origin"),
)
ANYONE = "anyone"  # the name of requests where no keys are asked for


class Gate:
    """ASGI middleware in front of the application.

    It puts `outlay`, a dict of facts about the request, into the scope: its `id`, the name of its `key`, `arrived`
    (by `time.monotonic`), and what the application adds for the log.
    """

    def __init__(self, app: ASGIApp, settings: Settings, metrics: Metrics, log: Log) -> None:
        self._app, self._settings, self._metrics, self._log = app, settings, metrics, log
        self._keys = {name: _digest(key) for name, key in settings.keys.items()}
        self._hosts = {*LOOPBACK_NAMES, *settings.hosts}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        facts = scope["outlay"] = {"id": f"req_{uuid.uuid4().hex}", "arrived": time.monotonic()}
        answer = _Answer(send, facts["id"])
        body = _Body(receive, self._settings.limits.body_bytes)
        try:
            facts["key"] = self._admit(scope)
            body.check(scope)
            await self._app(scope, body, answer)
        except Exception as error:
            if not isinstance(error, ApiError):
                self._log("error", id=facts["id"], error=f"{type(error).__name__}: {error}", trace=_where(error))
            if not answer.began:
                await send_error(as_api_error(error), answer)
        finally:
            self._write_line(scope, facts, answer.status)

    def _admit(self, scope: Scope) -> str:
        """Returns the name of the request's key. Raises `ApiError` for one that may not come in."""
        headers = Headers(scope=scope)
        if self._settings.loopback and _name(headers.get("host", "localhost")) not in self._hosts:
            raise ApiError(403, "this server is not known by that name; `outlay serve --name NAME` tells it one")
        if not self._keys or scope["path"] in OPEN_PATHS or scope["path"].startswith(PAGE):
            return ANYONE
        scheme, _, given = headers.get("authorization", "").partition(" ")
        if scheme.lower() != "bearer" or not given:
            raise ApiError(401, "an API key is needed: Authorization: Bearer KEY", code="invalid_api_key")
        return self._who(given.strip())

    def _who(self, given: str) -> str:
        """Returns the name of a key; compares it with all, each in constant time."""
        digest, found = _digest(given), ""
        for name, known in self._keys.items():
            if hmac.compare_digest(digest, known):
                found = name
        if not found:
            raise ApiError(401, "this API key is not known here", code="invalid_api_key")
        return found

    def _write_line(self, scope: Scope, facts: dict[str, Any], status: int) -> None:
        route = scope.get("route")
        path = getattr(route, "path", "other")
        self._metrics.request(path, status)
        seconds = round(time.monotonic() - facts.pop("arrived"), 4)
        self._log("request", verb=scope["method"], path=scope["path"], status=status, seconds=seconds, **facts)


class _Answer:
    """Sends an answer with the headers that all answers have, and knows its status."""

    def __init__(self, send: Send, identity: str) -> None:
        self._send, self._identity = send, identity
        self.began, self.status = False, 499  # as long as nothing was sent, the client left

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.began, self.status = True, message["status"]
            own = [*SAFE_HEADERS, (b"x-request-id", self._identity.encode())]
            message = {**message, "headers": [*message.get("headers", ()), *own]}
        await self._send(message)


class _Body:
    """Receives a body up to a number of bytes."""

    def __init__(self, receive: Receive, limit: int) -> None:
        self._receive, self._limit, self._received = receive, limit, 0

    def check(self, scope: Scope) -> None:
        """Refuses a body that says that it is too large."""
        length = Headers(scope=scope).get("content-length", "")
        if length.isdigit() and int(length) > self._limit:
            raise too_large(self._limit)

    async def __call__(self) -> Message:
        message = await self._receive()
        self._received += len(message.get("body", b""))
        if self._received > self._limit:
            raise HTTPException(413)  # in the framework's own words, which it lets through
        return message


def too_large(limit: int) -> ApiError:
    """Returns the error for a body above a number of bytes."""
    return ApiError(413, f"the body has more than {limit} bytes, the most that is read", code="body_too_large")


async def send_error(error: ApiError, send: Send) -> None:
    """Sends an error as a whole answer."""
    await send_json(error.body, send, error.status, error.headers)


async def send_json(
    body: Mapping[str, Any], send: Send, status: int = 200, headers: Mapping[str, str] | None = None
) -> None:
    """Sends an object as a whole answer."""
    data = json.dumps(body).encode()
    fields = {"content-type": "application/json", "content-length": str(len(data)), **(headers or {})}
    raw = [(name.encode(), value.encode()) for name, value in fields.items()]
    await send({"type": "http.response.start", "status": status, "headers": raw})
    await send({"type": "http.response.body", "body": data})


def _digest(key: str) -> bytes:
    return sha256(key.encode()).digest()


def _name(host: str) -> str:
    """Returns the name of a Host header without its port."""
    name, colon, port = host.rpartition(":")
    return name.lower() if colon and port.isdigit() else host.lower()


def _where(error: BaseException) -> list[str]:
    """Returns the lines of an error's trace, for the log alone."""
    return [line.rstrip() for line in traceback.format_exception(error)]
