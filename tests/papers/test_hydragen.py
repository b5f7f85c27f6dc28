"""Hydragen (arXiv 2402.05099): what many rows share is read and held once, and nobody's text changes by it."""

from __future__ import annotations

import itertools

import pytest
import torch

from outlay import Budget, Hydragen, Ledger, PromptTree, UsageError, kernels
from outlay.engine.engine import Engine
from outlay.errors import OutlayWarning
from outlay.lm import LM
from outlay.models.config import DecoderConfig
from outlay.models.load import load_model
from outlay.testing import tiny_lm, tiny_model
from outlay.tree.attention import attention_of, merge
from outlay.tree.cache import KV_DTYPES, Cache
from outlay.tree.plan import KVSpan, PassPlan

DOCUMENT = "A document that everybody asks about, of some length. " * 3
TREE = PromptTree(DOCUMENT, [["What?", "Who is it?"], ["Where?"]])
SAMPLED = {"temperature": 0.8, "max_tokens": 12, "seed": 3}
LEVELS = [  # of the paper's own tests: the lengths of the segments of each level, the last one each row's own
    [[1], [10]],
    [[3], [6, 6]],
    [[3], [6, 7]],
    [[7, 7], [9, 10, 11, 4], [129, 2, 3, 4, 5, 6, 7, 128]],
    [[16384], [1, 128, 256]],
    [[300], [5, 40], [3, 1, 2, 9, 8]],  # and one whose levels do not divide each other,
    [[4], [3]],  # a single row,
    [[0, 6], [2, 3, 4, 5]],  # a prefix of some rows,
    [[5], [0, 0, 3]],  # and rows without keys of their own
]


@pytest.fixture(autouse=True)
def assumed(monkeypatch):
    """Nothing is measured, so that what is read does not depend on this machine."""
    monkeypatch.setattr("outlay.engine.sharing._KNOWN", {})
    monkeypatch.setattr("outlay.engine.sharing.PROCESSES", 0)
    monkeypatch.setattr("outlay.engine.sharing.read_measured", lambda path: None)


def exactly(q, k, v):
    """Attention and its log-sum-exp in float64: q [heads, n, dim], k and v [heads, length, dim]."""
    scores = q @ k.transpose(1, 2)
    return scores.softmax(-1) @ v, scores.logsumexp(-1)


