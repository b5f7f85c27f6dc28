"""Pairs of source and target, read from JSON lines."""

from __future__ import annotations

import json
from pathlib import Path

from outlay import problems
from outlay.errors import UsageError
from outlay.models.tokenizer import Tokenizer
from outlay.prompts import decode, numbered_lines
from outlay.train.distill.training import Pair

SOURCES, TARGETS = ("source", "prompt", "input"), ("target", "answer", "output")


def read_pairs(data: str | Path, tokenizer: Tokenizer) -> list[Pair]:
    """Reads pairs of source and target, and ends every target with the token that ends texts.

    Args:
        data: A file of JSON lines, or a set of problems by name, such as `retrieval:count=1000,seed=0`.
        tokenizer: Of student and teacher.

    Raises:
        UsageError: The file can't be read, or a line has no source or target with some text.
    """
    path = Path(data)
    rows = None if path.exists() else problems.make(str(data))
    if rows is not None:
        return [_pair(row["prompt"], row["answer"], tokenizer) for row in rows]
    try:
        lines = numbered_lines(decode(path.read_bytes(), str(path)))
    except OSError as error:
        raise UsageError(f"can't read {path}: {error.strerror}") from error
    pairs = []
    for number, line in lines:
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise UsageError(f"line {number} of {path} is not JSON: {error}") from error
        source, target = (_text(row, names, f"line {number} of {path}") for names in (SOURCES, TARGETS))
        pairs.append(_pair(source, target, tokenizer))
    if not pairs:
        raise UsageError(f"{path} is empty; it should have a source and a target in each line")
    return pairs


def _pair(source: str, target: str, tokenizer: Tokenizer) -> Pair:
    return Pair(tokenizer.encode_prompt(source), [*tokenizer.encode(target), *tokenizer.eos_token_ids[:1]])


def _text(row: object, names: tuple[str, ...], where: str) -> str:
    found = next((row[name] for name in names if name in row), None) if isinstance(row, dict) else None
    if not isinstance(found, str) or not found:
        raise UsageError(f'{where} must be a JSON object with some text as "{names[0]}"')
    return found
