"""The contrast with a branch that sees less of the picture, under the plausibility constraint."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def contrasted(
    logits: Tensor, branch: Tensor | None, shallow: Tensor | None, *, alpha: float, plausibility: float
) -> Tensor:
    """Returns (1 + alpha) log p - alpha log p_branch of plausible tokens, -inf for the others, [vocab].

    Args:
        logits: The model's logits [vocab], after penalties.
        branch: Those of the branch; None: no contrast.
        shallow: Those of the embedding, whose log-probabilities are subtracted from the model's first (DoLa with a
            fixed layer); None: not.
        alpha: The strength of the contrast.
        plausibility: A token is plausible if it is at least so probable, relative to the most probable one.
    """
    logprobs = logits.float().log_softmax(-1)
    value = logprobs if shallow is None else logprobs - shallow.to(logprobs).log_softmax(-1)
    if branch is not None:
        value = (1 + alpha) * value - alpha * branch.to(logprobs).log_softmax(-1)
    least = logprobs.max() + (math.log(plausibility) if plausibility else -math.inf)
    return value.masked_fill(logprobs < least, -torch.inf)
