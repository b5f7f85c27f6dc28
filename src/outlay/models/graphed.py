"""A decoder's pass on a GPU with few kernel launches.

The segment between two attentions is recorded once for each width as a CUDA graph, and replayed in one launch.
Attention reads other keys in every pass, so it is launched as usual.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from itertools import chain

import torch
from torch import Tensor

from outlay.models.decoder import Attend, Decoder
from outlay.models.mlp import Mlp

WIDTHS = (1, 2, 4, 8, 16, 32, 64)  # a pass is padded to the next of these; wider ones are not bound by launches
Segment = Callable[[], tuple[Tensor, ...]]
"""A computation over tensors that stay in place."""
Record = Callable[[Segment], tuple[tuple[Tensor, ...], Callable[[], object]]]
"""Records a segment; returns its results, and a function that computes them again in place."""


class CudaGraphs:
    """Records segments that are replayed in the order in which they were recorded."""

    def __init__(self) -> None:
        self._pool = torch.cuda.graph_pool_handle()

    def __call__(self, segment: Segment) -> tuple[tuple[Tensor, ...], Callable[[], object]]:
        """Runs a segment once, because libraries initialize at first use, and records it."""
        aside = torch.cuda.Stream()
        aside.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(aside):
            segment()
        torch.cuda.current_stream().wait_stream(aside)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self._pool, capture_error_mode="thread_local"):
            results = segment()
        return results, graph.replay


class GraphedForward:
    """Computes `Decoder.hidden` of tokens, by recorded segments up to the greatest of `WIDTHS`."""

    def __init__(self, decoder: Decoder, record: Record) -> None:
        self._decoder, self._record = decoder, record
        self._recorded: dict[int, _Recorded] = {}

    @torch.inference_mode()
    def __call__(self, tokens: Tensor, positions: Tensor, attend: Attend) -> Tensor:
        """tokens, positions int64 [n] -> the last layer's output [n, hidden_size], valid until the next pass."""
        width = next((width for width in WIDTHS if width >= len(tokens)), None)
        if width is None:
            return self._decoder.last_hidden(tokens, positions, attend)
        if width not in self._recorded:
            self._recorded[width] = _Recorded(self._decoder, width, self._record)
        return self._recorded[width](tokens, positions, attend)


class _Recorded:
    """The segments of one width, and the buffers for their inputs and outputs.

    Padding rows are computed as token 0 at position 0, and nobody reads them.
    """

    def __init__(self, decoder: Decoder, width: int, record: Record) -> None:
        config, device = decoder.config, decoder.device
        self._tokens, self._positions = torch.zeros(2, width, dtype=torch.int64, device=device)
        shape = (width, config.num_heads, config.head_dim)
        self._attended = torch.zeros(shape, dtype=decoder.dtype, device=device)

        def first() -> tuple[Tensor, ...]:
            x, rotations = decoder.inputs(self._tokens, self._positions), decoder.rotations(self._positions)
            return x, *decoder.before_attention(0, x, rotations), *chain(*rotations)

        def between(layer: int, x: Tensor) -> tuple[Tensor, ...]:
            x = decoder.after_attention(layer, x, self._attended)
            return x, *decoder.before_attention(layer + 1, x, rotations)

        (x, q, k, v, *turns), replay = record(first)
        rotations = list(zip(turns[::2], turns[1::2], strict=True))
        self._steps = [((q, k, v), replay)]
        for layer in range(config.num_layers - 1):
            (x, q, k, v), replay = record(partial(between, layer, x))
            self._steps.append(((q, k, v), replay))
        (self._x,), self._finish = record(lambda: (decoder.after_attention(config.num_layers - 1, x, self._attended),))

    def __call__(self, tokens: Tensor, positions: Tensor, attend: Attend) -> Tensor:
        """As `GraphedForward`, for n up to this width."""
        n = len(tokens)
        self._tokens[:n], self._positions[:n] = tokens, positions
        for layer, ((q, k, v), replay) in enumerate(self._steps):
            replay()
            self._attended[:n] = attend(layer, q[:n], k[:n], v[:n])
        self._finish()
        return self._x[:n]


def graphed(decoder: Decoder) -> bool:
    """Tells whether this decoder's segments can be recorded: on a GPU, without experts, which depend on the rows, and
    without memories, which a layer reads between two attentions.
    """
    on_gpu = decoder.device.type == "cuda" and decoder.code == "native" and not decoder.config.cross_size
    return on_gpu and all(isinstance(layer.mlp, Mlp) for layer in decoder.layers)
