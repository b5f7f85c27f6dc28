"""`outlay models`: what can be loaded by name, what is on disk, and by which path each family of models runs."""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path
from typing import Any

from outlay.cli import terminal

DESCRIPTION = (
    "Lists the models that have a short name, this machine's kernels, and the families that run: natively, or through "
    "the modeling code of transformers with our attention and cache. With MODEL: the path that this one takes."
)
EXAMPLES = """examples:
  outlay models
  outlay models ./my-model
  outlay models --json

Besides an alias, --model takes a folder in the hub's layout, a .gguf file, or a hub id (org/name[@revision]).
"""


SHIPPED = {
    "outlay/glyphs": "names what pictures of glyphs show",
    "outlay/glyphs-256": "the same with 256 visual tokens a picture",
    "outlay/tiny-ambiguous": "fills masks: the problems `ambiguous`",
    "outlay/tiny-coder": "writes the programs of the problems `minilist`",
    "outlay/tiny-crate": "a CRATE over bytes",
    "outlay/tiny-lists": "fills masks: tasks on lists of letters",
    "outlay/tiny-noisy": "fills masks: the problems `noisy`",
    "outlay/tiny-reasoner": "writes the problems `chains` out",
    "outlay/tiny-verifier": "a reward model for outlay/tiny-reasoner",
}
"""What the models that come with the package are for."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the command's options to `parser`."""
    parser.add_argument("model", nargs="?", metavar="MODEL", help="an alias, a folder, a .gguf file or a hub id")
    parser.add_argument("--json", action="store_true", help="print one JSON object")


def run(args: argparse.Namespace) -> int:
    """Runs the command; returns the exit status."""
    if args.model is not None:
        path = _path_of_model(args.model)
        print(json.dumps(path) if args.json else terminal.pairs(list(path.items()), sys.stdout))
        return 0
    facts = _facts()
    print(json.dumps(facts) if args.json else _page(facts))
    return 0


def _path_of_model(source: str) -> dict[str, str]:
    """Returns a model's family and path, and how passes hold its matrices if they are shrunk; others are not read."""
    from outlay.models import hub
    from outlay.models.load import family_of, held_in_passes, reward_form_of, sees_images
    from outlay.models.via_transformers.families import path_of

    found = hub.resolve(source, None)
    family, form = family_of(found), reward_form_of(source, found)
    kind = "a language model" if form is None else f"a reward model (form {form}): give it with --scorer"
    if sees_images(found):
        kind = "a language model that sees images: give them with --image"
    held = held_in_passes(found)
    return {
        "model": source,
        "kind": kind,
        "family": family,
        "path": path_of(family),
        **({"held": ", ".join(f"{count} matrices as {form}" for form, count in held.items())} if held else {}),
    }


def _facts() -> dict[str, Any]:
    from outlay import kernels
    from outlay.lm import DEFAULT_MODEL
    from outlay.models import hub
    from outlay.models.config import FAMILIES
    from outlay.models.encoder_config import ENCODER_DECODERS
    from outlay.models.gguf_blocks import HELD
    from outlay.models.load import reward_form_of
    from outlay.models.quantized import FORMAT_OF_KIND
    from outlay.models.via_transformers.families import TRIED, installed, path_of
    from outlay.models.vision.forms import VISION_FORMS

    paths = hub.on_disk()
    shipped = [
        {
            "name": name,
            "default": False,
            "about": SHIPPED.get(name, ""),
            "licence": "Apache-2.0",
            "bytes": sum(file.stat().st_size for file in folder.iterdir()),
            "path": str(folder),
            "reward_form": reward_form_of(name, folder),
        }
        for name, folder in hub.shipped().items()
    ]
    return {
        "models": [
            {
                "name": alias.name,
                "default": alias.name == DEFAULT_MODEL,
                "about": alias.about,
                "licence": alias.licence,
                "bytes": alias.file_bytes,
                "path": str(paths[alias.name]) if alias.name in paths else None,
                "reward_form": None,
            }
            for alias in hub.aliases()
        ]
        + shipped,
        "cache": str(hub.cache_folder()),
        "gguf_types": {FORMAT_OF_KIND[kind]: list(types) for kind, types in HELD.items()},
        "families": {family: path_of(family) for family in (*FAMILIES, *ENCODER_DECODERS, *VISION_FORMS, *TRIED)},
        "see_images": list(VISION_FORMS),
        "transformers": installed(),
        "kernels": kernels.isa() if kernels.available() else None,
    }


def _page(facts: dict[str, Any]) -> str:
    rows = [
        (
            model["name"],
            model["licence"],
            terminal.size(model["bytes"]),
            "yes" if model["path"] else "no",
            ("(the default) " if model["default"] else "") + model["about"],
        )
        for model in facts["models"]
    ]
    machine = [
        ("kept in", _short(facts["cache"])),
        ("natively", _families(facts, "native")),
        ("with images", ", ".join(facts["see_images"])),
        ("by transformers", f"{_families(facts, 'transformers')}; others are examined when they are loaded"),
        ("its version", facts["transformers"] or "not installed: pip install 'outlay[transformers]'"),
        *((f"GGUF in {format}", ", ".join(types)) for format, types in facts["gguf_types"].items()),
        ("passes", f"native {facts['kernels']}" if facts["kernels"] else "torch"),
    ]
    parts = [
        terminal.table(("model", "licence", "size", "on disk", "what it is"), rows, sys.stdout),
        terminal.pairs(machine, sys.stdout),
    ]
    return "\n\n".join(parts)


def _families(facts: dict[str, Any], path: str) -> str:
    return ", ".join(family for family, taken in facts["families"].items() if taken == path)


def _short(path: str) -> str:
    """Returns a path with the user's home folder as "~"."""
    home = str(Path.home())
    return "~" + path.removeprefix(home) if path.startswith(home + os.sep) else path
