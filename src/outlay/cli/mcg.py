"""`outlay mcg`: the Markov coding game, messages in the actions of a player."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from outlay.cli.arguments import number
from outlay.errors import UsageError

DESCRIPTION = "Plays the Markov coding game: a player's actions carry a message, and are distributed as without one."
EXAMPLES = """The environment is grid (8 x 8, a goal, a trap, obstacles) or an .npz file with transitions [states,
actions, states], rewards [states], terminal [states], start and, if need be, gamma.

examples:
  outlay mcg --rate 0.25
  outlay mcg --messages 512 --beta-log -6 --rate 0.5 --episodes 200 --json
  outlay mcg --env mine.npz --message 17 --episodes 50
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the command's options to `parser`."""
    parser.add_argument("--env", default="grid", metavar="E", help="grid, or an .npz file (grid)")
    parser.add_argument("--messages", type=number(2, whole=True), default=64, metavar="N", help="as probable each (64)")
    parser.add_argument("--message", type=number(0, whole=True), metavar="M", help="always this one (drawn each time)")
    parser.add_argument("--beta-log", type=number(), default=-5.0, metavar="B", help="log of the temperature (-5)")
    parser.add_argument("--rate", type=number(0), default=0.25, metavar="R", help="share of the messages' bits (0.25)")
    parser.add_argument("--uniform", action="store_true", help="code by the uniform quantizer in place of EBIM")
    parser.add_argument("--episodes", type=number(1, whole=True), default=200, metavar="N", help="games (200)")
    parser.add_argument("--seed", type=number(0, whole=True), default=0, metavar="N", help="fixes all draws (0)")
    parser.add_argument("--json", action="store_true", help="print the means as JSON")


def run(args: argparse.Namespace) -> int:
    """Plays; returns the exit status."""
    import math

    import numpy as np

    from outlay.coupling import uniform_quantizer
    from outlay.coupling.markov_game import grid, play, rate_of, read_process, soft_policy

    if args.message is not None and args.message >= args.messages:
        raise UsageError(f"--message must be below the number of messages, {args.messages}, not {args.message}")
    process = grid() if args.env == "grid" else read_process(Path(args.env))
    policy, prior = soft_policy(process, math.exp(args.beta_log)), np.full(args.messages, 1 / args.messages)
    rows, usual = [], []
    for number_ in range(args.episodes):
        random = np.random.default_rng((args.seed, number_))
        message = int(random.integers(args.messages)) if args.message is None else args.message
        code = uniform_quantizer if args.uniform else None
        game = play(process, policy, message, prior, rate_of(args.rate, prior), random, code)
        rows.append((game.hit, float(game.belief[message]), game.reward, game.steps))
        usual.append(play(process, policy, None, prior, 0.0, np.random.default_rng((args.seed, number_))).reward)
    right, belief, reward, steps = np.mean(rows, axis=0).tolist()
    found = {"right": right, "belief": belief, "return": reward, "return without a message": float(np.mean(usual)),
             "steps": steps, "episodes": args.episodes}  # fmt: skip
    if args.json:
        print(json.dumps(found))
        return 0
    for name, value in found.items():
        print(f"{name:<26} {value:.4g}")
    return 0
