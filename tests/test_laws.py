"""The laws of every method, over the whole catalogue."""

from __future__ import annotations

import pytest

from outlay import catalog
from outlay.testing import MethodLaws

# What a method needs of a request before it can run; everything else runs with its defaults.
NEEDS = {
    "sample": {"temperature": 0.9, "top_p": 0.95},
    "best_of": {"temperature": 0.9},
}


@pytest.fixture(params=sorted(catalog.methods()), autouse=True)
def _each_method(request):
    TestEveryMethod.method = request.param
    TestEveryMethod.options = NEEDS.get(request.param, {})


class TestEveryMethod(MethodLaws):
    pass
