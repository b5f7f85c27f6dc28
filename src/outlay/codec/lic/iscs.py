"""ISCS: latent channels of a picture codec, ranked, grouped and ordered from its parameters (Wang et al. 2025).

https://arxiv.org/abs/2509.16853. A few channels carry almost all of a picture. They are found from the trained weights,
not by leaving channels out one by one: the most important are cores, and each other channel is an auxiliary of the core
that its filter resembles most. That gives an order to cut off at, and slices that decode alone.

The abstract names the ingredients (variance of filters, size of biases, correlation of filters); weights of the scores,
thresholds and the balance of groups are ours, chosen so that the claims can be tested.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from outlay.about import About, Entry
from outlay.codec.lic.networks import Codec
from outlay.codec.lic.priors import LEAST_SCALE, NormalPrior
from outlay.errors import UsageError

Score = Literal["weights", "variance", "prior", "probe", "ablation"]
SCORES: tuple[Score, ...] = ("weights", "variance", "prior", "probe", "ablation")
Order = Literal["progressive", "interleaved"]
ORDERS: tuple[Order, ...] = ("progressive", "interleaved")
INACTIVE = 1e-3
"""A channel whose filter has less than this of the median's variance carries nothing."""
PROBES, PROBE_SIDE = 8, 128
"""Pictures of noise that `probe` looks at, and their pixels a side."""


@dataclass(frozen=True)
class ISCS(Entry):
    """Orders and groups the latent channels of a picture codec from its parameters."""

    score: Score = "weights"
    """What ranks channels. weights: filters' variance and the size of biases; variance: that alone; prior: the scale
    that the prior tells; probe: the variance of latents of noise, times the synthesis filter's energy; ablation: the
    error without the channel on given pictures, for evaluation."""

    cores: int | float | None = None
    """How many channels are cores; a share below 1 of the summed importance; None: a quarter of the channels."""

    slices: int = 4
    """Parts of a stream that decode alone, in parallel."""

    order: Order = "progressive"
    """progressive: all cores, then all auxiliaries, the best to cut off; interleaved: each core and its auxiliaries."""

    bias_weight: float = 0.5
    """The weight of biases in the score `weights`."""

    about: ClassVar[About] = About(
        name="iscs",
        summary="a picture codec's channels in an order to cut off at, from its weights",
        paper="Wang et al. 2025, https://arxiv.org/abs/2509.16853",
        family="compression",
        spends="a sort of the channels, once; two stages of entropy coding whatever the number of slices",
        saves="bytes (channels that are cut off, predicted auxiliaries) and the time of sequential stages",
        task="compression",
        command="outlay codec reorder",
        counts={"bytes_in": "", "bytes_out": "", "ideal_bits": "bits", "stages": "stages"},
    )

    def __post_init__(self) -> None:
        if self.score not in SCORES:
            raise UsageError(f"a score is one of {', '.join(SCORES)}, not {self.score!r}")
        if self.order not in ORDERS:
            raise UsageError(f"an order is one of {', '.join(ORDERS)}, not {self.order!r}")
        if self.slices < 1:
            raise UsageError(f"iscs needs slices of 1 or more, not {self.slices}")
        if self.cores is not None and not (self.cores > 0 and (self.cores < 1 or self.cores == int(self.cores))):
            raise UsageError(f"iscs needs cores as a number of channels, or a share below 1, not {self.cores}")

    def layout(self, codec: Codec, pictures: Sequence[Tensor] = ()) -> Layout:
        """Returns the order, groups and slices of a codec's channels.

        Args:
            codec: The codec.
            pictures: For the score `ablation`: float32 [3, height, width] in 0..1.

        Raises:
            UsageError: For more cores or slices than there are channels, or an ablation without pictures.
        """
        scores = channel_scores(codec, self.score, bias_weight=self.bias_weight, pictures=pictures)
        importance = scores.clamp_min(0) if self.score in ("probe", "ablation") else filter_variance(codec)
        cores = core_channels(scores, importance, self.cores)
        if self.slices > len(cores):
            raise UsageError(f"iscs has {len(cores)} cores here, so at most {len(cores)} slices, not {self.slices}")
        correlation = filter_correlation(codec)
        inactive = inactive_channels(codec) - set(cores)
        groups = pair(cores, correlation, inactive)
        return _layout(scores, groups, sorted(inactive), self)


