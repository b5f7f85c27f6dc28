"""A model without layers: its pass computes the marginals of a known distribution, given what a row sees.

Its cache holds the tokens that it read in place of keys and values, so it is stale where that of a network would be.
"""

from __future__ import annotations

import hashlib
from abc import abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import tokenizers
import torch
from numpy.typing import NDArray
from tokenizers import decoders, models, pre_tokenizers
from torch import Tensor

from outlay.engine.passes import ALL_LOGITS, LogitsWanted, PassOutput
from outlay.models.config import DecoderConfig, MaskedDiffusion
from outlay.models.decoder import Decoder
from outlay.models.load import Model
from outlay.models.tokenizer import Tokenizer
from outlay.tree.cache import Cache
from outlay.tree.plan import KVSpan, PassPlan

LETTERS = "abcdefghijklmnopqrstuvwxyz"
START, EQUALS, NEW, END = "^", "=", "#", "."
PIECES = [*LETTERS, START, EQUALS, NEW, END]
"""The tokens of all exact denoisers: the letters, the start of a text, the end of a list, a new item, the end."""
IDS = {piece: token for token, piece in enumerate(PIECES)}
MASK = len(PIECES)
VOCAB = MASK + 1
CONTEXT = 1024
Tokens = NDArray[np.int64]
Probs = NDArray[np.float64]


@dataclass(frozen=True)
class ExactDenoiser:
    """A distribution over texts. `marginals` gives that of each position, given all that is not masked."""

    name: ClassVar[str]

    @abstractmethod
    def marginals(self, tokens: Tokens) -> Probs:
        """Returns the distribution of each position given the tokens that are not masked, [length, `VOCAB`].

        Args:
            tokens: The prompt and the canvas, `MASK` where it is masked, [length].
        """

    def nll(self, text: Tokens) -> float:
        """Returns minus the log-probability of a whole text, its prompt included, in nats; infinity if it has none."""
        prompt = self.given(text)
        tokens, total = np.concatenate([text[:prompt], np.full(len(text) - prompt, MASK)]), 0.0
        for place in range(prompt, len(text)):
            probability = self.marginals(tokens)[place, text[place]]
            if probability <= 0:
                return np.inf
            total -= float(np.log(probability))
            tokens[place] = text[place]
        return total

    @abstractmethod
    def given(self, text: Tokens) -> int:
        """Returns how many tokens at the beginning of a text its distribution doesn't draw."""


class ExactDecoder(Decoder):
    """Stands in place of a network. No pass runs its layers, for it has none."""

    code = "exact"

    def __init__(self, name: str) -> None:
        self.config = DecoderConfig(
            architecture=name, vocab_size=VOCAB, hidden_size=1, num_layers=0, num_heads=1, num_kv_heads=1, head_dim=1,
            intermediate_size=1, max_positions=CONTEXT, windows=(None,), attention_scale=1.0,
            eos_token_ids=(IDS[END],), diffusion=MaskedDiffusion(MASK),
        )  # fmt: skip
        self.dtype, self.device = torch.float32, torch.device("cpu")

    def pass_weight_bytes(self, tokens: int) -> int:
        """Returns 0: there are no weights."""
        return 0

    def linear_flops(self, n_rows: int, n_lm_head_rows: int) -> int:
        """Returns 0: there are no linear layers."""
        return 0


class ExactPass:
    """Runs passes of an exact denoiser over a cache."""

    name = "exact"

    def __init__(self, denoiser: ExactDenoiser, cache: Cache) -> None:
        self._denoiser, self._cache = denoiser, cache
        self._tokens = np.empty(0, dtype=np.int64)

    def __call__(self, plan: PassPlan, logit_rows: list[int], wanted: LogitsWanted = ALL_LOGITS) -> PassOutput:
        """As `LayeredPass`, of all logits."""
        if len(self._tokens) < self._cache.capacity:
            self._tokens = np.pad(self._tokens, (0, self._cache.capacity - len(self._tokens)))
        self._tokens[plan.slots] = plan.tokens
        logits = torch.empty(len(logit_rows), VOCAB)
        for rows, seen in self._views(plan.kv_spans[None], logit_rows):
            marginals = self._denoiser.marginals(seen)
            positions = [plan.positions[logit_rows[row]] for row in rows]
            logits[rows] = _log(marginals[positions])
        return PassOutput(logits, None)

    def _views(self, spans: list[KVSpan], logit_rows: list[int]) -> list[tuple[list[int], Tokens]]:
        """Groups rows by what they see; returns their places in `logit_rows`, and the tokens seen from position 0."""
        keys: dict[int, list[tuple[int, int]]] = {row: [] for row in logit_rows}
        for number, span in enumerate(spans):
            limits = span.limits or [span.length] * len(span.rows)
            for row, limit in zip(span.rows, limits, strict=True):
                if row in keys:
                    keys[row].append((number, limit))
        groups: dict[tuple[tuple[int, int], ...], list[int]] = {}
        for place, row in enumerate(logit_rows):
            groups.setdefault(tuple(keys[row]), []).append(place)
        return [(places, self._seen(spans, seen)) for seen, places in groups.items()]

    def _seen(self, spans: list[KVSpan], seen: tuple[tuple[int, int], ...]) -> Tokens:
        parts = []
        for number, limit in seen:
            span = spans[number]
            slots = np.arange(span.start, span.start + limit) if span.slots is None else np.array(span.slots[:limit])
            parts.append(self._tokens[slots])
        return np.concatenate(parts)


def exact_model(denoiser: ExactDenoiser, name: str | None = None) -> Model:
    """Returns the model that draws from a known distribution, for the engine."""
    name = name or f"exact-{denoiser.name}"
    return Model(
        name,
        ExactDecoder(name),
        _tokenizer(),
        hashlib.sha256(f"exact {denoiser!r}".encode()).hexdigest(),
        "float32",
        make_pass=lambda cache: ExactPass(denoiser, cache),
    )


def ids(text: str) -> Tokens:
    """Returns the tokens of a text of `PIECES`."""
    return np.array([IDS[letter] for letter in text], dtype=np.int64)


def _log(probs: Probs) -> Tensor:
    with np.errstate(divide="ignore"):
        return torch.from_numpy(np.log(probs)).float()


def _tokenizer() -> Tokenizer:
    inner = tokenizers.Tokenizer(models.BPE(vocab=dict(IDS), merges=[]))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    inner.decoder = decoders.ByteLevel()
    inner.add_special_tokens([tokenizers.AddedToken("<mask>", special=True)])
    return Tokenizer(inner, eos_token_ids=(IDS[END],))
