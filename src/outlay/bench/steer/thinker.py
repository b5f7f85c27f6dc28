"""A tiny model that thinks before it answers, trained here with a seed: where a chain of pointers ends.

A prompt such as "CD,AB,DZ,BC:A=" asks for the letter before Z, from A on: D. Half of the thinking is
terse, a letter a line. The other half is verbose: it says where it is and where that leads, and then checks it a
geometric number of times. Both lead to the same answer, so that an answer need not cost what it costs on average, and a
thinking that is cut off has not come to its end.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import tokenizers
import torch
import torch.nn.functional as F

from outlay.models.reasoning import Tags
from outlay.progress import ShowProgress
from outlay.train.draft_head import bfloat16_is_faster
from outlay.train.schedule import schedule
from outlay.train.small_llama import SmallLlama, write_small_llama
from outlay.train.word_tokenizer import word_tokenizer, words_of

END = "<end>"
TAGS = Tags("<think>", "</think>")
TEMPLATE = "{% for m in messages %}{{ m['content'] }}\n{% endfor %}{{ '<think>\\n' }}"
LETTERS, NOWHERE = "ABCDEFGH", "Z"
POINTERS = (2, 6)  # of a chain, at least and at most
CHECK_AGAIN = 0.67  # probability of one more check, so that a terse thinking takes 0.2 of the mean
MOST_CHECKS = 6  # of one pointer
POSITIONS = 512  # of the longest text
TRAINING = 1 << 32  # seeds of problems from here on are for training
PADDED_TOGETHER = 16  # texts of a step, neighbours in length, so that little is padded
IGNORED = -100


@dataclass(frozen=True)
class ThinkerRecipe:
    """How the model is trained."""

    layers: int = 3
    """Decoder layers."""
    hidden: int = 64
    """Width of the hidden states."""
    heads: int = 4
    """Attention heads."""
    inner: int = 128
    """Width within an MLP."""
    terse_steps: int = 240
    """Steps on terse texts alone, from which it learns to follow pointers."""
    steps: int = 100
    """Steps on texts of both kinds."""
    batch: int = 64
    """Texts of a step."""
    lr: float = 6e-3
    """Highest learning rate of AdamW."""
    warmup: float = 0.03
    """Share of the steps of each kind over which it rises; then it falls."""
    seed: int = 0
    """Fixes the weights at the start and the texts."""


@dataclass(frozen=True)
class Problem:
    """A problem with a way to think about it."""

    prompt: str
    thinking: str
    answer: str


def problem(seed: int, number: int, terse: bool = False) -> Problem:
    """Returns the problem of a seed and a number; half of them are terse, or all."""
    draw = random.Random(f"{seed}/{number}")
    chain = [*draw.sample(LETTERS, draw.randint(*POINTERS) + 1), NOWHERE]
    pairs = list(itertools.pairwise(chain))
    lines = list[str]()
    if draw.random() < 0.5 or terse:
        lines += chain
    else:
        for before, after in pairs:
            lines += [f"now at {before}", f"so {before}>{after}"]
            checks = 0
            while checks < MOST_CHECKS and draw.random() < CHECK_AGAIN:
                checks += 1
            lines += [f"wait check {before}>{after}"] * checks
    shuffled = ",".join("".join(pair) for pair in draw.sample(pairs, len(pairs)))
    return Problem(f"{shuffled}:{chain[0]}=", "\n".join(lines), chain[-2])


def thinker_tokenizer() -> tokenizers.Tokenizer:
    """Returns a tokenizer with a token for each letter, pointer, sign and word of the thinking, and for the tags."""
    pointers = ["".join(pair) for pair in itertools.permutations(LETTERS + NOWHERE, 2)]
    return word_tokenizer(words_of(["now at", "so", "wait check", *pointers]), [*TAGS, END])


def train_thinker(folder: Path, recipe: ThinkerRecipe, progress: ShowProgress) -> None:
    """Trains the model and writes it to `folder`, in the hub's layout."""
    torch.manual_seed(recipe.seed)
    tokenizer = thinker_tokenizer()
    net = SmallLlama(recipe, tokenizer.get_vocab_size(), POSITIONS)
    optimizer = torch.optim.AdamW(net.parameters(), lr=recipe.lr, betas=(0.9, 0.95), weight_decay=0.01)
    done, every = 0, recipe.terse_steps + recipe.steps
    for steps, terse in ((recipe.terse_steps, True), (recipe.steps, False)):
        for step in range(steps):
            optimizer.param_groups[0]["lr"] = recipe.lr * schedule(step, steps, recipe.warmup)
            loss = learn(net, batch_of(tokenizer, recipe, done, terse))
            torch.nn.utils.clip_grad_norm_(net.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
            done += 1
            progress(f"training a model that thinks, loss {loss:.3f}", done, every)
    write_small_llama(
        folder, net, recipe, tokenizer, END, positions=POSITIONS, recorded={}, changes={}, template=TEMPLATE
    )


def learn(net: SmallLlama, texts: Sequence[tuple[list[int], list[int]]]) -> float:
    """Adds the gradients of the replies' mean cross-entropy; returns it. `texts` are sorted by length."""
    total, replies = 0.0, sum(len(reply) for _, reply in texts)
    parts = len(texts) // PADDED_TOGETHER
    for part in range(parts):
        tokens, targets = padded(texts[part * len(texts) // parts : (part + 1) * len(texts) // parts])
        own = targets != IGNORED
        with torch.autocast("cpu", torch.bfloat16, enabled=bfloat16_is_faster()):
            logits = net.logits(net(tokens)[own])
        loss = F.cross_entropy(logits.float(), targets[own], reduction="sum") / replies
        loss.backward()
        total += loss.item()
    return total


def batch_of(
    tokenizer: tokenizers.Tokenizer, recipe: ThinkerRecipe, step: int, terse: bool
) -> list[tuple[list[int], list[int]]]:
    """Returns the texts of a step as token ids, sorted by length."""
    seed, first = TRAINING * (recipe.seed + 1), step * recipe.batch
    texts = [ids(tokenizer, problem(seed, number, terse)) for number in range(first, first + recipe.batch)]
    return sorted(texts, key=lambda text: sum(map(len, text)))


def ids(tokenizer: tokenizers.Tokenizer, each: Problem) -> tuple[list[int], list[int]]:
    """Returns a problem's prompt, the opening tag included, and its reply as token ids."""
    prompt = tokenizer.encode(f"{each.prompt}\n{TAGS.opening}\n").ids
    return prompt, tokenizer.encode(f"{each.thinking}\n{TAGS.closing}{each.answer}{END}").ids


def padded(texts: Sequence[tuple[list[int], list[int]]]) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns texts as tokens and targets, int64 [batch, time] each. Only replies are learned."""
    time = max(len(prompt) + len(reply) for prompt, reply in texts) - 1
    tokens, targets = torch.zeros(len(texts), time, dtype=torch.long), torch.full((len(texts), time), IGNORED)
    for row, (prompt, reply) in enumerate(texts):
        whole = torch.tensor([*prompt, *reply])
        tokens[row, : len(whole) - 1] = whole[:-1]
        targets[row, len(prompt) - 1 : len(whole) - 1] = whole[len(prompt) :]
    return tokens, targets
