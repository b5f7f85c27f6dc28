"""What is said in a recording: its clips as runs of a model of speech, and their texts put together."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, ClassVar

from torch import Tensor

from outlay.budget import Ledger
from outlay.engine.handle import Handle, Result
from outlay.engine.method import About, Method, Work
from outlay.engine.tree_run import TreeRun
from outlay.errors import UsageError
from outlay.models.audio import cut
from outlay.models.generation import Timestamps
from outlay.models.languages import code_of
from outlay.models.load import Model
from outlay.models.speech import Clip
from outlay.models.speech_form import Asked, SpeechForm
from outlay.models.tokenizer import Tokenizer
from outlay.tree.memory import EncoderOutput


@dataclass(frozen=True)
class Segment:
    """A piece of a transcript."""

    start: float
    """Seconds from the beginning of the recording."""
    end: float
    """Seconds from the beginning of the recording."""
    text: str
    """What is said."""
    tokens: list[int]
    """Its tokens, without timestamps and the end token."""


@dataclass(frozen=True)
class Part:
    """A clip of a recording, with what is said in it."""

    start: float
    """Seconds from the beginning of the recording."""
    end: float
    """Seconds from the beginning of the recording."""
    result: Result
    """Its run."""
    segments: tuple[Segment, ...]
    """Its pieces: one, where the text has no timestamps."""


@dataclass(frozen=True)
class Transcript:
    """What is said in a recording."""

    parts: tuple[Part, ...]
    """Its clips, in order."""
    language: str | None = None
    """The code of the language that is spoken, as asked for or heard; None where nothing tells."""
    hearing: Ledger = field(default_factory=Ledger)
    """What hearing the language cost."""

    @cached_property
    def text(self) -> str:
        """The text of all parts."""
        return " ".join(text for part in self.parts if (text := part.result.text.strip()))

    @property
    def segments(self) -> list[Segment]:
        """The pieces of all parts."""
        return [segment for part in self.parts for segment in part.segments]

    @property
    def seconds(self) -> float:
        """Seconds of the recording."""
        return self.parts[-1].end

    @property
    def tokens(self) -> list[int]:
        """The tokens of all parts."""
        return [token for part in self.parts for token in part.result.tokens]

    @property
    def ledger(self) -> Ledger:
        """What all parts spent, in the seconds of the longest, since they run side by side."""
        total = sum((part.result.ledger for part in self.parts), start=self.hearing)
        total.seconds = self.hearing.seconds + max(part.result.ledger.seconds for part in self.parts)
        return total


@dataclass(frozen=True)
class HeardLanguage:
    """The language that is spoken in a recording."""

    code: str
    """Its code."""
    ledger: Ledger
    """What hearing it cost."""
    output: EncoderOutput
    """What the encoder made of the first clip, which is not read again as long as somebody has this."""


class Transcription:
    """A transcript that is being written: iterate over its texts, one for each clip as it ends, or ask for `result`."""

    def __init__(
        self,
        clips: Sequence[tuple[float, float]],
        handles: Sequence[Handle],
        tokenizer: Tokenizer,
        times: Timestamps | None,
        language: str | None,
        heard: HeardLanguage | None,
    ) -> None:
        """Takes over runs.

        Args:
            clips: The first and the last second of each clip.
            handles: Their runs.
            tokenizer: The model's.
            times: The timestamps of the texts; None where they have none.
            language: The code of the language, as far as it is known.
            heard: How that was found, if it was.
        """
        self._clips, self._handles, self._heard = clips, handles, heard
        self._tokenizer, self._times, self._language = tokenizer, times, language

    def __iter__(self) -> Iterator[str]:
        return (part.result.text.strip() for part in self.parts())

    def parts(self) -> Iterator[Part]:
        """Yields each clip as it ends."""
        for (start, end), handle in zip(self._clips, self._handles, strict=True):
            result = handle.result()
            segments = segments_of(result.tokens, self._times, start, end, self._tokenizer)
            yield Part(start, end, result, tuple(segments))

    async def wait(self) -> Transcript:
        """As `result`, without blocking the event loop."""
        for handle in self._handles:
            await handle.wait()
        return self.result

    def cancel(self) -> None:
        """Ends its runs; their results hold the texts so far."""
        for handle in self._handles:
            handle.cancel()

    @property
    def result(self) -> Transcript:
        """Waits for the end of all clips and returns the transcript."""
        cost = Ledger() if self._heard is None else self._heard.ledger
        return Transcript(tuple(self.parts()), self._language, cost)


def segments_of(
    tokens: Sequence[int], times: Timestamps | None, start: float, end: float, tokenizer: Tokenizer
) -> list[Segment]:
    """Cuts a clip's text at its timestamps.

    Args:
        tokens: The text.
        times: Its timestamps; None where it has none.
        start: The second at which the clip begins.
        end: The second at which it ends, as does what has no timestamp behind it.
        tokenizer: The model's.
    """
    found: list[Segment] = []
    since, words = start, list[int]()

    def close(until: float) -> None:
        text = tokenizer.decode(words).strip()
        if text:
            found.append(Segment(since, until, text, [*words]))
        words.clear()

    for token in tokens:
        if times is not None and token >= times.first:
            at = min(end, start + (token - times.first) * times.step)
            close(at)
            since = at
        elif token not in tokenizer.special_token_ids:
            words.append(token)
    close(end)
    return found


@dataclass(frozen=True, eq=False)
class HearLanguage(Method):
    """Writes nothing: finds the language that is the most probable first token (Radford et al. 2022, section 2.3)."""

    languages: Mapping[str, int]
    """The tokens of languages, by code."""
    found: list[tuple[str, EncoderOutput]]
    """Where the language goes, with what the encoder read."""

    about: ClassVar[About] = About(
        name="hear_language",
        summary="the language that is spoken",
        paper="",
        family="speech",
        spends="a pass of the encoder and one of the decoder",
        saves="nothing",
    )

    def decode(self, run: TreeRun) -> Work:
        logits = yield run.target.forward([run.tip])
        memory = run.target.memory
        assert memory is not None, "the encoder was read before the first pass"
        assert memory.output is not None, "the encoder was read before the first pass"
        tokens = list(self.languages.values())
        self.found.append((list(self.languages)[int(logits[0][tokens].argmax())], memory.output))


def clips_of(samples: Tensor, form: SpeechForm, name: str) -> list[tuple[tuple[float, float], Clip]]:
    """Cuts a recording into clips of a model's window.

    Args:
        samples: float32 [n] at the model's rate.
        form: what the model hears at once.
        name: what an error calls the recording.

    Returns:
        Each clip with its first and its last second.

    Raises:
        UsageError: for a recording that is too short to make one frame.
    """
    found = []
    for begin, end in cut(samples, form.rate, form.window):
        clip = form.clip(samples[begin:end])
        if clip:
            found.append(((begin / form.rate, end / form.rate), clip))
    if not found:
        raise UsageError(f"{name} is too short: {len(samples) / form.rate:.3f} seconds hold no word")
    return found


def transcribe(
    model: Model,
    recordings: Sequence[tuple[str, Tensor]],
    asked: Asked,
    submit: Callable[..., Handle],
    together: Callable[[], AbstractContextManager[Any]],
    traces: Callable[[int], Callable[[dict[str, Any]], None]] | None = None,
    **options: Any,
) -> list[Transcription]:
    """Starts the runs of several recordings, and waits for the languages that are spoken if nobody says them.

    Args:
        model: A model of speech.
        recordings: The name and the samples of each, float32 [n] at the model's rate.
        asked: What is wanted of them.
        submit: Starts the run of a clip.
        together: A context in which runs are started side by side.
        traces: Gives what is called with each event of a clip's run, for its number among those of all recordings.
        **options: Options of each run. `max_tokens` is by default what can be said in that time.

    Raises:
        UsageError: For what the model doesn't do, and a recording that is too short.
    """
    form = model.speech
    assert form is not None, "the model hears"
    form.check(asked)
    cuts = [clips_of(samples, form, name) for name, samples in recordings]
    heard: list[HeardLanguage | None] = [None] * len(cuts)
    if asked.language is None and form.prompts is not None and form.prompts.begin:
        heard = list(_hear_languages(model, form.prompts.languages, form.prompts.begin, cuts, submit, together))
    numbers = itertools.count()

    def start(clip: Clip, **own: Any) -> Handle:
        return submit(clip, **own, **({} if traces is None else {"trace": traces(next(numbers))}))

    with together():
        return [
            _start(model, form, clips, asked if language is None else replace(asked, language=language.code),
                   start, language, options)
            for clips, language in zip(cuts, heard, strict=True)
        ]  # fmt: skip


Clips = Sequence[tuple[tuple[float, float], Clip]]


def _start(
    model: Model,
    form: SpeechForm,
    clips: Clips,
    asked: Asked,
    submit: Callable[..., Handle],
    heard: HeardLanguage | None,
    options: Mapping[str, Any],
) -> Transcription:
    """Starts the runs of a recording's clips."""
    rules, times, language = model.rules, None, None
    assert rules is not None, "a model with an encoder has rules"
    if form.prompts is not None:
        times = form.prompts.timestamps if asked.timestamps else None
        rules = replace(rules, start=form.prompts.start(asked), timestamps=times)
        language = code_of(asked.language or "en")
    room = model.decoder.config.max_positions - len(rules.start)
    handles = []
    for (start, end), clip in clips:
        speech = form.tokens_per_second
        most = room if speech is None else max(1, int((end - start) * speech))
        handles.append(submit(clip, rules=rules, **{"max_tokens": most, **options}))
    return Transcription([times for times, _ in clips], handles, model.tokenizer, times, language, heard)


def _hear_languages(
    model: Model,
    languages: Mapping[str, int],
    begin: tuple[int, ...],
    cuts: Sequence[Clips],
    submit: Callable[..., Handle],
    together: Callable[[], AbstractContextManager[Any]],
) -> Iterator[HeardLanguage]:
    """Yields the language of each recording, as its first clip tells."""
    assert model.rules is not None, "a model with an encoder has rules"
    rules = replace(model.rules, start=begin)
    found: list[list[tuple[str, EncoderOutput]]] = [[] for _ in cuts]
    with together():
        handles = [
            submit(clips[0][1], method=HearLanguage(languages, into), rules=rules, max_tokens=1)
            for clips, into in zip(cuts, found, strict=True)
        ]
    for handle, into in zip(handles, found, strict=True):
        ledger = handle.result().ledger
        yield HeardLanguage(into[0][0], ledger, into[0][1])
