"""What most users hold: a loaded language model that answers prompts under any method."""

from __future__ import annotations

import itertools
import warnings
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeGuard

import torch

from outlay import catalog, kernels
from outlay.attend.policy import CachePolicy
from outlay.budget import Budget
from outlay.constrain import Compiled, constraint_of
from outlay.constrain.constraint import compile_constraint
from outlay.decode.greedy import Greedy
from outlay.decode.sample import Sample
from outlay.diffuse.exact import DENOISERS, exact_model, is_exact
from outlay.diffuse.threshold import Threshold
from outlay.drafts import default_draft, model_draft, refuse_other_tokens, resolve
from outlay.engine.choices import joined
from outlay.engine.engine import Engine
from outlay.engine.handle import Handle, Result
from outlay.engine.held_prefix import HeldPrefix
from outlay.engine.method import Method
from outlay.engine.passes import runs_whole
from outlay.engine.sampling import Sampling
from outlay.engine.submission import DraftSource, RunOptions, Submission
from outlay.errors import OutlayError, OutlayWarning, UsageError, nearest
from outlay.image_prompts import ImageSource, chat_ids, ids_with, refuse_images, text_ids, with_images
from outlay.models.audio import at_rate, read_audio
from outlay.models.chat import Tools
from outlay.models.content import content_of
from outlay.models.generation import GenerationRules
from outlay.models.images import ImagePrompt, placed_in
from outlay.models.load import Model, load_model
from outlay.models.speech import Clip
from outlay.models.speech_form import Asked
from outlay.prompt_tree import Part, PromptTree
from outlay.rewards import resolve as scorers
from outlay.shared_prefix import SharedPrefix
from outlay.transcripts import Transcript, Transcription, transcribe
from outlay.tree.cache import KV_DTYPES

Sound = str | Path | Sequence[float] | torch.Tensor
Prompt = str | Sequence[Mapping[str, Any]] | Sequence[int]
MAX_TOKENS = 256
ENCODING = ("images", "chat", "special_tokens", "tools", "template", "continue_final_message")  # options of `LM.encode`
SHOWN = 5  # characters that a warning names


class Stream:
    """The pieces of a text as they come: iterate over it, with `for` or `async for`. `result` is there at the end."""

    def __init__(self, handle: Handle) -> None:
        self._handle = handle

    def __iter__(self) -> Iterator[str]:
        return iter(self._handle)

    def __aiter__(self) -> AsyncIterator[str]:
        return self._handle.__aiter__()

    def cancel(self) -> None:
        """Ends the run; its result holds the text so far."""
        self._handle.cancel()

    @property
    def result(self) -> Result:
        """Waits for the end of the run and returns its result."""
        return self._handle.result()


