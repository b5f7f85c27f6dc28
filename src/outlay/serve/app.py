"""The application: its routes, and how what goes wrong is told."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

from fastapi import Depends, FastAPI, Request
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse, Response

import outlay
from outlay import catalog
from outlay.errors import OutlayError, one_line
from outlay.serve import page
from outlay.serve.asking import ask_chat, ask_completion, ask_response
from outlay.serve.chat import ChatWriter
from outlay.serve.completions import CompletionWriter
from outlay.serve.errors import ApiError, as_api_error
from outlay.serve.fields import ChatRequest, CompletionRequest, ResponseRequest, StreamOptions
from outlay.serve.gate import Gate, too_large
from outlay.serve.hosted import Hosted, Models
from outlay.serve.log import Log
from outlay.serve.metrics import Metrics
from outlay.serve.responses import ResponseWriter
from outlay.serve.settings import Limits, Settings
from outlay.serve.speech import FORM, SpeechWork, ask_speech
from outlay.serve.turns import Turns
from outlay.serve.work import Desk, Work

THREADS = 4  # that encode prompts and hand in runs
TEXT_FORMAT = "text/plain; version=0.0.4; charset=utf-8"  # of Prometheus
OBJECTS = {"type": "array", "items": {"type": "object"}}


class ErrorFacts(BaseModel):
    """What went wrong."""

    message: str
    type: str
    param: str | None
    code: str | None


class ErrorBody(BaseModel):
    """The body of every answer that is an error."""

    error: ErrorFacts


class Service:
    """A server's application and what it stands on."""

    def __init__(self, models: Models, settings: Settings, log: Log) -> None:
        self.models, self.settings, self.log = models, settings, log
        self.turns = Turns(settings.queue)
        self.metrics = Metrics(models.engine, self.turns)
        self.pool = ThreadPoolExecutor(THREADS, thread_name_prefix="outlay-serve")
        self.desk = Desk(settings, self.turns, self.pool, self.metrics, log)
        self.failure: OutlayError | None = None
        self.on_failure: Callable[[], None] = lambda: None
        self.app = _application(self)
        self.asgi = Gate(self.app, settings, self.metrics, log)

    @asynccontextmanager
    async def lifespan(self, app: FastAPI) -> AsyncIterator[None]:
        """Warms the models up beside the running server, and closes the engine at its end."""
        warming = asyncio.create_task(self._warm_up())
        try:
            yield
        finally:
            warming.cancel()
            await asyncio.to_thread(self.models.engine.close)
            self.pool.shutdown(wait=False)

    async def _warm_up(self) -> None:
        if self.settings.warm_up:
            try:
                await asyncio.to_thread(self.models.warm_up, self.settings.method)
            except OutlayError as error:
                self.failure = error
                self.on_failure()
                return
        self.desk.ready = True
        self.log("ready", models=[hosted.name for hosted in self.models])


def _application(service: Service) -> FastAPI:
    app = FastAPI(
        title="outlay",
        version=outlay.__version__,
        description="OpenAI's API over one engine: any method, draft and budget in any request.",
        docs_url=None,
        redoc_url=None,
        lifespan=service.lifespan,
        responses={"4XX": {"model": ErrorBody}, "5XX": {"model": ErrorBody}},
    )
    app.add_exception_handler(ApiError, _tell)
    app.add_exception_handler(OutlayError, _tell)
    app.add_exception_handler(RequestValidationError, _tell_of_field)
    app.add_exception_handler(HTTPException, partial(_tell_of_route, service.settings.limits))
    _add_answers(app, service)
    _add_ears(app, service)
    _add_lists(app, service)
    _add_states(app, service)
    if service.settings.page:
        page.add(app)
    return app


def _add_answers(app: FastAPI, service: Service) -> None:
    """The routes that decode."""
    models, settings, desk = service.models, service.settings, service.desk
    ready = [Depends(desk.refuse_unready)]

    @app.post("/v1/chat/completions", dependencies=ready, responses=_answered("chat.completion", "choices"))
    async def chat_completions(body: ChatRequest) -> Response:
        """Answers a conversation."""
        asked = ask_chat(body, models, settings)
        return Work(desk, asked, ChatWriter(asked, _told(body.stream_options)), bool(body.stream))

    @app.post("/v1/completions", dependencies=ready, responses=_answered("text_completion", "choices"))
    async def completions(body: CompletionRequest) -> Response:
        """Continues a text."""
        asked = ask_completion(body, models, settings)
        echo = [prompt if isinstance(prompt, str) else _text(asked.hosted, prompt) for prompt in asked.given]
        writer = CompletionWriter(asked, _told(body.stream_options), echo if body.echo else ())
        return Work(desk, asked, writer, bool(body.stream))

    @app.post("/v1/responses", dependencies=ready, responses=_answered("response", "output"))
    async def responses(body: ResponseRequest) -> Response:
        """Answers a conversation and stores nothing of it."""
        asked = ask_response(body, models, settings)
        return Work(desk, asked, ResponseWriter(asked, body), bool(body.stream))


def _add_ears(app: FastAPI, service: Service) -> None:
    """The routes that hear."""
    models, settings, desk = service.models, service.settings, service.desk
    ready = [Depends(desk.refuse_unready)]
    told = _described({"text": {"type": "string"}})

    @app.post("/v1/audio/transcriptions", dependencies=ready, responses=told, openapi_extra=FORM)
    async def transcriptions(request: Request) -> Response:
        """Writes down what is said in a recording."""
        return SpeechWork(desk, await ask_speech(request, "transcribe", models, settings))

    @app.post("/v1/audio/translations", dependencies=ready, responses=told, openapi_extra=FORM)
    async def translations(request: Request) -> Response:
        """Writes in English what is said in a recording."""
        return SpeechWork(desk, await ask_speech(request, "translate", models, settings))


