"""Where prompts come from: the command line, a file or standard input; whole, a line each, or JSON lines."""

from __future__ import annotations

import sys
from pathlib import Path

from outlay.errors import UsageError
from outlay.prompts import Prompt, decode, numbered_lines, prompt_of, read_row, with_system


def read_prompts(text: str | None, file: str | None, *, lines: bool = False, system: str | None = None) -> list[Prompt]:
    """Returns the prompts that the user gave, `system` put before each. Raises `UsageError` where there is none.

    `text` is from the command line, `file` names a file; "-" for either means standard input, and so does neither,
    unless that is a terminal. `lines` makes a prompt of every line.
    """
    if text is not None and file is not None:
        raise UsageError("give a prompt or --file, not both")
    whole, where = _read(text, file)
    prompts: list[Prompt] = _split(whole, where) if lines else [whole]
    if not any(isinstance(prompt, list) or prompt.strip() for prompt in prompts):
        raise UsageError(f"the prompt is empty{f' ({where})' if where else ''}; give it some text")
    return prompts if system is None else [with_system(system, prompt) for prompt in prompts]


def _read(text: str | None, file: str | None) -> tuple[str, str]:
    """Returns the text and, for messages, where it comes from; the newline that ends a file is no part of it."""
    if text is not None and text != "-":
        return decode(text.encode("utf-8", "surrogateescape"), "the prompt"), ""
    if text == "-" or file == "-" or file is None:
        if text is None and file is None and sys.stdin.isatty():
            raise UsageError('give a prompt, as in outlay run "Why is the sky blue?", or --file FILE')
        return decode(sys.stdin.buffer.read(), "standard input").removesuffix("\n"), "standard input"
    try:
        content = Path(file).read_bytes()
    except OSError as error:
        raise UsageError(f"can't read {file}: {error.strerror}") from error
    return decode(content, file).removesuffix("\n"), file


def _split(text: str, where: str) -> list[Prompt]:
    """Returns a prompt for each line that is not blank; JSON objects if the first of them is one."""
    rows = numbered_lines(text)
    if not rows or not rows[0][1].lstrip().startswith("{"):
        return [line.removesuffix("\r") for _, line in rows]
    return [_from_json(line, f"line {number} of {where or 'the prompt'}") for number, line in rows]


def _from_json(line: str, where: str) -> Prompt:
    return prompt_of(read_row(line, where), where)
