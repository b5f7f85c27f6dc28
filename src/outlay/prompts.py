"""Reads prompts from files: plain lines, or JSON lines with "prompt" or "messages", and with "tools" if need be."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from outlay.errors import UsageError
from outlay.messages import conversation

Messages = list[dict[str, Any]]
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


def encoding_of(row: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Returns the options of `LM.encode` that a row has: "tools", and its "chat_template_kwargs" as `template`.

    Raises:
        UsageError: If they are not a list and an object.
    """
    tools, switches = row.get("tools") or [], row.get("chat_template_kwargs") or {}
    check_tools(tools, f'"tools" in {where}')
    if not isinstance(switches, dict):
        raise UsageError(f'"chat_template_kwargs" in {where} must be an object, not {switches!r:.60}')
    return {name: value for name, value in (("tools", tools), ("template", switches)) if value}


def check_tools(tools: Any, where: str) -> None:
    """Raises `UsageError`, which begins with `where`, unless `tools` is a list of objects."""
    if not isinstance(tools, list) or not all(isinstance(tool, dict) for tool in tools):
        raise UsageError(f"{where} must be a list of functions, each an object, as OpenAI's clients send them")


def _messages(messages: Any, where: str) -> Messages:
    if not isinstance(messages, Sequence) or isinstance(messages, str) or not messages:
        raise UsageError(f'"messages" in {where} must be a list of messages that is not empty')
    try:
        return conversation(messages)
    except UsageError as error:
        raise UsageError(f'"messages" in {where}: {error}') from error
