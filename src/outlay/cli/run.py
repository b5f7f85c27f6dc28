"""`outlay run`: answers prompts, streams the text, and says what it cost."""

from __future__ import annotations

import argparse
import contextlib
import itertools
import json
import math
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from outlay.cli import terminal
from outlay.cli.arguments import number, one_of
from outlay.cli.canvas_view import CanvasView
from outlay.cli.interrupt import Interruption
from outlay.cli.prompts import Asked, Read, read_prompts, read_switches, read_tools, tree_of
from outlay.cli.trace_file import TraceFile
from outlay.errors import OutlayError, QueueFull, UsageError

if TYPE_CHECKING:
    from outlay.budget import Ledger
    from outlay.constrain import Constraint
    from outlay.engine.handle import Handle, Result
    from outlay.engine.session import Alternative
    from outlay.lm import LM

DESCRIPTION = "Answers a prompt: the text goes to standard output, what it cost to standard error."
EXAMPLES = """examples:
  outlay run "Why is the sky blue?"
  outlay run "Write a haiku." --temperature 0.8 --top-p 0.95 --seed 7
  outlay run "Name three rivers." --method beam:width=8 --budget target_passes=64,seconds=2
  outlay run "Write a Python class for a stack." --show-drafts
  cat letter.txt | outlay run --system "Summarise this letter."
  outlay run "What is in this picture?" --image photo.jpg --model ./SmolVLM-256M-Instruct
  outlay run --file prompts.jsonl --lines --json > answers.jsonl
  outlay run --prefix-file doc.txt --file questions.txt --lines --method hydragen:n=8 --temperature 0.8
  outlay run "Hello" --trace run.jsonl --quiet
"""
DTYPES = ("auto", "float32", "bfloat16", "float16", "int8", "int4")
KV_DTYPES = ("auto", "float32", "bfloat16", "int8")
PASSED_ON = (
    "draft", "scorer", "seed", "temperature", "top_k", "top_p", "min_p", "repetition_penalty", "presence_penalty",
    "frequency_penalty", "stop", "logprobs",
)  # fmt: skip
CHAT = ("tools", "template", "continue_final_message")  # options that only a chat has
PATIENCE = 5.0  # seconds to wait for runs that are given up


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the command's options to `parser`."""
    parser.usage = "outlay run [PROMPT] [options]"
    parser.add_argument("prompt", nargs="?", metavar="PROMPT", help='the prompt; "-" reads it from standard input')
    _add_prompts(parser)
    _add_model_and_method(parser)
    _add_text(parser)
    _add_constraints(parser)
    _add_output(parser)


def _add_prompts(parser: argparse.ArgumentParser) -> None:
    source = parser.add_argument_group("prompts")
    source.add_argument("--file", metavar="FILE", help="read the prompt from a file")
    source.add_argument("--prefix-file", metavar="FILE", help="a text that goes before every prompt, such as a "
                        "document that all of them ask about")  # fmt: skip
    source.add_argument("--lines", action="store_true", help="each line is a prompt of its own, as text or as "
                        'a JSON object with "prompt" or "messages"; all are worked on together')  # fmt: skip
    source.add_argument("--image", metavar="FILE", action="append", default=[], help="an image that goes before the "
                        "prompt, or before each, for a model that sees; repeatable")  # fmt: skip
    source.add_argument("--system", metavar="TEXT", help="a system message to go before the prompt")
    source.add_argument("--raw", action="store_true", help="continue the prompt as it is, without the chat template")
    source.add_argument("--special-tokens", action="store_true", help="with --raw: special tokens that the prompt "
                        "spells out are special tokens, not text")  # fmt: skip
    source.add_argument("--tools", metavar="FILE", help="the functions that the model may call: a JSON list, as "
                        "OpenAI's clients send it")  # fmt: skip
    source.add_argument("--template", metavar="KEY=VALUE", action="append", default=[], help="a switch of the chat "
                        "template, such as enable_thinking=false; repeatable")  # fmt: skip
    source.add_argument("--continue-final-message", action="store_true", help="go on with the last message of each "
                        "prompt, which is the assistant's")  # fmt: skip


