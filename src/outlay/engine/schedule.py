"""Which rows of the pending forward requests go into the next pass."""

from __future__ import annotations

from collections.abc import Sequence

from outlay.engine.forward import Forward
from outlay.tree.token_tree import Node, Tree

Share = tuple[Forward, list[Node]]  # a request, and the nodes that the pass computes for it

PREFILL_CHUNK = 256  # rows of prefill in one pass: long enough to be efficient, short enough not to stall the others
PREFILL_CHUNK_ALONE = 512  # rows, where there are no others to be stalled
DECODE_ROWS = 64  # requests of up to this many rows are never cut


def schedule(forwards: Sequence[Forward]) -> list[Share]:
    """Picks the rows of the next pass: short requests whole, then chunks of long ones, first come first served."""
    taken: set[Node] = set()
    shares: list[Share] = []
    others = any(0 < len(forward.pending) <= DECODE_ROWS for forward in forwards)
    room = PREFILL_CHUNK if others else PREFILL_CHUNK_ALONE
    for forward in sorted(forwards, key=lambda forward: len(forward.pending) > DECODE_ROWS):
        limit = len(forward.pending) if len(forward.pending) <= DECODE_ROWS else max(room, 0)
        if not limit:
            continue
        rows = [node for node in forward.pending if node not in taken][:limit]
        if len(rows) < len(forward.pending):  # what another run computes in this pass may lie above our own rows
            rows = _reachable(rows, taken)
        room -= len(rows)
        taken.update(rows)
        shares.append((forward, rows))
    return [(forward, rows) for forward, rows in shares if rows]


def group_by_tree(shares: Sequence[Share]) -> list[tuple[Tree, list[Node]]]:
    """Groups the rows by the tree whose view of the cache they are computed under."""
    groups: dict[Tree, list[Node]] = {}
    for forward, nodes in shares:
        for node in nodes:
            tree = forward.tree_of(node)
            assert tree is not None, "a request for a node that is in no tree was refused"
            groups.setdefault(tree, []).append(node)
    return list(groups.items())


def _reachable(rows: list[Node], taken: set[Node]) -> list[Node]:
    """Returns the rows whose path above is computed or part of this pass."""
    here = set(taken)
    reachable = []
    for node in rows:
        if node.parent is None or node.parent.computed or node.parent in here:
            here.add(node)
            reachable.append(node)
    return reachable
