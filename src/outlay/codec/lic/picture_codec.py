"""A picture codec as a folder: its networks, the order of its channels, what is predicted from cores, its tables."""

from __future__ import annotations

import json
import pickle
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from hashlib import sha256
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from outlay.codec.lic.conditional import Conditional, Latents, fit
from outlay.codec.lic.iscs import ISCS, Layout, filter_correlation, reorder
from outlay.codec.lic.networks import Codec, load_codec
from outlay.codec.lic.patches import exact_network
from outlay.codec.lic.priors import LEAST_SCALE, normal_bits
from outlay.codec.lic.tables import NORMALS, SHIFTS, Table, Tables, scale_index, shifted
from outlay.errors import UsageError

CONFIG, WEIGHTS = "config.json", "model.safetensors"
KIND, VERSION = "outlay picture codec", 1


@dataclass(frozen=True)
class Code:
    """How the integers of a picture's latents are coded, before any of them is known."""

    centers: Tensor
    """float32 [M, height, width]: what is added to the integers."""
    numbers: Tensor
    """int64 [M, height, width]: the table of each."""
    scales: Tensor | None
    """float32 [M, height, width]: the deviations that the hyper-synthesis tells; None without one."""


@dataclass(frozen=True)
class PictureCodec:
    """A codec with its channels in the order in which they are sent."""

    codec: Codec
    layout: Layout
    conditional: Conditional | None = None
    """None: auxiliaries are coded as the prior has them."""

    def __post_init__(self) -> None:
        if len(self.layout.channels) != self.codec.form.latents:
            raise UsageError(
                f"the layout orders {len(self.layout.channels)} channels, and the codec has {self.codec.form.latents}"
            )

    @classmethod
    def of(cls, codec: Codec) -> PictureCodec:
        """Returns a codec with its channels as they are."""
        return cls(codec, Layout.plain(codec.form.latents))

    @cached_property
    def tables(self) -> Tables:
        """The tables of its streams."""
        prior = self.codec.factorized
        return Tables([Table.of(pmf, first) for pmf, first in zip(prior.pmfs(), prior.offsets(), strict=True)])

    @cached_property
    def digest(self) -> bytes:
        """The SHA-256 of all that it is made of."""
        found = sha256(json.dumps(self._config(), sort_keys=True).encode())
        for name, tensor in sorted(self._tensors().items()):
            found.update(f"{name} {tensor.dtype} {list(tensor.shape)}\0".encode())
            found.update(tensor.contiguous().numpy().tobytes())
        return found.digest()

    @cached_property
    def _hyper_synthesis(self) -> Any:
        return exact_network(self.codec.h_s)

    def code(self, height: int, width: int, hyper: Tensor | None) -> Code:
        """Returns how latents of a size are coded, to the same bit on every machine.

        Args:
            height: Latents from top to bottom.
            width: Latents from left to right.
            hyper: The integers of the hyper latents, int64 [N, height / 4, width / 4]; None without a hyperprior.
        """
        form, prior = self.codec.form, self.codec.factorized
        if hyper is None:
            centers = prior.centers[:, None, None].expand(-1, height, width)
            numbers = (NORMALS + torch.arange(form.latents))[:, None, None].expand(-1, height, width)
            return Code(centers, numbers, None)
        with torch.no_grad():
            told = self._hyper_synthesis((hyper.float() + prior.centers[:, None, None])[None])[0]
        scales = told[: form.latents].clamp_min(LEAST_SCALE)
        centers = told[form.latents :] if form.architecture == "mbt2018-mean" else torch.zeros_like(scales)
        return Code(centers, scale_index(scales) * SHIFTS + SHIFTS // 2, scales)

    def predict(self, channel: int, core: Tensor, code: Code) -> tuple[Tensor, Tensor]:
        """Returns the tables of an auxiliary, and what is subtracted before it is coded, once its core is known.

        Args:
            channel: The auxiliary.
            core: The integers of its core, int64 [height, width].
            code: See `code`.
        """
        assert self.conditional is not None
        how = self.conditional
        scales = how.scale[channel].expand(core.shape) if code.scales is None else code.scales[channel]
        return shifted(
            scale_index((scales * how.narrowing[channel]).clamp_min(LEAST_SCALE)), core.float() * how.slope[channel]
        )

    def predicted(self, channel: int) -> bool:
        """Tells whether a channel is coded with what its core tells."""
        return self.conditional is not None and bool(self.conditional.used[channel])

    def hyper_numbers(self, height: int, width: int) -> Tensor:
        """Returns the tables of the hyper latents, int64 [N, height, width]."""
        return (NORMALS + torch.arange(self.codec.form.inner))[:, None, None].expand(-1, height, width)

    def integers(self, pixels: Tensor) -> tuple[Tensor, Tensor | None, Code]:
        """Returns the integers of a picture, those of its hyper latents, and how the first are coded.

        Args:
            pixels: float32 [3, height, width] in 0..1, sides multiples of `form.multiple`.

        Returns:
            int64 [M, height / stride, width / stride], int64 [N, ...] or None, and the code.
        """
        with torch.no_grad():
            latents = self.codec.analyse(pixels[None])
            hyper = None
            if self.codec.form.hyper:
                medians = self.codec.factorized.centers[:, None, None]
                hyper = (self.codec.hyper_latents(latents)[0] - medians).round().long()
            code = self.code(latents.shape[2], latents.shape[3], hyper)
            return (latents[0] - code.centers).round().long(), hyper, code

    def picture(self, integers: Tensor, code: Code) -> Tensor:
        """Returns the picture of integers, float32 [3, height, width] in 0..1."""
        with torch.no_grad():
            return self.codec.synthesize((integers.float() + code.centers)[None])[0].clamp(0, 1)

    def reordered(self, options: ISCS, pictures: Sequence[Tensor] = ()) -> PictureCodec:
        """Returns the same function with its channels in the order that a score gives; auxiliaries are to be fitted.

        Args:
            options: The score, cores, slices and order.
            pictures: For the score `ablation`: float32 [3, height, width].

        Raises:
            UsageError: See `ISCS.layout`. Also for a codec that was reordered before.
        """
        if self.layout.score != "none":
            raise UsageError(f"the codec's channels were ordered by {self.layout.score} before; give the original")
        layout = options.layout(self.codec, [self.padded(each) for each in pictures])
        return PictureCodec(reorder(self.codec, layout), layout)

    def fitted(self, pictures: Sequence[Tensor], steps: int = 300) -> PictureCodec:
        """Returns the codec with auxiliaries predicted from their cores (stage B); pictures stay the same, to the bit.

        Args:
            pictures: float32 [3, height, width] in 0..1.
            steps: Steps for each channel.

        Raises:
            UsageError: For a codec whose channels have no cores yet, or no pictures.
        """
        if self.layout.score == "none":
            raise UsageError("the codec's channels have no cores: order them first (outlay codec reorder)")
        if not pictures:
            raise UsageError("stage B is fitted to pictures: give some")
        latents = [self.latents(picture) for picture in pictures]
        form, correlation = self.codec.form, filter_correlation(self.codec)
        scale = torch.ones(form.latents) if form.hyper else self.codec.factorized.deviations
        return PictureCodec(self.codec, self.layout, fit(latents, self.layout, correlation, scale, steps))

    def latents(self, picture: Tensor) -> Latents:
        """Returns a picture's integers and what the prior alone spends for them."""
        integers, _, code = self.integers(self.padded(picture))
        prior = self.codec.factorized
        with torch.no_grad():
            if code.scales is not None:
                spent = normal_bits(integers.float(), code.scales)
            else:
                spent = prior.bits((integers.float() + code.centers)[None])[0]
        return Latents(integers, spent, code.scales)

    def padded(self, picture: Tensor) -> Tensor:
        """Returns a picture, [3, height, width], its last row and column repeated up to the codec's multiple."""
        multiple = self.codec.form.multiple
        down, right = (-side % multiple for side in picture.shape[1:])
        return torch.nn.functional.pad(picture[None], (0, right, 0, down), mode="replicate")[0]

    def save(self, folder: Path) -> None:
        """Writes a folder that `load` reads. Nothing half-written has the final name."""
        folder.mkdir(parents=True, exist_ok=True)
        part = folder / f"{WEIGHTS}.part"
        save_file({name: tensor.contiguous() for name, tensor in self._tensors().items()}, part)
        part.replace(folder / WEIGHTS)
        part = folder / f"{CONFIG}.part"
        part.write_text(json.dumps(self._config(), indent=1) + "\n")
        part.replace(folder / CONFIG)

    def _config(self) -> dict[str, Any]:
        return {"kind": KIND, "version": VERSION, **asdict(self.codec.form), "layout": asdict(self.layout)}

    def _tensors(self) -> dict[str, Tensor]:
        found = dict(self.codec.state_dict())
        if self.conditional is not None:
            found |= {f"conditional.{name}": tensor for name, tensor in vars(self.conditional).items()}
        return found


def load(path: str | Path) -> PictureCodec:
    """Returns a picture codec.

    Args:
        path: A folder that `outlay train codec` or `outlay codec` wrote, or a state dict of CompressAI's
            bmshj2018-factorized, bmshj2018-hyperprior or mbt2018-mean: .safetensors, .pth, .pth.tar or .pt.

    Raises:
        UsageError: For anything else, in one line that says what it is.
    """
    path = Path(path)
    if not path.exists():
        raise UsageError(f"there is no picture codec {path}")
    if not path.is_dir():
        return PictureCodec.of(load_codec(_state_dict(path)))
    try:
        config = json.loads((path / CONFIG).read_text())
        kind, version, layout = config["kind"], config["version"], config["layout"]
    except (OSError, ValueError, KeyError, TypeError):
        raise UsageError(f"{path} is no folder of a picture codec: its {CONFIG} can't be read") from None
    if kind != KIND or version != VERSION:
        raise UsageError(f"{path} holds {kind} of version {version}, and this is read: {KIND} of version {VERSION}")
    try:
        weights = load_file(path / WEIGHTS)
        conditional = {name: weights.pop(f"conditional.{name}") for name in Conditional.__annotations__}
    except KeyError:
        conditional = {}
    except (OSError, SafetensorError) as error:
        raise UsageError(f"{path / WEIGHTS} can't be read: {error}") from None
    try:
        ordered = Layout(
            tuple(layout["channels"]), tuple(layout["core_of"]), tuple(layout["slice_of"]), str(layout["score"])
        )
    except (KeyError, TypeError):
        raise UsageError(f"the layout in {path / CONFIG} is damaged") from None
    return PictureCodec(load_codec(weights), ordered, Conditional(**conditional) if conditional else None)


def _state_dict(path: Path) -> dict[str, Tensor]:
    """Returns the tensors of a file; a pickle is read as tensors alone."""
    try:
        found = load_file(path) if path.suffix == ".safetensors" else torch.load(path, "cpu", weights_only=True)
    except (OSError, SafetensorError, RuntimeError, EOFError, ValueError, pickle.UnpicklingError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UsageError(f"{path} can't be read as tensors: {reason}") from None
    for key in ("state_dict", "network", "model"):
        if isinstance(found, dict) and isinstance(found.get(key), dict):
            found = found[key]
    if not isinstance(found, dict) or not all(isinstance(each, Tensor) for each in found.values()):
        raise UsageError(f"{path} holds no state dict")
    return {str(name).removeprefix("module."): tensor for name, tensor in found.items()}
