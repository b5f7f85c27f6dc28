"""What an encoder or a vision tower made of an input, for all models that have the same one."""

from __future__ import annotations

from torch import Tensor


class EncoderOutput:
    """What an encoder made of an input, [n, hidden_size]: decoders read it, or make their keys and values of it."""

    def __init__(self, states: Tensor) -> None:
        self.states = states
