"""Tells which tokens of a prompt a policy lets attend, beside what the policy says of itself."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from outlay.about import About
from outlay.attend.policy import COUNTS, CachePolicy, Hold, Keeper, LayerChoice, Prompt, Rewrite, Step


@dataclass(frozen=True)
class Told(CachePolicy):
    """A policy whose choice for the prompt is in the facts: `attending`, positions by layer, and the `image`'s."""

    policy: CachePolicy
    """What chooses."""

    about: ClassVar[About] = About(
        name="told", summary="", paper="", family="attention", spends="", saves="", exact=False, task="cache",
        counts=COUNTS,
    )  # fmt: skip

    def keeper(self, prompt: Prompt) -> Keeper:
        return _Told(self.policy.keeper(prompt), prompt)

    def check(self, prompt: Prompt) -> None:
        self.policy.check(prompt)


class _Told(Keeper):
    """Hands everything on."""

    def __init__(self, inner: Keeper, prompt: Prompt) -> None:
        self._inner = inner
        self._image = (~prompt.is_text).nonzero()[:, 0].tolist()
        self._attending: list[list[int]] = []

    def prompt(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> LayerChoice:
        choice = self._inner.prompt(layer, q, k, v)
        self._attending.append([*range(len(q))] if choice.rows is None else choice.rows.tolist())
        return choice

    def end_of_prompt(self) -> Sequence[Sequence[Hold]]:
        return self._inner.end_of_prompt()

    def probe_flops(self) -> int:
        return self._inner.probe_flops()

    def watches(self, tail: int) -> bool:
        return self._inner.watches(tail)

    def step(self, step: Step) -> Rewrite | None:
        return self._inner.step(step)

    def facts(self) -> dict[str, Any]:
        return {**self._inner.facts(), "attending": self._attending, "image": self._image}