class LM:
    """A language model with an engine. Every method of this class may be called from any thread.

    A prompt is a string, a list of chat messages as OpenAI's clients send them (`{"role": ..., "content": ...}`) or a
    list of token ids. A string is one message of a user when the model has a chat template, unless `chat=False`; then,
    and without a template, it is the beginning of the text. Images come as parts of messages or with `images=`.
    """

    def __init__(self, model: Model, engine: Engine) -> None:
        self.model, self.engine = model, engine
        self._drafts: dict[str, DraftSource | None] = {}
        self._models: dict[str, Model] = {}
        self._scorers: dict[str, Any] = {}

    @property
    def name(self) -> str:
        """The model's name."""
        return self.model.name

    @property
    def usual_method(self) -> str:
        """The method to choose where nobody names one: `auto`, or `threshold` for a model that fills masks."""
        return Threshold.about.name if self.model.writes_canvas else "auto"

    def encode(
        self,
        prompt: Prompt,
        *,
        images: Sequence[ImageSource] = (),
        chat: bool = True,
        special_tokens: bool = False,
        tools: Tools | None = None,
        template: Mapping[str, Any] | None = None,
        continue_final_message: bool = False,
        strict: bool = False,
    ) -> list[int]:
        """Returns the token ids of a prompt. What the user wrote is text: special tokens come from the template alone.

        Args:
            prompt: a string, chat messages as OpenAI's clients send them, or token ids, which are returned as they are.
            images: files, bytes, arrays, tensors or Pillow images. They take the places of image parts without an image
                and of image tokens, in order; where there are none, they go before the text of the last user message.
            chat: whether a string is one message of a user, where the model has a chat template.
            special_tokens: whether special tokens that are spelled out in a string outside a chat are special tokens.
            tools: the functions that the model may call, as OpenAI's clients send them, for the chat template.
            template: values of the chat template's own switches, such as `enable_thinking`.
            continue_final_message: whether the prompt ends inside the last message, which is the assistant's.
            strict: whether characters that the model has no token for are refused; a warning names them otherwise.

        Returns:
            The ids; an `ImagePrompt` where the prompt has images, which is a prompt with its images.

        Raises:
            UsageError: For a prompt that is empty or can't be read, or that the chat template has no place for, and for
                images that are none, that are not as many as their places, or that the model can't see.
        """
        vision = self.model.vision
        if images and vision is None:
            refuse_images(self.name)
        if not isinstance(prompt, str) and prompt and are_tokens(prompt):
            if images and vision is not None:
                return ids_with(vision, prompt, images)
            return prompt if isinstance(prompt, ImagePrompt) else list(prompt)
        tokenizer, messages = self.model.tokenizer, self._messages(prompt, chat)
        if messages is not None:
            messages, found = with_images(messages, images)
            if found and vision is None:
                refuse_images(self.name)
            text = tokenizer.chat_text(
                messages, tools=tools, switches=template, continue_final_message=continue_final_message
            )
            self._look_at(content_of(text), strict)
            if vision is not None:
                return chat_ids(vision, tokenizer, text, found)
            return tokenizer.encode(text, special=True)
        if tools or template or continue_final_message:
            raise UsageError("tools, template and continue_final_message are for a chat; give messages, or chat=True")
        assert isinstance(prompt, str)
        self._look_at(prompt, strict)
        if self.model.encoder is not None:
            return tokenizer.encode_input(prompt, special=special_tokens)
        if vision is not None:
            return text_ids(vision, tokenizer, prompt, images, special_tokens)
        return tokenizer.encode_prompt(prompt, special=special_tokens)

    def _messages(self, prompt: Prompt, chat: bool) -> Sequence[Mapping[str, Any]] | None:
        """Returns the conversation that a prompt is; None where it is a text to go on with."""
        if not prompt or (isinstance(prompt, str) and not prompt.strip()):
            raise UsageError("the prompt is empty; give it some text, messages or token ids")
        if isinstance(prompt, str):
            in_chat = chat and self.model.tokenizer.has_chat_template
            return [{"role": "user", "content": prompt}] if in_chat else None
        messages = [part for part in prompt if isinstance(part, Mapping)]
        if len(messages) < len(prompt):
            raise UsageError("a prompt is a string, a list of chat messages or a list of token ids")
        return messages

    def _look_at(self, text: str, strict: bool) -> None:
        """Refuses half characters; warns of characters that the model has no token for, or refuses them too."""
        half = next((letter for letter in text if "\ud800" <= letter <= "\udfff"), None)
        if half is not None:
            raise UsageError(f"the prompt has half a character (U+{ord(half):04X}), which is no text")
        unreadable = self.model.tokenizer.unreadable(text)
        if not unreadable:
            return
        shown = ", ".join(f"{letter!a} (U+{ord(letter):04X})" for letter in unreadable[:SHOWN])
        more = f" and {len(unreadable) - SHOWN} more" if len(unreadable) > SHOWN else ""
        fact = f"{self.name} has no tokens for {shown}{more}"
        if strict:
            raise UsageError(f"{fact}; leave them out of the prompt")
        warnings.warn(f"{fact}; it reads the prompt without", OutlayWarning, stacklevel=3)

    def submit(
        self,
        prompt: Prompt | PromptTree | Clip,
        *,
        images: Sequence[ImageSource] = (),
        method: str | Method | None = None,
        draft: str | Model | LM | DraftSource | None = None,
        scorer: Any = None,
        constraint: Any = None,
        cache: str | CachePolicy | None = None,
        budget: Budget | None = None,
        seed: int = 0,
        max_tokens: int | None = None,
        temperature: float = 0.0,
        top_k: int | None = None,
        top_p: float | None = None,
        min_p: float | None = None,
        repetition_penalty: float = 1.0,
        presence_penalty: float = 0.0,
        frequency_penalty: float = 0.0,
        logit_bias: Mapping[int, float] | None = None,
        stop: str | Sequence[str] = (),
        ignore_eos: bool = False,
        logprobs: int | None = None,
        chat: bool = True,
        special_tokens: bool = False,
        tools: Tools | None = None,
        template: Mapping[str, Any] | None = None,
        continue_final_message: bool = False,
        question: str = "",
        receipt: bool = False,
        prefix: HeldPrefix | None = None,
        rules: GenerationRules | None = None,
        trace: Callable[[dict[str, Any]], None] | None = None,
    ) -> Handle:
        """Starts a run and returns its handle at once; see `generate` for the arguments.

        `prefix` is what is held of the prompt's beginning: `SharedPrefix` gives it. `rules` hold in place of those of
        an encoder-decoder's checkpoint, and say what its decoder starts with.
        """
        penalties = repetition_penalty, presence_penalty, frequency_penalty
        sampling = Sampling(temperature, top_k, top_p, min_p, *penalties, dict(logit_bias or {}))
        stops = (stop,) if isinstance(stop, str) else tuple(stop)
        self._check(max_tokens, logprobs, sampling, stops)
        chosen, policy = self._chosen(method, cache, temperature)
        if receipt:
            self._check_receipt(scorer, constraint, budget)
        encoded = self._encode_each(
            prompt, receipt, images=images, chat=chat, special_tokens=special_tokens, tools=tools, template=template,
            continue_final_message=continue_final_message,
        )  # fmt: skip
        length = self._default_length(max(map(len, encoded))) if max_tokens is None else max_tokens
        options = RunOptions(length, sampling, stops, budget or Budget(), seed, logprobs, ignore_eos, receipt)
        options.budget.check(chosen.about.name, _counts(chosen, policy))
        submission = Submission(
            self.model, options=options, constraint=self._compiled(constraint, chosen), draft=self.draft(draft, chosen),
            scorer=self.scorer(scorer), models=self._named_models(chosen), scorers=self._named_scorers(chosen),
            question=question or question_of(prompt), prefix=prefix, rules=rules, cache=policy,
            **_read_by_run(prompt, encoded, rules or self.model.rules),
        )  # fmt: skip
        return self.engine.submit(chosen, submission, trace=trace)

    def submit_choices(
        self,
        prompt: Prompt | PromptTree,
        n: int,
        *,
        seed: int = 0,
        traces: Sequence[Callable[[dict[str, Any]], None]] = (),
        **options: Any,
    ) -> list[Handle]:
        """Starts `n` samples of one prompt, which is computed once for all of them, and returns their handles.

        Each is the run of its own seed, and has the text, the ledger and the budget that this run has alone. What the
        samples share is the prompt up to its last token, by the prefix cache.

        Args:
            prompt: The prompt, as for `generate`.
            n: How many samples.
            seed: The seed of the first; the others have those that follow.
            traces: For each sample, what is called with each event of its run.
            **options: The other options of `submit`.

        Raises:
            UsageError: Where n is below 1, or above 1 at temperature 0, where all texts would be the same.
        """
        if n < 1:
            raise UsageError(f"n must be 1 or more, not {n}")
        if n > 1 and not options.get("temperature"):
            raise UsageError("n samples differ only at a temperature above 0; try temperature=0.8")
        if n > 1 and options.get("trace") is not None:
            raise UsageError("trace follows one run; give submit_choices a function for each of n in traces")
        if isinstance(prompt, PromptTree):
            if n > 1:
                raise UsageError("hydragen:n=... says how many texts each prompt of a tree gets; leave n at 1")
            one: dict[str, Any] = {"trace": traces[0]} if traces else {}
            return [self.submit(prompt, seed=seed, **options, **one)]
        encoding = {name: options.pop(name) for name in ENCODING if name in options}
        tokens = self.encode(prompt, **encoding)
        asked = {"question": question_of(prompt)}
        tracing: list[dict[str, Any]] = [{"trace": trace} for trace in traces] or [{}] * n
        return self._submit_together(
            [{"prompt": tokens, "seed": seed + place, **asked, **options, **tracing[place]} for place in range(n)]
        )

    def generate(self, prompt: Prompt | PromptTree, *, n: int = 1, **options: Any) -> Result:
        """Answers a prompt and returns the result.

        **Arguments:** `method` is a name, with options if need be (`"beam:width=8"`), or a method object; by default
        `greedy` at temperature 0 and `sample` above, and `threshold` for models that fill masks on a canvas. `draft` is
        a model that methods may ask for drafts; `scorer` is for methods that take one. `constraint` is what the text
        must satisfy: an object of `outlay.constrain`, a dict (a JSON Schema), or "json", "regex:PATTERN",
        "schema:FILE", "grammar:FILE", "python:FILE". `cache` is a policy that says what each layer keeps, by name
        (`"zipvl:tau=0.96"`) or as an object. `budget` caps what is spent. `seed` fixes every random draw.
        `max_tokens` (256) counts new tokens. `temperature` (0), `top_k`, `top_p`, `min_p`, `repetition_penalty`,
        `logit_bias` have the meaning of `transformers`, `presence_penalty` and `frequency_penalty` that of OpenAI, over
        the text written so far. `n` samples with the seeds from `seed` on become the result's `alternatives`, the first
        of which is its text; a budget holds for each, and the ledger is that of all. `stop`: strings that end the text,
        which is cut before them. `ignore_eos` goes on past end tokens. `logprobs`: how many of the most probable tokens
        to report for each token.
        `receipt` asks for a receipt, with which `outlay replay` makes the same logits again on any machine.
        `chat`, `special_tokens`, `tools`, `template` and `continue_final_message` say how the
        prompt is read (`encode`). `question` is what a scorer is told that the prompt asks, the last message of a user
        by default. `images` are what a model with a vision tower sees: files, bytes, arrays, tensors or Pillow images,
        which take the places that the prompt has for them, or go before its text. `trace` is called with each event of
        the run. A `PromptTree` gets texts for each of its leaves, by a method that takes one (`hydragen`).

        Raises `UsageError` for an argument that can't be used and `FailureError` where the run fails.
        """
        handles = self.submit_choices(prompt, n, **options)
        try:
            return joined([handle.result() for handle in handles])
        except BaseException:
            for handle in handles:
                handle.cancel()
            raise

    def generate_batch(self, prompts: Sequence[Prompt], *, n: int = 1, **options: Any) -> list[Result]:
        """Answers several prompts together; each gets what it would get alone. The options are those of `generate`.

        `images` is a list of images for each prompt.

        Raises `QueueFull` for more prompts than the engine takes, and runs none of them.
        """
        encoding = {name: options.pop(name) for name in ENCODING if name in options}
        seen = encoding.pop("images", None) or [()] * len(prompts)
        if len(seen) != len(prompts):
            raise UsageError(f"images has {len(seen)} lists for {len(prompts)} prompts; give one for each prompt")
        encoded = [self.encode(prompt, images=images, **encoding) for prompt, images in zip(prompts, seen, strict=True)]
        asked: list[list[Handle]] = []
        with self.engine.together():
            try:
                for tokens, prompt in zip(encoded, prompts, strict=True):
                    asked.append(self.submit_choices(tokens, n, **({"question": question_of(prompt)} | options)))
            except OutlayError:
                for handle in itertools.chain(*asked):
                    handle.cancel()
                raise
        return [joined([handle.result() for handle in handles]) for handles in asked]

    def shared(self, prefix: Part, **options: Any) -> SharedPrefix:
        """Computes a prefix once and holds it: `with lm.shared(document) as p: p.generate(question)`.

        The arguments are those of `SharedPrefix`.
        """
        return SharedPrefix(self, prefix, **options)

    def _submit_together(self, submissions: Sequence[Mapping[str, Any]]) -> list[Handle]:
        """Starts runs in the same tick, or none of them where one is refused. Each is the arguments of `submit`."""
        handles: list[Handle] = []
        with self.engine.together():
            try:
                for submission in submissions:
                    handles.append(self.submit(**submission))
            except OutlayError:
                for handle in handles:
                    handle.cancel()
                raise
        return handles

    def transcribe(
        self,
        sound: Sound,
        *,
        language: str | None = None,
        task: str = "transcribe",
        timestamps: bool = False,
        **options: Any,
    ) -> Transcript:
        """Writes down what is said in a recording.

        Args:
            sound: A file, or samples as a sequence of floats from -1 to 1 at the model's rate (`lm.model.speech.rate`).
            language: The language that is spoken, by code or English name. By default a model that can hear it does.
            task: `transcribe`, or `translate` into English.
            timestamps: Whether the transcript's `segments` have the times that the model notes.
            **options: Options of `generate`, such as `method`. `max_tokens` is by clip, by default what can be said in
                its time, or what the model's context has room for.

        Raises:
            UsageError: For a model that hears nothing or does not do what is asked, and for what is no recording or has
                no sound.
        """
        (heard,) = self.start_transcripts([sound], language=language, task=task, timestamps=timestamps, **options)
        return heard.result

    def start_transcripts(
        self,
        sounds: Sequence[Sound],
        *,
        language: str | None = None,
        task: str = "transcribe",
        timestamps: bool = False,
        traces: Callable[[int], Callable[[dict[str, Any]], None]] | None = None,
        **options: Any,
    ) -> list[Transcription]:
        """Starts on several recordings, whose clips are worked on together; see `transcribe` for the arguments.

        It returns at once, or as soon as the languages are heard. `traces` gives what is called with each event of a
        clip's run, for the clip's number among those of all recordings.
        """
        form = self.model.speech
        if form is None:
            raise UsageError(f"{self.name} hears nothing; give a model of speech, such as moonshine-tiny")
        recordings = [
            (str(sound), read_audio(sound, form.rate))
            if isinstance(sound, str | Path)
            else ("the recording", at_rate(sound, form.rate, form.rate))
            for sound in sounds
        ]
        asked = Asked(language, task, timestamps)
        return transcribe(self.model, recordings, asked, self.submit, self.engine.together, traces, **options)

    def stream(self, prompt: Prompt | PromptTree, **options: Any) -> Stream:
        """Answers a prompt piece by piece; the arguments are those of `generate`, without `n` (`submit_choices`)."""
        return Stream(self.submit(prompt, **options))

    async def agenerate(self, prompt: Prompt | PromptTree, *, n: int = 1, **options: Any) -> Result:
        """As `generate`, without blocking the event loop; a cancelled task cancels its runs."""
        handles = self.submit_choices(prompt, n, **options)
        try:
            return joined([await handle.wait() for handle in handles])
        except BaseException:
            for handle in handles:
                handle.cancel()
            raise

    def _default_method(self, temperature: float) -> Method:
        """Returns the method of a request that names none: one that fits the model."""
        if self.model.writes_canvas:
            return Threshold()
        return Greedy() if temperature == 0 else Sample()

    def _default_length(self, prompt: int) -> int:
        """Returns `max_tokens` of a request that names none: on a canvas, what the prompt leaves of the context."""
        room = self.model.decoder.config.max_positions - prompt
        return max(1, min(MAX_TOKENS, room)) if self.model.writes_canvas else MAX_TOKENS

    def _chosen(
        self, method: str | Method | None, cache: str | CachePolicy | None, temperature: float
    ) -> tuple[Method, CachePolicy | None]:
        """Returns the method and the cache policy of a request. Raises `UsageError` where they do not go together."""
        if method is None:
            method = self._default_method(temperature)
        chosen = catalog.parse(method) if isinstance(method, str) else method
        policy = catalog.parse_policy(cache) if isinstance(cache, str) else cache
        if policy is not None and chosen.cache_policy is not None:
            raise UsageError(
                f"{chosen.about.name} is a cache policy itself; give it as cache= beside a method, or alone"
            )
        return chosen, policy or chosen.cache_policy

    def _encode_each(self, prompt: Prompt | PromptTree | Clip, receipt: bool, **options: Any) -> list[Clip | list[int]]:
        """Returns the token ids of each prompt of a request, a recording as it is; `options` are those of `encode`."""
        prompts = prompt.leaves() if isinstance(prompt, PromptTree) else [prompt]
        encoded = [each if isinstance(each, Clip) else self.encode(each, **options) for each in prompts]
        if receipt and any(placed_in(each) for each in encoded if isinstance(each, list)):
            raise UsageError("a receipt holds no images; leave receipt= out")
        return encoded

    def _check(self, max_tokens: int | None, logprobs: int | None, sampling: Sampling, stops: Sequence[str]) -> None:
        vocab = self.model.decoder.config.vocab_size
        if max_tokens is not None and max_tokens < 1:
            raise UsageError(f"max_tokens must be 1 or more, not {max_tokens}")
        if logprobs is not None and not 0 <= logprobs <= vocab:
            raise UsageError(f"logprobs must be from 0 to {vocab}, the size of the vocabulary, not {logprobs}")
        strange = next((token for token in sampling.logit_bias if not 0 <= token < vocab), None)
        if strange is not None:
            raise UsageError(f"logit_bias names token {strange}, but the vocabulary goes from 0 to {vocab - 1}")
        if "" in stops:
            raise UsageError("a stop string must not be empty")

    def _check_receipt(self, scorer: Any, constraint: Any, budget: Budget | None) -> None:
        """Raises `UsageError` for what a receipt can't hold, and for a model whose bits are others elsewhere."""
        if scorer is not None or constraint is not None or (budget is not None and budget.caps):
            raise UsageError("a receipt holds no scorer, constraint or budget; leave them out")
        if not runs_whole(self.model.decoder):
            raise UsageError(
                f"{self.name} does not run in our kernels whole, which alone give the same bits on every machine; a "
                "receipt takes another model, such as the default one"
            )

    def _compiled(self, constraint: Any, method: Method) -> Compiled | None:
        """Returns a constraint over this model's tokens, if any. Raises `UsageError` where the method takes none."""
        if constraint is None:
            return None
        if "constraint" not in (*method.about.needs, *method.about.takes):
            raise UsageError(
                f"{method.about.name} takes no constraint; leave constraint= out, or choose a method that takes one"
            )
        size = self.model.decoder.config.vocab_size
        return compile_constraint(constraint_of(constraint), self.model.tokenizer, size)

    def draft(self, draft: str | Model | LM | DraftSource | None, method: Method | None = None) -> DraftSource | None:
        """Returns what `draft` means, loaded once (`outlay.drafts.resolve`).

        Without one, a method that takes a draft gets the draft head that was trained for this model, if there is one.
        """
        if draft is None and method is not None and "draft" in (*method.about.needs, *method.about.takes):
            if "" not in self._drafts:
                self._drafts[""] = default_draft(self.model)
            return self._drafts[""]
        if isinstance(draft, str):
            if draft not in self._drafts:
                self._drafts[draft] = resolve(draft, self.model)
            return self._drafts[draft]
        if isinstance(draft, LM):
            draft = draft.model
        if isinstance(draft, Model):
            refuse_other_tokens(draft, self.model)
            return model_draft(draft)
        return draft

    def scorer(self, scorer: Any) -> Any:
        """Returns what `scorer` means, loaded once (`outlay.rewards.resolve`)."""
        if scorer is None:
            return None
        if not isinstance(scorer, str):
            return scorers.resolve(scorer, self.model)
        if scorer not in self._scorers:
            self._scorers[scorer] = scorers.resolve(scorer, self.model)
        return self._scorers[scorer]

    def _named_models(self, method: Method) -> dict[str, Model]:
        """Returns the models that a method's options name, by option, each loaded once; none for an option of None."""
        found: dict[str, Model] = {}
        for option in method.about.models:
            given = getattr(method, option)
            if isinstance(given, str):
                if given not in self._models:
                    self._models[given] = load_model(given, device=str(self.model.decoder.device))
                found[option] = self._models[given]
            elif isinstance(given, Model):
                found[option] = given
            elif given is not None:
                raise UsageError(f"option {option!r} of {method.about.name} must be a model or its name, not {given!r}")
        return found

    def _named_scorers(self, method: Method) -> dict[str, Any]:
        """Returns the scorers that a method's options name, by option; none for an option of None."""
        given = {option: getattr(method, option) for option in method.about.scorers}
        return {option: self.scorer(scorer) for option, scorer in given.items() if scorer is not None}