def _add_lists(app: FastAPI, service: Service) -> None:
    """The routes that say what there is."""

    @app.get("/v1/models", responses=_listed())
    async def list_models() -> Response:
        """Lists the models, each with its drafts and scorers."""
        return JSONResponse({"object": "list", "data": [_model(each, service) for each in service.models]})

    @app.get("/v1/models/{name:path}", responses=_described({"id": {"type": "string"}}))
    async def retrieve_model(name: str) -> Response:
        """Describes one model."""
        return JSONResponse(_model(service.models.find(name), service))

    @app.get("/v1/methods", responses=_listed())
    async def list_methods() -> Response:
        """Lists the methods and the cache policies that requests may use, with their options."""
        methods = [_entry("method", name) for name in service.models.methods()]
        policies = [_entry("cache_policy", name) for name in service.models.policies()]
        return JSONResponse({"object": "list", "data": methods + policies})


def _add_states(app: FastAPI, service: Service) -> None:
    """The routes for those who watch the server."""
    status = _described({"status": {"type": "string"}})

    @app.get("/health", responses=status)
    async def health() -> Response:
        """Tells that the process answers."""
        return JSONResponse({"status": "ok"})

    @app.get("/ready", responses=status)
    async def ready() -> Response:
        """Tells whether requests are taken: not before everything is loaded and measured, and not while stopping."""
        service.desk.refuse_unready()
        return JSONResponse({"status": "ready"})

    @app.get("/metrics", responses={200: {"content": {"text/plain": {"schema": {"type": "string"}}}}})
    async def metrics() -> Response:
        """Counters for Prometheus."""
        return Response(service.metrics.text(), media_type=TEXT_FORMAT)


def _model(hosted: Hosted, service: Service) -> dict[str, Any]:
    return {
        "id": hosted.name,
        "object": "model",
        "created": hosted.created,
        "owned_by": "outlay",
        "outlay": {
            "fingerprint": hosted.fingerprint,
            "context": hosted.lm.model.decoder.config.max_positions,
            "drafts": list(hosted.drafts),
            "scorers": list(hosted.scorers),
            "method": service.settings.method,
            "chat": hosted.lm.model.tokenizer.has_chat_template,
            "thinks": hosted.tags is not None,
            "tools": hosted.form.name if hosted.form is not None else None,
        },
    }


def _entry(kind: str, name: str) -> dict[str, Any]:
    entry = catalog.find(name)
    about = entry.about
    return {
        "id": name,
        "object": kind,
        "summary": about.summary,
        "family": about.family,
        "exact": about.exact,
        "needs": list(about.needs),
        "takes": list(about.takes),
        "options": [
            {"name": option.name, "type": option.type, "default": option.default, "doc": option.doc}
            for option in catalog.options(entry)
        ],
    }


def _text(hosted: Hosted, tokens: list[int]) -> str:
    return hosted.lm.model.tokenizer.decode(tokens)


def _told(options: StreamOptions | None) -> frozenset[str]:
    if options is None:
        return frozenset()
    wanted = {"usage": options.include_usage, "outlay": options.include_outlay}
    return frozenset(name for name, asked in wanted.items() if asked)


def _answered(kind: str, texts: str) -> dict[int | str, dict[str, Any]]:
    """Returns what the OpenAPI document says of an endpoint that decodes."""
    schema = {
        "type": "object",
        "required": ["id", "object", "model", texts, "usage", "outlay"],
        "properties": {
            "id": {"type": "string"},
            "object": {"const": kind},
            "model": {"type": "string"},
            texts: OBJECTS,
            "usage": {"type": "object"},
            "outlay": {"type": "object", "required": ["method", "finish_reason", "ledger"]},
        },
    }
    stream = {"schema": {"type": "string"}}
    return {
        200: {
            "description": "The answer, whole or as a stream of events.",
            "content": {"application/json": {"schema": schema}, "text/event-stream": stream},
        }
    }


def _listed() -> dict[int | str, dict[str, Any]]:
    return _described({"object": {"const": "list"}, "data": OBJECTS})


def _described(properties: dict[str, Any]) -> dict[int | str, dict[str, Any]]:
    schema = {"type": "object", "required": list(properties), "properties": properties}
    return {200: {"content": {"application/json": {"schema": schema}}}}


async def _tell(request: Request, error: Exception) -> Response:
    told = as_api_error(error)
    return JSONResponse(told.body, told.status, dict(told.headers))


async def _tell_of_field(request: Request, error: Exception) -> Response:
    """Tells of the first field that can't be read."""
    assert isinstance(error, RequestValidationError)
    first = error.errors()[0]
    given = first.get("ctx", {})
    place = [str(part) for part in first["loc"] if part != "body"]
    if first["type"] == "refused":
        param, message = given.get("param") or None, first["msg"]
    elif first["type"] == "json_invalid":
        param, message = None, f"the body is not JSON: {given.get('error', '')}"
    else:
        param = place[0] if place else None
        message = f"{'.'.join(place) or 'the body'}: {first['msg'][:1].lower()}{first['msg'][1:]}"
    return await _tell(request, ApiError(400, message, param=param, code="invalid_value"))


async def _tell_of_route(limits: Limits, request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    if error.status_code == 413:
        return await _tell(request, too_large(limits.body_bytes))
    code = {404: "not_found", 405: "method_not_allowed"}.get(error.status_code)
    messages = {
        404: f"there is nothing at {request.url.path}",
        405: f"{request.url.path} does not take {request.method}",
        400: "the body can't be read as what its content-type says",
    }
    told = ApiError(error.status_code, messages.get(error.status_code, one_line(error)), code=code)
    return JSONResponse(told.body, told.status, {**told.headers, **(error.headers or {})})
