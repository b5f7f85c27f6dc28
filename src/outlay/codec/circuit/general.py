"""Any smooth, structured-decomposable circuit as a model of data (Liu, Mandt & Van den Broeck, ICLR 2022, section 4).

Units are inputs (a distribution of one variable), products of units over other variables, and weighted sums of units
over the same variables. A circuit is smooth where that last condition holds, decomposable where products share no
variable, and structured where products over the same variables split them alike. Then one order of the variables gives
every conditional from units near the variable alone: those below the lowest split that has all variables so far.

Values are made by products and sums of two numbers in a fixed order and scaled by powers of two, so that they have the
same bits on every machine, beside any other samples.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from hashlib import sha256

import torch
from torch import Tensor

from outlay.codec.circuit.latent_tree import LatentTree
from outlay.codec.circuit.schedules import power_of_two
from outlay.errors import UsageError

ROUNDING = 1e-6  # by which the weights of a unit may miss 1


@dataclass(frozen=True, eq=False)
class Input:
    """A distribution of one variable."""

    variable: int
    """Which."""
    probs: Tensor
    """float64 [K]."""


@dataclass(frozen=True)
class Product:
    """Units over different variables, independent of each other."""

    units: tuple[int, ...]
    """Their places in the circuit."""


@dataclass(frozen=True)
class Sum:
    """A mixture of units over the same variables."""

    units: tuple[int, ...]
    """Their places in the circuit."""
    weights: tuple[float, ...]
    """What each has, 1 together."""


Unit = Input | Product | Sum


class Value:
    """A unit's value for samples, and for each value of the next variable where it depends on it."""

    def __init__(self, mantissa: Tensor, exponent: Tensor) -> None:
        """Takes float64 [lanes, 1 or K] times 2^exponent, int64 [lanes]."""
        shift = torch.frexp(mantissa.amax(1)).exponent
        self.mantissa, self.exponent = mantissa * power_of_two(-shift[:, None]), exponent + shift

    def times(self, other: Value) -> Value:
        """Returns the product."""
        return Value(self.mantissa * other.mantissa, self.exponent + other.exponent)

    @classmethod
    def mixed(cls, parts: Sequence[tuple[float, Value]]) -> Value:
        """Returns the weighted sum, in the order of the parts."""
        top = torch.stack([value.exponent for _, value in parts]).amax(0)
        total = torch.zeros(1, 1, dtype=torch.float64)
        for weight, value in parts:
            total = total + value.mantissa * weight * power_of_two((value.exponent - top)[:, None])
        return cls(total, top)


@dataclass
class CircuitState:
    """Samples side by side."""

    lanes: int
    place: int = 0
    """How many variables are known."""
    values: dict[int, Value] = field(default_factory=dict)
    """The values of units whose variables are known in part or whole; all others are 1."""
    ahead: dict[int, Value] = field(default_factory=dict)
    """The values of units for each value of the next variable, once they were asked for."""