def _add_model_and_method(parser: argparse.ArgumentParser) -> None:
    how = parser.add_argument_group("model and method")
    how.add_argument("--model", metavar="M", help="an alias (see `outlay models`), a folder, a .gguf file or a hub id")
    how.add_argument("--method", metavar="NAME[:k=v,...]", help="how to decode; `outlay methods` lists them "
                     "(default: auto, which writes what greedy or sample write, sooner)")  # fmt: skip
    how.add_argument("--draft", metavar="M", help="what drafts: another model, a file that `outlay train` wrote, or "
                     "head, lookup, table, ppd, self:int4, self:skip")  # fmt: skip
    how.add_argument("--scorer", metavar="S", help="what rates texts: self, python:FILE with score(prompt, texts), or "
                     "a reward model, with :form=NAME,reduce=last|min|prod if need be")  # fmt: skip
    how.add_argument("--cache", metavar="NAME[:k=v,...]", help="a policy that says what each layer keeps, such as "
                     "zipvl:tau=0.96, beside greedy, sample, best_of, beam or speculation")  # fmt: skip
    how.add_argument("--budget", metavar="k=v,...", help="caps on the ledger, such as target_passes=64,seconds=2")
    how.add_argument("--dtype", type=one_of(DTYPES), default="auto", metavar="D", help=" ".join(DTYPES))
    how.add_argument("--kv-dtype", type=one_of(KV_DTYPES), default="auto", metavar="D",
                     help="how keys and values are held: " + " ".join(KV_DTYPES))  # fmt: skip
    how.add_argument("--device", default="cpu", metavar="D", help="a device of torch (default: cpu)")
    how.add_argument("--threads", type=number(1, whole=True), metavar="N", help="threads to compute with")


def _add_text(parser: argparse.ArgumentParser) -> None:
    text = parser.add_argument_group("text")
    text.add_argument("--max-tokens", type=number(1, whole=True), metavar="N", help="new tokens at most (default: 256)")
    text.add_argument("--stop", action="append", default=[], metavar="S", help="end before this text; repeatable")
    text.add_argument("--seed", type=number(0, whole=True), default=0, metavar="N", help="fixes all draws (default: 0)")
    text.add_argument("--temperature", type=number(0), default=0.0, metavar="T", help="0 is greedy (default: 0)")
    text.add_argument("--top-k", type=number(1, whole=True), metavar="K", help="draw from the K most probable tokens")
    text.add_argument("--top-p", type=number(above=0, most=1), metavar="P", help="draw from the fewest that hold P")
    text.add_argument(
        "--min-p", type=number(0, most=1), metavar="P", help="draw from those P times as likely as the best"
    )
    text.add_argument("--repetition-penalty", type=number(above=0), default=1.0, metavar="X",
                      help="divide the logits of tokens seen so far (default: 1)")  # fmt: skip
    text.add_argument("--presence-penalty", type=number(), default=0.0, metavar="X",
                      help="subtract from the logits of tokens written so far (default: 0)")  # fmt: skip
    text.add_argument("--frequency-penalty", type=number(), default=0.0, metavar="X",
                      help="the same, as often as the token was written (default: 0)")  # fmt: skip
    text.add_argument("--n", type=number(1, whole=True), default=1, metavar="N",
                      help="samples of each prompt, with the seeds from --seed on (default: 1)")  # fmt: skip


def _add_constraints(parser: argparse.ArgumentParser) -> None:
    limits = parser.add_argument_group("constraints").add_mutually_exclusive_group()
    limits.add_argument("--json-schema", metavar="FILE", help="write JSON that this schema describes")
    limits.add_argument("--regex", metavar="PATTERN", help="write what this regular expression matches whole")
    limits.add_argument("--grammar", metavar="FILE", help="write a text of this grammar, in Lark's syntax or GBNF")
    limits.add_argument("--choice", action="append", metavar="TEXT", help="write one of these texts; repeatable")
    limits.add_argument("--constraint", metavar="NAME", help="json, or python:FILE, which defines complete_ok(data) "
                        "and may define prefix_ok(data), over the bytes so far")  # fmt: skip


def _add_output(parser: argparse.ArgumentParser) -> None:
    output = parser.add_argument_group("output")
    output.add_argument("--json", action="store_true", help="one JSON object for each prompt instead of the text")
    output.add_argument("--logprobs", type=number(0, whole=True), metavar="N",
                        help="with --json: each token's log-probability and those of the N most probable")  # fmt: skip
    output.add_argument("--trace", metavar="FILE", help="write every event of the run as JSON lines")
    output.add_argument("--receipt", metavar="FILE", help="write what lets `outlay replay` make the same logits again, "
                        "on any machine")  # fmt: skip
    output.add_argument("--show-drafts", action="store_true", help="colour what was drafted by where it came from")
    output.add_argument("--quiet", action="store_true", help="no progress and no ledger")


