"""Which rows go into a pass: running text whole, prompts in pieces that take turns."""

from __future__ import annotations

import pytest
import torch

from outlay.budget import Account, Budget, Ledger
from outlay.engine.forward import Forward
from outlay.engine.schedule import Pieces, Schedule
from outlay.testing import tiny_lm, tiny_model
from outlay.tree.cache import Cache
from outlay.tree.token_tree import Tree

ROW, TEXT = 0.001, 0.020  # seconds of a row of a prompt, and of a pass without


@pytest.fixture
def cache():
    return Cache(tiny_model().decoder.config, torch.float32, torch.device("cpu"), limit=20_000)


def prompt(cache, length, **caps):
    """A request for the last token of a prompt that was not read."""
    tree = Tree(cache)
    tree.append(range(length))
    forward = Forward(Account(Budget(**caps), Ledger()), None, (tree.tip,))
    forward.update_pending()
    return forward


def text(cache):
    """A request for the next token of a text that is running."""
    forward = prompt(cache, 1)
    forward.account.ledger.tokens_out = 1
    return forward


def done(shares):
    """Computes the rows, as a pass does."""
    for forward, rows in shares:
        for node in rows:
            node.computed = True
        forward.pending = [node for node in forward.pending if not node.computed]


def rows(shares):
    return [len(nodes) for _, nodes in shares]


def measured(cache):
    """A schedule that has seen a pass of running text and one of a prompt."""
    schedule = Schedule()
    schedule.observe([(prompt(cache, 1), [None])], TEXT)
    schedule.observe([(prompt(cache, 100), [None] * 100)], 100 * ROW)
    return schedule


def test_prompts_alone_are_read_in_long_pieces(cache):
    assert rows(Schedule().pick([prompt(cache, 2000)])) == [512]
    assert rows(Schedule().pick([prompt(cache, 62) for _ in range(32)])) == [62] * 8 + [16]


def test_beside_running_text_a_piece_is_sized_by_what_rows_cost(cache):
    shares = measured(cache).pick([prompt(cache, 4000), *(text(cache) for _ in range(8))])
    assert rows(shares) == [1] * 8 + [int((Pieces().gap - 1) * TEXT / ROW)]


def test_many_short_prompts_beside_running_text_are_no_wide_pass(cache):
    shares = measured(cache).pick([text(cache), *(prompt(cache, 62) for _ in range(32))])
    assert sum(rows(shares)) <= 1 + int((Pieces().gap - 1) * TEXT / ROW)


def test_before_anything_is_measured_a_piece_is_short(cache):
    assert rows(Schedule().pick([text(cache), prompt(cache, 4000)])) == [1, Pieces().first]


def test_prompts_get_on_where_rows_are_dear(cache):
    schedule = measured(cache)
    schedule.observe([(prompt(cache, 100), [None] * 100)], 1e6)
    assert rows(schedule.pick([text(cache), prompt(cache, 4000)])) == [1, Pieces().least]


def test_prompts_take_turns(cache):
    schedule, long, short = measured(cache), prompt(cache, 2000), prompt(cache, 62)
    running, first = text(cache), []
    for _ in range(20):
        shares = schedule.pick([running, long, short] if short.pending else [running, long])
        schedule.observe(shares, TEXT + ROW * (sum(rows(shares)) - 1))
        first.append(shares[1][0])
        done([share for share in shares if share[0] is not running])
    assert first[0] is long
    assert short in first, "it was not kept waiting until the long one was read"
    assert not short.pending
    assert long.pending


def test_text_that_was_drafted_is_not_cut(cache):
    drafted = text(cache)
    tree = drafted.nodes[0].tree
    drafted.nodes = (tree.tip, *tree.extend(range(-1, 29), range(30)))
    drafted.update_pending()
    drafted.pending = list(drafted.nodes)
    assert rows(measured(cache).pick([drafted, prompt(cache, 4000)])) == [31, int((Pieces().gap - 1) * TEXT / ROW)]


def test_a_pass_takes_a_small_part_of_the_seconds_that_a_run_has(cache):
    [share] = measured(cache).pick([prompt(cache, 4000, seconds=1.0)])
    assert len(share[1]) == int(Pieces().hurry * 1.0 / ROW)


def test_how_far_capped_passes_reach_does_not_depend_on_the_clock(cache):
    schedule = measured(cache)
    assert rows(schedule.pick([prompt(cache, 4000, target_passes=9)])) == [Pieces().most]
    assert rows(schedule.pick([text(cache), prompt(cache, 4000, target_passes=9)])) == [1, Pieces().most]


def test_a_prompt_read_in_pieces_of_any_size_gives_the_same_text():
    long = "x" * 700
    alone = tiny_lm(context=1024).generate(long, max_tokens=20, ignore_eos=True)
    lm = tiny_lm(context=1024)
    running = lm.submit("Once", max_tokens=300, ignore_eos=True)
    next(iter(running))
    beside = lm.submit(long, max_tokens=20, ignore_eos=True).result(60)
    assert beside.ledger.target_passes > alone.ledger.target_passes
    assert (beside.tokens, beside.text) == (alone.tokens, alone.text)
