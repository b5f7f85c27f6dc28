"""A draft model beside the target: a chain is drafted, scored in one pass, and its matching part kept, in any batch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import pytest

from outlay import About, Ledger, Method
from outlay.testing import PROMPTS, tiny_lm, tiny_model


@dataclass(frozen=True)
class Chain(Method):
    """Drafts `depth` tokens greedily and keeps those that the target would have written: exact at temperature 0."""

    depth: int = 3

    about: ClassVar[About] = About("chain", "a drafted chain", "", "test", "draft passes", "target passes")

    def decode(self, run):
        while True:
            drafted = yield from self.draft(run)
            nodes = [run.tip]
            for token in drafted:
                nodes += run.tree.extend([nodes[-1]], [token])
            logits = yield run.target.forward(nodes)
            last = nodes[0]
            for node, row in zip(nodes[1:], logits, strict=False):
                if int(row.argmax()) != node.token:
                    break
                last = node
            before = run.tip
            run.accept(last)
            token = int(logits[nodes.index(last)].argmax())
            run.count(drafted=len(drafted), accepted=len(last.path(before)), rounds=1)
            run.commit(token)
            tree = run.draft.tree
            tree.prune(())
            tree.append(run.text_tokens(run.tip)[len(tree.tip.path()) - len(run.prompt) :])

    def draft(self, run):
        tree, node, tokens = run.draft.tree, run.draft.tree.tip, []
        for _ in range(self.depth):
            logits = yield run.draft.forward([node])
            tokens.append(int(logits[0].argmax()))
            node = tree.extend([node], [tokens[-1]])[0]
        return tokens


@pytest.mark.parametrize("draft", [tiny_model(seed=0), tiny_model(seed=5)], ids=["itself", "another"])
def test_a_drafted_chain_writes_what_greedy_writes_alone_and_in_a_mixed_batch(draft):
    expected = [tiny_lm().generate(prompt, max_tokens=30, ignore_eos=True).tokens for prompt in PROMPTS]
    lm = tiny_lm()
    handles = [
        lm.submit(prompt, method=method, draft=draft, max_tokens=30, ignore_eos=True)
        for prompt, method in zip(PROMPTS, ["greedy", Chain(2), Chain(3), "greedy", Chain(1), Chain(4)], strict=True)
    ]
    results = [handle.result(60) for handle in handles]
    assert [result.tokens for result in results] == expected
    total = sum((result.ledger for result in results), start=Ledger())
    assert total.draft_passes > 0
    assert total.drafted >= total.accepted
    assert total.draft_tokens == sum(w.ledger.draft_tokens for w in lm.engine.workers if w.role == "draft")
    if draft.fingerprint == lm.model.fingerprint:
        assert total.accepted == total.drafted, "a model agrees with itself"
        assert results[2].ledger.target_passes <= 30 / 4 + 1
    lm.engine.clear()
    assert all(worker.cache.in_use == 0 for worker in lm.engine.workers)
