"""Metrics of captions against what a picture shows."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from outlay.errors import UsageError


@dataclass(frozen=True)
class CaptionCounts:
    """What one caption mentions."""

    mentions: int
    """Objects that it mentions, each time that it does."""
    hallucinated: int
    """Those of the mentions that the picture does not show."""
    found: int
    """Objects of the picture that it mentions."""
    present: int
    """Objects of the picture."""


@dataclass(frozen=True)
class Chair:
    """CHAIR of captions (Rohrbach et al., EMNLP 2018), and the recall beside it, since silence hallucinates nothing."""

    chair_i: float
    """Hallucinated mentions over all mentions of objects; 0 where nothing is mentioned."""
    chair_s: float
    """Share of the captions with a hallucinated object."""
    recall: float
    """Objects of the pictures that are mentioned, over all objects of the pictures; 1 where there are none."""

    @classmethod
    def of(cls, counts: Iterable[CaptionCounts]) -> Chair:
        """Returns the metrics of captions from the counts of each.

        Raises:
            UsageError: There are no captions.
        """
        held = list(counts)
        if not held:
            raise UsageError("CHAIR needs one caption at least")
        mentions, present = sum(each.mentions for each in held), sum(each.present for each in held)
        return cls(
            chair_i=sum(each.hallucinated for each in held) / mentions if mentions else 0.0,
            chair_s=sum(each.hallucinated > 0 for each in held) / len(held),
            recall=sum(each.found for each in held) / present if present else 1.0,
        )


def chair(
    captions: Sequence[str], ground_truth: Sequence[Iterable[str]], vocabulary: Iterable[str] | Mapping[str, str]
) -> Chair:
    """Returns CHAIR_i, CHAIR_s and the recall of captions (Rohrbach et al., EMNLP 2018, section 2).

    Args:
        captions: A text for each picture.
        ground_truth: The objects of each picture.
        vocabulary: The names of all objects, or a mapping from each name to its object, for synonyms and plurals.

    Returns:
        The three numbers, each from 0 to 1.

    Raises:
        UsageError: Captions and pictures differ in number, there are none, or a picture has an object without a name.
    """
    if len(captions) != len(ground_truth):
        raise UsageError(
            f"CHAIR needs the objects of each caption: {len(captions)} captions, {len(ground_truth)} lists"
        )
    return Chair.of(caption_counts(captions, ground_truth, vocabulary))


def caption_counts(
    captions: Sequence[str], ground_truth: Sequence[Iterable[str]], vocabulary: Iterable[str] | Mapping[str, str]
) -> list[CaptionCounts]:
    """Counts what each caption mentions; arguments and errors are those of `chair`.

    A name is found as whole words in any case; where names overlap, as "car" and "car seat", the longest is meant.
    """
    names = vocabulary if isinstance(vocabulary, Mapping) else {name: name for name in vocabulary}
    objects = {name.casefold(): each for name, each in names.items()}
    longest_first = sorted(map(re.escape, objects), key=len, reverse=True)
    pattern = re.compile(rf"(?<!\w)(?:{'|'.join(longest_first)})(?!\w)") if objects else re.compile(r"(?!)")
    counts = []
    for caption, shown in zip(captions, ground_truth, strict=True):
        present = set(shown)
        if unnamed := present - set(objects.values()):
            raise UsageError(f"the vocabulary has no name for {min(unnamed)!r}")
        mentions = [objects[name] for name in pattern.findall(caption.casefold())]
        found = present & set(mentions)
        counts.append(CaptionCounts(len(mentions), sum(m not in present for m in mentions), len(found), len(present)))
    return counts
