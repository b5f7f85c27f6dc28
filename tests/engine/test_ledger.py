"""The ledger against a hand count and against torch's own counter; budgets and how both print and parse."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import dataclass
from typing import ClassVar

import pytest
from torch.utils.flop_counter import FlopCounterMode

from outlay import Budget, Ledger, UsageError, kernels
from outlay.engine.engine import Engine
from outlay.engine.method import About, Method
from outlay.lm import LM
from outlay.testing import tiny_lm, tiny_model

# tiny_lm: hidden 32, 4 heads and 2 key heads of 8, inner 64, vocabulary 257, 2 layers, float32
ROW = 2 * (32 * 64 + 32 * 32 + 32 * 128 + 64 * 32)  # multiply-adds of a row: q, k, v; o; gate, up; down; twice
HEAD = 32 * 257


def by_hand(rows, heads, keys):
    return 2 * (rows * ROW + heads * HEAD) + 2 * (4 * 4 * 8 * keys)


def test_flops_of_a_text_are_those_counted_by_hand():
    result = tiny_lm().generate("abcde", max_tokens=3, ignore_eos=True)
    assert result.ledger.target_tokens == 5 + 2
    assert result.ledger.flops == by_hand(rows=7, heads=3, keys=sum(range(1, 8)))


def test_bytes_of_a_text_are_those_counted_by_hand():
    lm = tiny_lm()
    result = lm.generate("abcde", max_tokens=3, ignore_eos=True)
    padding = -257 % 16 * 32 if kernels.available() else 0  # the kernels hold the LM head's rows in sixteens
    weights = 4 * (ROW + HEAD + padding + 5 * 32)  # five norms; rows of the embedding come on top
    assert result.ledger.weight_bytes == 3 * weights + 7 * 4 * 32
    per_token = 2 * 2 * 2 * 8 * 4  # keys and values, layers, heads, head_dim, float32
    assert result.ledger.kv_bytes == (5 + 6 + 7) * per_token
    assert lm.engine.workers[0].cache.bytes_per_slot == per_token


@dataclass(frozen=True)
class Counted(Method):
    """Greedy under torch's counter, which sees what the engine's thread runs between two of our requests."""

    about: ClassVar[About] = About("counted", "greedy, counted", "", "test", "", "")

    def decode(self, run):
        for _ in range(4):
            before = run.ledger.flops
            with FlopCounterMode(display=False) as counter:
                logits = yield run.target.forward([run.tip])
            run.count(by_torch=counter.get_total_flops(), by_us=run.ledger.flops - before)
            run.commit(run.sampler.pick(logits[0]))


def test_flops_are_those_that_torch_counts():
    """One-token prompt: from there on each row sees every key that the product covers, so both count the same work."""
    lm = LM(tiny_model(dtype="float16"), Engine())  # which no kernel of ours holds
    result = lm.generate("a", method=Counted(), max_tokens=10, ignore_eos=True)
    assert result.ledger.extras["by_us"] == result.ledger.flops > 0
    attention = sum(2 * 4 * 4 * 8 * keys for keys in (1, 2, 3, 4))
    by_torch = result.ledger.extras["by_torch"]
    assert result.ledger.flops in (by_torch, by_torch + attention), "some versions of torch do not see this attention"


def test_a_shared_prefix_is_read_once_and_its_bytes_are_split():
    lm = tiny_lm()
    prompt = "x" * 100
    lm.generate(prompt, max_tokens=1, ignore_eos=True)
    alone = lm.generate(prompt + "a", max_tokens=5, ignore_eos=True).ledger.kv_bytes
    together = lm.generate_batch([prompt + letter for letter in "bcde"], max_tokens=5, ignore_eos=True)
    assert sum(result.ledger.kv_bytes for result in together) < 2 * alone


def test_ledgers_add_up_and_print():
    a = Ledger(target_passes=2, flops=1_500_000_000, seconds=0.5, tokens_out=3, extras={"visits": 2})
    b = Ledger(target_passes=1, kv_bytes=2048, extras={"visits": 1, "rounds": 4})
    total = a + b
    assert total.target_passes == 3
    assert total.extras == {"visits": 3, "rounds": 4}
    assert a.target_passes == 2, "adding changes neither"
    table = total.table()
    assert "target passes" in table
    assert "1.5 GFLOP" in table
    assert "2.048 kB" in table
    assert "tokens per target pass" in table
    assert len({len(line) for line in table.splitlines()}) == 1, "the columns line up"
    assert total.as_dict()["extras"] == {"visits": 3, "rounds": 4}


def test_what_ran_is_joined_whatever_the_order():
    one, two = Ledger(ran_on=("torch",)), Ledger(ran_on=("native avx2",))
    assert (one + two).ran_on == (two + one).ran_on == ("native avx2", "torch")
    assert (one + one).ran_on == (one + Ledger()).ran_on == ("torch",)
    assert (one + two).as_dict()["ran_on"] == ["native avx2", "torch"]
    assert "ran on" in one.table()
    assert "ran on" not in Ledger(flops=1).table()


def ran_on(dtype):
    return LM(tiny_model(dtype=dtype), Engine()).generate("a", max_tokens=2, ignore_eos=True).ledger.as_dict()["ran_on"]


def test_the_ledger_says_which_code_did_the_passes():
    assert ran_on("float16") == ["torch"], "no kernel of ours holds float16 weights"
    assert ran_on("int4") == ([f"native {kernels.isa()}"] if kernels.available() else ["torch"])


@pytest.mark.parametrize("limit", ["none", "scalar", pytest.param("avx2", marks=pytest.mark.slow)])
def test_the_environment_limits_the_instructions_and_the_ledger_says_so(limit):
    program = (
        "from outlay import LM, kernels\nfrom outlay.engine.engine import Engine\n"
        "from outlay.testing import tiny_model\n"
        "lm = LM(tiny_model(dtype='int4'), Engine())\n"
        "print(lm.generate('a', max_tokens=2, ignore_eos=True).ledger.as_dict()['ran_on'])\n"
        "print(kernels.isa())"
    )
    environment = {**os.environ, "OUTLAY_ISA": limit, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    result = subprocess.run(
        [sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True
    )
    quantized, isa = result.stdout.split("\n")[:2]
    assert quantized == ("['torch']" if isa == "none" else f"['native {isa}']")
    assert isa == limit or limit == "avx2" or not kernels.available()


def test_budgets_parse():
    assert Budget.parse("target_passes=64,seconds=2.5") == Budget(target_passes=64, seconds=2.5)
    assert Budget(tokens_out=5).left(Ledger(tokens_out=2), "tokens_out") == 3
    assert Budget().left(Ledger(), "flops") == float("inf")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("target_pass=3", "no entry 'target_pass' .did you mean 'target_passes'"),
        ("seconds=0", "seconds must be a number above 0, not 0"),
        ("seconds=-1", "above 0"),
        ("seconds", "name=number"),
        ("seconds=soon", "name=number"),
        ("seconds=nan", "name=number"),
        ("", "name=number"),
    ],
)
def test_a_bad_budget_is_refused_in_one_line(text, message):
    with pytest.raises(UsageError, match=message) as caught:
        Budget.parse(text)
    assert "\n" not in str(caught.value)
