"""Where prompts come from: the command line, a file or standard input; whole, a line each, or JSON lines."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from outlay.errors import UsageError
from outlay.prompt_tree import PromptTree
from outlay.prompts import (
    Prompt,
    check_tools,
    constraint_of_row,
    decode,
    encoding_of,
    numbered_lines,
    prompt_of,
    read_row,
    scorer_of,
    with_system,
)

Read = tuple[Prompt, dict[str, Any]]  # a prompt, and the options of `LM.submit` that its line gives
Asked = tuple[Prompt | PromptTree, dict[str, Any]]  # the same, where the prompt may be a tree of them all


def read_prompts(
    text: str | None,
    file: str | None,
    *,
    lines: bool = False,
    system: str | None = None,
    prefix_file: str | None = None,
) -> list[Read]:
    """Returns the prompts that the user gave. Raises `UsageError` where there is none.

    `text` is from the command line, `file` names a file; "-" for either means standard input, and so does neither,
    unless that is a terminal. `lines` makes a prompt of every line. What `prefix_file` holds is put before each with an
    empty line between, and `system` before that.
    """
    if text is not None and file is not None:
        raise UsageError("give a prompt or --file, not both")
    whole, where = _read(text, file)
    prompts: list[Read] = _split(whole, where) if lines else [(whole, {})]
    if not any(isinstance(prompt, list) or prompt.strip() for prompt, _ in prompts):
        raise UsageError(f"the prompt is empty{f' ({where})' if where else ''}; give it some text")
    if prefix_file is not None:
        prefix, _ = _read(None, prefix_file)
        prompts = [(_after(prefix, prompt, prefix_file), options) for prompt, options in prompts]
    return prompts if system is None else [(with_system(system, prompt), options) for prompt, options in prompts]


def tree_of(prompts: Sequence[Read]) -> tuple[PromptTree, dict[str, Any]]:
    """Returns all prompts as the leaves of a tree, and the options that each of their lines gives.

    Raises:
        UsageError: Where the lines don't give the same.
    """
    if any(options != prompts[0][1] for _, options in prompts):
        raise UsageError('prompts that are decoded as one tree have the same "tools" and "chat_template_kwargs"')
    return PromptTree(None, [prompt for prompt, _ in prompts]), prompts[0][1]


def _after(prefix: str, prompt: Prompt, file: str) -> Prompt:
    """Returns a prompt with a text before it."""
    if not isinstance(prompt, str):
        raise UsageError(f"--prefix-file {file} goes before prompts that are text; put it into the messages")
    (whole,) = PromptTree(prefix, [prompt]).leaves()
    assert isinstance(whole, str)
    return whole


def read_tools(file: str) -> list[dict[str, Any]]:
    """Returns the functions in a JSON file. Raises `UsageError` where it can't be read as a list of them."""
    text, _ = _read(None, file)
    try:
        tools = json.loads(text)
    except json.JSONDecodeError as error:
        raise UsageError(f"{file} is not JSON: {error}") from error
    check_tools(tools, file)
    return list(tools)


def read_switches(words: Sequence[str]) -> dict[str, Any]:
    """Returns the values of switches written as KEY=VALUE; a value is JSON if it can be read as such, else text."""
    switches = {}
    for word in words:
        name, found, value = word.partition("=")
        if not found or not name:
            raise UsageError(f"--template is written as KEY=VALUE, such as enable_thinking=false, not {word!r}")
        try:
            switches[name] = json.loads(value)
        except json.JSONDecodeError:
            switches[name] = value
    return switches


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


def _split(text: str, where: str) -> list[Read]:
    """Returns a prompt for each line that is not blank; JSON objects if the first of them is one."""
    rows = numbered_lines(text)
    if not rows or not rows[0][1].lstrip().startswith("{"):
        return [(line.removesuffix("\r"), {}) for _, line in rows]
    return [_from_json(line, f"line {number} of {where or 'the prompt'}") for number, line in rows]


def _from_json(line: str, where: str) -> Read:
    row = read_row(line, where)
    scorer = scorer_of(row, where)
    own = constraint_of_row(row, where) | ({} if scorer is None else {"scorer": scorer})
    return prompt_of(row, where), encoding_of(row, where) | own
