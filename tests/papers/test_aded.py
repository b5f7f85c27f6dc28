"""ADED (Liu et al. 2025): the properties of its specification. Its table: tests/speculation/test_ngrams.py."""

from __future__ import annotations

import random

import pytest
from papers.distributions import assert_exact, markov_lm

from outlay.decode.draft.aded import ADED, AdaptiveTable, TreeSearch, best_first, remembered
from outlay.errors import UsageError
from outlay.speculation.ngrams import NgramTable, tokenizer_fingerprint
from outlay.speculation.rounds import ROOT, DraftLimits
from outlay.testing import PROMPTS, tiny_lm

PAIRS = {
    (1, 2): [(3, 0.6), (4, 0.3), (5, 0.1)], (2, 3): [(1, 0.9), (6, 0.1)], (2, 4): [(1, 1.0)], (3, 1): [(2, 1.0)],
    (4, 1): [(2, 0.5), (7, 0.5)],
}  # fmt: skip


def follow(a, b):
    return PAIRS.get((a, b), [])


def corpus(seed, tokens=400, size=40):
    draw = random.Random(seed)
    return [[draw.randrange(size) for _ in range(tokens)] for _ in range(3)]


@pytest.mark.parametrize("search", ["best_first", "mcts"])
@pytest.mark.parametrize("update", ["paper", "once", "off"])
def test_at_temperature_zero_it_writes_what_greedy_writes_with_any_table(search, update, tmp_path):
    """A table of noise among them: what it proposes is only ever matched."""
    lm = tiny_lm()
    noise = NgramTable.build(corpus(1), tokenizer_fingerprint(lm.model.tokenizer))
    noise.save(tmp_path / "noise.safetensors")
    expected = lm.generate_batch(PROMPTS, max_tokens=40, ignore_eos=True)
    for table in ("none", str(tmp_path / "noise.safetensors")):
        method = ADED(table=table, search=search, update=update)
        found = lm.generate_batch(PROMPTS, method=method, max_tokens=40, ignore_eos=True)
        assert [result.tokens for result in found] == [result.tokens for result in expected]


def test_above_temperature_zero_it_writes_what_sample_writes():
    lm = tiny_lm()
    warm = {"max_tokens": 30, "ignore_eos": True, "temperature": 0.9, "top_p": 0.9, "seed": 4}
    for prompt in PROMPTS:
        plain = lm.generate(prompt, method="sample", **warm)
        assert lm.generate(prompt, method=ADED(table="none"), **warm).tokens == plain.tokens


@pytest.mark.parametrize("runs", [400, pytest.param(20_000, marks=pytest.mark.slow)])
def test_its_first_three_tokens_have_the_targets_distribution(runs):
    assert_exact(markov_lm(4, 8), ADED(table="none"), runs, temperature=1.0)


@pytest.mark.parametrize("nodes", [1, 4, 9])
def test_trees_keep_to_their_nodes_and_depth_and_repeat_no_sibling(nodes):
    search = TreeSearch(iterations=60, depth=3)
    for tree in (
        best_first(follow, 1, 2, DraftLimits(nodes, 4)),
        search.tree(search.run(follow, 1, 2, random.Random(0)), follow, nodes),
    ):
        assert 1 <= len(tree) <= nodes
        assert tree.depth <= 4
        for place in (ROOT, *range(len(tree))):
            siblings = [tree.tokens[child] for child in tree.children(place)]
            assert len(set(siblings)) == len(siblings)


def test_best_first_takes_the_paths_with_the_largest_products():
    tree = best_first(follow, 1, 2, DraftLimits(4, 5))
    # 3: 0.6, 3 1: 0.54, 3 1 2: 0.54, 3 1 2 3: 0.324
    assert [tree.path_tokens(node) for node in range(4)] == [[3], [3, 1], [3, 1, 2], [3, 1, 2, 3]]
    assert len(best_first(follow, 9, 9, DraftLimits(4, 5))) == 0


