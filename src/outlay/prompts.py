"""Reads prompts from files: plain lines, or JSON lines with "prompt" or "messages"."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from outlay.errors import UsageError

Messages = list[dict[str, str]]
Prompt = str | Messages


def decode(content: bytes, where: str) -> str:
    """Decodes UTF-8. Raises `UsageError`, which begins with `where`, for anything else."""
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError as error:
        raise UsageError(f"{where} is not UTF-8 text (byte {error.start})") from error


def numbered_lines(text: str) -> list[tuple[int, str]]:
    """Returns the lines that are not blank, each with its number from 1 on."""
    return [(number, line) for number, line in enumerate(text.split("\n"), 1) if line.strip()]


def read_row(line: str, where: str) -> dict[str, Any]:
    """Returns the JSON object of a line. Raises `UsageError` unless it has either "prompt" or "messages"."""
    try:
        row = json.loads(line)
    except json.JSONDecodeError as error:
        raise UsageError(f"{where} is not JSON: {error}") from error
    if not isinstance(row, dict) or len(row.keys() & {"prompt", "messages"}) != 1:
        raise UsageError(f'{where} must be a JSON object with "prompt" or "messages"')
    return row


def prompt_of(row: Mapping[str, Any], where: str) -> Prompt:
    """Returns the prompt of a row. Raises `UsageError` if it is neither text nor messages."""
    if "prompt" in row:
        if not isinstance(row["prompt"], str) or not row["prompt"].strip():
            raise UsageError(f'"prompt" in {where} must be some text, not {row["prompt"]!r}')
        return str(row["prompt"])
    return _messages(row["messages"], where)


def with_system(system: str, prompt: Prompt) -> Messages:
    """Returns the prompt as messages, after a system message."""
    messages = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
    return [{"role": "system", "content": system}, *messages]


def _messages(messages: Any, where: str) -> Messages:
    if not isinstance(messages, Sequence) or isinstance(messages, str) or not messages:
        raise UsageError(f'"messages" in {where} must be a list of messages that is not empty')
    for message in messages:
        if not isinstance(message, dict) or not all(isinstance(message.get(key), str) for key in ("role", "content")):
            raise UsageError(f'each of the messages in {where} must have "role" and "content", both text')
    return list(messages)
