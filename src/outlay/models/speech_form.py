"""What a model of speech hears, and what it is told before it writes: the language, the task, whether to note times."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Protocol

from torch import Tensor

from outlay.errors import UsageError, nearest
from outlay.models.fast_conformer import FastConformer, fast_conformer_config
from outlay.models.generation import Timestamps
from outlay.models.languages import NAMES, code_of
from outlay.models.mel import parakeet_mel
from outlay.models.speech import STRIDES, Clip, Convolution, MoonshineStem, Stem, moonshine_frames
from outlay.models.whisper import STRIDE, WhisperStem, whisper_mel

Raw = Mapping[str, Any]
Weights = Callable[[str], Tensor]
"""Returns a tensor of the checkpoint by its name, in float32."""
TASKS = ("transcribe", "translate")


@dataclass(frozen=True)
class Asked:
    """What a listener asks for. Raises `UsageError` for a task that there isn't."""

    language: str | None = None
    """The language that is spoken, by code or English name; None: the model hears which, or has one alone."""
    task: str = "transcribe"
    """`transcribe`: the words in their language; `translate`: in English."""
    timestamps: bool = False
    """Whether the text says when each piece of it is spoken."""

    def __post_init__(self) -> None:
        if self.task not in TASKS:
            raise UsageError(f"a task is {' or '.join(TASKS)}, not {self.task!r}{nearest(self.task, TASKS)}")
        if self.language is not None and not self.language.strip():
            raise UsageError("the language is empty; give a code such as en, or leave it out")


class SpeechPrompts(Protocol):
    """How a model is told what is asked."""

    @property
    def languages(self) -> Mapping[str, int]:
        """The token of each language that is spoken, by code."""
        ...

    @property
    def timestamps(self) -> Timestamps | None:
        """Its timestamps, if it writes any."""
        ...

    @property
    def begin(self) -> tuple[int, ...]:
        """What the decoder starts with where the model is to hear the language; empty where it can't."""
        ...

    def start(self, asked: Asked) -> tuple[int, ...]:
        """Returns what the decoder starts with. Raises `UsageError` for what the model doesn't do."""
        ...


@dataclass(frozen=True, eq=False)
class SpeechForm:
    """What a model of speech hears at once, and how fast speech is."""

    rate: int
    """Samples a second."""
    window: float
    """Seconds of the longest clip; a longer recording is cut."""
    frames: Callable[[int], int]
    """How many frames the encoder reads for a number of samples."""
    stem: Callable[[Weights], Stem]
    """Makes what makes frames."""
    tokens_per_second: float | None = None
    """Tokens of the longest text of a second, a guard against loops; None: the decoder's context is the limit."""
    prompts: SpeechPrompts | None = None
    """How it is told what is asked; None: it does one thing."""
    silent: range = field(default=range(0))
    """Tokens that write no text, whatever the tokenizer's file says of them."""

    def clip(self, samples: Tensor) -> Clip:
        """Returns samples, float32 [n], as what the encoder reads."""
        return Clip(samples, self.frames(len(samples)))

    def check(self, asked: Asked) -> None:
        """Raises `UsageError` for what the model doesn't do."""
        if self.prompts is not None:
            self.prompts.start(asked)
        elif asked != Asked():
            raise UsageError("this model writes down what it hears in its own language, without timestamps; leave out "
                             "language, task and timestamps")  # fmt: skip


@dataclass(frozen=True, eq=False)
class WhisperPrompts:
    """Whisper's prompt (Radford et al. 2022, figure 1): start, language, task, and whether there are timestamps."""

    first: int
    """The token that starts a transcript."""
    languages: Mapping[str, int]
    """The token of each language, by code; empty for a model of English alone."""
    tasks: Mapping[str, int]
    """The token of each task; empty for a model of English alone."""
    timestamps: Timestamps | None
    """Its timestamps; None for an old checkpoint that doesn't say where they are."""

    @property
    def begin(self) -> tuple[int, ...]:
        """What the decoder starts with where the model is to hear the language."""
        return (self.first,) if self.languages else ()

    def start(self, asked: Asked) -> tuple[int, ...]:
        """Returns what the decoder starts with; the language is the model's first where it isn't known yet.

        Raises:
            UsageError: For a language or a task that the model lacks, or timestamps where it has none.
        """
        if asked.timestamps and self.timestamps is None:
            raise UsageError("the model's generation_config.json has no no_timestamps_token_id, so its timestamps are "
                             "not known; leave timestamps out")  # fmt: skip
        said = [self.first]
        if self.languages:
            said += [self._language(asked), self.tasks[asked.task]] if self.tasks else [self._language(asked)]
        elif asked.task != "transcribe" or code_of(asked.language or "en") != "en":
            raise UsageError("this Whisper hears English alone, and translates nothing; leave out language and task")
        if not asked.timestamps and self.timestamps is not None:
            said.append(self.timestamps.none)
        return tuple(said)

    def _language(self, asked: Asked) -> int:
        if asked.language is None:
            return next(iter(self.languages.values()))
        code = code_of(asked.language)
        if code not in self.languages:
            known = ", ".join(self.languages)
            raise UsageError(f"the model knows no language {asked.language!r}; it knows {known}")
        return self.languages[code]


