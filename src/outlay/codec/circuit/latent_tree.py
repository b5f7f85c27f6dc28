"""Hidden Chow-Liu trees (Liu, Mandt & Van den Broeck, ICLR 2022): latents in a tree, a variable below each of them.

Every marginal is one pass from the leaves to the root: m_v = B_v[:, x_v] * prod_c A_c m_c, and p(x) = pi . m_root,
with ones in place of B_v[:, x_v] where a variable is not known. Hidden Markov models are the chain whose tables are
tied, and mixtures of products those whose latents are equal.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from hashlib import sha256
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from outlay.codec.circuit.tree import VariableTree
from outlay.errors import FailureError, UsageError

LEAST = 1e-7  # probability of a parameter, at least
ROUNDING = 1e-5  # by which a distribution that was rounded to float32 may miss 1
KIND = "circuit"
WHOLE = 1 << 16  # parts of a distribution whose parameters are held as whole numbers


@dataclass(frozen=True, eq=False)
class LatentTree:
    """A distribution over D variables of K categories, with M states of each latent."""

    tree: VariableTree
    """The latents' tree; variable v hangs below latent v."""
    root: Tensor
    """float64 [M], the distribution of the root."""
    edges: Tensor
    """float64 [D, M, M]: given the state of its parent, the distribution of each latent's; the root's is not used."""
    leaves: Tensor
    """float64 [D, M, K]: given the state of its latent, the distribution of each variable."""

    def __post_init__(self) -> None:
        states, (variables, _, categories) = len(self.root), self.leaves.shape
        if self.edges.shape != (variables, states, states) or self.leaves.shape[1] != states:
            raise UsageError("the tables of a circuit have shapes [M], [D, M, M] and [D, M, K]")
        if variables != len(self.tree.parents) or categories < 2:
            raise UsageError("a circuit has a latent for each variable, and variables of 2 categories or more")
        for name, table in (("root", self.root), ("edges", self.edges), ("leaves", self.leaves)):
            if not bool(((table.sum(-1) - 1).abs() < ROUNDING).all()) or bool((table < 0).any()):
                raise UsageError(f"the {name} of a circuit are distributions, which add up to 1")

    @property
    def variables(self) -> int:
        """D, how many variables there are."""
        return self.leaves.shape[0]

    @property
    def states(self) -> int:
        """M, how many states a latent has."""
        return self.leaves.shape[1]

    @property
    def categories(self) -> int:
        """K, how many values a variable has."""
        return self.leaves.shape[2]

    @cached_property
    def digest(self) -> bytes:
        """The SHA-256 of the tree and of the tables as they are held in a file, float32."""
        found = sha256(json.dumps([*self.tree.parents]).encode())
        for table in (self.root, self.edges, self.leaves):
            found.update(table.float().contiguous().numpy().astype("<f4").tobytes())
        return found.digest()

    def log_prob(self, data: Tensor, known: Tensor | None = None) -> Tensor:
        """Returns log-probabilities in nats, float64 [samples].

        Args:
            data: int64 [samples, D].
            known: bool [samples, D] or [D], the variables that are known; the others are summed over. None: all.

        Raises:
            UsageError: For values that are no categories.
        """
        self.refuse_strange(data if known is None else data * known)
        messages, logs = self._up(data, known)
        return logs + (messages[self.tree.root] @ self.root).log()

    def marginal(self, evidence: Mapping[int, int]) -> float:
        """Returns the probability of some variables' values, the others summed over."""
        data, known = self._evidence(evidence)
        return float(self.log_prob(data, known).exp())

    def conditional(self, variable: int, evidence: Mapping[int, int]) -> Tensor:
        """Returns the distribution of a variable given others' values, float64 [K]."""
        rest = {key: value for key, value in evidence.items() if key != variable}
        data, known = self._evidence(rest)
        data, known = data.expand(self.categories, -1).clone(), known.expand(self.categories, -1).clone()
        data[:, variable], known[:, variable] = torch.arange(self.categories), True
        joint = self.log_prob(data, known)
        return (joint - joint.logsumexp(0)).exp()

    def sample(self, count: int, *, evidence: Mapping[int, int] | None = None, seed: int = 0) -> Tensor:
        """Returns samples, int64 [count, D], distributed as the circuit given the evidence."""
        generator = torch.Generator().manual_seed(seed)
        data, known = self._evidence(evidence or {})
        messages, _ = self._up(data, known)
        states = torch.empty(count, self.variables, dtype=torch.int64)
        out = data.expand(count, -1).clone()
        for variable in self.tree.preorder:
            parent = self.tree.parents[variable]
            prior = self.root.expand(count, -1) if parent < 0 else self.edges[variable][states[:, parent]]
            posterior = prior * messages[variable]  # [count, M]
            states[:, variable] = torch.multinomial(posterior, 1, generator=generator)[:, 0]
            if not known[variable]:
                of_state = self.leaves[variable][states[:, variable]]
                out[:, variable] = torch.multinomial(of_state, 1, generator=generator)[:, 0]
        return out

    def refuse_strange(self, data: Tensor) -> None:
        """Raises `UsageError` for data of another shape, or values that are no categories, naming the first."""
        if data.ndim != 2 or data.shape[1] != self.variables:
            raise UsageError(f"the circuit has {self.variables} variables, and the data are {list(data.shape)}")
        wrong = ((data < 0) | (data >= self.categories)).nonzero()
        if len(wrong):
            sample, variable = wrong[0].tolist()
            raise UsageError(
                f"sample {sample}, variable {variable} is {int(data[sample, variable])}; the circuit has "
                f"{self.categories} categories, 0 to {self.categories - 1}"
            )

    def _evidence(self, evidence: Mapping[int, int]) -> tuple[Tensor, Tensor]:
        data, known = torch.zeros(1, self.variables, dtype=torch.int64), torch.zeros(self.variables, dtype=torch.bool)
        for variable, value in evidence.items():
            if not 0 <= variable < self.variables:
                raise UsageError(f"the circuit has variables 0 to {self.variables - 1}, not {variable}")
            data[0, variable], known[variable] = value, True
        return data, known

    def _up(self, data: Tensor, known: Tensor | None) -> tuple[Tensor, Tensor]:
        """Returns the messages of all latents, scaled, [D, samples, M], and the logs of their scales, [samples]."""
        samples = len(data)
        messages = torch.ones(self.variables, samples, self.states, dtype=torch.float64)
        logs = torch.zeros(samples, dtype=torch.float64)
        known = torch.ones_like(data, dtype=torch.bool) if known is None else known.expand(samples, -1)
        for variable in reversed(self.tree.preorder):
            leaf = self.leaves[variable].T[data[:, variable]]  # [samples, M]
            message = torch.where(known[:, variable, None], leaf, 1.0) * messages[variable]
            largest = message.amax(1, keepdim=True)
            messages[variable] = message / largest
            logs += largest[:, 0].log()
            parent = self.tree.parents[variable]
            if parent >= 0:
                messages[parent] *= messages[variable] @ self.edges[variable].T
        return messages, logs

    def rounded(self) -> LatentTree:
        """Returns a circuit whose parameters are multiples of 2^-16, which `save` writes in half the bytes.

        What rounding down takes from a distribution goes to its largest parameter; each has one such part at least.
        """
        tables = []
        for table in (self.root, self.edges, self.leaves):
            parts = (table * (WHOLE - table.shape[-1])).floor() + 1
            largest = parts.argmax(-1, keepdim=True)
            parts.scatter_add_(-1, largest, WHOLE - parts.sum(-1, keepdim=True))
            tables.append(parts.clamp_max(WHOLE - 1) / WHOLE)
        return LatentTree(self.tree, *tables)

    def save(self, path: Path, **about: Any) -> None:
        """Writes the circuit, whole or not at all. Raises `FailureError` where it can't be written."""
        part = path.with_name(f".{path.name}.part")
        tables = {name: getattr(self, name) for name in ("root", "edges", "leaves")}
        whole = all(bool((table * WHOLE == (table * WHOLE).to(torch.uint16)).all()) for table in tables.values())
        tensors = {name: (table * WHOLE).to(torch.uint16) if whole else table.float() for name, table in tables.items()}
        tensors = {name: table.contiguous() for name, table in tensors.items()}
        description = {"kind": KIND, "parents": list(self.tree.parents), "whole": whole, **about}
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            save_file(tensors, part, {"about": json.dumps(description)})
            part.replace(path)
        except (OSError, SafetensorError) as error:
            raise FailureError(f"can't write {path}: {getattr(error, 'strerror', None) or error}") from error

    @classmethod
    def load(cls, path: Path) -> LatentTree:
        """Reads what `save` wrote. Raises `UsageError` for anything else."""
        about = cls.about(path)
        with safe_open(path, framework="pt") as file:
            tables = {name: file.get_tensor(name).double() for name in ("root", "edges", "leaves")}
        if about.get("whole"):
            tables = {name: table / WHOLE for name, table in tables.items()}
        return cls(VariableTree(tuple(about["parents"])), **tables)

    @staticmethod
    def about(path: Path) -> dict[str, Any]:
        """Returns what `save` was told of a circuit. Raises `UsageError` where a file holds none."""
        try:
            with safe_open(path, framework="pt") as file:
                about: dict[str, Any] = json.loads((file.metadata() or {}).get("about", "{}"))
        except FileNotFoundError:
            raise UsageError(f"there is no file {path}") from None
        except (SafetensorError, OSError, ValueError) as error:
            raise UsageError(f"{path} can't be read: {' '.join(str(error).split())}") from None
        if about.get("kind") != KIND:
            raise UsageError(f"{path} holds no circuit; `outlay train circuit` makes one")
        return about


def hidden_markov(initial: Tensor, transition: Tensor, emission: Tensor, steps: int) -> LatentTree:
    """Returns a hidden Markov model with a number of steps: a chain whose tables are tied.

    Args:
        initial: [M]
        transition: [M, M], from a state to the next.
        emission: [M, K]
        steps: D, how many variables there are.
    """
    tree = VariableTree(tuple(range(-1, steps - 1)))
    tables = (initial, transition.expand(steps, -1, -1), emission.expand(steps, -1, -1))
    return LatentTree(tree, *(table.double() for table in tables))


def mixture(weights: Tensor, leaves: Tensor) -> LatentTree:
    """Returns a mixture of products, weights [M] of distributions [M, D, K]: a star whose latents are all equal."""
    states, variables, _ = leaves.shape
    tree = VariableTree((-1, *[0] * (variables - 1)))
    same = torch.eye(states, dtype=torch.float64).expand(variables, -1, -1)
    return LatentTree(tree, weights.double(), same, leaves.double().transpose(0, 1).contiguous())
