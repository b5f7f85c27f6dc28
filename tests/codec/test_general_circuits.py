"""Circuits of any structure: what is no smooth, structured-decomposable one is refused, all others are coded."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from codec.test_circuits import SHAPES, random_circuit

from outlay import codec
from outlay.codec.circuit import Circuit, Input, Product, Sum
from outlay.codec.circuit.schedules import CircuitModel
from outlay.errors import UsageError


def distribution(size, generator):
    weights = torch.rand(size, dtype=torch.float64, generator=generator) + 0.05
    return weights / weights.sum()


def region_circuit(variables, categories=3, width=2, seed=0):
    """Halves of halves, `width` sums over all products of the halves' sums: no tree of latents makes it."""
    generator, units = torch.Generator().manual_seed(seed), []

    def build(scope):
        if len(scope) == 1:
            found = [Input(scope[0], distribution(categories, generator)) for _ in range(width)]
            units.extend(found)
            return list(range(len(units) - width, len(units)))
        left, right = build(scope[: len(scope) // 2]), build(scope[len(scope) // 2 :])
        products = []
        for pair in itertools.product(left, right):
            units.append(Product(pair))
            products.append(len(units) - 1)
        sums = []
        for _ in range(width):
            units.append(Sum(tuple(products), tuple(distribution(len(products), generator).tolist())))
            sums.append(len(units) - 1)
        return sums

    last = build(list(range(variables)))
    units.append(Sum(tuple(last), tuple(distribution(len(last), generator).tolist())))
    return Circuit(units)


def test_probabilities_add_up_and_marginals_are_those_of_brute_force():
    circuit = region_circuit(4)
    every = torch.tensor(list(itertools.product(range(3), repeat=4)))
    probs = circuit.log_prob(every).exp()
    assert float(probs.sum()) == pytest.approx(1, abs=1e-12)
    for evidence in ({0: 1}, {1: 2, 3: 0}, {0: 0, 1: 1, 2: 2, 3: 0}, {}):
        rows = (
            torch.stack([every[:, variable] == value for variable, value in evidence.items()]).all(0)
            if evidence
            else slice(None)
        )
        assert circuit.marginal(evidence) == pytest.approx(float(probs[rows].sum()), rel=1e-12)


@pytest.mark.parametrize("shape", SHAPES)
def test_a_latent_tree_as_units_is_the_same_distribution(shape):
    tree = random_circuit(shape, 5, 3, 2)
    circuit = Circuit.of_tree(tree)
    data = torch.randint(0, 3, (40, 5), generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(circuit.log_prob(data), tree.log_prob(data), rtol=1e-6, atol=0)


@pytest.mark.parametrize("variables", [1, 2, 3, 8, 33])
def test_the_conditionals_multiply_to_the_probability_and_samples_come_back(variables):
    circuit = region_circuit(variables)
    data = torch.randint(0, 3, (20, variables), generator=torch.Generator().manual_seed(0))
    ordered = data[:, list(circuit.order)]
    bits = codec.ideal_bits(circuit, ordered)
    assert bits == pytest.approx(-float(circuit.log_prob(data).sum()) / math.log(2), rel=1e-5)
    for stream in ("sample", "batch"):
        assert torch.equal(codec.decode(circuit, codec.encode(circuit, ordered, stream), 20, variables), ordered)


def test_a_sample_has_the_same_bits_in_any_company():
    circuit = region_circuit(8)
    data = torch.randint(0, 3, (50, 8), generator=torch.Generator().manual_seed(0))
    together = codec.encode(circuit, data)
    for lane in (0, 17, 49):
        (alone,) = codec.encode(circuit, data[lane : lane + 1])
        assert (alone == together[lane]).all()


def test_units_near_the_variable_alone_are_evaluated():
    """D passes over all units in the plain way; here about as many as a path has, twice the depth at most."""
    circuit = region_circuit(64)
    codec.ideal_bits(circuit, torch.zeros(1, 64, dtype=torch.int64))
    assert circuit.unit_evals <= (math.log2(64) + 2) * len(circuit.units)
    assert circuit.unit_evals < 64 * len(circuit.units) / 10


def test_a_tree_evaluates_fewer_units_than_one_by_one():
    tree = random_circuit("balanced", 31, 3, 2)
    circuit = Circuit.of_tree(tree)
    codec.ideal_bits(circuit, torch.zeros(1, 31, dtype=torch.int64))
    naive = CircuitModel(tree, "naive")
    codec.ideal_bits(naive, torch.zeros(1, 31, dtype=torch.int64))
    assert circuit.unit_evals < len(circuit.units) * 31 / 3


HALF = torch.tensor([0.5, 0.5], dtype=torch.float64)


@pytest.mark.parametrize(
    ("units", "message"),
    [
        ([Input(0, HALF), Input(1, HALF), Sum((0, 1), (0.5, 0.5))], r"not smooth: sum 2 adds .* \{0\} and \{1\}"),
        ([Input(0, HALF), Input(0, HALF), Product((0, 1))], r"not decomposable: product 2 .* \{0\} and \{0\}"),
        (
            [
                *(Input(v, HALF) for v in range(3)), Product((0, 1)), Product((3, 2)), Product((1, 2)), Product((0, 5)),
                Sum((4, 6), (0.5, 0.5)),
            ],
            r"not structured: \{0, 1\} and \{2\} in one product, \{0\} and \{1, 2\} in product 6",
        ),
        ([Input(0, HALF), Sum((0,), (0.7,))], "sum 1 has weights that are below 0, or not 1 together: 0.7"),
        ([Input(0, HALF), Sum((0,), (0.5, 0.5))], "sum 1 has 1 units and 2 weights"),
        ([Product((0,))], "unit 0 must be made of units before it"),
        ([Input(1, HALF)], r"the last unit has the variables \{1\}"),
        ([Input(0, HALF), Input(1, HALF[:1] * 2), Product((0, 1))], r"as many categories, and these have \[1, 2\]"),
    ],
)  # fmt: skip
def test_what_is_no_such_circuit_is_refused_with_the_reason(units, message):
    with pytest.raises(UsageError, match=message):
        Circuit(units)
