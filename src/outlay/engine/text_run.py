"""What a method sees of its submission where it decodes on no token tree: it asks workers, and writes tokens."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from outlay.engine.run import Run
from outlay.engine.seat import Seats
from outlay.engine.session import Session
from outlay.errors import UsageError


class TextRun(Run):
    """A run that holds nothing in the target model's cache. It writes its text token by token, from wherever it comes.

    Where a method wants a model it opens a seat with `seat`.
    """

    knows_logprobs: ClassVar[bool] = False
    """Whether the run has the log-probabilities of the tokens that it writes."""

    def __init__(self, session: Session, seats: Seats) -> None:
        super().__init__(session, seats)
        if self.options.logprobs is not None and not self.knows_logprobs:
            raise UsageError("this method knows no log-probabilities of its tokens; leave out logprobs")
        if self.options.receipt:
            raise UsageError("this method knows no logits of its tokens, which a receipt holds; leave out receipt")
        self._offer: Sequence[int] = ()

    def write(self, tokens: Sequence[int], origin: str = "") -> None:
        """Writes the next tokens of the text, up to the first stop condition. `origin` says what proposed them."""
        self._offer = ()
        for token in tokens:
            if self.finish_reason is not None:
                return
            self._session.commit(token, origin)

    def offer(self, tokens: Sequence[int]) -> None:
        """Says what the run writes next if it has to end before the method decides: the best so far."""
        self._offer = tuple(tokens)

    def close(self, reason: str, cap: str = "") -> None:
        self.write(self._offer)
        super().close(reason, cap)
