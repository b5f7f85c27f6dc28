"""`outlay compress`: files made smaller with a language model or xz, whichever does best."""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from outlay.cli import terminal
from outlay.cli.arguments import number, one_of
from outlay.cli.outputs import Output, check_outputs, read_input, sources
from outlay.errors import FailureError, UsageError
from outlay.progress import ShowProgress

if TYPE_CHECKING:
    from outlay.codec.circuit.arrays import CircuitCoder
    from outlay.codec.circuit.patches import PatchCoder
    from outlay.codec.files import Coder, Compressed, TextCoder

DESCRIPTION = (
    "Compresses files. Whatever does best is kept: the model, or xz. Any machine with the model opens them again."
)
EXAMPLES = """examples:
  outlay compress letter.txt                          # letter.txt.olz, with the default model
  outlay compress notes/ --verify --rm                # each file of a folder; originals go once they are verified
  cat log.txt | outlay compress - -o - > log.olz
  outlay compress image.bin --model none              # xz alone, in the same container
  outlay compress photo.png --pixels                  # without loss, by a circuit of patches
  outlay compress photo.png --lossy codec/ --channels 0.75
  outlay decompress letter.txt.olz
"""
SUFFIX = ".olz"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the command's options to `parser`."""
    parser.usage = "outlay compress FILE... [options]"
    parser.add_argument("files", nargs="+", metavar="FILE", help='files and folders; "-" is standard input')
    how = parser.add_argument_group("how")
    how.add_argument("--model", metavar="M", help="a language model: an alias, a folder, a .gguf file or a hub id "
                     "(the default model); a circuit's .safetensors, for .npy files; none: xz alone")  # fmt: skip
    how.add_argument("--block", type=number(1, whole=True), metavar="N", help="tokens of a block (1024): longer ones "
                     "compress better, shorter ones are read sooner, and damage costs one block")  # fmt: skip
    how.add_argument("--kv-dtype", type=one_of(("int8", "bfloat16", "float32")), default="int8", metavar="D",
                     help="how keys and values are held: int8, bfloat16 or float32 (int8)")  # fmt: skip
    how.add_argument("--stream", type=one_of(("batch", "sample")), default="batch", metavar="S", help="of a circuit: "
                     "batch, the samples of a block share a stream; sample, each has its own (batch)")  # fmt: skip
    how.add_argument("--pixels", action="store_true", help="of a PNG, its pixels are enough: they are compressed by a "
                     "circuit of patches (the one for photos), and come back in another PNG")  # fmt: skip
    how.add_argument("--lossy", metavar="CKPT", help="pictures, with loss: a folder of `outlay train codec` or `outlay "
                     "codec`, or a state dict of CompressAI")  # fmt: skip
    how.add_argument("--channels", type=number(above=0), metavar="N", help="with --lossy: how many of the codec's "
                     "channels are sent, or a share below 1 of them (all)")  # fmt: skip
    how.add_argument("--threads", type=number(1, whole=True), metavar="N", help="threads to compute with")
    output_arguments(parser, "where it goes: a file, a folder, or - (beside the original, with .olz behind)")
    parser.add_argument("--verify", action="store_true", help="decompress it again and compare")


def output_arguments(parser: argparse.ArgumentParser, where: str) -> None:
    """Adds the options that compressing and decompressing share."""
    output = parser.add_argument_group("output")
    output.add_argument("-o", "--out", metavar="OUT", help=where)
    output.add_argument("--force", action="store_true", help="overwrite what is there")
    output.add_argument("--rm", action="store_true", help="delete what was read, once the result is verified")
    output.add_argument("--json", action="store_true", help="a JSON object for each file instead of a line")
    output.add_argument("--quiet", action="store_true", help="no progress and no lines")