def run(args: argparse.Namespace) -> int:
    """Runs the command; returns the exit status."""
    _check(args)
    prompts = read_prompts(args.prompt, args.file, lines=args.lines, system=args.system, prefix_file=args.prefix_file)
    with TraceFile(args.trace) if args.trace else contextlib.nullcontext() as trace:
        with terminal.Progress(quiet=args.quiet) as progress:
            progress("starting", 0, 0)
            options = _options(args)
            from outlay.lm import load

            lm = load(
                args.model,
                dtype=args.dtype,
                kv_dtype=args.kv_dtype,
                device=args.device,
                threads=args.threads,
                progress=progress,
            )
        from outlay import catalog

        usual = lm.usual_method if args.cache is None else "greedy" if args.temperature == 0 else "sample"
        options.setdefault("method", catalog.parse(usual))
        return _answer(lm, prompts, options, trace, args)


def _check(args: argparse.Namespace) -> None:
    """Refuses, before anything is loaded, options that don't go together."""
    if args.raw and args.system is not None:
        raise UsageError("--raw leaves no place for --system; put its text into the prompt")
    chatty = next((name for name in CHAT if getattr(args, name)), None)
    if args.raw and chatty is not None:
        raise UsageError(f"--raw leaves no place for --{chatty.replace('_', '-')}, which is for the chat template")
    if args.receipt is not None and (args.lines or args.n > 1):
        raise UsageError("--receipt is of one text; leave out --lines and --n")
    if args.special_tokens and not args.raw:
        raise UsageError("--special-tokens needs --raw; in a chat they come from the chat template alone")
    if args.logprobs is not None and not args.json:
        raise UsageError("--logprobs needs --json to show them in")
    if args.n > 1 and args.temperature == 0:
        raise UsageError("--n samples differ only at a temperature above 0; try --temperature 0.8")
    if args.image and args.receipt is not None:
        raise UsageError("--receipt holds no images; leave out --image")
    if "" in args.stop:
        raise UsageError("--stop must be some text")
    for option in ("model", "draft"):
        if getattr(args, option) == "":
            raise UsageError(f"--{option} must name a model; `outlay models` lists them")


def _options(args: argparse.Namespace) -> dict[str, Any]:
    """Returns the arguments of `LM.submit`, checked as far as they can be before a model is loaded."""
    from outlay import catalog
    from outlay.budget import Budget

    options = {name: getattr(args, name) for name in PASSED_ON}
    if args.max_tokens is not None:
        options["max_tokens"] = args.max_tokens
    if args.method is not None:
        options["method"] = catalog.parse(args.method)
    if args.cache is not None:
        options["cache"] = catalog.parse_policy(args.cache)
    if args.budget is not None:
        options["budget"] = Budget.parse(args.budget)
    options |= {"n": args.n, "chat": not args.raw, "special_tokens": args.special_tokens}
    if args.receipt is not None:
        options["receipt"] = True
    options |= {"continue_final_message": args.continue_final_message, "template": read_switches(args.template)}
    options["constraint"] = _constraint(args)
    if args.image:
        options["images"] = [_image(file) for file in args.image]
    if args.tools is not None:
        options["tools"] = read_tools(args.tools)
    return options


def _image(file: str) -> Any:
    """Returns the pixels of an image file, which is looked at before a model is loaded."""
    from outlay.pictures import read_picture

    return read_picture(file)


def _constraint(args: argparse.Namespace) -> Constraint | None:
    """Returns the constraint that the arguments give, if any."""
    from outlay.constrain import Choice, constraint_of

    if args.choice:
        return Choice(*args.choice)
    kinds = {"schema": args.json_schema, "regex": args.regex, "grammar": args.grammar}
    names = [f"{kind}:{given}" for kind, given in kinds.items() if given is not None]
    name = args.constraint if args.constraint is not None else next(iter(names), None)
    return None if name is None else constraint_of(name)


