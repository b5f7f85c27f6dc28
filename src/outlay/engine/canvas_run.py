"""What a method sees of its submission where it fills masks on a canvas."""

from __future__ import annotations

import math
from collections.abc import Generator, Mapping, Sequence
from typing import Any, ClassVar

from torch import Tensor

from outlay.engine.denoise import Denoise
from outlay.engine.request import Request
from outlay.engine.seat import Seat, Seats
from outlay.engine.session import Session
from outlay.engine.text_run import TextRun
from outlay.engine.trace import Proposed
from outlay.tree.canvas import Canvas


class CanvasRun(TextRun):
    """A run that fills `max_tokens` masked positions behind its prompt, in any order.

    The text is written as far as it is filled without a gap. Positions are those of the whole text: the prompt has
    [0, begin), the canvas ends before `end`.

    With `trunk` the prompt's whole blocks, and each block that is finished, are nodes of the target's tree, whose keys
    and values are exact under block-causal attention; the canvas then holds one block, and the one before until a pass
    has computed its last tokens. Without, it holds all positions, those of the prompt too. `spent_up` is the entry of
    the budget that leaves too little to go on, "" as long as none does; a rule may set it. With `holds_ends` an end
    token is written by `settle` alone, and with `guided` there is a canvas beside it whose prompt is masked.
    """

    knows_logprobs: ClassVar[bool] = True

    def __init__(
        self,
        session: Session,
        seats: Seats,
        *,
        block: int = 0,
        trunk: bool = False,
        holds_ends: bool = False,
        guided: bool = False,
    ) -> None:
        """Opens the seat at the target model.

        Args:
            session: The engine's side of the run.
            seats: The run's places at models.
            block: The size of a block of block-causal attention; 0 for full attention.
            trunk: Whether finished blocks become nodes of the tree.
            holds_ends: Whether the text goes on behind an end token until `settle` is called.
            guided: Whether there is a second canvas without the prompt (classifier-free guidance); not with `trunk`.

        Raises:
            CacheFull: When the cache has no room for the canvas at present.
        """
        super().__init__(session, seats)
        diffusion = self.model.decoder.config.diffusion
        assert diffusion is not None, "a canvas is filled by a model that fills masks"
        self.mask, self.shift = diffusion.mask, diffusion.shift
        self.begin, self.end = len(self.prompt), len(self.prompt) + session.max_tokens
        self._block, self._trunk = block, trunk
        whole = self.begin // block * block if trunk else 0
        self.target: Seat = seats.open(
            self.model, "target", self.prompt[:whole], reserve=0, block=block if trunk else 1
        )
        if not session.restarts:
            session.cached_tokens = self.target.cached
        until = min(whole + block, self.end) if trunk else self.end
        tokens = [*self.prompt[whole:], *[self.mask] * (until - self.begin)]
        self.canvas: Canvas = self.target.canvas(tokens, block=block)
        self.unprompted: Canvas | None = None
        if guided:
            masked = [self.mask] * len(tokens)
            self.unprompted = self.target.canvas(masked, block=block)
        self.spent_up = ""
        self.holds_ends = holds_ends
        self._behind = self.end  # of the canvas as it was asked for, before it is cut
        self._written = self.begin
        self._proposed: dict[int, tuple[int, float]] = {}
        self._filled_now: dict[int, tuple[int, float]] = {}
        self._logits: dict[int, Tensor] = {}
        self._rounds = [0] * session.max_tokens
        self.facts["filled_in_round"] = self._rounds
        if session.trace is not None:
            session.trace.canvas(self.begin, session.max_tokens, self.prompt)

    @property
    def vocab_size(self) -> int:
        """The size of the model's vocabulary."""
        return self.model.decoder.config.vocab_size

    def blocks(self, size: int | None) -> list[tuple[int, int]]:
        """Returns the blocks in which the canvas is filled, as (begin, end); the last one may be short.

        They are those of the whole canvas, also after it was cut.

        Args:
            size: Positions of a block; None: one block. They are counted from the canvas's begin under full attention,
                and from that of the text under block-causal attention.
        """
        if size is None:
            return [(self.begin, self._behind)]
        first = self.begin // size * size if self._block else self.begin
        edges = [max(edge, self.begin) for edge in range(first, self._behind, size)]
        return list(zip(edges, [*edges[1:], self._behind], strict=True))

    def read_prompt(self) -> Generator[Request, Any, None]:
        """Computes the prompt's whole blocks, where these are nodes of the tree."""
        tip = self.target.tree.tip
        if tip is not None:
            yield self.target.forward([tip])

    def denoise(self, rows: Sequence[int], wanted: Sequence[int], canvas: Canvas | None = None) -> Denoise:
        """Asks for logits of what stands at the positions `wanted`, float32 [len(wanted), vocab]; see `Seat.denoise`.

        The model's shift of logits is undone, and the mask's logit is -inf.

        Args:
            rows: Positions of the text whose keys and values are computed, ascending.
            wanted: Positions of the text whose logits are wanted.
            canvas: A copy of the canvas (`Seat.copy`) in its place.
        """
        canvas = canvas or self.canvas
        stale = canvas.stale_keys([canvas.cells[row - canvas.base] for row in rows])
        if stale:
            self.count(stale_keys=stale)
        return self.target.denoise(canvas, rows, wanted)

    def note(self, positions: Sequence[int], tokens: Sequence[int], confidence: Sequence[float]) -> None:
        """Notes for the trace what a round proposes for masked positions."""
        if self._session.trace is not None:
            self._proposed = dict(zip(positions, zip(tokens, confidence, strict=True), strict=True))

    def count(self, **amounts: float) -> None:
        super().count(**amounts)
        trace = self._session.trace
        if "rounds" in amounts and trace is not None:
            proposed, filled = self._proposed, self._filled_now
            cells = []
            for position in sorted({*proposed, *filled}):
                token, confidence = proposed.get(position, (-1, 0.0))
                if position in filled and filled[position][0] != token:
                    token, confidence = filled[position]
                cells.append(Proposed(position, token, confidence, position in filled))
            trace.filled(self.ledger.rounds, cells)
            self._proposed, self._filled_now = {}, {}

    @property
    def masks_left(self) -> int:
        """How many positions are masked, those included that are not on the canvas yet."""
        canvas = self.canvas
        return len(canvas.masked(canvas.base, canvas.end)) + self.end - canvas.end

    def masked(self, begin: int, end: int) -> list[int]:
        """Returns the masked positions from `begin` up to and without `end`, of those that are on the canvas."""
        return self.canvas.masked(begin, end)

    def fill(self, position: int, token: int, logprob: float, logits: Tensor | None = None) -> bool:
        """Fills a masked position, and writes the text as far as it has no gap.

        Args:
            position: The position in the text.
            token: Its token.
            logprob: The token's log-probability when it was chosen, which the ledger counts as nats.
            logits: The logits [vocab] that it was chosen from, where log-probabilities are asked for.

        Returns:
            Whether it was filled: not where the budget leaves too few nats, which then are `spent_up`, and not behind
            the end of the text.
        """
        if self.finish_reason is not None:
            return False
        nats = max(0.0, -logprob)
        if nats > self.left("nats"):
            self.spent_up = "nats"
            return False
        self._put(position, token, logprob, logits)
        self.ledger.nats += nats
        self._write()
        return True

    def fill_last(
        self, tokens: Mapping[int, int], logprobs: Mapping[int, float], logits: Mapping[int, Tensor], cap: str
    ) -> None:
        """Fills masked positions because the budget is at its end, and ends the run.

        Args:
            tokens: The token of each position.
            logprobs: Its log-probability. Where nats are what ended the budget, they go into the extra
                `nats_last_fill`, beside the capped ones.
            logits: Its logits [vocab], where log-probabilities are asked for.
            cap: The entry whose cap ends the run.
        """
        nats = sum(max(0.0, -logprobs[position]) for position in tokens)
        for position, token in tokens.items():
            self._put(position, token, logprobs[position], logits.get(position))
        if nats > self.left("nats"):
            self.count(nats_last_fill=nats)
        else:
            self.ledger.nats += nats
        self.settle()
        self._session.cut_off(cap)

    def cut_off(self, cap: str) -> None:
        """Ends the run with what is written, because the budget's `cap` is at its end."""
        self._session.cut_off(cap)

    def extend(self) -> None:
        """Puts all positions on the canvas that are not there yet.

        Raises:
            CacheFull: When the cache has no room for them.
        """
        self._grow(self.end)

    def cut(self, end: int) -> None:
        """Drops all positions from `end` on, what was filled there included: the text ends before them."""
        dropped = sum(not self.canvas.is_masked(position) for position in range(end, self.canvas.end))
        if dropped:
            self.count(dropped_tokens=dropped)
        for canvas in self._canvases:
            canvas.cut(max(0, end - canvas.base))
        self.end = end

    def settle(self) -> None:
        """Writes an end token that `holds_ends` keeps back, where the text is filled up to one."""
        held, self.holds_ends = self.holds_ends, False
        self._write()
        self.holds_ends = held

    def end_text(self) -> None:
        """Says that the text has reached its end, which is where the canvas was cut."""
        self._session.end("stop")

    @property
    def _canvases(self) -> list[Canvas]:
        return [self.canvas] if self.unprompted is None else [self.canvas, self.unprompted]

    def _grow(self, end: int) -> None:
        for canvas in self._canvases:
            canvas.grow([self.mask] * (end - canvas.end))

    def _put(self, position: int, token: int, logprob: float, logits: Tensor | None) -> None:
        for canvas in self._canvases:
            canvas.fill(position, token)
        self._filled_now[position] = token, math.exp(logprob)
        self._rounds[position - self.begin] = self.ledger.rounds + 1
        if self.options.logprobs is not None:
            assert logits is not None, "logits come with every token whose log-probability is asked for"
            self._logits[position] = logits

    def next_block(self) -> None:
        """Puts the next block on the canvas, where this one is finished and has to become part of the trunk.

        The next pass computes both, so the finished block needs no pass of its own to be computed with its last tokens.

        Raises:
            CacheFull: When the cache has no room for it.
        """
        if self._trunk and self.canvas.end < self.end:
            self._grow(min(self.canvas.end + self._block, self.end))

    def receive(self, requests: Sequence[Request]) -> None:
        """Makes finished blocks that a pass has computed with their last tokens part of the trunk."""
        canvas = self.canvas
        if not self._trunk or not any(isinstance(each, Denoise) and each.canvas is canvas for each in requests):
            return
        last = (canvas.end - 1) // self._block * self._block
        done = max(0, last - canvas.base)
        if done and not canvas.masked(canvas.base, last):
            canvas.hand_over(done)

    def _write(self) -> None:
        while self._written < self.end and self.finish_reason is None:
            if self._written >= self.canvas.end or self.canvas.is_masked(self._written):
                return
            token = self.canvas.token(self._written)
            if self.holds_ends and token in self.eos_token_ids:
                return
            self._session.commit(token, logits=self._logits.pop(self._written, None))
            self._written += 1
