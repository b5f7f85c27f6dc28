"""What a caller hands in: a model, a prompt, options, and a draft for methods that take one."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from outlay.budget import Budget
from outlay.engine.sampling import Sampling
from outlay.errors import UsageError
from outlay.models.load import Model


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

    `scorer` and `constraint` are what the caller gives to methods that take one. `models` holds those that the method's
    options name, by option. `question` is what the user asks, as text, for scorers that have tokens of their own; the
    prompt's text where it is left out.

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
    question: str = ""

    def __post_init__(self) -> None:
        if self.model.head is not None:
            raise UsageError(
                f"{self.model.name} is a reward model, which rates texts and writes none; give it as a scorer"
            )
        if not self.prompt:
            raise UsageError("the prompt is empty; give it at least one token")
        if self.constraint is not None and self.options.ignore_eos:
            raise UsageError("ignore_eos goes past the end that a constraint gives the text; leave it out")
        if len(self.prompt) >= self.context:
            raise UsageError(
                f"the prompt has {len(self.prompt)} tokens, but {self.model.name} reads at most {self.context}, one of "
                "which must be left for the answer"
            )
        vocab = self.model.decoder.config.vocab_size
        strange = next((token for token in self.prompt if not 0 <= token < vocab), None)
        if strange is not None:
            raise UsageError(f"token {strange} is not in the vocabulary of {self.model.name} (0 to {vocab - 1})")

    @property
    def context(self) -> int:
        """The length of the model's context, in tokens."""
        return self.model.decoder.config.max_positions

    @property
    def asked(self) -> str:
        """What the user asks, as text."""
        return self.question or self.model.tokenizer.decode(self.prompt)

    @property
    def greedy(self) -> bool:
        """Whether the most probable token is always taken (temperature 0)."""
        return self.options.sampling.temperature == 0

    @property
    def max_tokens(self) -> int:
        """The most tokens that can be committed: the least of `max_tokens`, the budget's cap, and the context."""
        room = self.context - len(self.prompt)
        return int(min(self.options.max_tokens, room, self.options.budget.caps.get("tokens_out", room)))

    @property
    def eos_token_ids(self) -> frozenset[int]:
        """The tokens that end the text; none where they are ignored."""
        return frozenset() if self.options.ignore_eos else frozenset(self.model.tokenizer.eos_token_ids)
