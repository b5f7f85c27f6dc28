"""The manifest: what was compared, with what and where, so that it can be compared again."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import outlay
from outlay import machine
from outlay.budget import Budget
from outlay.compare.contenders import SAMPLING, references
from outlay.compare.items import digest
from outlay.compare.metrics import Metric
from outlay.compare.prepare import Prepared
from outlay.errors import UsageError
from outlay.models.load import Model

PACKAGES = ("outlay", "torch", "numpy", "tokenizers", "safetensors", "gguf", "ray")


def describe(
    prepared: Prepared, source: str, metric: Metric | None, command: Sequence[str], workers: int | None
) -> dict[str, Any]:
    """Returns the manifest of a comparison that is about to begin.

    Args:
        prepared: the declaration with its model and contenders.
        source: where the prompts are from.
        metric: what rates the texts.
        command: the command line.
        workers: how many processes share the runs, None for this one alone.
    """
    declaration, contenders, items = prepared.declaration, prepared.contenders, prepared.items
    lm = prepared.lm
    here = machine.describe(PACKAGES)
    packages, date = here.pop("versions"), here.pop("date")
    return {
        "version": outlay.__version__,
        "created": date,
        "command": list(command),
        "model": _model(lm.model, declaration.model),
        "draft": _draft(prepared),
        "methods": list(dict.fromkeys(contender.name for contender in contenders)),
        "contenders": [
            {"label": contender.label, "method": contender.name, "budget": contender.budget, "reference": reference,
             "sampling": dict(contender.sampling)}
            for contender, reference in zip(contenders, references(prepared.keys, declaration.reference), strict=True)
        ],
        "prompts": {"source": source, "sha256": digest(items), "count": len(items)},
        "metric": declaration.metric,
        "metric_key": metric.key if metric is not None else None,
        "seeds": list(declaration.seeds),
        "repeats": declaration.repeats,
        "batch": declaration.batch,
        "workers": workers,
        "max_tokens": declaration.max_tokens,
        "sampling": {name: getattr(declaration, name) for name in SAMPLING},
        "budgets": [Budget.parse(budget).caps if budget else None for budget in declaration.budgets],
        "machine": here,
        "packages": packages,
        "declaration": declaration.as_dict(),
    }  # fmt: skip


def identity(manifest: dict[str, Any]) -> dict[str, Any]:
    """Returns the part that is equal for all runs of one comparison; metric and traces may change."""
    declared = manifest["declaration"]
    passing = ("model", "draft", "metric", "reference", "trace")
    return {
        "version": manifest["version"],
        "processor": manifest["machine"]["processor"],
        "model": manifest["model"]["fingerprint"],
        "draft": manifest["draft"] and manifest["draft"]["fingerprint"],
        "prompts": manifest["prompts"]["sha256"],
        **{name: value for name, value in declared.items() if name not in passing},
    }


def refuse_other_models(before: Mapping[str, Any] | None, now: Mapping[str, Any]) -> None:
    """Raises `UsageError` where a model of an earlier manifest has other weights now."""
    if before is None:
        return
    for role in ("model", "draft"):
        if before[role] is not None and before[role]["fingerprint"] != now[role]["fingerprint"]:
            raise UsageError(
                f"the {role} {now[role]['source']} has other weights than the one of the manifest, "
                f"{before[role]['name']}; their fingerprints differ"
            )


def _draft(prepared: Prepared) -> dict[str, Any] | None:
    """What the methods draft with: the declared draft, or the one that a method finds by itself."""
    declared = prepared.declaration.draft
    drafts = (prepared.lm.draft(declared, contender.method) for contender in prepared.contenders)
    draft = next((draft for draft in drafts if draft is not None), None)
    if draft is None:
        return None
    if draft.model is not None:
        return _model(draft.model, declared)
    return {"name": declared, "fingerprint": declared, "format": "", "source": declared}


def _model(model: Model, source: str | None) -> dict[str, Any]:
    return {"name": model.name, "fingerprint": model.fingerprint, "format": model.format, "source": source}
