"""Files of lengths, in CSV or JSON lines, of buckets, and of probes."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from outlay.batching.buckets import Buckets
from outlay.batching.memory import Probe
from outlay.errors import FailureError, UsageError
from outlay.prompts import decode, numbered_lines

INPUTS = ("input", "input_length", "duration", "source", "prompt")
OUTPUTS = ("output", "output_length", "tokens", "target", "answer", "text")
Count = Callable[[str], int]


@dataclass(frozen=True)
class ReadLengths:
    """The lengths in a file."""

    inputs: NDArray[np.float64]
    """[examples]."""
    outputs: NDArray[np.float64] | None
    """[examples]; None where the file has one length only."""


def read_lengths(
    path: Path, input: str | None = None, output: str | None = None, count: Count | None = None
) -> ReadLengths:
    """Reads lengths from CSV, with or without names in its first line, or from JSON lines.

    Args:
        path: The file. JSON lines end in .jsonl or .json, or begin with a brace.
        input: Column or key of the input length; else the first of `INPUTS` that is there, or the first column.
        output: The same of the output length; else of `OUTPUTS`, or the second column, if there is one.
        count: Returns the length of a text that stands in the place of a number; None: texts are refused.

    Raises:
        UsageError: The file can't be read, is empty, or a line has no such length.
    """
    lines = numbered_lines(_text(path))
    if not lines:
        raise UsageError(f"{path} is empty; it should have the lengths of an example in each line")
    is_json = path.suffix in (".jsonl", ".json") or lines[0][1].lstrip().startswith("{")
    rows = _json_rows(path, lines) if is_json else _csv_rows(path, lines)
    first = rows[0][1]
    inputs = _key(path, first, input, INPUTS, None if is_json else 0)
    if inputs is None:
        raise UsageError(f"{path} has none of {', '.join(INPUTS)}; name the key of the input length: --input KEY")
    others = {name: value for name, value in first.items() if name != inputs}
    outputs = _key(path, others, output, OUTPUTS, None if is_json else 0)

    def column(name: str) -> NDArray[np.float64]:
        return np.array([_length(row, name, f"line {number} of {path}", count) for number, row in rows])

    return ReadLengths(column(inputs), None if outputs is None else column(outputs))


def read_probes(path: Path) -> list[Probe]:
    """Reads the bytes of training steps from CSV: batch, input, output, bytes.

    Raises:
        UsageError: The file can't be read, or a line has something else.
    """
    rows = _csv_rows(path, numbered_lines(_text(path)))
    probes = []
    for number, row in rows:
        try:
            batch, input, output, taken = map(float, row.values())
        except (TypeError, ValueError):
            raise UsageError(f"line {number} of {path} must be batch,input,output,bytes, all numbers") from None
        probes.append(Probe(int(batch), input, output, taken))
    return probes


def write_buckets(path: Path, buckets: Buckets, sizes: Mapping[int, int] | None = None, **about: Any) -> None:
    """Writes buckets as JSON, with the batch size of each where `sizes` has them.

    Raises:
        FailureError: The file can't be written.
    """
    held = buckets.as_json() | ({} if sizes is None else {"batch_sizes": [sizes[i] for i in range(len(buckets))]})
    try:
        path.write_text(json.dumps(held | about) + "\n")
    except OSError as error:
        raise FailureError(f"can't write {path}: {error.strerror}") from error


def read_buckets(path: Path) -> tuple[Buckets, dict[int, int]]:
    """Reads buckets, and the batch size of each, empty where they were not profiled.

    Raises:
        UsageError: The file holds something else.
    """
    try:
        held = json.loads(_text(path))
    except json.JSONDecodeError as error:
        raise UsageError(f"{path} is not JSON: {error}") from error
    buckets = Buckets.from_json(held)
    sizes = held.get("batch_sizes") or []
    if sizes and (len(sizes) != len(buckets) or not all(isinstance(size, int) and size > 0 for size in sizes)):
        raise UsageError(f'"batch_sizes" in {path} must be {len(buckets)} whole numbers of 1 or more')
    return buckets, dict(enumerate(sizes))


def _text(path: Path) -> str:
    try:
        return decode(path.read_bytes(), str(path))
    except OSError as error:
        raise UsageError(f"can't read {path}: {error.strerror}") from error


def _json_rows(path: Path, lines: list[tuple[int, str]]) -> list[tuple[int, dict[str, Any]]]:
    rows = []
    for number, line in lines:
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise UsageError(f"line {number} of {path} is not JSON: {error}") from error
        if not isinstance(row, dict):
            raise UsageError(f"line {number} of {path} must be a JSON object with the lengths of an example")
        rows.append((number, row))
    return rows


def _csv_rows(path: Path, lines: list[tuple[int, str]]) -> list[tuple[int, dict[str, Any]]]:
    """Returns the rows with the names of their columns; without a line of names, the columns' numbers from 1 on."""
    rows = [(number, [cell.strip() for cell in next(csv.reader(io.StringIO(line)))]) for number, line in lines]
    header = rows[0][1]
    if all(_is_number(cell) for cell in header):
        header = [str(place) for place in range(1, len(header) + 1)]
    else:
        rows = rows[1:]
    if not rows:
        raise UsageError(f"{path} has names of columns and no line of lengths below them")
    for number, row in rows:
        if len(row) != len(header):
            raise UsageError(f"line {number} of {path} has {len(row)} columns, the first line {len(header)}")
    return [(number, dict(zip(header, row, strict=True))) for number, row in rows]


def _key(
    path: Path, row: Mapping[str, Any], named: str | None, usual: tuple[str, ...], place: int | None
) -> str | None:
    """Returns the key of a length: the named one, else a usual one, else the one at a place, if there is one."""
    if named is not None:
        if named not in row:
            raise UsageError(f"{path} has no {named!r}; it has {', '.join(row)}")
        return named
    found = next((name for name in usual if name in row), None)
    if found is None and place is not None and len(row) > place:
        return list(row)[place]
    return found


def _length(row: Mapping[str, Any], name: str, where: str, count: Count | None) -> float:
    value = row.get(name)
    if isinstance(value, str) and not _is_number(value):
        if count is None:
            raise UsageError(f"{name!r} in {where} is a text; say whose tokens count: --tokenizer MODEL")
        return count(value)
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        raise UsageError(f"{name!r} in {where} must be a length, not {value!r:.60}")
    return float(value)


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
