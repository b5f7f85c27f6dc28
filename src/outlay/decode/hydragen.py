"""Hydragen: many samples of prompts that begin alike, whose common beginning is read once (Juravsky et al. 2024).

All texts grow together, one pass a token. Attention over what they share is a product of all of their queries with one
copy of its keys, and is merged exactly with attention over what each has alone (Juravsky et al. 2024, arXiv 2402.05099,
sections 3.1 to 3.3); prompts may branch anywhere, since rows are grouped by the stretch of the token tree that they
read. Exact: each text is what its prompt and seed give alone.
"""

from __future__ import annotations

import warnings
from collections.abc import Generator, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

from outlay.engine.method import About, Method, Work
from outlay.engine.request import Request
from outlay.engine.session import Alternative
from outlay.engine.submission import Submission
from outlay.engine.text import TextStream
from outlay.engine.tree_run import Sampler, TreeRun
from outlay.errors import OutlayWarning, UsageError
from outlay.models.images import keys_of
from outlay.tree.plan import BreakEven
from outlay.tree.prefix import common_length
from outlay.tree.token_tree import Node, Tree


@dataclass(frozen=True)
class Hydragen(Method):
    """Writes `n` texts after each leaf of a tree of prompts; all are the result's alternatives."""

    n: int = 4
    """Texts of each prompt. The i-th is that of the request's seed plus i."""
    min_rows: int | None = None
    """From how many rows on keys that they share are read once; none: as was measured."""
    min_prefix: int | None = None
    """From how many shared keys on they are read once; none: as was measured, and where nothing is cut for it."""
    strict: bool = False
    """Whether to fail where most of the beginning that all texts share would be read by each of them."""

    about: ClassVar[About] = About(
        name="hydragen",
        summary="n samples of each of many prompts, their common beginning held and read once",
        paper="arXiv 2402.05099",
        family="sharing",
        spends="one position a text and pass",
        saves="keys and values: what texts share is held once, and read once a pass",
        takes=("tree",),
        counts={"texts": "texts", "text_tokens": "tokens"},
    )

    def __post_init__(self) -> None:
        if self.n < 1:
            raise UsageError(f"hydragen needs n of 1 or more, not {self.n}")
        if self.min_rows is not None and self.min_rows < 2:
            raise UsageError(f"hydragen needs min_rows of 2 or more, not {self.min_rows}")
        if self.min_prefix is not None and self.min_prefix < 1:
            raise UsageError(f"hydragen needs min_prefix of 1 or more, not {self.min_prefix}")

    def check(self, submission: Submission) -> None:
        if self.n > 1 and submission.greedy:
            warnings.warn(
                f"the {self.n} texts of a prompt are the same at temperature 0; try temperature=0.8",
                OutlayWarning,
                stacklevel=4,
            )

    def decode(self, run: TreeRun) -> Work:
        sharing = self._sharing(run)
        texts = self._begin(run)
        self._look_at(run, sharing, texts)
        run.count(texts=len(texts))
        try:
            while growing := [text for text in texts if not text.finish_reason]:
                tokens = yield from next_tokens(run, growing)
                for text, token in zip(growing, tokens, strict=True):
                    text.add(run, token)
                run.count(text_tokens=len(growing))
                run.offer(texts[0].tip)
                for text in growing:
                    if text.finish_reason and text is not texts[0]:
                        text.tree.release()
        finally:  # also where a budget or the caller ends the run
            run.answer([text.alternative(run) for text in texts])
        run.accept(texts[0].tip)

    def _sharing(self, run: TreeRun) -> BreakEven:
        """Returns when rows read apart what they share, as asked or measured; has it measured where it should be."""
        worker = run.target.worker
        meter = worker.sharing_meter()
        if meter is not None and run.submission.leaves:
            run.service(("sharing", worker), lambda wake: meter)
        if self.min_rows is not None or self.min_prefix is not None:
            run.tree.sharing = worker.sharing.limited(self.min_rows, self.min_prefix)
        return run.tree.sharing or worker.sharing

    def _look_at(self, run: TreeRun, sharing: BreakEven, texts: Sequence[Text]) -> None:
        """Says how much of what all prompts begin with is read once; refuses to read most of it by text if `strict`."""
        prompts = run.submission.leaves or [run.submission.prompt]
        rows, length = len(texts), shared_length(prompts)
        once = length
        if not sharing.pays(rows, length):
            once = length_uncut([text.tree for text in texts], length) if run.tree.sharing is None else 0
        run.facts["shared_tokens"], run.facts["read_once"] = length, once
        if self.strict and 2 * once < length:
            raise UsageError(
                f"hydragen:strict=true: {rows} texts share {length} tokens, which each would read, as that is faster; "
                f"they are read once {sharing.said(rows)}: ask for more, set min_rows and min_prefix, or leave strict "
                "out"
            )

    def _begin(self, run: TreeRun) -> list[Text]:
        """Returns the texts, those of a prompt side by side, before their first token."""
        submission, texts = run.submission, list[Text]()
        for leaf, prompt in enumerate(submission.leaves or [submission.prompt]):
            tree = run.target.plant(prompt) if leaf else run.tree
            tree.sharing = run.tree.sharing
            for sample in range(self.n):
                twin, sampler = run.begin(tree, prompt, submission.options.seed + sample)
                stream = TextStream(run.model.tokenizer, submission.options.stop)
                limit = submission.max_tokens_after(prompt)
                texts.append(Text(twin, sampler, stream, limit, leaf if submission.leaves else None))
        return texts


