"""Weights of a vision tower over finer patches, made of those of a trained one: a first layer joins the patches.

The patch embedding holds the pixels of a small patch and marks of its place, the first layer's heads each fetch one of
the four small patches of a large one, and its output projection is the large patches' embedding. Its MLP puts the large
patch's position in place of the marks. What follows are the trained layers. Exact, but for the first layer norm of
the trained tower, whose divisor becomes its mean over pictures.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

from outlay.train.small_llama import EPS

MARK = 100.0  # of a place: so large that no pixel changes a layer norm's divisor
PIXEL = 0.01  # a pixel of value 1 in the embedding: so small that it may stay
SHARP = 20.0  # logits by which a head prefers the patch that it fetches
PIXELS = 12  # of a small patch: three channels of 2 x 2
LAYER = "vision_tower.encoder.layers."
EMBEDDINGS = "vision_tower.embeddings."


def joining_weights(held: Mapping[str, Tensor], heads: int, inner: int, divisor: float) -> dict[str, Tensor]:
    """Returns the weights of embeddings, their layer norm and the first layer, by their names in `GlyphNet`.

    Args:
        held: The weights of the trained tower, by their names there.
        heads: Attention heads: four.
        inner: Width within an MLP.
        divisor: What the trained tower's first layer norm divides by, in the mean.
    """
    kernel, positions = held[EMBEDDINGS + "patch_embedding.weight"], held[EMBEDDINGS + "position_embedding.weight"]
    hidden, side = kernel.shape[0], math.isqrt(len(positions) - 1)
    gain, shift = (held[f"vision_tower.pre_layrnorm.{part}"] for part in ("weight", "bias"))
    norm = (torch.eye(hidden) - 1 / hidden) * gain[:, None] / divisor
    rows, columns, parts = PIXELS, PIXELS + side, PIXELS + 2 * side  # where the marks begin
    own, empty = parts + 4, hidden - 1  # three marks of the class token; a dimension that is zero before a norm
    large = [divmod(each, side) for each in range(side * side)]
    part = [divmod(each, 2) for each in range(4)]

    embedded = torch.zeros(hidden, 3, 2, 2)
    embedded.view(hidden, PIXELS)[:PIXELS] = PIXEL * torch.eye(PIXELS)
    places = torch.zeros(2 * side, 2 * side, hidden)
    for row, column in large:
        for number, (lower, right) in enumerate(part):
            places[2 * row + lower, 2 * column + right, [rows + row, columns + column, parts + number]] = MARK
    token = torch.zeros(hidden)
    token[own : own + 3] = MARK
    spread = MARK * math.sqrt(3 / hidden - (3 / hidden) ** 2)  # standard deviation of any token's marks
    lift = 3 * MARK / hidden  # their mean, which the first layer norm takes away

    read = torch.eye(hidden) - torch.eye(hidden)[empty]  # row d: dimension d before that mean was taken away
    width = hidden // heads
    q, k, v = (torch.zeros(heads, width, hidden) for _ in range(3))
    out, q_bias = torch.zeros(hidden, heads, width), torch.zeros(heads, width)
    scaled = SHARP * math.sqrt(width)
    marks = [*range(rows, parts), own, own + 1, own + 2]
    for head, (lower, right) in enumerate(part):
        q[head, : len(marks)], k[head, : len(marks)] = scaled * read[marks] / MARK, read[marks] / MARK
        q_bias[head, len(marks)], k[head, len(marks)] = scaled, read[parts + head] / MARK
        v[head, :PIXELS] = read[:PIXELS] / PIXEL
        out[:, head, :PIXELS] = norm @ kernel[:, :, 2 * lower : 2 * lower + 2, 2 * right : 2 * right + 2].flatten(1)

    whole = F.layer_norm(held[EMBEDDINGS + "class_embedding"] + positions[0], [hidden], gain, eps=EPS)
    up, up_bias, down = torch.zeros(inner, hidden), torch.zeros(inner), torch.zeros(hidden, inner)
    seen = [([rows + row, columns + column], norm @ positions[1 + place]) for place, (row, column) in enumerate(large)]
    seen += [([parts + number], torch.zeros(hidden)) for number in range(4)]
    seen += [([own, own + 1, own + 2], whole)]
    for number, (which, instead) in enumerate(seen):
        # The difference of two units is 1 where all these marks are there, and 0 elsewhere.
        here, low = read[which].sum(0) / MARK, len(which) - 0.5
        for unit, edge in ((2 * number, low - 0.1), (2 * number + 1, low + 0.1)):
            up[unit], up_bias[unit] = MARK * here, -MARK * edge
        change = instead.clone()
        change[which] -= MARK
        down[:, 2 * number], down[:, 2 * number + 1] = change / (0.2 * MARK), -change / (0.2 * MARK)
    first = LAYER + "0."
    linear = {
        "q_proj": q.flatten(0, 1),
        "k_proj": k.flatten(0, 1),
        "v_proj": v.flatten(0, 1),
        "out_proj": out.flatten(1),
    }
    made = {
        EMBEDDINGS + "class_embedding": torch.zeros(hidden),
        EMBEDDINGS + "patch_embedding.weight": embedded,
        EMBEDDINGS + "position_embedding.weight": torch.cat([token[None], places.flatten(0, 1)]),
        first + "mlp.fc1.weight": up, first + "mlp.fc1.bias": up_bias,
        first + "mlp.fc2.weight": down, first + "mlp.fc2.bias": lift + shift,
    }  # fmt: skip
    for name, weight in linear.items():
        made[f"{first}self_attn.{name}.weight"] = weight
        made[f"{first}self_attn.{name}.bias"] = q_bias.flatten() if name == "q_proj" else torch.zeros(hidden)
    for name in ("vision_tower.pre_layrnorm", first + "layer_norm1", first + "layer_norm2"):
        made[name + ".weight"], made[name + ".bias"] = torch.full((hidden,), spread), torch.zeros(hidden)
    return made
