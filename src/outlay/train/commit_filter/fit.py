"""The fitting of a commit filter to records: AdamW on binary cross-entropy, stopped by records held out."""

from __future__ import annotations

import itertools
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from outlay.diffuse.learn2pd import CommitFilter
from outlay.errors import UsageError
from outlay.progress import ShowProgress
from outlay.train.commit_filter.recipe import FilterRecipe
from outlay.train.commit_filter.traces import Traces

LEAST_FALL = 1e-4  # of the held-out loss in nats a position: less is no progress
HELD_OUT = 0.2  # share of the prompts that are kept apart, to stop by and to calibrate on


def split(traces: Traces, recipe: FilterRecipe) -> tuple[Traces, Traces, list[int]]:
    """Splits records into those to learn from and those to stop by; also returns the prompts that are kept apart.

    Raises:
        UsageError: Where no proposal, or each, is final.
    """
    draw = torch.Generator().manual_seed(recipe.seed)
    used = traces.of(traces.oracle) if recipe.paths == "oracle" else traces
    counted = used.final[_counted(used, recipe)]
    if bool(counted.all()) or not bool(counted.any()):
        which = "each" if bool(counted.any()) else "none"
        raise UsageError(
            f"there is nothing to learn: {which} of the model's proposals behind these prompts is final, always; "
            "give harder prompts"
        )
    if recipe.split == "record":  # 80, 10 and 10 in a hundred; the last are not looked at
        order = torch.randperm(len(used), generator=draw)
        first, second = int(0.8 * len(used)), int(0.9 * len(used))
        return used.of(order[:first]), used.of(order[first:second]), []
    count = len(traces.answers)
    apart = torch.randperm(count, generator=draw)[: max(1, int(HELD_OUT * count))]
    held = torch.isin(used.prompt, apart)
    return used.of(~held), used.of(held), sorted(apart.tolist())


def fit(train: Traces, held: Traces, recipe: FilterRecipe, progress: ShowProgress) -> tuple[CommitFilter, float]:
    """Fits a filter by AdamW, and keeps the weights of the lowest loss on held-out records.

    Returns:
        The filter, and that loss: binary cross-entropy a position, in nats.
    """
    with torch.random.fork_rng(devices=()):
        torch.manual_seed(recipe.seed)
        block = train.confidence.shape[1]
        sizes = (block, recipe.hidden, block) if recipe.hidden else (block, block)
        linears = [nn.Linear(a, b) for a, b in itertools.pairwise(sizes)]
    found = CommitFilter(tuple((linear.weight, linear.bias) for linear in linears))
    optimizer = torch.optim.AdamW([weight for layer in found.layers for weight in layer], lr=recipe.lr)
    draw = torch.Generator().manual_seed(recipe.seed)
    best, mark, kept, since = float("inf"), float("inf"), found, 0
    for epoch in range(recipe.epochs):
        order = torch.randperm(len(train), generator=draw)
        for places in order.split(recipe.batch or len(order)):
            loss(found, train.of(places), recipe).backward()
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        with torch.no_grad():
            now = loss(found, held, recipe).item()
        since += 1
        if now < mark - LEAST_FALL:
            mark, since = now, 0
        if now < best:
            best = now
            kept = replace(found, layers=tuple((w.detach().clone(), b.detach().clone()) for w, b in found.layers))
        progress(f"fitting, {now:.4f} nats a position", epoch + 1, recipe.epochs)
        if since >= recipe.patience:
            break
    return kept, best


def loss(found: CommitFilter, traces: Traces, recipe: FilterRecipe) -> Tensor:
    """Returns the binary cross-entropy with "is final", mean over the positions that count."""
    counted = _counted(traces, recipe).float()
    logits = found.logits(traces.confidence)
    nats = F.binary_cross_entropy_with_logits(logits, traces.final.float(), counted, reduction="sum")
    return nats / counted.sum()


def _counted(traces: Traces, recipe: FilterRecipe) -> Tensor:
    return traces.masked if recipe.positions == "masked" else traces.present


def false_accepts(found: CommitFilter, traces: Traces, accept: float = 0.9) -> float:
    """Returns the share of wrong proposals among the masked ones that a filter would accept; 0 where it does none."""
    with torch.no_grad():
        accepted = traces.masked & (found.logits(traces.confidence).double().sigmoid() > accept)
    return float((accepted & ~traces.final).sum() / accepted.sum().clamp_min(1))
