"""What Whisper's encoder reads: a log-mel spectrogram of 30 seconds, through two convolutions."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from outlay.errors import UsageError
from outlay.models.mel import WhisperMel
from outlay.models.speech import Convolution

STRIDE = 2
"""Frames of the spectrogram for each that the encoder reads."""


class WhisperStem:
    """A log-mel spectrogram and two convolutions.

    Attributes:
        nbytes: bytes of its weights.
        multiplies: multiply-adds that a frame takes.
    """

    def __init__(self, mel: WhisperMel, first: Convolution, second: Convolution) -> None:
        self._mel, self._first, self._second = mel, first, second
        self.nbytes = first.weight.nbytes + second.weight.nbytes
        self.multiplies = STRIDE * first.weight.numel() + second.weight.numel()

    @torch.inference_mode()
    def __call__(self, samples: Tensor) -> Tensor:
        """samples float32 [n] -> the first layer's input without positions, [frames of the window, hidden_size]"""
        x = F.gelu(self._first(self._mel(samples)[None]))
        return F.gelu(self._second(x))[0].T


def whisper_mel(raw: Mapping[str, Any], extractor: Mapping[str, Any]) -> WhisperMel:
    """Returns the spectrogram that a checkpoint's encoder reads.

    Args:
        raw: the content of `config.json`.
        extractor: the content of `preprocessor_config.json`; empty where there is none.

    Raises:
        UsageError: if both files differ in the number of bands, or the sound is to be changed otherwise.
    """
    bands, hop = raw.get("num_mel_bins", 80), extractor.get("hop_length", 160)
    if extractor.get("feature_size", bands) != bands:
        raise UsageError(
            f"preprocessor_config.json makes {extractor['feature_size']} mel bands, but the encoder reads {bands}"
        )
    if extractor.get("dither") or extractor.get("do_normalize"):
        raise UsageError("preprocessor_config.json asks for dither or do_normalize, which outlay does not do")
    return WhisperMel(
        bands,
        raw.get("max_source_positions", 1500) * STRIDE * hop,
        extractor.get("sampling_rate", 16000),
        extractor.get("n_fft", 400),
        hop,
    )