def _answer(
    lm: LM, read: Sequence[Read], options: dict[str, Any], trace: TraceFile | None, args: argparse.Namespace
) -> int:
    """Runs all prompts together and writes their answers in order; ends early, with what there is, on a signal."""
    started = time.perf_counter()
    asked: list[list[Handle]] = []  # the samples of each prompt
    is_tree = len(read) > 1 and "tree" in options["method"].about.takes
    prompts: Sequence[Asked] = [tree_of(read)] if is_tree else read
    one_text = len(prompts) == 1 and options["n"] == 1 and not args.json
    in_place = lm.model.writes_canvas and one_text and terminal.is_terminal(sys.stdout)
    view = CanvasView(sys.stdout) if in_place else None

    def stop() -> None:
        for handle in itertools.chain(*asked):
            handle.cancel()

    with Interruption(stop) as interruption:
        try:
            for prompt in prompts:
                earlier = list(itertools.chain(*asked))
                asked.append(_submit(lm, prompt, len(asked), len(prompts), options, trace, earlier, view))
            if interruption.status:
                stop()
            results = _write_json(lm, asked) if args.json else _write_texts(asked, args.show_drafts, view)
        finally:
            stop()
            _wait(list(itertools.chain(*asked)))
    if args.receipt is not None and results and results[0].receipt is not None:
        results[0].receipt.write(Path(args.receipt))
    if not args.quiet and not args.json and results:
        if args.show_drafts:
            _write_origins(results)
        if args.n == 1:
            _write_alternatives(results)
        _write_ledger(results, time.perf_counter() - started)
    return interruption.status or (1 if len(results) < len(asked) else 0)


def _submit(
    lm: LM,
    asked: Asked,
    number: int,
    count: int,
    options: dict[str, Any],
    trace: TraceFile | None,
    earlier: Sequence[Handle],
    view: CanvasView | None,
) -> list[Handle]:
    """Starts the samples of one prompt, of `count` in all; where too many wait, when the first of the `earlier` ones
    has ended. A `view` of its canvas sees each event.
    """
    prompt, own = asked
    n = options["n"]
    traces = [trace.writer(number * n + sample) for sample in range(n)] if trace else []
    if view is not None:
        traces = [both(view, *traces)]
    while True:
        try:
            return lm.submit_choices(prompt, **(options | own), traces=traces)
        except QueueFull:
            first = next((handle for handle in earlier if not handle.done), None)
            if first is None:
                raise
            with contextlib.suppress(Exception):  # told when its turn comes
                first.result()
        except UsageError as error:
            if count == 1:
                raise
            raise UsageError(f"prompt {number + 1}: {error}") from error


def both(*writers: Callable[[dict[str, Any]], None]) -> Callable[[dict[str, Any]], None]:
    """Returns a function that calls each of these with an event."""

    def write(event: dict[str, Any]) -> None:
        for writer in writers:
            writer(event)

    return write


def _wait(handles: Sequence[Handle]) -> None:
    """Lets the engine end what was given up, so that the trace is complete and no thread is at work when we leave."""
    last = time.monotonic() + PATIENCE
    for handle in handles:
        with contextlib.suppress(Exception):  # an error that nobody waited for
            handle.result(max(0.0, last - time.monotonic()))


def _write_texts(asked: Sequence[Sequence[Handle]], show_drafts: bool, view: CanvasView | None) -> list[Result]:
    """Writes each text as it comes, an empty line between two, what was drafted in colour if that is wanted; returns
    the results. A prompt whose run fails gets a line. A `view` draws the text's canvas meanwhile.
    """
    from outlay.engine.choices import joined

    mark = terminal.Palette(sys.stdout) if show_drafts else None
    results = []
    for index, samples in enumerate(asked):
        try:
            for sample, handle in enumerate(samples):
                if index or sample:
                    print()
                if view is None:
                    _write_text(handle, mark)
                else:
                    view.write(list(handle.chunks()))
            results.append(joined([handle.result() for handle in samples]))
            if len(samples) == 1:
                _write_siblings(results[-1])
        except OutlayError as error:
            if len(asked) == 1:
                raise
            _write_error(index, error)
    return results


def _write_siblings(result: Result) -> None:
    """Writes the texts that a method wrote beside the result's own, and that it doesn't rank."""
    for text in result.alternatives[1:]:
        if text.score is None:
            print("\n" + text.text.removesuffix("\n"), flush=True)


