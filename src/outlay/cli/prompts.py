"""Where prompts come from: the command line, a file or standard input; whole, a line each, or JSON lines."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from outlay.errors import UsageError

Messages = list[dict[str, str]]
Prompt = str | Messages


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
    return prompts if system is None else [_with_system(system, prompt) for prompt in prompts]


def _read(text: str | None, file: str | None) -> tuple[str, str]:
    """Returns the text and, for messages, where it comes from; the newline that ends a file is no part of it."""
    if text is not None and text != "-":
        return _decoded(text.encode("utf-8", "surrogateescape"), "the prompt"), ""
    if text == "-" or file == "-" or file is None:
        if text is None and file is None and sys.stdin.isatty():
            raise UsageError('give a prompt, as in outlay run "Why is the sky blue?", or --file FILE')
        return _decoded(sys.stdin.buffer.read(), "standard input").removesuffix("\n"), "standard input"
    try:
        content = Path(file).read_bytes()
    except OSError as error:
        raise UsageError(f"can't read {file}: {error.strerror}") from error
    return _decoded(content, file).removesuffix("\n"), file


def _decoded(content: bytes, where: str) -> str:
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError as error:
        raise UsageError(f"{where} is not UTF-8 text (byte {error.start})") from error


def _split(text: str, where: str) -> list[Prompt]:
    """Returns a prompt for each line that is not blank; JSON objects if the first of them is one."""
    rows = [(number, line) for number, line in enumerate(text.split("\n"), 1) if line.strip()]
    if not rows or not rows[0][1].lstrip().startswith("{"):
        return [line.removesuffix("\r") for _, line in rows]
    return [_from_json(line, f"line {number} of {where or 'the prompt'}") for number, line in rows]


def _from_json(line: str, where: str) -> Prompt:
    try:
        row = json.loads(line)
    except json.JSONDecodeError as error:
        raise UsageError(f"{where} is not JSON: {error}") from error
    if not isinstance(row, dict) or len(row.keys() & {"prompt", "messages"}) != 1:
        raise UsageError(f'{where} must be a JSON object with "prompt" or "messages"')
    if "prompt" in row:
        if not isinstance(row["prompt"], str) or not row["prompt"].strip():
            raise UsageError(f'"prompt" in {where} must be some text, not {row["prompt"]!r}')
        return str(row["prompt"])
    return _messages(row["messages"], where)


def _messages(messages: Any, where: str) -> Messages:
    if not isinstance(messages, Sequence) or isinstance(messages, str) or not messages:
        raise UsageError(f'"messages" in {where} must be a list of messages that is not empty')
    for message in messages:
        if not isinstance(message, dict) or not all(isinstance(message.get(key), str) for key in ("role", "content")):
            raise UsageError(f'each of the messages in {where} must have "role" and "content", both text')
    return list(messages)


def _with_system(system: str, prompt: Prompt) -> Messages:
    messages = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
    return [{"role": "system", "content": system}, *messages]
