"""Circuits: every marginal is exact, every schedule gives the same distributions, and arrays come back."""

from __future__ import annotations

import io
import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.sparse.csgraph import minimum_spanning_tree
from sklearn.datasets import load_digits

from outlay import codec
from outlay.codec.circuit.arrays import CircuitCoder
from outlay.codec.circuit.em import Flows, Recipe, fit
from outlay.codec.circuit.latent_tree import LatentTree, hidden_markov, mixture
from outlay.codec.circuit.schedules import SCHEDULES, CircuitModel
from outlay.codec.circuit.tree import VariableTree, chow_liu, mutual_information, spanning_tree
from outlay.codec.files import compress_all
from outlay.errors import UsageError

SHAPES = ("chain", "star", "balanced", "random")


def tree_of(shape, variables, seed=0):
    draw = np.random.default_rng(seed)
    above = {
        "chain": lambda v: v - 1, "star": lambda v: 0, "balanced": lambda v: (v - 1) // 2,
        "random": lambda v: int(draw.integers(v)),
    }[shape]  # fmt: skip
    return VariableTree((-1, *(above(v) for v in range(1, variables))))


def random_circuit(shape="random", variables=4, categories=3, states=2, seed=0):
    generator = torch.Generator().manual_seed(seed)

    def table(*size):
        found = torch.rand(*size, generator=generator, dtype=torch.float64) ** 3 + 1e-3
        return found / found.sum(-1, keepdim=True)

    tables = table(states), table(variables, states, states), table(variables, states, categories)
    return LatentTree(tree_of(shape, variables, seed), *tables)


def npy(values):
    stream = io.BytesIO()
    np.save(stream, values)
    return stream.getvalue()


@pytest.fixture(scope="module")
def digits():
    data = load_digits().data.astype(np.uint8)
    data = data[np.random.default_rng(0).permutation(len(data))]
    return data[:1497], data[1497:]


@pytest.fixture(scope="module")
def fitted(digits):
    return fit(torch.from_numpy(digits[0].astype(np.int64)), 17, Recipe(epochs=0, final_epochs=60))


@pytest.mark.parametrize("shape", SHAPES)
def test_probabilities_add_up_and_marginals_are_those_of_brute_force(shape):
    circuit = random_circuit(shape)
    every = torch.tensor(list(itertools.product(range(3), repeat=4)))
    probs = circuit.log_prob(every).exp()
    assert float(probs.sum()) == pytest.approx(1)
    for evidence in ({0: 1}, {3: 2, 1: 0}, {0: 0, 1: 1, 2: 2}, {}):
        rows = torch.ones(len(every), dtype=torch.bool)
        for variable, value in evidence.items():
            rows &= every[:, variable] == value
        assert circuit.marginal(evidence) == pytest.approx(float(probs[rows].sum()))
        free = next(v for v in range(4) if v not in evidence)
        given_it = [float(probs[rows & (every[:, free] == k)].sum() / probs[rows].sum()) for k in range(3)]
        assert circuit.conditional(free, evidence).tolist() == pytest.approx(given_it)


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("shape", SHAPES)
def test_chain_rule_the_conditionals_multiply_to_the_probability(schedule, shape):
    circuit = random_circuit(shape, variables=9, categories=5, states=3)
    data = circuit.sample(20, seed=1)
    model = CircuitModel(circuit, schedule)
    bits = codec.ideal_bits(model, data[:, list(model.order)])
    assert bits == pytest.approx(-float(circuit.log_prob(data).sum()) / math.log(2), rel=1e-4)


@settings(max_examples=30, deadline=None)
@given(
    shape=st.sampled_from(SHAPES),
    variables=st.sampled_from([1, 2, 3, 64]),
    categories=st.sampled_from([2, 3, 17, 256]),
    states=st.sampled_from([1, 4, 16]),
    schedule=st.sampled_from(["tour", "lca"]),
    lanes=st.integers(1, 5),
    stream=st.sampled_from(["sample", "batch"]),
)
def test_arrays_come_back(shape, variables, categories, states, schedule, lanes, stream):
    circuit = random_circuit(shape, variables, categories, states)
    data = circuit.sample(lanes, seed=2)
    model = CircuitModel(circuit, schedule)
    ordered = data[:, list(model.order)]
    streams = codec.encode(model, ordered, stream)
    assert torch.equal(codec.decode(CircuitModel(circuit, schedule), streams, lanes, variables), ordered)


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_three_hundred_digits_come_back(digits, fitted, schedule):
    data = npy(digits[1].reshape(300, 8, 8))
    coder = CircuitCoder(fitted, "digits", schedule=schedule)
    ((_, found),) = compress_all([(0, data)], [coder])
    assert found.container.kind == "circuit"
    assert codec.decompress(found.data, fitted) == data


