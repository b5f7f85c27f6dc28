"""What all commit rules share: the rounds in which a canvas is filled, block by block (Nie et al. 2025, LLaDA).

A round is one pass over the canvas, whose logits propose a token for each masked position, and the choice of those that
are filled. Rules differ in `select`, which chooses. Positions that are filled in one round are drawn from independent
marginals: that is where the speed comes from, and the error.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Generator, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal

import numpy as np
from torch import Tensor

from outlay.diffuse.caches import CacheName, computed_rows
from outlay.diffuse.ends import HOLDS, EndsName, end_of_canvas, late_ends, without_ends
from outlay.diffuse.guidance import guided
from outlay.diffuse.proposals import BlockSoFar, Chosen, Proposals, logprobs_of
from outlay.engine.canvas_run import CanvasRun
from outlay.engine.method import Method, Work
from outlay.engine.request import Request
from outlay.engine.run import Run
from outlay.engine.sampling import draw_tokens
from outlay.engine.seat import Seats
from outlay.engine.session import Session
from outlay.engine.submission import Submission
from outlay.errors import UsageError
from outlay.kernels import TokenDraw
from outlay.models.config import MaskedDiffusion

BLOCK_CAUSAL_ONLY, FULL_ONLY = ("exact",), ("prefix", "dual")
BY_ROWS = ("flops", "weight_bytes", "kv_bytes", "seconds")  # what a pass costs, about in proportion to its rows
DEFAULT_BLOCK = 32  # of models that see the whole canvas (Nie et al. 2025)
Logits = tuple[Sequence[int], Tensor]  # positions [n] and the logits [n, vocab] of what stands there
Round = Generator[Request | list[Request], Any, Logits | None]
COUNTS = {"stale_keys": "keys", "nats_last_fill": "nats", "dropped_tokens": "tokens"}


@dataclass(frozen=True)
class CommitRule(Method):
    """A rule that chooses which positions a round fills; `select` is the rule."""

    block: int | Literal["all"] | None = None
    """Positions that are filled before the next ones may be. none: the model's own block, 32 for a model without; all:
    the whole canvas at once."""

    cache: CacheName = "auto"
    """What a pass computes: the whole canvas (none), what does not precede the block (prefix), the block alone (dual),
    the block behind exact keys and values (exact, for block-causal models alone). auto: exact or none."""

    score_from: Literal["sample", "marginal"] = "sample"
    """What confidence is above temperature 0: the probability of the drawn token, or of the most probable one."""

    on_budget: Literal["fill", "leave"] = "fill"
    """Where a budget ends the run: fill what is masked in one last pass, or leave it."""

    ends: EndsName = "stop"
    """What end tokens do. stop: the text ends where it is filled up to one. block: it ends with the block of one. keep:
    everything is filled, and what is behind one is dropped. last: they are filled when a block has no other mask left.
    never: they are not proposed. cut: the canvas is cut behind one that is filled, or else behind the most probable."""

    guidance: float = 0.0
    """How far logits are moved away from those without the prompt (classifier-free guidance), at a second canvas in
    each pass; 0: not at all."""

    run_type: ClassVar[type[Run]] = CanvasRun
    reads_filled: ClassVar[bool] = False
    """Whether `select` also sees what the model proposes for positions that are filled."""

    @property
    def lookahead(self) -> int:
        """Blocks behind the one that is filled whose positions may be filled as well."""
        return 0

    @property
    def end_floor(self) -> float:
        """With `ends=cut`, the probability from which an end that no round has filled cuts the canvas."""
        return 0.0

    def __post_init__(self) -> None:
        if isinstance(self.block, int) and self.block < 1:
            raise UsageError(f"block must be 1 or more, not {self.block}; or all, for the whole canvas")
        if not 0 <= self.guidance < float("inf"):
            raise UsageError(f"guidance must be 0 or more, not {self.guidance}")

    @abstractmethod
    def select(self, proposals: Proposals) -> Chosen:
        """Returns which positions this round fills, bool [n].

        What it chooses beside masked positions is left out; where it chooses none, the round fills the eligible one of
        highest confidence.
        """

    def check(self, submission: Submission) -> None:
        sampling, model, diffusion = submission.options.sampling, submission.model, self._diffusion(submission)
        if sampling.counts_text:
            raise UsageError(f"{self.about.name} fills masks in any order, so penalties don't apply; leave them out")
        if self.cache in FULL_ONLY and diffusion.block:
            raise UsageError(f"{model.name} is block-causal, so its cache is exact; take cache=exact or cache=none")
        if self.cache in BLOCK_CAUSAL_ONLY and not diffusion.block:
            raise UsageError(f"{model.name} sees the whole canvas; take cache=none, prefix or dual")
        if self.lookahead and self._cache(submission) == "exact":
            raise UsageError(
                f"{self.about.name} looks ahead by {self.lookahead} blocks, which a block-causal cache can't; take "
                "look=0 or cache=none"
            )
        if self.guidance and self._cache(submission) == "exact":
            raise UsageError("guidance needs a canvas without the prompt, which cache=exact has not; take cache=none")
        room = submission.context - len(submission.prompt)
        if submission.options.max_tokens > room:
            raise UsageError(
                f"the canvas is longer than the context: {model.name} reads {submission.context} tokens, of which the "
                f"prompt leaves {room}; max_tokens must be {room} or less, not {submission.options.max_tokens}"
            )

    def start(self, session: Session, seats: Seats) -> CanvasRun:
        submission = session.submission
        causal = self._diffusion(submission).block > 0
        block = (self.block_size(submission) or submission.context) if causal else 0
        trunk, holds = self._cache(submission) == "exact", self.ends in HOLDS
        return CanvasRun(session, seats, block=block, trunk=trunk, holds_ends=holds, guided=self.guidance > 0)

    def decode(self, run: CanvasRun) -> Work:
        yield from run.read_prompt()
        size = self.block_size(run.submission)
        blocks = run.blocks(size)
        found: Logits | None = None
        for number, (begin, end) in enumerate(blocks):
            if begin >= run.end:  # the canvas was cut
                break
            ahead = blocks[min(number + self.lookahead, len(blocks) - 1)][1]
            offset = begin % size if size and run.canvas.block else 0
            block = BlockSoFar(begin, end, quotas=self.quotas(run, begin, end), offset=offset)
            found = yield from self._fill_block(run, block, ahead, found)
            if self.ends == "block":
                run.settle()
            if run.finish_reason is not None:
                return
            if self._cache(run.submission) != "none":
                found = None  # the next block starts with a pass of its own
            run.next_block()
        run.settle()
        if run.finish_reason is None:
            run.end_text()

    def quotas(self, run: CanvasRun, begin: int, end: int) -> Sequence[int]:
        """Returns how many tokens a schedule of a fixed number of steps fills in each round of a block."""
        return ()

    def round(self, run: CanvasRun, proposals: Proposals, rows: Sequence[int]) -> Round:
        """Fills what this round chooses; a rule that needs more passes, or counts more, overrides it.

        Args:
            run: The run.
            proposals: What the pass proposes.
            rows: Positions that the pass computed.

        Returns:
            The positions and logits that the next round starts from, where this one did its pass already.
        """
        self.fill(run, proposals, self.chosen(proposals))
        run.count(rounds=1)
        return None
        yield  # a generator, for rules that ask for more

    def chosen(self, proposals: Proposals) -> Chosen:
        """Returns the masked positions that `select` chooses, or the best one where it chooses none.

        Where a schedule says how many they are, ends that wait fill the places for which there is nothing else.
        """
        chosen = self.select(proposals) & proposals.masked
        if not chosen.any():
            chosen = proposals.best(proposals.confidence, proposals.eligible)
        missing = proposals.block.quota - int(chosen.sum()) if proposals.block.quotas else 0
        if missing > 0:
            late = proposals.late & (proposals.positions < proposals.block.end)
            chosen |= proposals.best(proposals.confidence, late, missing)
        return chosen

    def fill(self, run: CanvasRun, proposals: Proposals, chosen: Chosen) -> None:
        """Fills the chosen positions with their tokens, the surest first, so that a cap on nats keeps the surest."""
        places = np.flatnonzero(chosen)
        keeps_logits = run.options.logprobs is not None
        for place in places[np.argsort(-proposals.logprobs[places], kind="stable")]:
            position, token = int(proposals.positions[place]), int(proposals.tokens[place])
            logits = proposals.logits[place] if keeps_logits else None
            if not run.fill(position, token, float(proposals.logprobs[place]), logits):
                return
            if position < proposals.block.end:
                proposals.block.filled.append(float(proposals.confidence[place]))

    def _fill_block(
        self, run: CanvasRun, block: BlockSoFar, ahead: int, found: Logits | None
    ) -> Generator[Request | list[Request], Any, Logits | None]:
        """Fills a block round by round.

        Args:
            run: The run.
            block: The block.
            ahead: The position behind the blocks that are looked ahead to.
            found: What the last round of the block before has found for this one, if it did a pass.

        Returns:
            What the last round has found for the next block, if it did a pass.
        """
        while run.masked(block.begin, block.end):
            view = (block.begin, min(ahead, run.canvas.end))
            canvas = (run.canvas.base, run.canvas.end)
            rows = computed_rows(self._cache(run.submission), canvas, view, first=not block.rounds)
            if cap := self._last_pass(run, len(rows)):
                yield from self._end(run, cap)
                return None
            if found is None:
                until = rows.stop if self.ends == "cut" else view[1]
                wanted = list(range(view[0], until)) if self.reads_filled else run.masked(view[0], until)
                found = wanted, (yield from self._logits(run, rows, wanted))
            seen, proposals = found, self.proposals(run, block, *_within(found, *view))
            run.note(proposals.positions.tolist(), proposals.tokens.tolist(), proposals.confidence.tolist())
            found = yield from self.round(run, proposals, rows)
            if self.ends == "cut":
                self._cut(run, seen)
            if run.spent_up:
                yield from self._end(run, run.spent_up)
            if run.finish_reason is not None:
                return None
            block = replace(block, rounds=block.rounds + 1)
        return found

    def _logits(
        self, run: CanvasRun, rows: Sequence[int], wanted: Sequence[int]
    ) -> Generator[Request | list[Request], Any, Tensor]:
        """Asks for the logits [n, vocab] of n positions, guided where that is wanted."""
        if run.unprompted is None:
            logits: Tensor = yield run.denoise(rows, wanted)
            return logits
        asked: list[Request] = [run.denoise(rows, wanted), run.denoise(rows, wanted, run.unprompted)]
        prompted, unprompted = yield asked
        return guided(prompted, unprompted, self.guidance)

    def _cut(self, run: CanvasRun, seen: Logits) -> None:
        """Cuts the canvas where the text is predicted to end."""
        positions, logits = seen
        rounds = run.facts["filled_in_round"]
        filled = [position for position in positions if rounds[position - run.begin] == run.ledger.rounds]
        end = end_of_canvas(run.canvas, filled, positions, logits, run.eos_token_ids, self.end_floor)
        if run.finish_reason is None and end is not None and end < run.end:
            run.cut(end)

    def proposals(self, run: CanvasRun, block: BlockSoFar, positions: Sequence[int], logits: Tensor) -> Proposals:
        """Returns what logits [n, vocab] propose for n positions."""
        sampling = run.options.sampling
        if self.ends == "never":
            logits = without_ends(logits, run.model.tokenizer.eos_token_ids)
        if sampling.logit_bias:
            logits = logits.clone()
            for token, bias in sampling.logit_bias.items():
                logits[:, token] += bias
        if sampling.temperature == 0:
            tokens = logits.argmax(-1).tolist()
        else:
            number = run.ledger.rounds
            draws = [TokenDraw(sampling.truncation, run.random.uniform(place, number, 0)) for place in positions]
            tokens = draw_tokens(logits, draws)
        logprobs, best = logprobs_of(logits, tokens)
        places, ids = np.array(positions, dtype=np.int64), np.array(tokens, dtype=np.int64)
        masked = np.array([run.canvas.is_masked(position) for position in positions], dtype=np.bool_)
        late = np.zeros_like(masked)
        if self.ends == "last":
            late = late_ends(ids, masked, (places >= block.begin) & (places < block.end), run.eos_token_ids)
        return Proposals(
            positions=places,
            masked=masked,
            late=late,
            tokens=ids,
            logprobs=logprobs,
            confidence=np.exp(logprobs if self.score_from == "sample" else best),
            logits=logits,
            block=block,
            random=lambda position: run.random.uniform(position, run.ledger.rounds, 1),
            ends=run.eos_token_ids,
            left=run.left,
            masks_left=run.masks_left,
        )

    def _last_pass(self, run: CanvasRun, rows: int) -> str:
        """Returns the entry of the budget that leaves no pass beside the last one, which fills the rest; "" if none.

        What a pass costs beside its rows is known from those before it.

        Args:
            run: The run.
            rows: Rows of the pass that would come now, of one canvas.
        """
        if self.on_budget == "leave":
            return ""
        whole = run.end - run.canvas.base + 1
        if run.unprompted is not None:
            rows, whole = 2 * rows, 2 * whole
        ledger, needed = run.ledger, {"target_passes": 2.0, "rounds": 2.0, "target_tokens": float(rows + whole)}
        if ledger.target_tokens:
            share = 1.5 * (rows + whole) / ledger.target_tokens  # the last pass computes more logits
            needed |= {name: share * ledger.amount(name) for name in BY_ROWS}
        return next((name for name, amount in needed.items() if run.left(name) < amount), "")

    def _end(self, run: CanvasRun, cap: str) -> Work:
        """Ends the run at a cap: what is masked is filled by one last pass, or left."""
        if self.on_budget == "leave":
            run.cut_off(cap)
            return
        run.extend()
        canvas = run.canvas
        wanted = run.masked(canvas.base, canvas.end)
        logits = yield from self._logits(run, range(canvas.base, canvas.end), wanted)
        found = self.proposals(run, BlockSoFar(canvas.base, canvas.end), wanted, logits)
        run.note(wanted, found.tokens.tolist(), found.confidence.tolist())
        kept = dict(zip(wanted, found.logits, strict=True)) if run.options.logprobs is not None else {}
        tokens, logprobs = found.tokens.tolist(), found.logprobs.tolist()
        run.fill_last(dict(zip(wanted, tokens, strict=True)), dict(zip(wanted, logprobs, strict=True)), kept, cap)
        run.count(rounds=1)

    def _cache(self, submission: Submission) -> str:
        """Returns which cache is used: one of `CacheName` but "auto"."""
        if self.cache != "auto":
            return self.cache
        return "exact" if self._diffusion(submission).block else "none"

    def block_size(self, submission: Submission) -> int | None:
        """Returns the positions of a block; None for the whole canvas."""
        if self.block == "all":
            return None
        return self.block or self._diffusion(submission).block or DEFAULT_BLOCK

    @staticmethod
    def _diffusion(submission: Submission) -> MaskedDiffusion:
        diffusion = submission.model.decoder.config.diffusion
        assert diffusion is not None, "refused where the model fills no masks"
        return diffusion


def _within(found: Logits, begin: int, end: int) -> Logits:
    """Returns what was found for positions from `begin` up to and without `end`."""
    positions, logits = found
    kept = [place for place, position in enumerate(positions) if begin <= position < end]
    return found if len(kept) == len(positions) else ([positions[place] for place in kept], logits[kept])