class Circuit:
    """A circuit of units, which is a `coder.SequentialModel`. The symbols come in `order`."""

    def __init__(self, units: Sequence[Unit]) -> None:
        """Takes units, each behind those that it is made of; the last one is the circuit.

        Raises:
            UsageError: For units that are no smooth, structured-decomposable circuit, naming one.
        """
        self.units = tuple(units)
        self.scopes = _scopes(self.units)
        self.splits = _splits(self.units, self.scopes)
        if not self.units or self.scopes[-1] != frozenset(range(len(self.scopes[-1]))):
            raise UsageError(
                f"the last unit has the variables {_named(self.scopes[-1:])}, and a circuit's are 0 to D - 1"
            )
        sizes = {len(unit.probs) for unit in self.units if isinstance(unit, Input)}
        if len(sizes) != 1:
            raise UsageError(f"all variables have as many categories, and these have {sorted(sizes)}")
        self.categories, self.variables = sizes.pop(), len(self.scopes[-1])
        self.order = tuple(self._ordered(self.scopes[-1]))
        self.unit_evals = 0
        """Units evaluated so far."""

    @classmethod
    def of_tree(cls, tree: LatentTree) -> Circuit:
        """Returns a hidden Chow-Liu tree as units: sums for edges, products for latents."""
        units: list[Unit] = []
        products: dict[int, list[int]] = {}
        for variable in reversed(tree.tree.preorder):
            below = []
            for child in tree.tree.children[variable]:
                sums = []
                for row in tree.edges[child].tolist():
                    units.append(Sum(tuple(products[child]), tuple(row)))
                    sums.append(len(units) - 1)
                below.append(sums)
            made = []
            for state in range(tree.states):
                units.append(Input(variable, tree.leaves[variable][state]))
                place = len(units) - 1
                for sums in below:  # two factors at a time, so that all latents split alike
                    units.append(Product((place, sums[state])))
                    place = len(units) - 1
                made.append(place)
            products[variable] = made
        units.append(Sum(tuple(products[tree.tree.root]), tuple(tree.root.tolist())))
        return cls(units)

    @cached_property
    def digest(self) -> bytes:
        """The SHA-256 of all units."""
        found = sha256()
        for unit in self.units:
            if isinstance(unit, Input):
                found.update(f"input {unit.variable}\0".encode() + unit.probs.numpy().astype("<f8").tobytes())
            else:
                found.update(f"{unit}\0".encode())
        return found.digest()

    @property
    def fingerprint(self) -> str:
        """See `coder.SequentialModel`."""
        return self.digest.hex()

    def log_prob(self, data: Tensor) -> Tensor:
        """Returns the logarithm of the probability of samples, int64 [samples, D] -> float64 [samples]."""
        return self._log({variable: data[:, variable] for variable in range(self.variables)}, len(data))

    def marginal(self, evidence: Mapping[int, int]) -> float:
        """Returns the probability that some variables have these values."""
        strange = next((variable for variable in evidence if not 0 <= variable < self.variables), None)
        if strange is not None:
            raise UsageError(f"the circuit has variables 0 to {self.variables - 1}, not {strange}")
        return float(self._log({each: torch.tensor([value]) for each, value in evidence.items()}, 1).exp())

    def begin(self, lanes: int) -> CircuitState:
        """Returns unconditional samples."""
        return CircuitState(lanes)

    def next_pmf(self, state: CircuitState) -> Tensor:
        """Returns the weights of the next variable, int32 [lanes, K]."""
        variable = self.order[state.place]
        around = self._around[state.place]
        found = state.ahead = self._evaluate(state, variable, around)
        parts = [(share, found[place]) for place, share in self._entries[around] if place in found]
        value = Value.mixed(parts).mantissa.expand(state.lanes, self.categories)
        return (value * (1 << 24)).to(torch.int32)

    def push(self, state: CircuitState, symbols: Tensor) -> None:
        """Tells the next variable's values."""
        variable = self.order[state.place]
        for place, value in (state.ahead or self._evaluate(state, variable, self._around[state.place])).items():
            taken = value.mantissa.expand(state.lanes, self.categories).gather(1, symbols[:, None])
            state.values[place] = Value(taken, value.exponent)
        state.place, state.ahead = state.place + 1, {}

    @cached_property
    def _around(self) -> list[frozenset[int]]:
        """For each place in the order: the smallest part of a split that has all variables up to it."""
        known = [frozenset(self.order[: place + 1]) for place in range(self.variables)]
        return [min((scope for scope in self._entries if each <= scope), key=len) for each in known]

    @cached_property
    def _entries(self) -> dict[frozenset[int], list[tuple[int, float]]]:
        """For each set of variables: the units that stand for it in a product, and how probable each is at first."""
        reached = [0.0] * len(self.units)
        reached[-1] = 1.0
        entered = [0.0] * len(self.units)
        entered[-1] = 1.0
        for place in range(len(self.units) - 1, -1, -1):
            unit = self.units[place]
            if isinstance(unit, Input):
                continue
            weights = unit.weights if isinstance(unit, Sum) else (1.0,) * len(unit.units)
            for below, weight in zip(unit.units, weights, strict=True):
                reached[below] += reached[place] * weight
                if isinstance(unit, Product):
                    entered[below] += reached[place]
        found: dict[frozenset[int], list[tuple[int, float]]] = {}
        for place, share in enumerate(entered):
            if share > 0:
                found.setdefault(self.scopes[place], []).append((place, share))
        return found

    def _evaluate(self, state: CircuitState, variable: int, around: frozenset[int]) -> dict[int, Value]:
        """Returns the values of units with a variable, within a set, for each of its values: [lanes, K]."""
        found: dict[int, Value] = {}
        one = Value(torch.ones(state.lanes, 1, dtype=torch.float64), torch.zeros(state.lanes, dtype=torch.int64))

        def value(place: int) -> Value:
            return found.get(place) or state.values.get(place) or one

        for place, unit in enumerate(self.units):
            if variable not in self.scopes[place] or not self.scopes[place] <= around:
                continue
            self.unit_evals += 1
            if isinstance(unit, Input):
                found[place] = Value(unit.probs.double()[None].expand(state.lanes, -1), one.exponent)
            elif isinstance(unit, Product):
                made = value(unit.units[0])
                for below in unit.units[1:]:
                    made = made.times(value(below))
                found[place] = made
            else:
                found[place] = Value.mixed([(w, value(u)) for u, w in zip(unit.units, unit.weights, strict=True)])
        return found

    def _log(self, evidence: Mapping[int, Tensor], lanes: int) -> Tensor:
        values: list[Value] = []
        ones = Value(torch.ones(lanes, 1, dtype=torch.float64), torch.zeros(lanes, dtype=torch.int64))
        for unit in self.units:
            if isinstance(unit, Input):
                known = evidence.get(unit.variable)
                taken = None if known is None else unit.probs.double()[known][:, None]
                values.append(ones if taken is None else Value(taken, torch.zeros(lanes, dtype=torch.int64)))
            elif isinstance(unit, Product):
                made = values[unit.units[0]]
                for below in unit.units[1:]:
                    made = made.times(values[below])
                values.append(made)
            else:
                values.append(Value.mixed([(w, values[u]) for u, w in zip(unit.units, unit.weights, strict=True)]))
        last = values[-1]
        return last.mantissa[:, 0].log() + last.exponent * torch.log(torch.tensor(2.0, dtype=torch.float64))

    def _ordered(self, scope: frozenset[int]) -> list[int]:
        """The variables of a set in the order of coding: depth first, the larger part first."""
        order, waiting = [], [scope]
        while waiting:
            each = waiting.pop()
            parts = self.splits.get(each)
            if parts is None:
                order += sorted(each)
            else:
                waiting += sorted(parts, key=lambda part: (len(part), -min(part)))
        return order


