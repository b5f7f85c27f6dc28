"""`outlay decompress`: the very bytes that were compressed."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from outlay.cli import terminal
from outlay.cli.arguments import number
from outlay.cli.compress import SUFFIX, circuit, is_circuit, language_model, output_arguments
from outlay.cli.outputs import Output, Source, check_outputs, read_input, sources
from outlay.errors import OutlayError, UsageError

if TYPE_CHECKING:
    from outlay.codec.container import Container
    from outlay.codec.files import Decoded

DESCRIPTION = "Gives back the very bytes that `outlay compress` was given, or says what is damaged."
EXAMPLES = """examples:
  outlay decompress letter.txt.olz                    # letter.txt
  outlay decompress notes/ -o restored                # every .olz file of a folder
  outlay decompress damaged.olz --partial -o rest.txt # the blocks that are whole, and what is missing
  outlay decompress code.py.olz --draft lookup        # the same bytes; it pays where texts repeat themselves
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the command's options to `parser`."""
    from outlay.codec.files import MAX_SIZE

    parser.usage = "outlay decompress FILE... [options]"
    parser.add_argument("files", nargs="+", metavar="FILE", help='files and folders; "-" is standard input')
    parser.add_argument("--model", metavar="M", help="the model that the files were compressed with (the default "
                        "model); none is fetched because a file names it")  # fmt: skip
    parser.add_argument("--lossy", metavar="CKPT", help="the codec that pictures were compressed with, with loss; they "
                        "come back as PNG")  # fmt: skip
    parser.add_argument(
        "--draft", metavar="D", help="what runs ahead of the reader: lookup, head, table, another model"
    )
    parser.add_argument("--lanes", type=number(1, whole=True), metavar="N", help="blocks that are read at a time (32, "
                        "or what fits into 1 GB of keys and values)")  # fmt: skip
    parser.add_argument("--threads", type=number(1, whole=True), metavar="N", help="threads to compute with")
    parser.add_argument("--partial", action="store_true", help="of a damaged file, write the blocks that are whole")
    parser.add_argument("--max-size", type=number(0, whole=True), default=MAX_SIZE, metavar="N",
                        help="bytes that a file may decode to (%(default)s)")  # fmt: skip
    output_arguments(parser, "where it goes: a file, a folder, or - (beside the file, without .olz)")


def run(args: argparse.Namespace) -> int:
    """Decompresses; returns the exit status."""
    if args.partial and args.rm:
        raise UsageError("--rm deletes what was read whole; leave it out with --partial")
    found = sources(args.files, only=SUFFIX)
    outputs = [Output.beside(source, args.out, len(found), _name(source, args.out)) for source in found]
    check_outputs(outputs, force=args.force, remove=args.rm)
    with terminal.Progress(quiet=args.quiet) as progress:
        progress("starting", 0, 0)
        from outlay.codec.container import unpack
        from outlay.codec.files import decompress_all

        containers: dict[int, Container] = {}
        status = 0
        for place, output in enumerate(outputs):
            try:
                containers[place] = unpack(read_input(output.source))
            except OutlayError as error:
                status = _refuse(output, error, len(outputs))
        total, done = sum(container.original for container in containers.values()), 0

        def on_block(amount: int) -> None:
            nonlocal done
            done += amount
            progress("decompressing", done, total)

        for group in _groups(containers):
            coder: Any = None
            try:
                if group[0][1].kind != "xz":
                    _refuse_large(group, args.max_size)
                    coder = _coder(group[0][1], args, progress)
                for place, container, decoded in decompress_all(group, coder, on_block, max_size=args.max_size):
                    status = max(status, _write(outputs[place], container, decoded, coder, args, len(outputs)))
            except OutlayError as error:
                status = _refuse(outputs[group[0][0]], error, len(outputs))
            finally:
                if coder is not None:
                    coder.close()
    return status


