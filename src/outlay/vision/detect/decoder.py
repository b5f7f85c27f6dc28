"""DEIMv2's decoder: queries chosen from the encoder's places, boxes refined as distributions of their edges.

Each layer adds to the logits of 33 bins an edge; a box is the expectation of a non-uniform function W of the bins,
relative to one reference box that the first layer gives. So every layer has a usable answer.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from outlay.errors import UsageError
from outlay.vision.detect.encoder import projection
from outlay.vision.detect.sizes import Size

BINS = 32  # reg_max: an edge has one more
HEADS = 8
REACH = 0.5
"""u: an edge moves by at most this share of 2 reg_scale, in box widths over reg_scale."""
SCALE = 4.0
"""a, reg_scale: how flat W is near its middle."""
MARGIN = 1e-2
"""Anchors nearer to the border than this are not read."""
PRIOR = 0.01
"""The probability of a class at the beginning of a training."""
LARGEST = 65504.0


class RMSNorm(nn.Module):
    """Divides by the root of the mean square."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        """Takes and returns [..., width]."""
        wide = x.float()
        return (wide * (wide.square().mean(-1, keepdim=True) + 1e-6).rsqrt()).type_as(x) * self.scale


class MLP(nn.Module):
    """Linear layers with SiLU between."""

    def __init__(self, *widths: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(reads, writes) for reads, writes in pairwise(widths))

    def forward(self, x: Tensor) -> Tensor:
        """Takes [..., widths[0]]."""
        for layer in self.layers[:-1]:
            x = F.silu(layer(x))
        found: Tensor = self.layers[-1](x)
        return found

    def zero_last(self) -> None:
        """Makes the network give zeros."""
        last = self.layers[-1]
        assert isinstance(last, nn.Linear)
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)


class DeformableAttention(nn.Module):
    """Each head reads some places around a query's box, of every level, and mixes them by learned weights.

    Values are read as they are: there is no projection of them, nor of the result.
    """

    num_points_scale: Tensor

    def __init__(self, width: int, points: Sequence[int]) -> None:
        super().__init__()
        self.points = tuple(points)
        total = HEADS * sum(points)
        self.register_buffer("num_points_scale", torch.tensor([1 / n for n in points for _ in range(n)]))
        self.sampling_offsets, self.attention_weights = nn.Linear(width, 2 * total), nn.Linear(width, total)
        angles = torch.arange(HEADS) * (2 * math.pi / HEADS)
        star = torch.stack([angles.cos(), angles.sin()], -1)
        star = star / star.abs().amax(-1, keepdim=True)
        far = torch.cat([torch.arange(1, n + 1) for n in points]).float()
        for layer in (self.sampling_offsets, self.attention_weights):
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)
        self.sampling_offsets.bias.data = (star[:, None] * far[:, None]).flatten()

    def forward(self, query: Tensor, boxes: Tensor, values: Sequence[Tensor]) -> Tensor:
        """Reads the maps around boxes.

        Args:
            query: [batch, queries, width].
            boxes: [batch, queries, 4], centre and size in shares of the picture.
            values: for each level, [batch * heads, width / heads, height, w].

        Returns:
            [batch, queries, width].
        """
        batch, queries = query.shape[:2]
        offsets = self.sampling_offsets(query).view(batch, queries, HEADS, -1, 2)
        weights = self.attention_weights(query).view(batch, queries, HEADS, -1).softmax(-1)
        boxes = boxes[:, :, None, None]
        places = boxes[..., :2] + offsets * self.num_points_scale.to(query)[:, None] * boxes[..., 2:] * 0.5
        grid = (2 * places - 1).transpose(1, 2).flatten(0, 1)  # [batch * heads, queries, points, 2]
        read = [
            F.grid_sample(value, part, mode="bilinear", padding_mode="zeros", align_corners=False)
            for value, part in zip(values, grid.split(self.points, 2), strict=True)
        ]
        weights = weights.transpose(1, 2).reshape(batch * HEADS, 1, queries, -1)
        mixed = (torch.cat(read, -1) * weights).sum(-1)
        return mixed.view(batch, -1, queries).transpose(1, 2)


class Gate(nn.Module):
    """Mixes two vectors by learned shares."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.gate, self.norm = nn.Linear(2 * width, 2 * width), RMSNorm(width)
        nn.init.zeros_(self.gate.weight)
        nn.init.zeros_(self.gate.bias)

    def forward(self, own: Tensor, read: Tensor) -> Tensor:
        """Takes two [..., width]."""
        first, second = self.gate(torch.cat([own, read], -1)).sigmoid().chunk(2, -1)
        found: Tensor = self.norm(first * own + second * read)
        return found


