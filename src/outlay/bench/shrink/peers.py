"""Quantizers of other projects on the same weights and calibration, each in a process of its own."""

from __future__ import annotations

import json
import math
import os
import resource
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gguf
from safetensors.torch import save_file

from outlay.bench.shrink import quantizers
from outlay.errors import FailureError, UsageError, nearest
from outlay.models.checkpoint import Checkpoint, read_json
from outlay.models.forms import form_of
from outlay.models.load import open_model
from outlay.shrink.source import Source

DEFAULTS: Mapping[str, Mapping[str, Any]] = {
    "llama.cpp": {"type": "Q3_K_S"},
    "ik_llama.cpp": {"type": "Q3_K_S"},
    "hqq": {"bits": 3, "group": 64},
    "quanto": {"bits": 2},
    "auto-round": {"bits": 3, "group": 64, "iters": 200, "length": 512},
    "llmcompressor": {"bits": 3, "group": 64},
}
"""The options of each peer; the values' types are those that are taken."""
PEERS = (
    "llama.cpp:type=Q3_K_M", "llama.cpp:type=Q3_K_S", "llama.cpp:type=Q2_K", "ik_llama.cpp:type=Q3_K_M",
    "ik_llama.cpp:type=Q3_K_S", "ik_llama.cpp:type=Q2_K", "hqq:bits=3", "hqq:bits=2",
    "quanto:bits=4", "quanto:bits=2", "auto-round:bits=3", "llmcompressor:bits=3",
)  # fmt: skip
FACTS = "peer.json"
LIMIT = 4 * 3600.0  # seconds
FLOAT_BITS = 16  # of what a peer leaves as it is


@dataclass(frozen=True)
class Peer:
    """A quantizer with its options."""

    name: str
    """Its project."""
    options: Mapping[str, Any]
    """All of its options."""
    label: str
    """As the table calls it."""

    @classmethod
    def of(cls, text: str) -> Peer:
        """Reads "name:option=value,...". Raises `UsageError` for what isn't known."""
        name, _, rest = text.partition(":")
        if name not in DEFAULTS:
            raise UsageError(f"there is no peer {name!r}{nearest(name, DEFAULTS)}; there are {', '.join(DEFAULTS)}")
        options = dict(DEFAULTS[name])
        for key, _, value in (each.partition("=") for each in rest.split(",") if each):
            if key not in options:
                raise UsageError(f"{name} has no option {key!r}; it has {', '.join(options)}")
            try:
                options[key] = type(options[key])(value)
            except ValueError:
                raise UsageError(f"{key} of {name} is a number, not {value!r}") from None
        return cls(name, options, text)


@dataclass(frozen=True)
class Made:
    """What a peer made of a model."""

    path: Path
    """A folder or file that loads."""
    facts: Mapping[str, Any]
    """`version`, `bits` of the matrices, `file_bits` of all, `cpu_seconds`."""


def write_floats(model: Path, folder: Path) -> None:
    """Writes a model into a folder in the hub's layout, its matrices in float32 exactly."""
    source = Source(open_model(model))
    places = [place for i in range(source.config.num_layers) for place in source.places(i)]
    tensors = {name: each.contiguous() for name, each in source.rest({place.module for place in places})}
    tensors |= {f"{place.module}.weight": source.matrix(place).contiguous() for place in places}
    folder.mkdir(parents=True, exist_ok=True)
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    source.write_about(folder, None)


def run_peer(
    peer: Peer, python: Path | None, model: Path, floats: Path, calibration: Sequence[Sequence[int]], out: Path
) -> Made:
    """Has a peer quantize a model, or takes what it made before.

    Args:
        peer: Which.
        python: The Python that has it; None: this one.
        model: The model.
        floats: The same by `write_floats`.
        calibration: Token ids.
        out: The folder to write; nothing unfinished has its name.

    Raises:
        FailureError: The peer is missing or failed; with its last words.
    """
    if not (out / FACTS).exists():
        part = out.with_name(f"{out.name}.part")
        shutil.rmtree(part, ignore_errors=True)
        part.mkdir(parents=True)
        job = {"peer": peer.name, "options": peer.options, "model": str(model.resolve()), "out": str(part.resolve()),
               "floats": str(floats.resolve()), "calibration": list(map(list, calibration))}  # fmt: skip
        facts = _run(job, python, part)
        (part / FACTS).write_text(json.dumps(facts, indent=1) + "\n")
        part.replace(out)
    facts = read_json(out / FACTS)
    file = next(out.glob("*.gguf"), None)
    return Made(file or out, {**facts, **_bits(file or out, facts)})


def _run(job: Mapping[str, Any], python: Path | None, part: Path) -> dict[str, Any]:
    """Runs the script, in a Python that sees nothing of ours; returns what it said, and the CPU seconds it took."""
    file = part / "job.json"
    file.write_text(json.dumps(job))
    command = [str(python or sys.executable), "-P", quantizers.__file__, str(file)]
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "TQDM_DISABLE": "1"}
    environment.pop("PYTHONPATH", None)
    try:
        done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=LIMIT, cwd=part)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise FailureError(f"{command[0]}: {error}") from error
    finally:
        file.unlink()
    if done.returncode:
        said = done.stderr.strip().splitlines()
        raise FailureError(said[-1].strip() if said else f"ended with status {done.returncode}")
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    found: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    seconds = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return {**found, "cpu_seconds": round(seconds, 1)}


def _bits(path: Path, facts: Mapping[str, Any]) -> dict[str, float]:
    """Returns the bits a weight of the matrices of all layers, and of the whole file, floats in 16 bits."""
    if path.suffix == ".gguf":
        try:
            tensors = gguf.GGUFReader(path).tensors
        except ValueError as error:  # ik_llama.cpp has types of its own
            raise FailureError(f"its file can't be read: {error}") from error
        of_layers = [each for each in tensors if each.name.startswith("blk.") and len(each.shape) == 2]
        bits, file_bits = (
            8 * sum(int(each.n_bytes) for each in some) / sum(int(each.n_elements) for each in some)
            for some in (of_layers, tensors)
        )
        return {"bits": bits, "file_bits": file_bits}
    form = form_of(read_json(path / "config.json"))
    store = Checkpoint(path, form)
    total, weights, packed = facts.get("bytes", 0), facts.get("weights", 0), set(store.modules())
    if form is not None:  # the files tell
        matrices = [form.matrix(module, store) for module in packed]
        total, weights = sum(each.nbytes for each in matrices), sum(math.prod(each.shape) for each in matrices)
    others = sum(store.tensor(name).numel() for name in store.names if name.rpartition(".")[0] not in packed)
    others -= weights if form is None else 0
    return {"bits": 8 * total / weights, "file_bits": (8 * total + FLOAT_BITS * others) / (weights + others)}
