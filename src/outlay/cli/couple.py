"""`outlay couple`: two distributions coupled as informatively as can be, through a code of bounded entropy."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING

from outlay.cli.arguments import number
from outlay.errors import UsageError

if TYPE_CHECKING:
    from outlay.coupling.entropy import Probs

DESCRIPTION = "Couples X with Y, both of given distributions, so that Y tells much of X through a code of few bits."
EXAMPLES = """PX and PY are .npy or .json files of probabilities.

examples:
  outlay couple --px source.npy --py policy.npy --rate 2.5
  outlay couple --px source.json --py policy.json --rate 2.5 --refine --out joint.npz   # joint, code, its split
  outlay couple --px source.npy --py policy.npy                                         # no bottleneck
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the command's options to `parser`."""
    parser.add_argument("--px", type=Path, required=True, metavar="FILE", help="the probabilities of X")
    parser.add_argument("--py", type=Path, required=True, metavar="FILE", help="the probabilities of Y")
    parser.add_argument("--rate", type=number(0), metavar="R", help="bits of entropy of the code (as many as X has)")
    parser.add_argument("--refine", action="store_true", help="split one outcome's mass, to use all of the rate")
    parser.add_argument("--out", type=Path, metavar="FILE", help="write joint [n, k] and the code as .npz")
    parser.add_argument("--json", action="store_true", help="print the figures as JSON")


def run(args: argparse.Namespace) -> int:
    """Couples; returns the exit status."""
    import numpy as np

    from outlay.coupling import bottleneck, ebim, entropy, information

    p, q = _read(args.px, "--px"), _read(args.py, "--py")
    rate = entropy(p) if args.rate is None else args.rate
    found = bottleneck(p, q, rate, lambda p, rate: ebim(p, rate, refine=args.refine))
    joint, coupling = found.joint(), found.coupling
    row = {
        "H(X)": entropy(p), "H(Y)": entropy(q), "rate": rate, "H(T)": found.encoder.entropy,
        "I(X;T)": found.encoder.information, "I(T;Y)": found.encoder.entropy + entropy(q) - coupling.entropy,
        "I(X;Y)": information(joint), "H(T,Y)": coupling.entropy, "H(T,Y) at least": coupling.lower_bound,
        "columns": len(found.encoder.masses),
    }  # fmt: skip
    if args.out is not None:
        code, split = found.encoder, np.array(found.encoder.split or (), dtype=np.float64)
        np.savez(args.out, joint=joint, columns=code.columns, masses=code.masses, split=split)
    if args.json:
        print(json.dumps(row))
        return 0
    for name, value in row.items():
        print(f"{name:<16} {value}" if isinstance(value, int) else f"{name:<16} {value:.4f} bits")
    return 0


def _read(path: Path, option: str) -> Probs:
    """Returns the probabilities in a file."""
    import numpy as np

    from outlay.coupling import distribution

    if path.suffix not in (".npy", ".json"):
        raise UsageError(f"{option} must be a .npy or .json file of probabilities, not {path}")
    try:
        found = np.load(path, allow_pickle=False) if path.suffix == ".npy" else json.loads(path.read_text())
        given = np.array(found, dtype=np.float64)
    except OSError as error:
        raise UsageError(f"{option}: {path} can't be read: {error.strerror}") from error
    except (ValueError, TypeError) as error:
        raise UsageError(f"{option}: {path} must hold a list of probabilities") from error
    return distribution(given, f"the probabilities of {path}")