def run(args: argparse.Namespace) -> int:
    """Compresses; returns the exit status."""
    if args.model == "none" and args.block is not None:
        raise UsageError("--block is for a model; leave it out with --model none")
    if args.pixels and (args.model == "none" or args.lossy is not None):
        raise UsageError("--pixels is for a circuit of patches; leave it out with --model none and with --lossy")
    if args.lossy is not None:
        from outlay.cli.lossy import compress_pictures

        return compress_pictures(args)
    if args.channels is not None:
        raise UsageError("--channels is of --lossy; give a codec with it")
    found = sources(args.files, skip=SUFFIX)
    outputs = [Output.beside(source, args.out, len(found), source.name + SUFFIX) for source in found]
    check_outputs(outputs, force=args.force, remove=args.rm)
    with terminal.Progress(quiet=args.quiet) as progress:
        progress("starting", 0, 0)
        from outlay.codec.files import compress_all

        total, done = sum(source.size for source in found), 0

        def on_block(amount: int) -> None:
            nonlocal done
            done += amount
            progress("compressing", done, max(total, done))

        started = time.perf_counter()
        with open_coder(args, progress) as coder:
            for place, compressed in compress_all(_originals(outputs), [coder] if coder else [], on_block):
                if args.verify or args.rm:
                    _verify(coder, compressed)
                outputs[place].write(compressed.data)
                if args.rm:
                    outputs[place].source.remove()
                seconds, started = time.perf_counter() - started, time.perf_counter()
                _tell(outputs[place], compressed, seconds, args)
    return 0


@contextmanager
def open_coder(args: argparse.Namespace, progress: ShowProgress) -> Iterator[Coder | None]:
    """The coder that the arguments ask for, None for xz alone; closed at the end."""
    if args.model == "none":
        yield None
        return
    coder: Coder
    if args.pixels or is_circuit(args.model):
        coder = circuit(args.model, stream=args.stream, pixels=args.pixels)
    else:
        coder = language_model(args.model, args.threads, progress, kv_dtype=args.kv_dtype, block=args.block)
    try:
        yield coder
    finally:
        coder.close()


def is_circuit(name: str | None) -> bool:
    """Tells whether a model is a file that `outlay train circuit` wrote, or the circuit for photos."""
    return name is not None and (name.endswith(".safetensors") or name == "photos")


def circuit(name: str | None, **how: Any) -> CircuitCoder | PatchCoder:
    """Returns the coder of a circuit in a file; None: of the one for photos."""
    from outlay.codec.circuit.coders import coder_of

    return coder_of(name, **how)


def language_model(name: str | None, threads: int | None, progress: ShowProgress, **how: Any) -> TextCoder:
    """Returns the coder of a language model, opened with the options of `open_text`."""
    from outlay.codec.files import open_text
    from outlay.lm import DEFAULT_MODEL, set_threads
    from outlay.models.load import load_model

    set_threads(threads)
    return open_text(load_model(name or DEFAULT_MODEL, progress=progress), **how)


def _originals(outputs: list[Output]) -> Iterator[tuple[int, bytes]]:
    for place, output in enumerate(outputs):
        yield place, read_input(output.source)


def _verify(coder: Coder | None, compressed: Compressed) -> None:
    """Raises `FailureError` where a file does not give its original back."""
    from outlay.codec.container import unpack
    from outlay.codec.files import decompress_all, whole

    container = unpack(compressed.data)
    ((_, _, decoded),) = decompress_all([(0, container)], coder, max_size=container.original)
    try:
        whole(container, decoded)
    except FailureError as error:
        raise FailureError(f"what was compressed does not give its original back: {error}") from None


def _tell(output: Output, compressed: Compressed, seconds: float, args: argparse.Namespace) -> None:
    before, after = compressed.container.original, len(compressed.data)
    if args.json:
        row = {"file": output.source.label, "out": output.label, "won": compressed.container.kind, "bytes_in": before,
               "bytes_out": after, "sizes": compressed.sizes, "seconds": round(seconds, 3),
               "ledger": compressed.ledger.as_dict()}  # fmt: skip
        print(json.dumps(row), file=sys.stderr if output.to_stdout else sys.stdout)
    elif not args.quiet:
        others = [f"{kind} {size:,}" for kind, size in compressed.sizes.items() if kind != compressed.container.kind]
        beside = f" ({', '.join(others)})" if others else ""
        share = f"{after / before:.1%}" if before else "-"
        name = "xz" if compressed.container.kind == "xz" else compressed.container.decoder.model
        print(f"{output.source.label}: {before:,} -> {after:,} bytes, {share}, {name}{beside}", file=sys.stderr)
