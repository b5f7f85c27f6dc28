"""`outlay plan`: how much a draft head would gain, by its size, its training and the batch, and which one to train."""

from __future__ import annotations

import argparse
import json
import math
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from outlay.cli import terminal
from outlay.cli.arguments import number
from outlay.errors import FailureError, UsageError

if TYPE_CHECKING:
    from outlay.lm import LM
    from outlay.scaling.laws import Choice, JointLaw, Law, Point, Prediction

DESCRIPTION = "Fits the scaling laws of drafts to measurements, predicts, and says which draft to train (Scylla)."
EXAMPLES = """where the measurements come from:
  (nothing)       heads trained for this: on --tokens with one layer, and of --layers on the most but one of --tokens
  --drafts FILE   heads that you have trained, measured on text that the model writes
  --table FILE    a table of yours, JSON: [{"value": 2.1, "error": 0.05, "tokens": 100000, "layers": 1}, ...]

examples:
  outlay plan                                         # some hours for the default model; can be stopped
  outlay plan --tokens 10k,20k,40k,80k --layers 1 --batch 1,8
  outlay plan --table points.json --at 1M:1,1M:2,10M:1
  outlay plan --drafts small.safetensors medium.safetensors large.safetensors huge.safetensors

tau is the mean number of tokens of a round, with a chain of 5 drafted tokens at temperature 0.
"""
TAU = (1.0, 6.0)  # what tau at depth 5 can be
DEPTH = 5
LAYERS = (1, 2, 3, 4, 6, 8, 10)
BATCHES = (1, 2, 4, 8, 16)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the command's options to `parser`."""
    parser.add_argument("--model", metavar="M", help="an alias, a folder, a .gguf file or a hub id")
    parser.add_argument("--dtype", default="auto", metavar="D", help="how the weights are held (auto)")
    parser.add_argument("--threads", type=number(1, whole=True), metavar="N", help="threads to compute with")
    parser.add_argument("--table", type=Path, metavar="FILE", help="fit these points; no model is needed")
    parser.add_argument("--drafts", type=Path, nargs="+", metavar="FILE", help="fit what these heads give")
    parser.add_argument("--tokens", type=amounts, metavar="N,N,...", default=amounts("25k,50k,100k,200k,400k"),
                        help="training tokens of heads of one layer (25k,50k,100k,200k,400k)")  # fmt: skip
    parser.add_argument("--layers", type=amounts, metavar="N,N,...", default=amounts("1,2,4,8"),
                        help="layers of heads on the most but one of --tokens (1,2,4,8)")  # fmt: skip
    parser.add_argument("--at", type=sizes, metavar="T:L,...", default=[],
                        help="also predict tau for T training tokens and L layers")  # fmt: skip
    parser.add_argument("--budget", type=amounts, metavar="N", help="the most training tokens (the most measured)")
    parser.add_argument("--bytes", type=amounts, metavar="N", help="the largest head's file")
    parser.add_argument("--batch", type=amounts, metavar="N,N,...", default=[1, 4, 16], help="requests (1,4,16)")
    parser.add_argument("--vocabulary", type=number(1, whole=True), default=8192, metavar="N",
                        help="tokens that a head drafts (%(default)s)")  # fmt: skip
    parser.add_argument("--seed", type=number(0, whole=True), default=0, metavar="N", help="fixes all draws (0)")
    parser.add_argument("--work", type=Path, metavar="DIR", help="where heads are kept that are trained for this")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write what was found to FILE")
    parser.add_argument("--quiet", action="store_true", help="no progress")


def amounts(text: str) -> list[int]:
    """Returns the numbers in "25k,1M,8": whole, with k or M for thousands and millions."""
    found = [re.fullmatch(r"(\d+(?:\.\d+)?)([kM]?)", part.strip()) for part in text.split(",")]
    values = [round(float(part[1]) * {"": 1, "k": 1e3, "M": 1e6}[part[2]], 6) for part in found if part is not None]
    if len(values) < len(found) or not all(value >= 1 and value == int(value) for value in values):
        raise argparse.ArgumentTypeError(f"must be whole numbers like 8 or 25k,100k,1M, not {text!r}")
    return sorted({int(value) for value in values})


def sizes(text: str) -> list[tuple[int, int]]:
    """Returns the pairs in "1M:1,400k:2"."""
    pairs = [part.split(":") for part in text.split(",")]
    if not all(len(pair) == 2 for pair in pairs):
        raise argparse.ArgumentTypeError(f"must be TOKENS:LAYERS like 1M:1,400k:2, not {text!r}")
    return [(amounts(tokens)[0], amounts(layers)[0]) for tokens, layers in pairs]


