"""States of constraints over single bytes, for their tests."""

from __future__ import annotations

from outlay.constrain.constraint import compile_constraint
from outlay.testing import tiny_model

BYTES = tiny_model().tokenizer


def state_of(constraint, text, tokenizer=BYTES, size=257):
    state = compile_constraint(constraint, tokenizer, size).state
    for byte in text.encode() if isinstance(text, str) else text:
        state = state.after(byte_token(byte)) if state is not None else None
    return state


def byte_token(byte):
    return next(token for token in range(256) if BYTES.bytes_of(token) == bytes([byte]))


def accepts(constraint, text):
    state = state_of(constraint, text)
    return state is not None and state.ends()
