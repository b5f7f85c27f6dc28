"""Transcripts as subtitles: SubRip (.srt) and WebVTT (.vtt)."""

from __future__ import annotations

from collections.abc import Sequence

from outlay.transcripts import Segment


def clock(seconds: float, mark: str = ".") -> str:
    """Returns a time as 00:01:02.345, with `mark` before the milliseconds."""
    milliseconds = round(seconds * 1000)
    minutes, rest = divmod(milliseconds, 60_000)
    return f"{minutes // 60:02d}:{minutes % 60:02d}:{rest // 1000:02d}{mark}{rest % 1000:03d}"


def srt(segments: Sequence[Segment]) -> str:
    """Returns segments as SubRip: numbered, with a comma before the milliseconds."""
    return "".join(
        f"{number}\n{clock(each.start, ',')} --> {clock(each.end, ',')}\n{each.text}\n\n"
        for number, each in enumerate(segments, 1)
    )


def vtt(segments: Sequence[Segment]) -> str:
    """Returns segments as WebVTT."""
    cues = (f"{clock(each.start)} --> {clock(each.end)}\n{each.text}\n\n" for each in segments)
    return "WEBVTT\n\n" + "".join(cues)
