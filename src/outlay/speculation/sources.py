"""Where drafts come from, by name: which drafter a run gets, and what a method says where there is none."""

from __future__ import annotations

import contextlib
from functools import cache
from pathlib import Path

from outlay.engine.method import Method, Source
from outlay.engine.run import Run
from outlay.errors import UsageError
from outlay.models import fitted, hub
from outlay.models.draft_head import load_draft_head
from outlay.models.layer_skip import layer_skip_draft
from outlay.models.load import Model, load_model
from outlay.models.tokenizer import Tokenizer
from outlay.python_sources import library_sources
from outlay.speculation.drafter import Drafter, ModelDrafter, Proposer
from outlay.speculation.lookup import LookupSource
from outlay.speculation.ngrams import NgramTable, tokenizer_fingerprint
from outlay.speculation.prompts import PromptSource, PromptTokens, load_prompts
from outlay.speculation.trigrams import TableSource

DEFAULT_CHARACTERS = 6_000_000  # of Python's source in the table that is made at first use


def resolve(draft: str, model: Model) -> Model | Source:
    """Returns what `draft` names as the draft of a model: `head`, `lookup`, `table` or `ppd`; `self:int4`, `self:skip`
    or both, the model itself with less of it; a file that `outlay train` wrote; or another model of the same tokens.

    Raises `UsageError` where it can't be had or doesn't fit the model.
    """
    name, _, options = draft.partition(":")
    if draft == "head":
        path = fitted.find("head", model)
        if path is None:
            raise fitted.missing("head", model)
        return load_draft_head(path, model)
    if draft == "lookup":
        return LookupSource()
    if draft == "table":
        return TableSource(default_table(model.tokenizer))
    if draft == "ppd":
        return PromptSource(prompts_for(model))
    if name == "self":
        return layer_skip_draft(model, options)
    if draft.endswith(".safetensors"):
        path = Path(draft).expanduser()
        kind = fitted.describe(path)["kind"]
        if kind == "ngrams":
            return TableSource(NgramTable.load(path, model.tokenizer))
        return load_draft_head(path, model) if kind == "head" else PromptSource(prompts_for(model, path))
    other = load_model(draft, device=str(model.decoder.device))
    refuse_other_tokens(other, model)
    return other


def default_draft(model: Model) -> Model | Source | None:
    """Returns the draft head that was trained for a model; None where there is none."""
    return resolve("head", model) if fitted.find("head", model) is not None else None


def refuse_other_tokens(draft: Model, model: Model) -> None:
    """Raises `UsageError` where a draft model's tokens are not the target's."""
    same = tokenizer_fingerprint(draft.tokenizer) == tokenizer_fingerprint(model.tokenizer)
    sizes = draft.decoder.config.vocab_size, model.decoder.config.vocab_size
    if not same or (draft.vocabulary is None and sizes[0] != sizes[1]):
        raise UsageError(
            f"{draft.name} can't draft for {model.name}: their vocabularies differ ({sizes[0]} and {sizes[1]} tokens); "
            "give a draft of the same tokens, or `lookup`"
        )


def drafter_of(run: Run) -> Drafter | Proposer:
    """Returns the run's drafter: of its draft model, or what its source of drafts makes."""
    if run.draft is not None:
        return ModelDrafter(run)
    assert run.source is not None, "the run has no draft"
    drafter: Drafter | Proposer = run.source.begin(run)
    return drafter


def require_draft(method: Method, run: Run) -> None:
    """Raises `UsageError` where a method that needs a draft has none."""
    if run.draft_model is None and run.source is None:
        raise UsageError(
            f"{method.about.name} needs a draft: a small model of the same tokens, or lookup, table, ppd, self:int4 or "
            f"self:skip; or train a head, which is then found by itself: `outlay train draft --model {run.model.name}`"
        )


def table_of(name: str, run: Run) -> NgramTable | None:
    """Returns the table of n-grams that `name` means for a run's model: a file, "default", or "none".

    Raises `UsageError` for a file that is no table, or one of another tokenizer.
    """
    if name == "none":
        return None
    if name == "default":
        return default_table(run.model.tokenizer)
    path = Path(name)
    return _opened(path, path.stat().st_mtime_ns if path.exists() else 0, run.model.tokenizer)


@cache
def _opened(path: Path, changed: int, tokenizer: Tokenizer) -> NgramTable:
    """Opens a table once for as long as its file stays the same."""
    return NgramTable.load(path, tokenizer)


@cache
def default_table(tokenizer: Tokenizer) -> NgramTable:
    """Returns tri-grams of Python's standard library in these tokens; counts them at first use, in a few seconds."""
    path = hub.cache_folder().parent / "tables" / f"python-{tokenizer_fingerprint(tokenizer)[:16]}.safetensors"
    with contextlib.suppress(UsageError):  # there is none, or a damaged one
        return NgramTable.load(path, tokenizer)
    documents = (tokenizer.encode(text) for text in library_sources(DEFAULT_CHARACTERS))
    NgramTable.build(documents, tokenizer_fingerprint(tokenizer)).save(path)
    return NgramTable.load(path, tokenizer)


@cache
def own_table(model: Model) -> NgramTable | None:
    """Returns the table of n-grams of what a model writes, the user's own or what comes with the package, if any."""
    path = fitted.own_path("table", model)
    if path.exists():
        return NgramTable.load(path, model.tokenizer)
    tokens = tokenizer_fingerprint(model.tokenizer)
    for path in sorted(fitted.SHIPPED.glob("*.table.safetensors")):
        table = NgramTable.load(path)
        if table.tokenizer == tokens:
            return table
    return None


def prompts_of(name: str, run: Run) -> PromptTokens:
    """Returns the prompt tokens that `name` means for a run's model: a file, or "default", those trained for it."""
    return prompts_for(run.model, None if name == "default" else Path(name))


def prompts_for(model: Model, path: Path | None = None) -> PromptTokens:
    """Returns prompt tokens for a model, of a file or those that were trained for it. Raises `UsageError` where there
    are none.
    """
    path = path or fitted.find("ppd", model)
    if path is None:
        raise fitted.missing("ppd", model)
    return load_prompts(path, model)
