"""The tags that a model writes around its reasoning."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from outlay.models.tokenizer import Tokenizer

TAIL = 8  # tokens at a prompt's end among which an opening tag is looked for


class Tags(NamedTuple):
    """What a model writes around its reasoning."""

    opening: str
    closing: str


TAGS = (Tags("<think>", "</think>"), Tags("[THINK]", "[/THINK]"))


def tags_of(tokenizer: Tokenizer) -> Tags | None:
    """Returns the tags that a model thinks between; None for one that does not think."""
    template = tokenizer.template.source if tokenizer.template is not None else ""
    for tags in TAGS:
        if tags.closing in template or tokenizer.inner.token_to_id(tags.closing) is not None:
            return tags
    return None


def written(tokenizer: Tokenizer, tokens: Sequence[int]) -> str:
    """Returns the text of tokens with the names of the special ones."""
    return "".join(tokenizer.name_of(token) or tokenizer.decode([token]) for token in tokens)


def thinks_already(tokenizer: Tokenizer, tags: Tags, prompt: Sequence[int]) -> bool:
    """Tells whether the prompt's end has opened the reasoning, as some templates do."""
    return written(tokenizer, prompt[-TAIL:]).rstrip().endswith(tags.opening)
