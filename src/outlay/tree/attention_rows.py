"""What chosen rows of a pass read: in each layer the weight of each key of their path, the mean over heads."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from outlay.models.config import DecoderConfig
from outlay.tree.plan import KVSpan, PassPlan


class AttentionRows:
    """The weights of some rows as attention fills them in, layer by layer and head by head, in the plan's order."""

    def __init__(self, plan: PassPlan, rows: Sequence[int], config: DecoderConfig, device: torch.device) -> None:
        """Makes room for them.

        Args:
            plan: The plan of the pass.
            rows: The rows, each once.
            config: The model's shape.
            device: Where attention is computed.
        """
        self._plan, self._windows, self._rows = plan, config.windows, tuple(rows)
        self._stored: dict[int, Tensor] = {}
        for row in rows if plan.stored else ():
            self._stored[row] = torch.zeros((config.num_layers, plan.keys_seen[row]), device=device)
        self._seen = {(window, row): keys_seen(spans, row) for window, spans in plan.kv_spans.items() for row in rows}
        most = max((_gone_over(spans, row) for spans in plan.kv_spans.values() for row in rows), default=0)
        shape = (config.num_layers, config.num_heads, -(-most // 16) * 16)
        self.weights: Mapping[int, Tensor] = {row: torch.zeros(shape, device=device) for row in rows}
        """What receives the weights of each row, float32 [num_layers, num_heads, keys], up to a multiple of 16."""

    def of_layer(self, layer: int) -> dict[int, Tensor]:
        """Returns what receives the weights of each row in a layer, float32 [num_heads, keys]."""
        return {row: weights[layer] for row, weights in self.weights.items()}

    def add_stored(self, layer: int, row: int, positions: Tensor, weights: Tensor) -> None:
        """Adds the weights of stored keys, [num_heads, keys], which stand at `positions` of the row's path, [keys]."""
        self._stored[row][layer, positions] += weights.mean(0)

    def scale(self, layer: int, row: int, factor: Tensor) -> None:
        """Multiplies the weights of the keys in slots by a factor for each head, [num_heads]."""
        self.weights[row][layer] *= factor[:, None]

    def means(self) -> list[Tensor]:
        """Returns for each row the mean over heads, float32 [num_layers, keys_seen], in the order of the row's path.

        What a sliding window hides has weight 0. Each layer's weights sum to 1, or to less beside an attention sink.
        """
        found = []
        for row in self._rows:
            mean, reach = self.weights[row].mean(1), self._plan.keys_seen[row]
            out = torch.zeros((len(mean), reach), device=mean.device)
            for layer, window in enumerate(self._windows):
                seen = self._seen[window, row].to(mean.device)
                kept = mean[layer, : len(seen)][seen]
                out[layer, reach - len(kept) :] = kept
            found.append(out + self._stored[row] if row in self._stored else out)
        return found


def _gone_over(spans: Sequence[KVSpan], row: int) -> int:
    """Returns how many keys the spans of a row have, those included that it does not see."""
    return sum(span.length for span in spans if row in span.rows)


def keys_seen(spans: Sequence[KVSpan], row: int) -> Tensor:
    """Returns which of the keys that a row goes over it sees, span by span, bool [keys]."""
    parts = [torch.zeros(0, dtype=torch.bool)]
    for span in spans:
        if row in span.rows:
            place = span.rows.index(row)
            count = span.length if span.limits is None else min(span.limits[place], span.length)
            seen = torch.ones(count, dtype=torch.bool)
            if span.mask is not None:
                seen = torch.tensor(span.mask[place * span.length : place * span.length + count], dtype=torch.bool)
            parts.append(seen)
    return torch.cat(parts)
