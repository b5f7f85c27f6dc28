"""What holds for every method, over the whole catalogue, with every kind of draft."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import pytest
import torch

from outlay import catalog
from outlay.decode.draft.ppd.prompt_tokens import KIND
from outlay.models import fitted
from outlay.models.draft_head import untrained_draft_head
from outlay.testing import MethodProperties, tiny_model

SAMPLED = {"temperature": 0.9, "top_p": 0.95}


@dataclass(frozen=True)
class Case:
    """A method as it is tested: with what options, and which draft by name."""

    method: str
    draft: str | None = None
    options: dict[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        return "-".join([self.method, *([self.draft] if self.draft else []), *(["sampled"] if self.options else [])])


# A method that is not here runs with its defaults.
CASES = [
    Case("sample", options=SAMPLED),
    Case("best_of", options=SAMPLED),
    Case("speculative", "model"),
    Case("speculative", "head", SAMPLED),
    Case("speculative", "lookup", SAMPLED),
    Case("rsd:variant=c", "model", SAMPLED),
    Case("rsd:variant=s", "model", SAMPLED),
    Case("rsd", "head"),
    Case("spectr", "model", SAMPLED),
    Case("traversal", "model", SAMPLED),
    Case("specinfer", "model", SAMPLED),
    Case("lookup", options=SAMPLED),
    Case("aded", options=SAMPLED),
    Case("aded:search=mcts"),
    Case("ppd:rows=8,prompts={prompts}"),
    Case("ppd:rows=8,prompts={prompts}", options=SAMPLED),
    Case("auto"),
    Case("auto", "model", SAMPLED),
    Case("auto", "head"),
]
NAMED = {case.method.partition(":")[0] for case in CASES}
CASES += [Case(name) for name in sorted(catalog.methods()) if name not in NAMED]


@pytest.fixture(scope="module")
def prompts(tmp_path_factory):
    """Prompt tokens of no use, which no property minds."""
    path = tmp_path_factory.mktemp("prompts") / "tiny.ppd.safetensors"
    vectors = torch.randn(3, 1, 32, generator=torch.Generator().manual_seed(0))
    fitted.write(path, KIND, tiny_model(), {"vectors": vectors}, accuracy=[[0.3, 0.1, 0.05]] * 3)
    return path


@pytest.fixture(params=CASES, ids=str, autouse=True)
def _each_case(request, prompts):
    case = request.param
    drafts = {"model": lambda: tiny_model(1), "head": lambda: untrained_draft_head(tiny_model(), 1, 128)}
    TestEveryMethod.method = case.method.format(prompts=prompts)
    TestEveryMethod.options = case.options
    TestEveryMethod.draft = drafts[case.draft]() if case.draft in drafts else case.draft


class TestEveryMethod(MethodProperties):
    pass
