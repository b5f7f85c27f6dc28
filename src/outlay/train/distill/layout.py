"""How source and target lie side by side for student and teacher, and the loss between them.

The teacher reads [source, padded on the left to n_e places; target, padded on the right to n_d], so that the last
source token of every example is at place n_e - 1: its logits at n_e - 1, ..., n_e + n_d - 2 predict target tokens 1 to
n_d. The student's decoder reads [BOS, target without its last]; its logits at 0, ..., n_d - 1 predict the same.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from outlay.errors import UsageError

IGNORED = -100  # a place without a target, as `cross_entropy` knows it


@dataclass(frozen=True)
class StudentLayout:
    """What the student reads and predicts."""

    source: Tensor
    """int64 [batch, n_e], padded on the right."""
    source_mask: Tensor
    """bool [batch, n_e], True where it is no padding."""
    tokens: Tensor
    """int64 [batch, n_d]: BOS, then the target without its last token."""
    targets: Tensor
    """int64 [batch, n_d], `IGNORED` at padding."""


@dataclass(frozen=True)
class TeacherLayout:
    """What the teacher reads."""

    tokens: Tensor
    """int64 [batch, n_e + n_d]: the source padded on the left, the target padded on the right."""
    mask: Tensor
    """bool [batch, n_e + n_d], True where it is no padding."""
    positions: Tensor
    """int64 [batch, n_e + n_d], counted from the first token that is no padding: 0 at padding before it."""
    first: int
    """n_e - 1: the place whose logits predict the first target token."""

    def predicting(self, logits: Tensor) -> Tensor:
        """Returns the logits that predict the target, [batch, n_d, vocab], of those at all places."""
        return logits[:, self.first : self.tokens.shape[1] - 1]


def student_layout(
    sources: Sequence[Sequence[int]], targets: Sequence[Sequence[int]], begin: int, pad: int = 0
) -> StudentLayout:
    """Lays out examples for the student, padded to the longest source and the longest target.

    Args:
        sources: What the encoder reads, as token ids.
        targets: What the decoder learns to write, its end included.
        begin: Token that the decoder starts with.
        pad: Token at padding, which nothing reads.

    Raises:
        UsageError: A source or a target is empty.
    """
    _check(sources, targets)
    shifted = [[begin, *target[:-1]] for target in targets]
    source = _padded(sources, pad, left=False)
    return StudentLayout(
        source, _mask(sources, left=False), _padded(shifted, pad, left=False), _padded(targets, IGNORED, left=False)
    )


def teacher_layout(sources: Sequence[Sequence[int]], targets: Sequence[Sequence[int]], pad: int = 0) -> TeacherLayout:
    """Lays out the same examples for the teacher. Raises `UsageError` as `student_layout` does."""
    _check(sources, targets)
    before, after = _padded(sources, pad, left=True), _padded(targets, pad, left=False)
    mask = torch.cat([_mask(sources, left=True), _mask(targets, left=False)], 1)
    positions = (mask.cumsum(1) - 1).clamp_min(0)
    return TeacherLayout(torch.cat([before, after], 1), mask, positions, before.shape[1] - 1)


def kl_loss(teacher: Tensor, student: Tensor, targets: Tensor, mask_pad: bool = True) -> Tensor:
    """Returns the forward KL from the teacher's to the student's distribution, its mean over places.

    Args:
        teacher: float [batch, n_d, vocab], logits.
        student: float [batch, n_d, vocab], logits.
        targets: int64 [batch, n_d].
        mask_pad: Leave places of padding out; the released loss counts them.
    """
    log_p, log_q = teacher.float().log_softmax(-1), student.float().log_softmax(-1)
    each = (log_p.exp() * (log_p - log_q)).sum(-1)
    own = targets != IGNORED if mask_pad else torch.ones_like(targets, dtype=torch.bool)
    return each[own].mean()


def gold_loss(student: Tensor, targets: Tensor) -> Tensor:
    """Returns the mean cross-entropy of the targets, padding left out."""
    return F.cross_entropy(student.float().flatten(0, 1), targets.flatten(), ignore_index=IGNORED)


def same_vocabulary(teacher: Tensor, student: Tensor, slice_vocab: bool) -> tuple[Tensor, Tensor]:
    """Returns both logits over the same tokens.

    Raises:
        UsageError: The vocabularies differ in size, and are not to be cut to the smaller one.
    """
    sizes = teacher.shape[-1], student.shape[-1]
    if sizes[0] != sizes[1] and not slice_vocab:
        raise UsageError(
            f"the teacher has {sizes[0]} tokens and the student {sizes[1]}; "
            f"if the first {min(sizes)} are the same, give --slice-vocab"
        )
    return teacher[..., : min(sizes)], student[..., : min(sizes)]


def _check(sources: Sequence[Sequence[int]], targets: Sequence[Sequence[int]]) -> None:
    for name, rows in (("source", sources), ("target", targets)):
        empty = next((row for row, tokens in enumerate(rows) if not tokens), None)
        if empty is not None:
            raise UsageError(f"the {name} of example {empty} is empty; every example needs some text on both sides")


def _padded(rows: Sequence[Sequence[int]], pad: int, *, left: bool) -> Tensor:
    longest = max(map(len, rows))
    fills = [[pad] * (longest - len(row)) for row in rows]
    return torch.tensor([[*fill, *row] if left else [*row, *fill] for row, fill in zip(rows, fills, strict=True)])


def _mask(rows: Sequence[Sequence[int]], *, left: bool) -> Tensor:
    return _padded([[1] * len(row) for row in rows], 0, left=left).bool()
