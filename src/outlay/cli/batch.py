"""`outlay batch`: buckets for examples of two lengths, and the largest batch of each that fits."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from outlay.cli import terminal
from outlay.cli.arguments import Parser, number, one_of
from outlay.errors import UsageError, nearest

if TYPE_CHECKING:
    from outlay.batching import Buckets, MemoryModel
    from outlay.batching.files import ReadLengths
    from outlay.batching.search import Fits

WHAT = {
    "fit": "buckets of equal mass from the lengths of examples",
    "profile": "the largest batch of each bucket that fits into memory, or into a step's time",
}
DESCRIPTION = "Batches examples of like lengths, as large as memory allows, for any training loop."
EXAMPLES = (
    "what can be done:\n"
    + "\n".join(f"  {name:<8} {what}" for name, what in WHAT.items())
    + """

examples:
  outlay batch fit lengths.csv --buckets 30 --sub 5 --out buckets.json
  outlay batch fit pairs.jsonl --input prompt --output answer --tokenizer smollm2-135m --out buckets.json
  outlay batch profile buckets.json --memory 80GiB --layers 24,24 --hidden 1024 --heads 8 --vocab 16384 --per-input 12.5
  outlay batch profile buckets.json --memory 8GiB --probes probes.csv --lengths lengths.csv
  outlay batch profile buckets.json --step my_package.training:step --device cuda

`outlay batch WHAT --help` shows the options.
"""
)
FIT_NOTES = """LENGTHS is CSV (two columns, with or without names) or JSON lines; a second length is optional.
An input length is of any unit: seconds, frames, tokens. An output length counts all tokens that the decoder reads:
--extra adds those of a prompt.
"""
PROFILE_NOTES = """What fits is said by one of:
  --step MODULE:FUNCTION   function() returns step(batch, input, output), which takes a training step over made-up
                           examples of full length; on a GPU its allocator decides, with --seconds its time,
                           else the memory that the process takes in small steps, extrapolated to --memory
  --probes FILE            CSV of measured steps, batch,input,output,bytes: a model of memory is fitted to them
  --layers E,D             the formula of a transformer of E encoder and D decoder layers, trained in 16 bits with Adam
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the command's options to `parser`."""
    parser.usage = "outlay batch WHAT [...]"
    parser.add_argument("what", nargs="?", metavar="WHAT", help=", ".join(WHAT))
    parser.add_argument("rest", nargs=argparse.REMAINDER, help=argparse.SUPPRESS)


def run(args: argparse.Namespace) -> int:
    """Does what is asked for; returns the exit status."""
    kinds: dict[str, tuple[Callable[[Parser], None], Callable[[Any], int]]] = {
        "fit": (_fit_arguments, _fit),
        "profile": (_profile_arguments, _profile),
    }
    if args.what is None:
        raise UsageError(f"say what to do: {', '.join(WHAT)}")
    if args.what not in kinds:
        raise UsageError(f"there is no {args.what!r}{nearest(args.what, WHAT)}; there are {', '.join(WHAT)}")
    parser = Parser(prog=f"outlay batch {args.what}", description=f"Finds {WHAT[args.what]}.")
    add, do = kinds[args.what]
    add(parser)
    return do(parser.parse_args(args.rest))


def _lengths_arguments(parser: Parser) -> None:
    parser.add_argument("--input", metavar="KEY", help="column or key of the input length (the first, or a usual name)")
    parser.add_argument("--output", metavar="KEY", help="of the output length (the second, or a usual name)")
    parser.add_argument("--tokenizer", metavar="M", help="the model whose tokens count where a length is a text")
    parser.add_argument("--extra", type=number(0, whole=True), default=0, metavar="N",
                        help="tokens that are added to each output length, such as a prompt's (0)")  # fmt: skip


def _fit_arguments(parser: Parser) -> None:
    parser.epilog = FIT_NOTES
    parser.add_argument("lengths", type=Path, metavar="LENGTHS", help="the lengths of the examples")
    _lengths_arguments(parser)
    parser.add_argument(
        "--buckets", type=number(1, whole=True), default=30, metavar="N", help="of the input length (30)"
    )
    parser.add_argument("--sub", type=number(0, whole=True), default=2, metavar="N",
                        help="sub-buckets of each, by output length; 0: by input length alone (2)")  # fmt: skip
    parser.add_argument("--sigma", type=number(above=0), default=4.0, metavar="Z",
                        help="deviations above the mean ratio of output to input that are outliers (4)")  # fmt: skip
    parser.add_argument(
        "--lenient", action="store_true", help="an example that its bucket can't hold goes into a larger one"
    )
    parser.add_argument("--out", type=Path, metavar="FILE", help="write the buckets as JSON")


