"""`outlay constraint`: compiles a constraint, says what of it is masked and what only checked, and shows a text."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from outlay.errors import FailureError

if TYPE_CHECKING:
    from outlay.constrain import Constraint

DESCRIPTION = "Compiles a constraint, says what of it is masked and what only checked, and shows a text that it allows."
EXAMPLES = """examples:
  outlay constraint schema.json
  outlay constraint grammar.lark
  outlay constraint "regex:[0-9]{4}-[0-9]{2}"
  outlay constraint schema.json --model smollm2-135m --prompt "Describe a person."
"""
KINDS = {".json": "schema", ".lark": "grammar", ".gbnf": "grammar", ".py": "python"}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the command's options to `parser`."""
    parser.add_argument("constraint", metavar="FILE", help="a JSON schema (.json), a grammar (.lark, .gbnf), a Python "
                        "file (.py), or a name such as regex:PATTERN")  # fmt: skip
    parser.add_argument("--model", metavar="M", help="have this model write the example")
    parser.add_argument("--prompt", metavar="TEXT", default="Write an example.", help="what it is asked (%(default)s)")
    parser.add_argument("--json", action="store_true", help="one JSON object")


def run(args: argparse.Namespace) -> int:
    """Runs the command; returns the exit status: 1 where no text could be found."""
    from outlay.constrain import JsonSchema, constraint_of
    from outlay.constrain.describe import only_checked, unknown_keywords

    kind = KINDS.get(Path(args.constraint).suffix)
    constraint = constraint_of(f"{kind}:{args.constraint}" if kind and ":" not in args.constraint else args.constraint)
    schema = constraint.schema if isinstance(constraint, JsonSchema) else None
    found: dict[str, Any] = {
        "kind": type(constraint).__name__,
        "masked": constraint.masks_all,
        "only_checked": only_checked(constraint),
        "unknown_keywords": list(unknown_keywords(schema)) if schema is not None else [],
        "example": _example(constraint, args),
    }
    print(json.dumps(found, ensure_ascii=False) if args.json else _page(found))
    if found["example"] is None:
        raise FailureError("no text that satisfies the constraint was found; it may have none")
    return 0


def _example(constraint: Constraint, args: argparse.Namespace) -> str | None:
    from outlay.constrain.describe import example

    if args.model is None:
        return example(constraint)
    import outlay

    result = outlay.load(args.model).generate(args.prompt, method="auto", constraint=constraint)
    return result.text if result.facts["valid"] else None


def _page(found: dict[str, Any]) -> str:
    lines = [f"kind       {found['kind']}"]
    lines.append(f"masked     {'all of it' if found['masked'] else 'in part: a run may have to go back'}")
    lines += [f"checked    {line}" for line in found["only_checked"]]
    lines += [f"unknown    {place}: no keyword of JSON Schema, it says nothing" for place in found["unknown_keywords"]]
    if found["example"] is not None:
        lines.append(f"example    {found['example']}")
    return "\n".join(lines)
