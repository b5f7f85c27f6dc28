"""The loop that trains a detector: seeded, stopped by steps or processor time, and resumed to the same weights."""

from __future__ import annotations

import copy
import json
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from outlay.errors import FailureError, UsageError
from outlay.progress import ShowProgress, silent
from outlay.train.checkpoint import Checkpoint
from outlay.train.detect.augment import Sample, between, resized, sample
from outlay.train.detect.denoising import noisy_queries
from outlay.train.detect.losses import Denoised, Predictions, losses
from outlay.train.detect.matching import Targets
from outlay.train.detect.recipe import DetectorRecipe
from outlay.vision.detect.boxes import centred
from outlay.vision.detect.checkpoints import Loaded, save
from outlay.vision.detect.datasets import Dataset
from outlay.vision.detect.decoder import Answer
from outlay.vision.detect.deimv2 import Detector, channels_last
from outlay.vision.detect.evaluate import Score, evaluate
from outlay.vision.detect.sizes import size_of

KEPT_EVERY = 50  # steps between checkpoints
MEASURED = 4  # times that AP is measured in a training, the last at its end
AVERAGE_RISE = 1000  # steps over which the average of the weights gets its length
TIMED_STEPS = 3  # whose least time is taken to be a step's
MARGIN = 0.97  # of the time that is planned for; the rest is for steps that take longer
MEMORY = 1 << 30  # bytes of pictures that are held
DINO = "backbone.dinov3."
"""What begins the names of a transformer's weights, which come pretrained and are trained slowly."""
PLAN, LOG = "training.json", "training.jsonl"


@dataclass(frozen=True)
class Trained:
    """How a training went."""

    loaded: Loaded
    """The average of the weights."""
    score: Score | None
    """Of the pictures that were held out."""
    steps: int
    cpu_seconds: float
    """Of the steps, without measuring AP."""
    fresh: tuple[str, ...]
    """Parts that were made anew, since the checkpoint has other classes."""


