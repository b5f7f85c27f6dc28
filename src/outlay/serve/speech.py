"""`/v1/audio/transcriptions` and `/v1/audio/translations`: recordings as OpenAI's clients send them."""

from __future__ import annotations

import asyncio
import io
import math
import time
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from starlette.datastructures import FormData, UploadFile
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.types import Receive, Scope, Send

from outlay.budget import Budget
from outlay.engine.method import Method
from outlay.errors import UsageError
from outlay.models.audio import read_audio
from outlay.models.languages import name_of
from outlay.models.speech_form import Asked, SpeechForm
from outlay.serve.errors import ApiError, as_api_error
from outlay.serve.gate import send_error
from outlay.serve.hosted import Hosted, Models
from outlay.serve.settings import Settings
from outlay.serve.work import Desk, ended_or_left
from outlay.subtitles import srt, vtt
from outlay.transcripts import Transcript, Transcription

FORMATS = ("json", "text", "srt", "verbose_json", "vtt")
TIMED = ("srt", "verbose_json", "vtt")  # formats that say when something is said
_PROPERTIES: dict[str, dict[str, Any]] = {
    "file": {"type": "string", "format": "binary", "description": "WAV, FLAC, MP3 or OGG."},
    "model": {"type": "string"},
    "language": {"type": "string", "description": "What is spoken, where the model can be told."},
    "response_format": {"type": "string", "enum": list(FORMATS), "default": "json"},
    "temperature": {"type": "number", "minimum": 0, "default": 0},
    "timestamp_granularities[]": {"type": "string", "enum": ["segment"]},
    "method": {"type": "string"},
    "seed": {"type": "integer", "minimum": 0, "maximum": (1 << 31) - 1, "default": 0},
}
FIELDS = tuple(_PROPERTIES)
_SCHEMA = {
    "type": "object",
    "properties": _PROPERTIES,
    "required": ["file", "model"],
    "additionalProperties": False,
}
FORM = {"requestBody": {"required": True, "content": {"multipart/form-data": {"schema": _SCHEMA}}}}
"""What the OpenAPI document says of the body."""
MOST_FIELDS = 16


@dataclass(frozen=True)
class SpeechAsked:
    """What a request asks for."""

    hosted: Hosted
    """The model."""
    data: bytes
    """The recording's file."""
    asked: Asked
    """What is wanted of it."""
    format: str
    """How the transcript is told, one of `FORMATS`."""
    method: Method
    """How to decode."""
    temperature: float
    """The temperature."""
    seed: int
    """Fixes the draws."""


async def ask_speech(request: Request, task: str, models: Models, settings: Settings) -> SpeechAsked:
    """Returns what a request asks.

    Args:
        request: Its body is a form.
        task: "transcribe" or "translate".
        models: What there is.
        settings: The server's.

    Raises:
        ApiError: For what can't be used.
    """
    async with request.form(max_files=1, max_fields=MOST_FIELDS) as form:
        file = form.get("file")
        if not isinstance(file, UploadFile):
            raise ApiError(400, "file: a recording is needed, as a part of multipart/form-data", param="file")
        data = await file.read()
    return _asked(form, data, task, models, settings)


def _asked(form: FormData, data: bytes, task: str, models: Models, settings: Settings) -> SpeechAsked:
    said = {name: value for name, value in form.multi_items() if isinstance(value, str)}
    unknown = next((name for name in form if name not in FIELDS), None)
    if unknown is not None:
        raise ApiError(400, f"{unknown}: not a field of this endpoint; it takes {', '.join(FIELDS)}", param=unknown)
    if "model" not in said:
        raise ApiError(400, "model: a model is needed", param="model")
    hosted = models.find(said["model"])
    speech = hosted.lm.model.speech
    if speech is None:
        raise ApiError(400, f"{hosted.name} hears nothing; give a model of speech", param="model")
    format = said.get("response_format", "json")
    if format not in FORMATS:
        raise ApiError(400, f"response_format is one of {', '.join(FORMATS)}, not {format!r}", param="response_format")
    if said.get("timestamp_granularities[]", "segment") != "segment":
        raise ApiError(400, "timestamp_granularities: segments alone have times here", param="timestamp_granularities")
    temperature, seed = _number(said, "temperature", 0.0), _number(said, "seed", 0.0)
    plain = settings.method or ("greedy" if temperature == 0 else "sample")
    method = models.method(said.get("method", plain), own="method" not in said)
    return SpeechAsked(
        hosted, data, _wanted(said, task, format, speech), format, method, temperature, int(seed),
    )  # fmt: skip


