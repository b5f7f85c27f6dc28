"""From the fields of a request to what it asks of the engine."""

from __future__ import annotations

import secrets
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from outlay.budget import Budget
from outlay.constrain import Constraint
from outlay.errors import UsageError
from outlay.lm import LM, question_of
from outlay.messages import conversation
from outlay.models.reasoning import thinks_already
from outlay.pictures import read_picture
from outlay.serve.asked import Asked
from outlay.serve.errors import ApiError
from outlay.serve.fields import (
    ChatRequest,
    CompletionRequest,
    NamedResponseTool,
    NamedTool,
    ResponseItem,
    ResponseRequest,
    Sampled,
)
from outlay.serve.generation import SEEDS
from outlay.serve.guided import answer_constraint, call_constraint
from outlay.serve.hosted import Hosted, Models
from outlay.serve.settings import Settings
from outlay.serve.tools import FORMS

COMPLETION_TOKENS = 16  # new tokens of `/v1/completions` where the request doesn't say, as at OpenAI
LARGEST_IMAGE = 1 << 25  # pixels, of which each takes 3 bytes while it is read
PENALTIES = ("presence_penalty", "frequency_penalty", "repetition_penalty")


def ask_chat(request: ChatRequest, models: Models, settings: Settings) -> Asked:
    """Returns what a request to `/v1/chat/completions` asks. Raises `ApiError` for what can't be used."""
    hosted = models.find(request.model)
    tools = [tool.model_dump(exclude_none=True) for tool in request.tools or ()]
    messages = [message.as_dict for message in request.messages]
    goes_on = bool(request.continue_final_message)
    asked = _conversation(request, hosted, messages, tools, request.chat_template_kwargs, goes_on)
    texts = request.n or 1
    _refuse_above("n", texts, settings.limits.choices)
    logprobs = (request.top_logprobs or 0) if request.logprobs else None
    constraint = asked.pop("constraint") or answer_constraint(request.response_format, request.constraint)
    return Asked(
        texts=texts,
        max_tokens=_max_tokens("max_completion_tokens", request.max_completion_tokens or request.max_tokens, settings),
        options=_options(request, logprobs, constraint),
        **asked,
        **_common(request, hosted, models, settings),
        **_thinking(request, hosted, settings),
    )


def ask_completion(request: CompletionRequest, models: Models, settings: Settings) -> Asked:
    """Returns what a request to `/v1/completions` asks. Raises `ApiError` for what can't be used."""
    hosted = models.find(request.model)
    prompts = _prompts(request.prompt)
    texts = request.n or 1
    _refuse_above("n times the number of prompts", texts * len(prompts), settings.limits.choices)
    best_of = request.best_of if request.best_of is not None and request.best_of > texts else None
    if best_of is not None:
        _refuse_above("best_of", best_of, settings.limits.choices)
        request = request.model_copy(update={"method": f"best_of:n={best_of}"})
    return Asked(
        encode=partial(_encode_texts, hosted.lm, prompts, bool(request.special_tokens)),
        given=tuple(prompts),
        questions=tuple(map(question_of, prompts)),
        texts=texts,
        prompts=len(prompts),
        max_tokens=_max_tokens("max_tokens", request.max_tokens or COMPLETION_TOKENS, settings),
        options=_options(request, request.logprobs, answer_constraint(None, request.constraint)),
        **_common(request, hosted, models, settings),
    )


def ask_response(request: ResponseRequest, models: Models, settings: Settings) -> Asked:
    """Returns what a request to `/v1/responses` asks. Raises `ApiError` for what can't be used."""
    hosted = models.find(request.model)
    tools = [
        {"type": "function", "function": tool.model_dump(exclude_none=True, exclude={"type"})}
        for tool in request.tools or ()
    ]
    asked = _conversation(request, hosted, messages_of(request), tools, request.chat_template_kwargs)
    wanted = request.include or request.top_logprobs is not None
    logprobs = (request.top_logprobs or 0) if wanted else None
    form = request.text.format if request.text is not None else None
    constraint = asked.pop("constraint") or answer_constraint(form, request.constraint, "text.format")
    return Asked(
        max_tokens=_max_tokens("max_output_tokens", request.max_output_tokens, settings),
        options=_options(request, logprobs, constraint),
        **asked,
        **_common(request, hosted, models, settings),
        **_thinking(request, hosted, settings),
    )


