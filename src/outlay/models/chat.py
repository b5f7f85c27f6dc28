"""Chat templates: jinja2 in a sandbox, with what `transformers` gives to the templates that models ship.

What a template renders knows which of its characters come from the messages (`outlay.models.content`), so that a
control token that somebody spells out in a message stays text.
"""

from __future__ import annotations

import functools
import json
import secrets
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any, NoReturn

from jinja2 import TemplateError, meta, nodes, pass_environment
from jinja2.compiler import CodeGenerator, Frame
from jinja2.environment import Environment
from jinja2.filters import make_attrgetter
from jinja2.runtime import Context, LoopContext, Macro
from jinja2.sandbox import ImmutableSandboxedEnvironment

from outlay.errors import UsageError, nearest
from outlay.messages import Message, conversation, with_written_arguments
from outlay.models.content import Content, holds_content, join, marked, replace

Tools = Sequence[Mapping[str, Any]]
ROLES = ("system", "developer", "user", "assistant", "tool")
SPOKEN = ("system", "user", "assistant")  # roles that a template may know without naming them
_PROBE = "8128496"  # no template changes digits
_OWN = {"messages", "tools", "add_generation_prompt"}  # variables that have an argument of their own
# Filters that return what they are given, or that cut it with the methods of `Content` alone.
_KEEPING = {"default", "d", "first", "last", "min", "max", "random", "attr", "string", "trim", "lower", "upper"}


class ChatTemplate:
    """A model's chat template."""

    def __init__(self, source: str, special_tokens: Mapping[str, str]) -> None:
        self.source, self.special_tokens = source, dict(special_tokens)
        environment = _environment()
        try:
            parsed = environment.parse(_without_generation_marks(source))
            self.template = environment.from_string(parsed)
        except TemplateError as error:
            raise UsageError(f"the model's chat template is not valid: {_one_line(error)}") from None
        self._words = {str(node.value) for node in parsed.find_all(nodes.Const)}
        self._words.update(node.attr for node in parsed.find_all(nodes.Getattr))
        given = {*environment.globals, *self.special_tokens}
        self._variables = meta.find_undeclared_variables(parsed) - given
        self._known_roles: dict[str, bool] = {}
        self._needs_parts = False
        text = {"role": "user", "content": _PROBE}
        if not self._prints([text]) and self._prints([{**text, "content": _as_parts(_PROBE)}]):
            self._needs_parts = True  # it reads contents as lists of parts alone

    @property
    def switches(self) -> list[str]:
        """The template's own variables, such as `enable_thinking`."""
        return sorted(self._variables - _OWN)

    def render(
        self,
        messages: Sequence[Message],
        add_generation_prompt: bool = True,
        *,
        tools: Tools | None = None,
        switches: Mapping[str, Any] | None = None,
        continue_final_message: bool = False,
    ) -> str:
        """Returns a conversation as text in the form that the model was trained on.

        Args:
            messages: mappings with "role" and "content", and whatever else OpenAI's clients send.
            add_generation_prompt: whether the text ends where the model's reply begins.
            tools: the functions that the model may call, each a mapping as OpenAI's clients send it.
            switches: values of the template's own variables.
            continue_final_message: whether the text ends inside the last message, which is the model's.

        Returns:
            The text; a `Content` whose marks tell what the messages, the tools and the switches wrote.

        Raises:
            UsageError: if the template does not know a role, tools or a switch, or refuses the messages.
        """
        read = [self._with_known_role(message) for message in conversation(messages)]
        if self._needs_parts:
            read = [{**message, "content": _as_parts(message["content"])} for message in read]
        self._check(read, tools, switches or {})
        end = secrets.token_hex(8)  # marks where the last message ends, whatever the template writes after it
        if continue_final_message:
            if read[-1]["role"] != "assistant" or read[-1].get("tool_calls"):
                raise UsageError("only a text of the assistant can be continued; let it be the last message")
            said = read[-1]["content"]
            if isinstance(said, str):
                read[-1]["content"] = said + end
            else:
                read[-1]["content"] = [*said[:-1], {**said[-1], "text": said[-1].get("text", "") + end}]
        context = {
            "documents": None,
            **{name: marked(value) for name, value in (switches or {}).items()},
            "messages": [_marked(message) for message in read],
            "add_generation_prompt": add_generation_prompt and not continue_final_message,
            "tools": marked(tools) if tools else None,
        }
        text = self._rendered(context)
        if not continue_final_message:
            return text
        at = text.rfind(end)
        if at < 0:
            raise UsageError("the model's chat template leaves the last message out, so it can't be continued")
        return text[:at]

    def knows(self, role: str) -> bool:
        """Tells whether the template writes messages of a role and is meant for it, as far as its text tells."""
        if role not in self._known_roles:
            meant = role in SPOKEN or role in self._words or (role == "tool" and "tools" in self._variables)
            # A role is not marked as content, so it has to be a name: a template has other words, control tokens too.
            self._known_roles[role] = meant and role.isidentifier() and self._writes(role)
        return self._known_roles[role]

    def _with_known_role(self, message: dict[str, Any]) -> dict[str, Any]:
        role = message["role"]
        if self.knows(role):
            return message
        if role == "developer" and self.knows("system"):  # OpenAI's later name of the same
            return {**message, "role": "system"}
        known = [name for name in ROLES if self.knows(name)]
        raise UsageError(
            f"the model's chat template does not know the role {role!r}{nearest(role, known)}; "
            f"it knows {', '.join(known)}"
        )

    def _check(self, messages: Sequence[Message], tools: Tools | None, switches: Mapping[str, Any]) -> None:
        if tools and "tools" not in self._variables:
            raise UsageError(
                "the model's chat template has no place for tools; leave them out, or describe them in text"
            )
        if "tool_calls" not in self._words and any(message.get("tool_calls") for message in messages):
            raise UsageError("the model's chat template does not write tool calls; give them as text")
        strange = next((name for name in switches if name not in self.switches), None)
        if strange is not None:
            known = ", ".join(self.switches) or "none"
            raise UsageError(
                f"the model's chat template has no switch {strange!r}{nearest(strange, self.switches)}; it has {known}"
            )

    def _writes(self, role: str) -> bool:
        """Tells whether what a message of this role says is written in a conversation where it may stand."""
        said: dict[str, Any] = {"role": role, "content": _as_parts(_PROBE) if self._needs_parts else _PROBE}
        asked = _as_parts("?") if self._needs_parts else "?"
        question, call = {"role": "user", "content": asked}, {"name": "f", "arguments": {}}
        messages = [question, said]
        if role == "user":
            messages = [said]
        elif role in ("system", "developer"):
            messages = [said, question]
        elif role != "assistant":
            calls = [{"id": "000000000", "type": "function", "function": call}]
            asks = {"role": "assistant", "content": "", "tool_calls": calls}
            messages = [question, asks, {**said, "tool_call_id": "000000000", "name": "f"}]
        try:
            return _PROBE in self._rendered(
                {"messages": messages, "add_generation_prompt": True, "tools": None, "documents": None}
            )
        except UsageError:
            return True  # what is wrong with it is said where a conversation is refused

    def _prints(self, messages: Sequence[Message]) -> bool:
        """Tells whether messages are rendered, and what they say with them."""
        try:
            return _PROBE in self._rendered(
                {"messages": messages, "add_generation_prompt": True, "tools": None, "documents": None}
            )
        except UsageError:
            return False

    def _rendered(self, context: Mapping[str, Any]) -> str:
        try:
            try:
                return self.template.render(**context, **self.special_tokens)
            except TypeError:
                if not any(message.get("tool_calls") for message in context["messages"]):
                    raise
                messages = [_marked(message) for message in with_written_arguments(context["messages"])]
                return self.template.render(**{**context, "messages": messages}, **self.special_tokens)
        except TemplateError as error:
            raise UsageError(f"the model's chat template refuses these messages: {_one_line(error)}") from None
        except (TypeError, KeyError, ValueError, AttributeError) as error:
            raise UsageError(f"the model's chat template fails on these messages: {_one_line(error)}") from None


