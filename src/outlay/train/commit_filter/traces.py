"""What a commit filter learns from: the rounds of a reference and of the oracle behind each prompt."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from outlay.diffuse.rule import DEFAULT_BLOCK
from outlay.engine.handle import Result
from outlay.engine.method import Method
from outlay.errors import UsageError
from outlay.lm import LM
from outlay.progress import ShowProgress
from outlay.train.commit_filter.oracle import ABSENT, EGP, MOMENTS, Moment, OneByOne
from outlay.train.commit_filter.recipe import FilterRecipe

TOGETHER = 32  # prompts of a shard, decoded side by side
FEWEST = 10  # prompts
RECORD = ("confidence", "final", "masked", "present", "prompt", "oracle")
MOMENT = ("positions", "tokens", "confidence", "masked")


@dataclass(frozen=True)
class Traces:
    """What a filter learns from: n records of m prompts."""

    confidence: Tensor
    """Probability of the most probable token of each place of the block, float32 [n, block]."""
    final: Tensor
    """Whether that token is the reference's, bool [n, block]."""
    masked: Tensor
    """Whether the place could be filled, bool [n, block]."""
    present: Tensor
    """Whether the place is on the canvas, bool [n, block]."""
    prompt: Tensor
    """The prompt that a record is of, int64 [n]."""
    oracle: Tensor
    """Whether it is of the oracle's path, bool [n]."""
    answers: Tensor
    """The reference of each prompt, int64 [m, length]."""
    passes: Tensor
    """Passes of the reference and of the oracle for each prompt, int64 [m, 2]."""

    def __len__(self) -> int:
        return len(self.confidence)

    def of(self, chosen: Tensor) -> Traces:
        """Returns chosen records, bool or int64 [k]; answers and passes stay those of all prompts."""
        records = {name: getattr(self, name)[chosen] for name in RECORD}
        return replace(self, **records)


def collect(
    lm: LM, prompts: Sequence[list[int]], recipe: FilterRecipe, folder: Path | None, progress: ShowProgress
) -> Traces:
    """Returns the records of both paths behind all prompts.

    Args:
        lm: The model.
        prompts: Token ids.
        recipe: Block and length of the canvas.
        folder: Where a shard of every 32 prompts is kept, to go on from; None: nowhere.
        progress: Called before each shard.
    """
    if not lm.model.writes_canvas:
        raise UsageError(f"{lm.model.name} writes from left to right; a filter is fitted to a model that fills masks")
    if len(prompts) < FEWEST:
        raise UsageError(
            f"a filter is fitted to {FEWEST} prompts or more, about 1,000 are usual; there are {len(prompts)}"
        )
    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True)
    known = f"{lm.model.fingerprint} {block_of(lm, recipe)} {recipe.length} {list(map(list, prompts))}"
    about = {"of": hashlib.sha256(known.encode()).hexdigest()}
    shards = []
    for start in range(0, len(prompts), TOGETHER):
        progress("decoding by the reference and the oracle", start, len(prompts))
        path = None if folder is None else folder / f"{start:06d}.safetensors"
        if path is not None and path.exists():
            shards.append(_kept(path, about))
            continue
        shards.append(traced(lm, prompts[start : start + TOGETHER], start, recipe))
        if path is not None:
            part = path.with_suffix(".part")
            save_file({each.name: getattr(shards[-1], each.name) for each in fields(Traces)}, part, about)
            part.replace(path)
    return Traces(**{each.name: torch.cat([getattr(shard, each.name) for shard in shards]) for each in fields(Traces)})


def traced(lm: LM, prompts: Sequence[list[int]], first: int, recipe: FilterRecipe) -> Traces:
    """Returns the records of both paths behind a few prompts, which are numbered from `first` on."""
    block = block_of(lm, recipe)
    ones = decoded(lm, prompts, [OneByOne(block=block)] * len(prompts), recipe.length)
    oracles = [EGP(block=block, reference=(*p, *one.tokens)) for p, one in zip(prompts, ones, strict=True)]
    twos = decoded(lm, prompts, oracles, recipe.length)
    shards = []
    for place, (prompt, one, two) in enumerate(zip(prompts, ones, twos, strict=True)):
        text = torch.tensor([*prompt, *one.tokens, ABSENT])  # the last stands for places that are not on the canvas
        moments = one.facts[MOMENTS] + two.facts[MOMENTS]
        shards.append(_records(moments, text) | {
            "prompt": torch.full((len(moments),), first + place),
            "oracle": torch.arange(len(moments)) >= len(one.facts[MOMENTS]),
        })  # fmt: skip
    return Traces(
        **{name: torch.cat([shard[name] for shard in shards]) for name in RECORD},
        answers=torch.tensor([one.tokens for one in ones]),
        passes=torch.tensor([[one.ledger.rounds, two.ledger.rounds] for one, two in zip(ones, twos, strict=True)]),
    )


def _records(moments: Sequence[Moment], text: Tensor) -> dict[str, Tensor]:
    stacked = {name: torch.tensor(np.stack([getattr(each, name) for each in moments])) for name in MOMENT}
    return {
        "confidence": stacked["confidence"].float(),
        "final": stacked["tokens"] == text[stacked["positions"]],
        "masked": stacked["masked"],
        "present": stacked["positions"] != ABSENT,
    }


def decoded(
    lm: LM, prompts: Sequence[list[int]], methods: Sequence[Method], length: int, *, ends: bool = False
) -> list[Result]:
    """Returns greedy texts behind prompts, each by its method; `ends` says whether an end token ends them."""
    results: list[Result] = []
    for start in range(0, len(prompts), TOGETHER):
        pairs = zip(prompts[start : start + TOGETHER], methods[start : start + TOGETHER], strict=True)
        with lm.engine.together():
            handles = [
                lm.submit(prompt, method=method, max_tokens=length, ignore_eos=not ends) for prompt, method in pairs
            ]
        results += [handle.result() for handle in handles]
    return results


def block_of(lm: LM, recipe: FilterRecipe) -> int:
    """Returns the positions of a block. Raises `UsageError` where the model's own is another."""
    diffusion = lm.model.decoder.config.diffusion
    own = diffusion.block if diffusion is not None else 0
    if own and recipe.block not in (0, own):
        raise UsageError(f"{lm.model.name} is block-causal in blocks of {own}, so block must be {own}")
    return recipe.block or own or DEFAULT_BLOCK


def _kept(path: Path, about: dict[str, str]) -> Traces:
    try:
        with safe_open(path, framework="pt") as file:
            same = (file.metadata() or {}) == about
    except (SafetensorError, OSError) as error:
        raise UsageError(f"{path} can't be read; remove it, and it is made again: {error}") from error
    if not same:
        raise UsageError(f"{path.parent} holds records of another model, other prompts or another canvas; remove it")
    return Traces(**load_file(path))
