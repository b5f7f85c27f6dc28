"""What holds for every method, over the whole catalogue, with every kind of draft."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, replace
from typing import Any, ClassVar

import pytest
import torch

from outlay import catalog
from outlay.constrain import Predicate
from outlay.decode.draft.ppd.prompt_tokens import KIND
from outlay.decode.steer.budget_guidance.predictor import LengthPredictor, PredictorShape
from outlay.engine.canvas_run import CanvasRun
from outlay.models import fitted
from outlay.models.draft_head import untrained_draft_head
from outlay.rewards.functions import FunctionScorer
from outlay.rewards.model import RewardModel
from outlay.testing import ConstraintProperties, MethodProperties, tiny_lm, tiny_model, tiny_reward_model

SAMPLED = {"temperature": 0.9, "top_p": 0.95}


@dataclass(frozen=True)
class Case:
    """A method as it is tested: with what options, and which draft by name."""

    method: str
    draft: str | None = None
    options: dict[str, Any] = field(default_factory=dict)
    scorer: str | None = None
    safe: bool = False  # whether the method is given a safe model

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
    Case("hydragen:n=3", None, SAMPLED),
    Case("particles:n=4,step_tokens=4", None, SAMPLED, "letters"),
    Case("particles:n=4,step_tokens=4,potential=ratio,resample=systematic,ess=0.5,sweeps=2", None, SAMPLED, "self"),
    Case("particles:n=3,step_tokens=4,absorbing=true,entropic=0.5,select=sample", None, SAMPLED, "model"),
    Case("astar:k=3,step_tokens=4", None, SAMPLED, "verifier"),
    Case("particles:n=4,step_tokens=4,absorbing=true", None, SAMPLED, "verifier"),
    Case("step_beam:n=4,width=2,step_tokens=4", None, SAMPLED, "letters"),
    Case("step_beam:n=4,width=2,step_tokens=4,dvts=true", None, SAMPLED, "model"),
    Case("pgtd:rollouts=12", None, {}, "letters"),
    Case("pgtd:rollouts=6,beams=2,kept=64", None, {}, "self"),
    Case("pgtd:rollouts=6,policy=ucb,width=2", None, {}, "model"),
    Case("transfer_q:alpha=0.1,topk=3,rollout_len=5", None, {}, "letters"),
    Case("transfer_q:alpha=0.1,topk=3,rollouts=2,rollout_len=4,block=2", None, SAMPLED, "model"),
    Case("adadec:threshold=4.5"),
    Case("adadec:threshold=-inf,candidates=2,lookahead=3,line=true,reuse=false"),
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
    Case("anchored:k=0.4", options={"temperature": 1.0}, safe=True),
    Case("anchored:k=0.4,level=byte", options={"temperature": 0.9}, safe=True),
    Case("budget_guidance:tokens=9,closing=~~,predictor={length}"),
    Case("budget_guidance:tokens=30,cadence=every,closing=~~,predictor={length}", options=SAMPLED),
    Case("vasparse:strict=false,keep=0.5,window=4", options=SAMPLED),
    Case("mecb:message=hi,key=k", options={"temperature": 1.0}),
    Case("auto"),
    Case("auto", "model", SAMPLED),
    Case("auto", "head"),
]
CONSTRAINED = [
    Case("awrs", options={"temperature": 1.0}),
    Case("awrs:particles=3,variant=geometric,select=mode", options={"temperature": 0.8}),
    Case("awrs:score_every=2", None, {"temperature": 1.0}, "letters"),
]
# Draws that a random model's texts satisfy: what it writes freely is never a date.
FREE = [Case("rejection:draws=16", options={"temperature": 1.0})]
NEEDS_CONSTRAINT = {name for name, method in catalog.methods().items() if "constraint" in method.about.needs}
NAMED = {case.method.partition(":")[0] for case in CASES}
CASES += [
    Case(name)
    for name, method in sorted(catalog.methods().items())
    if name not in NAMED | NEEDS_CONSTRAINT
    and not issubclass(method.run_type, CanvasRun)  # those have laws of their own
]
CONSTRAINED += [
    case for case in CASES if "constraint" in catalog.methods()[case.method.partition(":")[0]].about.takes
]  # every method that takes one, as it runs without


@pytest.fixture(scope="module")
def prompts(tmp_path_factory):
    """Prompt tokens of no use, which no property minds."""
    path = tmp_path_factory.mktemp("prompts") / "tiny.ppd.safetensors"
    vectors = torch.randn(3, 1, 32, generator=torch.Generator().manual_seed(0))
    fitted.write(path, KIND, tiny_model(), {"vectors": vectors}, accuracy=[[0.3, 0.1, 0.05]] * 3)
    return path


@pytest.fixture(scope="module")
def length(tmp_path_factory):
    """A length predictor that knows nothing, which no property minds."""
    path, model, shape = tmp_path_factory.mktemp("length") / "tiny.length.safetensors", tiny_model(), PredictorShape()
    net = LengthPredictor(model.decoder.config.hidden_size, model.decoder.config.vocab_size, shape)
    torch.nn.init.normal_(net.shape_head, generator=torch.Generator().manual_seed(0))
    fitted.write(path, "length", model, net.state_dict(), shape=asdict(shape), tags=["", "~~"], min_rate=0.1)
    return path


@pytest.fixture(params=CASES, ids=str)
def _each_case(request, prompts, length):
    _set(TestEveryMethod, request.param, prompts=prompts, length=length)


@pytest.fixture(params=CONSTRAINED, ids=str)
def _each_constrained(request, prompts):
    _set(TestEveryMethodUnderAConstraint, request.param, prompts=prompts)


def _set(test, case, **files):
    drafts = {"model": lambda: tiny_model(1), "head": lambda: untrained_draft_head(tiny_model(), 1, 128)}
    test.method = case.method.format(**files)
    if case.safe:
        test.method = replace(catalog.parse(test.method), safe=tiny_model(1))
    test.options = case.options
    test.draft = drafts[case.draft]() if case.draft in drafts else case.draft
    test.scorer = SCORERS.get(case.scorer, case.scorer)


def letters(prompt, texts):
    """Rewards of no use, which no property minds."""
    return [(sum(text.encode()) % 97) / 97 for text in texts]


SCORERS = {"letters": FunctionScorer(letters), "model": RewardModel(tiny_reward_model())}
SCORERS["verifier"] = RewardModel(tiny_model(2), "likelihood")


@pytest.mark.usefixtures("_each_case")
class TestEveryMethod(MethodProperties):
    pass


@pytest.fixture(params=FREE, ids=str)
def _each_free(request):
    _set(TestEveryMethodOfWholeTexts, request.param)


@pytest.mark.usefixtures("_each_constrained")
class TestEveryMethodUnderAConstraint(ConstraintProperties):
    pass


@pytest.mark.usefixtures("_each_free")
class TestEveryMethodOfWholeTexts(ConstraintProperties):
    constraint = Predicate(lambda data: True)
    options: ClassVar = {}

    def test_every_text_is_valid_and_is_said_to_be(self):
        for result in self.run(tiny_lm(), logit_bias={256: 5.0}):
            assert result.finish_reason == "stop"
            assert result.facts["valid"]
