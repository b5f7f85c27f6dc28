"""What `--draft NAME` means: which drafter a submission gets."""

from __future__ import annotations

from pathlib import Path

from outlay.decode.draft.aded import TableProposer
from outlay.decode.draft.ppd.prompt_tokens import PromptDrafter, PromptTokens, load_prompt_tokens, open_prompt_tokens
from outlay.engine.submission import DraftSource
from outlay.errors import UsageError
from outlay.models import fitted
from outlay.models.draft_head import load_draft_head
from outlay.models.layer_skip import layer_skip_draft
from outlay.models.load import Model, load_model
from outlay.speculation.lookup import LookupProposer
from outlay.speculation.model_drafter import ModelDrafter
from outlay.speculation.ngrams import NgramTable, tokenizer_fingerprint
from outlay.speculation.tables import default_table

LOOKUP_LONGEST = 3  # tokens of the text's end that `--draft lookup` looks for, as the method `lookup` does by default


def resolve(draft: str, model: Model) -> DraftSource:
    """Returns the draft that a name means for a model.

    Args:
        draft: `head`, `lookup`, `table` or `ppd`; `self:int4`, `self:skip` or both, the model itself with less of it; a
            file that `outlay train` wrote; or another model of the same tokens.
        model: The target model.

    Raises:
        UsageError: Where it can't be had or doesn't fit the model.
    """
    name, _, options = draft.partition(":")
    if draft == "head":
        path = fitted.find("head", model)
        if path is None:
            raise fitted.missing("head", model)
        return model_draft(load_draft_head(path, model))
    if draft == "lookup":
        return DraftSource(lambda run: LookupProposer(run, LOOKUP_LONGEST))
    if draft == "table":
        return table_draft(default_table(model.tokenizer))
    if draft == "ppd":
        return prompt_draft(open_prompt_tokens("default", model))
    if name == "self":
        return model_draft(layer_skip_draft(model, options))
    if draft.endswith(".safetensors"):
        return _of_file(Path(draft).expanduser(), model)
    other = load_model(draft, device=str(model.decoder.device))
    refuse_other_tokens(other, model)
    return model_draft(other)


def default_draft(model: Model) -> DraftSource | None:
    """Returns the draft head that was trained for a model; None where there is none."""
    return resolve("head", model) if fitted.find("head", model) is not None else None


def model_draft(model: Model) -> DraftSource:
    """Returns a draft model, or a draft head, as a draft."""
    return DraftSource(ModelDrafter, model)


def table_draft(table: NgramTable | None) -> DraftSource:
    """Returns a table of tri-grams as a draft. It learns anew in each run."""
    return DraftSource(lambda run: TableProposer(run, table))


def prompt_draft(prompts: PromptTokens) -> DraftSource:
    """Returns prompt tokens as a draft."""
    return DraftSource(lambda run: PromptDrafter(run, prompts))


def refuse_other_tokens(draft: Model, model: Model) -> None:
    """Raises `UsageError` where a draft model's tokens are not the target's."""
    same = tokenizer_fingerprint(draft.tokenizer) == tokenizer_fingerprint(model.tokenizer)
    sizes = draft.decoder.config.vocab_size, model.decoder.config.vocab_size
    if not same or (draft.vocabulary is None and sizes[0] != sizes[1]):
        raise UsageError(
            f"{draft.name} can't draft for {model.name}: their vocabularies differ ({sizes[0]} and {sizes[1]} tokens); "
            "give a draft of the same tokens, or `lookup`"
        )


def _of_file(path: Path, model: Model) -> DraftSource:
    kind = fitted.describe(path)["kind"]
    if kind == "ngrams":
        return table_draft(NgramTable.load(path, model.tokenizer))
    return (
        model_draft(load_draft_head(path, model)) if kind == "head" else prompt_draft(load_prompt_tokens(path, model))
    )
