"""The official JSON Schema suite (draft 2020-12): each text is fed through its compiled schema, byte by byte."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from outlay.bench.data import DATA
from outlay.constrain import Constraint, JsonSchema, State
from outlay.constrain.constraint import compile_constraint
from outlay.errors import UsageError
from outlay.testing import tiny_model

CASES = DATA / "json_schema_draft2020-12"


def graded(files: Sequence[Path] | None = None) -> dict[str, int]:
    """Returns how many cases of the JSON Schema suite are right, accepted or rejected wrongly, or refused.

    A schema that is refused since no text satisfies it is right where the case is one of an invalid text.

    Args:
        files: Of the suite; None: all.
    """
    model = tiny_model()
    byte_tokens = {model.tokenizer.bytes_of(token): token for token in range(256)}
    counts = dict.fromkeys(("right", "accepted wrongly", "rejected wrongly", "refused"), 0)
    for file in sorted(CASES.glob("*.json")) if files is None else files:
        for group in json.loads(file.read_text()):
            for case in group["tests"]:
                text = json.dumps(case["data"], ensure_ascii=False).encode()
                try:
                    found = _accepts(JsonSchema(group["schema"]), text, byte_tokens, model)
                except UsageError as error:
                    right = not case["valid"] and "no text satisfies" in str(error)
                    counts["right" if right else "refused"] += 1
                    continue
                wrongly = "accepted wrongly" if found else "rejected wrongly"
                counts["right" if found == case["valid"] else wrongly] += 1
    return counts


def _accepts(constraint: Constraint, text: bytes, byte_tokens: dict[bytes, int], model: Any) -> bool:
    state: State | None = compile_constraint(constraint, model.tokenizer, model.decoder.config.vocab_size).state
    for byte in text:
        state = state.after(byte_tokens[bytes([byte])]) if state is not None else None
    return state is not None and state.ends()
