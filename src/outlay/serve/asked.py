"""What a request asks of the engine, in the engine's words."""

from __future__ import annotations

import secrets
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from outlay.attend.policy import CachePolicy
from outlay.budget import Budget
from outlay.engine.method import Method
from outlay.engine.submission import DraftSource
from outlay.serve.hosted import Hosted
from outlay.serve.tools import Form


@dataclass(frozen=True)
class Asked:
    """What a request asks of the engine, in the engine's words."""

    hosted: Hosted
    method: Method
    draft: DraftSource | None
    scorer: Any
    """What rates its texts; None where the method asks nothing of the kind."""
    cache: CachePolicy | None
    """What each layer keeps; None: everything."""
    encode: Callable[[], list[list[int]]]
    """Makes the prompts' token ids; called off the event loop."""
    given: tuple[Any, ...] = ()
    """The prompts as they were given, text or token ids, where they are no conversation."""
    questions: tuple[str, ...] = ("",)
    """What each prompt asks, as text, for scorers; empty where it was given as token ids."""
    texts: int = 1
    """Texts of each prompt."""
    prompts: int = 1
    seed: int = field(default_factory=lambda: secrets.randbelow(1 << 31))
    max_tokens: int = 16
    budget: Budget = field(default_factory=Budget)
    options: dict[str, Any] = field(default_factory=dict)
    """Arguments of `LM.submit`."""
    thinking_tokens: int | None = None
    closing_words: str = ""
    form: Form | None = None
    """How the model writes tool calls, where tools were given."""
    tools: frozenset[str] = frozenset()
    one_call: bool = False
    """Whether the answer ends after its first call."""
    begun: str = ""
    """What opens calls, where the prompt ends with it, since a call must follow."""
    chat: bool = False
    """Whether the prompts are conversations, in which a model may think."""

    def shown(self) -> list[str]:
        """Returns the prompts as the model reads them, for a log that may hold them."""
        return [self.hosted.lm.model.tokenizer.decode(prompt) for prompt in self.encode()]

    @property
    def copies(self) -> int:
        """Runs for each prompt. At temperature 0 all would write the same, so that one is enough."""
        return self.texts if self.options.get("temperature", 0) else 1
