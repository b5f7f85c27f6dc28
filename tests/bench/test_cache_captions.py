"""Captions under cache policies: what the suite says of them is what the engine says, and a picture is made of it."""

from __future__ import annotations

import json

import pytest

from outlay.bench.cache import glyphs
from outlay.bench.cache.chosen import Told
from outlay.bench.cache.glyphs import DENSE, EVICT, FIXED, MIXED, GlyphSettings, Way, measured
from outlay.bench.cache.plot import write_plot
from outlay.bench.cache.report import TABLES, report
from outlay.bench.captions import captions_of, share_difference
from outlay.catalog import parse_policy
from outlay.engine.engine import Engine
from outlay.lm import LM
from outlay.problems.glyphs import GlyphWorld
from outlay.testing import tiny_vision_model

SETTINGS = GlyphSettings("drawn", seeds=2, scenes=3)
MACHINE = {"model": "tiny", "processor": "none", "cores": 1, "date": "", "seconds": 1, "versions": {}}


def lm():
    return LM(tiny_vision_model(), Engine(prefix_cache=False))


@pytest.fixture(scope="module")
def found():
    """What is measured of a tiny model, as JSON holds it."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(glyphs, "TAUS", (0.975, 0.9))
        result = measured(lm(), SETTINGS, lambda *_: None)
    return json.loads(json.dumps({"settings": vars(SETTINGS), "machine": MACHINE, **result}))


def row(found, name):
    return next(each for each in found["captions"] if each["name"] == name)


def test_a_row_holds_what_the_ledger_of_its_runs_says(found):
    way = Way(MIXED, 0.9, glyphs.LINES[MIXED])
    scenes = [scene for seed in range(2) for scene in GlyphWorld("drawn").scenes(3, seed)]
    captions, results = captions_of(lm(), scenes, "greedy", "zipvl:tau=0.9")
    mine = row(found, way.name)
    total = sum(result.ledger.extras["kv_dense"] for result in results)
    assert mine["payload"] == pytest.approx(sum(result.ledger.extras["kv_payload"] for result in results) / total)
    assert mine["with_scales"] > mine["payload"]
    assert mine["exact"] == sum(one == scene.caption for one, scene in zip(captions, scenes, strict=True)) / 6


def test_dense_differs_from_itself_by_nothing(found):
    dense = row(found, DENSE)
    assert dense["exact_over_dense"] == dense["recall_over_dense"] == {"value": 0, "low": 0, "high": 0}
    assert (dense["payload"], dense["with_scales"], dense["attention_flops"]) == (1, 1, 1)


def test_a_fixed_share_is_that_which_the_adaptive_rule_held(found):
    for tau in (0.975, 0.9):
        adaptive, fixed = (row(found, Way(line, tau, "").name) for line in (MIXED, FIXED))
        assert f"ratio={adaptive['important']}" in fixed["cache"]
        prompt = 30  # tokens at least, of which one is rounded up, and the first and the last are always held
        assert adaptive["important"] <= fixed["important"] <= adaptive["important"] + 3 / prompt


def test_every_tau_is_compared_with_a_fixed_share_and_with_eviction(found):
    names = [Way(line, tau, "").name for tau in (0.975, 0.9) for line in (FIXED, EVICT)]
    names += [Way(line, 0.9, "", "all").name for line in (FIXED, EVICT)]
    assert [each["name"] for each in found["compared"]] == names
    assert all(len(each["by_seed"]) == 2 for each in found["compared"])


def test_what_attends_is_counted_for_every_scene_and_shown_for_some(found):
    assert sum(group["scenes"] for group in found["attending"]) == 6
    assert all(0 < share <= 1 for group in found["attending"] for share in group["layers"])
    for each in found["shown"]:
        assert all(0 <= cell < found["across"] ** 2 for layer in each["attending"] for cell in layer)


def test_telling_what_attends_changes_no_text():
    scenes = GlyphWorld("drawn").scenes(2, 0)
    for cache in ("zipvl:tau=0.8,every=4", "zipvl:mode=evict,tau=0.7"):
        plain = captions_of(lm(), scenes, "greedy", cache)
        told = captions_of(lm(), scenes, "greedy", Told(parse_policy(cache)))
        assert told[0] == plain[0]
        for one, other in zip(told[1], plain[1], strict=True):
            assert one.tokens == other.tokens
            shares = [len(layer) / one.prompt_tokens for layer in one.facts["cache"]["attending"]]
            assert shares == other.facts["cache"]["important"]


def test_a_difference_of_shares_has_an_interval_that_holds_it():
    ones, others = [True, False] * 40, [True, True, True, False] * 20
    difference = share_difference(ones, others)
    assert difference["value"] == pytest.approx(0.25)
    assert difference["low"] < 0.25 < difference["high"]
    assert share_difference(ones, ones) == {"value": 0, "low": 0, "high": 0}


def test_the_report_has_every_row_and_a_picture_can_be_made_of_it(found, tmp_path):
    said = report(found)
    brief = TABLES["captions-drawn"](found)
    assert "$ outlay bench cache --model outlay/tiny --seeds 2 --scenes 3\n" in brief
    assert all(each["name"] in said and each["name"] in brief for each in found["captions"])
    pytest.importorskip("matplotlib")
    for name in ("captions.png", "captions.svg"):
        write_plot(found, tmp_path / name)
        assert (tmp_path / name).stat().st_size > 1000
