"""`outlay train ppd`: trains prompt tokens for a frozen model, on text that it wrote itself (PPD, Chen et al. 2024).

One text trains at many places: behind each of them stands a group of prompt tokens that sees the text up to there and
itself. The text's own rows don't depend on the prompt tokens, so they are computed once, without gradients. The text is
the model's own, so its distributions at the places ahead are the teacher.
"""

from __future__ import annotations

import random
import shutil
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from outlay.decode.draft.ppd.prompt_tokens import KIND, RANKS
from outlay.errors import UsageError
from outlay.lm import LM
from outlay.models import fitted
from outlay.models.load import Model
from outlay.train.checkpoint import Checkpoint
from outlay.train.corpus import WARM_EVERY, Corpus, Passage
from outlay.train.frozen import FrozenDecoder
from outlay.train.schedule import schedule

Progress = Callable[[str, int, int], None]
HELD_OUT = 60  # texts on which the guesses are calibrated
LONGEST = 256  # tokens of a text that are used, a bound on time
KEEP_EVERY = 50  # steps between checkpoints
PHRASE = "the next word is"  # whose embeddings the prompt tokens begin with


@dataclass(frozen=True)
class PromptRecipe:
    """How prompt tokens are trained."""

    m: int = 3
    """Prompt tokens: how far ahead they guess."""
    copies: int = 1
    """Copies of each prompt token, whose logits are averaged."""
    steps: int = 300
    """Training steps."""
    texts: int = 2
    """Texts of a step."""
    groups: int = 16
    """Places of each text behind which a group of prompt tokens stands."""
    lr: float = 1e-2
    """Highest learning rate of AdamW."""
    decay: float = 0.8
    """Weight of a guess's loss over that of the guess before."""
    seed: int = 0
    """Seed of all draws."""

    def __post_init__(self) -> None:
        for name in ("m", "copies", "steps", "texts", "groups"):
            if getattr(self, name) < 1:
                raise UsageError(f"{name} must be 1 or more, not {getattr(self, name)}")