class _ContentGenerator(CodeGenerator):
    """Compiles `~` to the environment's `concat`, which keeps the marks of content."""

    def visit_Concat(self, node: nodes.Concat, frame: Frame) -> None:
        self.write("concat(map(str, (")
        for part in node.nodes:
            self.visit(part, frame)
            self.write(", ")
        self.write(")))")


class _ContentEnvironment(ImmutableSandboxedEnvironment):
    """A sandbox in which texts keep the marks of content."""

    code_generator_class = _ContentGenerator

    @staticmethod
    def concat(parts: Iterable[str]) -> str:
        return str(join("", parts))

    def call(self, context: Context, obj: Any, /, *args: Any, **options: Any) -> Any:
        owner = getattr(obj, "__self__", None)
        if isinstance(owner, str) and obj.__name__ == "join" and args:
            return join(owner, args[0])
        result = super().call(context, obj, *args, **options)
        kept = isinstance(result, Content) or isinstance(obj, Macro | LoopContext)
        return result if kept or not isinstance(result, str) or not holds_content((args, options)) else Content(result)


def _environment() -> _ContentEnvironment:
    environment = _ContentEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"])
    environment.filters["tojson"] = _to_json
    environment.filters = {
        name: filter if name in _KEEPING else _as_a_whole(filter) for name, filter in environment.filters.items()
    }
    environment.filters["join"], environment.filters["replace"] = _join, _replace
    environment.globals["raise_exception"] = _raise
    environment.globals["strftime_now"] = lambda form: datetime.now().strftime(form)
    return environment


def _as_a_whole(filter: Callable[..., Any]) -> Callable[..., Any]:
    """Returns a filter whose text is content as a whole, if any of what it is given is."""

    @functools.wraps(filter)
    def marking(*args: Any, **options: Any) -> Any:
        result = filter(*args, **options)
        return Content(result) if isinstance(result, str) and holds_content((args, options)) else result

    return marking


@pass_environment
def _join(environment: Environment, parts: Iterable[Any], separator: str = "", attribute: Any = None) -> str:
    if attribute is not None:
        parts = map(make_attrgetter(environment, attribute), parts)
    return str(join(str(separator), map(str, parts)))


def _replace(text: Any, old: Any, new: Any, count: int | None = None) -> str:
    return replace(str(text), str(old), str(new), -1 if count is None else count)


def _as_parts(content: str | list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Returns a message's content as a list of parts."""
    return [{"type": "text", "text": content}] if isinstance(content, str) else content


def _marked(message: Message) -> dict[str, Any]:
    """Returns a message whose strings are content, but for its role: that is one that the template knows."""
    return {marked(key): value if key == "role" else marked(value) for key, value in message.items()}


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
