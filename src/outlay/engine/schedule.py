"""Which rows of the pending forward requests go into the next pass: running text whole, and prompts in pieces.

Beside running text a piece is so long that the pass takes a few times what it takes without, by what rows of prompts
cost at present. The clock decides which rows share a pass, never what is in them: a row has the same bits in any.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import count

from outlay.engine.denoise import Denoise
from outlay.engine.forward import Forward
from outlay.tree.token_tree import Node, Tree

Share = tuple[Forward, list[Node]]  # a request, and the nodes that the pass computes for it


@dataclass(frozen=True)
class Pieces:
    """How prompts are cut."""

    alone: int = 512
    """Rows of prompts in a pass where no text is running: the products are as efficient as they get."""
    most: int = 256
    """Rows beside running text, at most; and always, where a run's passes are capped, since how far it gets must not
    depend on the clock."""
    first: int = 64
    """Rows beside running text before anything is measured."""
    least: int = 8
    """Rows beside running text, at least, so that prompts get on where rows are dear."""
    gap: float = 2.5
    """What a pass beside running text may take, over one without prompts."""
    hurry: float = 0.05
    """What a pass with a prompt may take of the seconds that a run in it may take."""
    turn: int = 256
    """Rows after which a prompt lets the next one have its turn."""
    whole: int = 64
    """Rows of a request for running text, at most."""
    catch_up: int = 8
    """Rows above the nodes that are asked for, of a request for running text, at most."""
    canvases: int = 512
    """Rows of canvases, at most, beyond the first canvas, which is never cut: rows gain nothing from more company, and
    the logits of all of them are held at once."""


PIECES = Pieces()


class Schedule:
    """The passes of one model: what goes into the next one, and what the last ones took."""

    def __init__(self, pieces: Pieces = PIECES) -> None:
        self._pieces = pieces
        self._turns = count()
        self._text_seconds = 0.0  # of a pass without prompts; 0 before the first
        self._row_seconds = 0.0  # of a row of a prompt; 0 before the first

    def reads(self, forward: Forward) -> bool:
        """Tells whether a request reads a prompt: it may be cut."""
        pending = len(forward.pending)
        return pending > self._pieces.whole or pending - len(forward.nodes) > self._pieces.catch_up

    def pick_canvases(self, denoises: Sequence[Denoise]) -> list[Denoise]:
        """Picks the canvases of the next pass, whole; where there are too many they take turns."""
        for denoise in denoises:
            if denoise.turn < 0:
                denoise.turn = next(self._turns)
        picked: list[Denoise] = []
        room = self._pieces.canvases
        for denoise in sorted(denoises, key=lambda denoise: denoise.turn):
            if picked and room < len(denoise.cells):
                break
            picked.append(denoise)
            room -= len(denoise.cells)
        return picked

    def pick(self, forwards: Sequence[Forward], *, canvases: bool = False) -> list[Share]:
        """Picks the rows of the next pass: those of running text whole, then pieces of prompts, which take turns.

        Args:
            forwards: The requests.
            canvases: Whether the pass has rows of canvases beside these.
        """
        taken: set[Node] = set()
        shares: list[Share] = []
        prompts = [forward for forward in forwards if self.reads(forward)]
        for forward in prompts:
            if forward.turn < 0:
                forward.turn = next(self._turns)
        prompts.sort(key=lambda forward: forward.turn)
        reading = {*prompts}
        running = (forward not in reading and forward.account.ledger.tokens_out for forward in forwards)
        beside = canvases or any(running)
        room = self.room(forwards, beside=beside)
        for forward in [*(forward for forward in forwards if forward not in reading), *prompts]:
            limit = len(forward.pending)
            if forward in reading:
                limit = 0 if room <= 0 else self._pieces.most if counts_passes(forward) else room
            rows = _whole_blocks([node for node in forward.pending if node not in taken], limit)
            if len(rows) < len(forward.pending):  # what another run computes in this pass may lie above our own rows
                rows = _reachable(rows, taken)
            if forward in reading:
                room -= len(rows)
            taken.update(rows)
            shares.append((forward, rows))
        return [(forward, rows) for forward, rows in shares if rows]

    def room(self, forwards: Sequence[Forward], *, beside: bool) -> int:
        """Returns how many rows of prompts the next pass takes. `beside`: whether it has rows of running text."""
        pieces = self._pieces
        caps = [cap for forward in forwards if (cap := forward.account.budget.caps.get("seconds")) is not None]
        if not beside and not caps:
            return pieces.alone
        if not self._row_seconds:
            return pieces.first
        seconds = [pieces.hurry * cap for cap in caps]
        if beside and self._text_seconds:
            seconds.append((pieces.gap - 1) * self._text_seconds)
        rows = int(min(seconds) / self._row_seconds) if seconds else pieces.first
        return max(pieces.least, min(rows, pieces.most if beside else pieces.alone))

    def observe(self, shares: Sequence[Share], seconds: float) -> None:
        """Takes in what a pass took, before its requests are settled, and ends turns."""
        read = 0
        for forward, rows in shares:
            if self.reads(forward):
                read += len(rows)
                forward.turn_rows += len(rows)
                if forward.turn_rows >= self._pieces.turn:
                    forward.turn, forward.turn_rows = next(self._turns), 0
        if not read:
            self._text_seconds = mixed(self._text_seconds, seconds)
        elif read == sum(len(rows) for _, rows in shares):
            self._row_seconds = mixed(self._row_seconds, seconds / read)
        else:
            self._row_seconds = mixed(self._row_seconds, max(seconds - self._text_seconds, 0.1 * seconds) / read)


def mixed(mean: float, value: float, weight: float = 0.3) -> float:
    """Returns a mean that follows the last few values; 0 is none yet."""
    return mean + weight * (value - mean) if mean else value


def counts_passes(forward: Forward) -> bool:
    """Tells whether the run's passes are capped."""
    return any(name.endswith("_passes") for name in forward.account.budget.caps)


def group_by_tree(shares: Sequence[Share]) -> list[tuple[Tree, list[Node]]]:
    """Groups the rows by the tree whose view of the cache they are computed under."""
    groups: dict[Tree, list[Node]] = {}
    for forward, nodes in shares:
        for node in nodes:
            tree = forward.tree_of(node)
            assert tree is not None, "a request for a node that is in no tree was refused"
            groups.setdefault(tree, []).append(node)
    return list(groups.items())


def _whole_blocks(rows: list[Node], limit: int) -> list[Node]:
    """Returns the first `limit` rows, and those that see each other with the last of them."""
    if 0 < limit < len(rows):
        block = rows[limit].tree.block
        while limit < len(rows) and rows[limit].position % block:
            limit += 1
    return rows[:limit]


def _reachable(rows: list[Node], taken: set[Node]) -> list[Node]:
    """Returns the rows whose path above is computed or part of this pass."""
    here = set(taken)
    reachable = []
    for node in rows:
        if node.parent is None or node.parent.computed or node.parent in here:
            here.add(node)
            reachable.append(node)
    return reachable
