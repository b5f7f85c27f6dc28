"""How often a filter writes what one token a round writes, and the score from which it does so often enough."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import replace
from statistics import mean

from outlay.diffuse.ends import EndsName
from outlay.diffuse.learn2pd import CommitFilter, Learn2PD
from outlay.engine.handle import Result
from outlay.lm import LM
from outlay.progress import ShowProgress
from outlay.train.commit_filter.recipe import FilterRecipe
from outlay.train.commit_filter.traces import block_of, decoded

ACCEPTS = (0.9999, 0.9995, 0.999, 0.998, 0.995, 0.99, 0.98, 0.96, 0.9, 0.8, 0.7, 0.6, 0.5)  # that are tried, in turn
NEVER = 1.0  # a score above which there is none


class Agreement:
    """Decodes prompts that were held out by a filter, and compares with their references.

    Args:
        lm: The model.
        prompts: Token ids of the prompts.
        answers: The reference of each, as long as the canvas.
        recipe: Block and length of the canvas.
    """

    def __init__(
        self, lm: LM, prompts: Sequence[list[int]], answers: Sequence[list[int]], recipe: FilterRecipe
    ) -> None:
        self._lm, self._prompts, self._recipe = lm, prompts, recipe
        self._block = block_of(lm, recipe)
        self._texts = [self._text(answer) for answer in answers]

    def calibrated(self, found: CommitFilter, agreement: float, progress: ShowProgress) -> CommitFilter:
        """Returns a filter with the lowest score from which at least this share of texts is the reference's.

        The next higher scores do as well: a lower one that happens to agree on these prompts would not on others. Where
        no score is that good, it is the one of the highest share; where no text is right, the filter accepts nothing.
        """
        shares: dict[float, float] = {}
        for number, accept in enumerate(ACCEPTS):
            progress(f"calibrating, accept {accept}", number, len(ACCEPTS))
            enough = max(shares.values(), default=0.0) >= agreement
            shares[accept] = self.of(replace(found, accept=accept))[1]
            if enough and shares[accept] < agreement:
                break
        least = min(agreement, max(shares.values()))
        good = [accept for accept, share in shares.items() if share >= least > 0]
        return replace(found, accept=min(good, default=NEVER))

    def of(self, found: CommitFilter) -> tuple[float, float]:
        """Returns the mean passes over whole canvases, and the share of texts that are the reference's."""
        results = self._decoded(found, "stop", ends=False)
        return mean(result.ledger.rounds for result in results), self._same(results)

    def of_cutting(self, found: CommitFilter) -> tuple[float, float]:
        """Returns the share of the same texts with end-of-text prediction, and its share of computed positions."""
        cut, whole = (self._decoded(found, ends, ends=True) for ends in ("cut", "keep"))
        positions = [sum(result.ledger.target_tokens for result in results) for results in (cut, whole)]
        return self._same(cut), positions[0] / positions[1]

    def _decoded(self, found: CommitFilter, policy: EndsName, *, ends: bool) -> list[Result]:
        rule = Learn2PD(filter=found, ends=policy, block=self._block)
        return decoded(self._lm, self._prompts, [rule] * len(self._prompts), self._recipe.length, ends=ends)

    def _same(self, results: Sequence[Result]) -> float:
        return mean(float(self._text(result.tokens) == text) for result, text in zip(results, self._texts, strict=True))

    def _text(self, tokens: Sequence[int]) -> list[int]:
        """Returns tokens up to the first end."""
        ends = self._lm.model.tokenizer.eos_token_ids
        return list(itertools.takewhile(lambda token: token not in ends, tokens))