def test_digits_take_at_most_205_bits_and_the_batch_stream_one_percent_more(digits, fitted):
    test = torch.from_numpy(digits[1].astype(np.int64))
    ideal = -float(fitted.log_prob(test).sum()) / math.log(2)
    assert ideal / test.numel() <= 2.05
    model = CircuitModel(fitted)
    (words,) = codec.encode(model, test[:, list(model.order)], "batch")
    assert 32 * len(words) <= 1.01 * ideal + 64


def test_sum_layers_are_evaluated_as_often_as_the_schedules_say(digits, fitted):
    test = torch.from_numpy(digits[1][:2].astype(np.int64))
    counts = {}
    for schedule in SCHEDULES:
        model = CircuitModel(fitted, schedule)
        codec.encode(model, test[:, list(model.order)])
        counts[schedule] = model.sum_evals
    variables = fitted.variables
    assert counts["tour"] == 2 * (variables - 1)
    assert counts["naive"] == variables * (variables - 1)
    assert counts["lca"] <= (max(fitted.tree.depths) + 1) * variables


def test_a_sample_has_the_same_bits_in_any_company(digits, fitted):
    test = torch.from_numpy(digits[1].astype(np.int64))
    model = CircuitModel(fitted)
    ordered = test[:, list(model.order)]
    together = codec.encode(model, ordered, "sample")
    for lane in (0, 17, 299):
        (alone,) = codec.encode(model, ordered[lane : lane + 1], "sample")
        assert alone.tolist() == together[lane].tolist()


def test_full_em_never_lowers_the_likelihood(digits):
    data = torch.from_numpy(digits[0][:400].astype(np.int64))
    flows = Flows(chow_liu(data, 17), data, 17, Recipe(latents=4))
    found = [flows.update(data, 1.0, 0.0) for _ in range(12)]
    assert all(later >= earlier - 1e-4 for earlier, later in itertools.pairwise(found))


def test_flows_are_the_gradient(digits):
    """theta * d log p / d theta, by torch's own differentiation."""
    data = torch.from_numpy(digits[0][:50].astype(np.int64)) % 4
    flows = Flows(tree_of("random", 64), data, 4, Recipe(latents=3))
    circuit = flows.circuit()
    tables = [table.clone().requires_grad_() for table in (circuit.root, circuit.edges, circuit.leaves)]
    total = torch.zeros((), dtype=torch.float64)
    messages = {v: torch.ones(50, 3, dtype=torch.float64) for v in range(64)}
    for v in reversed(circuit.tree.preorder):
        message = tables[2][v].T[data[:, v]] * messages[v]
        parent = circuit.tree.parents[v]
        if parent >= 0:
            messages[parent] = messages[parent] * (message @ tables[1][v].T) * 4
        else:
            total = (message @ tables[0]).log().sum()
    total.backward()
    by_category = flows.leaves.transpose(1, 2).contiguous()
    root, edges, leaves = (torch.zeros_like(table) for table in (flows.root, flows.edges, by_category))
    flows._count(data, by_category, root, edges, leaves)
    back = flows._order.argsort()
    for table, mine in zip(tables, (root, edges[back], leaves.transpose(1, 2)[back]), strict=True):
        exact = torch.zeros_like(table) if table.grad is None else table.grad * table
        torch.testing.assert_close(mine.double(), exact.detach(), rtol=1e-3, atol=1e-4)


def test_the_tree_has_the_most_mutual_information(digits):
    data = torch.from_numpy(digits[0].astype(np.int64))
    information = mutual_information(data, 17)
    theirs = -minimum_spanning_tree(-(information + 1e-9) * (1 - np.eye(64))).sum()
    mine = sum(information[one, other] for one, other in spanning_tree(information))
    assert mine == pytest.approx(theirs, abs=1e-6)
    tree = chow_liu(data, 17)
    heights = [max(VariableTree(_rerooted(tree, root)).depths) for root in range(64)]
    assert max(tree.depths) == min(heights), "the root is the centre"


def _rerooted(tree, root):
    near = [set() for _ in tree.parents]
    for variable, parent in enumerate(tree.parents):
        if parent >= 0:
            near[variable].add(parent)
            near[parent].add(variable)
    parents, stack = [-1] * len(near), [(root, -1)]
    while stack:
        variable, parent = stack.pop()
        parents[variable] = parent
        stack += [(other, variable) for other in near[variable] if other != parent]
    return tuple(parents)


