"""Files of what was fitted to one model: draft heads, prompt tokens and filters, as safetensors; thresholds, as JSON.

A file records the fingerprint of its model, by which it is found, and is refused for another model. Files that come
with the package lie in `shipped`; files that a user trains lie in the user's cache by default.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from outlay.errors import FailureError, UsageError
from outlay.models import hub
from outlay.models.load import Model

COMMANDS = {
    "head": "outlay train draft", "ppd": "outlay train ppd", "threshold": "outlay train threshold",
    "filter": "outlay train filter", "length": "outlay train length",
}  # fmt: skip
"""The command that trains each kind: "head" is a draft head, "ppd" are prompt tokens, "threshold" is one of entropy,
"filter" a commit filter, "length" predicts lengths."""
_MISSING = {
    "head": "is no draft head", "ppd": "are no prompt tokens", "threshold": "is no entropy threshold",
    "filter": "is no commit filter", "length": "is no length predictor",
}  # fmt: skip
_NUMBERS = {"threshold"}  # kinds without tensors, which are JSON


def own_path(kind: str, model: Model) -> Path:
    """Returns where a file that a user trains for a model is kept by default."""
    suffix = "json" if kind in _NUMBERS else "safetensors"
    return hub.cache_folder().parent / "drafts" / f"{model.fingerprint[:16]}.{kind}.{suffix}"


def find(kind: str, model: Model) -> Path | None:
    """Returns the file of a kind that was fitted to a model: the user's own, else the package's, else None."""
    own = own_path(kind, model)
    return own if own.exists() else _shipped().get((kind, model.fingerprint))


def missing(kind: str, model: Model) -> UsageError:
    """Returns the error for a model that nothing of this kind was fitted to; it names the command to run."""
    return UsageError(f"there {_MISSING[kind]} for {model.name}; `{COMMANDS[kind]} --model {model.name}` trains one")


@cache
def _shipped() -> dict[tuple[str, str], Path]:
    found = {}
    # MODEL.KIND: other files are fitted to data, not a model
    for path in sorted([*hub.SHIPPED.glob("*.*.safetensors"), *hub.SHIPPED.glob("*.*.json")]):
        about = describe(path)
        if about["kind"] != "ngrams":
            found[about["kind"], about["fingerprint"]] = path
    return found


def describe(path: Path) -> dict[str, Any]:
    """Returns a file's own description: its kind, its model's name and fingerprint, and what the kind adds.

    Raises:
        UsageError: if the file can't be read, or `outlay` did not write it.
    """
    try:
        about: dict[str, Any] = json.loads(_description(path))
    except FileNotFoundError:
        raise UsageError(f"there is no file {path}") from None
    except (SafetensorError, OSError, ValueError) as error:
        raise UsageError(f"{path} can't be read: {' '.join(str(error).split())}") from None
    known = isinstance(about, dict) and (about.get("kind") == "ngrams" or {"kind", "fingerprint"} <= set(about))
    if not known:  # a table is of a tokenizer
        raise UsageError(f"{path} holds nothing that outlay trained")
    return about


def _description(path: Path) -> str:
    """Returns what a file says of itself: a file of JSON is nothing else."""
    with path.open("rb") as begun:
        text = b"\0" not in begun.read(8)  # where safetensors have the length of a header as an integer
    if text:
        return path.read_text(encoding="utf-8")
    with safe_open(path, framework="pt") as file:
        return str((file.metadata() or {}).get("about", "{}"))


def description(path: Path, kind: str, target: Model) -> dict[str, Any]:
    """Returns the description of what was fitted to a model; its arguments and errors are those of `read`."""
    found = describe(path)
    if found["kind"] != kind:
        raise UsageError(f"{path} holds a {found['kind']!r}, not a {kind!r}")
    if found["fingerprint"] != target.fingerprint:
        raise UsageError(
            f"{path} was trained for {found['model']}, whose weights are not those of {target.name}; "
            f"`{COMMANDS[kind]} --model {target.name}` trains one for it"
        )
    return found


def read(path: Path, kind: str, target: Model) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Reads what was fitted to a model.

    Args:
        path: the file.
        kind: the kind that it must be of: a key of `COMMANDS`.
        target: the model that it must belong to.

    Returns:
        The tensors by name, and the file's description.

    Raises:
        UsageError: if the file can't be read, is of another kind, or belongs to another model.
    """
    described = description(path, kind, target)
    if kind in _NUMBERS:
        return {}, described
    with safe_open(path, framework="pt") as file:
        return {name: file.get_tensor(name) for name in file.keys()}, described  # noqa: SIM118 - no dict


def write(path: Path, kind: str, model: Model, tensors: Mapping[str, Tensor], **about: Any) -> None:
    """Writes what was fitted to a model, whole or not at all.

    Args:
        path: the file; folders above it are made.
        kind: a key of `COMMANDS`.
        model: the model that it was fitted to.
        tensors: what was fitted, by name.
        about: what the description says besides; JSON values.

    Raises:
        FailureError: if the file can't be written.
    """
    description = {"kind": kind, "model": model.name, "fingerprint": model.fingerprint, **about}
    part = path.with_name(f".{path.name}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if kind in _NUMBERS:
            part.write_text(json.dumps(description, indent=1) + "\n")
        else:
            plain = {name: tensor.contiguous() for name, tensor in tensors.items()}
            save_file(plain, part, {"about": json.dumps(description)})
        part.replace(path)
    except (OSError, SafetensorError) as error:
        raise FailureError(f"can't write {path}: {getattr(error, 'strerror', None) or error}") from error
