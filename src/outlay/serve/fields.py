"""The fields of requests: those of OpenAI's API and our own. Each is honoured or refused by its name."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator
from pydantic_core import PydanticCustomError

from outlay.errors import nearest

NOT_HERE: Mapping[str, str] = {
    "audio": "outlay writes text alone",
    "background": "answers are not kept; stream instead",
    "context_management": "give the messages that the model is to read",
    "conversation": "nothing is kept between requests; send the whole conversation",
    "function_call": "use tool_choice",
    "functions": "use tools",
    "image": "outlay writes text alone",
    "input_file": "outlay reads text alone",
    "max_tool_calls": "there are no built-in tools",
    "modalities": "outlay writes text alone",
    "moderation": "there is no moderation here",
    "prediction": "name a draft instead, such as 'lookup'",
    "previous_response_id": "nothing is kept between requests; send the whole conversation",
    "prompt": "there are no stored prompts here; send the text",
    "prompt_cache_options": "prompts are cached by themselves",
    "prompt_cache_retention": "prompts are cached for as long as there is room",
    "reasoning": "use thinking_token_budget, or the template's own switches in chat_template_kwargs",
    "reasoning_effort": "use thinking_token_budget, or the template's own switches in chat_template_kwargs",
    "service_tier": "there is one tier; turns are taken fairly between API keys",
    "store": "answers are not kept",
    "suffix": "the models here continue a text and fill no gaps",
    "truncation": "a prompt that is too long is refused, never cut",
    "verbosity": "say in the prompt how much to write",
    "web_search_options": "there is no web search here",
}
"""OpenAI's fields that are not honoured, with what to do instead."""

NEUTRAL: Mapping[str, tuple[Any, ...]] = {
    "background": (False,), "include": ([],), "modalities": (["text"],), "service_tier": ("auto", "default"),
    "store": (False,), "truncation": ("disabled",),
}  # fmt: skip
"""Values of those fields that ask for nothing, and are therefore taken; null is one for each."""

Text = Annotated[str, Field(max_length=8 << 20)]
TokenId = Annotated[int, Field(ge=0, lt=1 << 31)]


class Fields(BaseModel):
    """A part of a request. What it doesn't know is refused by name."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)


class StreamOptions(Fields):
    """What a stream tells besides the text."""

    include_usage: bool | None = Field(None, description="Send token counts in a last chunk of its own.")
    include_outlay: bool | None = Field(
        None, description="Send with each chunk what proposed its tokens, and the ledger so far."
    )
    include_obfuscation: Literal[False] | None = Field(None, description="Chunks are never padded.")


class Function(Fields):
    """A function that the model may call."""

    name: Annotated[str, Field(pattern=r"^[a-zA-Z0-9_.-]{1,64}$")]
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: Literal[False] | None = Field(
        None, description="Arguments are held to the schema where tool_choice asks for a call."
    )


class Tool(Fields):
    """A tool: always a function."""

    type: Literal["function"]
    function: Function


class CalledFunction(Fields):
    """The function of a call that was made."""

    name: str
    arguments: str


class ToolCall(Fields):
    """A call that the model made earlier in the conversation."""

    id: str
    type: Literal["function"] = "function"
    function: CalledFunction


class TextPart(Fields):
    """A part of a message that is text."""

    type: Literal["text"]
    text: Text


class ImageUrl(Fields):
    """Where an image is."""

    url: str = Field(description="A data: URL in base64; nothing is fetched, and no file is opened.")
    detail: Literal["auto"] | None = Field(None, description="Images are read as the model's own processor does it.")


class ImagePart(Fields):
    """A part of a message that is an image, for models that see."""

    type: Literal["image_url"]
    image_url: ImageUrl


Part = Annotated[TextPart | ImagePart, Field(discriminator="type")]


class Message(Fields):
    """A message of the conversation."""

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: Text | list[Part] | None = None
    name: str | None = None
    tool_calls: list[ToolCall] | None = None
    tool_call_id: str | None = None
    reasoning_content: Text | None = None
    refusal: Literal[None] = None

    @property
    def as_dict(self) -> dict[str, Any]:
        """The message as chat templates take it, without what it doesn't say."""
        said = self.model_dump(exclude_none=True)
        return {"content": None} | said


