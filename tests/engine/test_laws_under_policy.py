"""The properties that every method has, of every method that takes a cache policy, under each policy."""

from __future__ import annotations

import re
from typing import Any, ClassVar

import pytest
from engine.policies import FirstAndLast

from outlay import Budget, catalog
from outlay.errors import UsageError
from outlay.testing import ENDING, PROMPTS, MethodProperties, tiny_model

SAMPLED = {"temperature": 0.9}
ALWAYS_SAMPLED = {"sample", "best_of"}
TAKING = sorted(name for name, method in catalog.methods().items() if "cache" in method.about.takes)
POLICIES = {
    "quantize": "zipvl:tau=0.8,every=6",
    "evict": "zipvl:mode=evict,tau=0.7,every=9",
    "page": FirstAndLast(first=2, last=6),
}
DRAFTED = {name for name, method in catalog.methods().items() if "draft" in method.about.needs}


def case(method, policy, *, sampled=False):
    """A method under a policy; all but one are slow."""
    marks = [] if (method, policy) == ("greedy", "page") else [pytest.mark.slow]
    return pytest.param((method, policy, sampled), id=f"{method}-{policy}{'-sampled' * sampled}", marks=marks)


CASES = [case(method, policy, sampled=method in ALWAYS_SAMPLED) for method in TAKING for policy in POLICIES]
CASES += [case(method, "quantize", sampled=True) for method in TAKING if method in DRAFTED]


@pytest.fixture(params=CASES)
def _each_case(request):
    method, policy, sampled = request.param
    test = TestEveryMethodUnderEachPolicy
    test.method, test.draft = method, tiny_model(1) if method in DRAFTED else None
    test.options = {"cache": POLICIES[policy], **(SAMPLED if sampled else {})}
    # zipvl finds what fits into a budget of bytes held, so that a run goes on below it
    test.ending = ENDING if policy == "page" else [name for name in ENDING if name != "kv_held"]


@pytest.mark.usefixtures("_each_case")
class TestEveryMethodUnderEachPolicy(MethodProperties):
    options: ClassVar[dict[str, Any]] = {}

    def test_a_budget_of_bytes_held_is_kept_or_refused_with_the_least(self):
        """The policy refuses what it can't reach, with the bytes that it needs, with which a run goes on."""
        whole = self.run(self.lm(), PROMPTS[1:2])[0].ledger.kv_held
        for share in (0.1, 0.5, 0.9):
            cap = int(whole * share)
            found = self.held_or_least(cap)
            assert found <= cap or self.held_or_least(found) <= found

    def held_or_least(self, cap):
        """The bytes that a run under the cap held at most, or those that its refusal asks for."""
        try:
            return self.run(self.lm(), PROMPTS[1:2], budget=Budget(kv_held=cap))[0].ledger.kv_held
        except UsageError as refused:
            return int(re.search(r"below what one token a layer needs: (\d+)", str(refused))[1])