def _wanted(said: Mapping[str, str], task: str, format: str, speech: SpeechForm) -> Asked:
    timed = format in TIMED and speech.prompts is not None and speech.prompts.timestamps is not None
    try:
        asked = Asked(said.get("language"), task, timed)
        speech.check(asked)
    except UsageError as error:
        raise ApiError(400, str(error), param="language" if "language" in said else None) from None
    return asked


def _number(said: Mapping[str, str], name: str, default: float) -> float:
    try:
        value = float(said.get(name, default))
    except ValueError:
        value = math.nan
    if not 0 <= value < 1 << 31:
        raise ApiError(400, f"{name} must be a number from 0 on, not {said[name]!r}", param=name)
    return value


class SpeechWork(Response):
    """The answer to a request with a recording. All is done while it is sent, and ends when the client leaves."""

    def __init__(self, desk: Desk, asked: SpeechAsked) -> None:
        super().__init__()
        self._desk, self._asked = desk, asked

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        facts = scope["outlay"]
        facts |= {"model": self._asked.hosted.name, "method": self._asked.method.label, "stream": False}
        work = asyncio.create_task(self._work(facts))
        await ended_or_left(work, receive, facts, self._desk.metrics)
        if work.cancelled():
            return
        if (error := work.exception()) is not None:
            told = as_api_error(error)
            facts["error"] = told.message
            await send_error(told, send)
            return
        await work.result()(scope, receive, send)

    async def _work(self, facts: dict[str, Any]) -> Response:
        seconds = self._desk.settings.limits.seconds - (time.monotonic() - facts["arrived"])
        async with self._desk.turns.turn(facts["key"], 1, max(seconds, 0.0)):
            loop = asyncio.get_running_loop()
            left = self._desk.settings.limits.seconds - (time.monotonic() - facts["arrived"])
            heard = await loop.run_in_executor(self._desk.pool, partial(self._start, max(left, 0.001)))
            try:
                transcript = await heard.wait()
            finally:
                heard.cancel()
        total = transcript.ledger
        facts |= {"tokens_out": total.tokens_out, "target_passes": total.target_passes}
        return answer_of(transcript, self._asked)

    def _start(self, seconds: float) -> Transcription:
        """Reads the recording and starts its runs."""
        asked = self._asked
        form = asked.hosted.lm.model.speech
        assert form is not None, "the model hears"
        most = self._desk.settings.limits.audio_seconds
        try:
            samples = read_audio(io.BytesIO(asked.data), form.rate, name="file", most=most)
            (heard,) = asked.hosted.lm.start_transcripts(
                [samples], language=asked.asked.language, task=asked.asked.task, timestamps=asked.asked.timestamps,
                method=asked.method, temperature=asked.temperature, seed=asked.seed, budget=Budget(seconds=seconds),
            )  # fmt: skip
        except UsageError as error:
            raise ApiError(400, str(error), param="file", code="invalid_value") from None
        return heard


def answer_of(transcript: Transcript, asked: SpeechAsked) -> Response:
    """Returns a transcript in the form that was asked for."""
    if asked.format == "text":
        return PlainTextResponse(f"{transcript.text}\n")
    if asked.format == "srt":
        return PlainTextResponse(srt(transcript.segments))
    if asked.format == "vtt":
        return PlainTextResponse(vtt(transcript.segments), media_type="text/vtt")
    body: dict[str, Any] = {
        "text": transcript.text,
        "usage": {"type": "duration", "seconds": math.ceil(transcript.seconds)},
        "outlay": {
            "method": asked.method.label,
            "finish_reason": transcript.parts[-1].result.finish_reason,
            "ledger": transcript.ledger.as_dict(),
        },
    }
    if asked.format == "verbose_json":
        body |= {
            "task": asked.asked.task,
            "language": name_of(transcript.language) if transcript.language else None,
            "duration": transcript.seconds,
            "segments": [
                {"id": number, "start": each.start, "end": each.end, "text": each.text, "tokens": each.tokens,
                 "temperature": asked.temperature}
                for number, each in enumerate(transcript.segments)
            ],
        }  # fmt: skip
    return JSONResponse(body)
