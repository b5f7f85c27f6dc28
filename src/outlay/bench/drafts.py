"""`outlay bench drafts`: how often drafted tokens are taken, by each verifier and shape of tree; and superposed drafts.

Acceptance at a node needs no draft model: the target itself, seeing the last 8 tokens only, is the draft, and what each
verifier takes is computed from the two laws at each of some positions of real text.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import mean
from typing import Any, ClassVar

import torch
from torch import Tensor

from outlay.bench.acceptance import optimal_acceptance, recursive_acceptance, single_acceptance
from outlay.bench.contenders.speculators import prompts_of
from outlay.bench.drafts_report import report
from outlay.bench.machine import describe
from outlay.bench.options import check_folder_of, names
from outlay.bench.progress import Progress
from outlay.bench.speculation import DATA
from outlay.budget import Ledger
from outlay.decode.draft.ppd import tree_plan
from outlay.decode.draft.ppd.prompt_tokens import open_prompt_tokens
from outlay.decode.draft.rsd import RSD, reject_without_replacement
from outlay.decode.draft.specinfer import SpecInfer, Speculative
from outlay.decode.draft.spectr import kseq_acceptance
from outlay.decode.draft.superposed import Superposed
from outlay.engine.handle import Result
from outlay.engine.method import About, Method, Work
from outlay.engine.tree_run import TreeRun
from outlay.errors import FailureError
from outlay.lm import DEFAULT_MODEL, LM, load
from outlay.models import hub
from outlay.python_sources import library_sources
from outlay.speculation.ngrams import NgramTable, tokenizer_fingerprint

TEMPERATURES, KS = (0.3, 0.6, 1.0), (1, 2, 4, 8)
SEEN = 8  # tokens that the draft sees
DRAWS = 12  # of drafts without replacement at each position
NODES = 14
CHAINS = (1, 2, 3, 4, 5, 6, 8, 10, 14)
TREES: tuple[Method, ...] = (
    *(
        RSD(branching=branching)
        for branching in ((2, 2, 2), (2, 2, 1), (3, 1, 1, 1), (4, 1, 1), (3, 2), (2, 1, 1, 1, 1))
    ),
    *(RSD("s", width=width, depth=depth) for width, depth in ((2, 7), (3, 4), (4, 3), (2, 4))),
    SpecInfer(branching=(2, 2, 2)),
    SpecInfer(branching=(2, 2, 1)),
)
PREFIX, COMPLETED = 15, 10  # tokens of a prompt that is completed, and of a completion
ROWS = 16  # of a pass of PPD
WITHOUT_A_MODEL = (
    "lookup:tokens=16",
    "aded:prime_prompt=0,update=off",
    "aded:prime_prompt=0",
    "aded:prime_prompt=0,search=mcts",
    "aded",
    f"ppd:rows={ROWS}",
)
SETS, NEW = ("chat", "code", "summary"), 96  # tokens of an answer
PARTS = ("nodes", "trees", "tables", "superposed")


class Laws(Method):
    """Keeps the logits at some positions of the prompt, float32 [positions, vocab]."""

    about: ClassVar[About] = About("laws", "the logits of a text", "", "measuring", "a pass over the text", "")

    def __init__(self, positions: Sequence[int]) -> None:
        self.positions, self.logits = positions, torch.empty(0)

    def decode(self, run: TreeRun) -> Work:
        """Commits nothing."""
        path = run.tip.path()
        self.logits = yield run.target.forward([path[position] for position in self.positions])


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the suite's options to `parser`."""
    parser.add_argument("--model", default=DEFAULT_MODEL, help="alias, folder, .gguf file or hub id (%(default)s)")
    parser.add_argument("--data", type=Path, default=DATA, metavar="DIR", help="where the prompts and the text are")
    parser.add_argument("--positions", type=int, default=120, metavar="N", help="of text (%(default)s)")
    parser.add_argument("--prompts", type=int, default=12, metavar="N", help="for trees and completions (%(default)s)")
    parser.add_argument("--parts", default=",".join(PARTS), metavar="A,B", help="what is measured (%(default)s)")
    parser.add_argument("--threads", type=int, default=None, metavar="N", help="threads to compute with")
    parser.add_argument("--out", type=Path, default=None, metavar="FILE", help="write everything measured as JSON")


