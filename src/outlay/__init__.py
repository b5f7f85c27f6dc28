"""outlay makes models decode more for less: one engine, one ledger and one budget for many published methods."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from outlay.about import About as About
    from outlay.attend.policy import CachePolicy as CachePolicy
    from outlay.attend.zipvl import ZipVL as ZipVL
    from outlay.budget import Budget as Budget
    from outlay.budget import Ledger as Ledger
    from outlay.decode.beam import Beam as Beam
    from outlay.decode.draft.aded import ADED as ADED
    from outlay.decode.draft.auto import Auto as Auto
    from outlay.decode.draft.lookup import Lookup as Lookup
    from outlay.decode.draft.ppd import PPD as PPD
    from outlay.decode.draft.rsd import RSD as RSD
    from outlay.decode.draft.specinfer import SpecInfer as SpecInfer
    from outlay.decode.draft.specinfer import Speculative as Speculative
    from outlay.decode.draft.spectr import SpecTr as SpecTr
    from outlay.decode.draft.superposed import Superposed as Superposed
    from outlay.decode.draft.traversal import Traversal as Traversal
    from outlay.decode.greedy import Greedy as Greedy
    from outlay.decode.hydragen import Hydragen as Hydragen
    from outlay.decode.sample import Sample as Sample
    from outlay.decode.search.adadec import AdaDec as AdaDec
    from outlay.decode.search.astar import AStar as AStar
    from outlay.decode.search.best_of import BestOf as BestOf
    from outlay.decode.search.particles import Particles as Particles
    from outlay.decode.search.pgtd import PGTD as PGTD
    from outlay.decode.search.step_beam import StepBeam as StepBeam
    from outlay.decode.steer.anchored import Anchored as Anchored
    from outlay.decode.steer.awrs import AWRS as AWRS
    from outlay.decode.steer.budget_guidance import BudgetGuidance as BudgetGuidance
    from outlay.decode.steer.mecb import MECB as MECB
    from outlay.decode.steer.rejection import Rejection as Rejection
    from outlay.decode.steer.transfer_q import TransferQ as TransferQ
    from outlay.decode.vasparse import VASparse as VASparse
    from outlay.diffuse.bacd import BACD as BACD
    from outlay.diffuse.dynamic import Dynamic as Dynamic
    from outlay.diffuse.entropy_bounded import EntropyBounded as EntropyBounded
    from outlay.diffuse.ete import ETE as ETE
    from outlay.diffuse.factor import Factor as Factor
    from outlay.diffuse.first_hitting import FirstHitting as FirstHitting
    from outlay.diffuse.hierarchical import Hierarchical as Hierarchical
    from outlay.diffuse.learn2pd import Learn2PD as Learn2PD
    from outlay.diffuse.llada import LLaDA as LLaDA
    from outlay.diffuse.localleap import LocalLeap as LocalLeap
    from outlay.diffuse.rule import CommitRule as CommitRule
    from outlay.diffuse.threshold import Threshold as Threshold
    from outlay.engine.canvas_run import CanvasRun as CanvasRun
    from outlay.engine.functions import FunctionWorker as FunctionWorker
    from outlay.engine.functions import ProcessWorker as ProcessWorker
    from outlay.engine.functions import ThreadWorker as ThreadWorker
    from outlay.engine.handle import Handle as Handle
    from outlay.engine.handle import Result as Result
    from outlay.engine.method import Method as Method
    from outlay.engine.method import Work as Work
    from outlay.engine.request import Request as Request
    from outlay.engine.request import Worker as Worker
    from outlay.engine.run import Run as Run
    from outlay.engine.submission import DraftSource as DraftSource
    from outlay.engine.submission import Submission as Submission
    from outlay.engine.text_run import TextRun as TextRun
    from outlay.engine.tree_run import TreeRun as TreeRun
    from outlay.errors import FailureError as FailureError
    from outlay.errors import OutlayError as OutlayError
    from outlay.errors import QueueFull as QueueFull
    from outlay.errors import UsageError as UsageError
    from outlay.lm import LM as LM
    from outlay.lm import load as load
    from outlay.prompt_tree import PromptTree as PromptTree
    from outlay.rewards.programs.scorer import PythonTests as PythonTests
    from outlay.rewards.scorer import RunScorer as RunScorer
    from outlay.rewards.scorer import Scorer as Scorer
    from outlay.shared_prefix import SharedPrefix as SharedPrefix

__version__ = "0.1.0"

# Imported when first asked for: the command line answers --help without waiting for torch.
_HOMES = {
    "CachePolicy": "outlay.attend.policy",
    "ZipVL": "outlay.attend.zipvl",
    "Budget": "outlay.budget",
    "Ledger": "outlay.budget",
    "Beam": "outlay.decode.beam",
    "AdaDec": "outlay.decode.search.adadec",
    "AStar": "outlay.decode.search.astar",
    "BestOf": "outlay.decode.search.best_of",
    "Particles": "outlay.decode.search.particles",
    "PGTD": "outlay.decode.search.pgtd",
    "StepBeam": "outlay.decode.search.step_beam",
    "Anchored": "outlay.decode.steer.anchored",
    "AWRS": "outlay.decode.steer.awrs",
    "TransferQ": "outlay.decode.steer.transfer_q",
    "MECB": "outlay.decode.steer.mecb",
    "BudgetGuidance": "outlay.decode.steer.budget_guidance",
    "ADED": "outlay.decode.draft.aded",
    "Auto": "outlay.decode.draft.auto",
    "Lookup": "outlay.decode.draft.lookup",
    "PPD": "outlay.decode.draft.ppd",
    "RSD": "outlay.decode.draft.rsd",
    "SpecInfer": "outlay.decode.draft.specinfer",
    "SpecTr": "outlay.decode.draft.spectr",
    "Speculative": "outlay.decode.draft.specinfer",
    "Superposed": "outlay.decode.draft.superposed",
    "Traversal": "outlay.decode.draft.traversal",
    "VASparse": "outlay.decode.vasparse",
    "Greedy": "outlay.decode.greedy",
    "Rejection": "outlay.decode.steer.rejection",
    "Hydragen": "outlay.decode.hydragen",
    "Sample": "outlay.decode.sample",
    "CommitRule": "outlay.diffuse.rule",
    "FirstHitting": "outlay.diffuse.first_hitting",
    "LLaDA": "outlay.diffuse.llada",
    "Factor": "outlay.diffuse.factor",
    "Dynamic": "outlay.diffuse.dynamic",
    "EntropyBounded": "outlay.diffuse.entropy_bounded",
    "Hierarchical": "outlay.diffuse.hierarchical",
    "Learn2PD": "outlay.diffuse.learn2pd",
    "LocalLeap": "outlay.diffuse.localleap",
    "BACD": "outlay.diffuse.bacd",
    "ETE": "outlay.diffuse.ete",
    "Threshold": "outlay.diffuse.threshold",
    "CanvasRun": "outlay.engine.canvas_run",
    "FunctionWorker": "outlay.engine.functions",
    "ProcessWorker": "outlay.engine.functions",
    "ThreadWorker": "outlay.engine.functions",
    "Handle": "outlay.engine.handle",
    "Result": "outlay.engine.handle",
    "About": "outlay.about",
    "Method": "outlay.engine.method",
    "Work": "outlay.engine.method",
    "Request": "outlay.engine.request",
    "Worker": "outlay.engine.request",
    "Run": "outlay.engine.run",
    "DraftSource": "outlay.engine.submission",
    "Submission": "outlay.engine.submission",
    "TextRun": "outlay.engine.text_run",
    "TreeRun": "outlay.engine.tree_run",
    "FailureError": "outlay.errors",
    "OutlayError": "outlay.errors",
    "QueueFull": "outlay.errors",
    "UsageError": "outlay.errors",
    "LM": "outlay.lm",
    "load": "outlay.lm",
    "PromptTree": "outlay.prompt_tree",
    "SharedPrefix": "outlay.shared_prefix",
    "PythonTests": "outlay.rewards.programs.scorer",
    "RunScorer": "outlay.rewards.scorer",
    "Scorer": "outlay.rewards.scorer",
}

__all__ = sorted(_HOMES)


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'outlay' has no attribute {name!r}")
    value = getattr(import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__
