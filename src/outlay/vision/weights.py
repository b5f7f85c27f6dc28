"""Weight files of networks that see: read without running code, renamed, and put into a network with a strict check."""

from __future__ import annotations

import pickle
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from outlay.errors import UsageError

WRAPPERS = ("state_dict", "model")  # keys under which training programs put the weights
PREFIXES = ("module.", "backbone.bottom_up.")  # of parallel training, and of detectors
SHOWN = 4  # names in an error


def read(path: Path, first: Sequence[str] = ()) -> dict[str, Tensor]:
    """Reads a `.safetensors` file, or a file of `torch.save` that holds nothing but tensors.

    Args:
        path: the file.
        first: keys that lead to the weights to take, where the file has them, such as an average.

    Raises:
        UsageError: if it is not there, is damaged, or would run code.
    """
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        found = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError as error:
        raise UsageError(f"there is no file {path}") from error
    except pickle.UnpicklingError as error:
        raise UsageError(f"{path} holds more than tensors: reading it could run code; save its state_dict") from error
    except (SafetensorError, RuntimeError, EOFError, OSError) as error:
        raise UsageError(f"{path} is not a whole weight file: {str(error).splitlines()[0]}") from error
    found = _below(found, first) or found
    for wrapper in WRAPPERS:
        if isinstance(found, Mapping) and isinstance(found.get(wrapper), Mapping):
            found = found[wrapper]
    if not isinstance(found, Mapping) or not all(isinstance(value, Tensor) for value in found.values()):
        raise UsageError(f"{path} holds no weights by name")
    return {_bare(name): value for name, value in found.items()}


def _below(found: Any, keys: Sequence[str]) -> Any:
    """Returns what lies below keys; None where something is missing."""
    for key in keys:
        found = found.get(key) if isinstance(found, Mapping) else None
    return found if keys else None


def _bare(name: str) -> str:
    for prefix in PREFIXES:
        name = name.removeprefix(prefix)
    return name


def put(network: nn.Module, weights: Mapping[str, Tensor], where: str) -> None:
    """Copies weights into a network.

    Args:
        network: what gets them.
        weights: all that its `state_dict` has; `num_batches_tracked` may be missing.
        where: what they come from, for the errors.

    Raises:
        UsageError: for weights that are missing, left over, or of another shape; it names them.
    """
    wanted = network.state_dict()
    counters = {name for name in wanted if name.endswith("num_batches_tracked")}
    missing = wanted.keys() - weights.keys() - counters
    extra = weights.keys() - wanted.keys() - {name for name in weights if name.endswith("num_batches_tracked")}
    shapes = [
        f"{name} is {_shape(weights[name])}, not {_shape(wanted[name])}"
        for name in wanted
        if name in weights and weights[name].shape != wanted[name].shape
    ]
    for what, names in (("lacks", sorted(missing)), ("has unknown", sorted(extra)), ("doesn't fit:", shapes)):
        if names:
            more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
            raise UsageError(f"{where} {what} {', '.join(names[:SHOWN])}{more}")
    network.load_state_dict(wanted | {name: weights[name] for name in wanted if name in weights})


def _shape(tensor: Tensor) -> str:
    return "x".join(map(str, tensor.shape)) or "one number"
