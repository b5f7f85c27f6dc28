"""The decode loop's steps: a token is read, its attention is taken in, and layers drop what they keep no longer."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from hashlib import sha256
from math import ceil
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from outlay.decode.vasparse.contrast import contrasted
from outlay.decode.vasparse.selection import best, scores, selection_value
from outlay.decode.vasparse.sinks import AttentionColumns
from outlay.engine.request import Request
from outlay.engine.tree_run import TreeRun
from outlay.engine.views import View, ViewedOutput, ViewWorker
from outlay.models.images import keys_of, placed_in
from outlay.tree.thinning import keep_in_layers, merge_oldest
from outlay.tree.token_tree import Node

if TYPE_CHECKING:
    from outlay.decode.vasparse import VASparse

PROMPT_WEIGHTS = 1 << 25  # attention weights of a prompt's rows at once, [layers, heads, keys] each: 128 MB
FIRST_LAYER = 2  # of those whose sinks are calibrated
FAR = 1e4  # below any plausible token stand those that a constraint may leave over
Step = Generator[Request | list[Request], Any, Tensor]


class Written(NamedTuple):
    """What a gate sees."""

    text: str
    """The text so far."""
    tokens: Sequence[int]
    """Its token ids."""


class Decoding:
    """A run of VASparse.

    Args:
        method: The options.
        run: The run.
    """

    def __init__(self, method: VASparse, run: TreeRun) -> None:
        config, prompt = run.model.decoder.config, run.prompt
        self._method, self._run, self._layers = method, run, config.num_layers
        image = image_positions(prompt)
        self._contrasts = bool(image) and method.alpha > 0
        self._lam = method.lam if image and method.prune == "visual" else 0.0
        self._gamma = method.gamma if config.num_layers > FIRST_LAYER else 0.0
        self._depth = method.depth(config.num_layers)
        shows = torch.zeros(len(prompt), dtype=torch.bool)
        shows[image] = True
        self._columns = AttentionColumns(config.num_layers, shows)
        self._count = 0  # tokens written so far
        self._changed = self._choices = 0  # of layers at prunings
        self._mass = 0.0  # of the picture in the rows of written tokens, summed
        self._hidden = masked_tokens(image, prompt, method.mask_rate, method.seed)
        self._views = run.service(("views", run.target.worker), lambda wake: ViewWorker(run.target.worker))
        self._gated = False  # whether the contrast is asked for at present
        self._branch: Tensor | None = None  # logits of the branch at the tip
        self._shallow: Tensor | None = None  # those of the embedding, for DoLa
        run.tree.make_private(run.prompt_end)
        run.sampler.edits.append(self._edit)
        run.facts["image_tokens"] = len(image)
        if not image:
            run.facts["without_image"] = "no contrast, lam=0"

    @property
    def _watches(self) -> bool:
        """Whether attention rows are used for anything."""
        return self._gamma > 0 or (self._method.keep < 1 and self._method.prune != "merge_oldest")

    def written(self) -> list[Node]:
        """Returns the tokens that are committed already."""
        return self._run.tip.path(self._run.prompt_end)

    def read_prompt(self) -> Step:
        """Reads the prompt densely, and with it what its rows attend to. Returns the logits [vocab] after it."""
        run = self._run
        nodes = run.prompt_end.path() if self._gamma > 0 else [run.prompt_end]
        config = run.model.decoder.config
        rows_at_once = max(1, PROMPT_WEIGHTS // (config.num_layers * config.num_heads * len(run.prompt)))
        for begin in range(0, len(nodes), rows_at_once):
            part = nodes[begin : begin + rows_at_once]
            if self._gamma > 0:
                logits, rows = yield run.target.forward_with_attention(part)
                for row in rows:
                    self._columns.add(row.cpu())
            else:
                logits = yield run.target.forward(part)
        yield from self._read_branches(run.prompt_end)
        last: Tensor = logits[-1]
        return last

    def read(self, node: Node) -> Step:
        """Reads a written token and prunes when it is time. Returns the logits [vocab] after it."""
        log_weights = self._log_weights()
        asked: list[Request] = [self._main(node, log_weights)]
        scratch, branches = self._branches(node, log_weights)
        answers = yield [*asked, *branches]
        self._take_branches(scratch, answers[1:])
        logits, row = self._read_of(answers[0])
        self._count += 1
        if row is not None:
            self._take_in(row)
        if self._count % self._method.window == 0:
            self._prune(row)
        return logits

    def _read_of(self, answer: Any) -> tuple[Tensor, Tensor | None]:
        """Returns the logits [vocab] of a pass over a token, and what it reads, [layers, keys], if that was asked."""
        if isinstance(answer, ViewedOutput):
            return answer.logits, answer.attention.cpu()
        if self._watches:
            logits, rows = answer
            return logits[0], rows[0].cpu()
        return answer[0], None

    def _main(self, node: Node, log_weights: Tensor | None) -> Request:
        run = self._run
        if log_weights is not None:
            keep = run.options.logprobs is not None or run.options.receipt
            return self._views.forward(run.account, run.tree, node, View(None, log_weights), keep_raw_logits=keep)
        if self._watches:
            return run.target.forward_with_attention([node])
        return run.target.forward([node])

    def _log_weights(self) -> Tensor | None:
        """Returns what is added to the scores of all held keys and the next one, [layers, keys]; None: nothing."""
        return self._columns.log_weights(self._gamma, FIRST_LAYER) if self._gamma > 0 else None

    def _read_branches(self, node: Node) -> Generator[Request | list[Request], Any, None]:
        """Reads the branches after the prompt, whose keys they read."""
        scratch, branches = self._branches(node, None)
        answers = (yield branches) if branches else []
        self._take_branches(scratch, answers)

    def _branches(self, node: Node, log_weights: Tensor | None) -> tuple[list[Node], list[Request]]:
        """Returns the requests of the branches, that of the contrast first, and the node that it is read at, if any."""
        run, method, views = self._run, self._method, self._views
        gated = method.gate is None or method.gate(Written(run.text, tuple(run.tokens)))
        asked: list[Request] = []
        scratch: list[Node] = []
        self._gated = self._contrasts and gated
        if self._gated and self._depth:
            scratch = run.tree.extend([run.tip], [node.token], "contrast")
            view = self._masked(log_weights)
            asked.append(
                views.forward(run.account, run.tree, scratch[0], view, depth=self._depth, position=node.position)
            )
        if (self._gated and not self._depth) or method.dola:
            asked.append(views.forward(run.account, run.tree, node, View(), depth=0))
        return scratch, asked

    def _take_branches(self, scratch: Sequence[Node], answers: Sequence[Any]) -> None:
        for node in scratch:
            self._run.tree.free(node)
        self._branch = answers[0].logits if self._gated else None
        self._shallow = answers[-1].logits if self._method.dola else None

    def _masked(self, log_weights: Tensor | None) -> View:
        """Returns what the branch sees: all but the masked tokens of the picture, and itself in the tip's place."""
        held = self._held()
        seen = torch.ones(held + 1, dtype=torch.bool)
        seen[self._hidden] = False
        seen[held - 1] = False
        weights = None if log_weights is None else torch.nn.functional.pad(log_weights, (0, 1))
        return View(seen.nonzero()[:, 0], weights)

    def _held(self) -> int:
        """Returns how many keys the path to the tip has, its own included."""
        return self._run.tip.position + 1 - self._run.tree.dropped

    def _take_in(self, row: Tensor) -> None:
        """Takes in what the last token reads, [layers, keys]."""
        self._mass += float(self._columns.add(row).mean())
        self._run.facts["image_attention_mass"] = self._mass / self._count

    def _prune(self, row: Tensor | None) -> None:
        """Has each layer keep `keep` of the written tokens; `row` is what the last one reads, [layers, keys]."""
        tree, end, begin = self._run.tree, self._run.prompt_end, len(self._run.prompt)
        held, wanted = self._held() - begin, ceil(self._method.keep * self._count)
        if held <= wanted:
            return
        if self._method.prune == "merge_oldest" and wanted > 1:
            merge_oldest(tree, end, held - wanted + 1)
            if row is not None:
                self._columns.merge(begin, held - wanted + 1)
        else:
            kept = self._chosen_tokens(row, begin, wanted)
            keep_in_layers(tree, end, kept.tolist())
            if row is not None:
                self._columns.keep(begin, kept)
        self._run.count(tokens_pruned=held - wanted)

    def _chosen_tokens(self, row: Tensor | None, begin: int, wanted: int) -> Tensor:
        """Returns the places of the written tokens that each layer keeps, int64 [layers, wanted]."""
        if row is None or self._method.prune == "merge_oldest":  # of which one token is to be left
            return torch.full((self._layers, 1), self._held() - begin - 1)
        attention = row[:, begin:]
        kept = best(selection_value(attention, self._columns.saliency(begin), self._lam), wanted)
        if self._lam:
            plain = best(scores(attention), wanted)
            self._changed += int((kept != plain).any(1).sum())
            self._choices += self._layers
            self._run.facts["choices_changed_by_sight"] = self._changed / self._choices
        return kept

    def _edit(self, logits: Tensor, node: Node, then: Sequence[int]) -> Tensor:
        method = self._method
        value = contrasted(logits, self._branch, self._shallow, alpha=method.alpha, plausibility=method.plausibility)
        if self._run.allowed is None:
            return value
        return torch.where(value > -torch.inf, value, logits.log_softmax(-1) - FAR)


def image_positions(prompt: Sequence[int]) -> list[int]:
    """Returns the positions of a prompt that stand for pictures."""
    return [place for start, count, _ in placed_in(prompt) for place in range(start, start + count)]


def masked_tokens(image: Sequence[int], prompt: Sequence[int], rate: float, seed: int) -> Tensor:
    """Returns the positions of image tokens that the branch does not see, int64 ascending.

    Args:
        image: The positions of image tokens.
        prompt: The prompt, whose pictures the draw depends on.
        rate: The share that is masked, rounded to a whole number.
        seed: Of the draw.
    """
    keys = keys_of(prompt)
    shown = repr((seed, [keys[place] for place in image])).encode()
    generator = torch.Generator().manual_seed(int.from_bytes(sha256(shown).digest()[:7], "big"))
    drawn = torch.randperm(len(image), generator=generator)[: round(rate * len(image))]
    return torch.tensor(image, dtype=torch.int64)[drawn].sort().values
