"""Loads the model of a comparison and tries every contender."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from outlay.compare.comparison import Key
from outlay.compare.contenders import Contender, contenders, refuse_extras, tried
from outlay.compare.declaration import Declaration
from outlay.compare.items import Item
from outlay.compare.runner import Runner
from outlay.lm import LM, load
from outlay.progress import ShowProgress, silent


@dataclass(frozen=True)
class Prepared:
    """What runs shards: the loaded model, and the contenders at temperatures that they take."""

    declaration: Declaration
    items: Sequence[Item]
    lm: LM
    contenders: Sequence[Contender]

    @property
    def keys(self) -> list[Key]:
        """The contenders as a journal has them."""
        return [contender.key for contender in self.contenders]

    def runner(self) -> Runner:
        """Returns a runner of shards."""
        return Runner(self.lm, self.declaration, self.contenders, self.items)


def prepare(declaration: Declaration, items: Sequence[Item], progress: ShowProgress = silent) -> Prepared:
    """Loads the model and tries every contender on the first prompt. Raises `UsageError` for one that can't run."""
    every = contenders(declaration)
    refuse_extras(items, every)
    lm = load(
        declaration.model, dtype=declaration.dtype, device=declaration.device, threads=declaration.threads,
        progress=progress,
    )  # fmt: skip
    lm.draft(declaration.draft)
    prompt = lm.encode(items[0].prompt, chat=not declaration.raw, **items[0].encoding)
    ready = []
    for done, contender in enumerate(every):
        progress(f"warming up {contender.label}", done, len(every))
        ready.append(tried(contender, lm, declaration, prompt, items[0]))
    lm.engine.settle()  # what passes cost is measured beside the first texts
    return Prepared(declaration, items, lm, ready)
