"""`outlay models`: what can be loaded by name, what is on disk, and what this machine runs natively."""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path
from typing import Any

from outlay.cli import terminal

DESCRIPTION = "Lists the models that have a short name, the architectures that run, and this machine's kernels."
EXAMPLES = """examples:
  outlay models
  outlay models --json

Besides an alias, --model takes a folder in the hub's layout, a .gguf file, or a hub id (org/name[@revision]).
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the command's options to `parser`."""
    parser.add_argument("--json", action="store_true", help="print one JSON object")


def run(args: argparse.Namespace) -> int:
    """Runs the command; returns the exit status."""
    facts = _facts()
    print(json.dumps(facts) if args.json else _page(facts))
    return 0


def _facts() -> dict[str, Any]:
    from outlay import kernels
    from outlay.lm import DEFAULT_MODEL
    from outlay.models import hub
    from outlay.models.config import FAMILIES
    from outlay.models.gguf_blocks import HELD
    from outlay.models.quantized import FORMAT_OF_KIND

    paths = hub.on_disk()
    return {
        "models": [
            {
                "name": alias.name,
                "default": alias.name == DEFAULT_MODEL,
                "about": alias.about,
                "licence": alias.licence,
                "bytes": alias.file_bytes,
                "path": str(paths[alias.name]) if alias.name in paths else None,
            }
            for alias in hub.aliases()
        ],
        "cache": str(hub.cache_folder()),
        "architectures": list(FAMILIES),
        "gguf_types": {FORMAT_OF_KIND[kind]: list(types) for kind, types in HELD.items()},
        "kernels": kernels.isa() if kernels.available() else None,
    }


def _page(facts: dict[str, Any]) -> str:
    rows = [
        (
            model["name"],
            model["licence"],
            terminal.size(model["bytes"]),
            "yes" if model["path"] else "no",
            model["about"] + (" (the default)" if model["default"] else ""),
        )
        for model in facts["models"]
    ]
    machine = [
        ("kept in", _short(facts["cache"])),
        ("runs", ", ".join(facts["architectures"])),
        *((f"GGUF in {format}", ", ".join(types)) for format, types in facts["gguf_types"].items()),
        ("passes", f"native {facts['kernels']}" if facts["kernels"] else "torch"),
    ]
    parts = [
        terminal.table(("model", "licence", "size", "on disk", "what it is"), rows, sys.stdout),
        terminal.pairs(machine, sys.stdout),
    ]
    return "\n\n".join(parts)


def _short(path: str) -> str:
    """Returns a path with the user's home folder as "~"."""
    home = str(Path.home())
    return "~" + path.removeprefix(home) if path.startswith(home + os.sep) else path
