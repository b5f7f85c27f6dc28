"""The encoder of an encoder-decoder: layers in which each row sees all rows of its own input.

It is a decoder's stack without an LM head, so that the passes that run decoders run it: a pass writes keys and values
of a layer before it reads them, and its plan says that a row reads its whole input. A flat pass takes any number of
inputs, without padding.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from outlay.models.config import DecoderConfig
from outlay.models.decoder import Decoder, Layer
from outlay.models.embedding import Embedding
from outlay.models.linear import Linear
from outlay.models.norm import Norm
from outlay.models.speech import Stem


class _NoHead(Linear):
    """In place of an LM head: an encoder writes no tokens."""

    format = "float32"
    out_features = nbytes = 0

    def __init__(self, in_features: int) -> None:
        self.in_features = in_features

    def __call__(self, x: Tensor) -> Tensor:
        return x.new_empty(x.shape[0], 0)


class Encoder(Decoder):
    """A network whose result are its last hidden states, after the final norm: `hidden_states(hidden(...))`.

    Attributes:
        stem: what makes the first layer's input of sound, in place of input embeddings; None: it reads tokens.
        fingerprint: identifies the weights: models whose encoders have the same one read an input once.

    """

    def __init__(
        self,
        config: DecoderConfig,
        layers: Sequence[Layer],
        embed: Embedding,
        *,
        final_norm: Norm | None,
        positions: Tensor | None = None,
        embed_norm: Norm | None = None,
        relative: Tensor | None = None,
        fingerprint: str = "",
        stem: Stem | None = None,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> None:
        self.fingerprint, self.stem = fingerprint, stem
        super().__init__(
            config,
            layers,
            embed,
            _NoHead(config.hidden_size),
            final_norm=final_norm,
            positions=positions,
            embed_norm=embed_norm,
            relative=relative,
            dtype=dtype,
            device=device,
        )