@dataclass(eq=False)
class Text:
    """A text as it grows: a row of the pass."""

    tree: Tree
    sampler: Sampler
    stream: TextStream
    limit: int
    """The most tokens of it."""
    leaf: int | None
    """The number of its prompt in a tree of prompts."""
    tokens: list[int] = field(default_factory=list)
    finish_reason: str = ""

    @property
    def tip(self) -> Node:
        """The last token's node."""
        assert self.tree.tip is not None, "a text that grows holds its prompt"
        return self.tree.tip

    def add(self, run: TreeRun, token: int) -> None:
        """Adds a token and looks at the stop conditions, as a run of its own does."""
        self.tree.append([token])
        self.tokens.append(token)
        if token in run.eos_token_ids:
            self.finish_reason = "stop"
            return
        self.stream.push(token)
        if self.stream.stopped:
            self.finish_reason = "stop"
        elif len(self.tokens) >= self.limit:
            capped = run.options.budget.caps.get("tokens_out", self.limit + 1) <= self.limit
            self.finish_reason = "budget" if capped else "length"

    def alternative(self, run: TreeRun) -> Alternative:
        """Returns the text as it is; where it had no end of its own, it ended with the run."""
        self.stream.flush()
        cut = "budget" if run.cap else "cancelled"
        return Alternative(self.stream.text, self.tokens, None, self.finish_reason or cut, self.leaf)


def shared_length(prompts: Sequence[Sequence[int]]) -> int:
    """Returns with how many tokens all prompts begin alike."""
    lists = [list(keys_of(prompt)) for prompt in prompts]
    return common_length(min(lists), max(lists))  # all others lie between them in the order of lists


def length_uncut(trees: Sequence[Tree], length: int) -> int:
    """Returns how many of the first `length` tokens of trees lie in spans that all have, so that none is cut."""
    uncut = 0
    for spans in zip(*(tree.spans for tree in trees), strict=False):
        if len({(span.base, span.start, span.count) for span in spans}) > 1:
            break
        uncut += spans[0].count
    return min(uncut, length)


def next_tokens(run: TreeRun, texts: Sequence[Text]) -> Generator[Request, Any, list[int]]:
    """Asks for the next token of each text, in one pass, each drawn by the row's own random numbers."""
    nodes, sampler = [text.tip for text in texts], run.sampler
    if sampler.raw and sampler.greedy:
        top = yield run.target.topk(nodes, 1)
        return [int(token) for token in top.tokens[:, 0].tolist()]
    if sampler.raw:
        draws = [text.sampler.token_draw(text.tip) for text in texts]
        return list((yield run.target.draw(nodes, draws)))
    logits = yield run.target.forward(nodes)
    return [text.sampler.pick(row, text.tip) for row, text in zip(logits, texts, strict=True)]
