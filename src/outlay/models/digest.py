"""The SHA-256 of a model's weights, all of them: computed once for each file and cached beside the models."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import suppress
from hashlib import file_digest, sha256
from pathlib import Path

import torch
from torch import Tensor

from outlay.models import hub
from outlay.models.decoder import Decoder
from outlay.models.load import Model

TOLD = ("config.json", "tokenizer.json")  # of a folder, beside its weights: what texts depend on


def weights_digest(model: Model) -> bytes:
    """Returns the SHA-256 of the file that a model was loaded from.

    A folder has that of its configuration, tokenizer and weights; a model that was made in memory, of its tensors.
    """
    if model.path is None:
        return _digest_of_tensors(model.decoder)
    if model.path.is_file():
        return _file_digest(model.path)
    digest = sha256()
    for path in sorted([*model.path.glob("*.safetensors"), *(model.path / name for name in TOLD)]):
        if path.exists():
            digest.update(path.name.encode() + b"\0" + _file_digest(path))
    return digest.digest()


def _file_digest(path: Path) -> bytes:
    """Returns the SHA-256 of a file, from beside the cache of models where the file has not changed since."""
    path = path.resolve()
    stat = path.stat()
    state = [str(path), stat.st_size, stat.st_mtime_ns]
    kept = hub.cache_folder().parent / "digests" / f"{sha256(str(path).encode()).hexdigest()[:32]}.json"
    with suppress(OSError, ValueError, KeyError, TypeError):
        known = json.loads(kept.read_text())
        if known["state"] == state:
            return bytes.fromhex(known["sha256"])
    with path.open("rb") as file:
        found = file_digest(file, "sha256")
    with suppress(OSError):  # a cache that can't be written costs time, nothing else
        kept.parent.mkdir(parents=True, exist_ok=True)
        part = kept.with_suffix(".part")
        part.write_text(json.dumps({"state": state, "sha256": found.hexdigest()}))
        part.replace(kept)
    return found.digest()


def _digest_of_tensors(decoder: Decoder) -> bytes:
    digest = sha256()
    for tensor in _tensors(
        [decoder.config.__dict__, decoder.embed, decoder.layers, decoder.lm_head, decoder.final_norm]
    ):
        digest.update(tensor)
    return digest.digest()


def _tensors(value: object) -> Iterator[bytes]:
    """Yields the bytes of all tensors and numbers below a value, in the order of its parts' names."""
    if isinstance(value, Tensor):
        yield str(value.dtype).encode() + str(list(value.shape)).encode()
        yield value.detach().contiguous().cpu().flatten().view(torch.uint8).numpy().tobytes() if value.numel() else b""
    elif isinstance(value, dict):
        for key in sorted(value, key=str):
            yield str(key).encode()
            yield from _tensors(value[key])
    elif isinstance(value, list | tuple):
        for part in value:
            yield from _tensors(part)
    elif isinstance(value, str | int | float | None):
        yield repr(value).encode()
    elif hasattr(value, "__dict__"):
        yield from _tensors({key: part for key, part in vars(value).items() if not key.startswith("_")})
