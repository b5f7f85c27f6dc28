"""Edits of logits: in their place between penalties and temperature, for any method that a run decodes with."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import pytest
import torch

from outlay import RSD, About, Beam, Greedy, Method, Sample
from outlay.testing import tiny_lm, tiny_model

EVEN = torch.arange(257) % 2 == 0


@dataclass(frozen=True)
class Edited(Method):
    """Another method under an edit that leaves even tokens only, and after `after` the token 66 only."""

    inner: Method

    after: int = 70

    about: ClassVar[About] = About("edited", "", "", "test", "", "")

    def decode(self, run):
        run.sampler.edits.append(self.edit)
        return self.inner.decode(run)

    def edit(self, logits, node, then):
        before = then[-1] if then else node.token
        allowed = torch.arange(257) == 66 if before == self.after else EVEN
        return logits.masked_fill(~allowed, -torch.inf)


@pytest.mark.parametrize(
    ("method", "options"),
    [
        (Greedy(), {}),
        (Sample(), {"temperature": 1.5, "top_k": 40}),
        (Beam(2), {}),
        (RSD(branching=(2, 2)), {"draft": tiny_model(1)}),
        (RSD(branching=(2, 2)), {"draft": tiny_model(1), "temperature": 1.0}),
    ],
)
def test_every_method_obeys_an_edit(method, options):
    lm = tiny_lm()
    result = lm.generate("Once", method=Edited(method), max_tokens=40, ignore_eos=True, **options)
    assert len(result.tokens) == 40
    assert all(token % 2 == 0 for token in result.tokens)
    if not options.get("temperature"):
        assert method.label == "beam:width=2" or result.tokens == greedy_tokens()


def greedy_tokens():
    return tiny_lm().generate("Once", method=Edited(Greedy()), max_tokens=40, ignore_eos=True).tokens


def test_an_edit_comes_after_the_penalties_and_before_temperature_and_truncation():
    seen = []

    class Noted(Edited):
        def edit(self, logits, node, then):
            seen.append(logits)
            return logits.masked_fill(torch.arange(257) != 9, -torch.inf)

    options = {"logit_bias": {5: 50.0}, "temperature": 2.0, "top_k": 1, "max_tokens": 1}
    assert tiny_lm().generate("Once", method=Noted(Sample()), **options).tokens == [9], "top-k counts what is left"
    assert float(seen[0].max()) > 40, "the bias is in, and temperature is not"
    assert int(seen[0].argmax()) == 5
