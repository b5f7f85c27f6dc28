"""Text that a model writes by itself, with its hidden states at every token: the data that drafts are distilled from.

The text is kept in shards of a few dozen passages. A shard is written whole or not at all, so a run that was killed
goes on where it was.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from outlay.engine.method import About, Method, Work
from outlay.engine.random import mix
from outlay.engine.tree_run import TreeRun
from outlay.errors import UsageError
from outlay.lm import LM
from outlay.models.load import Model
from outlay.train.questions import questions

Progress = Callable[[str, int, int], None]
STATES = "features"  # the tensor's name in a shard
TOGETHER = 32  # passages of a shard, decoded in one batch
LONGEST = 320  # tokens of an answer, at most
WARM_EVERY, WARM = (
    4,
    0.7,
)  # every fourth text is sampled at this temperature, the others greedily, as is usual


@dataclass(frozen=True)
class Passage:
    """A prompt and the model's answer."""

    tokens: Tensor
    """int64 [n], prompt and answer."""
    begin: int
    """Where the answer begins."""
    hidden_states: Tensor
    """float16 [n, hidden_size]: what the LM head read at each token, zeros at the last, which was never fed back."""


class Harvest(Method):
    """Samples, and keeps the tokens with their hidden states."""

    about: ClassVar[About] = About(
        name="harvest",
        summary="samples, and keeps the hidden states",
        paper="",
        family="training",
        spends="one target pass a token",
        saves="",
    )

    def __init__(self) -> None:
        self.passage: Passage | None = None

    def decode(self, run: TreeRun) -> Work:
        """Decodes as `sample` does, and collects `passage` when the engine ends the run."""
        node = run.tip
        try:
            while True:
                node = run.commit((yield from run.next_token(node)))
        finally:
            path = run.tip.path()
            tokens = torch.tensor([node.token for node in path])
            hidden_states = torch.zeros(len(path), run.model.decoder.config.hidden_size, dtype=torch.float16)
            computed = [node for node in path if node.computed]
            for row, state in zip(hidden_states, run.target.hidden_states(computed), strict=False):
                row.copy_(state)
            self.passage = Passage(tokens, len(run.prompt), hidden_states)


class Corpus:
    """The shards of one model and seed in a folder; `grow` has the model write more."""

    def __init__(self, folder: Path, model: Model, seed: int) -> None:
        """Opens the shards that are there.

        Raises:
            UsageError: They are of another model or seed, or can't be read.
        """
        self.folder, self._about = folder, {"fingerprint": model.fingerprint, "seed": str(seed)}
        self._seed = seed
        folder.mkdir(parents=True, exist_ok=True)
        self.tokens = 0
        self.shards = 0
        while (path := self._path(self.shards)).exists():
            self.tokens += self._count(path)
            self.shards += 1

    def grow(self, lm: LM, tokens: int, prompts: Sequence[list[int]] | None, progress: Progress) -> None:
        """Has the model write until the corpus holds enough of its own tokens.

        Args:
            lm: The model.
            tokens: The model's own tokens, prompts not counted.
            prompts: Token ids of prompts, answered again and again with other seeds; None: the model's own `questions`.
            progress: Called before each shard.
        """
        if lm.model.encoder is not None:
            raise UsageError(f"{lm.model.name} has an encoder, for which no draft is trained; lookup drafts for it")
        lm.engine.worker(lm.model).keep_hidden_states()
        while self.tokens < tokens:
            progress(f"writing text, {self.tokens} of {tokens} tokens", self.tokens, tokens)
            first = self.shards * TOGETHER
            indices = range(first, first + TOGETHER)
            asked = (
                questions(lm, indices, self._seed)
                if prompts is None
                else [prompts[index % len(prompts)] for index in indices]
            )
            self._save(self._answers(lm, indices, asked))

    def passages(self) -> Iterator[Passage]:
        """Yields all passages, in order."""
        for shard in range(self.shards):
            with safe_open(self._path(shard), framework="pt") as file:
                found = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - no dict
            ends = found["ends"].tolist()
            for begin, end, own in zip([0, *ends], ends, found["begins"].tolist(), strict=False):
                yield Passage(found["tokens"][begin:end].long(), own, found[STATES][begin:end])

    def _answers(self, lm: LM, indices: Sequence[int], asked: Sequence[list[int]]) -> list[Passage]:
        methods = [Harvest() for _ in asked]
        longest_prompt = lm.model.decoder.config.max_positions - LONGEST
        with lm.engine.together():
            handles = [
                lm.submit(
                    prompt[:longest_prompt],
                    method=method,
                    max_tokens=LONGEST,
                    seed=mix(self._seed, index, 3),
                    temperature=WARM if index % WARM_EVERY == WARM_EVERY - 1 else 0.0,
                )
                for index, prompt, method in zip(indices, asked, methods, strict=True)
            ]
        for handle in handles:
            handle.result()
        lm.engine.clear()
        return [method.passage for method in methods if method.passage is not None]

    def _save(self, passages: Sequence[Passage]) -> None:
        path = self._path(self.shards)
        held = {
            "tokens": torch.cat([passage.tokens for passage in passages]).int(),
            STATES: torch.cat([passage.hidden_states for passage in passages]),
            "ends": torch.tensor(list(itertools.accumulate(len(passage.tokens) for passage in passages))),
            "begins": torch.tensor([passage.begin for passage in passages]),
        }
        own = sum(len(passage.tokens) - passage.begin for passage in passages)
        part = path.with_suffix(".part")
        save_file(held, part, {**self._about, "own": str(own)})
        part.replace(path)
        self.shards += 1
        self.tokens += own

    def _count(self, path: Path) -> int:
        try:
            with safe_open(path, framework="pt") as file:
                about: dict[str, Any] = file.metadata() or {}
        except (SafetensorError, OSError) as error:
            raise UsageError(f"{path} can't be read; remove it, and it is written again: {error}") from error
        if {name: about.get(name) for name in self._about} != self._about:
            raise UsageError(f"{self.folder} holds texts of another model or seed; choose another folder")
        return int(about["own"])

    def _path(self, shard: int) -> Path:
        return self.folder / f"{shard:05d}.safetensors"