def test_visits_of_a_search_add_up():
    search = TreeSearch(iterations=90, depth=4)
    root = search.run(follow, 1, 2, random.Random(3))
    assert root.visits == 90
    stack = [root]
    while stack:
        node = stack.pop()
        below = sum(child.visits for child in node.children)
        assert below <= node.visits
        assert node is root or node.visits - below >= 0
        stack += node.children
    assert sum(child.visits for child in root.children) == 90, "the root always has successors to go on to"
    assert root.children[0].visits == max(child.visits for child in root.children)


def test_a_search_is_the_same_for_the_same_seed():
    search = TreeSearch(iterations=60)
    one, other = (search.tree(search.run(follow, 1, 2, random.Random(7)), follow, 9) for _ in range(2))
    assert (one.tokens, one.parents) == (other.tokens, other.parents)


def test_ties_go_to_the_lowest_token():
    learned = AdaptiveTable(None)
    learned.raise_by(0.4, [5, 5, 9])
    learned.raise_by(0.4, [5, 5, 3])
    assert [token for token, _ in remembered(learned)(5, 5)] == [3, 9]


def test_decoding_a_text_again_takes_fewer_passes_if_the_table_persists():
    lm = tiny_lm()
    method = ADED(table="none", prime_prompt=0.0)
    first, second = (lm.generate(PROMPTS[1], method=method, max_tokens=80, ignore_eos=True) for _ in range(2))
    assert second.tokens == first.tokens
    assert second.ledger.target_passes < first.ledger.target_passes
    lm.engine.clear()
    again = lm.generate(PROMPTS[1], method=method, max_tokens=80, ignore_eos=True)
    assert again.ledger.target_passes == first.ledger.target_passes
    fresh = ADED(table="none", prime_prompt=0.0, persist=False)
    apart = [lm.generate(PROMPTS[1], method=fresh, max_tokens=80, ignore_eos=True) for _ in range(2)]
    assert apart[0].ledger.target_passes == apart[1].ledger.target_passes


def test_a_prompt_that_was_counted_is_drafted_from():
    lm = tiny_lm()
    text = "abcabdabcabdabcabdabc"
    primed, paper = (
        lm.generate(text, method=ADED(table="none", prime_prompt=prime, persist=False), max_tokens=8, ignore_eos=True)
        for prime in (0.4, 0.0)
    )
    assert primed.ledger.drafted >= paper.ledger.drafted


@pytest.mark.parametrize(
    ("options", "match"),
    [({"num_draft": 0}, "num_draft"), ({"depth": 0}, "depth"), ({"decay": 0.0}, "decay"), ({"delta": -1.0}, "delta")],
)
def test_options_out_of_range_are_refused(options, match):
    with pytest.raises(UsageError, match=match):
        ADED(**options)


def test_a_table_that_is_not_there_is_refused_with_the_command_that_makes_one(tmp_path):
    with pytest.raises(UsageError, match="outlay train table"):
        tiny_lm().generate("Hi", method=ADED(table=str(tmp_path / "no.safetensors")))


@pytest.mark.slow
def test_on_code_it_adapts_and_beats_lookup_once_it_has_read_the_prompt(default_path, code_prompts):
    """The specification's acceptance experiment: 20 HumanEval prompts, 96 tokens, 16 nodes."""
    import outlay

    lm = outlay.load(default_path)
    prompts = code_prompts[:20]

    def decode(method, rounds=1):
        lm.engine.clear()
        for _ in range(rounds):
            results = [lm.generate(prompt, method=method, max_tokens=96) for prompt in prompts]
        ledger = sum((result.ledger for result in results), start=outlay.Ledger())
        return [result.tokens for result in results], ledger.tokens_out / ledger.target_passes

    expected, _ = decode("greedy")
    found = {}
    for name in (
        "aded:prime_prompt=0,update=off",
        "aded:prime_prompt=0",
        "aded:prime_prompt=0,search=mcts",
        "aded",
        "lookup:tokens=16",
    ):
        tokens, found[name] = decode(name)
        assert tokens == expected
    assert found["aded:prime_prompt=0"] >= 1.35
    assert found["aded:prime_prompt=0"] / found["aded:prime_prompt=0,update=off"] >= 1.10
    assert found["aded"] >= 1.7
    assert found["aded"] >= found["lookup:tokens=16"]
    assert decode("aded", rounds=2)[1] >= 2.5