def load(
    source: str | Path | None = None,
    *,
    dtype: str = "auto",
    device: str = "cpu",
    threads: int | None = None,
    cache_tokens: int | None = None,
    prefix_cache: bool = True,
    max_runs: int = 64,
    max_waiting: int = 4096,
    kv_dtype: str = "auto",
    engine: Engine | None = None,
    progress: Callable[[str, int, int], None] | None = None,
) -> LM:
    """Loads a model: an alias (`outlay models` lists them), a folder in the hub's layout, a `.gguf` file or a hub id,
    or an exact denoiser, such as "exact-phrase:noise=0.05x0.1".

    **Arguments:** `source` is the default model if it is left out. `dtype` is "auto" (as the file holds its weights, or
    what is fastest), "float32", "bfloat16", "float16", "int8" or "int4". `threads` sets torch's and our own for the
    whole process. `cache_tokens` limits how many tokens' keys and values are held at once. `prefix_cache=False` keeps
    nothing between requests. `max_runs` is how many requests are worked on at a time, and `max_waiting` how many more
    may wait: later ones raise `QueueFull`. `kv_dtype` is how keys and values are held: "float32", "bfloat16", "int8"
    (with a scale for each 32 dimensions of a head), or "auto", as activations are. `engine` is that of a model that was
    loaded before (`lm.engine`): the models then share its runs and limits, and what an engine decides is given with the
    first of them alone. `progress` is called with a phase, what is done and the total.

    Raises `UsageError` for a source that isn't known or can't be read, `FailureError` where fetching or memory fails.
    """
    set_threads(threads)
    if kv_dtype != "auto" and kv_dtype not in KV_DTYPES:
        known = ("auto", *KV_DTYPES)
        raise UsageError(
            f"kv_dtype {kv_dtype!r} is not known{nearest(kv_dtype, known)}; it is one of {', '.join(known)}"
        )
    if engine is not None and (cache_tokens, prefix_cache, max_runs, max_waiting, kv_dtype) != OF_ENGINE:
        raise UsageError("with an engine, its own cache and limits hold; give them with its first model")
    if is_exact(source):
        model = _exact(str(source))
    else:
        model = load_model(source or DEFAULT_MODEL, dtype=dtype, device=device, progress=progress)
    if engine is None:
        engine = Engine(
            cache_tokens=cache_tokens,
            prefix_cache=prefix_cache,
            max_runs=max_runs,
            max_waiting=max_waiting,
            kv_dtype=KV_DTYPES.get(kv_dtype),
        )
    return LM(model, engine)