class TextFormat(Fields):
    """The form of the answer: free text."""

    type: Literal["text"]


class JsonObjectFormat(Fields):
    """The form of the answer: a JSON object."""

    type: Literal["json_object"]


class JsonSchemaFormat(Fields):
    """The form of the answer: JSON that a schema (draft 2020-12) describes, with `strict` or without."""

    type: Literal["json_schema"]
    name: str | None = None
    description: str | None = None
    schema_: dict[str, Any] | None = Field(None, alias="schema")
    strict: bool | None = None

    @model_validator(mode="before")
    @classmethod
    def _flat(cls, given: Any) -> Any:
        """Chat wraps name and schema in a `json_schema` of their own; `/v1/responses` does not."""
        if isinstance(given, dict) and isinstance(given.get("json_schema"), dict):
            return {key: value for key, value in given.items() if key != "json_schema"} | given["json_schema"]
        return given


Format = Annotated[TextFormat | JsonObjectFormat | JsonSchemaFormat, Field(discriminator="type")]


class ConstraintField(Fields):
    """What the answer must satisfy, in one of these ways."""

    regex: Annotated[str, Field(max_length=1 << 16)] | None = Field(
        None, description="A regular expression in the syntax of Rust's `regex`, which matches the whole answer."
    )
    grammar: Annotated[str, Field(max_length=1 << 18)] | None = Field(
        None, description="A grammar in Lark's syntax or GBNF."
    )
    choice: Annotated[list[str], Field(min_length=1, max_length=4096)] | None = Field(
        None, description="Texts of which the answer is one."
    )
    json_schema: dict[str, Any] | None = Field(None, description="A JSON Schema (draft 2020-12).")

    @model_validator(mode="after")
    def _one(self) -> ConstraintField:
        if len(self.model_fields_set) != 1:
            raise refusal("constraint", "a constraint is one of regex, grammar, choice and json_schema")
        return self


class NamedFunction(Fields):
    """A function by its name."""

    name: str


class NamedTool(Fields):
    """The tool that must be called."""

    type: Literal["function"]
    function: NamedFunction


class NamedResponseTool(Fields):
    """The tool that must be called, at `/v1/responses`."""

    type: Literal["function"]
    name: str


class Sampled(Fields):
    """What all kinds of requests have in common: the model, how it decodes and how it samples."""

    model: str = Field(description="A model that the server has loaded; `/v1/models` lists them.")
    temperature: float | None = Field(None, ge=0, le=100, description="0 takes the most probable token. Default 1.")
    top_p: float | None = Field(None, gt=0, le=1)
    top_k: int | None = Field(None, ge=1, le=1 << 31, description="Draw from the k most probable tokens.")
    min_p: float | None = Field(None, ge=0, le=1, description="Draw from tokens this probable relative to the best.")
    repetition_penalty: float | None = Field(None, gt=0, le=100)
    seed: int | None = Field(None, ge=-(1 << 63), lt=1 << 63, description="Fixes every draw. Default: a random one.")
    method: Annotated[str, Field(max_length=512)] | None = Field(
        None, description='How to decode, such as "greedy", "beam:width=4" or "rsd"; `outlay methods` lists them.'
    )
    cache: Annotated[str, Field(max_length=512)] | None = Field(
        None,
        description='A policy that says what each layer keeps, such as "zipvl:tau=0.96"; without a method, greedy '
        "decoding or sampling runs under it.",
    )
    draft: Annotated[str, Field(max_length=128)] | None = Field(
        None, description="A draft that the server has loaded for this model; `/v1/models` lists them."
    )
    scorer: Annotated[str, Field(max_length=128)] | None = Field(
        None, description="What rates texts for methods that search, as the server knows it; `/v1/models` lists them."
    )
    budget: dict[str, Annotated[float, Field(gt=0)]] | None = Field(
        None, description='Caps on entries of the ledger, such as {"target_passes": 64, "seconds": 2}.'
    )
    constraint: ConstraintField | None = Field(
        None, description='What the answer must satisfy, such as {"regex": "[0-9]+"}; a field of ours.'
    )
    user: str | None = Field(None, description="Ignored, as it asks for nothing.")
    safety_identifier: str | None = Field(None, description="Ignored, as it asks for nothing.")
    prompt_cache_key: str | None = Field(None, description="Ignored: prompts with a common beginning always share it.")
    metadata: dict[str, str] | None = Field(None, description="Ignored by chat; `/v1/responses` answers it back.")
    stream: bool | None = None

    @model_validator(mode="before")
    @classmethod
    def _only_what_is_honoured(cls, given: Any) -> Any:
        """Refuses by name what is not honoured, and takes away what asks for nothing."""
        if not isinstance(given, dict):
            return given
        refuse_what_is_no_text(given)
        known, read = cls.model_fields, {}
        for name, value in given.items():
            if name in known:
                read[name] = value
            elif name in NOT_HERE and (value is None or value in NEUTRAL.get(name, ())):
                continue
            elif name in NOT_HERE:
                raise refusal(name, f"{name} can't be used: {NOT_HERE[name]}")
            else:
                raise refusal(name, f"there is no field {name!r}{nearest(name, known)}")
        return read


