"""What a method sees of its submission, whatever it decodes on."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from typing import Any, TypeVar, cast

from outlay.budget import Account, Ledger
from outlay.engine.random import RandomStreams
from outlay.engine.registry import Wake
from outlay.engine.request import Request, Worker
from outlay.engine.seat import Seat, Seats
from outlay.engine.session import Alternative, Session
from outlay.engine.submission import RunOptions, Submission
from outlay.engine.worker import Role
from outlay.errors import UsageError
from outlay.models.images import ImagePrompt, text_of
from outlay.models.load import Model
from outlay.models.speech import Clip

AnyWorker = TypeVar("AnyWorker", bound=Worker)
COUNTED = ("drafted", "accepted", "rounds")  # ledger entries that only a method can count


class Run:
    """What all runs share: the prompt, the options, the text committed so far, the budget, and random streams.

    `random.at(...)` gives a `torch.Generator` for a place in the text, so that draws don't depend on what else runs.
    """

    def __init__(self, session: Session, seats: Seats) -> None:
        self._session, self._seats = session, seats
        self.random = RandomStreams(session.submission.options.seed)

    @property
    def submission(self) -> Submission:
        """What the caller handed in."""
        return self._session.submission

    @property
    def model(self) -> Model:
        """The target model."""
        return self._session.submission.model

    @property
    def options(self) -> RunOptions:
        """What the caller asked for beside the prompt."""
        return self._session.submission.options

    @property
    def prompt(self) -> Sequence[int]:
        """The prompt's token ids: of an encoder-decoder, what its decoder starts with.

        With images it is an `ImagePrompt`, in which the image token stands for each visual token.
        """
        return self._session.submission.prompt

    @property
    def input(self) -> Sequence[int] | Clip:
        """What an encoder reads, as token ids or as sound; no tokens where the model has no encoder."""
        return self._session.submission.input

    @property
    def known_text(self) -> Sequence[int]:
        """The token ids of text that the model has read when it begins to write: input and prompt, without images."""
        return list(self.text_prompt) if isinstance(self.input, Clip) else [*self.input, *self.text_prompt]

    @property
    def text_prompt(self) -> Sequence[int]:
        """The prompt's token ids without those that stand for images."""
        return text_of(self.prompt)

    @property
    def visual_positions(self) -> Sequence[int]:
        """The positions of the prompt's visual tokens; none where it has no images."""
        return self.prompt.positions if isinstance(self.prompt, ImagePrompt) else ()

    @property
    def tokens(self) -> list[int]:
        """The token ids committed so far."""
        return self._session.tokens

    @property
    def text(self) -> str:
        """The text committed so far, without the beginning of what may become a stop string."""
        return self._session.text

    @property
    def account(self) -> Account:
        """Who pays for what is asked: every `Request` names it."""
        return self._session.account

    @property
    def ledger(self) -> Ledger:
        """What the run has spent so far."""
        return self._session.account.ledger

    @property
    def max_tokens(self) -> int:
        """The most tokens that this run can commit."""
        return self._session.max_tokens

    @property
    def eos_token_ids(self) -> frozenset[int]:
        """The tokens that end the text; none where they are ignored."""
        return self._session.eos_token_ids

    @property
    def finish_reason(self) -> str | None:
        """Why the text has ended; None as long as it goes on."""
        return self._session.finish_reason

    @property
    def cap(self) -> str:
        """The entry of the budget that has ended the run; empty where none did."""
        return self._session.cap

    @property
    def facts(self) -> dict[str, Any]:
        """What the method found out and no ledger can add up, by name: it goes into `Result.facts`."""
        return self._session.facts

    @property
    def has_offer(self) -> bool:
        """Whether the method has offered a text to end with."""
        return False

    def left(self, entry: str) -> float:
        """Returns what the budget leaves of a ledger entry; infinity where it has no cap."""
        return self._session.account.left(entry)

    def count(self, **amounts: float) -> None:
        """Adds to the ledger what only the method knows: `drafted`, `accepted`, `rounds`, an extra under any name."""
        ledger = self.ledger
        for name, amount in amounts.items():
            if name in COUNTED:
                setattr(ledger, name, getattr(ledger, name) + int(amount))
            else:
                ledger.extras[name] = ledger.extras.get(name, 0) + amount
        if "rounds" in amounts and self.left("rounds") <= 0:
            self._session.end_soon("budget", "rounds")

    def seat(self, model: str | Model, tokens: Sequence[int], role: Role = "side") -> Seat:
        """Opens a seat at another model, with a tree of its own; the engine frees it at the end of the run.

        Args:
            model: An option of the method that `About.models` names, whose model is loaded already; or a loaded model,
                such as a scorer's.
            tokens: What the seat's tree holds to begin with, in the other model's tokens.
            role: What the model is to the run, and so the ledger's entries that its passes fill.

        Raises:
            UsageError: Where the other model can't read that many tokens.
            FailureError: Where they don't fit into its cache.
        """
        if isinstance(model, str):
            models = self.submission.models
            if model not in models:
                known = ", ".join(models) or "none"
                raise ValueError(f"option {model!r} gave this run no model; those in `About.models` that did: {known}")
            model = models[model]
        if model.encoder is not None:
            raise UsageError(f"{model.name} has an encoder, with which no model beside the target runs; give another")
        return self._seats.open(model, role, tokens)

    def service(self, key: Hashable, make: Callable[[Wake], AnyWorker]) -> AnyWorker:
        """Returns a worker that all runs of the engine share.

        Args:
            key: What it is known by: runs that give the same key get the same worker.
            make: Makes it for the first run that asks; called with a function that wakes a sleeping engine, which a
                worker of the stage "job" calls when a job ends. The engine closes the worker with itself.
        """
        return cast(AnyWorker, self._seats.workers.service(key, make))

    def suggest(self, texts: Sequence[tuple[Sequence[int], float]]) -> None:
        """Adds texts, given as tokens with their scores, the best first, to the result's `alternatives`."""
        for tokens, score in texts:
            self._session.suggest(tokens, score)

    def answer(self, texts: Sequence[Alternative]) -> None:
        """Makes these texts, each with its own end, the result's `alternatives`; those of before are gone."""
        self._session.alternatives = list(texts)

    def receive(self, requests: Sequence[Request]) -> None:
        """Called by the engine with requests that are done, before their results go to the method."""

    def close(self, reason: str, cap: str = "") -> None:
        """Called by the engine at the end of the run, once or more often; `cap` is the entry that ended a budget."""
        self._session.close(reason, cap)