def set_threads(threads: int | None) -> None:
    """Sets torch's threads and our own for the whole process, if told. Raises `UsageError` for fewer than one."""
    if threads is None:
        return
    if threads < 1:
        raise UsageError(f"threads must be 1 or more, not {threads}")
    torch.set_num_threads(threads)
    if kernels.available():
        kernels.set_threads(threads)


def _exact(source: str) -> Model:
    """Returns the exact denoiser that `"exact-NAME"` or `"exact-NAME:option=value,..."` names."""
    name, _, written = source.partition(":")
    if name not in DENOISERS:
        raise UsageError(
            f"there is no exact denoiser {name!r}{nearest(name, DENOISERS)}; there are {', '.join(DENOISERS)}"
        )
    return exact_model(catalog.made(DENOISERS[name], "model", name, written), source)


def _read_by_run(
    prompt: Prompt | PromptTree | Clip, encoded: Sequence[Clip | list[int]], rules: GenerationRules | None
) -> dict[str, Any]:
    """Returns the `prompt` of a submission, the `input` of an encoder-decoder, and the `leaves` of a tree."""
    leaves = [each for each in encoded if isinstance(each, list)] if isinstance(prompt, PromptTree) else ()
    if rules is None:
        return {"prompt": encoded[0], "leaves": leaves}
    return {"prompt": rules.start, "input": encoded[0], "leaves": leaves}


