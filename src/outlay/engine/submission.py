"""What a caller hands in: a model, a prompt, options, and a draft for methods that take one."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from outlay.attend.policy import CachePolicy
from outlay.budget import Budget
from outlay.engine.held_prefix import HeldPrefix
from outlay.engine.sampling import Sampling
from outlay.errors import UsageError
from outlay.models.generation import GenerationRules
from outlay.models.images import placed_in, text_of
from outlay.models.load import Model
from outlay.models.speech import Clip


@dataclass(frozen=True)
class RunOptions:
    """What is asked for beside the prompt and the method; the names are those of `transformers` and of OpenAI."""

    max_tokens: int
    sampling: Sampling = field(default_factory=Sampling)
    stop: tuple[str, ...] = ()
    budget: Budget = field(default_factory=Budget)
    seed: int = 0
    logprobs: int | None = None
    ignore_eos: bool = False
    receipt: bool = False


@dataclass(frozen=True, eq=False)
class DraftSource:
    """What is given as a draft.

    Args:
        drafter: Makes what drafts for one run; called with the run when its method starts.
        model: The draft model at which the run gets a seat; None for drafts that need none, such as prompt lookup.
    """

    drafter: Callable[[Any], Any]
    model: Model | None = None


@dataclass(frozen=True, eq=False)
class Submission:
    """A prompt with its options, checked against the model.

    `scorer` and `constraint` are what the caller gives to methods that take one. `models` and `scorers` hold those that
    the method's options name, by option. `question` is what the user asks, as text, for scorers that have tokens of
    their own; the prompt's text where it is left out. `leaves` are the prompts of a tree, the first of which is
    `prompt`. `prefix` is what is held of the beginning of the prompts. `input` is what the model's encoder reads, where
    it has one; `prompt` is then what its decoder starts with. `rules` hold in place of the checkpoint's. `cache` is the
    policy that says what the target model's layers keep; None keeps all as it is.

    Raises:
        UsageError: For a prompt that is empty, too long for the model's context, or not of its vocabulary.
    """

    model: Model
    prompt: Sequence[int]
    options: RunOptions
    draft: DraftSource | None = None
    scorer: Any = None
    constraint: Any = None
    models: Mapping[str, Model] = field(default_factory=dict)
    scorers: Mapping[str, Any] = field(default_factory=dict)
    question: str = ""
    leaves: Sequence[Sequence[int]] = ()
    prefix: HeldPrefix | None = None
    input: Sequence[int] | Clip = ()
    rules: GenerationRules | None = None
    cache: CachePolicy | None = None

    def __post_init__(self) -> None:
        if self.model.reward_form is not None:
            raise UsageError(
                f"{self.model.name} is a reward model, which rates texts and writes none; give it as a scorer"
            )
        self._check_input()
        for number, prompt in enumerate(self.leaves, 1):
            self._check(prompt, f"leaf {number} of the tree of prompts")
        if not self.leaves:
            self._check(self.prompt, "the prompt")
        draft = None if self.draft is None else self.draft.model
        sees = any(map(placed_in, (self.prompt, *self.leaves)))
        if sees and draft is not None and draft.decoder.reads_hidden_states:
            raise UsageError(
                f"{draft.name} is a draft head, which drafts for text alone; give another draft for prompts with images"
            )
        if self.constraint is not None and self.options.ignore_eos:
            raise UsageError("ignore_eos goes past the end that a constraint gives the text; leave it out")

    def _check_input(self) -> None:
        encoder, name = self.model.encoder, self.model.name
        if encoder is None:
            if self.input:
                raise UsageError(f"{name} has no encoder; give what it goes on from as the prompt")
            return
        if self.leaves:
            raise UsageError(f"{name} reads each prompt by its encoder, which shares no beginning; take generate_batch")
        if isinstance(self.input, Clip) != (self.model.speech is not None):
            other = "no sound" if self.model.speech is None else "no text; give `outlay transcribe` a file with speech"
            raise UsageError(f"the encoder of {name} reads {other}")
        if not len(self.input):
            raise UsageError("the input is empty; give the encoder something to read")
        limit = encoder.config.max_positions
        if len(self.input) > limit:
            what = "frames" if isinstance(self.input, Clip) else "tokens"
            raise UsageError(f"the input has {len(self.input)} {what}, but the encoder of {name} reads at most {limit}")
        if not isinstance(self.input, Clip):
            self._refuse_strange(self.input)

    def _refuse_strange(self, tokens: Sequence[int]) -> None:
        vocab = self.model.decoder.config.vocab_size
        strange = next((token for token in (min(tokens), max(tokens)) if not 0 <= token < vocab), None)
        if strange is not None:
            raise UsageError(f"token {strange} is not in the vocabulary of {self.model.name} (0 to {vocab - 1})")

    def _check(self, prompt: Sequence[int], what: str) -> None:
        if not prompt:
            raise UsageError(f"{what} is empty; give it at least one token")
        if len(prompt) >= self.context:
            raise UsageError(
                f"{what} has {len(prompt)} tokens, but {self.model.name} reads at most {self.context}, one of "
                "which must be left for the answer"
            )
        self._refuse_strange(prompt)
        vision = self.model.vision
        if vision is not None and not placed_in(prompt) and vision.image_token_id in prompt:
            raise UsageError(
                f"{what} has a place for an image ({vision.image_token}), but no image; give it in images="
            )
        diffusion = self.model.decoder.config.diffusion
        if diffusion is not None and diffusion.mask in self.prompt:
            raise UsageError(
                f"the prompt has token {diffusion.mask}, the mask of {self.model.name}, which stands for what is to be "
                "written; leave it out"
            )

    @property
    def keeps(self) -> GenerationRules | None:
        """The rules that the text keeps, if any."""
        return self.model.rules if self.rules is None else self.rules

    @property
    def context(self) -> int:
        """The length of the model's context, in tokens."""
        return self.model.decoder.config.max_positions

    @property
    def asked(self) -> str:
        """What the user asks, as text."""
        read = self.prompt if isinstance(self.input, Clip) else self.input or self.prompt
        return self.question or self.model.tokenizer.decode(text_of(read))

    @property
    def greedy(self) -> bool:
        """Whether the most probable token is always taken (temperature 0)."""
        return self.options.sampling.temperature == 0

    @property
    def max_tokens(self) -> int:
        """The most tokens that can be committed: the least of `max_tokens`, the budget's cap, and the context."""
        return self.max_tokens_after(self.prompt)

    def max_tokens_after(self, prompt: Sequence[int]) -> int:
        """Returns the most tokens that can be written after one of the `leaves`."""
        room = self.context - len(prompt)
        return int(min(self.options.max_tokens, room, self.options.budget.caps.get("tokens_out", room)))

    @property
    def eos_token_ids(self) -> frozenset[int]:
        """The tokens that end the text; none where they are ignored."""
        return frozenset() if self.options.ignore_eos else frozenset(self.model.tokenizer.eos_token_ids)