class ChatRequest(Sampled):
    """A request to `/v1/chat/completions`."""

    messages: list[Message] = Field(min_length=1, max_length=4096)
    n: int | None = Field(None, ge=1, le=128, description="Texts to choose from.")
    max_tokens: int | None = Field(None, ge=1, le=1 << 31, description="The earlier name of max_completion_tokens.")
    max_completion_tokens: int | None = Field(None, ge=1, le=1 << 31, description="New tokens at most.")
    thinking_token_budget: int | None = Field(
        None, ge=0, le=1 << 31, description="Tokens of reasoning at most; then the closing tag is forced."
    )
    stop: Annotated[str, Field(min_length=1)] | list[Annotated[str, Field(min_length=1)]] | None = None
    presence_penalty: float | None = Field(None, ge=-2, le=2)
    frequency_penalty: float | None = Field(None, ge=-2, le=2)
    logit_bias: dict[Annotated[str, Field(pattern=r"^\d{1,9}$")], Annotated[float, Field(ge=-100, le=100)]] | None = (
        None
    )
    logprobs: bool | None = None
    top_logprobs: int | None = Field(None, ge=0, le=20)
    tools: list[Tool] | None = None
    tool_choice: Literal["auto", "none", "required"] | NamedTool | None = None
    parallel_tool_calls: bool | None = Field(None, description="False ends the answer after its first call.")
    response_format: Format | None = None
    stream_options: StreamOptions | None = None
    chat_template_kwargs: dict[str, Any] | None = Field(
        None, description='The template\'s own switches, such as {"enable_thinking": false}.'
    )
    continue_final_message: bool | None = Field(None, description="Go on with the last message, the assistant's.")

    @model_validator(mode="after")
    def _that_go_together(self) -> ChatRequest:
        if self.top_logprobs is not None and not self.logprobs:
            raise refusal("top_logprobs", "top_logprobs needs logprobs to be true")
        if self.max_tokens is not None and self.max_completion_tokens not in (None, self.max_tokens):
            raise refusal("max_tokens", "max_tokens and max_completion_tokens differ; give max_completion_tokens alone")
        if self.stream_options is not None and not self.stream:
            raise refusal("stream_options", "stream_options needs stream to be true")
        if self.thinking_token_budget is not None and (self.presence_penalty or self.frequency_penalty):
            raise refusal(
                "thinking_token_budget", "thinking_token_budget can't be used with a penalty on what was written"
            )
        return self