@dataclass(frozen=True)
class Layout:
    """How the channels of a codec are ordered. Channel c of the reordered codec was `channels[c]` before."""

    channels: tuple[int, ...]
    """The former index of each channel."""
    core_of: tuple[int, ...]
    """The new index of each channel's core: its own for a core, -1 for an inactive channel."""
    slice_of: tuple[int, ...]
    """The slice of each channel."""
    score: str
    """What ranked them."""

    def __post_init__(self) -> None:
        count = len(self.channels)
        if sorted(self.channels) != list(range(count)) or not len(self.core_of) == len(self.slice_of) == count:
            raise UsageError("the layout is no order of the channels")
        for channel, core in enumerate(self.core_of):
            if not -1 <= core <= channel or (core >= 0 and self.core_of[core] != core):
                raise UsageError(f"channel {channel} can't be predicted from channel {core}")
            if core >= 0 and self.slice_of[core] != self.slice_of[channel]:
                raise UsageError(f"channel {channel} and its core are in two slices")

    @property
    def slices(self) -> int:
        """How many slices there are."""
        return max(self.slice_of) + 1

    def stages(self, part: int, channels: int) -> tuple[list[int], list[int]]:
        """Returns the cores and the other channels of a slice, of the first `channels` alone."""
        mine = [channel for channel in range(channels) if self.slice_of[channel] == part]
        return [c for c in mine if self.core_of[c] == c], [c for c in mine if self.core_of[c] != c]

    @classmethod
    def plain(cls, channels: int) -> Layout:
        """Returns the order that a codec has before it is reordered: one slice, no auxiliaries."""
        every = tuple(range(channels))
        return cls(every, every, (0,) * channels, "none")


def channel_scores(
    codec: Codec, score: Score = "weights", *, bias_weight: float = 0.5, pictures: Sequence[Tensor] = ()
) -> Tensor:
    """Returns the importance of each latent channel, float64 [M]; higher is more important.

    Args:
        codec: The codec.
        score: See `ISCS.score`. All but `ablation` read no picture.
        bias_weight: See `ISCS.bias_weight`.
        pictures: For `ablation`: float32 [3, height, width] in 0..1.

    Raises:
        UsageError: For an ablation without pictures.
    """
    if score == "variance":
        return filter_variance(codec)
    if score == "weights":
        return _standard(filter_variance(codec).clamp_min(1e-300).log()) + bias_weight * _standard(bias_size(codec))
    if score == "prior":
        return prior_scale(codec)
    if score == "probe":
        return probe_energy(codec)
    if not pictures:
        raise UsageError("the score ablation measures on pictures: give some")
    return ablation(codec, pictures)


def filter_variance(codec: Codec) -> Tensor:
    """Returns the variance of each analysis filter W_c over inputs and places, float64 [M]."""
    return codec.last.weight.detach().double().flatten(1).var(1, unbiased=False)


def bias_size(codec: Codec) -> Tensor:
    """Returns |b_c|, float64 [M]."""
    bias = codec.last.bias
    assert bias is not None
    return bias.detach().double().abs()


def prior_scale(codec: Codec) -> Tensor:
    """Returns the logarithm of the scale that the prior gives each channel, float64 [M].

    That of an entropy bottleneck is the entropy of its integers; that of a hyperprior is what the hyper-synthesis tells
    where the second code is at its medians, so that no picture is read.
    """
    with torch.no_grad():
        if codec.form.hyper:
            bottleneck = codec.factorized
            told = codec.h_s(bottleneck.centers[None, :, None, None].expand(1, -1, 4, 4))
            return told[:, : codec.form.latents].double().clamp_min(LEAST_SCALE).log().mean((0, 2, 3))
        prior = codec.factorized
        return prior.scales.double().log() if isinstance(prior, NormalPrior) else prior.channel_entropies()


