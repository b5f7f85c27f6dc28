"""Files of what was fitted to a model, draft heads and prompt tokens: each says whose it is, and no other takes it.

Those that come with the package lie in `shipped`; those that a user trains, in the user's cache unless they are put
elsewhere. Both are found by the fingerprint of the model.
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

SHIPPED = Path(__file__).parent / "shipped"
COMMANDS = {"head": "outlay train draft", "ppd": "outlay train ppd"}


def own_path(kind: str, model: Model) -> Path:
    """Returns where what a user trains for a model is kept."""
    return hub.cache_folder().parent / "drafts" / f"{model.fingerprint[:16]}.{kind}.safetensors"


def find(kind: str, model: Model) -> Path | None:
    """Returns what was fitted to a model, the user's own or what comes with the package, or None."""
    own = own_path(kind, model)
    return own if own.exists() else _shipped().get((kind, model.fingerprint))


def missing(kind: str, model: Model) -> UsageError:
    """Returns the error that says what to run where nothing was fitted to a model."""
    what = {"head": "is no draft head", "ppd": "are no prompt tokens"}[kind]
    return UsageError(f"there {what} for {model.name}; `{COMMANDS[kind]} --model {model.name}` trains one")


@cache
def _shipped() -> dict[tuple[str, str], Path]:
    found = {}
    for path in sorted(SHIPPED.glob("*.safetensors")):
        about = describe(path)
        if about["kind"] != "ngrams":
            found[about["kind"], about["fingerprint"]] = path
    return found


def describe(path: Path) -> dict[str, Any]:
    """Returns what a file says about itself. Raises `UsageError` for one that can't be read or is none of ours."""
    try:
        with safe_open(path, framework="pt") as file:
            about: dict[str, Any] = json.loads((file.metadata() or {}).get("about", "{}"))
    except FileNotFoundError:
        raise UsageError(f"there is no file {path}") from None
    except (SafetensorError, OSError, ValueError) as error:
        raise UsageError(f"{path} can't be read: {' '.join(str(error).split())}") from None
    if about.get("kind") != "ngrams" and not {"kind", "fingerprint"} <= set(about):  # a table is of a tokenizer
        raise UsageError(f"{path} holds nothing that outlay trained")
    return about


def read(path: Path, kind: str, target: Model) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Returns the tensors of something that was fitted to a model, and what its file says about it.

    Raises `UsageError` for a file that can't be read, is of another kind, or belongs to another model.
    """
    about = describe(path)
    if about["kind"] != kind:
        raise UsageError(f"{path} holds a {about['kind']!r}, not a {kind!r}")
    if about["fingerprint"] != target.fingerprint:
        raise UsageError(
            f"{path} was trained for {about['model']}, whose weights are not those of {target.name}; "
            f"`{COMMANDS[kind]} --model {target.name}` trains one for it"
        )
    with safe_open(path, framework="pt") as file:
        return {name: file.get_tensor(name) for name in file.keys()}, about  # noqa: SIM118 - no dict


def write(path: Path, kind: str, model: Model, tensors: Mapping[str, Tensor], **about: Any) -> None:
    """Writes what was fitted to a model, whole or not at all. Raises `FailureError` where that fails."""
    told = {"kind": kind, "model": model.name, "fingerprint": model.fingerprint, **about}
    part = path.with_name(f".{path.name}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, part, {"about": json.dumps(told)})
        part.replace(path)
    except (OSError, SafetensorError) as error:
        raise FailureError(f"can't write {path}: {getattr(error, 'strerror', None) or error}") from error
