"""What is planned for a round, drafted or not."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from outlay.decode.draft.auto.candidates import Candidates
from outlay.decode.draft.auto.gate import Arm
from outlay.speculation.rounds import DraftTree


@dataclass
class Plan:
    """A round: its arm, and what it drafts of the `candidates`. It is expected to make `tokens` in `seconds`;
    `text_tree` is what would be drafted without the draft head.
    """

    arm: Arm
    seconds: float
    tokens: float = 1.0
    tree: DraftTree = field(default_factory=DraftTree)
    text_tree: DraftTree = field(default_factory=DraftTree)
    candidates: Candidates | None = None

    def added(self, committed: Sequence[int]) -> dict[Arm, int]:
        """Returns how many of the tokens that a round committed were accepted thanks to each arm."""
        if self.candidates is None:
            return {}
        by_text = len(self.text_tree.follow(committed[:-1]))
        added = {Arm.TEXT: by_text, Arm.DRAFT: len(committed) - 1 - by_text}
        return {arm: tokens for arm, tokens in added.items() if arm <= self.arm}


class Shadows:
    """Plans of rounds that drafted nothing, until the text has shown what they would have given."""

    def __init__(self) -> None:
        self._plans: deque[tuple[int, Plan]] = deque()

    def add(self, begin: int, plan: Plan) -> None:
        """Keeps a plan that was made after `begin` tokens of the text."""
        self._plans.append((begin, plan))

    def settle(self, text: Sequence[int]) -> Iterator[int]:
        """Teaches the acceptance model what became of the plans that `text` decides; yields their accepted tokens."""
        while self._plans:
            begin, plan = self._plans[0]
            committed = text[begin:]
            assert plan.candidates is not None
            tree = plan.candidates.tree
            if len(tree.follow(committed)) == len(committed) < tree.depth:
                return
            self._plans.popleft()
            plan.candidates.learn(committed)
            yield len(plan.tree.follow(committed))