@dataclass(frozen=True, eq=False)
class CanaryPrompts:
    """Canary's multitask prompt: languages of sound and text, and what else is to be written."""

    tokens: Mapping[str, int]
    """The tokenizer's special tokens by what they are called."""
    begin: ClassVar[tuple[int, ...]] = ()
    """It can't hear which language is spoken; that is English where nobody says it."""
    timestamps: ClassVar[None] = None
    """Its timestamps are not read."""

    @property
    def languages(self) -> Mapping[str, int]:
        """The token of each language that is spoken, by code."""
        named = {code: self.tokens.get(f"<|{code}|>") for code in NAMES}
        return {code: token for code, token in named.items() if token is not None}

    def start(self, asked: Asked) -> tuple[int, ...]:
        """Returns what the decoder starts with: punctuation is asked for, numbers are left as words.

        Raises:
            UsageError: For a language that the model lacks, timestamps, and a tokenizer without these tokens.
        """
        if asked.timestamps:
            raise UsageError("the timestamps of Canary are not read here; leave timestamps out")
        code = code_of(asked.language or "en")
        for each in (code, "en") if asked.task == "translate" else (code,):
            if each not in self.languages:
                raise UsageError(f"the model knows no language {each!r}; it knows {', '.join(self.languages)}")
        spoken, written = f"<|{code}|>", "<|en|>" if asked.task == "translate" else f"<|{code}|>"
        names = [*CANARY_BEGIN, spoken, written, *CANARY_END]
        missing = next((name for name in names if name not in self.tokens), None)
        if missing is not None:
            raise UsageError(f"the tokenizer of this Canary has no token {missing}, which its prompt takes")
        return tuple(self.tokens[name] for name in names)


CANARY_BEGIN = ("<|startofcontext|>", "<|startoftranscript|>", "<|emo:undefined|>")
CANARY_END = ("<|pnc|>", "<|noitn|>", "<|notimestamp|>", "<|nodiarize|>")
CANARY_SECONDS = 40.0  # of the longest clips that it was trained on


def speech_form(
    raw: Raw, extractor: Raw, generation: Raw, special: Callable[[], Mapping[str, int]]
) -> SpeechForm | None:
    """Returns what the model of a folder hears; None for a model that hears nothing.

    Args:
        raw: the content of `config.json`.
        extractor: the content of `preprocessor_config.json`; empty where there is none.
        generation: the content of `generation_config.json`; empty where there is none.
        special: returns the tokenizer's special tokens by what they are called.

    Raises:
        UsageError: for what doesn't run here.
    """
    if raw.get("model_type") == "canary":
        return _canary(raw, extractor, special())
    make = SPEECH.get(str(raw.get("model_type")))
    try:
        return None if make is None else make(raw, extractor, generation)
    except (TypeError, ValueError, AttributeError) as error:
        if isinstance(error, UsageError):
            raise
        raise UsageError(
            f"the model's preprocessor or generation config has a value of the wrong type: {error}"
        ) from None


def _moonshine(raw: Raw, extractor: Raw, generation: Raw) -> SpeechForm:
    return SpeechForm(16000, 30.0, moonshine_frames, _moonshine_stem, tokens_per_second=6.5)


def _moonshine_stem(weights: Weights) -> Stem:
    convolutions = [
        Convolution(
            weights(f"model.encoder.conv{number}.weight"),
            weights(f"model.encoder.conv{number}.bias") if number > 1 else None,
            stride,
        )
        for number, stride in enumerate(STRIDES, 1)
    ]
    norm = (weights(f"model.encoder.groupnorm.{kind}") for kind in ("weight", "bias"))
    return MoonshineStem(convolutions, *norm)


def _whisper(raw: Raw, extractor: Raw, generation: Raw) -> SpeechForm:
    mel = whisper_mel(raw, extractor)
    frames = math.ceil(mel.samples // mel.hop / STRIDE)

    def stem(weights: Weights) -> Stem:
        first, second = (
            Convolution(
                weights(f"model.encoder.conv{stride}.weight"), weights(f"model.encoder.conv{stride}.bias"), stride, 1
            )
            for stride in (1, STRIDE)
        )
        return WhisperStem(mel, first, second)

    none = generation.get("no_timestamps_token_id")
    times = None
    if none is not None:
        step = STRIDE * mel.hop / mel.rate
        times = Timestamps(none + 1, generation.get("max_initial_timestamp_index"), step)
    several = generation.get("is_multilingual", True)
    languages = generation.get("lang_to_id") or {} if several else {}
    prompts = WhisperPrompts(
        generation.get("decoder_start_token_id", raw["decoder_start_token_id"]),
        {name.strip("<|>"): token for name, token in languages.items()},
        dict(generation.get("task_to_id") or {}) if several else {},
        times,
    )
    return SpeechForm(
        mel.rate,
        mel.samples / mel.rate,
        lambda samples: frames if samples else 0,
        stem,
        prompts=prompts,
        silent=range(0) if times is None else range(times.first, raw["vocab_size"]),
    )


def _canary(raw: Raw, extractor: Raw, special: Mapping[str, int]) -> SpeechForm:
    shape = fast_conformer_config(raw["encoder_config"])
    mel = parakeet_mel(shape.bands, extractor)

    def frames(samples: int) -> int:
        return shape.frames(mel.frames(samples)) if mel.frames(samples) > 1 else 0  # a norm takes two

    return SpeechForm(
        mel.rate, CANARY_SECONDS, frames, lambda weights: FastConformer(shape, mel, weights, "model.encoder."),
        prompts=CanaryPrompts(special),
    )  # fmt: skip


SPEECH: dict[str, Callable[[Raw, Raw, Raw], SpeechForm]] = {"moonshine": _moonshine, "whisper": _whisper}
