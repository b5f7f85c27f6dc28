"""What was measured on this machine: a JSON file in the user's cache for each thing, by all that it depends on."""

from __future__ import annotations

import json
from hashlib import sha256
from pathlib import Path
from typing import Any

import torch

from outlay import kernels
from outlay.machine import processor
from outlay.models import hub


def measured_file(*about: object) -> Path:
    """Returns the file for what depends on these things, and on the processor, its instructions and the threads."""
    threads = kernels.threads() if kernels.available() else torch.get_num_threads()
    key = "\n".join(map(str, [*about, kernels.isa(), threads, processor()]))
    return hub.cache_folder().parent / "costs" / f"{sha256(key.encode()).hexdigest()[:24]}.json"


def read_measured(path: Path) -> Any:
    """Returns what a file holds; None where it can't be read."""
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError):
        return None


def write_measured(path: Path, held: Any) -> None:
    """Writes a file; where the cache can't be written, what it would hold is measured again next time."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_suffix(".part")
        part.write_text(json.dumps(held))
        part.replace(path)
    except OSError:
        return
