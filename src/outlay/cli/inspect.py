"""`outlay inspect`: what is in a compressed file."""

from __future__ import annotations

import argparse
import json
import sys
from typing import Any

from outlay.cli import terminal
from outlay.cli.outputs import read_input, sources

DESCRIPTION = "Says what is in a compressed file: what decodes it, and its blocks. Nothing is decoded."
EXAMPLES = """examples:
  outlay inspect letter.txt.olz
  outlay inspect letter.txt.olz --blocks
  outlay inspect letter.txt.olz --json
"""
NAMES = {
    "kind": "kind", "original_bytes": "original bytes", "bytes": "bytes here", "header_bytes": "of the header",
    "model": "model", "weights": "SHA-256 of its weights", "format": "weights held in", "kv_dtype": "keys, values in",
    "arithmetic": "arithmetic", "probe": "probe", "writer": "written by", "alphabet": "alphabet",
    "block": "symbols of a block", "stream": "stream", "coder": "coder", "sha256": "SHA-256 of the original",
}  # fmt: skip


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the command's options to `parser`."""
    parser.usage = "outlay inspect FILE... [options]"
    parser.add_argument("files", nargs="+", metavar="FILE", help='compressed files; "-" is standard input')
    parser.add_argument("--blocks", action="store_true", help="the table of blocks as well")
    parser.add_argument("--json", action="store_true", help="everything as a JSON object for each file")


def run(args: argparse.Namespace) -> int:
    """Shows what is in each file; returns the exit status."""
    from outlay.codec import inspect

    found = sources(args.files, only=".olz")
    for place, source in enumerate(found):
        about = inspect(read_input(source))
        if args.json:
            print(json.dumps({"file": source.label, **about}))
            continue
        if len(found) > 1:
            print(("\n" if place else "") + terminal.bold(source.label, sys.stdout))
        print(terminal.pairs(_rows(about), sys.stdout))
        if args.blocks:
            print(_table(about["blocks"]))
    return 0


def _rows(about: dict[str, Any]) -> list[tuple[str, str]]:
    rows = [(label, _shown(about[name])) for name, label in NAMES.items() if name in about]
    symbols = sum(block["symbols"] for block in about["blocks"])
    count = f"{len(about['blocks'])}" + (f", {symbols:,} symbols" if symbols else "")
    return [*rows, ("blocks", count)]


def _shown(value: object) -> str:
    return f"{value:,}" if isinstance(value, int) else str(value)


def _table(blocks: list[dict[str, Any]]) -> str:
    header = ("block", "symbols", "bytes here", "original", "CRC32 here", "CRC32 of the original")
    rows = [
        (str(place), f"{block['symbols']:,}", f"{block['coded']:,}", f"{block['original']:,}",
         f"{block['coded_crc']:08x}", f"{block['original_crc']:08x}")
        for place, block in enumerate(blocks)
    ]  # fmt: skip
    return terminal.table(header, rows, sys.stdout)
