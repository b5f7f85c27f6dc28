"""`/v1/audio/transcriptions` and `/v1/audio/translations` by the official client, over a tiny random Whisper."""

from __future__ import annotations

import io

import openai
import pytest
import soundfile
from models.test_whisper import made, sounds
from serve.running import start
from serve.test_document import fuzz
from serve.test_safety import ask

from outlay.models.audio import read_audio
from outlay.serve.settings import Limits

RATE = 16000


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whisper")
    made(folder)
    running = start({"ears": folder}, limits=Limits(body_bytes=200_000, audio_seconds=5))
    yield running
    running.stop()


@pytest.fixture(scope="module")
def audio(server):
    return openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0).audio


def recording(sound, kind="WAV") -> tuple[str, bytes]:
    file = io.BytesIO()
    soundfile.write(file, sound.numpy(), RATE, format=kind)
    return f"talk.{kind.lower()}", file.getvalue()


def heard(server, sound, **asked):
    """What the model writes where nobody serves it."""
    samples = read_audio(io.BytesIO(recording(sound)[1]), RATE)
    return server.service.models.find("ears").lm.transcribe(samples, **asked)


def test_json_and_text_are_the_transcript(audio, server):
    sound = sounds()[1]
    wanted = heard(server, sound, language="de")
    told = audio.transcriptions.create(file=recording(sound), model="ears", language="de")
    assert told.text == wanted.text
    assert told.usage.seconds == 1
    assert told.outlay["ledger"]["encoder_passes"] == 1
    assert audio.transcriptions.create(
        file=recording(sound, "FLAC"), model="ears", language="de", response_format="text"
    ) == f"{wanted.text}\n"  # fmt: skip


def test_the_language_is_heard_where_nobody_says_it_and_segments_have_their_times(audio, server):
    sound = sounds()[1]
    wanted = heard(server, sound, timestamps=True)
    told = audio.transcriptions.create(file=recording(sound), model="ears", response_format="verbose_json")
    assert (told.text, told.duration) == (wanted.text, 1.0)
    assert told.language in ("english", "german", "french")
    assert [(each.start, each.end, each.text) for each in told.segments] == [
        (each.start, each.end, each.text) for each in wanted.segments
    ]
    assert told.segments


def test_subtitles_of_both_kinds(audio, server):
    sound = sounds()[1]
    segments = heard(server, sound, language="en", timestamps=True).segments
    how = {"file": recording(sound), "model": "ears", "language": "en"}
    numbered = audio.transcriptions.create(**how, response_format="srt")
    assert numbered.startswith("1\n00:00:00,")
    assert numbered.count(" --> ") == len(segments)
    web = audio.transcriptions.create(**how, response_format="vtt")
    assert web.startswith("WEBVTT\n\n00:00:00.")
    assert all(each.text in web for each in segments)


def test_a_translation_is_one(audio, server):
    sound = sounds()[0]
    told = audio.translations.create(file=recording(sound), model="ears")
    assert told.text == heard(server, sound, task="translate").text


def test_what_cannot_be_used_is_refused_in_one_line(audio):
    good = recording(sounds()[0])
    for options, said in [
        ({"language": "klingon"}, "knows no language 'klingon'"),
        ({"response_format": "pdf"}, "response_format is one of json"),
        ({"file": ("talk.wav", b"no sound at all")}, "file is no recording that can be read"),
        ({"file": recording(sounds()[0] * 0)}, "file holds no sound"),
        ({"file": recording(sounds()[1].repeat(6), "FLAC")}, "file lasts 6 seconds; at most 5 are read"),
        ({"prompt": "names"}, "prompt: not a field of this endpoint"),
        ({"temperature": -1}, "temperature must be a number from 0 on"),
        ({"extra_body": {"method": "swoosh"}}, "swoosh"),
        ({"timestamp_granularities": ["word"]}, "segments alone have times"),
    ]:
        with pytest.raises(openai.BadRequestError, match=said):
            audio.transcriptions.create(**({"file": good, "model": "ears", "language": "en"} | options))
    with pytest.raises(openai.NotFoundError, match="there is no model 'eyes'"):
        audio.transcriptions.create(file=good, model="eyes")


def test_a_body_that_is_too_large_or_no_form_is_refused(server, audio):
    with pytest.raises(openai.APIStatusError, match="the body has more than 200000 bytes"):
        audio.transcriptions.create(file=recording(sounds()[1].repeat(8)), model="ears")
    status, _, body = ask(server, "/v1/audio/transcriptions", {"model": "ears"})
    assert status == 400
    assert "file: a recording is needed" in body["error"]["message"]
    status, _, body = ask(
        server, "/v1/audio/transcriptions", b"--x\r\nno form", content_type="multipart/form-data; boundary=x"
    )
    assert status == 400
    assert body["error"]["message"]


@pytest.mark.parametrize("per_operation", [3, pytest.param(100, marks=pytest.mark.slow)])
def test_fuzzed_forms_get_a_clear_refusal_or_an_answer(server, per_operation):
    found = fuzz(server, per_operation, "ears", "/v1/audio/.*")
    assert len(found) == 4
    assert all(statuses.total() >= per_operation for statuses in found.values())
    assert server.idle()
