"""The prompts of a comparison, each with what a metric reads."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from outlay import problems
from outlay.errors import UsageError, nearest
from outlay.prompts import Prompt, decode, encoding_of, numbered_lines, prompt_of, read_row, scorer_of


@dataclass(frozen=True)
class Item:
    """A prompt and all that its row holds: `answer`, `tests`, `constraint`, `image`, and whatever a metric reads."""

    prompt: Prompt
    row: Mapping[str, Any]

    @property
    def answer(self) -> str | None:
        """The right answer, if it is known."""
        answer = self.row.get("answer")
        return None if answer is None else str(answer)

    @property
    def scorer(self) -> str | None:
        """The scorer that the row names for its own texts."""
        return scorer_of(self.row, "the prompt")

    @property
    def text(self) -> str:
        """The prompt as people read it: of messages, the last one."""
        return self.prompt if isinstance(self.prompt, str) else str(self.prompt[-1]["content"])

    @property
    def encoding(self) -> dict[str, Any]:
        """The options of `LM.encode` that the row has: its tools, and the switches of the chat template."""
        return encoding_of(self.row, "the prompt")


def read_items(source: str, *, skip_bad: bool = False) -> tuple[list[Item], list[str]]:
    """Reads prompts from a file, or makes a set of problems.

    Args:
        source: a file, or the name of a set of problems with options.
        skip_bad: whether to leave lines out that can't be read.

    Returns:
        The prompts, and the reasons why lines were left out.

    Raises:
        UsageError: the file can't be read or holds no prompt, or a line can't be read.
    """
    rows = None if Path(source).is_file() else problems.make(source)
    if rows is not None:
        return [_item(row, source) for row in rows], []
    items, skipped = [], []
    text = decode(_read(source), source)
    as_json = source.endswith((".jsonl", ".json")) or text.lstrip().startswith("{")
    for number, line in numbered_lines(text):
        where = f"line {number} of {source}"
        try:
            items.append(_item(read_row(line, where) if as_json else {"prompt": line.removesuffix("\r")}, where))
        except UsageError as error:
            if not skip_bad:
                raise UsageError(str(error)) from error
            skipped.append(str(error))
    if not items:
        raise UsageError(f"there is no prompt in {source}" + (f": {skipped[0]}" if skipped else ""))
    return items, skipped


def written(items: Sequence[Item]) -> str:
    """Returns the prompts as JSON lines, which `read_items` reads back."""
    return "".join(json.dumps(dict(item.row), ensure_ascii=False) + "\n" for item in items)


def digest(items: Sequence[Item]) -> str:
    """Returns the SHA-256 of what `written` writes."""
    return hashlib.sha256(written(items).encode("utf-8", "surrogatepass")).hexdigest()


def _read(source: str) -> bytes:
    try:
        return Path(source).read_bytes()
    except FileNotFoundError:
        known, near = problems.problem_sets(), nearest(source.partition(":")[0], problems.problem_sets())
        raise UsageError(f"there is no file {source}{near}; the sets of problems are {', '.join(known)}") from None
    except OSError as error:
        raise UsageError(f"can't read {source}: {error.strerror}") from error


def _item(row: dict[str, Any], where: str) -> Item:
    answer = row.get("answer")
    if answer is not None and (isinstance(answer, bool) or not isinstance(answer, str | int | float)):
        raise UsageError(f'"answer" in {where} must be text or a number, not {answer!r}')
    for name in ("tests", "image"):
        if row.get(name) is not None and not isinstance(row[name], str):
            raise UsageError(f'"{name}" in {where} must be text, not {row[name]!r}')
    encoding_of(row, where)
    scorer_of(row, where)
    return Item(prompt_of(row, where), row)