@dataclass
class _Found:
    """What the command found out, for the report."""

    points: list[Point]
    laws: dict[str, Law]
    joint: JointLaw | None
    choices: dict[int, tuple[Choice | None, list[Choice]]]
    speeds: dict[str, list[Point]]
    notes: list[str]
    predictions: list[dict[str, Any]] = field(default_factory=list)


def run(args: argparse.Namespace) -> int:
    """Measures, fits, predicts and chooses; returns the exit status."""
    from outlay.scaling.report import report

    if args.table is not None and args.drafts:
        raise UsageError("give --table or --drafts, not both")
    if args.table is not None:
        found = _fitted(_table(args.table))
        if args.model is not None:
            with terminal.Progress(quiet=args.quiet) as progress:
                _choose(found, _load(args, progress), args, progress)
    else:
        with terminal.Progress(quiet=args.quiet) as progress:
            lm = _load(args, progress)
            found = _fitted(_measured(lm, args, progress))
            _choose(found, lm, args, progress)
            _batches(found, lm, args, progress)
    found.predictions = _predictions(found, args.at)
    written = _as_json(found, args)
    print(report(written))
    if args.json is not None:
        try:
            args.json.write_text(json.dumps(written, indent=1) + "\n")
        except OSError as error:
            raise FailureError(f"can't write {args.json}: {error.strerror}") from error
    return 0


def _load(args: argparse.Namespace, progress: terminal.Progress) -> LM:
    from outlay.lm import load

    progress("starting", 0, 0)
    return load(args.model, dtype=args.dtype, threads=args.threads, progress=progress)


def _table(path: Path) -> list[Point]:
    from outlay.prompts import decode
    from outlay.scaling.laws import read_points

    try:
        rows = json.loads(decode(path.read_bytes(), str(path)))
    except OSError as error:
        raise UsageError(f"can't read {path}: {error.strerror}") from error
    except json.JSONDecodeError as error:
        raise UsageError(f"{path} is no JSON: {error}") from error
    if not isinstance(rows, list) or not rows:
        raise UsageError(f"{path} must hold a list of points, each with value and tokens, layers or batch")
    return read_points(rows)


def _measured(lm: LM, args: argparse.Namespace, progress: terminal.Progress) -> list[Point]:
    from outlay.models import fitted
    from outlay.scaling.study import HELD_TOKENS, measure_file, study_of
    from outlay.train.head import HeadRecipe

    recipe = HeadRecipe(vocabulary=args.vocabulary, epochs=1, ahead=0, unroll=DEPTH, seed=args.seed)
    folder = args.work or fitted.own_path("head", lm.model).with_suffix(".study")
    if args.drafts:
        # What can't be used is named before hours are spent.
        about = [fitted.read(path, "head", lm.model)[1] for path in args.drafts]
        _refuse_too_few([each["trained_on"] for each in about], [each["layers"] for each in about])
        study = study_of(lm, recipe, HELD_TOKENS, folder, progress)
        return [measure_file(path, lm.model, study.held).point() for path in args.drafts]
    _refuse_too_few(args.tokens, args.layers)
    study = study_of(lm, recipe, max(args.tokens), folder, progress)
    many = args.tokens[-2:][0]
    wanted = [(tokens, 1) for tokens in args.tokens] + [(many, layers) for layers in args.layers]
    return [study.measure(tokens, layers, progress).point() for tokens, layers in dict.fromkeys(wanted)]


def _refuse_too_few(tokens: Sequence[int], layers: Sequence[int]) -> None:
    """Raises `UsageError` where no law could be fitted to heads of these sizes."""
    from outlay.scaling.laws import LEAST_POINTS, LEAST_SPAN, spans

    if not spans(tokens) and not spans(layers):
        raise UsageError(
            f"a law takes {LEAST_POINTS} heads of different sizes over a span of {LEAST_SPAN:g} times, in training "
            "tokens or in layers; there are too few of either"
        )


def _fitted(points: list[Point]) -> _Found:
    """Fits each law that the points allow, on the points that differ in its axis alone."""
    from outlay.scaling.laws import fit_joint, fit_loglinear

    found = _Found(points, {}, None, {}, {}, [])
    limits = TAU if points[0].what.startswith("tau") else (0.0, math.inf)
    for axis, other in (("tokens", "layers"), ("layers", "tokens"), ("batch", "")):
        groups: dict[Any, list[Point]] = {}
        for point in points:
            groups.setdefault(getattr(point, other) if other else None, []).append(point)
        some = max(groups.values(), key=lambda group: len({getattr(point, axis) for point in group}))
        if len({getattr(point, axis) for point in some}) < 2:
            continue
        try:
            found.laws[axis] = fit_loglinear(some, axis, limits)
        except UsageError as error:
            found.notes.append(str(error))
    if not found.laws:
        raise UsageError("; ".join(found.notes) or "the points differ neither in tokens, nor in layers, nor in batch")
    if {"tokens", "layers"} <= set(found.laws):
        found.joint = fit_joint(points, limits)
    return found


