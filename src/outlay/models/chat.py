"""Chat templates: jinja2 in a sandbox, with what `transformers` gives to the templates that models ship."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, NoReturn

from jinja2 import TemplateError
from jinja2.sandbox import ImmutableSandboxedEnvironment

from outlay.errors import UsageError

Message = Mapping[str, Any]


class ChatTemplate:
    """A model's chat template."""

    def __init__(self, source: str, special_tokens: Mapping[str, str]) -> None:
        self.source, self.special_tokens = source, dict(special_tokens)
        environment = ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
        )
        environment.filters["tojson"] = _to_json
        environment.globals["raise_exception"] = _raise
        environment.globals["strftime_now"] = lambda form: datetime.now().strftime(form)
        try:
            self.template = environment.from_string(_without_generation_marks(source))
        except TemplateError as error:
            raise UsageError(f"the model's chat template is not valid: {_one_line(error)}") from None

    def render(self, messages: Sequence[Message], add_generation_prompt: bool = True) -> str:
        """Returns a conversation as text in the form that the model was trained on.

        Args:
            messages: mappings with "role" and "content".
            add_generation_prompt: whether the text ends where the model's reply begins.

        Raises:
            UsageError: if a message has no role, or the template refuses the messages.
        """
        for message in messages:
            if not isinstance(message, Mapping) or "role" not in message:
                raise UsageError(f"a chat message is a mapping with 'role' and 'content', not {message!r:.60}")
        context = {
            "messages": messages,
            "add_generation_prompt": add_generation_prompt,
            "tools": None,
            "documents": None,
        }
        try:
            return self.template.render(**context, **self.special_tokens)
        except TemplateError as error:
            raise UsageError(f"the model's chat template refuses these messages: {_one_line(error)}") from None
        except (TypeError, KeyError, ValueError, AttributeError) as error:
            raise UsageError(f"the model's chat template fails on these messages: {_one_line(error)}") from None


def template_source(entry: Any) -> str | None:
    """Returns the default template of a `chat_template` entry: a string, or a list of named ones."""
    if isinstance(entry, list):
        named = {item["name"]: item["template"] for item in entry}
        return named.get("default") or next(iter(named.values()), None)
    return entry if isinstance(entry, str) else None


def _without_generation_marks(source: str) -> str:
    """Replaces the tag that marks the model's own words for training, which jinja2 does not know."""
    for mark in ("generation", "endgeneration"):
        for opening in ("{%-", "{%"):
            for closing in ("-%}", "%}"):
                source = source.replace(
                    f"{opening} {mark} {closing}",
                    f"{opening} if true {closing}" if mark[0] == "g" else f"{opening} endif {closing}",
                )
    return source


def _to_json(value: Any, ensure_ascii: bool = False, indent: int | None = None, **options: Any) -> str:
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, **options)


def _raise(message: str) -> NoReturn:
    raise TemplateError(message)


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())
