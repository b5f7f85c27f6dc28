"""What a run spends, and how much it may spend.

A `Ledger` is filled in one place only, the engine, where the work is done, so that no method can miscount. A `Budget`
caps any of its entries. Ledgers add up and print as a table.
"""

from __future__ import annotations

from collections.abc import Container, Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from outlay.errors import UsageError, nearest

VERIFIED, ACCEPTED = "verified_", "accepted_"  # extras by depth: rounds that verified a drafted token, and accepted it
DEPTHS_SHOWN = 6


@dataclass
class Ledger:
    """What was spent. Counts are integers; `seconds` is wall time; bytes and flops follow the models' real shapes and
    dtypes.

    `target_passes` and `draft_passes` count the forward passes that the run took part in, `target_tokens` and
    `draft_tokens` the positions that they computed for it, `score_passes` and `score_tokens` those of reward models,
    `side_passes` and `side_tokens` those of any other model, `encoder_passes` and `encoder_tokens` those of the
    encoders of any of them, paid by the first run that has an input. `scores` counts the texts that a scorer rated,
    `checks` evaluations of a constraint, `executions` programs that ran. `nats` is minus the log-probability of what
    was filled on a canvas, each token's when it was chosen. A multiply-add is 2 `flops`. `weight_bytes` is the run's
    share, by positions computed, of the weights that its passes read; `kv_bytes` its share of the keys and values that
    attention read: what several runs read together is counted once. `kv_held` is the most bytes of keys and values that
    the run held in a pass, over all models; what several runs hold is split evenly. `extras` holds what only one method
    counts, under its own names (`About.counts`). `ran_on` names the code that did the passes, "native avx512vnni" or
    "torch".
    """

    target_passes: int = 0
    draft_passes: int = 0
    score_passes: int = 0
    side_passes: int = 0
    target_tokens: int = 0
    draft_tokens: int = 0
    score_tokens: int = 0
    side_tokens: int = 0
    encoder_passes: int = 0
    encoder_tokens: int = 0
    drafted: int = 0
    accepted: int = 0
    tokens_out: int = 0
    rounds: int = 0
    scores: int = 0
    checks: int = 0
    executions: int = 0
    nats: float = 0.0
    flops: int = 0
    weight_bytes: int = 0
    kv_bytes: int = 0
    kv_held: int = 0
    seconds: float = 0.0
    extras: dict[str, float] = field(default_factory=dict)
    ran_on: tuple[str, ...] = ()

    def __add__(self, other: Ledger) -> Ledger:
        """Returns the sum, entry by entry; extras are added by name, and what both ran on is joined."""
        total = Ledger()
        total += self
        total += other
        return total

    def __iadd__(self, other: Ledger) -> Ledger:
        """Adds `other` to this ledger in place."""
        mine, theirs = self.__dict__, other.__dict__
        for name in ENTRIES:
            if theirs[name]:
                mine[name] += theirs[name]
        for name, amount in other.extras.items():
            self.extras[name] = self.extras.get(name, 0) + amount
        if other.ran_on != self.ran_on:
            self.ran_on = tuple(sorted({*self.ran_on, *other.ran_on}))
        return self

    def __str__(self) -> str:
        return self.table()

    def as_dict(self) -> dict[str, Any]:
        """Returns every entry by name, `extras` as a dict of their own and `ran_on` as a list."""
        counted = {name: getattr(self, name) for name in ENTRIES}
        return counted | {"extras": dict(self.extras), "ran_on": list(self.ran_on)}

    def table(self) -> str:
        """Returns the entries that are not zero, a line each, with rates where they tell something."""
        rows = [(name.replace("_", " "), _amount(name, getattr(self, name))) for name in ENTRIES if getattr(self, name)]
        plain = {name: amount for name, amount in self.extras.items() if not name.startswith((VERIFIED, ACCEPTED))}
        rows += [(name.replace("_", " "), _extra(name, amount)) for name, amount in plain.items()]
        rows += self._rates()
        if self.ran_on:
            rows.append(("ran on", ", ".join(self.ran_on)))
        width = max((len(name) for name, _ in rows), default=0)
        height = max((len(amount) for _, amount in rows), default=0)
        return "\n".join(f"{name:<{width}}  {amount:>{height}}" for name, amount in rows)

    def amount(self, name: str) -> float:
        """Returns an entry, or an extra, which is 0 where it was not counted."""
        return float(getattr(self, name)) if name in ENTRIES else self.extras.get(name, 0)

    def acceptance(self) -> list[float]:
        """Returns the acceptance rate of each depth: accepted tokens over verified ones."""
        shares = []
        for depth in range(1, len(self.extras) + 1):
            if not self.extras.get(f"{VERIFIED}{depth}"):
                break
            shares.append(self.extras.get(f"{ACCEPTED}{depth}", 0) / self.extras[f"{VERIFIED}{depth}"])
        return shares

    def _rates(self) -> list[tuple[str, str]]:
        rates = []
        if self.tokens_out and self.target_passes:
            rates.append(("tokens per target pass", f"{self.tokens_out / self.target_passes:.2f}"))
        if shares := self.acceptance():
            rates.append(("accepted by depth", " ".join(f"{share:.0%}" for share in shares[:DEPTHS_SHOWN])))
        if self.tokens_out and self.seconds:
            rates.append(("tokens per second", f"{self.tokens_out / self.seconds:.1f}"))
        return rates


