"""Receipts: what was asked, of which weights, and a hash chain over the logits of every committed token.

Our kernels give a row the same bits at any width and in every instruction set, so anybody with the weights can make the
chain again: by another exact method, beside other requests, on another processor. Where they can't, it tells at which
token the first bit differs.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from hashlib import sha256
from pathlib import Path
from typing import Any

from torch import Tensor

from outlay import kernels
from outlay.engine.submission import Submission
from outlay.errors import FailureError, UsageError
from outlay.models.digest import weights_digest

VERSION = 1
LINK = 16  # hexadecimal digits of the chain that are kept for each token


class LogitChain:
    """A hash chain: each link is the SHA-256 of the one before, a token, and the logits [vocab] that it came from."""

    def __init__(self) -> None:
        self._digest = b""
        self.links: list[str] = []

    def add(self, token: int, logits: Tensor) -> None:
        """Adds a committed token with the raw logits, float32 [vocab], after the text before it."""
        link = sha256(self._digest + token.to_bytes(8, "little"))
        link.update(logits.float().contiguous().numpy().astype("<f4", copy=False).data)
        self._digest = link.digest()
        self.links.append(self._digest.hex()[:LINK])

    @property
    def digest(self) -> str:
        """The whole of the last link, in hexadecimal."""
        return self._digest.hex()


@dataclass(frozen=True)
class Receipt:
    """What a run was asked and wrote, and what its logits were. JSON can hold all of it."""

    version: int
    model: str
    """The model's name."""
    weights: str
    """The SHA-256 of its weights."""
    format: str
    """How they are held."""
    kv_dtype: str
    """How keys and values are held."""
    arithmetic: int
    """`kernels.ARITHMETIC`."""
    writer: str
    """The version and the instruction set that wrote it."""
    method: str
    """The method with its options."""
    prompt: list[int]
    """The prompt's token ids."""
    request: dict[str, Any]
    """The options: `max_tokens`, `seed`, `stop`, `ignore_eos` and those of sampling."""
    tokens: list[int]
    """The committed tokens."""
    finish_reason: str
    """Why the text ended."""
    links: list[str]
    """The beginning of the chain's link at each token."""
    digest: str
    """The chain's last link."""

    def write(self, path: Path) -> None:
        """Writes it as JSON, whole or not at all. Raises `FailureError` where it can't be written."""
        part = path.with_name(f".{path.name}.part")
        try:
            part.write_text(json.dumps(asdict(self), indent=1) + "\n", encoding="utf-8")
            part.replace(path)
        except OSError as error:
            raise FailureError(f"can't write {path}: {error.strerror}") from error

    @classmethod
    def read(cls, path: Path) -> Receipt:
        """Reads what `write` wrote. Raises `UsageError` for anything else."""
        try:
            raw = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise UsageError(f"{path} can't be read as a receipt: {' '.join(str(error).split())}") from None
        names = {field.name for field in fields(cls)}
        if not isinstance(raw, dict) or raw.keys() != names or raw["version"] != VERSION:
            raise UsageError(f"{path} is no receipt of version {VERSION}")
        if len(raw["links"]) != len(raw["tokens"]):
            raise UsageError(f"{path} is damaged: it has {len(raw['tokens'])} tokens and {len(raw['links'])} links")
        return cls(**raw)

    def first_difference(self, tokens: Sequence[int], links: Sequence[str]) -> tuple[int, str] | None:
        """Returns the first token that another run has otherwise, and whether its "token" or its "logits" differ."""
        for place, (token, link) in enumerate(zip(self.tokens, self.links, strict=True)):
            if place >= len(tokens) or tokens[place] != token:
                return place, "token"
            if links[place] != link:
                return place, "logits"
        return (len(self.tokens), "token") if len(tokens) > len(self.tokens) else None


def receipt_of(
    submission: Submission, method: str, kv_dtype: str, tokens: Sequence[int], finish_reason: str, chain: LogitChain
) -> Receipt:
    """Returns the receipt of a run that has ended."""
    from outlay import __version__

    model, options = submission.model, submission.options
    request: Mapping[str, Any] = {
        **{name: getattr(options, name) for name in ("max_tokens", "seed", "ignore_eos")},
        "stop": list(options.stop),
        **asdict(options.sampling),
    }
    return Receipt(
        version=VERSION,
        model=model.name,
        weights=weights_digest(model).hex(),
        format=model.format,
        kv_dtype=kv_dtype,
        arithmetic=kernels.ARITHMETIC,
        writer=f"outlay {__version__}, {kernels.isa()}",
        method=method,
        prompt=list(submission.prompt),
        request=dict(request),
        tokens=list(tokens),
        finish_reason=finish_reason,
        links=chain.links,
        digest=chain.digest,
    )