def _scopes(units: Sequence[Unit]) -> list[frozenset[int]]:
    """Returns the variables of each unit. Raises `UsageError` where one is not smooth or not decomposable."""
    scopes: list[frozenset[int]] = []
    for place, unit in enumerate(units):
        if isinstance(unit, Input):
            _refuse_weights(f"input {place}", unit.probs.tolist())
            scopes.append(frozenset([unit.variable]))
            continue
        if not unit.units or not all(0 <= below < place for below in unit.units):
            raise UsageError(f"unit {place} must be made of units before it, not {list(unit.units)}")
        below = [scopes[each] for each in unit.units]
        together = frozenset().union(*below)
        if isinstance(unit, Sum):
            if len(unit.weights) != len(unit.units):
                raise UsageError(f"sum {place} has {len(unit.units)} units and {len(unit.weights)} weights")
            _refuse_weights(f"sum {place}", unit.weights)
            if any(scope != together for scope in below):
                raise UsageError(f"the circuit is not smooth: sum {place} adds units over {_named(below)}")
        elif sum(map(len, below)) != len(together):
            raise UsageError(f"the circuit is not decomposable: product {place} has units over {_named(below)}")
        scopes.append(together)
    return scopes


def _splits(units: Sequence[Unit], scopes: Sequence[frozenset[int]]) -> dict[frozenset[int], frozenset[frozenset[int]]]:
    """Returns how each set of variables is split. Raises `UsageError` where two products split one in two ways."""
    found: dict[frozenset[int], frozenset[frozenset[int]]] = {}
    for place, unit in enumerate(units):
        if isinstance(unit, Product) and len(unit.units) > 1:
            parts = frozenset(scopes[below] for below in unit.units)
            if found.setdefault(scopes[place], parts) != parts:
                first = _named(sorted(found[scopes[place]], key=min))
                second = _named(sorted(parts, key=min))
                raise UsageError(f"the circuit is not structured: {first} in one product, {second} in product {place}")
    return found


def _refuse_weights(what: str, weights: Sequence[float]) -> None:
    if any(not weight >= 0 for weight in weights) or abs(sum(weights) - 1) > ROUNDING:
        raise UsageError(f"{what} has weights that are below 0, or not 1 together: {sum(weights):g}")


def _named(scopes: Sequence[frozenset[int]]) -> str:
    return " and ".join("{" + ", ".join(map(str, sorted(scope))) + "}" for scope in scopes)