def _predict(found: _Found, tokens: float, layers: float) -> Prediction | None:
    """Returns tau of a head, or None where no law reaches it."""
    if found.joint is not None:
        return found.joint.predict(tokens, layers)
    known = {(point.tokens, point.layers) for point in found.points}
    if "tokens" in found.laws and layers in {size for _, size in known}:
        return found.laws["tokens"].predict(tokens)
    if "layers" in found.laws and tokens in {amount for amount, _ in known}:
        return found.laws["layers"].predict(layers)
    return None


def _choose(found: _Found, lm: LM, args: argparse.Namespace, progress: terminal.Progress) -> None:
    """Finds the head that would give the most tokens a second at each batch, by what rounds take here."""
    from outlay.scaling import laws as scaling
    from outlay.scaling.study import round_costs

    if not found.points[0].what.startswith("tau") or "batch" in found.laws:
        return
    budget = args.budget[-1] if args.budget else max(point.tokens for point in found.points)
    layers = [size for size in LAYERS if _predict(found, budget, size) is not None]
    if not layers:
        found.notes.append(f"no law reaches a head at {budget:,.0f} training tokens; give another --budget")
        return

    def tau(size: int, depth: int) -> Prediction:
        at = _predict(found, budget, size)
        assert at is not None
        return scaling.at_depth(at, DEPTH, depth)

    for batch in args.batch:
        costs = round_costs(lm, sorted({min(layers), max(layers)}), args.vocabulary, batch, progress)
        found.choices[batch] = scaling.choose(
            tau,
            costs,
            costs.plain,
            tokens=budget,
            batch=batch,
            layers=layers,
            fits=lambda size: not args.bytes or _head_bytes(lm, size) <= args.bytes[-1],
        )


def _head_bytes(lm: LM, layers: int) -> int:
    """Returns the size of a head's file, in bfloat16."""
    config = lm.model.decoder.config
    hidden, heads = config.hidden_size, config.num_heads
    attention = hidden * config.head_dim * (2 * heads + 2 * config.num_kv_heads)
    return 2 * (2 * hidden**2 + layers * (attention + 3 * hidden * config.intermediate_size))


def _batches(found: _Found, lm: LM, args: argparse.Namespace, progress: terminal.Progress) -> None:
    """Measures what drafting gives at several batches, with the last of --drafts or the head that the model has."""
    from outlay.decode.draft.speculative import Speculative
    from outlay.scaling.study import batch_speeds
    from outlay.train.questions import questions

    draft = lm.draft(str(args.drafts[-1]) if args.drafts else None, Speculative())
    if draft is not None:
        prompts = questions(lm, range(max(BATCHES)), args.seed)
        found.speeds = batch_speeds(lm, draft, prompts, BATCHES, progress)


def _predictions(found: _Found, at: Sequence[tuple[int, int]]) -> list[dict[str, Any]]:
    """Returns what the laws say of every head that was measured or asked for, beside what was measured."""
    measured = {(point.tokens, point.layers): point.value for point in found.points}
    rows = []
    for tokens, layers in sorted({*measured, *at}):
        predicted = _predict(found, tokens, layers)
        if predicted is None:
            if (tokens, layers) in at:
                found.notes.append(f"none reaches {tokens:g} tokens with {layers:g} layers")
            continue
        known = measured.get((tokens, layers))
        rows.append({"tokens": tokens, "layers": layers, "measured": known, **asdict(predicted)})
    return rows


def _as_json(found: _Found, args: argparse.Namespace) -> dict[str, Any]:
    from outlay.lm import DEFAULT_MODEL
    from outlay.machine import describe

    laws = {
        axis: {name: getattr(law, name) for name in ("slope", "intercept", "r2", "ci95", "adequate", "best_form")}
        for axis, law in found.laws.items()
    }
    return {
        "machine": describe(("outlay", "torch")) | {"model": args.model or DEFAULT_MODEL},
        "points": [asdict(point) for point in found.points],
        "laws": laws,
        "predictions": found.predictions,
        "joint": None if found.joint is None else found.joint.coefficients,
        "choices": {
            str(batch): {"best": None if best is None else asdict(best), "all": [asdict(each) for each in every]}
            for batch, (best, every) in found.choices.items()
        },
        "speeds": {name: [asdict(point) for point in points] for name, points in found.speeds.items()},
        "notes": found.notes,
    }