class Training:
    """One training of a detector.

    Args:
        recipe: How.
        data: What is trained on.
        held: What AP is measured on; None: nothing.
        out: The folder that is written; what a training that was stopped goes on with lies in it.
        begin: A detector that is trained further.
        minutes: Processor minutes, which the steps are planned for and after which the training ends; None: the
            recipe's steps.
        facts: What the folder says of how it was made.

    Raises:
        UsageError: For data that doesn't go with the recipe.
    """

    def __init__(
        self, recipe: DetectorRecipe, data: Dataset, held: Dataset | None, out: Path, begin: Loaded | None = None,
        minutes: float | None = None, facts: Mapping[str, Any] | None = None,
    ) -> None:  # fmt: skip
        _refuse_unfit(recipe, data, held)
        self.data, self.held, self.out, self.facts = data, held, out, dict(facts or {})
        self._seconds = None if minutes is None else 60 * minutes
        size = size_of(recipe.size, classes=len(data.names))
        if recipe.queries:
            size = replace(size, queries=recipe.queries)
        self.fresh: tuple[str, ...] = ()
        with torch.random.fork_rng():
            torch.manual_seed(recipe.seed)
            if begin is None:
                self.detector = Detector(size)
            else:
                self.detector, self.fresh = with_classes(begin.detector, size.classes)
        channels_last(self.detector)
        self._pictures = Pictures(data, 2 * recipe.pixels)
        self.recipe = self._planned(recipe)

    def fit(self, progress: ShowProgress = silent, tell: Callable[[str], None] = lambda line: None) -> Trained:
        """Trains and writes the folder.

        Args:
            progress: Shown the steps with their loss.
            tell: Told a line when AP is measured.

        Raises:
            FailureError: Where a loss is not finite. It names the layer; the folder has the last good weights.
        """
        recipe, detector = self.recipe, self.detector
        average = copy.deepcopy(detector).eval().requires_grad_(False)
        optimizer = torch.optim.AdamW(_groups(detector, recipe), lr=1.0, betas=(0.9, 0.999), weight_decay=0.0)
        rates = [group["lr"] for group in optimizer.param_groups]
        spent = torch.zeros((), dtype=torch.float64)
        state = {f"net.{name}": tensor for name, tensor in detector.state_dict().items()}
        state |= {f"average.{name}": tensor for name, tensor in average.state_dict().items()} | {"spent": spent}
        self.out.mkdir(parents=True, exist_ok=True)
        kept = Checkpoint(self.out / "checkpoint.pt", recipe, state, optimizer)
        step = first = kept.resume()
        marks = {round(recipe.steps * share / MEASURED) for share in range(1, MEASURED)}
        score = None
        while step < recipe.steps and (self._seconds is None or float(spent) < self._seconds):
            started = time.process_time()
            for group, rate in zip(optimizer.param_groups, rates, strict=True):
                group["lr"] = rate * recipe.lr_at(step)
            try:
                found = self._step(step, optimizer)
            except FailureError:
                self._write(average, None)
                raise
            step += 1
            _follow(average, detector, recipe.average * (1 - math.exp(-step / AVERAGE_RISE)))
            spent += time.process_time() - started
            total = sum(found.values())
            progress(f"loss {total:.3f} ({_shown(found)})", step, recipe.steps)
            if step % KEPT_EVERY == 0:
                kept.save(step)
                terms = {name: round(each, 5) for name, each in found.items()}
                self._log({"step": step, "loss": round(total, 5), "cpu_seconds": round(float(spent), 1),
                           "lr": recipe.lr_at(step - 1), "terms": terms})  # fmt: skip
            if step in marks and step > first:
                score = self._measured(average, step, float(spent), tell)
        score = self._measured(average, step, float(spent), tell)
        loaded = self._write(average, score)
        kept.remove()
        return Trained(loaded, score, step, float(spent), self.fresh)

    def _step(self, step: int, optimizer: torch.optim.Optimizer) -> dict[str, float]:
        """Changes the weights once; returns the losses by kind."""
        self.detector.train()
        pictures, targets = self.batch(step)
        draw = torch.Generator().manual_seed((self.recipe.seed << 32) + step)
        said = predictions(self.detector, pictures, targets, self.recipe.denoising, draw)
        decoder, terms = self.detector.decoder, self.recipe.published.terms
        refuse_unfinite(said, self.detector, pictures, step)
        found = losses(said, targets, decoder.up, decoder.reg_scale, terms, late=self.recipe.late(step))
        strange = next((name for name, loss in found.items() if not bool(torch.isfinite(loss))), None)
        if strange is not None:
            raise FailureError(f"step {step + 1}: the loss {strange} is not finite; {_ADVICE}")
        optimizer.zero_grad()
        torch.stack(list(found.values())).sum().backward()
        norm = nn.utils.clip_grad_norm_(self.detector.parameters(), self.recipe.clip)
        if not bool(torch.isfinite(norm)):
            layer = next(
                name
                for name, each in self.detector.named_parameters()
                if each.grad is not None and not bool(torch.isfinite(each.grad).all())
            )
            raise FailureError(f"step {step + 1}: the gradient of {layer} is not finite; {_ADVICE}")
        optimizer.step()
        kinds: dict[str, float] = {}
        for name, loss in found.items():
            kinds[name.partition(" ")[0]] = kinds.get(name.partition(" ")[0], 0.0) + float(loss.detach())
        return kinds

    def batch(self, step: int) -> tuple[Tensor, Targets]:
        """Returns the pictures of a step, float32 [batch, 3, side, side] in 0..1, and their boxes."""
        recipe, count = self.recipe, len(self.data.examples)
        draw = np.random.default_rng((recipe.seed, step))
        how = recipe.strength(step)
        places = [_place(recipe.seed, step * recipe.batch + each, count) for each in range(recipe.batch)]
        made = [sample(self._pictures, count, place, recipe.pixels, recipe.smallest, how, draw) for place in places]
        pixels = torch.from_numpy(np.stack([each.pixels for each in made])).permute(0, 3, 1, 2)
        pictures = (pixels.float() / 255).contiguous(memory_format=torch.channels_last)
        targets = Targets.of(
            [centred(torch.from_numpy(each.boxes) / recipe.pixels) for each in made],
            [torch.from_numpy(each.labels) for each in made],
        )
        pictures, targets = between(pictures, targets, how, draw)
        if how.scales:
            side = int(draw.choice(recipe.sides()))
            pictures = F.interpolate(pictures, (side, side)) if side != recipe.pixels else pictures
        return pictures, targets

    def _planned(self, recipe: DetectorRecipe) -> DetectorRecipe:
        """Returns the recipe with as many steps as there is time for; a training that goes on has its own."""
        if self._seconds is None:
            return recipe
        plan = self.out / PLAN
        written = {name: value for name, value in asdict(recipe).items() if name != "steps"} | {
            "seconds": self._seconds
        }
        if plan.exists():
            held = json.loads(plan.read_text())
            if held["recipe"] == written:
                return replace(recipe, steps=int(held["steps"]))
        self.recipe = recipe
        steps = max(1, int(MARGIN * self._seconds / self._step_seconds()))
        self.out.mkdir(parents=True, exist_ok=True)
        plan.write_text(json.dumps({"steps": steps, "recipe": written}, indent=1) + "\n")
        return replace(recipe, steps=steps)

    def _step_seconds(self) -> float:
        """Times steps from the middle of the training, on a copy."""
        before, self.detector = self.detector, copy.deepcopy(self.detector)
        optimizer = torch.optim.AdamW(_groups(self.detector, self.recipe), lr=0.0)
        taken = []
        for each in range(TIMED_STEPS):
            started = time.process_time()
            self._step(self.recipe.steps // 3 + each, optimizer)
            taken.append(time.process_time() - started)
        self.detector = before
        return min(taken[1:])

    def _measured(self, average: Detector, step: int, spent: float, tell: Callable[[str], None]) -> Score | None:
        if self.held is None:
            return None
        score = evaluate(Loaded(average, self.data.names, self.recipe.pixels), self.held)
        self._log({"step": step, "cpu_seconds": round(spent, 1), **score.as_dict()})
        tell(f"step {step} of {self.recipe.steps}, {spent:.0f} CPU seconds: {score.line()}")
        return score

    def _write(self, average: Detector, score: Score | None) -> Loaded:
        loaded = Loaded(copy.deepcopy(average), self.data.names, self.recipe.pixels)
        facts = dict(self.facts)
        if score is not None and self.held is not None:
            facts["measured"] = {"on": self.held.source, **score.as_dict()}
        save(self.out, loaded, half=True, facts=facts | {"recipe": asdict(self.recipe)})
        return loaded

    def _log(self, row: Mapping[str, Any]) -> None:
        with (self.out / LOG).open("a") as file:
            file.write(json.dumps(row) + "\n")


_ADVICE = "the last good weights are kept; try a lower --lr, and check that labels and boxes are right"


class Pictures:
    """The pictures of a data set, at most so large, held in memory as far as there is room."""

    def __init__(self, data: Dataset, longest: int) -> None:
        self._data, self._longest, self._held, self._bytes = data, longest, dict[int, Sample](), 0

    def __call__(self, place: int) -> Sample:
        """Returns a picture."""
        if place in self._held:
            return self._held[place]
        example = self._data.examples[place]
        kept = ~example.crowd
        made = Sample(example.pixels(), example.boxes[kept].astype(np.float32), example.labels[kept])
        height, width = made.pixels.shape[:2]
        factor = min(1.0, self._longest / max(height, width))
        made = resized(made, max(1, round(height * factor)), max(1, round(width * factor)))
        if self._bytes + made.pixels.nbytes <= MEMORY:
            self._held[place] = made
            self._bytes += made.pixels.nbytes
        return made


def predictions(
    detector: Detector, pictures: Tensor, targets: Targets, denoising: int, draw: torch.Generator
) -> Predictions:
    """Returns what all parts of a detector say in training.

    Args:
        detector: The detector.
        pictures: float32 [batch, 3, height, width].
        targets: The right boxes, which noisy queries are made of.
        denoising: Noisy queries near their boxes.
        draw: What draws the noise.
    """
    decoder, maps = detector.decoder, detector.maps(pictures)
    contents, boxes, logits = decoder.choose(maps, detector.size.queries)
    encoder = Answer(logits, boxes.sigmoid())
    contents, boxes = contents.detach(), boxes.detach()
    embed = decoder.denoising_class_embed
    noisy = None if embed is None else noisy_queries(targets, embed, denoising, draw)
    if noisy is None:
        layers, first = decoder.refine(maps, contents, boxes, every=True)
        return Predictions(encoder, first, layers)
    count = noisy.contents.shape[1]
    layers, first = decoder.refine(
        maps, torch.cat([noisy.contents, contents], 1), torch.cat([noisy.boxes, boxes], 1),
        mask=noisy.mask(contents.shape[1]), every=True,
    )  # fmt: skip
    own = [_part(each, slice(count, None)) for each in layers]
    their = [_part(each, slice(count)) for each in layers]
    denoised = Denoised(their, _part(first, slice(count)), noisy.match, noisy.groups)
    return Predictions(encoder, _part(first, slice(count, None)), own, denoised)


def _part(answer: Answer, where: slice) -> Answer:
    return Answer(
        answer.logits[:, where], answer.boxes[:, where],
        None if answer.edges is None else answer.edges[:, where],
        None if answer.references is None else answer.references[:, where], answer.layer,
    )  # fmt: skip


def refuse_unfinite(said: Predictions, detector: Detector, pictures: Tensor, step: int) -> None:
    """Raises `FailureError` that names the first layer whose output is not finite, where a prediction is not."""
    answers = [said.encoder, said.first, *said.layers, *(said.denoised.layers if said.denoised else ())]
    if all(bool(torch.isfinite(each.logits).all() & torch.isfinite(each.boxes).all()) for each in answers):
        return
    names: list[str] = []
    with torch.no_grad(), _watched(detector, names):
        detector(pictures)
    where = names[0] if names else "the decoder's boxes"
    raise FailureError(f"step {step + 1}: the output of {where} is not finite; {_ADVICE}")


@contextmanager
def _watched(detector: Detector, names: list[str]) -> Iterator[None]:
    """Adds the names of layers whose outputs are not finite, in the order in which they are computed."""

    def watch(name: str) -> Callable[..., None]:
        def look(part: nn.Module, inputs: Any, output: Any) -> None:
            if isinstance(output, Tensor) and not bool(torch.isfinite(output).all()):
                names.append(name)

        return look

    hooks = [
        part.register_forward_hook(watch(name)) for name, part in detector.named_modules() if not list(part.children())
    ]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def with_classes(detector: Detector, classes: int) -> tuple[Detector, tuple[str, ...]]:
    """Returns a detector for a number of classes with the weights of another, and the parts that are made anew.

    The heads of scores, and the embedding of denoised labels, are as at a beginning where the number is another.
    """
    size = replace(detector.size, classes=classes)
    made = Detector(size)
    given = detector.state_dict()
    wanted = made.state_dict()
    fresh = tuple(name for name in wanted if name not in given or given[name].shape != wanted[name].shape)
    made.load_state_dict(wanted | {name: given[name] for name in wanted if name not in fresh})
    return made, tuple(sorted({name.rpartition(".")[0] for name in fresh}))


def _groups(detector: Detector, recipe: DetectorRecipe) -> list[dict[str, Any]]:
    """Returns the optimizer's groups, whose `lr` is a share: the backbone apart, no decay of norms and biases."""
    pretrained = any(name.startswith(DINO) for name, _ in detector.named_parameters())
    slow = DINO if pretrained else "backbone."
    share = recipe.published.backbone if recipe.backbone is None else recipe.backbone
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for name, each in detector.named_parameters():
        if each.requires_grad:
            key = (share if name.startswith(slow) else 1.0, recipe.published.decay if each.ndim > 1 else 0.0)
            groups.setdefault(key, []).append(each)
    return [{"params": each, "lr": lr, "weight_decay": decay} for (lr, decay), each in groups.items()]


@torch.no_grad()
def _follow(average: nn.Module, net: nn.Module, kept: float) -> None:
    """Moves the average towards the weights, statistics of normalisation included."""
    for own, other in zip(average.state_dict().values(), net.state_dict().values(), strict=True):
        if own.dtype.is_floating_point:
            own.mul_(kept).add_(other, alpha=1 - kept)
        else:
            own.copy_(other)


def _place(seed: int, number: int, count: int) -> int:
    """Returns the picture that is the `number`-th of a training: each once in a round over the data, in any order."""
    round_, within = divmod(number, count)
    return int(_order(seed, round_, count)[within])


_ORDERS: dict[tuple[int, int, int], Sequence[int]] = {}


def _order(seed: int, round_: int, count: int) -> Sequence[int]:
    key = (seed, round_, count)
    if key not in _ORDERS:
        _ORDERS.clear()
        _ORDERS[key] = np.random.default_rng((seed, 1 << 20, round_)).permutation(count).tolist()
    return _ORDERS[key]


def _shown(found: Mapping[str, float]) -> str:
    return ", ".join(f"{name} {value:.2f}" for name, value in found.items())


def _refuse_unfit(recipe: DetectorRecipe, data: Dataset, held: Dataset | None) -> None:
    if held is not None and held.names != data.names:
        raise UsageError(
            f"{held.source} has the classes {', '.join(held.names)}, and {data.source} {', '.join(data.names)}"
        )
    queries = recipe.queries or size_of(recipe.size).queries
    if not data.source.startswith("digits"):
        most = max((len(each.boxes), each.name) for each in data.examples)
        if most[0] > queries:
            raise UsageError(f"{most[1]} has {most[0]} boxes, more than the {queries} queries; give more --queries")