ENTRIES: tuple[str, ...] = tuple(entry.name for entry in fields(Ledger) if entry.name not in ("extras", "ran_on"))

UNITS: dict[str, str] = {}
"""The unit of each extra that some method counts; `declare` fills it."""


def declare(name: str, unit: str) -> None:
    """Makes an extra known by name, so that budgets can cap it.

    Raises:
        ValueError: if it is an entry of the ledger, or known with another unit.
    """
    if name in ENTRIES or UNITS.setdefault(name, unit) != unit:
        raise ValueError(f"{name!r} is already counted in {UNITS.get(name, 'the ledger')}; take another name")


def _extra(name: str, amount: float) -> str:
    if name.endswith("_bytes"):
        return _amount(name, amount)
    return " ".join(filter(None, [f"{amount:,.6g}", UNITS.get(name, "")]))


def _amount(name: str, amount: float) -> str:
    if name in ("seconds", "nats"):
        return f"{amount:.3f}"
    if name == "flops":
        return _scaled(amount, ("FLOP", "kFLOP", "MFLOP", "GFLOP", "TFLOP", "PFLOP"))
    if name.endswith("_bytes") or name == "kv_held":
        return _scaled(amount, ("B", "kB", "MB", "GB", "TB", "PB"))
    return f"{amount:,}"


def _scaled(amount: float, units: tuple[str, ...]) -> str:
    step = 0
    while amount >= 1000 and step < len(units) - 1:
        amount, step = amount / 1000, step + 1
    return f"{amount:.4g} {units[step]}"


class Budget:
    """Caps on entries of the ledger, and on what methods count: `Budget(target_passes=64, seconds=2.0)`.

    A run never spends more than its budget and ends with `finish_reason="budget"` and the best text so far when its
    next piece of work would; `seconds` is looked at before each piece of work. Raises `UsageError` for an entry that
    does not exist and for a cap that is not above zero.
    """

    def __init__(self, **caps: float) -> None:
        for name, cap in caps.items():
            if name not in ENTRIES and name not in UNITS:
                known = [*ENTRIES, *UNITS]
                raise UsageError(
                    f"a budget has no entry {name!r}{nearest(name, known)}; it caps any of {', '.join(known)}"
                )
            if isinstance(cap, bool) or not isinstance(cap, int | float) or not cap > 0:
                raise UsageError(f"the budget's {name} must be a number above 0, not {cap!r}")
        self.caps: Mapping[str, float] = dict(caps)

    def __repr__(self) -> str:
        return f"Budget({', '.join(f'{name}={cap}' for name, cap in self.caps.items())})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Budget) and self.caps == other.caps

    def __hash__(self) -> int:
        return hash(tuple(sorted(self.caps.items())))

    @classmethod
    def parse(cls, text: str) -> Budget:
        """Makes a budget from `"target_passes=64,seconds=2"`. Raises `UsageError` for anything else."""
        caps: dict[str, float] = {}
        for part in text.split(","):
            name, equals, amount = part.partition("=")
            try:
                cap = float(amount)
            except ValueError:
                cap = float("nan")
            if not equals or cap != cap:
                raise UsageError(f"a budget is written as name=number[,name=number...], not {text!r}")
            caps[name.strip()] = int(cap) if cap.is_integer() else cap
        return cls(**caps)

    def check(self, method: str, counts: Container[str]) -> None:
        """Raises `UsageError` for a cap on an extra that is not in `counts`, which `method` would never meet."""
        for name in self.caps:
            if name not in ENTRIES and name not in counts:
                raise UsageError(f"{method} doesn't count {name}, so a budget can't cap it there")

    def left(self, ledger: Ledger, name: str) -> float:
        """Returns what may still be spent of one entry; infinity where it has no cap."""
        return self.caps[name] - ledger.amount(name) if name in self.caps else float("inf")

    def first_over(self, ledger: Ledger, cost: Ledger) -> str:
        """Returns the first entry whose cap is not kept when `cost` is added to `ledger`; "" if there is none."""
        over = (name for name, cap in self.caps.items() if ledger.amount(name) + cost.amount(name) > cap)
        return next(over, "")


class Account:
    """A budget and the ledger that is charged against it: what a worker knows of the run that it works for."""

    def __init__(self, budget: Budget, ledger: Ledger) -> None:
        self.budget, self.ledger = budget, ledger

    def left(self, name: str) -> float:
        """Returns what may still be spent of one entry; infinity where it has no cap."""
        return self.budget.left(self.ledger, name)

    def first_over(self, cost: Ledger) -> str:
        """Returns the first entry whose cap is not kept when `cost` is charged; "" if there is none."""
        return self.budget.first_over(self.ledger, cost)

    def spend(self, entry: str, amount: int = 1) -> bool:
        """Adds `amount` to one entry of the ledger if its cap allows that; tells whether it did."""
        if amount > self.left(entry):
            return False
        setattr(self.ledger, entry, getattr(self.ledger, entry) + amount)
        return True

    def charge(self, cost: Ledger) -> None:
        """Adds `cost` to the ledger."""
        self.ledger += cost