def probe_energy(codec: Codec) -> Tensor:
    """Returns Var(y_c) |V_c|^2 of the latents y of pink noise and the synthesis filters V, float64 [M]."""
    side = -(-PROBE_SIDE // codec.form.multiple) * codec.form.multiple
    with torch.no_grad():
        latents = codec.analyse(pink_noise(PROBES, side)).double()
        spread = latents.transpose(0, 1).flatten(1).var(1, unbiased=False)
        return spread * (codec.first.weight.double() / codec.gain).flatten(1).square().sum(1)


def pink_noise(count: int, side: int) -> Tensor:
    """Returns pictures of 1/f noise, mean 0.45 and deviation 0.2, weakly coloured, float32 [count, 3, side, side]."""
    generator = torch.Generator().manual_seed(0)
    frequency = torch.fft.fftfreq(side)[:, None].square() + torch.fft.rfftfreq(side)[None].square()
    amplitude = frequency.sqrt().clamp_min(1 / side).reciprocal()
    white = torch.randn(count, 4, side, side, generator=generator)  # brightness, and a little of each colour
    pink = torch.fft.irfft2(torch.fft.rfft2(white) * amplitude, s=(side, side))
    pink = pink / pink.std((2, 3), keepdim=True)
    mixed = pink[:, :1] + 0.3 * pink[:, 1:]
    mixed = (mixed - mixed.mean((1, 2, 3), keepdim=True)) / mixed.std((1, 2, 3), keepdim=True)
    return (0.45 + 0.2 * mixed).clamp(0, 1)


def ablation(codec: Codec, pictures: Sequence[Tensor]) -> Tensor:
    """Returns how many decibels the pictures lose without each channel, float64 [M]; filled with the prior's mean."""
    losses = torch.zeros(codec.form.latents, dtype=torch.float64)
    with torch.no_grad():
        for picture in pictures:
            latents, filling = rounded_latents(codec, picture[None])
            whole = psnr(codec.synthesize(latents), picture)
            for channel in range(codec.form.latents):
                without = latents.clone()
                without[:, channel] = filling[:, channel]
                losses[channel] += whole - psnr(codec.synthesize(without), picture)
    return losses / len(pictures)


def rounded_latents(codec: Codec, pixels: Tensor) -> tuple[Tensor, Tensor]:
    """Returns the latents of pictures as a decoder has them, and what fills channels that are left out.

    Args:
        codec: The codec.
        pixels: float32 [batch, 3, height, width], sides multiples of `form.multiple`.

    Returns:
        Two float32 [batch, M, height / stride, width / stride]; the second is the prior's mean.
    """
    latents = codec.analyse(pixels)
    if not codec.form.hyper:
        centers = codec.factorized.centers[None, :, None, None].expand_as(latents)
    elif codec.form.architecture == "mbt2018-mean":
        medians = codec.factorized.centers[:, None, None]
        told = codec.h_s((codec.hyper_latents(latents) - medians).round() + medians)
        centers = told[:, codec.form.latents :]
    else:
        centers = torch.zeros_like(latents)
    return (latents - centers).round() + centers, centers


def psnr(found: Tensor, picture: Tensor) -> float:
    """Returns the peak signal-to-noise ratio of a picture in 0..1, in decibels."""
    error = float((found.clamp(0, 1) - picture).double().square().mean())
    return 10 * math.log10(1 / max(error, 1e-12))


def filter_correlation(codec: Codec) -> Tensor:
    """Returns rho_ij, the cosine between filters W_i and W_j without their means, float64 [M, M]."""
    rows = codec.last.weight.detach().double().flatten(1)
    rows = rows - rows.mean(1, keepdim=True)
    rows = rows / rows.norm(dim=1, keepdim=True).clamp_min(1e-300)
    return rows @ rows.T


def inactive_channels(codec: Codec) -> set[int]:
    """Returns the channels whose filters have less than `INACTIVE` of the median variance."""
    variance = filter_variance(codec)
    return set(torch.nonzero(variance < INACTIVE * variance.median())[:, 0].tolist())


def core_channels(scores: Tensor, importance: Tensor, cores: int | float | None = None) -> list[int]:
    """Returns the cores, the most important first; of equal scores the lower index comes first.

    Args:
        scores: float64 [M].
        importance: float64 [M], of which a share may be asked.
        cores: How many; a share below 1 of the summed importance; None: a quarter, rounded up.

    Raises:
        UsageError: For more than there are channels.
    """
    ranked = sorted(range(len(scores)), key=lambda channel: (-float(scores[channel]), channel))
    if cores is None:
        return ranked[: -(-len(ranked) // 4)]
    if cores >= 1:
        if cores > len(ranked):
            raise UsageError(f"the codec has {len(ranked)} channels, so it can't have {int(cores)} cores")
        return ranked[: int(cores)]
    wanted, found = cores * float(importance.sum()), 0.0
    for count, channel in enumerate(ranked, 1):
        found += float(importance[channel])
        if found >= wanted:
            return ranked[:count]
    return ranked


def pair(cores: Sequence[int], correlation: Tensor, inactive: Collection[int] = ()) -> dict[int, list[int]]:
    """Attaches each auxiliary to the core that its filter resembles most, in groups of about equal size.

    The auxiliaries choose in the order of their largest |rho|; a core takes at most one above its share, and who finds
    it full goes to the next most correlated.

    Args:
        cores: The cores.
        correlation: rho, float64 [M, M].
        inactive: Channels that are in no group.

    Returns:
        The auxiliaries of each core, by |rho|, the largest first.
    """
    strength = correlation.abs()
    rest = [c for c in range(len(correlation)) if c not in cores and c not in inactive]
    room = -(-len(rest) // len(cores)) + 1
    best = {c: max(float(strength[c, core]) for core in cores) for c in rest}
    groups: dict[int, list[int]] = {core: [] for core in cores}
    for channel in sorted(rest, key=lambda c: (-best[c], c)):
        open_cores = [core for core in cores if len(groups[core]) < room]
        chosen = max(open_cores, key=lambda core: (float(strength[channel, core]), -core))
        groups[chosen].append(channel)
    for core, members in groups.items():
        members.sort(key=lambda c: (-float(strength[c, core]), c))
    return groups


def _layout(scores: Tensor, groups: dict[int, list[int]], inactive: Sequence[int], options: ISCS) -> Layout:
    cores = list(groups)
    if options.order == "interleaved":
        channels = [channel for core in cores for channel in (core, *groups[core])]
    else:
        rest = [channel for members in groups.values() for channel in members]
        channels = [*cores, *sorted(rest, key=lambda c: (-float(scores[c]), c))]
    channels += inactive
    place = {channel: index for index, channel in enumerate(channels)}
    core_of = {channel: core for core, members in groups.items() for channel in (core, *members)}
    part_of = deal(len(cores), options.slices)
    slice_of = {core: part for core, part in zip(cores, part_of, strict=True)}
    return Layout(
        channels=tuple(channels),
        core_of=tuple(place[core_of[c]] if c in core_of else -1 for c in channels),
        slice_of=tuple(
            slice_of[core_of[c]] if c in core_of else index % options.slices for index, c in enumerate(channels)
        ),
        score=options.score,
    )


def deal(count: int, parts: int) -> list[int]:
    """Deals ranked items in snake order: 0 1 2 2 1 0 0 1 2, so that the parts' sums are near each other."""
    rounds = ((index // parts, index % parts) for index in range(count))
    return [at if turn % 2 == 0 else parts - 1 - at for turn, at in rounds]


def reorder(codec: Codec, layout: Layout) -> Codec:
    """Returns the same function with its latent channels in another order (analysis, synthesis, hyper networks, prior).

    Latents are the former ones, reordered, to the bit; what sums over channels differs in the last bits, so that a
    stream is decoded by the codec that wrote it.

    Args:
        codec: The codec.
        layout: The order.
    """
    order = torch.tensor(layout.channels)
    m = codec.form.latents
    weights = {name: tensor.clone() for name, tensor in codec.state_dict().items()}
    last = len(codec.g_a) - 1
    for name in (f"g_a.{last}.weight", f"g_a.{last}.bias", "g_s.0.weight"):
        weights[name] = weights[name][order]
    if codec.form.hyper:
        weights["h_a.0.weight"] = weights["h_a.0.weight"][:, order]
        told = torch.cat([order, order + m]) if codec.form.architecture == "mbt2018-mean" else order
        for name in ("h_s.4.weight", "h_s.4.bias"):
            weights[name] = weights[name][told]
    else:
        weights = {
            name: tensor[order] if name.startswith(("prior.", "entropy_bottleneck.")) else tensor
            for name, tensor in weights.items()
        }
    twin = Codec(codec.form)
    twin.load_state_dict(weights)
    return twin.eval()


def _standard(x: Tensor) -> Tensor:
    return (x - x.mean()) / x.std(unbiased=False).clamp_min(1e-300)
