"""`outlay bench pictures`: what the order of a picture codec's channels is worth; rates beside JPEG and WebP."""

from __future__ import annotations

import argparse
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from outlay.bench.pictures.report import draw, report
from outlay.bench.suite import Suite
from outlay.codec.circuit.arrays import unpack_streams
from outlay.codec.lic import ISCS, PictureCodec, PictureCoder, channel_scores, load
from outlay.codec.lic.conditional import saved_bits
from outlay.codec.lic.iscs import SCORES, ablation, psnr
from outlay.errors import UsageError
from outlay.pictures import read_picture
from outlay.progress import ShowProgress
from outlay.train.picture_codec import PictureCodecRecipe, train_picture_codec

LEARNED_FROM = (
    "astronaut.png", "chelsea.png", "coffee.png", "rocket.jpg", "motorcycle_left.png", "ihc.png", "retina.jpg",
    "hubble_deep_field.jpg",
)  # fmt: skip
QUALITIES = (5, 10, 20, 35, 50, 75)
SHARES = (0.25, 0.5, 0.75, 1.0)
SIZE = (320, 224)
DRAWS = 40  # random choices that the ordered ones are compared with
FITTED_STEPS = 100


@dataclass(frozen=True)
class PicturesSettings:
    """What is measured."""

    pictures: tuple[Path, ...]
    learned_from: tuple[Path, ...]
    size: tuple[int, int] | None
    seed: int
    plot: Path | None


class PicturesSuite(Suite[PicturesSettings]):
    """Rank correlations, pruning, pairing, stage B, and rates and errors."""

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """As `Suite.add_arguments`: the model is a picture codec."""
        parser.add_argument("--codec", type=Path, default=None, metavar="CKPT", help="a codec (tiny, trained here)")
        parser.add_argument(
            "--pictures", type=Path, default=None, metavar="DIR", help="to measure on (two photographs)"
        )
        parser.add_argument("--learn", type=Path, default=None, metavar="DIR", help="to train and fit to (eight)")
        parser.add_argument(
            "--seed", type=int, default=0, metavar="N", help="of the training and of random choices (0)"
        )
        parser.add_argument("--plot", type=Path, default=None, metavar="FILE", help="draw rates and errors: .png, .svg")
        parser.add_argument("--out", type=Path, default=None, metavar="FILE", help="write everything measured as JSON")

    def add_options(self, parser: argparse.ArgumentParser) -> None:
        """All options are its own."""

    def settings(self, args: argparse.Namespace) -> PicturesSettings:
        """Returns what the options ask for. Raises `UsageError` where there are no pictures."""
        tested = _pictures(args.pictures, "sklearn", "datasets/images", ("china.jpg", "flower.jpg"))
        learned = _pictures(args.learn, "skimage", "data", LEARNED_FROM)
        if args.codec is not None and not args.codec.exists():
            raise UsageError(f"there is no picture codec {args.codec}")
        return PicturesSettings(tested, learned, SIZE if args.pictures is None else None, args.seed, args.plot)

    def path(self, args: argparse.Namespace) -> Path:
        """Returns the codec, or the name of the one that is trained."""
        return args.codec or Path("tiny")

    def measure(self, settings: PicturesSettings, model: Path, progress: ShowProgress) -> dict[str, Any]:
        """Returns ranks, cuts, what pairing and stage B save, and points of rate and error."""
        torch.set_num_threads(1)
        learned = [_float(_opened(path)) for path in settings.learned_from]
        if model.exists():
            codec = load(model)
        else:
            codec = train_picture_codec(learned, PictureCodecRecipe(seed=settings.seed), progress)
        pictures = [_opened(path, settings.size) for path in settings.pictures]
        fitted_to = [_float(_opened(path, settings.size)) for path in settings.learned_from]
        progress("ranking", 0, 0)
        found: dict[str, Any] = {"pictures": [path.name for path in settings.pictures]}
        found["codec"] = vars(codec.codec.form)
        found["ranks"] = _ranks(codec, pictures, settings.seed)
        found["pairing"] = _pairing(codec, pictures, settings.seed)
        progress("fitting auxiliaries", 0, 0)
        ordered = codec.reordered(ISCS("prior"))
        fitted = ordered.fitted(fitted_to, FITTED_STEPS)
        found["stage_b"] = [_auxiliary_bytes(each, pictures) for each in (ordered, fitted)]
        found["points"] = _points(fitted, pictures)
        if settings.plot is not None:
            draw(found, settings.plot)
        return found

    def report(self, found: Mapping[str, Any]) -> str:
        """Returns the report as text."""
        return report(found)


def _pictures(given: Path | None, package: str, folder: str, names: Sequence[str]) -> tuple[Path, ...]:
    """Returns the pictures of a folder, or some that a package comes with."""
    if given is not None:
        paths = tuple(sorted(each for each in given.iterdir() if each.is_file())) if given.is_dir() else ()
        if not paths:
            raise UsageError(f"{given} is no folder of pictures")
        return paths
    spec = find_spec(package)
    if spec is None or spec.origin is None:
        raise UsageError(f"the pictures are those of {package}, which is not installed; give --pictures and --learn")
    return tuple(Path(spec.origin).parent / folder / name for name in names)


