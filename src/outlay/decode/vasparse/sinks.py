"""Sink calibration: text tokens that soak up attention from everywhere are weighted down."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import pad

STEP = 256  # keys by which room for their sums grows


def log_sink_weights(columns: Tensor, text: Tensor, gamma: float) -> Tensor:
    """Returns log w, what is added to the attention scores of each key, [layers, keys].

    w = u^-gamma where u, a column's mean attention over that of all text columns, is above 1; else 1. Columns of the
    picture keep 1.

    Args:
        columns: The mean attention that rows that see a key give to it, [layers, keys].
        text: Which keys are text, bool [keys].
        gamma: The exponent; 0 gives zeros.
    """
    mean = (columns * text).sum(1, keepdim=True) / text.sum()
    relative = torch.where(text & (columns > mean), columns / mean.clamp_min(1e-30), 1.0)
    return -gamma * relative.log()


class AttentionColumns:
    """What the rows that see each held key give to it, summed as rows come, and what its own row gave to the picture.

    Args:
        layers: The model's layers.
        image: Which tokens of the prompt stand for a picture, bool [tokens].
    """

    def __init__(self, layers: int, image: Tensor) -> None:
        self._image, self._held = image, 0
        self._sums, self._rows, self._saliency = (torch.zeros((layers, len(image) + STEP)) for _ in range(3))
        self._text = pad(~image, (0, STEP), value=True)

    def add(self, row: Tensor) -> Tensor:
        """Takes in a row, [layers, keys]: what a token reads of all held keys and, last, of itself.

        Returns:
            What it gives to the picture, [layers].
        """
        self._held = row.shape[1]
        if self._held > len(self._text):
            self._text = pad(self._text, (0, STEP), value=True)
            self._sums, self._rows, self._saliency = (
                pad(part, (0, STEP)) for part in (self._sums, self._rows, self._saliency)
            )
        self._sums[:, : self._held] += row
        self._rows[:, : self._held] += 1
        seen: Tensor = row[:, : len(self._image)][:, self._image[: self._held]].sum(1)
        self._saliency[:, self._held - 1] = seen
        return seen

    def means(self) -> Tensor:
        """Returns what rows that see a key give to it, the mean over them, [layers, keys]."""
        return self._sums[:, : self._held] / self._rows[:, : self._held]

    def saliency(self, begin: int) -> Tensor:
        """Returns what each held token from place `begin` on gave to the picture, [layers, tokens]."""
        return self._saliency[:, begin : self._held]

    def log_weights(self, gamma: float, first_layer: int) -> Tensor:
        """Returns log w of all held keys and, 0, of the next token, [layers, keys + 1]; 0 below `first_layer`."""
        weights = torch.zeros((len(self._sums), self._held + 1))
        columns = self.means()[first_layer:]
        weights[first_layer:, : self._held] = log_sink_weights(columns, self._text[: self._held], gamma)
        return weights

    def keep(self, begin: int, kept: Tensor) -> None:
        """Keeps of the keys from place `begin` on those at the places `kept` after it, int64 [layers, count]."""
        self._replace(begin, lambda part: part.gather(1, kept))

    def merge(self, begin: int, count: int) -> None:
        """Makes one of the `count` keys from place `begin` on, by their mean."""
        self._replace(begin, lambda part: torch.cat([part[:, :count].mean(1, keepdim=True), part[:, count:]], dim=1))

    def _replace(self, begin: int, change: Callable[[Tensor], Tensor]) -> None:
        end = self._held
        for part in (self._sums, self._rows, self._saliency):
            changed = change(part[:, begin:end])
            part[:, begin:end] = pad(changed, (0, end - begin - changed.shape[1]))
            self._held = begin + changed.shape[1]