class CompletionRequest(Sampled):
    """A request to `/v1/completions`."""

    prompt: Text | list[TokenId] | list[Text] | list[list[TokenId]] = Field(
        description="A text, its token ids, or a list of either."
    )
    n: int | None = Field(None, ge=1, le=128)
    best_of: int | None = Field(None, ge=1, le=128, description="Draw this many texts and return the best.")
    max_tokens: int | None = Field(None, ge=1, le=1 << 31, description="New tokens at most. Default 16.")
    stop: Annotated[str, Field(min_length=1)] | list[Annotated[str, Field(min_length=1)]] | None = None
    presence_penalty: float | None = Field(None, ge=-2, le=2)
    frequency_penalty: float | None = Field(None, ge=-2, le=2)
    logit_bias: dict[Annotated[str, Field(pattern=r"^\d{1,9}$")], Annotated[float, Field(ge=-100, le=100)]] | None = (
        None
    )
    logprobs: int | None = Field(None, ge=0, le=20)
    special_tokens: bool | None = Field(
        None, description="Read control tokens that the prompt spells out. Default: text."
    )
    echo: bool | None = Field(None, description="Begin the answer with the prompt.")
    stream_options: StreamOptions | None = None

    @model_validator(mode="after")
    def _that_go_together(self) -> CompletionRequest:
        if self.stream_options is not None and not self.stream:
            raise refusal("stream_options", "stream_options needs stream to be true")
        if self.echo and self.logprobs is not None:
            raise refusal("echo", "echo can't be used with logprobs: a prompt's own log-probabilities are not computed")
        if self.best_of is not None and self.best_of != (self.n or 1):
            if (self.n or 1) != 1:
                raise refusal("best_of", "best_of needs n to be 1; for several texts leave it out")
            if self.stream or self.method is not None:
                raise refusal("best_of", "best_of can't be streamed, and is a method of its own")
        return self


class ResponseItem(Fields):
    """A part of the conversation: a message, a call of a function, or a call's result."""

    type: Literal["message", "function_call", "function_call_output"] = "message"
    id: str | None = None
    status: str | None = None
    role: Literal["system", "developer", "user", "assistant"] | None = None
    content: Text | list[dict[str, Any]] | None = None
    call_id: str | None = None
    name: str | None = None
    arguments: str | None = None
    output: Text | None = None

    @model_validator(mode="after")
    def _complete(self) -> ResponseItem:
        needed = {
            "message": ("role", "content"),
            "function_call": ("call_id", "name", "arguments"),
            "function_call_output": ("call_id", "output"),
        }
        missing = next((name for name in needed[self.type] if getattr(self, name) is None), None)
        if missing is not None:
            raise refusal("input", f"an item of type {self.type!r} needs {missing!r}")
        return self


class ResponseTool(Function):
    """A tool of `/v1/responses`: a function."""

    type: Literal["function"]


class ResponseText(Fields):
    """The form of the answer."""

    format: Format | None = None


class ResponseRequest(Sampled):
    """A request to `/v1/responses`. Nothing of it is kept."""

    input: Text | list[ResponseItem]
    instructions: Text | None = None
    max_output_tokens: int | None = Field(None, ge=1, le=1 << 31)
    thinking_token_budget: int | None = Field(None, ge=0, le=1 << 31)
    tools: list[ResponseTool] | None = None
    tool_choice: Literal["auto", "none", "required"] | NamedResponseTool | None = None
    parallel_tool_calls: bool | None = None
    text: ResponseText | None = None
    top_logprobs: int | None = Field(None, ge=0, le=20)
    include: list[Literal["message.output_text.logprobs"]] | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    stream_options: StreamOptions | None = None


def refusal(param: str, message: str) -> PydanticCustomError:
    """Returns the error for a field that can't be used as it was given."""
    return PydanticCustomError("refused", "{message}", {"message": message, "param": param})


def refuse_what_is_no_text(given: Any) -> None:
    """Raises an error for numbers and halves of characters that JSON should not hold and Python lets through."""
    for value in _leaves(given):
        if isinstance(value, float) and not math.isfinite(value):
            raise refusal("", f"{value} is not a number that JSON can hold")
        if isinstance(value, str) and not value.isascii() and any("\ud800" <= letter <= "\udfff" for letter in value):
            raise refusal("", "a text holds half of a surrogate pair, which is no character")


def _leaves(given: Any) -> Iterator[Any]:
    waiting = [given]
    while waiting:
        value = waiting.pop()
        if isinstance(value, dict):
            waiting += [*value.keys(), *value.values()]
        elif isinstance(value, list):
            waiting += value
        else:
            yield value