class PromptTrainer:
    """Prompt tokens in training: `embeddings` [m, copies, hidden_size] are all that is learned."""

    def __init__(self, model: Model, recipe: PromptRecipe) -> None:
        self.model, self.recipe = model, recipe
        self.frozen = FrozenDecoder(model)
        phrase = torch.tensor(model.tokenizer.encode(PHRASE))
        first = model.decoder.embed(phrase[torch.arange(recipe.m * recipe.copies) % len(phrase)]).float()
        self.embeddings = torch.nn.Parameter(first.view(recipe.m, recipe.copies, -1).clone())

    def fit(self, passages: Sequence[Passage], checkpoint: Path | None, progress: Progress) -> None:
        """Trains for `recipe.steps` steps.

        Args:
            passages: What they are trained on.
            checkpoint: A file to go on from, kept every `KEEP_EVERY` steps and removed at the end.
            progress: Called after each step.
        """
        recipe = self.recipe
        optimizer = torch.optim.AdamW([self.embeddings], lr=recipe.lr, weight_decay=0.0)
        kept = Checkpoint(checkpoint, recipe, {"embeddings": self.embeddings.detach()}, optimizer)
        for step in range(kept.resume(), recipe.steps):
            draw = random.Random(f"{recipe.seed}/{step}")
            optimizer.param_groups[0]["lr"] = recipe.lr * schedule(step, recipe.steps, 0.0)
            total = 0.0
            for passage in draw.sample(list(passages), min(recipe.texts, len(passages))):
                cuts = self.cuts(passage, draw)
                if not cuts:
                    continue
                loss = self.loss(passage, cuts) / recipe.texts
                loss.backward()
                total += loss.item()
            optimizer.step()
            optimizer.zero_grad()

            progress(f"training, loss {total:.3f}", step + 1, recipe.steps)
            if (step + 1) % KEEP_EVERY == 0:
                kept.save(step + 1)
        kept.remove()

    def cuts(self, passage: Passage, draw: random.Random) -> list[int]:
        """Draws places of a text in ascending order: the answer's, with all the tokens known that are guessed there."""
        first, last = max(passage.begin - 1, 0), min(len(passage.tokens), LONGEST) - self.recipe.m - 2
        places = range(first, last + 1)
        return sorted(draw.sample(places, min(self.recipe.groups, len(places)))) if last >= first else []

    def loss(self, passage: Passage, cuts: Sequence[int]) -> Tensor:
        """Returns the loss of a text: the mean over guesses i of decay^(i-1) KL(model at place + i || guess i)."""
        logits = self.guesses(passage, cuts)
        m = self.recipe.m
        total = torch.zeros(())
        for i in range(1, m + 1):
            with torch.no_grad():
                hidden_states = passage.hidden_states[[cut + i for cut in cuts]].float()
                teacher = F.linear(hidden_states, self.frozen.lm_head).log_softmax(-1)
            student = logits[:, i - 1].log_softmax(-1)
            distance = F.kl_div(student, teacher, reduction="none", log_target=True).sum(-1).mean()
            total = total + self.recipe.decay ** (i - 1) * distance
        return total / m

    def guesses(self, passage: Passage, cuts: Sequence[int]) -> Tensor:
        """Returns the logits [cuts, m, vocab] of the prompt tokens behind each place, copies averaged."""
        m, copies, hidden = self.embeddings.shape
        tokens = passage.tokens[: cuts[-1] + 1]
        keys = self._keys(tokens)

        shape = (len(cuts), m, copies)
        places = torch.tensor(cuts).view(-1, 1, 1).expand(shape).flatten()
        steps = torch.arange(m).view(1, -1, 1).expand(shape).flatten()
        kinds = torch.arange(copies).view(1, 1, -1).expand(shape).flatten()
        own = (places[:, None] == places) & (kinds[:, None] == kinds) & (steps[:, None] >= steps)
        seen = torch.cat([torch.arange(len(tokens)) <= places[:, None], own], dim=1)

        def attend(layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            return attended(q, torch.cat([keys[layer][0], k]), torch.cat([keys[layer][1], v]), seen, self.frozen)

        x = self.embeddings.expand(len(cuts), m, copies, hidden).reshape(-1, hidden)
        hidden_states = self.frozen.forward(x, places + 1 + steps, attend)
        return F.linear(hidden_states, self.frozen.lm_head).view(*shape, -1).mean(2)

    @torch.no_grad()
    def _keys(self, tokens: Tensor) -> list[tuple[Tensor, Tensor]]:
        """Returns the keys and values of a text in every layer."""
        kept: list[tuple[Tensor, Tensor]] = []
        causal = torch.ones(len(tokens), len(tokens), dtype=torch.bool).tril()

        def attend(layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            kept.append((k, v))
            return attended(q, k, v, causal, self.frozen)

        self.frozen.forward(self.frozen.embed(tokens).float(), torch.arange(len(tokens)), attend)
        return kept

    @torch.no_grad()
    def accuracy(self, passages: Sequence[Passage], progress: Progress = lambda phase, done, total: None) -> Tensor:
        """Returns the hit rate of each guess at each rank on held-out passages, [m, RANKS], to calibrate trees with."""
        m, draw = self.recipe.m, random.Random(self.recipe.seed)
        hits, count = torch.zeros(m, RANKS), 0
        for done, passage in enumerate(passages, 1):
            cuts = self.cuts(passage, draw)
            if not cuts:
                continue
            best = self.guesses(passage, cuts).topk(RANKS).indices
            wanted = torch.stack([passage.tokens[[cut + i + 1 for cut in cuts]] for i in range(1, m + 1)], dim=1)
            hits += (best == wanted[..., None]).float().sum(0)
            count += len(cuts)
            progress("measuring", done, len(passages))
        return hits / max(count, 1)

    def save(self, path: Path, accuracy: Tensor) -> None:
        """Writes the prompt tokens with their calibration."""
        table = [[round(rate, 4) for rate in row] for row in accuracy.tolist()]
        tensors = {"vectors": self.embeddings.detach()}
        fitted.write(path, KIND, self.model, tensors, accuracy=table, recipe=asdict(self.recipe))


def train_prompts(
    lm: LM, recipe: PromptRecipe, tokens: int, prompts: Sequence[list[int]] | None, out: Path, progress: Progress
) -> Tensor:
    """Has a model write text, trains prompt tokens on it, calibrates them on held-out texts, and writes them to `out`.

    Text and checkpoints are kept beside `out` until it is there, so that the training can be stopped and gone on with.

    Args:
        lm: The model.
        recipe: How the prompt tokens are trained.
        tokens: Tokens of its own that the model writes.
        prompts: Token ids of prompts for it to answer; None: its own.
        out: The file.
        progress: Called now and then.

    Returns:
        The hit rate of each guess at each rank, [m, RANKS].
    """
    work = out.with_name(f"{out.name}.work")
    corpus = Corpus(work / "corpus", lm.model, recipe.seed)
    corpus.grow(lm, tokens, prompts, progress)
    passages = [passage for place, passage in enumerate(corpus.passages()) if place % WARM_EVERY != WARM_EVERY - 1]
    step = max(2, len(passages) // HELD_OUT)
    held, rest = passages[::step], [passage for place, passage in enumerate(passages) if place % step]
    trainer = PromptTrainer(lm.model, recipe)
    trainer.fit(rest or held, work / "prompts.checkpoint", progress)
    accuracy = trainer.accuracy(held, progress)
    trainer.save(out, accuracy)
    shutil.rmtree(work)
    return accuracy


def attended(q: Tensor, k: Tensor, v: Tensor, seen: Tensor, frozen: FrozenDecoder) -> Tensor:
    """Computes masked attention.

    Args:
        q: [n, num_heads, head_dim].
        k: [length, num_kv_heads, head_dim].
        v: Like `k`.
        seen: bool [n, length], the keys that each row reads.
        frozen: The model, for its scale and its groups of attention heads.

    Returns:
        [n, num_heads, head_dim].
    """
    group = frozen.config.num_heads // frozen.config.num_kv_heads
    k, v = k.repeat_interleave(group, 1), v.repeat_interleave(group, 1)
    out = F.scaled_dot_product_attention(
        q.transpose(0, 1), k.transpose(0, 1), v.transpose(0, 1), seen, scale=frozen.config.attention_scale
    )
    return out.transpose(0, 1)
