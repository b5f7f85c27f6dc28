"""The forms of reward models: how each reads a prompt with its steps, and where and how it gives its rewards."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import Tensor

from outlay.errors import UsageError, nearest
from outlay.models.load import Model
from outlay.models.tokenizer import Tokenizer

SYSTEM = "Please reason step by step, and put your final answer within \\boxed{}."


Place = Callable[[Tokenizer, str, Sequence[str]], list[list[int]]]
"""(tokenizer, prompt, steps) -> for each step the tokens up to and with the one at which its reward is read."""


@dataclass(frozen=True)
class Form:
    """One form of reward models."""

    name: str
    place: Place | None
    """Where it gives its rewards; None: it is a language model, whose own probability of a step is the reward."""
    head: bool
    """Whether the model has a head of its own in place of the LM head."""
    of_outputs: Callable[[Tensor], Tensor] | None = None
    """The rewards, [n], of a head's outputs, [n, outputs]."""
    words: Callable[[Tokenizer], tuple[int, int]] | None = None
    """The tokens that say "right" and "wrong", where the LM head is asked."""
    reduce: str = "last"
    """How the rewards of a text's steps become one, unless the user says."""
    outcome: bool = False
    """Whether the text is rated whole, not its steps."""


def _qwen_prm(tokenizer: Tokenizer, prompt: str, steps: Sequence[str]) -> list[list[int]]:
    """Qwen2.5-Math-PRM: each step is followed by <extra_0>, whose state is classified."""
    mark = _token(tokenizer, "<extra_0>")
    messages = [{"role": "system", "content": SYSTEM}, {"role": "user", "content": prompt}]
    tokens, places = tokenizer.render_chat(messages), []
    for step in steps:
        tokens = [*tokens, *tokenizer.encode(step), mark]
        places.append(tokens)
    return places


def _skywork(tokenizer: Tokenizer, prompt: str, steps: Sequence[str]) -> list[list[int]]:
    """Skywork-o1-Open-PRM: a value at the newline that ends each step."""
    bos = [] if tokenizer.bos_token_id is None else [tokenizer.bos_token_id]
    newline = tokenizer.encode("\n")[-1]
    tokens, places = [*bos, *tokenizer.encode(prompt + "\n")], []
    for step in steps:
        for line in filter(None, step.split("\n")):  # its lines are encoded apart: to the model each is a step
            tokens = [*tokens, *tokenizer.encode(line), newline]
        places.append(tokens)
    return places


def _shepherd(tokenizer: Tokenizer, prompt: str, steps: Sequence[str]) -> list[list[int]]:
    """Math-Shepherd: numbered steps, each with its mark, at which + and - are compared."""
    mark = tokenizer.encode("\u043a\u0438")[-1]
    lines, places = [], []
    for number, step in enumerate(steps, 1):
        lines.append(f"{step if step.startswith('Step ') else f'Step {number}: {step}'} \u043a\u0438")
        tokens = tokenizer.encode_prompt(f"{prompt} " + "\n".join(lines))
        end = max((at for at, token in enumerate(tokens) if token == mark), default=len(tokens) - 1)
        places.append(tokens[: end + 1])
    return places


def _rlhflow(tokenizer: Tokenizer, prompt: str, steps: Sequence[str]) -> list[list[int]]:
    """RLHFlow's: a turn of the user for each step, which the model answers with + or -."""
    messages: list[dict[str, str]] = []
    places = []
    for step in steps:
        messages.append({"role": "user", "content": step if messages else f"{prompt} {step}"})
        places.append(tokenizer.render_chat(messages))
        messages.append({"role": "assistant", "content": "+"})
    return places


def _qwen_rm(tokenizer: Tokenizer, prompt: str, steps: Sequence[str]) -> list[list[int]]:
    """Qwen2.5-Math-RM: at the last token of the conversation, whose system message is that of its PRM."""
    messages = [{"role": "system", "content": SYSTEM}, {"role": "user", "content": prompt}]
    messages.append({"role": "assistant", "content": "\n\n".join(steps)})
    return [tokenizer.render_chat(messages, add_generation_prompt=False)]


def _whole(tokenizer: Tokenizer, prompt: str, steps: Sequence[str]) -> list[list[int]]:
    """A head for sequence classification: at the last token of the conversation, or of prompt and text."""
    text = "\n\n".join(steps)
    if tokenizer.has_chat_template:
        messages = [{"role": "user", "content": prompt}, {"role": "assistant", "content": text}]
        return [tokenizer.render_chat(messages, add_generation_prompt=False)]
    return [tokenizer.encode_prompt(f"{prompt}\n{text}")]


def _shepherd_words(tokenizer: Tokenizer) -> tuple[int, int]:
    right, wrong = tokenizer.encode("+ -")[-2:] if len(tokenizer.encode("+ -")) == 2 else _words(tokenizer)
    return right, wrong


def _words(tokenizer: Tokenizer) -> tuple[int, int]:
    return tokenizer.encode("+")[-1], tokenizer.encode("-")[-1]


def _second_class(outputs: Tensor) -> Tensor:
    return outputs.float().softmax(-1)[:, -1]


def _value(outputs: Tensor) -> Tensor:
    return outputs.float()[:, 0].sigmoid()


def _classified(outputs: Tensor) -> Tensor:
    return _value(outputs) if outputs.shape[1] == 1 else _second_class(outputs)


FORMS = {
    form.name: form
    for form in (
        Form("qwen-prm", _qwen_prm, head=True, of_outputs=_second_class),
        Form("skywork", _skywork, head=True, of_outputs=_value),
        Form("math-shepherd", _shepherd, head=False, words=_shepherd_words),
        Form("rlhflow", _rlhflow, head=False, words=_words),
        Form("qwen-rm", _qwen_rm, head=True, of_outputs=_value, outcome=True),
        Form("likelihood", None, head=False, reduce="min"),  # a step after an error may be as probable as any
        Form("classifier", _whole, head=True, of_outputs=_classified, outcome=True),
    )
}


def form_of(model: Model, named: str | None = None) -> Form:
    """Returns the form of a reward model.

    Args:
        model: The model.
        named: The form's name, where the model alone doesn't tell it.

    Raises:
        UsageError: For an unknown name, or a model of no form that we know.
    """
    known = ", ".join(FORMS)
    if named is not None:
        if named not in FORMS:
            raise UsageError(f"there is no form {named!r} of reward models{nearest(named, FORMS)}; we have {known}")
        form = FORMS[named]
        if form.head != (model.head is not None):
            has = "a head of its own" if model.head is not None else "no head but its LM head"
            raise UsageError(f"{model.name} has {has}, so it is not of the form {named}")
        return form
    name = model.reward_form
    if name is None or name not in FORMS:
        raise UsageError(
            f"{model.name} is no reward model of a form that we have ({known}); if it is one, say which: "
            f"{model.name}:form=NAME"
        )
    return FORMS[name]


def _token(tokenizer: Tokenizer, name: str) -> int:
    found = tokenizer.inner.token_to_id(name)
    if found is None:
        raise UsageError(f"the reward model's tokenizer has no token {name}, at which this form gives its rewards")
    return int(found)
