"""Text that a model writes by itself, with what its head read at every token: what drafts are distilled from.

The text is kept in shards of a few dozen passages, each written whole when it is done, so that a run that was killed
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
TOGETHER = 32  # passages of a shard, which are written at the same time
LONGEST = 320  # tokens of an answer
WARM_EVERY, WARM = 4, 0.7  # every fourth text is drawn at this temperature; the others are greedy, as most drafted text


@dataclass(frozen=True)
class Passage:
    """`tokens` int64 [n], of which the model's own words begin at `begin`; `features` float16 [n, hidden_size], zeros
    for the last token, which the model did not read."""

    tokens: Tensor
    begin: int
    features: Tensor


class Harvest(Method):
    """Samples, and keeps the tokens and the features of all that was computed."""

    about: ClassVar[About] = About(
        name="harvest",
        summary="samples, and keeps what the head read",
        paper="",
        family="training",
        spends="one target pass a token",
        saves="",
    )

    def __init__(self) -> None:
        self.passage: Passage | None = None

    def decode(self, run: TreeRun) -> Work:
        """Decodes as `sample` does; what was computed is taken when the engine ends the run."""
        node = run.tip
        try:
            while True:
                node = run.commit((yield from run.next_token(node)))
        finally:
            path = run.tip.path()
            tokens = torch.tensor([node.token for node in path])
            features = torch.zeros(len(path), run.model.decoder.config.hidden_size, dtype=torch.float16)
            computed = [node for node in path if node.computed]
            for row, feature in zip(features, run.target.hidden_states(computed), strict=False):
                row.copy_(feature)
            self.passage = Passage(tokens, len(run.prompt), features)


class Corpus:
    """The shards in a folder, for one model and seed, and the way to get more of them."""

    def __init__(self, folder: Path, model: Model, seed: int) -> None:
        """Opens the shards that are there. Raises `UsageError` for those of another model or seed."""
        self.folder, self._about = folder, {"fingerprint": model.fingerprint, "seed": str(seed)}
        self._seed = seed
        folder.mkdir(parents=True, exist_ok=True)
        self.tokens = 0
        self.shards = 0
        while (path := self._path(self.shards)).exists():
            self.tokens += self._count(path)
            self.shards += 1

    def grow(self, lm: LM, tokens: int, prompts: Sequence[list[int]] | None, progress: Progress) -> None:
        """Has the model write until it has written `tokens` tokens of its own, to its own prompts or to those given,
        again and again at other temperatures and seeds.
        """
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
            passages = self._written(lm, indices, asked)
            self._save(passages)

    def passages(self) -> Iterator[Passage]:
        """Yields all texts, in order."""
        for shard in range(self.shards):
            with safe_open(self._path(shard), framework="pt") as file:
                found = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - no dict
            ends = found["ends"].tolist()
            for begin, end, own in zip([0, *ends], ends, found["begins"].tolist(), strict=False):
                yield Passage(found["tokens"][begin:end].long(), own, found["features"][begin:end])

    def _written(self, lm: LM, indices: Sequence[int], asked: Sequence[list[int]]) -> list[Passage]:
        methods = [Harvest() for _ in asked]
        room = lm.model.decoder.config.max_positions - LONGEST
        with lm.engine.together():
            handles = [
                lm.submit(
                    prompt[:room],
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
            "features": torch.cat([passage.features for passage in passages]),
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
