"""A draft model beside the target: a chain is drafted, scored in one pass, and its matching part kept, in any batch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import pytest
import torch

from outlay import LM, About, Ledger, Method
from outlay.engine.engine import Engine
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
                nodes += run.tree.extend([nodes[-1]], [token], "draft")
                run.mark(nodes[-1], round=run.ledger.rounds)
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


def test_results_and_traces_say_which_tokens_were_drafted():
    lm, events = tiny_lm(), []
    result = lm.generate("Once", method=Chain(2), draft=lm.model, max_tokens=9, ignore_eos=True, trace=events.append)
    assert result.origins == ["draft", "draft", ""] * 3, "a model agrees with itself"
    origins = {
        row["node"]: row.get("origin", "") for event in events if event["event"] == "grow" for row in event["nodes"]
    }
    kept = [node for event in events if event["event"] == "keep" for node in event["nodes"]][-9:]
    assert [origins[node] for node in kept] == result.origins
    marked = {event["node"]: event["round"] for event in events if event["event"] == "mark"}
    assert [marked[node] for node in kept if node in marked] == [0, 0, 1, 1, 2, 2]


@pytest.mark.parametrize("dtype", ["int4", "int8", "bfloat16"])
def test_a_drafted_chain_writes_what_greedy_writes_in_every_weight_format(dtype):
    """Activations are rounded to int8 there, so that a difference in the last bit would grow."""
    model = tiny_model(dtype=dtype)
    expected = [LM(model, Engine()).generate(prompt, max_tokens=200, ignore_eos=True).tokens for prompt in PROMPTS]
    lm = LM(model, Engine())
    methods = ["greedy", Chain(2), Chain(5), Chain(3), Chain(1), Chain(4)]
    handles = [
        lm.submit(prompt, method=method, draft=tiny_model(seed=0), max_tokens=200, ignore_eos=True)
        for prompt, method in zip(PROMPTS, methods, strict=True)
    ]
    results = [handle.result(60) for handle in handles]
    assert [result.tokens for result in results] == expected
    assert any(0 < result.ledger.accepted < result.ledger.drafted for result in results)


@dataclass(frozen=True)
class Logits(Method):
    """Keeps the logits after the prompt; after 7 and 9 behind it, too, by way of a fork at a node not computed yet."""

    forked: bool
    kept: list

    about: ClassVar[About] = About("logits", "logits", "", "test", "", "")

    def decode(self, run):
        self.kept.append((yield run.target.forward([run.tip])))
        if self.forked:
            node = run.tree.extend([run.tip], [7])[0]
            twin = run.target.fork(run.tree, node)
            run.commit(8)  # gives up `node`, which the fork still holds
            twin.append([9])
            self.kept.append((yield run.target.forward([twin.tip])))


@pytest.mark.parametrize("dtype", ["float32", "int4"])
def test_a_node_that_its_tree_gave_up_is_computed_where_a_fork_still_holds_it(dtype):
    model, kept = tiny_model(dtype=dtype), []
    for prompt, forked in (([1, 2, 3, 7, 9], False), ([1, 2, 3], True)):
        LM(model, Engine()).generate(prompt, method=Logits(forked, kept), max_tokens=9, ignore_eos=True)
    torch.testing.assert_close(kept[2], kept[0], rtol=1e-5, atol=1e-5)
