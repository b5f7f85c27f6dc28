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
from outlay.rewards.functions import FunctionScorer
from outlay.rewards.model import RewardModel
from outlay.testing import MethodProperties, tiny_model, tiny_reward_model

SAMPLED = {"temperature": 0.9, "top_p": 0.95}


@dataclass(frozen=True)
class Case:
    """A method as it is tested: with what options, and which draft by name."""

    method: str
    draft: str | None = None
    options: dict[str, Any] = field(default_factory=dict)
    scorer: str | None = None

    def __str__(self) -> str:
        given = [each for each in (self.draft, self.scorer) if each]
        return "-".join([self.method, *given, *(["sampled"] if self.options else [])])


# A method that is not here runs with its defaults.
CASES = [
    Case("sample", options=SAMPLED),
    Case("best_of", options=SAMPLED),
    Case("best_of:by=score", None, SAMPLED, "self"),
    Case("best_of:by=score", None, SAMPLED, "letters"),
    Case("astar:k=3,step_tokens=4", None, SAMPLED, "letters"),
    Case("astar:k=2,step_tokens=4,parallel=2,reopen=0,beam_cap=8,n_solutions=2", None, SAMPLED, "model"),
    Case("particles:n=4,step_tokens=4", None, SAMPLED, "letters"),
    Case("particles:n=4,step_tokens=4,potential=ratio,resample=systematic,ess=0.5,sweeps=2", None, SAMPLED, "self"),
    Case("particles:n=3,step_tokens=4,absorbing=true,entropic=0.5,select=sample", None, SAMPLED, "model"),
    Case("step_beam:n=4,width=2,step_tokens=4", None, SAMPLED, "letters"),
    Case("step_beam:n=4,width=2,step_tokens=4,dvts=true", None, SAMPLED, "model"),
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
    TestEveryMethod.scorer = SCORERS.get(case.scorer, case.scorer)


def letters(prompt, texts):
    """Rewards of no use, which no property minds."""
    return [(sum(text.encode()) % 97) / 97 for text in texts]


SCORERS = {"letters": FunctionScorer(letters), "model": RewardModel(tiny_reward_model())}


class TestEveryMethod(MethodProperties):
    pass
