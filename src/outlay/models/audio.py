"""Recordings: files of sound at a model's rate, and the places at which a long one is cut."""

from __future__ import annotations

from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from torch import Tensor

from outlay.errors import UsageError

HOP = 0.02  # seconds from one place that may be a cut to the next
AROUND = 0.2  # seconds over which loudness is taken
MOST_NUMBERS = 96_000  # samples of all channels that a second of a bounded recording has at most: stereo at 48 kHz


def read_audio(
    source: str | Path | BinaryIO, rate: int, *, name: str = "the recording", most: float = float("inf")
) -> Tensor:
    """Reads a recording: WAV, FLAC, MP3, OGG, and what else libsndfile reads.

    Args:
        source: the file, by its path or open.
        rate: samples a second of what is returned, whatever the file has.
        name: what an error calls an open file.
        most: seconds of the longest recording that is read.

    Returns:
        The mean of its channels, float32 [n].

    Raises:
        UsageError: for a file that is not there, is no recording, is too long, or is silent throughout.
    """
    try:
        import soundfile
    except ImportError:
        raise UsageError("reading recordings needs an extra: pip install 'outlay[speech]'") from None
    if isinstance(source, str | Path):
        name, source = str(source), Path(source).expanduser()
        if not source.is_file():
            raise UsageError(f"there is no file {name}")
    try:
        with soundfile.SoundFile(source) as file:
            own = file.samplerate
            if file.frames * file.channels > most * MOST_NUMBERS:
                raise UsageError(f"{name} has too many samples for {most:g} seconds, the most that is read")
            if file.frames > most * own:
                raise UsageError(f"{name} lasts {file.frames / own:.0f} seconds; at most {most:g} are read")
            samples = file.read(dtype="float32", always_2d=True)
    except (soundfile.LibsndfileError, RuntimeError, ValueError) as error:
        if isinstance(error, UsageError):
            raise
        raise UsageError(f"{name} is no recording that can be read; give WAV, FLAC, MP3 or OGG") from None
    return at_rate(samples.mean(axis=1), own, rate, name)


def at_rate(samples: Any, own: int, rate: int, name: str = "the recording") -> Tensor:
    """Returns samples at another rate.

    Args:
        samples: [n], from -1 to 1.
        own: their samples a second.
        rate: samples a second of what is returned.
        name: what an error calls them.

    Returns:
        Float32 [n].

    Raises:
        UsageError: for samples that are no recording, or are silent throughout.
    """
    try:
        values = np.asarray(samples, dtype=np.float32)
    except (TypeError, ValueError):
        raise UsageError(f"{name} must be a file or numbers, not {type(samples).__name__}") from None
    if values.ndim != 1 or not np.isfinite(values).all():
        raise UsageError(f"{name} must be one channel of finite numbers")
    if not values.any():
        raise UsageError(f"{name} holds no sound")
    if own != rate:
        try:
            import soxr
        except ImportError:
            raise UsageError(
                f"{name} has {own} samples a second; changing that needs pip install 'outlay[speech]'"
            ) from None
        values = soxr.resample(values, own, rate)
    return torch.from_numpy(np.array(values, dtype=np.float32))


def cut(samples: Tensor, rate: int, window: float) -> list[tuple[int, int]]:
    """Cuts a recording into clips that a model hears at once, each at the quietest place of its last third.

    Args:
        samples: float32 [n].
        rate: samples a second.
        window: seconds of the longest clip.

    Returns:
        The first and the last sample, exclusive, of each clip.
    """
    longest, begin, cuts = int(window * rate), 0, []
    while len(samples) - begin > longest:
        first = begin + 2 * longest // 3
        end = first + _quietest(samples[first : begin + longest], rate)
        cuts.append((begin, end))
        begin = end
    return [*cuts, (begin, len(samples))]


def _quietest(samples: Tensor, rate: int) -> int:
    """Returns the place around which samples [n] have the least energy."""
    width, hop = min(int(AROUND * rate), len(samples)), max(1, int(HOP * rate))
    energy = samples.double().square().unfold(0, width, hop).sum(1)
    return int(energy.argmin()) * hop + width // 2