def _write_text(handle: Handle, mark: terminal.Palette | None) -> None:
    """Writes a text as it comes, and ends its last line."""
    text = ""
    try:
        for chunk in handle.chunks():
            text = chunk.text or text
            sys.stdout.write(mark(chunk.text, chunk.origin) if mark else chunk.text)
            sys.stdout.flush()
    finally:
        if not text.endswith("\n"):
            print(flush=True)


def _write_json(lm: LM, asked: Sequence[Sequence[Handle]]) -> list[Result]:
    """Writes an object a line for each prompt, in order; one that fails has `error` instead. Returns the results."""
    from outlay.engine.choices import joined

    results = []
    for index, samples in enumerate(asked):
        try:
            results.append(joined([handle.result() for handle in samples]))
            line = _as_dict(lm, results[-1])
        except OutlayError as error:
            if len(asked) == 1:
                raise
            _write_error(index, error)
            line = {"error": str(error)}
        print(json.dumps(line, ensure_ascii=False), flush=True)
    return results


def _write_error(index: int, error: OutlayError) -> None:
    print(f"outlay: prompt {index + 1}: {error}", file=sys.stderr)


def _as_dict(lm: LM, result: Result) -> dict[str, Any]:
    names = ("text", "tokens", "finish_reason", "method", "model", "cap", "prompt_tokens", "cached_tokens")
    row: dict[str, Any] = {name: getattr(result, name) for name in names}
    row["timing"] = result.timing._asdict()
    row["ledger"] = result.ledger.as_dict()
    if any(result.origins):
        row["origins"] = result.origins
    if result.alternatives:
        row["alternatives"] = [_alternative(text) for text in result.alternatives]
    if result.facts:
        row["facts"] = result.facts
    if result.logprobs is not None:
        row["logprobs"] = [
            {**_logprob(lm, chosen.token, chosen.logprob), "top": [_logprob(lm, *best) for best in chosen.top]}
            for chosen in result.logprobs
        ]
    return row


def _alternative(text: Alternative) -> dict[str, Any]:
    row = asdict(text)
    return row if text.leaf is not None else {name: value for name, value in row.items() if name != "leaf"}


def _logprob(lm: LM, token: int, logprob: float) -> dict[str, Any]:
    text = lm.model.tokenizer.decode([token])
    return {"token": token, "text": text, "logprob": logprob if math.isfinite(logprob) else None}


def _write_origins(results: Sequence[Result]) -> None:
    """Says which colour stands for what, and how much of the text it is."""
    counts = Counter(origin for result in results for origin in result.origins)
    mark, total = terminal.Palette(sys.stderr), max(1, sum(counts.values()))
    shares = [f"{mark(origin or 'model', origin)} {amount / total:.0%}" for origin, amount in counts.most_common()]
    print(terminal.dim("from: ", sys.stderr) + "  ".join(shares), file=sys.stderr)


def _write_alternatives(results: Sequence[Result]) -> None:
    """Writes the other texts that a method proposes, with their scores."""
    for result in results:
        for alternative in result.alternatives[1:]:
            if alternative.score is None:
                continue
            score = terminal.dim(f"{alternative.score:.2f}", sys.stderr)
            print(f"{score}  {alternative.text.strip()}", file=sys.stderr)


def _write_ledger(results: Sequence[Result], seconds: float) -> None:
    """Writes what all runs spent together; for several, `seconds` is the time that they took side by side."""
    ledger = results[0].ledger if len(results) == 1 else replace(_total(results), seconds=seconds)
    ends = [[result.finish_reason, *(each.finish_reason for each in result.alternatives)] for result in results]
    reasons = dict.fromkeys(reason for reason in itertools.chain(*ends) if reason is not None)
    count = [f"{len(results)} prompts"] if len(results) > 1 else []
    heading = [results[0].model, results[0].method, *count, "finished: " + ", ".join(reasons)]
    if sys.stdout.isatty():
        print(terminal.rule(sys.stderr), file=sys.stderr)
    print(terminal.glyph(" · ", " | ", sys.stderr).join(heading), file=sys.stderr)
    for line in ledger.table().splitlines():
        name, gap, amount = line.partition("  ")
        print(terminal.dim(name, sys.stderr) + gap + amount, file=sys.stderr)


def _total(results: Sequence[Result]) -> Ledger:
    total = results[0].ledger
    for result in results[1:]:
        total = total + result.ledger
    return total
