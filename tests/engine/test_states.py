"""Hidden states after every layer, states of what was computed before they were kept, and logits wherever a node is."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import pytest
import torch

from outlay import LM, About, Method
from outlay.engine import worker
from outlay.engine.engine import Engine
from outlay.engine.passes import FusedPass, LayeredPass
from outlay.models.draft_head import untrained_draft_head
from outlay.testing import tiny_lm, tiny_model

ABOUT = About("look", "", "", "test", "", "")


@dataclass(frozen=True)
class Look(Method):
    """Keeps what `ask(run, kept)` yields, then writes one token."""

    ask: Any
    kept: list

    about: ClassVar[About] = ABOUT

    def decode(self, run):
        yield from self.ask(run, self.kept)
        run.commit(65)


def look(lm, ask, prompt="Once upon", **options):
    kept = []
    result = lm.generate(prompt, method=Look(ask, kept), **options)
    return result, kept


def states_of(run, kept):
    kept.append((yield run.target.forward_with_states([run.tip.parent, run.tip])))
    kept.append((yield run.target.forward([run.tip.parent, run.tip])))


@pytest.mark.parametrize(("dtype", "kind"), [("float32", LayeredPass), ("int4", FusedPass), ("int8", FusedPass)])
def test_hidden_states_after_every_layer_come_with_the_logits(dtype, kind, monkeypatch):
    if kind is LayeredPass:
        monkeypatch.setattr(worker, "pass_for", LayeredPass)
    model = tiny_model(dtype=dtype)
    lm = LM(model, Engine())
    _, ((logits, states), again) = look(lm, states_of)
    assert isinstance(lm.engine.models[0]._pass, kind)
    assert states.shape == (2, 3, 32)
    decoder = model.decoder
    torch.testing.assert_close(states[:, 0], decoder.embed(torch.tensor(lm.encode("Once upon")[-2:])).float())
    torch.testing.assert_close(decoder.logits(states[:, -1].contiguous()), logits, atol=1e-4, rtol=1e-4)
    if kind is FusedPass:
        assert torch.equal(logits, again), "the bits are those of a pass that runs all layers at once"
    else:
        torch.testing.assert_close(logits, again)


def test_rows_with_and_without_states_share_a_pass_and_keep_their_bits():
    lm = LM(tiny_model(dtype="int4"), Engine())
    alone = LM(lm.model, Engine()).generate("Twice", max_tokens=5, ignore_eos=True).tokens
    kept = []
    with lm.engine.together():
        greedy = lm.submit("Twice", max_tokens=5, ignore_eos=True)
        states = lm.submit("Once upon", method=Look(states_of, kept))
    assert greedy.result(20).tokens == alone
    assert states.result(20).tokens == [65]
    assert torch.equal(kept[0][0], look(LM(lm.model, Engine()), states_of)[1][0][0])


def at_prompt(run, kept):
    nodes = run.tip.path()
    kept.append((yield run.target.forward(nodes[1:4])))


@pytest.mark.parametrize("dtype", ["float32", "int4"])
def test_logits_at_a_prompt_that_an_earlier_request_computed(dtype):
    lm = LM(tiny_model(dtype=dtype), Engine())
    _, (first,) = look(lm, at_prompt)
    result, (second,) = look(lm, at_prompt)
    assert (result.tokens, result.finish_reason, result.ledger.target_passes) == ([65], "stop", 1)
    torch.testing.assert_close(second, first, rtol=0 if dtype == "int4" else 1e-5, atol=0 if dtype == "int4" else 1e-5)


def at_fork(run, kept):
    node = run.tree.extend([run.tip], [7])[0]
    kept.append((yield run.target.forward([node])))
    twin = run.target.fork(run.tree, node)
    run.commit(8)  # gives up `node`, which the fork still holds
    kept.append((yield run.target.forward([node])))
    kept.append((yield run.target.forward([twin.tip])))
    other = run.target.fork(twin)
    twin.release()
    kept.append((yield run.target.forward([other.tip])))


def test_logits_at_the_tip_of_a_fork_whose_original_was_released():
    result, kept = look(LM(tiny_model(dtype="int4"), Engine()), at_fork, max_tokens=9)
    assert result.tokens == [8, 65]
    assert all(torch.equal(logits, kept[0]) for logits in kept[1:])


def test_a_node_that_no_tree_holds_fails_the_run_that_asks_and_no_other():
    def ask(run, kept):
        node = run.tree.extend([run.tip], [7])[0]
        run.tree.prune(())
        yield run.target.forward([node])

    def strange(run, kept):
        yield run.target.forward(run.tree.extend([run.tip], [300]))

    def far(run, kept):
        run.tree.append([65] * 40)
        yield run.target.forward([run.tip])

    lm = tiny_lm(context=32)
    expected = {ask: "no tree of the run holds", strange: "token 300 is not", far: "at most 32 tokens"}
    for wrong, message in expected.items():
        with lm.engine.together():
            other = lm.submit("Twice", max_tokens=9, ignore_eos=True)
            failing = lm.submit("Once upon", method=Look(wrong, []))
        with pytest.raises(Exception, match=message):
            failing.result(20)
        assert len(other.result(20).tokens) == 9


PROMPT = "A prompt that an earlier request has computed, as long as a few lines"


@pytest.mark.parametrize("method", ["rsd:branching=2x2", "auto"])
def test_a_draft_head_drafts_alike_whoever_computed_its_prompt(method):
    model = tiny_model(dtype="int4")
    asked = {"method": method, "draft": untrained_draft_head(model, 1, 128), "max_tokens": 12, "ignore_eos": True}
    fresh = LM(model, Engine())
    alone = fresh.generate(PROMPT, **asked)
    states = kept_states(fresh)
    lm = LM(model, Engine())
    lm.generate(PROMPT[:40], max_tokens=2, ignore_eos=True)
    lm.generate(PROMPT, max_tokens=2, ignore_eos=True)
    late = lm.generate(PROMPT, **asked)
    assert late.tokens == alone.tokens
    assert prompt_positions(late.ledger) <= prompt_positions(alone.ledger) + 1
    assert torch.equal(kept_states(lm), states)


def prompt_positions(ledger):
    """Positions that were computed beside drafted nodes, of which `auto` takes as many as the clock says, and tips."""
    return ledger.target_tokens - ledger.drafted - ledger.target_passes


def kept_states(lm):
    """The hidden states of the prompt, as the target's cache keeps them."""
    worker, states = lm.engine.models[0], []
    node = worker.prefixes.match(lm.encode(PROMPT)[:-1])
    store = worker.cache.hidden_states
    assert all(each.has_state for each in node.path())
    states += [store[each.slot] for each in node.path()]
    return torch.stack(states)
