"""From the fields of a request to what it asks of the engine."""

from __future__ import annotations

import secrets
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from outlay.budget import Budget
from outlay.errors import UsageError
from outlay.lm import LM
from outlay.serve.asked import Asked
from outlay.serve.errors import ApiError
from outlay.serve.fields import ChatRequest, CompletionRequest, ResponseItem, ResponseRequest, Sampled
from outlay.serve.generation import SEEDS
from outlay.serve.hosted import Hosted, Models
from outlay.serve.settings import Settings

COMPLETION_TOKENS = 16  # new tokens of `/v1/completions` where the request doesn't say, as at OpenAI
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
    return Asked(
        texts=texts,
        max_tokens=_max_tokens("max_completion_tokens", request.max_completion_tokens or request.max_tokens, settings),
        options=_options(request, logprobs),
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
        texts=texts,
        prompts=len(prompts),
        max_tokens=_max_tokens("max_tokens", request.max_tokens or COMPLETION_TOKENS, settings),
        options=_options(request, request.logprobs),
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
    return Asked(
        max_tokens=_max_tokens("max_output_tokens", request.max_output_tokens, settings),
        options=_options(request, (request.top_logprobs or 0) if wanted else None),
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


def _content(item: ResponseItem) -> str:
    if isinstance(item.content, str):
        return item.content
    texts = []
    for part in item.content or ():
        if part.get("type") not in ("input_text", "output_text", "text") or not isinstance(part.get("text"), str):
            raise ApiError(
                400, f"a part of type {part.get('type')!r} can't be read: outlay reads text alone", param="input"
            )
        texts.append(part["text"])
    return "\n".join(texts)


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
    render = {"tools": tools or None, "template": dict(switches or {}), "continue_final_message": goes_on}
    return {
        "encode": partial(_encode_chat, hosted.lm, list(messages), render),
        "form": hosted.form if tools else None,
        "tools": frozenset(tool["function"]["name"] for tool in tools),
        "one_call": request.parallel_tool_calls is False,
        "chat": True,
    }


def _encode_chat(lm: LM, messages: list[Any], render: Mapping[str, Any]) -> list[list[int]]:
    try:
        return [lm.encode(messages, **render)]
    except UsageError as error:
        raise ApiError(400, str(error), param="messages", code="invalid_value") from None


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
    method = models.method(request.method or settings.method or plain)
    try:
        budget = Budget(**(request.budget or {}))
    except UsageError as error:
        raise ApiError(400, str(error), param="budget", code="invalid_value") from None
    seed = secrets.randbelow(1 << 31) if request.seed is None else request.seed % SEEDS
    draft = hosted.draft(request.draft, method)
    return {"hosted": hosted, "method": method, "draft": draft, "budget": budget, "seed": seed}


def _thinking(request: ChatRequest | ResponseRequest, hosted: Hosted, settings: Settings) -> dict[str, Any]:
    if request.thinking_token_budget is None:
        return {}
    if hosted.tags is None:
        message = f"{hosted.name} does not think before it answers, so it has no thinking_token_budget"
        raise ApiError(400, message, param="thinking_token_budget")
    return {"thinking_tokens": request.thinking_token_budget, "closing_words": settings.closing_words}


def _options(request: Any, logprobs: int | None) -> dict[str, Any]:
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
    return options


def _max_tokens(name: str, wanted: int | None, settings: Settings) -> int:
    if wanted is None:
        return settings.limits.max_tokens
    _refuse_above(name, wanted, settings.limits.max_tokens)
    return wanted


def _refuse_above(name: str, wanted: int, limit: int) -> None:
    if wanted > limit:
        raise ApiError(400, f"{name} is {wanted}, but this server gives at most {limit}", param=name.partition(" ")[0])
