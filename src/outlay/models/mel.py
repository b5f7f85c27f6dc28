"""Log-mel spectrograms: the energy of a sound over time in bands that are as wide as the ear hears them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from outlay.errors import UsageError

LINEAR_MELS, LINEAR_HZ = 15.0, 1000.0
"""The mel scale of Slaney's Auditory Toolbox is linear up to 1000 Hz, which is 15 mels, and logarithmic above."""
MELS_OF_A_FOLD = 27 / math.log(6.4)  # above it, mels for a factor of e


@dataclass(frozen=True)
class WhisperMel:
    """The spectrogram of Whisper (Radford et al. 2022, section 2.2): log10, 8 below its maximum at least, from -1 on.

    Every clip is filled up with silence to the same length, which is part of what the model expects.
    """

    bands: int
    """Mel bands."""
    samples: int
    """Samples of the longest clip, to which all are filled up."""
    rate: int = 16000
    """Samples a second."""
    width: int = 400
    """Samples of a Fourier transform."""
    hop: int = 160
    """Samples from one to the next."""

    @cached_property
    def _filters(self) -> Tensor:
        return mel_filters(1 + self.width // 2, self.bands, self.rate, 8000.0).float()

    def __call__(self, samples: Tensor) -> Tensor:
        """samples float32 [n] -> float32 [bands, self.samples // hop]"""
        filled = F.pad(samples[: self.samples], (0, max(0, self.samples - len(samples))))
        window = torch.hann_window(self.width, device=samples.device)
        waves = torch.stft(filled, self.width, self.hop, window=window, return_complex=True)
        energy = (waves[:, :-1].abs() ** 2).contiguous()
        logs = (self._filters.to(samples.device) @ energy).clamp(min=1e-10).log10()
        return (torch.maximum(logs, logs.max() - 8.0) + 4.0) / 4.0


@dataclass(frozen=True)
class ParakeetMel:
    """The spectrogram of Canary and Parakeet: sound with its high tones raised, natural logarithms, normed by band."""

    bands: int
    """Mel bands."""
    rate: int = 16000
    """Samples a second."""
    width: int = 512
    """Samples of a Fourier transform."""
    window: int = 400
    """Samples of the window in its middle."""
    hop: int = 160
    """Samples from one to the next."""
    preemphasis: float = 0.97
    """The share of a sample that is taken from the next."""

    def frames(self, samples: int) -> int:
        """Returns how many frames a number of samples gives."""
        return samples // self.hop

    @cached_property
    def _filters(self) -> Tensor:
        return mel_filters(1 + self.width // 2, self.bands, self.rate, self.rate / 2).float()

    def __call__(self, samples: Tensor) -> Tensor:
        """samples float32 [n] -> float32 [frames(n), bands]; it takes two frames at least"""
        raised = torch.cat([samples[:1], samples[1:] - self.preemphasis * samples[:-1]])
        window = torch.hann_window(self.window, periodic=False, device=samples.device)
        waves = torch.stft(raised, self.width, self.hop, self.window, window, pad_mode="constant", return_complex=True)
        energy = waves.abs() ** 2
        logs = (self._filters.to(samples.device) @ energy + 2**-24).log().T[: self.frames(len(samples))]
        return (logs - logs.mean(0)) / (logs.std(0) + 1e-5)


def parakeet_mel(bands: int, extractor: Mapping[str, Any]) -> ParakeetMel:
    """Returns the spectrogram that a `preprocessor_config.json` describes.

    Raises:
        UsageError: if it has another number of bands than the encoder reads.
    """
    if extractor.get("feature_size", bands) != bands:
        raise UsageError(
            f"preprocessor_config.json makes {extractor['feature_size']} mel bands, but the encoder reads {bands}"
        )
    return ParakeetMel(
        bands,
        extractor.get("sampling_rate", 16000),
        extractor.get("n_fft", 512),
        extractor.get("win_length", 400),
        extractor.get("hop_length", 160),
        extractor.get("preemphasis", 0.97) or 0.0,
    )


def mel_filters(bins: int, bands: int, rate: int, highest: float) -> Tensor:
    """Returns triangular filters of equal area, evenly apart in mels (Slaney 1998).

    Args:
        bins: frequencies of the spectrum, from 0 to half of the rate.
        bands: how many filters.
        rate: samples a second.
        highest: the frequency in Hz at which the last filter ends; the first begins at 0.

    Returns:
        Float64 [bands, bins].
    """
    corners = _hz(torch.linspace(0, _mels(highest), bands + 2, dtype=torch.float64))
    frequencies = torch.linspace(0, rate // 2, bins, dtype=torch.float64)
    low, middle, high = corners[:-2, None], corners[1:-1, None], corners[2:, None]
    rising, falling = (frequencies - low) / (middle - low), (high - frequencies) / (high - middle)
    return torch.minimum(rising, falling).clamp(min=0) * (2 / (high - low))


def _mels(hz: float) -> float:
    if hz < LINEAR_HZ:
        return hz * LINEAR_MELS / LINEAR_HZ
    return LINEAR_MELS + math.log(hz / LINEAR_HZ) * MELS_OF_A_FOLD


def _hz(mels: Tensor) -> Tensor:
    linear = mels * (LINEAR_HZ / LINEAR_MELS)
    return torch.where(mels < LINEAR_MELS, linear, LINEAR_HZ * ((mels - LINEAR_MELS) / MELS_OF_A_FOLD).exp())
