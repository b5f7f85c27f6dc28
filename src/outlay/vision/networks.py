"""Networks by name, from files and from folders: ours, timm's, a function's, a folder that we wrote."""

from __future__ import annotations

import importlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import nn

from outlay.errors import FailureError, UsageError, nearest
from outlay.vision import crate, dense, names, weights
from outlay.vision.vovnet import ALIASES, DESIGNS, REFUSED, VoVNetModel

CONFIG, WEIGHTS = "config.json", "model.safetensors"
NAMED = (*DESIGNS, *dense.SIZES, *crate.SIZES)
"""All names of ours."""

ADAPTERS: dict[str, Callable[[nn.Module, Mapping[str, Any]], nn.Module]] = {}
"""What makes the layers of an adapted network again from what its folder says, by the method's name."""


@dataclass(frozen=True)
class Network:
    """A network with what it was made of."""

    spec: str
    """What a user types for it."""

    module: nn.Module
    """The network, in evaluation mode."""

    options: Mapping[str, Any] = field(default_factory=dict)
    """How it was made, beside the name."""

    adapted: Mapping[str, Any] = field(default_factory=dict)
    """By method, how its layers were replaced."""


def open_network(spec: str, file: Path | None = None) -> Network:
    """Makes a network.

    Args:
        spec: a name of ours, `timm:NAME`, `package.module:function` (called without arguments), or a folder.
        file: weights for it, in our names, timm's or the authors'; without them they are random, or timm's.

    Raises:
        UsageError: for what can't be made, with the nearest names; for weights that don't fit.
    """
    if Path(spec).is_dir():
        network = read_folder(Path(spec))
    elif spec in (*NAMED, *ALIASES, *REFUSED, *crate.RELEASED):
        network = Network(spec, _named(spec).eval())
    elif ":" in spec:
        network = Network(spec, _imported(spec).eval())
    else:
        raise UsageError(
            f"there is no network {spec!r}{nearest(spec, NAMED)}; give {', '.join(NAMED)}, timm:NAME, "
            "package.module:function or a folder"
        )
    if file is not None:
        load(network.module, file)
    return network


def _named(spec: str, **options: Any) -> nn.Module:
    if spec in crate.SIZES or spec in crate.RELEASED:
        return crate.build(spec, **options)
    return dense.DenseNet(spec, **options) if spec in dense.SIZES else VoVNetModel(spec, **options)


def load(module: nn.Module, file: Path) -> None:
    """Puts a file's weights into a network. Raises `UsageError` where they don't fit."""
    found = weights.read(file)
    if isinstance(module, VoVNetModel):
        found = names.ours(found, module.name, str(file))
        classes = found.get("classifier.weight")
        if module.classifier is None:
            found = {name: value for name, value in found.items() if not name.startswith(("classifier.", "expand."))}
        elif classes is not None and classes.shape[0] != module.classes:
            raise UsageError(f"{file} has {classes.shape[0]} classes, the network {module.classes}")
    if isinstance(module, crate.CrateMAE):
        found = {name: value for name, value in found.items() if name not in crate.UNUSED}
    weights.put(module, found, str(file))


def _imported(spec: str) -> nn.Module:
    place, _, name = spec.partition(":")
    try:
        if place == "timm":
            return _timm(name)
        make = getattr(importlib.import_module(place), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise UsageError(f"{spec!r} can't be imported: {error}") from error
    made = make()
    if not isinstance(made, nn.Module):
        raise UsageError(f"{spec!r} returned a {type(made).__name__}, not a torch module")
    return made


def _timm(name: str) -> nn.Module:
    import timm

    known = timm.list_models()
    if name not in known:
        raise UsageError(f"timm has no model {name!r}{nearest(name, known)}")
    made: nn.Module = timm.create_model(name, pretrained=False)
    return made


def save_folder(folder: Path, network: Network) -> None:
    """Writes a network as `config.json` and `model.safetensors`, which `open_network` reads again."""
    config = {"network": network.spec, "options": dict(network.options), "adapted": dict(network.adapted)}
    state = {name: value.detach().clone().contiguous() for name, value in network.module.state_dict().items()}
    try:
        folder.mkdir(parents=True, exist_ok=True)
        save_file(state, folder / WEIGHTS)
        (folder / CONFIG).write_text(json.dumps(config, indent=1) + "\n")
    except OSError as error:
        raise FailureError(f"can't write {folder}: {error.strerror}") from error


def read_folder(folder: Path, network: nn.Module | None = None) -> Network:
    """Reads a folder that `save_folder` wrote, or timm wrote of a VoVNet or an HGNetv2.

    Args:
        folder: with `config.json` and `model.safetensors`.
        network: the network before it was adapted, where a function of the user's made it; a folder may not name code
            to run.

    Raises:
        UsageError: if the folder is not such a one.
    """
    try:
        config = json.loads((folder / CONFIG).read_text())
    except (OSError, ValueError) as error:
        raise UsageError(f"{folder} has no {CONFIG} that can be read: {error}") from error
    if "architecture" in config:
        spec, options = config["architecture"].partition(".")[0], {"classes": config.get("num_classes", 1000)}
    elif "network" in config:
        spec, options = config["network"], config.get("options", {})
    else:
        raise UsageError(f"{folder / CONFIG} names no network")
    if network is None:
        if ":" in spec and not spec.startswith("timm:"):
            raise UsageError(f"the network of {folder} is made by {spec}; make it, and give it to read_folder")
        network = _timm(spec.partition(":")[2]) if ":" in spec else _named(spec, **options)
    adapted = config.get("adapted", {})
    for method, how in adapted.items():
        if method not in ADAPTERS:
            raise UsageError(f"{folder} was adapted by {method!r}, which this version doesn't know")
        network = ADAPTERS[method](network, how)
    load(network, folder / WEIGHTS)
    return Network(spec, network.eval(), options, adapted)
