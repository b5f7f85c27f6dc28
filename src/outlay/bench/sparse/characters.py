"""A model of letters with two layers, and its training by a recipe: small enough that a seed takes seconds."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from outlay.shrink.nm import NMSparse, Pattern, Sparsified, sparsify, violations

HELD_OUT = 0.1  # share of the text, its end, on which the loss is measured
MEASURED = 400  # held-out windows
PROBED = 32  # mini-batches over which the noise of gradients is measured, half-way through


@dataclass(frozen=True)
class CharacterRecipe:
    """The model and its training."""

    layers: int = 2
    """Layers."""
    width: int = 64
    """Width of the hidden states; the feed-forward part is four times as wide."""
    heads: int = 4
    """Attention heads."""
    context: int = 32
    """Letters of a window."""
    batch: int = 24
    """Windows of a step."""
    steps: int = 1000
    """Optimizer steps."""
    lr: float = 2e-3
    """Highest learning rate of AdamW; it falls by half a cosine."""


class CharacterModel(nn.Module):
    """A decoder over letters, with layer norm before each part and GELU."""

    def __init__(self, letters: int, recipe: CharacterRecipe) -> None:
        super().__init__()
        self.embed = nn.Embedding(letters, recipe.width)
        self.places = nn.Embedding(recipe.context, recipe.width)
        self.layers = nn.ModuleList(_Layer(recipe) for _ in range(recipe.layers))
        self.norm = nn.LayerNorm(recipe.width)
        self.head = nn.Linear(recipe.width, letters)

    def forward(self, letters: Tensor) -> Tensor:
        """Returns the logits of the next letters, [batch, time, letters]; `letters` is int64 [batch, time]."""
        x = self.embed(letters) + self.places.weight[: letters.shape[1]]
        for layer in self.layers:
            x = layer(x)
        logits: Tensor = self.head(self.norm(x))
        return logits


class _Layer(nn.Module):
    def __init__(self, recipe: CharacterRecipe) -> None:
        super().__init__()
        self.heads, width = recipe.heads, recipe.width
        self.attn_norm, self.mlp_norm = nn.LayerNorm(width), nn.LayerNorm(width)
        self.q_proj, self.k_proj, self.v_proj, self.o_proj = (nn.Linear(width, width) for _ in range(4))
        self.fc1, self.fc2 = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        normed = self.attn_norm(x)
        q, k, v = (
            project(normed).unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for project in (self.q_proj, self.k_proj, self.v_proj)
        )
        attended = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.o_proj(attended.transpose(1, 2).flatten(2))
        out: Tensor = x + self.fc2(F.gelu(self.fc1(self.mlp_norm(x))))
        return out


class Letters:
    """A text as numbers of letters: its beginning to train on, its end to measure on."""

    def __init__(self, text: str, context: int) -> None:
        alphabet = {letter: number for number, letter in enumerate(sorted(set(text)))}
        numbers = torch.tensor([alphabet[letter] for letter in text])
        cut = round((1 - HELD_OUT) * len(numbers))
        self.count, self._context = len(alphabet), context
        self._train, self._held = numbers[:cut], numbers[cut:]

    def batches(self, size: int, seed: int) -> Iterator[Tensor]:
        """Yields windows without end, int64 [size, context + 1], in an order that the seed fixes."""
        random, places = torch.Generator().manual_seed(seed), torch.arange(self._context + 1)
        while True:
            begins = torch.randint(len(self._train) - self._context, (size, 1), generator=random)
            yield self._train[begins + places]

    def held_out(self) -> Tensor:
        """Returns windows of the end, spread evenly, int64 [windows, context + 1]."""
        begins = torch.linspace(0, len(self._held) - self._context - 1, MEASURED).long()
        return self._held[begins[:, None] + torch.arange(self._context + 1)]


def loss_of(model: nn.Module, windows: Tensor) -> Tensor:
    """Returns the cross-entropy of a window's letters but the first, in nats a letter."""
    return F.cross_entropy(model(windows[:, :-1]).flatten(0, 1), windows[:, 1:].flatten())


def trained(letters: Letters, recipe: CharacterRecipe, options: NMSparse, seed: int) -> dict[str, Any]:
    """Trains a model.

    Args:
        letters: The text.
        recipe: The model and its training.
        options: How it is made sparse.
        seed: Seed of the weights and of the order of the text; the same for each recipe.

    Returns:
        The loss on held-out text with the final binary mask, the share of groups that break the pattern, bytes of the
        exported layers over those of half precision, FLOPs of the sparse layers, the noise of the gradients by layer.
    """
    torch.manual_seed(seed)
    model = CharacterModel(letters.count, recipe)
    handle = sparsify(model, options, recipe.steps)
    optimizer = torch.optim.AdamW(model.parameters(), lr=recipe.lr, weight_decay=0.01, fused=True)
    batches, noise = letters.batches(recipe.batch, seed), dict[str, float]()
    for step in range(recipe.steps):
        handle.set_step(step)
        if step == recipe.steps // 2:
            noise = gradient_noise(handle, letters.batches(recipe.batch, seed + 1_000_003))
        for group in optimizer.param_groups:
            group["lr"] = recipe.lr * (1 + math.cos(math.pi * step / recipe.steps)) / 2
        loss_of(model, next(batches)).backward()
        optimizer.step()
        optimizer.zero_grad()
    with torch.no_grad():
        exported = handle.export()
        loss = float(loss_of(exported, letters.held_out()))
    flops = handle.ledger().flops
    if options.recipe == "dense":
        return {"loss": loss, "flops": flops, "noise": noise}
    broken = sum(violations(weight, options.pattern, options.dim) for weight in handle.weights().values())
    return {"loss": loss, "flops": flops, "noise": noise, "broken": broken, "bytes": exported_bytes(handle)}


def exported_bytes(handle: Sparsified) -> float:
    """Returns the bytes of a file of the packed layers in half precision, over the bytes of the dense layers."""
    from outlay.shrink.nm import save_packed

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "layers.safetensors"
        save_packed(path, {name: packed.to(torch.float16) for name, packed in handle.packed().items()})
        return path.stat().st_size / (2 * sum(layer.weight.numel() for layer in handle.layers))


def gradient_noise(handle: Sparsified, batches: Iterator[Tensor]) -> dict[str, float]:
    """Returns Var(gradient) / mean(|gradient|)^2 over mini-batches, the mean over a layer's weights, by layer."""
    found: dict[str, list[Tensor]] = {layer.name: [] for layer in handle.layers}
    for _ in range(PROBED):
        loss = loss_of(handle.module, next(batches))
        grads = torch.autograd.grad(loss, [layer.weight for layer in handle.layers])
        for layer, grad in zip(handle.layers, grads, strict=True):
            found[layer.name].append(grad)
    return {
        name: float(torch.stack(grads).var(0).mean() / torch.stack(grads).abs().mean() ** 2)
        for name, grads in found.items()
    }


def parse(pattern: str, recipe: str) -> NMSparse:
    """Returns the options of a recipe for feed-forward layers at a pattern such as "1:16"."""
    wanted = Pattern.parse(pattern)
    return NMSparse(wanted.n, wanted.m, recipe=recipe)