def _counts(method: Method, policy: CachePolicy | None) -> Mapping[str, str]:
    """Returns what a method and its cache policy count in the ledger beside its entries."""
    return method.about.counts if policy is None else {**method.about.counts, **policy.about.counts}


def are_tokens(prompt: Sequence[Any]) -> TypeGuard[Sequence[int]]:
    """Tells whether a prompt is token ids; by the types in it, since it may be long."""
    return all(issubclass(kind, int) for kind in {*map(type, prompt)})


def question_of(prompt: Prompt | PromptTree | Clip) -> str:
    """Returns what a prompt asks, as text, for scorers: the last message of a user; "" for token ids and sound.

    A tree asks what the first of its prompts asks.
    """
    if isinstance(prompt, PromptTree):
        prompt = prompt.leaves()[0]
    if isinstance(prompt, Clip):
        return ""
    if isinstance(prompt, str):
        return prompt
    if are_tokens(prompt):
        return ""
    said = [part for part in prompt if isinstance(part, Mapping) and part.get("role") == "user"]
    content = said[-1].get("content") if said else ""
    if isinstance(content, str):
        return content
    return "".join(part.get("text", "") for part in content or () if isinstance(part, Mapping))


DEFAULT_MODEL = "smollm2-135m"
OF_ENGINE = (None, True, 64, 4096, "auto")  # the defaults of those arguments of `load` that an engine decides