def random_parts(*lengths, seed=0):
    generator = torch.Generator().manual_seed(seed)

    def random(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    q = random(2, 3, 8)
    return q, [(random(2, length, 8), random(2, length, 8)) for length in lengths]


@pytest.mark.parametrize("lengths", [(1, 10), (7, 9, 129), (256, 1), (40, 40, 40, 40)])
def test_parts_merge_to_full_attention(lengths):
    q, parts = random_parts(*lengths)
    out, lse = exactly(q, *parts[0])
    for part in parts[1:]:
        out, lse = merge(out, lse, *exactly(q, *part))
    whole, sums = exactly(q, *(torch.cat(side, 1) for side in zip(*parts, strict=True)))
    assert (out - whole).abs().max() < 1e-12
    assert (lse - sums).abs().max() < 1e-12


def test_merging_is_associative_and_commutative_and_an_empty_set_changes_nothing():
    q, parts = random_parts(3, 8, 20)
    a, b, c = (exactly(q, *part) for part in parts)
    for one, other in [
        (merge(*merge(*a, *b), *c), merge(*a, *merge(*b, *c))),
        (merge(*a, *b), merge(*b, *a)),
    ]:
        assert all((x - y).abs().max() < 1e-12 for x, y in zip(one, other, strict=True))
    empty = torch.zeros_like(a[0]), torch.full_like(a[1], -torch.inf)
    assert all(torch.equal(x, y) for x, y in zip(merge(*a, *empty), a, strict=True))
    out, lse = merge(*empty, *empty)
    assert (out == 0).all()
    assert (lse == -torch.inf).all()


def test_a_constant_added_to_every_log_sum_exp_changes_no_output():
    q, parts = random_parts(5, 6)
    (a, x), (b, y) = (exactly(q, *part) for part in parts)
    assert (merge(a, x, b, y)[0] - merge(a, x + 300.0, b, y + 300.0)[0]).abs().max() < 1e-12


def rows_below(levels, level, segment):
    """Row i of n reads segment floor(i * s / n) of a level with s segments."""
    n, s = len(levels[-1]), len(levels[level])
    return tuple(row for row in range(n) if row * s // n == segment)


def largest_error(levels, kv_heads, dtype=torch.float32):
    """The greatest difference between attention by segments and full attention in float64, over all rows."""
    heads, dim, n = 4, 16, len(levels[-1])
    config = DecoderConfig(
        architecture="toy", vocab_size=2, hidden_size=8, num_layers=1, num_heads=heads, num_kv_heads=kv_heads,
        head_dim=dim, intermediate_size=8, max_positions=32768, windows=(None,), attention_scale=dim**-0.5,
    )  # fmt: skip
    total = sum(map(sum, levels))
    cache = Cache(config, dtype, torch.device("cpu"), limit=total, capacity=total)
    generator = torch.Generator().manual_seed(1)
    keys, values = (torch.randn(total, kv_heads, dim, generator=generator).to(dtype) for _ in range(2))
    cache.write(0, slice(0, total), keys, values)

    spans, seen, start, base = [], [list[int]() for _ in range(n)], 0, 0
    for level, lengths in enumerate(levels):
        for segment, length in enumerate(lengths):
            rows = rows_below(levels, level, segment)
            if length:
                spans.append(KVSpan(base, start, length, rows))
            for row in rows:
                seen[row] += range(start, start + length)
            start += length
        base += max(lengths)
    own = [slots[-1] for slots in seen]
    order = torch.tensor(own)
    q = torch.randn(n, heads, dim, generator=generator).to(dtype)
    plan = PassPlan([0] * n, [0] * n, own, {None: spans}, [len(each) for each in seen])
    out = attention_of(cache, plan, config, dtype)(0, q, keys[order], values[order])

    errors = []
    for row, slots in enumerate(seen):
        k, v = (side[slots].double().transpose(0, 1).repeat_interleave(heads // kv_heads, 0) for side in (keys, values))
        exact, _ = exactly(q[row].double()[:, None] * dim**-0.5, k, v)
        errors.append(float((out[row].double() - exact[:, 0]).abs().max()))
    return max(errors)


@pytest.mark.parametrize("fast", [True, False], ids=["kernels", "torch"])
@pytest.mark.parametrize("kv_heads", [1, 2, 4])
@pytest.mark.parametrize("levels", LEVELS, ids=str)
def test_the_papers_segments_give_full_attention(monkeypatch, levels, kv_heads, fast):
    if fast and not kernels.available():
        pytest.skip("the native kernels are not built")
    if not fast:
        monkeypatch.setattr("outlay.kernels.available", lambda: False)
    assert largest_error(levels, kv_heads) < 5e-6


@pytest.mark.parametrize(("dtype", "error"), [(torch.float16, 2e-3), (torch.bfloat16, 1.6e-2)], ids=str)
@pytest.mark.parametrize("levels", LEVELS, ids=str)
def test_in_half_precision_they_give_it_up_to_the_rounding_of_their_outputs(monkeypatch, levels, dtype, error):
    """An output of size 1 to 2 is rounded by 2**-11 in float16 and by 2**-8 in bfloat16, once for each level."""
    monkeypatch.setattr("outlay.kernels.available", lambda: False)
    assert largest_error(levels, 2, dtype) < error


def engine_of(kv="float32", **options):
    return LM(tiny_model(), Engine(kv_dtype=KV_DTYPES[kv], **options))


def alone(tree, n, **options):
    """What each prompt gives alone, with a copy of its keys for every text."""
    lm = engine_of(options.pop("kv", "float32"), prefix_cache=False)
    return [
        lm.generate(leaf, seed=options["seed"] + i, **{name: x for name, x in options.items() if name != "seed"})
        for leaf in tree.leaves()
        for i in range(n)
    ]


@pytest.mark.parametrize("kv", KV_DTYPES)
@pytest.mark.parametrize("prefix_cache", [True, False])
@pytest.mark.parametrize(
    "options",
    [SAMPLED, SAMPLED | {"top_p": 0.9, "stop": "e"}, SAMPLED | {"frequency_penalty": 1.0, "repetition_penalty": 1.3}],
    ids=["sampled", "stopped", "penalized"],
)
def test_each_text_is_the_one_that_its_prompt_and_seed_give_alone(options, prefix_cache, kv):
    result = engine_of(kv, prefix_cache=prefix_cache).generate(TREE, method=Hydragen(n=3), **options)
    expected = alone(TREE, 3, kv=kv, **options)
    assert [each.tokens for each in result.alternatives] == [each.tokens for each in expected]
    assert [each.text for each in result.alternatives] == [each.text for each in expected]
    assert [each.finish_reason for each in result.alternatives] == [each.finish_reason for each in expected]
    assert [each.leaf for each in result.alternatives] == [0, 0, 0, 1, 1, 1, 2, 2, 2]
    assert (result.tokens, result.text) == (expected[0].tokens, expected[0].text)


def test_greedy_texts_are_those_of_greedy_and_n_of_them_are_the_same():
    lm = engine_of()
    with pytest.warns(OutlayWarning, match="the 2 texts of a prompt are the same at temperature 0"):
        result = lm.generate(TREE, method="hydragen:n=2", max_tokens=9)
    expected = alone(TREE, 2, max_tokens=9, seed=0)
    assert [each.tokens for each in result.alternatives] == [each.tokens for each in expected]


def test_permuting_the_prompts_permutes_the_texts_and_another_prompt_changes_none():
    ends = ["What?", "Who is it?", "Where?"]
    texts = {}
    for order in [*itertools.permutations(ends), (*ends, "Why?")]:
        result = engine_of().generate(PromptTree(DOCUMENT, order), method=Hydragen(n=2), **SAMPLED)
        for each in result.alternatives:
            texts.setdefault((order[each.leaf], each.text), 0)
    assert len(texts) == 2 * 4, "a question has the same two texts in every company"


def closed_form(lm, prefix, leaves, n, written):
    """Bytes of keys and values that texts of `written` tokens hold and read: sum of what is shared, and of their own.

    The last token of a text is never computed, and the prompt's own pass is left out of what is read.
    """
    per_slot = lm.engine.models[0].cache.bytes_per_slot
    own = sum(length - prefix for length in leaves)
    held = prefix + own + len(leaves) * n * (written - 1)
    read = sum(prefix + own + len(leaves) * n * step for step in range(1, written))
    return held * per_slot, read * per_slot


@pytest.mark.parametrize("n", [1, 5])
def test_bytes_held_and_read_are_those_of_the_closed_forms(n):
    lm = engine_of()
    prefix = [1 + i % 200 for i in range(100)]
    leaves = [[*prefix, 201, 202], [*prefix, 203, 204, 205]]
    tree = PromptTree(prefix, [leaf[100:] for leaf in leaves])
    options = {"method": Hydragen(n=n, min_rows=2, min_prefix=2), "temperature": 0.8, "ignore_eos": True}
    prompts = engine_of().generate(tree, max_tokens=1, **options).ledger
    ledger = lm.generate(tree, max_tokens=8, **options).ledger
    held, read = closed_form(lm, 100, [102, 103], n, 8)
    assert ledger.kv_held == held
    assert ledger.kv_bytes - prompts.kv_bytes == read


def test_a_copy_for_each_row_holds_as_much_more_as_the_closed_form_says():
    prompt = [1 + i % 200 for i in range(90)]
    options = {"temperature": 0.8, "max_tokens": 6, "ignore_eos": True}
    shared = engine_of().generate(prompt, method=Hydragen(n=7), **options).ledger
    copies = engine_of(prefix_cache=False).generate(prompt, n=7, **options).ledger
    assert shared.kv_held * 7 * (90 + 5) == copies.kv_held * (90 + 7 * 5)


def test_what_several_runs_hold_is_split_to_the_byte():
    """Three runs after one prompt: what the cache holds for them, no byte more or less."""
    lm = tiny_lm()
    prompt, per_slot = [5] * 40, 2 * 2 * 2 * 8 * 4
    lm.generate(prompt, max_tokens=1)
    results = lm.generate(prompt, n=3, temperature=0.9, max_tokens=6, ignore_eos=True)
    assert results.ledger.kv_held == per_slot * (39 + 3 * (1 + 5))
    assert lm.engine.models[0].ledger.kv_held == per_slot * 40 + results.ledger.kv_held


def test_a_budget_caps_what_is_held():
    lm, per_slot = engine_of(), 2 * 2 * 2 * 8 * 4
    prompt, cap = [5] * 40, 2 * 2 * 2 * 8 * 4 * (40 + 4 * 6)
    result = lm.generate(
        prompt, method="hydragen:n=4", temperature=0.8, max_tokens=20, ignore_eos=True, budget=Budget(kv_held=cap)
    )
    assert (result.finish_reason, result.cap) == ("budget", "kv_held")
    assert {each.finish_reason for each in result.alternatives} == {"budget"}
    assert cap - 4 * per_slot < result.ledger.kv_held <= cap
    assert all(len(each.tokens) == 7 for each in result.alternatives)


def test_a_tree_reads_less_than_its_prompts_apart():
    """Four questions with eight texts each over one document, against eight texts of each question on its own."""
    questions = [f"question number {i}?" for i in range(4)]
    tree = PromptTree(DOCUMENT, questions)
    options = SAMPLED | {"ignore_eos": True, "method": "hydragen:n=8"}
    together = engine_of(prefix_cache=False).generate(tree, **options).ledger
    apart = sum(
        (engine_of(prefix_cache=False).generate(leaf, **options).ledger for leaf in tree.leaves()), start=Ledger()
    )
    assert apart.kv_bytes / together.kv_bytes > 1.2


def test_messages_and_token_ids_make_trees_too():
    assert PromptTree([1, 2], [[[3], [4, 5]], [6]]).leaves() == [[1, 2, 3], [1, 2, 4, 5], [1, 2, 6]]
    said = {"role": "system", "content": "Be brief."}
    tree = PromptTree([said], ["Hello", [{"role": "user", "content": "Hi"}]])
    assert tree.leaves() == [[said, {"role": "user", "content": text}] for text in ("Hello", "Hi")]
    assert PromptTree("a", [PromptTree("b", ["c", "d"]), "e"], separator=" ").leaves() == [
        "a b\n\nc",
        "a b\n\nd",
        "a e",
    ]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: PromptTree("a", []), "needs a leaf"),
        (lambda: PromptTree("a", [[], " "]), "a part of the tree of prompts is empty"),
        (lambda: PromptTree([1], ["a"]), "a text follows a text or messages"),
        (lambda: PromptTree([1], [[{"role": "user", "content": "a"}]]), "messages follow messages"),
        (lambda: Hydragen(n=0), "hydragen needs n of 1 or more, not 0"),
        (lambda: Hydragen(min_rows=1), "min_rows"),
        (lambda: Hydragen(min_prefix=0), "min_prefix"),
        (lambda: tiny_lm().generate(TREE), "greedy answers one prompt, not a tree"),
        (lambda: tiny_lm().generate(TREE, method="hydragen", n=2, temperature=1), "leave n at 1"),
        (
            lambda: tiny_lm(context=64).generate(PromptTree([1], [[2], [3] * 70]), method="hydragen:n=1"),
            "leaf 2 of the tree of prompts has 71 tokens, but tiny-0 reads at most 64",
        ),
        (
            lambda: tiny_lm().generate(
                PromptTree([1, 2], [[3], [4, 5]]), method="hydragen:n=2,strict=true", temperature=1.0
            ),
            "hydragen:strict=true",
        ),
    ],
    ids=range(11),
)
def test_what_can_not_be_done_is_refused_in_one_line(make, message):
    with pytest.raises(UsageError, match=message) as refusal:
        make()
    assert "\n" not in str(refusal.value)


@pytest.mark.slow
@pytest.mark.parametrize("kv", KV_DTYPES)
def test_64_texts_of_the_default_model_are_those_of_64_copies(kv):
    """64 samples of 32 tokens after 1,024: the tokens of a copy for each and of runs alone, in a 22nd of the memory."""
    model = load_model("smollm2-135m")
    prompt = [1000 + 37 * i % 20000 for i in range(1024)]
    options = {"temperature": 0.8, "max_tokens": 32, "ignore_eos": True}

    def lm():
        return LM(model, Engine(kv_dtype=KV_DTYPES[kv], prefix_cache=False, cache_tokens=64 * 1088))

    shared = lm().generate(prompt, method="hydragen:n=64", **options)
    copies = lm().generate(prompt, n=64, **options)
    assert [each.tokens for each in shared.alternatives] == [each.tokens for each in copies.alternatives]
    for seed in (0, 31, 63):
        assert lm().generate(prompt, seed=seed, **options).tokens == shared.alternatives[seed].tokens
    assert shared.ledger.kv_held * 64 * (1024 + 31) == copies.ledger.kv_held * (1024 + 64 * 31)
