"""The Markov coding game: a player acts by its usual policy in a decision process, and its actions carry a message.

Sokota et al. 2022, with the bottleneck of Ebrahimi, Chen and Khisti 2024: a source, which knows the message, sends a
code of bounded entropy to the player in each step; the player couples it with its policy; a receiver, which sees states
and actions, updates the same belief of the message as the source. Actions, averaged over messages, are distributed as
the policy's own, so the player's return is its usual one.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from outlay.coupling.bottleneck import Quantizer, bottleneck
from outlay.coupling.entropy import Probs, drawn, entropy
from outlay.errors import UsageError

SWEEPS = 100  # of soft Q-iteration
STEPS = 100  # of an episode at most
GRID = 8
ACTIONS = ((-1, 0), (0, 1), (1, 0), (0, -1))  # up, right, down, left
NOISE = 0.1  # probability of the action to either side


@dataclass(frozen=True)
class DecisionProcess:
    """States, actions, and what they lead to."""

    transitions: Probs
    """P(s' | s, a), float64 [states, actions, states]."""
    rewards: Probs
    """Of being in a state, float64 [states]."""
    terminal: npt.NDArray[np.bool_]
    """Where an episode ends, [states]."""
    start: int
    gamma: float = 0.95
    """What a reward is worth one step later."""

    def __post_init__(self) -> None:
        states = len(self.rewards)
        if self.transitions.ndim != 3 or self.transitions.shape[::2] != (states, states):
            raise UsageError(
                f"transitions of {states} states are [{states}, actions, {states}], not {list(self.transitions.shape)}"
            )
        if self.terminal.shape != (states,) or not 0 <= self.start < states:
            raise UsageError(f"terminal must be a mark for each of {states} states, and start one of them")
        if not 0 < self.gamma < 1:
            raise UsageError(f"gamma must be between 0 and 1, not {self.gamma:g}")
        if (self.transitions < 0).any() or not np.allclose(self.transitions.sum(2), 1):
            raise UsageError("the transitions of each state and action must be 0 or more, and sum to 1")


def read_process(path: Path) -> DecisionProcess:
    """Returns the process in an .npz file with `transitions`, `rewards`, `terminal`, `start` and, if need be, `gamma`.

    Raises:
        UsageError: If there is no such file, or what it holds is no process.
    """
    try:
        with np.load(path, allow_pickle=False) as held:
            given = {name: held[name] for name in held.files}
    except (OSError, ValueError) as error:
        raise UsageError(f"{path} can't be read as an .npz file of arrays: {error}") from error
    missing = [name for name in ("transitions", "rewards", "terminal", "start") if name not in given]
    if missing:
        raise UsageError(f"{path} lacks {', '.join(missing)}")
    extra = {"gamma": float(given["gamma"])} if "gamma" in given else {}
    return DecisionProcess(
        given["transitions"].astype(np.float64), given["rewards"].astype(np.float64), given["terminal"].astype(bool),
        int(given["start"]), **extra,
    )  # fmt: skip


def grid() -> DecisionProcess:
    """Returns the paper's 8 x 8 grid: a goal of 1, a trap of -1, obstacles on the diagonal, and noise to the sides."""
    goal, trap, start = (0, 7), (1, 7), (5, 4)
    blocked = {(place, place) for place in range(1, GRID)}
    moves = np.zeros((GRID * GRID, len(ACTIONS), GRID * GRID))
    for row in range(GRID):
        for column in range(GRID):
            for action in range(len(ACTIONS)):
                for turn, share in ((-1, NOISE), (0, 1 - 2 * NOISE), (1, NOISE)):
                    step = ACTIONS[(action + turn) % len(ACTIONS)]
                    there = (row + step[0], column + step[1])
                    if there in blocked or not (0 <= there[0] < GRID and 0 <= there[1] < GRID):
                        there = (row, column)
                    moves[GRID * row + column, action, GRID * there[0] + there[1]] += share
    rewards = np.zeros(GRID * GRID)
    rewards[GRID * goal[0] + goal[1]], rewards[GRID * trap[0] + trap[1]] = 1, -1
    return DecisionProcess(moves, rewards, rewards != 0, GRID * start[0] + start[1])


def soft_policy(process: DecisionProcess, beta: float) -> Probs:
    """Returns the policy of maximum entropy at a temperature, float64 [states, actions].

    Source: soft Q-iteration: Q(s, a) = r(s) + gamma E[beta logsumexp(Q(s', a') / beta)], terminal states keep r.

    Raises:
        UsageError: For a temperature of 0 or less.
    """
    if not beta > 0:
        raise UsageError(f"beta is a temperature above 0, not {beta:g}")
    q = np.repeat(process.rewards[:, None], process.transitions.shape[1], 1)
    for _ in range(SWEEPS):
        most = q.max(1)
        value = most + beta * np.log(np.exp((q - most[:, None]) / beta).sum(1))
        new = process.rewards[:, None] + process.gamma * process.transitions @ value
        q = np.where(process.terminal[:, None], process.rewards[:, None], new)
    weights = np.exp((q - q.max(1, keepdims=True)) / beta)
    found: Probs = weights / weights.sum(1, keepdims=True)
    return found


class Episode(NamedTuple):
    """How a game went."""

    reward: float
    """The discounted return: the sum of gamma^t r."""
    belief: Probs
    """Of the messages, at the end."""
    hit: float
    """1 if the true message is the receiver's only most probable one, a share where there are ties, else 0."""
    steps: int


def play(
    process: DecisionProcess,
    policy: Probs,
    message: int | None,
    prior: Probs,
    rate: float,
    random: np.random.Generator,
    quantizer: Quantizer | None = None,
) -> Episode:
    """Plays one game.

    Args:
        process: What the player acts in.
        policy: Its policy, float64 [states, actions].
        message: The message; None: the player acts by its policy alone.
        prior: P(M), float64 [messages].
        rate: R, the entropy of the source's code in a step, in bits.
        random: Of the environment and the player.
        quantizer: Makes the source's code; None: EBIM.

    Raises:
        UsageError: For a message that the prior gives no probability.
    """
    if message is not None and not (0 <= message < len(prior) and prior[message] > 0):
        raise UsageError(f"message {message} is not among those of the prior, 0 to {len(prior) - 1}")
    state, belief, reward, steps = process.start, prior, 0.0, 0
    while not process.terminal[state] and steps < STEPS:
        if message is None:
            action = drawn(policy[state], random.random())
        else:
            step = bottleneck(belief, policy[state], rate, quantizer)
            action = step.draw(message, (random.random(), random.random()))
            found = step.posterior(action)
            assert found is not None, "an action that was drawn has a probability"
            belief = found
        state = drawn(process.transitions[state, action], random.random())
        steps += 1
        reward += process.gamma**steps * process.rewards[state]
    best = np.flatnonzero(belief >= belief.max() * (1 - 1e-9))
    hit = 1 / len(best) if message is not None and message in best else 0.0
    return Episode(float(reward), belief, hit, steps)


def rate_of(share: float, prior: Probs) -> float:
    """Returns R in bits: a share of the prior's entropy."""
    return share * entropy(prior)