def messages_of(request: ResponseRequest) -> list[dict[str, Any]]:
    """Returns the conversation of a request to `/v1/responses` as chat templates take it."""
    messages: list[dict[str, Any]] = []
    if request.instructions:
        messages.append({"role": "system", "content": request.instructions})
    if isinstance(request.input, str):
        return [*messages, {"role": "user", "content": request.input}]
    for item in request.input:
        if item.type == "function_call":
            call = {
                "id": item.call_id,
                "type": "function",
                "function": {"name": item.name, "arguments": item.arguments},
            }
            if messages and messages[-1]["role"] == "assistant":
                messages[-1].setdefault("tool_calls", []).append(call)
            else:
                messages.append({"role": "assistant", "content": None, "tool_calls": [call]})
        elif item.type == "function_call_output":
            messages.append({"role": "tool", "tool_call_id": item.call_id, "content": item.output})
        else:
            messages.append({"role": item.role, "content": _content(item)})
    return messages


def _content(item: ResponseItem) -> str | list[dict[str, Any]]:
    if isinstance(item.content, str):
        return item.content
    parts: list[dict[str, Any]] = []
    for part in item.content or ():
        kind = part.get("type")
        if kind == "input_image" and isinstance(part.get("image_url"), str):
            parts.append({"type": "image_url", "image_url": {"url": part["image_url"]}})
        elif kind in ("input_text", "output_text", "text") and isinstance(part.get("text"), str):
            parts.append({"type": "text", "text": part["text"]})
        else:
            raise ApiError(
                400,
                f"a part of type {kind!r} can't be read: outlay reads text, and images as data: URLs",
                param="input",
            )
    if all(part["type"] == "text" for part in parts):
        return "\n".join(part["text"] for part in parts)
    return parts


def _conversation(
    request: ChatRequest | ResponseRequest,
    hosted: Hosted,
    messages: Sequence[Mapping[str, Any]],
    tools: list[dict[str, Any]],
    switches: Mapping[str, Any] | None,
    goes_on: bool = False,
) -> dict[str, Any]:
    """Returns the arguments of `Asked` that have to do with a conversation and its tools."""
    if not hosted.lm.model.tokenizer.has_chat_template:
        raise ApiError(400, f"{hosted.name} has no chat template; use /v1/completions", param="model")
    if tools and request.tool_choice == "none":
        tools = []
    if tools and hosted.form is None:
        raise ApiError(400, f"{hosted.name} was not made for tools: its chat template has none", param="tools")
    one_call, constraint, begun = request.parallel_tool_calls is False, None, ""
    if _asks_for_call(request.tool_choice):
        form = hosted.form or FORMS["hermes"]
        constraint = call_constraint(form, tools, _named(request.tool_choice), one_call)
        begun = form.before_calls
    render = {"tools": tools or None, "template": dict(switches or {}), "continue_final_message": goes_on}
    return {
        "encode": partial(_encode_chat, hosted, list(messages), render, begun if constraint is not None else None),
        "form": hosted.form if tools else None,
        "tools": frozenset(tool["function"]["name"] for tool in tools),
        "one_call": one_call,
        "begun": begun,
        "questions": (question_of(messages),),
        "constraint": constraint,
        "chat": True,
    }


def _asks_for_call(choice: Any) -> bool:
    """Tells whether a `tool_choice` asks for a call in any case."""
    return choice not in (None, "auto", "none")


def _named(choice: Any) -> str | None:
    """Returns the name of the function that a `tool_choice` asks for; None where any will do."""
    if isinstance(choice, NamedTool):
        return choice.function.name
    return choice.name if isinstance(choice, NamedResponseTool) else None


