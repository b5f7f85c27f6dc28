"""Finds models: local paths, aliases that are fetched once into the user's cache, and the hub."""

from __future__ import annotations

import json
import os
from functools import cache
from pathlib import Path

from outlay.errors import FailureError, UsageError, nearest
from outlay.models.fetch import ALIASES, Alias, Progress, fetch

SHIPPED = Path(__file__).parent / "shipped"
OWN = "outlay/"
"""The owner of the models that come with the package, as names on the hub have one."""
HUB_FILES = ["*.json", "*.safetensors", "*.jinja", "*.model"]
_TIMEOUT = "10"


def cache_folder() -> Path:
    """Returns the folder that holds fetched models: under $OUTLAY_CACHE, $XDG_CACHE_HOME/outlay or ~/.cache/outlay."""
    own, shared = os.environ.get("OUTLAY_CACHE"), os.environ.get("XDG_CACHE_HOME")
    base = Path(own) if own else (Path(shared) if shared else Path.home() / ".cache") / "outlay"
    return base.expanduser() / "models"


def aliases() -> tuple[Alias, ...]:
    """Returns the models that have a short name."""
    return tuple(ALIASES.values())


def on_disk() -> dict[str, Path]:
    """Returns the aliases that are already in the cache, and where."""
    paths = {name: alias_path(alias) for name, alias in ALIASES.items()}
    return {name: path for name, path in paths.items() if path.exists()}


def alias_path(alias: Alias) -> Path:
    """Returns where an alias's file lies once it is fetched."""
    return cache_folder() / alias.file


@cache
def shipped(kind: str = "") -> dict[str, Path]:
    """Returns the folders of the models that come with the package, by name.

    Args:
        kind: What their configuration calls itself, such as a detector; models of text call themselves nothing.
    """
    return {
        f"{OWN}{config.parent.name}": config.parent
        for config in sorted(SHIPPED.glob("*/config.json"))
        if json.loads(config.read_text()).get("kind", "") == kind
    }


def pull(alias: str, progress: Progress | None = None) -> Path:
    """Returns the file of an alias, and fetches it first if it is not in the cache. Several processes may call this.

    Raises:
        UsageError: if there is no such alias.
        FailureError: if it can't be fetched.
    """
    if alias not in ALIASES:
        raise UsageError(f"no model is called {alias!r}{nearest(alias, ALIASES)}; known: {', '.join(ALIASES)}")
    path = alias_path(ALIASES[alias])
    return path if path.exists() else fetch(ALIASES[alias], path, progress)


def resolve(source: str | Path, progress: Progress | None = None) -> Path:
    """Finds a model, and fetches it if necessary.

    Args:
        source: an alias, a path, the name of a model that comes with the package, or `org/name[@revision]` on the hub.
        progress: told of a download: what, bytes so far, bytes in all.

    Returns:
        A folder or a GGUF file.

    Raises:
        UsageError: if there is no such model.
        FailureError: if it can't be fetched.
    """
    text = str(source)
    if text in ALIASES:
        return pull(text, progress)
    if text in shipped():
        return shipped()[text]
    path = Path(source).expanduser()
    if path.is_dir() or path.is_file():
        return path
    if OWN + text in shipped():
        return shipped()[OWN + text]
    if path.suffix == ".gguf" or text.startswith((".", "/", "~")):
        raise UsageError(f"there is no file or folder {text}")
    if text.startswith(OWN):
        raise UsageError(f"no model is called {text!r}{nearest(text, shipped())}; known: {', '.join(shipped())}")
    owner, _, rest = text.partition("/")
    if owner and rest and "/" not in rest and isinstance(source, str):
        return _snapshot(text)
    known = nearest(text, ALIASES)
    raise UsageError(
        f"no model is called {text!r}{known}; give an alias ({', '.join(ALIASES)}), a folder, a .gguf file or org/name"
    )


def _snapshot(name: str) -> Path:
    """Returns a model's folder in the hub's own cache, and fetches it first if it is not there."""
    os.environ.setdefault("HF_HUB_ETAG_TIMEOUT", _TIMEOUT)
    os.environ.setdefault("HF_HUB_DOWNLOAD_TIMEOUT", _TIMEOUT)
    try:
        from huggingface_hub import snapshot_download
        from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError, RepositoryNotFoundError
    except ImportError:
        raise UsageError(
            f"there is no file {name!r}, and fetching it from the hub needs an extra: pip install 'outlay[hub]'"
        ) from None
    repository, _, revision = name.partition("@")
    try:
        folder = snapshot_download(
            repository, revision=revision or None, allow_patterns=HUB_FILES, etag_timeout=float(_TIMEOUT)
        )
        return Path(folder)
    except HFValidationError:
        raise UsageError(f"{repository!r} is neither a file nor a name on the hub (org/name)") from None
    except RepositoryNotFoundError:
        raise UsageError(f"the hub has no model {repository!r}, or you may not read it") from None
    except LocalEntryNotFoundError:
        raise FailureError(f"the hub cannot be reached, and {repository} is not in its cache here") from None
    except (OSError, ValueError, RuntimeError) as error:
        raise FailureError(f"{repository} could not be fetched from the hub: {_first_line(error)}") from None


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0][:200]
