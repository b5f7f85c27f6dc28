"""What batches spend on padding."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from outlay.errors import UsageError


@dataclass(frozen=True)
class PaddingReport:
    """Shares of padding in batches that are padded to their longest examples."""

    examples: int
    """Examples of all batches."""
    batches: int
    """Number of batches."""
    mean_batch: float
    """Examples of a batch, the mean."""
    input_padding: float
    """1 - real / padded input length."""
    output_padding: float
    """1 - real / padded output length; 0 where there are none."""
    discarded: float
    """Share of the examples that are in no batch."""

    def as_json(self) -> dict[str, Any]:
        """Returns the fields by name."""
        return asdict(self)


def padding_report(
    batches: Iterable[Sequence[int]], inputs: Sequence[float], outputs: Sequence[float] | None = None
) -> PaddingReport:
    """Counts what batches pad.

    Args:
        batches: The indices of each batch's examples.
        inputs: [examples], input lengths of all examples, batched or not.
        outputs: [examples], output lengths.

    Raises:
        UsageError: There is no batch.
    """
    count = 0
    seen = set[int]()
    real, padded = [0.0, 0.0], [0.0, 0.0]
    total = 0
    for batch in batches:
        count, total = count + 1, total + len(batch)
        seen.update(batch)
        for which, lengths in enumerate((inputs, outputs)):
            if lengths is not None:
                here = [float(lengths[index]) for index in batch]
                real[which] += sum(here)
                padded[which] += len(here) * max(here)
    if not count:
        raise UsageError("there is no batch to report on")
    shares = [1 - some / all_ if all_ else 0.0 for some, all_ in zip(real, padded, strict=True)]
    return PaddingReport(total, count, total / count, shares[0], shares[1], 1 - len(seen) / len(inputs))