def _name(source: Source, out: str | None) -> str:
    if out is None and source.path is not None and (not source.name.endswith(SUFFIX) or source.name == SUFFIX):
        raise UsageError(f"{source.label} has no name that ends with {SUFFIX}; name what it becomes with --out FILE")
    return source.name.removesuffix(SUFFIX)


def _groups(containers: dict[int, Container]) -> list[list[tuple[int, Container]]]:
    """Groups files by what decodes them."""
    groups: dict[Any, list[tuple[int, Container]]] = {}
    for place, container in containers.items():
        groups.setdefault((container.kind, container.decoder), []).append((place, container))
    return list(groups.values())


def _refuse_large(group: Sequence[tuple[int, Container]], limit: int) -> None:
    """Raises `UsageError` for a file that is too large, before a model is loaded for it."""
    largest = max(container.original for _, container in group)
    if largest > limit:
        raise UsageError(f"it decodes to {largest:,} bytes, more than {limit:,}; allow more with --max-size")


def _coder(container: Container, args: argparse.Namespace, progress: Any) -> Any:
    """Returns the coder that reads a file."""
    from outlay.codec.circuit.coders import PHOTOS
    from outlay.drafts import resolve
    from outlay.lm import DEFAULT_MODEL

    if container.kind == "picture":
        from outlay.cli.lossy import picture_coder

        if args.lossy is None:
            raise UsageError(f"the picture was compressed with {container.decoder.model}; name it with --lossy")
        coder_of_pictures = picture_coder(args.lossy, workers=args.threads or 1)
        coder_of_pictures.fits(container)
        return coder_of_pictures
    named = container.decoder.model
    ours = {"text": DEFAULT_MODEL, "patches": PHOTOS}.get(container.kind)
    if args.model is None and named != ours:
        raise UsageError(f"the file was compressed with {named or 'another model'}; name it with --model")
    if container.kind == "patches" or is_circuit(args.model):
        coder_of_circuit = circuit(args.model)
        coder_of_circuit.fits(container)
        return coder_of_circuit
    coder = language_model(args.model, args.threads, progress, container=container, lanes=args.lanes)
    if args.draft is not None:
        coder.draft = resolve(args.draft, coder.codec.model)
    return coder


def _write(
    output: Output, container: Container, decoded: Decoded, coder: Any, args: argparse.Namespace, count: int
) -> int:
    """Writes what a file decoded to; returns the exit status."""
    from outlay.codec.files import missing_ranges, whole

    missing = missing_ranges(container, decoded)
    try:
        data = decoded.data if args.partial and missing else whole(container, decoded)
    except OutlayError as error:
        return _refuse(output, error, count)
    if container.kind == "picture":
        from outlay.cli.lossy import png

        data = png(coder.render(container, decoded))
    elif container.kind == "patches":
        from outlay.codec.circuit.patches import details_of
        from outlay.codec.circuit.patches import png as png_of

        data = png_of(container, decoded) if details_of(container).png else data
    output.write(data)
    if args.rm:
        output.source.remove()
    if args.json:
        row = {"file": output.source.label, "out": output.label, "bytes_in": len(container.pack()),
               "bytes_out": len(data), "missing": missing, "ledger": decoded.ledger.as_dict()}  # fmt: skip
        print(json.dumps(row), file=sys.stderr if output.to_stdout else sys.stdout)
    for block, begin, end, why in missing:
        where = "" if container.kind == "picture" else f", bytes {begin:,} to {end:,} of the original,"
        line = f"{output.source.label}: block {block}{where} is missing: {why}"
        print(f"outlay: {line}", file=sys.stderr)
    return 1 if missing else 0


def _refuse(output: Output, error: OutlayError, count: int) -> int:
    """Raises the error of the only file; says it, where there are others, and returns the exit status."""
    if count == 1:
        raise error
    print(f"outlay: {output.source.label}: {error}", file=sys.stderr)
    return 1