def _encode_chat(hosted: Hosted, messages: list[Any], render: Mapping[str, Any], begun: str | None) -> list[list[int]]:
    """Returns the prompt's token ids. Where a call must follow, it ends with what opens calls (`begun`), behind the
    reasoning, which a template may have opened.
    """
    tokenizer = hosted.lm.model.tokenizer
    try:
        prompt = hosted.lm.encode(messages if hosted.lm.model.vision is None else _with_pictures(messages), **render)
        if begun is not None and hosted.tags is not None and thinks_already(tokenizer, hosted.tags, prompt):
            begun = f"\n{hosted.tags.closing}\n\n{begun}"
        return [prompt + tokenizer.encode(begun or "", special=True)]
    except UsageError as error:
        raise ApiError(400, str(error), param="messages", code="invalid_value") from None


def _with_pictures(messages: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Returns messages with the pixels of their images. Raises `UsageError` for one that would take too much memory."""
    read = conversation(messages)
    for message in read:
        for part in message["content"] if isinstance(message["content"], list) else ():
            if "image" in part:
                part["image"] = read_picture(part["image"], LARGEST_IMAGE)
    return read


def _encode_texts(lm: LM, prompts: list[Any], special_tokens: bool) -> list[list[int]]:
    try:
        return [lm.encode(prompt, chat=False, special_tokens=special_tokens) for prompt in prompts]
    except UsageError as error:
        raise ApiError(400, str(error), param="prompt", code="invalid_value") from None


def _prompts(prompt: Any) -> list[Any]:
    if isinstance(prompt, str) or (prompt and isinstance(prompt[0], int)):
        return [prompt]
    if not prompt:
        raise ApiError(400, "the prompt is empty; give it some text or token ids", param="prompt")
    return list(prompt)


def _common(request: Sampled, hosted: Hosted, models: Models, settings: Settings) -> dict[str, Any]:
    """Returns the arguments of `Asked` that all kinds of requests have."""
    plain = "greedy" if request.temperature == 0 else "sample"
    if hosted.lm.model.writes_canvas:
        plain = hosted.lm.usual_method
    policy = models.policy(request.cache)
    usual = settings.method if policy is None else None  # which may run under none
    method = models.method(request.method or usual or plain, own=not request.method)
    try:
        budget = Budget(**(request.budget or {}))
    except UsageError as error:
        raise ApiError(400, str(error), param="budget", code="invalid_value") from None
    seed = secrets.randbelow(1 << 31) if request.seed is None else request.seed % SEEDS
    return {
        "hosted": hosted,
        "method": method,
        "draft": hosted.draft(request.draft, method),
        "scorer": hosted.scorer(request.scorer, method),
        "cache": policy,
        "budget": budget,
        "seed": seed,
    }


def _thinking(request: ChatRequest | ResponseRequest, hosted: Hosted, settings: Settings) -> dict[str, Any]:
    if request.thinking_token_budget is None:
        return {}
    if hosted.tags is None:
        message = f"{hosted.name} does not think before it answers, so it has no thinking_token_budget"
        raise ApiError(400, message, param="thinking_token_budget")
    return {"thinking_tokens": request.thinking_token_budget, "closing_words": settings.closing_words}


def _options(request: Any, logprobs: int | None, constraint: Constraint | None) -> dict[str, Any]:
    """Returns the arguments of `LM.submit` that say how to sample and when to stop."""
    options: dict[str, Any] = {"temperature": 1.0 if request.temperature is None else request.temperature}
    given = {name: getattr(request, name, None) for name in ("top_k", "top_p", "min_p", *PENALTIES)}
    options |= {name: value for name, value in given.items() if value is not None and (value or name not in PENALTIES)}
    if bias := getattr(request, "logit_bias", None):
        options["logit_bias"] = {int(token): value for token, value in bias.items()}
    if stop := getattr(request, "stop", None):
        options["stop"] = stop
    if logprobs is not None:
        options["logprobs"] = logprobs
    if constraint is not None:
        options["constraint"] = constraint
    return options


def _max_tokens(name: str, wanted: int | None, settings: Settings) -> int:
    if wanted is None:
        return settings.limits.max_tokens
    _refuse_above(name, wanted, settings.limits.max_tokens)
    return wanted


def _refuse_above(name: str, wanted: int, limit: int) -> None:
    if wanted > limit:
        raise ApiError(400, f"{name} is {wanted}, but this server gives at most {limit}", param=name.partition(" ")[0])
