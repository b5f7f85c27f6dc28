"""Chat messages as OpenAI's clients send them, in the form that chat templates read."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from outlay.errors import UsageError

Message = Mapping[str, Any]
IMAGE_PARTS = ("image", "image_url", "input_image")
TEXT_PARTS = {"text": "text", "input_text": "text", "output_text": "text", "refusal": "refusal"}
MAY_BE_SILENT = ("assistant", "tool", "function", "ipython")  # roles whose content may be null


def conversation(messages: Sequence[Message]) -> list[dict[str, Any]]:
    """Returns messages whose contents are strings and whose tool calls have their arguments as mappings.

    Parts of text are joined, a line each. Null content is "". The content of a message with images is a list of parts,
    `{"type": "text", "text": ...}` or `{"type": "image"}`, the latter with the image under "image" where the message
    has it. A tool's result gets the name of the function that was called. Other entries stay as they are.

    Raises:
        UsageError: if a message has no role or no content, or has a part that is neither text nor an image, or calls
            a tool in a form that can't be read.
    """
    names: dict[str, str] = {}
    return [_message(message, f"message {number}", names) for number, message in enumerate(messages, 1)]


def with_written_arguments(messages: Sequence[Message]) -> list[dict[str, Any]]:
    """Returns the messages with the arguments of their tool calls as JSON, which some templates expect."""
    return [{**message, **_written_calls(message)} if message.get("tool_calls") else dict(message)
            for message in messages]  # fmt: skip


def _message(message: Any, where: str, names: dict[str, str]) -> dict[str, Any]:
    """Returns one message; `names` holds the function of each call so far by the call's id."""
    if not isinstance(message, Mapping) or not isinstance(message.get("role"), str):
        raise UsageError(f"a chat message is a mapping with 'role' and 'content', not {message!r:.60}")
    read = dict(message)
    read["content"] = _content(message, where)
    if message.get("tool_calls"):
        read["tool_calls"] = list(_calls(message["tool_calls"], where))
        names.update((call["id"], call["function"]["name"]) for call in read["tool_calls"] if "id" in call)
    elif "tool_calls" in read:
        del read["tool_calls"]
    called = names.get(message.get("tool_call_id") or "")
    if called is not None:
        read.setdefault("name", called)
    return read


def _content(message: Message, where: str) -> str | list[dict[str, Any]]:
    content = message.get("content")
    if content is None:
        if message["role"] not in MAY_BE_SILENT:
            raise UsageError(f"{where} ({message['role']}) has no content; give it some text")
        return ""
    if isinstance(content, str):
        return content
    if not isinstance(content, Sequence):
        raise UsageError(f"the content of {where} must be text or a list of parts, not {content!r:.60}")
    parts = [_part(part, where) for part in content]
    if all(part["type"] == "text" for part in parts):
        return "\n".join(part["text"] for part in parts)
    return parts


def _part(part: Any, where: str) -> dict[str, Any]:
    if isinstance(part, str):
        return {"type": "text", "text": part}
    kind = part.get("type") if isinstance(part, Mapping) else None
    if not isinstance(kind, str):
        raise UsageError(f"a part of {where} must be a mapping with 'type', not {part!r:.60}")
    if kind in IMAGE_PARTS:
        return _image(part, where)
    if kind not in TEXT_PARTS:
        raise UsageError(f"{where} has a part of type {kind!r}, but outlay reads text and images alone")
    text = part.get(TEXT_PARTS[kind])
    if not isinstance(text, str):
        raise UsageError(f"a {kind!r} part of {where} must have its text under {TEXT_PARTS[kind]!r}")
    return {"type": "text", "text": text}


def _image(part: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Returns an image part, with the image under "image" where the part has it and doesn't only say its place."""
    url = part.get("image_url", part.get("url"))
    if isinstance(url, Mapping):
        url = url.get("url")
    if url is None and part["type"] != "image":
        raise UsageError(f"an {part['type']!r} part of {where} must have its URL under 'image_url'")
    if url is not None:
        return {"type": "image", "image": of_data_url(url, where)}
    if (encoded := part.get("base64")) is not None:
        return {"type": "image", "image": _of_base64(encoded, where)}
    found = part.get("image", part.get("path"))
    return {"type": "image"} if found is None else {"type": "image", "image": found}


def of_data_url(url: Any, where: str) -> bytes:
    """Returns what a data: URL holds.

    Raises:
        UsageError: For any other URL: nothing is fetched, and no file opened by one.
    """
    head, comma, data = url.partition(",") if isinstance(url, str) else ("", "", "")
    if not head.lower().startswith("data:") or not comma:
        raise UsageError(f"an image of {where} is not a data: URL, the only one that outlay reads; it fetches nothing")
    if not head.lower().endswith(";base64"):
        raise UsageError(f"the data: URL of an image of {where} must be in base64, as in data:image/png;base64,...")
    return _of_base64(data, where)


def _of_base64(data: Any, where: str) -> bytes:
    try:
        return base64.b64decode(data, validate=True)
    except (ValueError, TypeError) as error:
        raise UsageError(f"an image of {where} is not base64: {error}") from None


def _calls(calls: Any, where: str) -> Iterator[dict[str, Any]]:
    """Yields tool calls with their arguments as mappings."""
    for call in calls if isinstance(calls, Sequence) and not isinstance(calls, str) else [calls]:
        function = call.get("function") if isinstance(call, Mapping) else None
        if not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
            raise UsageError(f"a tool call of {where} must have a 'function' with 'name' and 'arguments'")
        arguments = function.get("arguments") or {}
        if isinstance(arguments, str):
            try:
                arguments = json.loads(arguments)
            except json.JSONDecodeError as error:
                raise UsageError(
                    f"the arguments of the call of {function['name']!r} in {where} are not JSON: {error}"
                ) from None
        yield {**call, "type": call.get("type", "function"), "function": {**function, "arguments": arguments}}


def _written_calls(message: Message) -> dict[str, Any]:
    calls = []
    for call in message["tool_calls"]:
        written = json.dumps(call["function"]["arguments"], ensure_ascii=False)
        calls.append({**call, "function": {**call["function"], "arguments": written}})
    return {"tool_calls": calls}