def _fit(args: argparse.Namespace) -> int:
    from outlay.batching import Buckets
    from outlay.batching.files import write_buckets

    read = _read(args, args.lengths)
    if read.outputs is None or args.sub == 0:
        buckets = Buckets.fit_1d(read.inputs, args.buckets, read.outputs)
    else:
        buckets = Buckets.fit_2d(read.inputs, read.outputs, args.buckets, args.sub, args.sigma)
    buckets = replace(buckets, strict=not args.lenient)
    if args.out is not None:
        write_buckets(args.out, buckets)
    sizes = {place: 32 for place in range(len(buckets))}
    print(_padding(read, buckets, sizes, "buckets, 32 examples"))
    print(f"{len(buckets)} buckets; the least and the greatest hold {_edge(buckets, 0)} and {_edge(buckets, -1)}")
    if args.out is not None:
        print(args.out)
    return 0


def _profile_arguments(parser: Parser) -> None:
    parser.epilog = PROFILE_NOTES
    parser.add_argument("buckets", type=Path, metavar="BUCKETS", help="what `outlay batch fit` wrote")
    parser.add_argument("--memory", type=_memory, metavar="M", help="memory of the device, such as 8GiB")
    parser.add_argument("--share", type=number(above=0, most=1), default=0.9, metavar="P",
                        help="share of it that a step may take (0.9; for another trainer 0.75)")  # fmt: skip
    parser.add_argument("--step", metavar="M:F", help="module:function that returns a training step")
    parser.add_argument("--seconds", type=number(above=0), metavar="S", help="processor time of a step, at most")
    parser.add_argument("--device", default="cpu", metavar="D", help="where --step computes (cpu)")
    parser.add_argument("--probes", type=Path, metavar="FILE", help="measured steps")
    parser.add_argument("--layers", type=_layers, metavar="E,D", help="encoder and decoder layers")
    for name, default, what in (
        ("hidden", 512, "width of the hidden states"),
        ("heads", 8, "attention heads"),
        ("vocab", 32_000, "entries of the vocabulary"),
    ):
        parser.add_argument(f"--{name}", type=number(1, whole=True), default=default, metavar="N",
                            help=f"{what} (%(default)s)")  # fmt: skip
    parser.add_argument("--kind", type=one_of(["transformer", "conformer"]), default="transformer", metavar="K",
                        help="encoder layers: transformer or conformer (transformer)")  # fmt: skip
    parser.add_argument("--per-input", type=number(above=0), default=1.0, metavar="R",
                        help="encoder places of a unit of input length (1)")  # fmt: skip
    parser.add_argument("--start", type=number(1, whole=True), default=32, metavar="N", help="batch tried first (32)")
    parser.add_argument("--gap", type=number(0, most=0.99), default=0.05, metavar="P",
                        help="how near the largest batch is found (0.05)")  # fmt: skip
    parser.add_argument("--lengths", type=Path, metavar="FILE", help="also show what an epoch of these examples pads")
    _lengths_arguments(parser)
    parser.add_argument("--out", type=Path, metavar="FILE", help="where buckets and sizes go (BUCKETS itself)")


def _profile(args: argparse.Namespace) -> int:
    from outlay.batching import OomSearch, merge_equal
    from outlay.batching.files import read_buckets, write_buckets
    from outlay.tables import table

    buckets, _ = read_buckets(args.buckets)
    with terminal.Progress(quiet=False) as progress:
        progress("finding batch sizes", 0, 0)
        fits = _fits(args, buckets)
        sizes = OomSearch(fits, args.start, args.gap).profile(buckets)
    buckets, sizes = merge_equal(buckets, sizes)
    write_buckets(args.out or args.buckets, buckets, sizes)
    rows = [[str(i), f"{edge.input:g}", f"{edge.output:g}", str(sizes[i])] for i, edge in enumerate(buckets)]
    print(table(("bucket", "input", "output", "batch"), rows))
    if args.lengths is not None:
        print(_padding(_read(args, args.lengths), buckets, sizes, "buckets, these sizes"))
    print(args.out or args.buckets)
    return 0


