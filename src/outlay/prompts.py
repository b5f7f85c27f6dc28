"""Reads prompts from files: plain lines, or JSON lines with "prompt" or "messages", and "tools" or "images" if any."""

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
    """Returns the options that a row has: "tools", its "chat_template_kwargs" as `template`, and "images".

    Raises:
        UsageError: If they are not a list, an object and a list of files.
    """
    tools, switches = row.get("tools") or [], row.get("chat_template_kwargs") or {}
    check_tools(tools, f'"tools" in {where}')
    if not isinstance(switches, dict):
        raise UsageError(f'"chat_template_kwargs" in {where} must be an object, not {switches!r:.60}')
    images = row.get("images") or []
    if not isinstance(images, list) or not all(isinstance(image, str) and image for image in images):
        raise UsageError(f'"images" in {where} must be a list of files, not {images!r:.60}')
    return {name: value for name, value in (("tools", tools), ("template", switches), ("images", images)) if value}


def constraint_of_row(row: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Returns the constraint that a row has, as an option of `LM.submit`: a name, or an object, a JSON Schema."""
    given = row.get("constraint")
    if given is not None and not isinstance(given, str | dict):
        raise UsageError(f'"constraint" in {where} must be a name or a JSON schema, not {given!r:.60}')
    return {} if given is None else {"constraint": given}


def scorer_of(row: Mapping[str, Any], where: str) -> str | None:
    """Returns the "scorer" of a row, by which its own texts are rated. Raises `UsageError` if it is no name."""
    scorer = row.get("scorer")
    if scorer is not None and (not isinstance(scorer, str) or not scorer):
        raise UsageError(f'"scorer" in {where} must be a name, such as self or python:FILE, not {scorer!r:.60}')
    return scorer


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
