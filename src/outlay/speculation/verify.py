"""Verifiers: at one node of a draft tree, the token that follows, given the target's law q and what was drafted.

Each returns one token. If it is among the drafted ones, the walk goes on below it; if not, it ends the round. All but
typical acceptance return a token distributed as q, whatever was drafted, if the drafted tokens are distributed as they
must be; so what is written is distributed as the target's own text.

q and p are float32 [vocab], after temperature and truncation; p is the law that the drafted tokens were drawn from.
Draws are in float64.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from outlay.engine.sampling import draw
from outlay.speculation.transport import kseq_rest, kseq_rho

# (q, p, drafted tokens in order, random numbers) -> token
Verifier = Callable[[Tensor, Tensor | None, Sequence[int], torch.Generator], int]


def sample_and_match(q: Tensor, p: Tensor | None, drafted: Sequence[int], generator: torch.Generator) -> int:
    """Draws from q; a drafted token is taken where it is the one drawn. For tokens that were chosen, not drawn: it does
    not look at them, so what is written does not depend on the draft at all.
    """
    return draw(q, generator)


def reject_without_replacement(q: Tensor, p: Tensor | None, drafted: Sequence[int], generator: torch.Generator) -> int:
    """Recursive rejection of tokens that were drawn from p one after the other, none of them twice (RSD, Jeon et al.
    2024, section 3.1): after each rejection the token leaves p, and q becomes what p does not cover of it.
    """
    if not drafted:
        return draw(q, generator)
    assert p is not None, "tokens that were not drawn have no law"
    q, p = q.double(), p.double()
    for token in drafted:
        if _uniform(generator) * float(p[token]) < float(q[token]):
            return token
        rest = (q - p).clamp_(min=0)
        total = float(rest.sum())
        if total <= 0:  # equal up to rounding
            return token
        q = rest / total
        p = p.clone()
        p[token] = 0
        mass = float(p.sum())
        if mass <= 0:  # nothing is left that a further token could have been drawn from
            break
        p /= mass
    return draw(q, generator)


def reject_with_replacement(q: Tensor, p: Tensor | None, drafted: Sequence[int], generator: torch.Generator) -> int:
    """Recursive rejection of tokens that were drawn from p independently (SpecInfer, Miao et al. 2024, algorithm 2; one
    token: speculative sampling, Leviathan et al. 2023).
    """
    if not drafted:
        return draw(q, generator)
    assert p is not None, "tokens that were not drawn have no law"
    q, p = q.double(), p.double()
    for token in drafted:
        if _uniform(generator) * float(p[token]) < float(q[token]):
            return token
        rest = (q - p).clamp_(min=0)
        total = float(rest.sum())
        if total <= 0:
            return token
        q = rest / total
    return draw(q, generator)


def kseq(
    q: Tensor, p: Tensor | None, drafted: Sequence[int], generator: torch.Generator, rho: float | None = None
) -> int:
    """K-SEQ of tokens that were drawn from p independently (SpecTr, Sun et al. 2023, algorithm 3), at rho* or at a
    greater `rho`, up to the number of tokens.
    """
    if not drafted:
        return draw(q, generator)
    assert p is not None, "tokens that were not drawn have no law"
    k = len(drafted)
    rho = float(k) if rho is not None and rho >= k else max(rho or 1.0, kseq_rho(p, q, k))
    for token in drafted:
        if _uniform(generator) * rho * float(p[token]) < float(q[token]):
            return token
    return draw(kseq_rest(p, q, len(drafted), rho), generator)


def typical(q: Tensor, epsilon: float, delta: float) -> Tensor:
    """Returns which tokens typical acceptance takes, bool [vocab]: those more probable than the lesser of `epsilon` and
    `delta` exp(-entropy) (Medusa, Cai et al. 2024, section 2.3.1). Lossy: what is written has another law than q.
    """
    entropy = torch.special.entr(q).sum()
    return q > torch.minimum(torch.tensor(epsilon), delta * torch.exp(-entropy))


def _uniform(generator: torch.Generator) -> float:
    return float(torch.rand((), generator=generator, dtype=torch.float64))