class SwiGLU(nn.Module):
    """A gated network."""

    def __init__(self, width: int, inner: int) -> None:
        super().__init__()
        self.w12, self.w3 = nn.Linear(width, 2 * inner), nn.Linear(inner, width)
        for layer in (self.w12, self.w3):
            nn.init.xavier_uniform_(layer.weight)
            nn.init.zeros_(layer.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Takes and returns [..., width]."""
        first, second = self.w12(x).chunk(2, -1)
        found: Tensor = self.w3(F.silu(first) * second)
        return found


class DecoderLayer(nn.Module):
    """Self-attention of queries, deformable attention to the maps, a gated network."""

    def __init__(self, size: Size) -> None:
        super().__init__()
        self.self_attn = nn.MultiheadAttention(size.width, HEADS, batch_first=True)
        self.norm1 = RMSNorm(size.width)
        self.cross_attn = DeformableAttention(size.width, size.points)
        self.gateway = Gate(size.width) if size.gateway else None
        self.norm2 = None if size.gateway else RMSNorm(size.width)
        self.swish_ffn = SwiGLU(size.width, size.ffn // 2)
        self.norm3 = RMSNorm(size.width)

    def forward(
        self, content: Tensor, boxes: Tensor, values: Sequence[Tensor], positions: Tensor, mask: Tensor | None
    ) -> Tensor:
        """Takes and returns [batch, queries, width]; `mask` tells which queries don't see each other."""
        read = content + positions
        content = self.norm1(content + self.self_attn(read, read, content, attn_mask=mask, need_weights=False)[0])
        found = self.cross_attn(content + positions, boxes, values)
        if self.gateway is not None:
            content = self.gateway(content, found)
        else:
            assert self.norm2 is not None
            content = self.norm2(content + found)
        mixed: Tensor = self.norm3((content + self.swish_ffn(content)).clamp(-LARGEST, LARGEST))
        return mixed


class LocationQuality(nn.Module):
    """LQE: a correction of scores from how peaked the edges' distributions are."""

    TOP = 4

    def __init__(self) -> None:
        super().__init__()
        self.reg_conf = MLP(4 * (self.TOP + 1), 64, 1)
        self.reg_conf.zero_last()

    def forward(self, scores: Tensor, edges: Tensor) -> Tensor:
        """Takes logits [batch, queries, classes] and edges' logits [batch, queries, 4 * 33]."""
        peaks = edges.unflatten(-1, (4, BINS + 1)).softmax(-1).topk(self.TOP, -1).values
        found: Tensor = scores + self.reg_conf(torch.cat([peaks, peaks.mean(-1, keepdim=True)], -1).flatten(-2))
        return found


@dataclass(frozen=True)
class Answer:
    """What a layer says."""

    logits: Tensor
    """[batch, queries, classes]."""
    boxes: Tensor
    """[batch, queries, 4]: centre and size, in shares of the picture."""
    edges: Tensor | None = None
    """[batch, queries, 4 * 33], logits of the edges' bins; None for what is no distribution."""
    references: Tensor | None = None
    """[batch, queries, 4], the boxes that edges are relative to."""
    layer: int = 0
    """How many layers were run for it."""


class _Layers(nn.Module):
    def __init__(self, size: Size) -> None:
        super().__init__()
        self.layers = nn.ModuleList(DecoderLayer(size) for _ in range(size.layers))
        self.lqe_layers = nn.ModuleList(LocationQuality() for _ in range(size.layers))


class Decoder(nn.Module):
    """Query selection and the layers, with the heads of each."""

    def __init__(self, size: Size) -> None:
        super().__init__()
        width, classes = size.width, size.classes
        self.size = size
        self.input_proj = nn.ModuleList(projection(width, width) for _ in size.strides)
        self.up = nn.Parameter(torch.tensor([REACH]), requires_grad=False)
        self.reg_scale = nn.Parameter(torch.tensor([SCALE]), requires_grad=False)
        self.decoder = _Layers(size)
        self.denoising_class_embed: nn.Embedding | None = nn.Embedding(classes + 1, width, padding_idx=classes)
        self.enc_score_head = nn.Linear(width, classes)
        self.enc_bbox_head = MLP(width, width, width, 4)
        self.query_pos_head = MLP(4, width, width, width)
        self.pre_bbox_head = MLP(width, width, width, 4)
        self.dec_score_head = nn.ModuleList(nn.Linear(width, classes) for _ in range(size.layers))
        edges = 4 * (BINS + 1)
        shared = MLP(width, width, width, edges)
        heads = [shared if size.shared_box_head else MLP(width, width, width, edges) for _ in range(size.layers)]
        self.dec_bbox_head = nn.ModuleList(heads)
        for head in (self.enc_bbox_head, self.pre_bbox_head, *heads):
            head.zero_last()
        bias = -math.log((1 - PRIOR) / PRIOR)
        for score in (self.enc_score_head, *self.dec_score_head):
            nn.init.constant_(score.bias, bias)
        for layer in self.query_pos_head.layers:
            nn.init.xavier_uniform_(layer.weight)  # type: ignore[arg-type]

    def places(self, maps: Sequence[Tensor]) -> int:
        """Returns how many places there are to choose queries from."""
        return sum(each.shape[2] * each.shape[3] for each in maps)

    def choose(self, maps: Sequence[Tensor], queries: int) -> tuple[Tensor, Tensor, Tensor]:
        """Chooses the places whose best class is most probable.

        Args:
            maps: for each level, [batch, width, height, w].
            queries: how many.

        Returns:
            Contents [batch, queries, width], boxes before the sigmoid [batch, queries, 4], and class logits.

        Raises:
            UsageError: for more queries than places.
        """
        count = self.places(maps)
        if queries > count:
            raise UsageError(
                f"{queries} queries are chosen from {count} places; at most {count} on pictures of that size"
            )
        memory = torch.cat([each.flatten(2).transpose(1, 2) for each in maps], 1)
        anchors, inside = anchor_logits([each.shape[2:] for each in maps])
        anchors, inside = anchors.to(memory), inside.to(memory.device)
        memory = memory * inside[:, None]
        logits = self.enc_score_head(memory)
        best = logits.amax(-1).topk(queries, -1).indices

        def taken(x: Tensor) -> Tensor:
            return x.gather(1, best[..., None].expand(-1, -1, x.shape[-1]))

        contents = taken(memory)
        boxes = self.enc_bbox_head(contents) + taken(anchors.expand(len(memory), -1, -1))
        return contents, boxes, taken(logits)

    def forward(
        self,
        maps: Sequence[Tensor],
        layers: int | None = None,
        queries: int | None = None,
        go_on: Callable[[int], bool] = lambda done: True,
    ) -> Answer:
        """Returns the answer of a layer.

        Args:
            maps: for each level, [batch, width, height, w].
            layers: how many are run; None: all.
            queries: how many places are refined; None: as trained.
            go_on: asked after each layer, with how many were run, whether another one is.
        """
        contents, boxes, _ = self.choose(maps, queries or self.size.queries)
        found, _ = self.refine(maps, contents, boxes, layers=layers, go_on=go_on)
        return found[-1]

    def refine(
        self,
        maps: Sequence[Tensor],
        contents: Tensor,
        boxes: Tensor,
        *,
        mask: Tensor | None = None,
        layers: int | None = None,
        every: bool = False,
        go_on: Callable[[int], bool] = lambda done: True,
    ) -> tuple[list[Answer], Answer]:
        """Runs the layers.

        Args:
            maps: for each level, [batch, width, height, w].
            contents: of queries, [batch, queries, width].
            boxes: before the sigmoid, [batch, queries, 4].
            mask: bool [queries, queries], which of them don't see each other.
            layers: how many are run; None: all.
            every: whether all layers answer, or the last one alone.
            go_on: asked after each layer, with how many were run, whether another one is.

        Returns:
            The answers, and the preliminary one of the first layer.
        """
        layers = layers or self.size.layers
        values = [each.unflatten(1, (HEADS, -1)).flatten(0, 1) for each in maps]
        table = edge_offsets(self.up, self.reg_scale)
        reference = boxes.sigmoid()
        positions = self.query_pos_head(reference).clamp(-10, 10)
        content, before, edges = contents, torch.zeros_like(contents), torch.zeros((), device=contents.device)
        found: list[Answer] = []
        first: Answer | None = None
        start = reference
        for place in range(layers):
            content = self.decoder.layers[place](content, reference, values, positions, mask)
            if first is None:
                start = (self.pre_bbox_head(content) + inverse_sigmoid(reference)).sigmoid()
                first = Answer(self.dec_score_head[0](content), start)
                start = start.detach()
            edges = self.dec_bbox_head[place](content + before) + edges
            moved = moved_boxes(start, expected_offsets(edges, table), self.reg_scale)
            last = place == layers - 1 or not go_on(place + 1)
            if every or last:
                scores = self.decoder.lqe_layers[place](self.dec_score_head[place](content), edges)
                found.append(Answer(scores, moved, edges, start, place + 1))
            if last:
                break
            reference, before = moved.detach(), content.detach()
        assert first is not None
        return found, first


def anchor_logits(shapes: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
    """Returns the inverse sigmoids of the places' boxes, float32 [places, 4], and which are inside, bool [places].

    A place is a box of side 0.05 * 2^level around its centre; those near the border are infinite.
    """
    found = []
    for level, (height, width) in enumerate(shapes):
        row, column = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
        centres = (torch.stack([column, row], -1) + 0.5) / torch.tensor([width, height])
        found.append(torch.cat([centres, torch.full_like(centres, 0.05 * 2.0**level)], -1).flatten(0, 1))
    boxes = torch.cat(found)
    inside = ((boxes > MARGIN) & (boxes < 1 - MARGIN)).all(-1)
    return torch.where(inside[:, None], (boxes / (1 - boxes)).log(), torch.inf), inside


def edge_offsets(up: Tensor, scale: Tensor) -> Tensor:
    """Returns W, what each bin moves an edge by, float32 [33]: odd, increasing, 0 in the middle, fine near it."""
    bound = up.abs() * scale.abs()
    step = (bound + 1) ** (2 / (BINS - 2))
    powers = [step**place - 1 for place in range(1, BINS // 2)]
    return torch.cat([-2 * bound, *(-power for power in reversed(powers)), torch.zeros_like(bound), *powers, 2 * bound])


def expected_offsets(edges: Tensor, table: Tensor) -> Tensor:
    """Returns the expectation of W for each edge, [..., 4], of logits [..., 4 * 33]."""
    return edges.unflatten(-1, (4, BINS + 1)).softmax(-1) @ table.to(edges)


def moved_boxes(boxes: Tensor, offsets: Tensor, scale: Tensor) -> Tensor:
    """Returns boxes whose edges were moved.

    Args:
        boxes: [..., 4], centre and size.
        offsets: [..., 4] outwards: left, top, right, bottom, in sizes over `scale`.
        scale: reg_scale.
    """
    unit = boxes[..., 2:] / scale
    low = boxes[..., :2] - (0.5 * scale + offsets[..., :2]) * unit
    high = boxes[..., :2] + (0.5 * scale + offsets[..., 2:]) * unit
    return torch.cat([(low + high) / 2, high - low], -1)


def inverse_sigmoid(x: Tensor) -> Tensor:
    """Returns the logit of x, within 1e-5 of 0 and 1."""
    x = x.clamp(0, 1)
    return (x.clamp_min(1e-5) / (1 - x).clamp_min(1e-5)).log()
