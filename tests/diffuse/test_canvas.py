"""A canvas in the cache: filling, cutting, growing, copying, handing over, and what its rows see."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from outlay.engine.passes import LayeredPass, pass_for
from outlay.errors import CacheFull
from outlay.testing import tiny_diffusion_model
from outlay.tree.cache import Cache
from outlay.tree.canvas import Canvas
from outlay.tree.plan import plan_pass
from outlay.tree.prefix import PrefixCache
from outlay.tree.token_tree import Tree

MASK = 257
TEXT = [5, 6, 7, 8, 9, 10, 11, 12]


def cache(limit=64, dtype=torch.float32):
    return Cache(tiny_diffusion_model().decoder.config, dtype, torch.device("cpu"), limit=limit)


def canvas(held, tokens, *, trunk=(), block=0):
    tree = Tree(held, block=block or 1)
    tree.append(trunk)
    for node in tree.tip.path() if tree.tip else []:
        node.computed = True
    return Canvas(tree, tokens, mask=MASK, block=block)


def computed(made):
    for cell in made.cells:
        cell.computed, cell.version = True, made.version


def test_what_is_filled_stays_filled():
    made = canvas(cache(), [5, MASK, MASK])
    made.fill(1, 7)
    assert [cell.token for cell in made.cells] == [5, 7, MASK]
    assert made.masked(0, 3) == [2]
    with pytest.raises(ValueError, match="filled already"):
        made.fill(1, 8)
    with pytest.raises(ValueError, match="filled with the mask"):
        made.fill(2, MASK)


def test_cutting_growing_and_releasing_give_slots_back():
    held = cache()
    made = canvas(held, [MASK] * 6, trunk=TEXT[:4])
    assert (made.base, made.end, held.in_use) == (4, 10, 10)
    made.cut(2)
    made.grow([MASK] * 3)
    assert (made.end, held.in_use) == (9, 9)
    made.release()
    made.tree.release()
    assert held.in_use == 0


def test_a_canvas_that_does_not_fit_holds_nothing():
    held = cache(limit=8)
    with pytest.raises(CacheFull):
        canvas(held, [MASK] * 9)
    assert held.in_use == 0


def test_a_copy_shares_the_trunk_and_is_filled_apart():
    held = cache()
    made = canvas(held, [MASK, MASK], trunk=TEXT[:4])
    computed(made)
    for layer in held.layers:
        layer.keys[:, [cell.slot for cell in made.cells]] = 3.0
    twin = made.copy()
    twin.fill(4, 9)
    assert made.masked(4, 6) == [4, 5]
    assert all(cell.computed for cell in twin.cells)
    assert float(held.layers[1].keys[:, twin.cells[1].slot].mean()) == 3.0
    assert held.in_use == 4 + 2 + 2


def test_a_finished_block_hands_its_slots_over():
    held = cache()
    made = canvas(held, [MASK] * 4, trunk=TEXT[:4], block=4)
    slots = [cell.slot for cell in made.cells]
    with pytest.raises(ValueError, match="none of its positions is masked"):
        made.hand_over(4)
    for position in range(4, 8):
        made.fill(position, position)
    with pytest.raises(ValueError, match="with its last tokens"):
        made.hand_over(4)
    computed(made)
    made.hand_over(4)
    path = made.tree.tip.path()
    assert [node.token for node in path] == [*TEXT[:4], 4, 5, 6, 7]
    assert [node.slot for node in path[4:]] == slots
    assert (len(made), made.base, held.in_use) == (0, 8, 8)
    made.tree.release()
    assert held.in_use == 0


def test_stale_keys_are_those_that_were_computed_before_a_fill():
    made = canvas(cache(), [5, 6, MASK, MASK])
    computed(made)
    assert made.stale_keys(made.cells[2:]) == 0
    made.fill(2, 9)
    assert made.stale_keys(made.cells[2:]) == 4  # two rows read two keys each
    assert made.stale_keys(made.cells) == 0


@pytest.mark.parametrize("block", [0, 4, 3])
@pytest.mark.parametrize("trunk", [0, 1])
def test_rows_see_the_canvas_or_the_blocks_up_to_their_own(block, trunk):
    """A pass in torch and a native one agree with dense attention, alone and beside another canvas."""
    decoder = tiny_diffusion_model(block=block).decoder
    whole = [*TEXT, MASK, 20, MASK]
    length = (block or 4) * trunk

    def dense():
        held = {}

        def attend(layer, q, k, v):
            n = len(q)
            places = torch.arange(n)
            seen = places[None] // block <= places[:, None] // block if block else torch.ones(n, n) > 0
            if not block:
                seen[:length, length:] = False  # a causal trunk sees no canvas
                seen[:length, :length] = places[None, :length] <= places[:length, None]
            k, v = (x.repeat_interleave(q.shape[1] // x.shape[1], 1) for x in (k, v))
            scores = torch.einsum("nhd,mhd->hnm", q, k) * decoder.config.attention_scale
            return torch.einsum("hnm,mhd->nhd", scores.masked_fill(~seen, -torch.inf).softmax(-1), v)

        held["logits"] = decoder.forward(torch.tensor(whole), torch.arange(len(whole)), attend)
        return held["logits"]

    expected = dense()[length:]
    for make in (LayeredPass, pass_for):
        held = cache()
        run = make(decoder, held)
        tree = Tree(held, block=block or 1)
        tree.append(whole[:length])
        made, other = (Canvas(tree, whole[length:], mask=MASK, block=block) for _ in range(2))
        work = [(tree, tree.tip.path())] if length else []
        plan = plan_pass(work, held.positions, (None,), [(made, made.cells), (other, other.cells)])
        n = len(made)
        found = run(plan, list(range(length, length + 2 * n))).logits
        torch.testing.assert_close(found[:n], expected, atol=1e-4, rtol=1e-4)
        assert torch.equal(found[:n], found[n:]) or isinstance(run, LayeredPass)


def test_prefixes_match_by_whole_blocks_of_the_same_size():
    held, prefixes = cache(), PrefixCache()
    tree = Tree(held, block=4)
    tree.append(TEXT)
    prefixes.insert(tree.tip)
    assert prefixes.match([*TEXT[:6], 99, 99], 4).position == 3
    assert prefixes.match(TEXT, 4).position == 7
    assert prefixes.match(TEXT[:3], 4) is None
    assert prefixes.match(TEXT, 8) is None
    assert prefixes.match(TEXT) is None


def test_positions_of_the_cache_are_those_of_the_text():
    held = cache()
    made = canvas(held, [MASK] * 3, trunk=TEXT[:4])
    assert held.positions[[cell.slot for cell in made.cells]].tolist() == [4, 5, 6]
    assert np.all(np.diff([cell.slot for cell in made.cells]) == 1)
