"""An encoder's result is read by every method, in any batch, as one more read-only segment."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import pytest

from outlay import Budget, Method, PromptTree, UsageError
from outlay.decode.greedy import Greedy
from outlay.engine.engine import Engine
from outlay.lm import LM
from outlay.testing import PROMPTS, MethodProperties, tiny_encoder_decoder, tiny_model

CASES = [
    ("greedy", None, {}),
    ("sample", None, {"temperature": 0.9, "top_p": 0.95}),
    ("beam", None, {}),
    ("best_of", None, {"temperature": 0.9}),
    ("lookup", None, {}),
    ("speculative", "model", {}),
    ("speculative", "model", {"temperature": 0.9}),
    ("rsd", "model", {"temperature": 0.9}),
    ("aded", None, {}),
    ("hydragen:n=3", None, {"temperature": 0.9}),
    ("auto", None, {}),
    ("auto", "model", {"temperature": 0.9}),
]


def lm_of(**options: Any) -> LM:
    return LM(tiny_encoder_decoder(), Engine(**options))


@pytest.fixture(params=CASES, ids=lambda case: "-".join(str(part) for part in case if part))
def _each_case(request):
    method, draft, options = request.param
    TestEveryMethodOverAnEncoder.method = method
    TestEveryMethodOverAnEncoder.options = options
    TestEveryMethodOverAnEncoder.draft = tiny_encoder_decoder(1) if draft else None


@pytest.mark.usefixtures("_each_case")
class TestEveryMethodOverAnEncoder(MethodProperties):
    options: ClassVar = {}

    def lm(self, **options):
        return lm_of(**options)


TEXT = "The quick brown fox jumps over the lazy dog. The quick brown fox jumps."
EXACT = [
    ("lookup", None), ("aded", None), ("auto", None), ("auto", "model"), ("speculative", "model"),
    ("speculative", "self:skip=0"), ("rsd", "model"), ("specinfer", "model"), ("spectr", "model"),
    ("traversal", "model"),
]  # fmt: skip


@pytest.mark.parametrize(("method", "draft"), EXACT)
def test_every_exact_method_writes_what_greedy_writes(method, draft):
    lm = lm_of()
    other = tiny_encoder_decoder(1) if draft == "model" else draft
    for text in (TEXT, PROMPTS[3]):
        wanted = lm.generate(text, max_tokens=40, ignore_eos=True).tokens
        assert lm.generate(text, method=method, draft=other, max_tokens=40, ignore_eos=True).tokens == wanted


def test_an_input_is_read_once_whatever_is_made_of_it():
    lm = lm_of()
    length = len(lm.encode(TEXT))
    for method, options in [
        ("beam:width=4", {}),
        ("best_of:n=5", {"temperature": 0.8}),
        ("hydragen:n=4", {"temperature": 1.0}),
    ]:
        ledger = lm.generate(TEXT, method=method, max_tokens=12, **options).ledger
        assert (ledger.encoder_passes, ledger.encoder_tokens) == (1, length)
    many = [lm.submit(TEXT, method="sample", temperature=1.0, seed=seed, max_tokens=8) for seed in range(4)]
    assert sum(handle.result().ledger.encoder_passes for handle in many) == 1


def test_several_inputs_are_read_in_one_pass():
    lm = lm_of()
    with lm.engine.together():
        handles = [lm.submit(prompt, max_tokens=3) for prompt in PROMPTS]
    for handle in handles:
        assert handle.result().ledger.encoder_passes == 1
    worker = lm.engine.worker(lm.model)
    assert worker.ledger.encoder_tokens == sum(len(lm.encode(prompt)) for prompt in PROMPTS)


def test_equal_tokens_below_different_inputs_are_different_nodes():
    worker = Engine().worker(tiny_encoder_decoder())
    memories = [worker.open_memory(tokens) for tokens in ([1, 2, 3], [1, 2, 4], [1, 2, 3])]
    assert memories[0] is memories[2]
    paths = [worker.plant([0, 7, 8, 9], 0, memory=memory)[0].tip.path() for memory in memories]
    assert not {*paths[0]} & {*paths[1]}
    assert len({*paths[0]} & {*paths[2]}) == 3  # all but the last token, whose logits are wanted
    assert worker.prefixes.match([0, 7, 8, 9]) is None


def test_a_memory_is_freed_with_its_last_reader():
    worker = Engine().worker(tiny_encoder_decoder())
    first, again = worker.open_memory([1, 2, 3]), worker.open_memory([1, 2, 3])
    worker.close_memory(first)
    assert worker.memories.cache.in_use == 3
    worker.close_memory(again)
    assert worker.memories.cache.in_use == 0
    assert list(worker.memories) == []
    lm = lm_of()
    lm.generate_batch(list(PROMPTS), max_tokens=5)
    (worker,) = lm.engine.models
    assert worker.memories.cache.in_use == worker.cache.in_use == 0


def test_a_memory_that_finds_no_room_waits_for_it():
    lm = LM(tiny_encoder_decoder(), Engine(cache_tokens=100))
    texts = [TEXT, PROMPTS[1], TEXT[::-1]]  # 72, 32 and 72 tokens
    together = lm.generate_batch(texts, max_tokens=6)
    for text, result in zip(texts, together, strict=True):
        assert result.tokens == lm.generate(text, max_tokens=6).tokens


def test_a_draft_with_the_same_encoder_does_not_read_again():
    lm = lm_of()
    own = lm.generate(TEXT, method="speculative", draft="self:skip=0", max_tokens=10).ledger
    assert (own.encoder_passes, own.draft_passes > 0) == (1, True)
    other = lm.generate(TEXT, method="speculative", draft=tiny_encoder_decoder(1), max_tokens=10).ledger
    assert other.encoder_passes == 2


def test_what_a_run_holds_and_reads_has_its_memory_in_it():
    lm = lm_of()
    long, short = (lm.generate(text, max_tokens=1).ledger for text in (TEXT, TEXT[:10]))
    per_token = lm.engine.worker(lm.model).cache.bytes_per_slot
    assert long.kv_held - short.kv_held == (len(TEXT) - 10) * per_token
    assert long.kv_held == (len(TEXT) + 1) * per_token


def test_a_method_may_ask_for_the_input_to_be_read():
    lm, seen = lm_of(), []

    @dataclass(frozen=True)
    class Ahead(Method):
        about: ClassVar = Greedy.about

        def decode(self, run):
            (memory,) = yield run.target.encode()
            seen.append((len(memory), memory.computed, list(run.input), list(run.prompt)))
            run.commit((yield from run.next_token(run.tip)))

    result = lm.generate("abc", method=Ahead(), max_tokens=1)
    tokens = lm.encode("abc")
    assert seen == [(len(tokens), True, tokens, [0])]
    assert result.ledger.encoder_passes == 1
    assert result.tokens == lm.generate("abc", max_tokens=1).tokens


@pytest.mark.parametrize("entry", ["encoder_passes", "encoder_tokens"])
def test_a_budget_that_an_encoder_would_break_ends_the_run_before(entry):
    lm = lm_of()
    result = lm.generate(TEXT, budget=Budget(**{entry: 0.5}))
    assert (result.finish_reason, result.cap, result.tokens) == ("budget", entry, [])
    assert result.ledger.encoder_passes == 0


def test_bad_input_is_refused_in_one_line():
    lm = LM(tiny_encoder_decoder(), Engine(cache_tokens=50))
    cases = [
        (lambda: lm.generate([]), "the prompt is empty"),
        (lambda: lm.generate([1] * 51), "the input has 51 tokens, but the cache holds 50"),
        (lambda: lm.generate([1] * 20000), "the input has 20000 tokens, but the encoder of .* reads at most 16384"),
        (lambda: lm.generate([999]), "token 999 is not in the vocabulary"),
        (lambda: lm.generate(PromptTree("a", ["b", "c"]), method="hydragen"), "shares no beginning"),
        (
            lambda: LM(tiny_model(), Engine()).generate("a", method="speculative", draft=tiny_encoder_decoder()),
            "encoder",
        ),
    ]
    for wrong, said in cases:
        with pytest.raises(UsageError, match=said):
            wrong()
