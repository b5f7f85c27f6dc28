"""The numbers of `auto`: these nine, and its option `nodes`.

They were found by replaying recorded texts through the planner with fixed costs of passes: 36 texts at temperature 0
and 24 at 0.6, of chat, code and summaries, each set in three orders. A gain below is the mean over them of the speed
over plain decoding, 1.305 with a `prior` of 6 and the other numbers as they are. Changes that don't matter move it by
0.01.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class AutoConfig:
    """What `auto` is tuned by."""

    match_tokens: int = 6
    """Tokens of the text's end that are looked up in it, at most. Gain with 4: 1.278, with 8: 1.304."""

    branching: int = 3
    """Tokens of a distribution that become candidates. Gain with 2: 1.315, but on chat 3 was the better in most
    versions."""

    prior: float = 4.0
    """Observations that a source's own confidence counts for at first, and for an n-gram of one token, the occurrences
    that make it half sure. Gain with 4: 1.305, as with 6; with 10: 1.315, but a draft that has become useful is then
    found later."""

    bins: int = 10
    """Bins of confidence, equally wide. Gain with 5: 1.302, with 20: 1.317."""

    min_probability: float = 0.03
    """Probability of a path below which it is no candidate: about what a row costs in tokens where it costs the least.
    Gain with 0.06: 1.305, with 0.015: 1.304, in more time for the planning."""

    window: int = 64
    """Observations that a mean is taken over: rounds of an arm, candidates of a bin, passes for the slowdown. Gain with
    32: 1.295, with 100: 1.312, but then another kind of text is noticed later."""

    first_trial: int = 24
    """Rounds in a row for which the gate tries its first arm. Gain with 8: 1.281, since the draft head is left before
    its confidence is calibrated; with 64: 1.315, which takes longer to leave a useless draft alone."""

    trial: int = 6
    """Rounds in a row for which the gate tries another arm, and shadow rounds at a text's beginning. Gain with 4:
    1.292, with 10: 1.306."""

    exploration: float = 0.02
    """Share of the decoding time that trials of worse arms may lose. Gain with 0.01: 1.313, with 0.04: 1.291; with 0.01
    a draft that has become useful is found twice as late."""
