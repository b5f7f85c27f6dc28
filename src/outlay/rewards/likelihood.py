"""Language models as verifiers: a step's reward is the probability that the model itself gives to the step.

Where a text has ended, its last step includes the end token, so that a text which stops too early is found out too.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from outlay.engine.tree_run import TreeRun
from outlay.models.load import Model
from outlay.rewards.scorer import Rewards, RunScorer, count_scores, reduced
from outlay.rewards.trie import Trie
from outlay.tree.token_tree import Node

Written = tuple[str, bool]  # a text, and whether it has ended


class LikelihoodRunScorer(RunScorer):
    """Rates the steps of a run's texts by their probability under another model.

    Args:
        run: The run.
        model: The verifier. Between its tokens and the target's, text crosses as text.
        reduce: How the rewards of a text's steps become one.
        step: The text that ends a step; "": a text is one step.
    """

    def __init__(self, run: TreeRun, model: Model, reduce: str, step: str) -> None:
        super().__init__(run)
        self._model, self._reduce, self._step = model, reduce, step
        self._trie: Trie | None = None
        self._known: dict[Written, list[float]] = {}
        self._logprobs: dict[Node, float] = {}  # of each node's token after the nodes above it

    def rewards(self, nodes: Sequence[Node]) -> Rewards:
        texts = [self._written(node) for node in nodes]
        fresh = [text for text in dict.fromkeys(texts) if text not in self._known]
        if fresh:
            yield count_scores(self.run, len(fresh))
            trie = self._planted()
            steps = [self._steps(trie, text) for text in fresh]
            asked: dict[Node, list[Node]] = {}
            for node in dict.fromkeys(node for text in steps for step in text for node in step):
                if node not in self._logprobs:
                    assert node.parent is not None, "a step lies below the prompt"
                    asked.setdefault(node.parent, []).append(node)
            rows = yield trie.seat.logprobs_of(
                list(asked), [[node.token for node in below] for below in asked.values()]
            )
            for below, row in zip(asked.values(), rows, strict=True):
                self._logprobs.update((node, row.logprobs[node.token]) for node in below)
            for text, of_text in zip(fresh, steps, strict=True):
                self._known[text] = [math.exp(min(0.0, sum(self._logprobs[node] for node in step))) for step in of_text]
        return [reduced(self._known[text], self._reduce) for text in texts]

    def _written(self, node: Node) -> Written:
        ended = node.token in self.run.eos_token_ids
        return self.run.model.tokenizer.decode(self.run.text_tokens(node)), ended

    def _planted(self) -> Trie:
        if self._trie is None:
            tokenizer, prompt = self._model.tokenizer, self.run.submission.asked
            in_chat = tokenizer.has_chat_template
            messages = [{"role": "user", "content": prompt}]
            tokens = tokenizer.render_chat(messages) if in_chat else tokenizer.encode_prompt(prompt)
            self._trie = Trie(self.run.seat(self._model, tokens, "score"), tokens)
        return self._trie

    def _steps(self, trie: Trie, written: Written) -> list[list[Node]]:
        """Returns the nodes of each step of a text, its mark included."""
        text, ended = written
        pieces = [text]
        if self._step:
            *marked, last = text.split(self._step)
            pieces = [*(piece + self._step for piece in marked), *([last] if last else [])]
        tokens = [self._model.tokenizer.encode(piece) for piece in pieces]
        if ended:
            tokens = [*tokens[:-1], [*tokens[-1], self._model.tokenizer.eos_token_ids[0]]] if tokens else []
        at, steps = trie.tip, []
        for step in filter(None, tokens):
            end = trie.extend(at, step)
            steps.append(list(end.path(at)))
            at = end
        return steps
