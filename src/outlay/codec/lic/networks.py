"""Learned picture codecs: analysis, quantized latents, a prior, synthesis. With the names of CompressAI's state dicts.

Ballé et al. 2018, https://arxiv.org/abs/1802.01436 (`bmshj2018-factorized`, `bmshj2018-hyperprior`), Minnen et al.
2018, https://arxiv.org/abs/1809.02736 (`mbt2018-mean`, without its context model), and `tiny`, three layers with a
normal distribution for each channel.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from outlay.codec.lic.priors import EntropyBottleneck, NormalPrior, at_least
from outlay.errors import UsageError

Architecture = Literal["tiny", "bmshj2018-factorized", "bmshj2018-hyperprior", "mbt2018-mean"]
ARCHITECTURES: tuple[Architecture, ...] = ("tiny", "bmshj2018-factorized", "bmshj2018-hyperprior", "mbt2018-mean")
GAIN = 8.0
"""What `tiny` multiplies its latents by before they are rounded, so that training starts at a useful rate."""
HYPER_STRIDE = 4
"""Latents a side for each hyper latent."""


@dataclass(frozen=True)
class Form:
    """The sizes of a codec."""

    architecture: Architecture
    """One of `ARCHITECTURES`."""
    inner: int
    """Channels between the layers, N."""
    latents: int
    """Channels of the latents, M."""

    def __post_init__(self) -> None:
        if self.architecture not in ARCHITECTURES:
            raise UsageError(f"a picture codec is one of {', '.join(ARCHITECTURES)}, not {self.architecture!r}")
        if self.inner < 1 or self.latents < 2:
            raise UsageError(
                f"a codec needs channels: inner 1 or more, latents 2 or more, not {self.inner}, {self.latents}"
            )

    @property
    def hyper(self) -> bool:
        """Whether a second code tells the scales of the latents."""
        return self.architecture in ("bmshj2018-hyperprior", "mbt2018-mean")

    @property
    def layers(self) -> int:
        """Convolutions of the analysis, each of stride 2."""
        return 3 if self.architecture == "tiny" else 4

    @property
    def stride(self) -> int:
        """Pixels a side for each latent."""
        return 1 << self.layers

    @property
    def multiple(self) -> int:
        """Pixels a side that pictures are padded to a multiple of."""
        return self.stride * (HYPER_STRIDE if self.hyper else 1)


class GDN(nn.Module):
    """Generalized divisive normalization, x / sqrt(beta + gamma x^2), or its approximate inverse (x times the root)."""

    LEAST, OFFSET = 1e-6, 2.0**-18

    def __init__(self, channels: int, *, inverse: bool = False) -> None:
        super().__init__()
        self.inverse = inverse
        pedestal = self.OFFSET**2
        self.beta = nn.Parameter(torch.full((channels,), 1 + pedestal).sqrt())
        self.gamma = nn.Parameter((0.1 * torch.eye(channels) + pedestal).sqrt())

    def forward(self, x: Tensor) -> Tensor:
        """Normalizes x, [batch, channels, height, width]."""
        pedestal = self.OFFSET**2
        beta = at_least(self.beta, (self.LEAST + pedestal) ** 0.5) ** 2 - pedestal
        gamma = at_least(self.gamma, self.OFFSET) ** 2 - pedestal
        norm = F.conv2d(x * x, gamma[..., None, None], beta)
        return x * (norm.sqrt() if self.inverse else norm.rsqrt())


class Codec(nn.Module):
    """The networks of a picture codec."""

    def __init__(self, form: Form) -> None:
        super().__init__()
        self.form = form
        n, m = form.inner, form.latents
        self.g_a = nn.Sequential(*_analysis(form.layers, n, m))
        self.g_s = nn.Sequential(*_synthesis(form.layers, n, m))
        self.gain = GAIN if form.architecture == "tiny" else 1.0
        if form.architecture == "tiny":
            self.prior: NormalPrior | None = NormalPrior(m)
            self.entropy_bottleneck: EntropyBottleneck | None = None
        else:
            self.prior = None
            self.entropy_bottleneck = EntropyBottleneck(n if form.hyper else m)
        if form.architecture == "bmshj2018-hyperprior":
            self.h_a = nn.Sequential(_conv(m, n, 3, 1), nn.ReLU(), _conv(n, n), nn.ReLU(), _conv(n, n))
            self.h_s = nn.Sequential(
                _deconv(n, n), nn.ReLU(), _deconv(n, n), nn.ReLU(), _conv(n, m, 3, 1), nn.ReLU()
            )  # fmt: skip
        elif form.architecture == "mbt2018-mean":
            wide = m * 3 // 2
            self.h_a = nn.Sequential(_conv(m, n, 3, 1), nn.LeakyReLU(), _conv(n, n), nn.LeakyReLU(), _conv(n, n))
            self.h_s = nn.Sequential(
                _deconv(n, m), nn.LeakyReLU(), _deconv(m, wide), nn.LeakyReLU(), _conv(wide, 2 * m, 3, 1)
            )  # fmt: skip

    @property
    def factorized(self) -> NormalPrior | EntropyBottleneck:
        """The prior whose channels are independent: of the latents, or of the hyper latents where there are some."""
        found = self.prior if self.prior is not None else self.entropy_bottleneck
        assert found is not None
        return found

    @property
    def last(self) -> nn.Conv2d:
        """The convolution that gives the latents, W [M, N, k, k]."""
        layer = self.g_a[-1]
        assert isinstance(layer, nn.Conv2d)
        return layer

    @property
    def first(self) -> nn.ConvTranspose2d:
        """The convolution that reads the latents, V [M, N, k, k]."""
        layer = self.g_s[0]
        assert isinstance(layer, nn.ConvTranspose2d)
        return layer

    def analyse(self, pixels: Tensor) -> Tensor:
        """Returns the latents of pictures.

        Args:
            pixels: float32 [batch, 3, height, width] in 0..1, sides multiples of `form.multiple`.

        Returns:
            Latents before rounding, float32 [batch, M, height / stride, width / stride].
        """
        latents = self.g_a(pixels)
        assert isinstance(latents, Tensor)
        return latents * self.gain

    def synthesize(self, latents: Tensor) -> Tensor:
        """Returns pictures of latents, float32 [batch, 3, height, width], around 0..1."""
        pixels = self.g_s(latents / self.gain)
        assert isinstance(pixels, Tensor)
        return pixels

    def hyper_latents(self, latents: Tensor) -> Tensor:
        """Returns the second code before rounding, float32 [batch, N, height / 4, width / 4]."""
        found = self.h_a(latents.abs() if self.form.architecture == "bmshj2018-hyperprior" else latents)
        assert isinstance(found, Tensor)
        return found


def load_codec(weights: dict[str, Tensor]) -> Codec:
    """Returns the codec of a state dict with CompressAI's names, or with ours.

    Args:
        weights: The state dict.

    Raises:
        UsageError: For another architecture, which is named, or tensors that are missing or have other shapes.
    """
    weights = _present_names(weights)
    codec = Codec(form_of(weights))
    known = codec.state_dict()
    missing = sorted(known.keys() - weights.keys())
    if missing:
        raise UsageError(f"the codec lacks {len(missing)} tensors, among them {missing[0]}")
    for name, tensor in known.items():
        if tensor.shape != weights[name].shape:
            raise UsageError(
                f"{name} has shape {list(weights[name].shape)}, and {codec.form.architecture} with {codec.form.inner} "
                f"and {codec.form.latents} channels has {list(tensor.shape)}"
            )
        if not bool(torch.isfinite(weights[name]).all()):
            raise UsageError(f"{name} has values that are not finite")
    codec.load_state_dict({name: weights[name].float() for name in known})
    return codec.eval()


def form_of(weights: dict[str, Tensor]) -> Form:
    """Returns the sizes that a state dict tells. Raises `UsageError` for what is no codec, or another one."""
    convolutions = [name for name in weights if name.startswith("g_a.") and name.endswith(".weight")]
    if any("context_prediction" in name for name in weights):
        raise UsageError(
            "a codec with a context model (mbt2018, cheng2020) decodes latent by latent; give mbt2018-mean"
        )
    strange = [name for name in weights if name.startswith("g_a.") and name.split(".")[2] not in GDN_OR_CONV]
    if not convolutions or strange or "g_s.0.weight" not in weights:
        named = f": {strange[0]}" if strange else ""
        raise UsageError(
            f"this is no state dict of {', '.join(ARCHITECTURES[1:])}, whose latents one convolution gives{named}"
        )
    last = max(convolutions, key=lambda name: int(name.split(".")[1]))
    latents, inner = weights[last].shape[:2]
    if "prior.log_scale" in weights:
        return Form("tiny", inner, latents)
    if "h_s.4.weight" not in weights:
        return Form("bmshj2018-factorized", inner, latents)
    mean = len(weights["h_s.4.weight"]) == 2 * latents
    return Form("mbt2018-mean" if mean else "bmshj2018-hyperprior", inner, latents)


GDN_OR_CONV = ("weight", "bias", "beta", "gamma", "beta_reparam", "gamma_reparam")


def _present_names(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Returns a state dict with the bottleneck's lists of parameters as they are named today."""
    found = {}
    for name, tensor in weights.items():
        for old, new in (("_matrix", "matrices."), ("_bias", "biases."), ("_factor", "factors.")):
            name = name.replace(f"entropy_bottleneck.{old}", f"entropy_bottleneck.{new}")
        found[name] = tensor
    return found


def _analysis(layers: int, n: int, m: int) -> list[nn.Module]:
    found: list[nn.Module] = []
    for layer in range(layers):
        last = layer == layers - 1
        found.append(_conv(3 if layer == 0 else n, m if last else n))
        if not last:
            found.append(GDN(n))
    return found


def _synthesis(layers: int, n: int, m: int) -> list[nn.Module]:
    found: list[nn.Module] = []
    for layer in range(layers):
        last = layer == layers - 1
        found.append(_deconv(m if layer == 0 else n, 3 if last else n))
        if not last:
            found.append(GDN(n, inverse=True))
    return found


def _conv(inputs: int, outputs: int, kernel: int = 5, stride: int = 2) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, kernel, stride, padding=kernel // 2)


def _deconv(inputs: int, outputs: int, kernel: int = 5) -> nn.ConvTranspose2d:
    return nn.ConvTranspose2d(inputs, outputs, kernel, 2, padding=kernel // 2, output_padding=1)
