"""Circuits beside pgmpy: the same Chow-Liu tree, and the same exact conditionals."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import torch
from codec.test_circuits import SHAPES, random_circuit
from pgmpy.estimators import TreeSearch
from pgmpy.factors.discrete import TabularCPD
from pgmpy.inference import VariableElimination
from pgmpy.models import DiscreteBayesianNetwork
from sklearn.datasets import load_digits

from outlay.codec.circuit.tree import chow_liu


@pytest.mark.parametrize("begin", [18, 26, 34])
def test_the_tree_is_pgmpys_chow_liu_tree(begin):
    data = load_digits().data[:, begin : begin + 5].astype(np.int64) // 2  # few enough values that none are binned
    names = [str(variable) for variable in range(5)]
    search = TreeSearch(pd.DataFrame(data, columns=names), root_node="0")
    theirs = search.estimate(estimator_type="chow-liu", show_progress=False)
    ours = chow_liu(torch.from_numpy(data), 9)
    edges = {frozenset((variable, parent)) for variable, parent in enumerate(ours.parents) if parent >= 0}
    assert edges == {frozenset(map(int, edge)) for edge in theirs.edges()}


def network_of(circuit):
    """The Bayesian network of a circuit: latents z0, z1, ... in its tree, and a variable x0, x1, ... below each."""
    parents = circuit.tree.parents
    network = DiscreteBayesianNetwork()
    for variable, parent in enumerate(parents):
        network.add_edge(f"z{variable}", f"x{variable}")
        if parent >= 0:
            network.add_edge(f"z{parent}", f"z{variable}")
    for variable, parent in enumerate(parents):
        leaf = circuit.leaves[variable].T.numpy()
        network.add_cpds(TabularCPD(f"x{variable}", circuit.categories, leaf, [f"z{variable}"], [circuit.states]))
        if parent < 0:
            network.add_cpds(TabularCPD(f"z{variable}", circuit.states, circuit.root[:, None].numpy()))
        else:
            edge = circuit.edges[variable].T.numpy()
            network.add_cpds(TabularCPD(f"z{variable}", circuit.states, edge, [f"z{parent}"], [circuit.states]))
    assert network.check_model()
    return network


@pytest.mark.parametrize("shape", SHAPES)
def test_conditionals_are_those_of_pgmpys_exact_inference(shape):
    circuit = random_circuit(shape, 5, 3, 2, seed=1)
    inference = VariableElimination(network_of(circuit))
    for variable, evidence in ((0, {}), (2, {0: 1}), (4, {0: 2, 1: 0, 3: 1}), (1, {4: 2, 2: 0})):
        known = {f"x{key}": value for key, value in evidence.items()}
        found = inference.query([f"x{variable}"], known, show_progress=False)
        np.testing.assert_allclose(circuit.conditional(variable, evidence).numpy(), found.values, rtol=1e-9)
