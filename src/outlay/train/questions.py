"""Prompts without a data set: the model is asked for them, and Python's own library gives code and text.

A chat model continues the beginning of a conversation, up to the user's first word, with a user's prompt of the kinds
that it was tuned on (Magpie, Xu et al. 2024, section 2.1). Functions of the standard library are given up to the end of
their docstrings, to be completed. Its documentation is given to be summarised.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator, Sequence
from functools import cache

from outlay.engine.random import mix
from outlay.lm import LM
from outlay.models.tokenizer import Tokenizer
from outlay.python_sources import library_files

MARK = "\x1fprompt\x1f"
LONGEST = 160  # tokens of a prompt that the model writes, at most
KINDS = ("question",) * 5 + ("question of a text",) * 1 + ("function",) * 2 + ("summary",) * 2  # in these shares
# System messages of the kind that chat models are tuned on: after them they write a user's message with a text in it.
TASKS = (
    "You extract and summarize key information from texts. Provide a concise, objective summary of the input text.",
    "You're an AI assistant for text re-writing. Rewrite the input text to make it more professional and formal.",
)
ASKED = (
    "Summarize the following text:\n\n{text}",
    "{text}\n\nSummarize the text above in a few sentences.",
    "Here is a passage:\n\n{text}\n\nExplain what it says, quoting its most important sentences.",
)


def questions(lm: LM, indices: Sequence[int], seed: int) -> list[list[int]]:
    """Returns the token ids of a prompt for each index.

    Args:
        lm: The model that the prompts are for. Without a chat template it gets the first words of texts.
        indices: Numbers of the prompts. The same seed and index give the same prompt.
        seed: Seed of all draws.
    """
    tokenizer = lm.model.tokenizer
    if not tokenizer.has_chat_template:
        return _beginnings(lm, indices, seed)
    prompts: dict[int, list[int]] = {}
    open_turns: dict[int, str | None] = {}
    for index in indices:
        kind, draw = KINDS[mix(seed, index) % len(KINDS)], mix(seed, index, 1)
        if kind == "function":
            functions = library_functions()
            prompts[index] = lm.encode(functions[draw % len(functions)])
        elif kind == "summary":
            texts = library_texts()
            asked = ASKED[draw % len(ASKED)].format(text=texts[draw // 8 % len(texts)])
            prompts[index] = lm.encode(asked)
        else:
            open_turns[index] = None if kind == "question" else TASKS[draw % len(TASKS)]
    written = _written_by_the_model(lm, open_turns, seed)
    return [prompts[index] if index in prompts else written[index] for index in indices]


def _written_by_the_model(lm: LM, systems: dict[int, str | None], seed: int) -> dict[int, list[int]]:
    """Has the model write the user's turn after each system message (None: the template's own)."""
    tokenizer = lm.model.tokenizer
    with lm.engine.together():
        handles = {
            index: lm.submit(
                open_turn(tokenizer, system),
                method="sample",
                temperature=1.0,
                top_p=0.95,
                max_tokens=LONGEST if system is None else 2 * LONGEST,
                seed=mix(seed, index, 2),
            )
            for index, system in systems.items()
        }
    written = {}
    for index, handle in handles.items():
        text = handle.result().text.strip() or "Hello!"
        system = systems[index]
        first = [] if system is None else [{"role": "system", "content": system}]
        written[index] = tokenizer.render_chat([*first, {"role": "user", "content": text}])
    return written


def open_turn(tokenizer: Tokenizer, system: str | None = None) -> list[int]:
    """Returns the token ids of a conversation up to where the user's first word would stand."""
    assert tokenizer.template is not None
    messages = [{"role": "user", "content": MARK}]
    if system is not None:
        messages.insert(0, {"role": "system", "content": system})
    before, _, _ = tokenizer.template.render(messages).partition(MARK)
    return tokenizer.encode(before, special=True)


def _beginnings(lm: LM, indices: Sequence[int], seed: int) -> list[list[int]]:
    """For models without a chat template: the first words of texts."""
    texts = [*library_texts(), *library_functions()]
    tokenizer = lm.model.tokenizer
    return [tokenizer.encode_prompt(texts[mix(seed, index) % len(texts)])[:24] for index in indices]


def library_functions() -> tuple[str, ...]:
    """Returns functions of the standard library up to the end of their docstrings, in a fixed order."""
    return _library()[0]


def library_texts() -> tuple[str, ...]:
    """Returns docstrings of the standard library that are texts of some length, in a fixed order."""
    return _library()[1]


@cache
def _library() -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Reads every file once, for functions and for texts."""
    functions: list[str] = []
    texts: list[str] = []
    for path in library_files():
        try:
            source = path.read_text(encoding="utf-8")
            tree = ast.parse(source)
        except (OSError, UnicodeDecodeError, SyntaxError):
            continue
        functions += (text for text in _functions(source, tree) if 80 <= len(text) <= 900)
        texts += (text for text in _docstrings(tree) if 400 <= len(text) <= 1600 and ">>>" not in text)
    return tuple(functions), tuple(texts)


def _functions(source: str, tree: ast.Module) -> Iterator[str]:
    lines = source.splitlines()
    for node in tree.body:
        if isinstance(node, ast.FunctionDef) and ast.get_docstring(node):
            end = node.body[0].end_lineno or node.lineno
            yield "\n".join(lines[node.lineno - 1 : end]) + "\n"


def _docstrings(tree: ast.Module) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and (text := ast.get_docstring(node)):
            yield text