def run(args: argparse.Namespace) -> int:
    """Measures, prints the report, and writes it; returns the exit status."""
    check_folder_of(args.out)
    progress, started = Progress(), time.perf_counter()
    parts = names("part", args.parts, PARTS)
    found: dict[str, Any] = {}
    if "nodes" in parts:
        exact = load(args.model, dtype="float32", threads=args.threads)
        found["nodes"] = node_acceptance(exact, args.data, args.positions, progress)
        del exact
    lm = load(args.model, threads=args.threads)
    if "trees" in parts:
        found["trees"] = block_efficiencies(lm, args.data, args.prompts, progress)
    if "tables" in parts:
        found["tables"] = without_a_model(lm, args.data, args.prompts, progress)
    if "superposed" in parts:
        found["superposed"] = superposed(lm, args.data, args.prompts, progress)
    machine = describe(("outlay", "torch")) | {"seconds": round(time.perf_counter() - started, 1)}
    found = {"machine": machine | {"model": hub.resolve(args.model).name}, "prompts": args.prompts, **found}
    if args.out is not None:
        args.out.write_text(json.dumps(found, indent=1) + "\n")
    print(report(found))
    return 0


def node_acceptance(lm: LM, data: Path, count: int, progress: Progress) -> dict[str, Any]:
    """Returns the mean acceptance of each verifier over positions of prose and code, by temperature and drafts."""
    tokenizer = lm.model.tokenizer
    prose = tokenizer.encode((data / "war_and_peace.txt").read_text()[:40_000])
    code = tokenizer.encode(next(library_sources(10_000_000)))
    texts = [
        tokens[start : start + 200] for tokens in (prose, code) for start in range(0, min(len(tokens), 4000) - 200, 800)
    ]
    every = max(1, len(texts) * 160 // count)
    laws = []
    for done, text in enumerate(texts):
        progress("laws of text", done, len(texts))
        positions = list(range(32, 192, every))
        target = Laws(positions)
        drafts = [Laws([SEEN - 1]) for _ in positions]
        with lm.engine.together():
            handles = [lm.submit(text, method=target, max_tokens=1)]
            handles += [
                lm.submit(text[at + 1 - SEEN : at + 1], method=draft, max_tokens=1)
                for at, draft in zip(positions, drafts, strict=True)
            ]
        for handle in handles:
            handle.result()
        laws += list(zip(target.logits, (draft.logits[0] for draft in drafts), strict=True))
        lm.engine.clear()
    rows = []
    for temperature in TEMPERATURES:
        # In float64: where the laws hardly overlap, what float32 misses of 1 is more than what can be accepted.
        pairs = [((q.double() / temperature).softmax(-1), (p.double() / temperature).softmax(-1)) for q, p in laws]
        for done, k in enumerate(KS):
            progress(f"acceptance at temperature {temperature}", done, len(KS))
            rows.append({"temperature": temperature, "k": k, **_acceptances(pairs, k)})
    return {"positions": len(laws), "rows": rows}


def _acceptances(pairs: Sequence[tuple[Tensor, Tensor]], k: int) -> dict[str, float]:
    optima = [optimal_acceptance(p, q, k) for q, p in pairs]
    reached = [kseq_acceptance(p, q, k) for q, p in pairs]
    draws = [_without_replacement(q, p, k, place) for place, (q, p) in enumerate(pairs)]
    return {
        "single": mean(single_acceptance(p, q) for q, p in pairs),
        "recursive": mean(recursive_acceptance(p, q, k) for q, p in pairs),
        "kseq": mean(reached),
        "optimum": mean(optima),
        "least_share": min(mine / best for mine, best in zip(reached, optima, strict=True)),
        "rsd": mean(draws),
        "rsd_error": torch.tensor(draws).std().item() / math.sqrt(len(draws)),
    }


def _without_replacement(q: Tensor, p: Tensor, k: int, seed: int) -> float:
    """How often one of k drafts drawn without replacement is taken, over `DRAWS` draws."""
    generator = torch.Generator().manual_seed(seed)
    taken = 0
    for _ in range(DRAWS):
        noise = -(-torch.rand(p.shape, generator=generator, dtype=torch.float64).clamp_min(1e-300).log()).log()
        noisy = (p.double().log() + noise).topk(k)
        drafted = [token for token, value in zip(*map(Tensor.tolist, (noisy.indices, noisy.values)), strict=True)
                   if value > -math.inf]  # fmt: skip
        taken += reject_without_replacement(q, p, drafted, generator) in drafted
    return taken / DRAWS


def block_efficiencies(lm: LM, data: Path, count: int, progress: Progress) -> dict[str, Any]:
    """Returns the tokens a target pass of chains and trees of at most `NODES` nodes, at temperature 0.3."""
    if lm.draft(None, Speculative()) is None:
        raise FailureError(f"{lm.name} has no draft head; `outlay train draft --model {lm.name}` trains one")
    prompts = [*prompts_of(data, "chat", count // 2), *prompts_of(data, "code", count - count // 2)]
    methods = [*(Speculative(depth) for depth in CHAINS), *TREES]
    rows = []
    for done, method in enumerate(methods):
        progress(f"tokens a pass: {method.label}", done, len(methods))
        results = _answers(lm, prompts, method=method, temperature=0.3, max_tokens=64)
        passes = sum(result.ledger.target_passes for result in results)
        rows.append(
            {
                "method": method.label,
                "family": method.about.name,
                "block_efficiency": sum(len(result.tokens) for result in results) / passes,
                "nodes": sum(result.ledger.drafted for result in results) / passes,
                "draft_passes": sum(result.ledger.draft_passes for result in results) / passes,
            }
        )
    return {"nodes": NODES, "temperature": 0.3, "rows": rows}


def without_a_model(lm: LM, data: Path, count: int, progress: Progress) -> dict[str, Any]:
    """Returns the tokens a target pass of tables, lookup and prompt tokens at temperature 0, a prompt after the other,
    and what the plan of the prompt tokens' trees predicts.
    """
    prompts = open_prompt_tokens("default", lm.model)
    plan = tree_plan(prompts.accuracy, ROWS)
    assert plan is not None
    rows = []
    for place, name in enumerate(SETS):
        texts = prompts_of(data, name, count)
        for done, method in enumerate(WITHOUT_A_MODEL):
            progress(f"tokens a pass on {name}", place * len(WITHOUT_A_MODEL) + done, len(SETS) * len(WITHOUT_A_MODEL))
            lm.engine.clear()
            results = [lm.generate(text, method=method, max_tokens=NEW) for text in texts]
            ledger = sum((result.ledger for result in results), start=Ledger())
            rows.append({"set": name, "method": method, "tokens_per_pass": ledger.tokens_out / ledger.target_passes})
    return {"first_guess": prompts.accuracy[0][0], "predicted": plan.tau, "new": NEW, "rows": rows}


def _answers(lm: LM, prompts: Sequence[str], **options: Any) -> list[Result]:
    with lm.engine.together():
        handles = [lm.submit(prompt, seed=seed, ignore_eos=True, **options) for seed, prompt in enumerate(prompts)]
    return [handle.result() for handle in handles]


def superposed(lm: LM, data: Path, count: int, progress: Progress) -> dict[str, Any]:
    """Returns what superposed drafts cost, and how good they are, beside three nucleus samples and greedy decoding."""
    tokenizer = lm.model.tokenizer
    tokens = tokenizer.encode((data / "war_and_peace.txt").read_text())
    split = len(tokens) * 4 // 5
    table = NgramTable.build(
        [tokens[:split]], tokenizer_fingerprint(tokenizer), lengths=(1, 2, 3, 4, 5), successors=None
    )
    path = hub.cache_folder().parent / "tables" / "bench-superposed.safetensors"
    table.save(path)
    held = tokens[split:]
    step = (len(held) - PREFIX - COMPLETED) // count
    prefixes = [held[start : start + PREFIX] for start in range(0, step * count, step)]
    following = [held[start + PREFIX] for start in range(0, step * count, step)]
    contenders = {
        "superposed": Superposed(),
        "superposed, n-grams of the text": Superposed(ngram=str(path)),
        "superposed, not ranked again": Superposed(rescore=False),
    }
    rows = []
    for done, (name, method) in enumerate(contenders.items()):
        progress(f"completions: {name}", done, len(contenders) + 2)
        results = [_complete(lm, prefix, method=method) for prefix in prefixes]
        rows.append(_completions(name, results, [[a.tokens for a in r.alternatives] for r, _ in results],
                                 [[a.score for a in r.alternatives] for r, _ in results], following))  # fmt: skip
    progress("completions: nucleus", len(contenders), len(contenders) + 2)
    warm = {"method": "sample", "temperature": 0.6, "top_p": 0.9, "logprobs": 0}
    three = [[_complete(lm, prefix, seed=seed, **warm) for seed in range(3)] for prefix in prefixes]
    joined = [(runs[0][0], sum(seconds for _, seconds in runs)) for runs in three]
    rows.append(_completions("nucleus, three samples", joined, [[r.tokens for r, _ in runs] for runs in three],
                             [[_mean(r) for r, _ in runs] for runs in three], following,
                             positions=3 * (COMPLETED - 1) + 1))  # fmt: skip
    rows.append({"name": "nucleus, three samples together", "seconds": mean(_together(lm, p, warm) for p in prefixes)})
    greedy = [_complete(lm, prefix, logprobs=0) for prefix in prefixes]
    rows.append(
        _completions("greedy", greedy, [[r.tokens] for r, _ in greedy], [[_mean(r)] for r, _ in greedy], following)
    )
    return {"prefix": PREFIX, "new": COMPLETED, "rows": rows}


def _complete(lm: LM, prefix: list[int], **options: Any) -> tuple[Result, float]:
    lm.engine.clear()
    started = time.perf_counter()
    result = lm.generate(prefix, max_tokens=COMPLETED, ignore_eos=True, **options)
    return result, time.perf_counter() - started


def _together(lm: LM, prefix: list[int], options: dict[str, Any]) -> float:
    lm.engine.clear()
    started = time.perf_counter()
    with lm.engine.together():
        handles = [lm.submit(prefix, seed=s, max_tokens=COMPLETED, ignore_eos=True, **options) for s in range(3)]
    for handle in handles:
        handle.result()
    return time.perf_counter() - started


def _mean(result: Result) -> float:
    assert result.logprobs is not None
    return mean(token.logprob for token in result.logprobs)


def _completions(
    name: str,
    runs: Sequence[tuple[Result, float]],
    texts: Sequence[Sequence[Sequence[int]]],
    scores: Sequence[Sequence[float]],
    following: Sequence[int],
    positions: int | None = None,
) -> dict[str, Any]:
    """Sums completions up: positions that decoding computed, perplexities (geometric means over prompts) of the best
    of all drafts, and how often the text's own next word is the first of one of them.
    """
    decoded = [result.ledger.target_tokens - PREFIX for result, _ in runs]
    covered = [truth in {text[0] for text in drafts} for drafts, truth in zip(texts, following, strict=True)]
    return {
        "name": name,
        "passes": mean(result.ledger.target_passes for result, _ in runs),
        "positions": positions if positions is not None else mean(decoded),
        "best": math.exp(-mean(max(each) for each in scores)),
        "mean": math.exp(-mean(mean(each) for each in scores)),
        "covered": mean(covered),
        "seconds": mean(seconds for _, seconds in runs),
    }
