"""Trains learned picture codecs: bits a pixel plus lambda 255^2 times the squared error (Ballé et al. 2018)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from outlay.codec.lic import Codec, Form, PictureCodec
from outlay.codec.lic.networks import Architecture
from outlay.codec.lic.priors import LEAST_SCALE, EntropyBottleneck, at_least, normal_bits
from outlay.errors import FailureError, UsageError
from outlay.progress import ShowProgress
from outlay.train.checkpoint import Checkpoint

QUANTILE_RATE = 1e-3  # Adam's step for the bottleneck's quantiles
CLIP = 1.0  # the largest norm of a gradient
KEPT_EVERY = 250  # steps


@dataclass(frozen=True)
class PictureCodecRecipe:
    """How a codec is trained. The defaults are those of `tiny`, a minute of one core."""

    architecture: Architecture = "tiny"
    """One of `ARCHITECTURES`."""
    inner: int = 32
    """Channels between the layers, N."""
    latents: int = 32
    """Channels of the latents, M."""
    steps: int = 2000
    """Steps of Adam."""
    batch: int = 8
    """Crops of a step."""
    crop: int = 64
    """Pixels a side."""
    quality: float = 0.02
    """lambda: 0.0018 to 0.0483 are the eight standard qualities."""
    rate: float = 1e-3
    """Adam's step, a fifth of it in the last quarter."""
    seed: int = 0
    """Fixes the first weights, the crops and the noise."""

    def __post_init__(self) -> None:
        form = Form(self.architecture, self.inner, self.latents)
        if self.crop % form.multiple:
            raise UsageError(
                f"crops of {self.architecture} have sides of multiples of {form.multiple}, not {self.crop}"
            )
        for name in ("steps", "batch", "quality", "rate"):
            if getattr(self, name) <= 0:
                raise UsageError(f"{name} is above 0, not {getattr(self, name)}")


def train_picture_codec(
    pictures: Sequence[Tensor], recipe: PictureCodecRecipe, progress: ShowProgress, checkpoint: Path | None = None
) -> PictureCodec:
    """Trains a codec.

    Args:
        pictures: float32 [3, height, width] in 0..1, of at least a crop's sides.
        recipe: How.
        progress: Shown the steps.
        checkpoint: What a training that was stopped goes on with; removed at the end.

    Raises:
        UsageError: For no pictures, or some that are smaller than a crop.
        FailureError: Where the loss is no number.
    """
    if not pictures:
        raise UsageError("a codec is trained on pictures: give some")
    small = min(min(picture.shape[1:]) for picture in pictures)
    if small < recipe.crop:
        raise UsageError(f"crops have {recipe.crop} pixels a side, and a picture has {small}")
    with torch.random.fork_rng():
        torch.manual_seed(recipe.seed)
        codec = Codec(Form(recipe.architecture, recipe.inner, recipe.latents))
    quantiles = [tensor for name, tensor in codec.named_parameters() if name.endswith("quantiles")]
    rest = [tensor for name, tensor in codec.named_parameters() if not name.endswith("quantiles")]
    optimizer = torch.optim.Adam([{"params": rest, "lr": recipe.rate}])
    if quantiles:
        optimizer.add_param_group({"params": quantiles, "lr": QUANTILE_RATE})
    kept = Checkpoint(checkpoint, recipe, codec.state_dict(keep_vars=False), optimizer)
    for step in range(kept.resume(), recipe.steps):
        if step >= 3 * recipe.steps // 4:
            optimizer.param_groups[0]["lr"] = recipe.rate / 5
        generator = torch.Generator().manual_seed(recipe.seed * 1_000_003 + step)
        crops = _crops(pictures, recipe, generator)
        optimizer.zero_grad()
        bits, error = rate_and_error(codec, crops, generator)
        loss = bits + recipe.quality * 255**2 * error
        if not bool(torch.isfinite(loss)):
            raise FailureError(f"step {step}: the loss is not finite; try a smaller rate than {recipe.rate}")
        if isinstance(codec.factorized, EntropyBottleneck):
            loss = loss + codec.factorized.quantile_loss()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(rest, CLIP)
        optimizer.step()
        progress(f"{float(bits.detach()):.2f} bits a pixel", step + 1, recipe.steps)
        if (step + 1) % KEPT_EVERY == 0:
            kept.save(step + 1)
    kept.remove()
    return PictureCodec.of(codec.eval())


def rate_and_error(codec: Codec, crops: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Returns bits a pixel and the mean squared error, with noise in place of rounding.

    Args:
        codec: The codec.
        crops: float32 [batch, 3, height, width] in 0..1.
        generator: What draws the noise.
    """
    latents = codec.analyse(crops)
    noisy = _noisy(latents, generator)
    if codec.form.hyper:
        hyper = _noisy(codec.hyper_latents(latents), generator)
        told = codec.h_s(hyper)
        scales = at_least(told[:, : codec.form.latents], LEAST_SCALE)
        means = told[:, codec.form.latents :] if codec.form.architecture == "mbt2018-mean" else 0
        spent = normal_bits(noisy - means, scales).sum() + codec.factorized.bits(hyper).sum()
    else:
        spent = codec.factorized.bits(noisy).sum()
    pixels = crops.numel() / 3
    return spent / pixels, (codec.synthesize(noisy) - crops).square().mean()


def _noisy(x: Tensor, generator: torch.Generator) -> Tensor:
    return x + torch.rand(x.shape, generator=generator) - 0.5


def _crops(pictures: Sequence[Tensor], recipe: PictureCodecRecipe, generator: torch.Generator) -> Tensor:
    """Returns random parts of random pictures, float32 [batch, 3, crop, crop]."""

    def below(bound: int) -> int:
        return int(torch.randint(bound, (), generator=generator))

    found = []
    for _ in range(recipe.batch):
        picture = pictures[below(len(pictures))]
        top, left = (below(side - recipe.crop + 1) for side in picture.shape[1:])
        found.append(picture[:, top : top + recipe.crop, left : left + recipe.crop])
    return torch.stack(found)