def _fits(args: argparse.Namespace, buckets: Buckets) -> Fits:
    """Returns what says whether a batch fits, by the options."""
    from outlay.batching import AllocatorFits, MemoryFits, StepTimeFits

    given = [name for name in ("step", "probes", "layers") if getattr(args, name) is not None]
    if len(given) != 1:
        raise UsageError("say what decides on what fits: one of --step, --probes and --layers")
    if args.step is not None:
        step = _made(args.step)
        if args.seconds is not None:
            return StepTimeFits(step, args.seconds)
        if args.device.startswith("cuda"):
            _check_cuda()
            return AllocatorFits(step, args.device, args.share)
    if args.memory is None:
        raise UsageError("say how much memory there is: --memory 8GiB")
    return MemoryFits(_memory_model(args, buckets), args.memory, args.share)


def _memory_model(args: argparse.Namespace, buckets: Buckets) -> MemoryModel:
    from outlay.batching import MemoryModel, transformer_memory
    from outlay.batching.files import read_probes
    from outlay.batching.oracles import peak_rss, probe

    if args.probes is not None:
        return MemoryModel.fit(read_probes(args.probes))
    if args.layers is not None:
        encoder, decoder = args.layers
        return transformer_memory(encoder, decoder, args.hidden, args.heads, args.vocab, args.per_input, args.kind)
    step = _made(args.step)
    longest = max(edge.input for edge in buckets), max(edge.output for edge in buckets)
    return MemoryModel.fit(probe(lambda batch, s, t: peak_rss(step, batch, s, t), *longest))


def _made(spec: str) -> Any:
    """Returns what a `module:function` returns when it is called."""
    module, _, function = spec.partition(":")
    sys.path.insert(0, "")  # modules of the folder that the user is in
    try:
        return getattr(import_module(module), function)()
    except (ImportError, AttributeError, ValueError) as error:
        raise UsageError(
            f"--step must be MODULE:FUNCTION that can be imported and called, not {spec!r}: {error}"
        ) from error
    finally:
        sys.path.remove("")


def _check_cuda() -> None:
    import torch

    if not torch.cuda.is_available():
        raise UsageError("there is no CUDA device here; leave --device out")


def _read(args: argparse.Namespace, path: Path) -> ReadLengths:
    """Returns the lengths in a file, with what is added to the outputs."""
    from outlay.batching.files import read_lengths

    count = None
    if args.tokenizer is not None:
        from outlay.models.load import load_model

        tokenizer = load_model(args.tokenizer).tokenizer
        count = lambda text: len(tokenizer.encode(text))  # noqa: E731 - loaded only where it is needed
    read = read_lengths(path, args.input, args.output, count)
    if read.outputs is None and args.extra:
        raise UsageError(f"--extra adds to output lengths, and {path} has none")
    return read if read.outputs is None else replace(read, outputs=read.outputs + args.extra)


def _padding(read: ReadLengths, buckets: Buckets, sizes: dict[int, int], name: str) -> str:
    """Returns a table of what random batches and those of the buckets pad."""
    from outlay.batching import Buckets, DynamicBucketSampler, padding_report
    from outlay.tables import number as digits
    from outlay.tables import table

    inputs = read.inputs.tolist()
    outputs = [0.0] * len(inputs) if read.outputs is None else read.outputs.tolist()
    lengths = list(zip(inputs, outputs, strict=True))
    one = Buckets.fit_1d(inputs, 1, outputs)
    rows = []
    for title, each, batch in (("random, 32 examples", one, {0: 32}), (name, buckets, sizes)):
        batches = list(DynamicBucketSampler(lengths, each, batch, buffer=max(len(lengths), 1)))
        if not batches:
            raise UsageError(f"no example of {len(lengths)} fits into the buckets")
        found = padding_report(batches, inputs, outputs)
        rows.append(
            [title, f"{found.input_padding:.1%}", f"{found.output_padding:.1%}", digits(found.mean_batch),
             f"{found.discarded:.2%}"]
        )  # fmt: skip
    return table(("batches", "input padding", "output padding", "mean batch", "left out"), rows)


def _edge(buckets: Buckets, place: int) -> str:
    edge = buckets.bins[place]
    return f"({edge.input:g}, {edge.output:g})"


def _memory(text: str) -> float:
    from outlay.batching.memory import memory_size

    try:
        return memory_size(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def _layers(text: str) -> tuple[int, int]:
    """Returns the numbers of layers in "24,24"."""
    parts = text.split(",")
    if len(parts) != 2 or not all(part.strip().isdecimal() and int(part) > 0 for part in parts):
        raise argparse.ArgumentTypeError(f"must be ENCODER,DECODER layers like 24,24, not {text!r}")
    return int(parts[0]), int(parts[1])