def _opened(path: Path, size: tuple[int, int] | None = None) -> Tensor:
    """Returns a picture, uint8 [height, width, 3], of another size where one is given."""
    from PIL import Image

    picture = read_picture(path)
    if size is not None:
        picture = np.array(Image.fromarray(picture).resize(size, Image.Resampling.LANCZOS))
    return torch.from_numpy(picture)


def _float(picture: Tensor) -> Tensor:
    return picture.permute(2, 0, 1).float() / 255


def _ranks(codec: PictureCodec, pictures: Sequence[Tensor], seed: int) -> list[dict[str, Any]]:
    """Returns each score's rank correlation with ablation, and rates and errors with channels cut off."""
    expected = [codec.padded(_float(picture)) for picture in pictures]
    truth = ablation(codec.codec, expected)
    rows: list[dict[str, Any]] = []
    for score in SCORES:
        scores = truth if score == "ablation" else channel_scores(codec.codec, score)
        ordered = codec.reordered(ISCS(score), [_float(picture) for picture in pictures])
        cuts = [_rate_and_error(ordered, pictures, share) for share in SHARES]
        rows.append({"score": score, "rank": _rank_correlation(scores, truth), "cuts": cuts})
    generator = torch.Generator().manual_seed(seed)
    channels, lost = codec.codec.form.latents, []
    for _ in range(DRAWS):
        dropped = torch.randperm(channels, generator=generator)[: channels // 4]
        errors = []
        for picture in expected:
            integers, _, code = codec.integers(picture)
            integers[dropped] = 0
            errors.append(psnr(codec.picture(integers, code), picture))
        lost.append(sum(errors) / len(errors))
    rows.append({"score": "random", "rank": 0.0, "cuts": [None, None, [None, sum(lost) / DRAWS], None]})
    return rows


def _rank_correlation(first: Tensor, second: Tensor) -> float:
    """Returns Spearman's correlation of values without ties."""
    ranks = torch.stack([each.argsort().argsort().double() for each in (first, second)])
    return float(torch.corrcoef(ranks)[0, 1])


def _rate_and_error(codec: PictureCodec, pictures: Sequence[Tensor], share: float) -> list[float]:
    """Returns bits a pixel of whole files, and decibels, means of the pictures."""
    channels = round(share * codec.codec.form.latents)
    coder, bits, decibels = PictureCoder(codec, "codec", channels=channels), 0.0, 0.0
    for picture in pictures:
        container = coder.compress(picture).container
        integers, _, code = codec.integers(codec.padded(_float(picture)))
        integers[channels:] = 0
        shown = codec.picture(integers, code)[:, : picture.shape[0], : picture.shape[1]]
        bits += 8 * len(container.pack()) / picture[..., 0].numel()
        decibels += psnr(shown, _float(picture))
    return [bits / len(pictures), decibels / len(pictures)]


def _pairing(codec: PictureCodec, pictures: Sequence[Tensor], seed: int) -> list[float]:
    """Returns what pairing by filters can save, and pairing at random, bits a symbol of an auxiliary."""
    grouped, generator = codec.reordered(ISCS()), torch.Generator().manual_seed(seed)
    latents = [grouped.latents(_float(picture)) for picture in pictures]
    core_of = grouped.layout.core_of
    cores = [c for c, core in enumerate(core_of) if core == c]
    drawn = 0.0
    for _ in range(DRAWS):
        strangers = [
            c if core in (c, -1) else cores[int(torch.randint(len(cores), (), generator=generator))]
            for c, core in enumerate(core_of)
        ]
        drawn += saved_bits(latents, strangers) / DRAWS
    return [saved_bits(latents, core_of), drawn]


def _auxiliary_bytes(codec: PictureCodec, pictures: Sequence[Tensor]) -> int:
    coder, total = PictureCoder(codec, "codec"), 0
    for picture in pictures:
        container = coder.compress(picture).container
        for part in range(codec.layout.slices):
            coded = container.coded(part + codec.codec.form.hyper)
            total += 4 * len(unpack_streams(coded, 2)[1])
    return total


def _points(codec: PictureCodec, pictures: Sequence[Tensor]) -> dict[str, list[list[float]]]:
    """Returns bits a pixel and decibels of the codec cut off at several places, and of JPEG and WebP."""
    found = {"codec": [_rate_and_error(codec, pictures, share) for share in SHARES]}
    for format_ in ("JPEG", "WebP"):
        found[format_] = [_saved(pictures, format_, quality) for quality in QUALITIES]
    return found


def _saved(pictures: Sequence[Tensor], format_: str, quality: int) -> list[float]:
    from PIL import Image

    bits = decibels = 0.0
    for picture in pictures:
        file = io.BytesIO()
        Image.fromarray(picture.numpy()).save(file, format_, quality=quality)
        bits += 8 * len(file.getvalue()) / picture[..., 0].numel()
        decibels += psnr(_float(torch.from_numpy(read_picture(file.getvalue()))), _float(picture))
    return [bits / len(pictures), decibels / len(pictures)]


SUITE = PicturesSuite()
