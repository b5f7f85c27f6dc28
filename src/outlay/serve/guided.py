"""What a request says of the form of its answer: `response_format`, a tool that must be called, and `constraint`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from outlay.constrain import Choice, Constraint, Grammar, Json, JsonSchema, Regex
from outlay.errors import UsageError
from outlay.serve.errors import ApiError
from outlay.serve.fields import ConstraintField, JsonObjectFormat, JsonSchemaFormat, TextFormat
from outlay.serve.tools import Form

ANY_OBJECT = {"type": "object"}


def answer_constraint(
    response_format: TextFormat | JsonObjectFormat | JsonSchemaFormat | None,
    constraint: ConstraintField | None,
    param: str = "response_format",
) -> Constraint | None:
    """Returns what the answer must satisfy; None where it is free.

    Args:
        response_format: OpenAI's field.
        constraint: Our own.
        param: The name of OpenAI's field at this endpoint.

    Raises:
        ApiError: For a schema, a pattern or a grammar that can't be used.
    """
    if constraint is not None:
        if response_format is not None and not isinstance(response_format, TextFormat):
            raise ApiError(400, f"constraint and {param} can't be used together", param="constraint")
        return _made("constraint", lambda: _own(constraint))
    if isinstance(response_format, JsonObjectFormat):
        return JsonSchema(ANY_OBJECT)
    if isinstance(response_format, JsonSchemaFormat):
        schema = response_format.schema_
        if schema is None:
            raise ApiError(400, "a format of type json_schema needs a schema", param=param)
        return _made(param, lambda: JsonSchema(schema))
    return None


def call_constraint(form: Form, tools: Sequence[Mapping[str, Any]], name: str | None, one_call: bool) -> Constraint:
    """Returns what an answer must be that calls a tool, behind what opens calls.

    Args:
        form: How the model writes calls.
        tools: The tools as chat templates take them.
        name: The function that must be called; None for any of them.
        one_call: Whether the answer holds one call alone, where the form has room for several.

    Raises:
        ApiError: For a function that is not among the tools, and for parameters that are no JSON schema.
    """
    functions = [tool["function"] for tool in tools]
    if not functions:
        raise ApiError(400, "tool_choice asks for a call, but there are no tools", param="tool_choice")
    if name is not None:
        functions = [function for function in functions if function["name"] == name]
    if not functions:
        raise ApiError(400, f"tool_choice names {name!r}, which is not among the tools", param="tool_choice")
    base = "#/items" if form.listed else "#"
    calls = {"anyOf": [_call(form, function, f"{base}/anyOf/{index}") for index, function in enumerate(functions)]}
    schema: dict[str, Any] = calls
    if form.listed:
        schema = {"type": "array", "items": calls, "minItems": 1} | ({"maxItems": 1} if one_call else {})
    return _made("tools", lambda: JsonSchema(schema))


def _call(form: Form, function: Mapping[str, Any], place: str) -> dict[str, Any]:
    """Returns the schema of a call of one function, which stands at `place` of the whole schema."""
    parameters = _moved(function.get("parameters") or ANY_OBJECT, f"{place}/properties/{form.arguments}")
    return {
        "type": "object",
        "properties": {"name": {"const": function["name"]}, form.arguments: parameters},
        "required": ["name", form.arguments],
        "additionalProperties": False,
    }


def _moved(schema: Any, place: str) -> Any:
    """Returns a schema whose references to itself (`#/$defs/...`) hold at another place of a larger schema."""
    if isinstance(schema, list):
        return [_moved(each, place) for each in schema]
    if not isinstance(schema, dict):
        return schema
    moved = {key: _moved(value, place) for key, value in schema.items()}
    target = moved.get("$ref")
    if isinstance(target, str) and target.startswith("#"):
        moved["$ref"] = place + target[1:]
    return moved


def _own(given: ConstraintField) -> Constraint:
    if given.regex is not None:
        return Regex(given.regex)
    if given.grammar is not None:
        return Grammar(given.grammar)
    if given.choice is not None:
        return Choice(*given.choice)
    return Json() if given.json_schema is None else JsonSchema(given.json_schema)


def _made(param: str, make: Any) -> Constraint:
    try:
        constraint: Constraint = make()
    except UsageError as error:
        raise ApiError(400, str(error), param=param, code="invalid_value") from None
    return constraint
