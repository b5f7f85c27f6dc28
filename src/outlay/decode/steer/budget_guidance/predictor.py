"""The length predictor: how many thinking tokens remain if a token comes next, as a Gamma distribution for each token.

It reads the frozen model's hidden states of all layers at one position. The logarithm log(L + 1) of the remaining
length L, which counts the next token and the closing tag, is Gamma distributed (Li et al. 2025, section 3).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from outlay.errors import UsageError
from outlay.models import fitted
from outlay.models.decoder import Decoder
from outlay.models.load import Model
from outlay.models.reasoning import Tags

KIND = "length"
LEAST = 1e-4  # of shape and rate, before their logarithms
LEAST_LOG_CDF = -700.0  # nats: what a float64 still holds as a probability


@dataclass(frozen=True)
class PredictorShape:
    """The size of a predictor's encoder; with 0 layers the last hidden state goes straight to the heads."""

    width: int = 128
    """Width of the encoder. Paper: 768."""
    layers: int = 2
    """Layers of the encoder. Paper: 12."""
    heads: int = 4
    """Attention heads of a layer. Paper: 12."""

    def __post_init__(self) -> None:
        if self.layers < 0 or self.width < 1 or self.heads < 1:
            raise UsageError("a length predictor has a width and heads of 1 or more, and 0 layers or more")
        if self.width % self.heads:
            raise UsageError(f"a width of {self.width} can't be split among {self.heads} heads; take a multiple")


class LengthPredictor(nn.Module):
    """A BERT-style encoder over the layers of the model, a CLS row before them, and a shape and a rate for each token.

    The encoder's sequence is depth, not time: each position is encoded by itself. There are no position embeddings, so
    the order of the layers does not matter.
    """

    def __init__(self, hidden_size: int, vocab: int, shape: PredictorShape) -> None:
        """Draws the weights. The heads begin at 0, so that a token that was never seen keeps a rate of log 2."""
        super().__init__()
        self.shape = shape
        if shape.layers:
            self.cls = nn.Parameter(torch.zeros(hidden_size))
            self.project = nn.Linear(hidden_size, shape.width)
            layer = nn.TransformerEncoderLayer(
                shape.width, shape.heads, 4 * shape.width, 0.1, F.gelu, 1e-12, batch_first=True
            )
            self.encoder = nn.TransformerEncoder(layer, shape.layers, enable_nested_tensor=False)
        width = shape.width if shape.layers else hidden_size
        self.shape_head, self.rate_head = (nn.Parameter(torch.zeros(vocab, width)) for _ in range(2))

    def encode(self, states: Tensor) -> Tensor:
        """Returns what the heads read, [rows, width], of `layer_outputs`, [rows, layers + 1, hidden_size]."""
        if not self.shape.layers:
            return states[:, -1]
        rows = torch.cat([self.cls.expand(len(states), 1, -1), states], dim=1)
        encoded: Tensor = self.encoder(self.project(rows))[:, 0]
        return encoded

    def forward(self, states: Tensor) -> tuple[Tensor, Tensor]:
        """Returns the shape and the rate for every next token, float32 [rows, vocab] each."""
        encoded = self.encode(states)
        return positive(encoded @ self.shape_head.T), positive(encoded @ self.rate_head.T)

    def at(self, states: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """Returns the shape and the rate for one next token of each row, [rows] each; `tokens` is int64 [rows]."""
        encoded = self.encode(states)
        shape, rate = ((encoded * head[tokens]).sum(-1) for head in (self.shape_head, self.rate_head))
        return positive(shape), positive(rate)

    def flops(self, depth: int) -> int:
        """Returns the multiply-adds of one guided token, twice, over `depth` rows of layers: no context is read."""
        vocab, width = self.shape_head.shape
        if not self.shape.layers:
            return 4 * vocab * width
        rows, hidden = depth + 1, len(self.cls)
        layer = 2 * rows * 12 * width * width + 4 * rows * rows * width
        return 2 * rows * hidden * width + self.shape.layers * layer + 4 * vocab * width


@dataclass(frozen=True, eq=False)
class FittedPredictor:
    """A predictor with what its training found out."""

    net: LengthPredictor
    tags: Tags
    """What stood around the thinking that it was trained on."""
    min_rate: float
    """The rate below which a token counts as untrained."""


def layer_outputs(decoder: Decoder, states: Tensor) -> Tensor:
    """Returns hidden states [rows, layers + 1, hidden_size] with the last layer's after the final norm."""
    if decoder.final_norm is None:
        return states
    return torch.cat([states[:, :-1], decoder.final_norm(states[:, -1:])], dim=1)


def positive(x: Tensor) -> Tensor:
    """Returns softplus(x) in float32, at least `LEAST`."""
    return F.softplus(x.float()).clamp_min(LEAST)


def gamma_nll(shape: Tensor, rate: Tensor, lengths: Tensor) -> Tensor:
    """Returns -log p(log(L + 1)) under Gamma distributions with these shapes and rates, elementwise."""
    z = torch.log(lengths + 1.0)
    return -(shape * rate.log() - torch.lgamma(shape) + (shape - 1) * z.log() - rate * z)


def log_within(shape: Tensor, rate: Tensor, budget: float) -> Tensor:
    """Returns log Pr(L <= budget), float64, elementwise: the CDF of log(L + 1) at log(budget + 1)."""
    z = torch.log(torch.tensor(budget + 1.0, dtype=torch.float64))
    within = torch.special.gammainc(shape.double(), rate.double() * z)
    return within.clamp(max=1.0).log().clamp_min(LEAST_LOG_CDF)


def most_likely_length(shape: Tensor, rate: Tensor) -> Tensor:
    """Returns the remaining length at the mode of log(L + 1), which the authors call the expected length."""
    return torch.exp((shape - 1) / rate) - 1


def about_predictor(name: str, model: Model) -> tuple[Path, dict[str, Any]]:
    """Returns the file that `name` means for a model, "default" being the one trained for it, and its description.

    Raises:
        UsageError: Where there is none, for what is no such file, and for another model's.
    """
    path = fitted.find(KIND, model) if name == "default" else Path(name)
    if path is None:
        raise fitted.missing(KIND, model)
    return path, fitted.description(path, KIND, model)


def open_predictor(name: str, model: Model) -> FittedPredictor:
    """Reads a predictor: a file, or "default". Raises `UsageError` as `about_predictor` does."""
    path, _ = about_predictor(name, model)
    tensors, about = fitted.read(path, KIND, model)
    config = model.decoder.config
    try:
        shape = PredictorShape(**about["shape"])
        net = LengthPredictor(config.hidden_size, config.vocab_size, shape)
        net.load_state_dict({name: tensor.float() for name, tensor in tensors.items()})
        return FittedPredictor(net.eval(), Tags(*about["tags"]), float(about["min_rate"]))
    except (KeyError, TypeError, ValueError, RuntimeError):
        raise UsageError(f"{path} is damaged; `outlay train length --model {model.name}` makes another") from None
