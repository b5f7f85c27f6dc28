"""The request for a pass over cells of a canvas: logits of what stands at each position, whatever the model's shift."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch

from outlay.engine.passes import PassOutput
from outlay.engine.request import Request
from outlay.tree.canvas import Canvas, Cell, Row


@dataclass(eq=False)
class Denoise(Request):
    """Logits of what stands at the positions `wanted`: the result is float32 [len(wanted), vocab], in their order.

    The mask's logit is -inf. The keys and values of the positions `rows` are computed, in one pass; the other positions
    that these see keep those that they have. Where the model's logits are those of the next token (`shift`), each row's
    are those of the position before, which is computed as well if need be.
    """

    canvas: Canvas
    rows: Sequence[int]
    """Positions of the text to compute, ascending."""
    wanted: Sequence[int]
    """Positions whose logits are wanted. Each is among `rows`, or with `shift` follows one or the trunk."""
    mask: int
    """The token whose logit becomes -inf."""
    shift: bool = False

    turn: int = field(default=-1, init=False)
    """Place among the canvases that wait; -1 before it has one."""
    cells: list[Cell] = field(default_factory=list, init=False)
    """The cells that the pass computes."""
    heads: list[Row] = field(default_factory=list, init=False)
    """What the wanted logits stand behind, in the order of `wanted`."""

    def begin(self) -> None:
        """Finds out what the pass computes.

        Raises:
            ValueError: where a row would see a cell that was never computed, or nothing stands before a position.
        """
        canvas, shift = self.canvas, 1 if self.shift else 0
        before = {position - shift for position in self.wanted} if shift else set()
        places = sorted({*self.rows, *(place for place in before if place >= canvas.base)})
        self.cells = [canvas.cells[place - canvas.base] for place in places]
        self.heads = [self._head(position - shift) for position in self.wanted]
        reach, here = max(map(canvas.reach, places)), set(places)
        unknown = next((c for c in canvas.rows(canvas.base, reach) if not c.computed and c.position not in here), None)
        if unknown is not None:
            raise ValueError(f"a pass over a canvas would read position {unknown.position}, which was never computed")

    def settle(self, output: PassOutput, places: Mapping[Row, int]) -> None:
        """Takes in the pass and finishes the request.

        Args:
            output: What the pass gave.
            places: The row of `output` for each row that has one.
        """
        for cell in self.cells:
            cell.version = self.canvas.version
        assert output.logits is not None, "a pass over a canvas computes all logits"
        rows = torch.tensor([places[head] for head in self.heads], dtype=torch.int64, device=output.logits.device)
        logits = output.logits[rows]  # a copy
        logits[:, self.mask] = -torch.inf
        self.finish(logits)

    def _head(self, place: int) -> Row:
        if place >= self.canvas.base:
            return self.canvas.cells[place - self.canvas.base]
        tip = self.canvas.tree.tip
        if tip is None or place < tip.position:
            raise ValueError(f"nothing stands before position {place + 1}, whose logits are wanted")
        return tip