def test_mutual_information_is_that_of_brute_force():
    data = torch.randint(0, 3, (500, 2), generator=torch.Generator().manual_seed(0))
    data[:, 1] = (data[:, 0] + data[:, 1] // 2) % 3
    joint = np.zeros((3, 3))
    np.add.at(joint, tuple(data.T.numpy()), 1 / 500)
    single = joint.sum(1)[:, None] * joint.sum(0)[None]
    expected = (joint[joint > 0] * np.log(joint[joint > 0] / single[joint > 0])).sum()
    assert mutual_information(data, 3)[0, 1] == pytest.approx(expected)


def test_samples_under_evidence_are_distributed_as_the_circuit_says():
    """A chi-square test with 2 degrees of freedom: a false alarm in 1 of 10^4 runs, and the seed is fixed."""
    circuit = random_circuit("random", 5, 3, 3, seed=4)
    drawn = circuit.sample(4000, evidence={1: 2, 4: 0}, seed=3)
    assert bool((drawn[:, 1] == 2).all())
    assert bool((drawn[:, 4] == 0).all())
    for variable in (0, 2, 3):
        expected = circuit.conditional(variable, {1: 2, 4: 0}) * 4000
        found = torch.bincount(drawn[:, variable], minlength=3)
        assert float(((found - expected) ** 2 / expected).sum()) < 18.4


def test_hidden_markov_models_and_mixtures_are_what_they_are_called():
    initial, transition = torch.tensor([0.3, 0.7]), torch.tensor([[0.9, 0.1], [0.2, 0.8]])
    emission = torch.tensor([[0.6, 0.3, 0.1], [0.1, 0.1, 0.8]])
    chain = hidden_markov(initial, transition, emission, 3)
    expected = 0.0
    for states in itertools.product(range(2), repeat=3):
        path = initial[states[0]] * transition[states[0], states[1]] * transition[states[1], states[2]]
        expected += float(path * math.prod(float(emission[s, x]) for s, x in zip(states, (2, 0, 1), strict=True)))
    assert float(chain.log_prob(torch.tensor([[2, 0, 1]])).exp()) == pytest.approx(expected, rel=1e-6)
    weights, leaves = torch.tensor([0.25, 0.75]), torch.rand(2, 4, 3, generator=torch.Generator().manual_seed(0))
    leaves = leaves / leaves.sum(-1, keepdim=True)
    mixed = mixture(weights, leaves)
    x = [1, 0, 2, 1]
    expected = sum(float(weights[m]) * math.prod(float(leaves[m, v, x[v]]) for v in range(4)) for m in range(2))
    assert float(mixed.log_prob(torch.tensor([x])).exp()) == pytest.approx(expected, rel=1e-5)


def test_circuits_come_back_from_files(tmp_path, fitted, digits):
    fitted.save(tmp_path / "m.safetensors")
    again = LatentTree.load(tmp_path / "m.safetensors")
    assert again.digest == fitted.digest
    packed = codec.compress(npy(digits[1]), fitted)
    assert codec.decompress(packed, tmp_path / "m.safetensors") == npy(digits[1])
    with pytest.raises(UsageError, match="no file"):
        LatentTree.load(tmp_path / "other.safetensors")


@pytest.mark.parametrize("isa", ["scalar", "avx2", "avx512vnni", "amx-emulated"])
def test_an_array_is_read_in_every_instruction_set(fitted, digits, each_isa, isa):
    packed = codec.compress(npy(digits[1][:20]), fitted)
    for name in each_isa():
        if name == isa:
            assert codec.decompress(packed, fitted) == npy(digits[1][:20])
            assert codec.unpack(codec.compress(npy(digits[1][:20]), fitted)).body == codec.unpack(packed).body


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (np.zeros((3, 5), np.uint8), "64 variables"),
        (np.full((2, 64), 17, np.uint8), "sample 0, variable 0 is 17"),
        (np.zeros((2, 64)), "integers"),
        (np.asfortranarray(np.zeros((2, 64), np.uint8)), "Fortran"),
    ],
)
def test_data_that_do_not_fit_are_refused(fitted, values, message):
    with pytest.raises(UsageError, match=message):
        codec.compress(npy(values), fitted)


def test_what_is_no_tree_is_refused():
    for parents in ((-1, -1), (1, 0), (0,), (-1, 5)):
        with pytest.raises(UsageError, match="tree with one root"):
            VariableTree(parents)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("given", [{0}, {1, 4}, {0, 2, 3, 5}, {6}, set(range(1, 7))])
def test_coded_conditionals_are_the_exact_ones_whatever_is_given(shape, given):
    circuit = random_circuit(shape, 7, 3, 4)
    model, draw = CircuitModel(circuit, given=given), np.random.default_rng(0)
    values = torch.from_numpy(draw.integers(3, size=(6, 7)))
    known = torch.from_numpy(draw.random((6, 7)) < 0.7)
    state = model.begin(6, values, known)
    assert sorted(model.order) == sorted(set(range(7)) - given)
    told = [{v: int(values[lane, v]) for v in given if known[lane, v]} for lane in range(6)]
    for variable in model.order:
        weights = model.next_pmf(state).double()
        for lane in range(6):
            exact = circuit.conditional(variable, told[lane])
            torch.testing.assert_close(weights[lane] / weights[lane].sum(), exact, rtol=1e-5, atol=1e-6)
            told[lane][variable] = int(values[lane, variable])
        model.push(state, values[:, variable])
