"""The folder that a run writes: a file for each layer, whole or not at all, under another name until all is there."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from outlay.errors import FailureError, UsageError
from outlay.models.checkpoint import INDEX, read_json

REPORT = "report.json"
_STATE = "unfinished.json"
_SHARD_BYTES = 1 << 30  # of a file of tensors that stay as they are, at most, one tensor at least


class ShrunkFolder:
    """A folder in the making; `finish` gives it its name."""

    def __init__(self, out: Path, settings: Mapping[str, Any], layers: int) -> None:
        """Opens what an earlier run with the same settings left, or begins.

        Args:
            out: The folder's name in the end.
            settings: All that decides what is written, as JSON has it.
            layers: Layers of the model.

        Raises:
            UsageError: Something else is there.
        """
        if out.exists() and (not out.is_dir() or any(out.iterdir())):
            raise UsageError(f"{out} is there already; choose another --out")
        self.out, self.part, self._layers = out, out.with_name(f"{out.name}.part"), layers
        state = json.loads(json.dumps(settings))
        if self.part.exists() and read_json(self.part / _STATE) not in ({}, state):
            raise UsageError(f"{self.part} is left of a run with other settings; remove it, or choose another --out")
        try:
            self.part.mkdir(parents=True, exist_ok=True)
            (self.part / _STATE).write_text(json.dumps(state))
        except OSError as error:
            raise FailureError(f"can't write {self.part}: {error.strerror}") from error

    def rows_of(self, layer: int) -> list[dict[str, Any]] | None:
        """Returns what was reported of a layer that is written already; None if it isn't."""
        if not self._path(layer).exists():
            return None
        rows: list[dict[str, Any]] = json.loads(self._about(layer).get("rows", "[]"))
        return rows

    def cpu_seconds(self) -> float:
        """Returns what the layers that are written already took of the processors."""
        written = [layer for layer in range(self._layers) if self._path(layer).exists()]
        return sum(float(self._about(layer).get("cpu_seconds", 0)) for layer in written)

    def _about(self, layer: int) -> dict[str, str]:
        """Returns what was noted beside a layer's tensors."""
        path = self._path(layer)
        try:
            with safe_open(path, framework="pt") as file:
                return file.metadata() or {}
        except (SafetensorError, OSError, ValueError) as error:
            raise UsageError(f"{path} can't be read; remove it, and it is written again: {error}") from error

    def tensors_of(self, layer: int) -> dict[str, Tensor]:
        """Returns the tensors of a layer that is written already."""
        with safe_open(self._path(layer), framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - no dict

    def names(self) -> set[str]:
        """Returns the names of all tensors of layers that are written already."""
        found: set[str] = set()
        for layer in range(self._layers):
            if self._path(layer).exists():
                with safe_open(self._path(layer), framework="pt") as file:
                    found |= set(file.keys())
        return found

    def write_layer(
        self, layer: int, tensors: Mapping[str, Tensor], rows: list[dict[str, Any]], cpu_seconds: float
    ) -> None:
        """Writes the matrices of a layer, what is reported of them, and what they took."""
        about = {"rows": json.dumps(rows), "cpu_seconds": f"{cpu_seconds:.2f}"}
        self._save(self._path(layer), tensors, about)

    def write_rest(self, tensors: Iterable[tuple[str, Tensor]]) -> int:
        """Writes all other tensors, in files of some size; returns how many numbers they hold."""
        held: dict[str, Tensor] = {}
        number, numbers = self._layers, 0
        for name, tensor in tensors:
            if held and sum(each.nbytes for each in held.values()) + tensor.nbytes > _SHARD_BYTES:
                self._save(self._path(number), held, {})
                held, number = {}, number + 1
            held[name] = tensor
            numbers += tensor.numel()
        if held:
            self._save(self._path(number), held, {})
        return numbers

    def write_index(self) -> int:
        """Writes the index of all tensors; returns their bytes."""
        where: dict[str, str] = {}
        total = 0
        for path in sorted(self.part.glob("model-*.safetensors")):
            with safe_open(path, framework="pt") as file:
                where |= dict.fromkeys(file.keys(), path.name)
                total += sum(_nbytes(file.get_slice(name)) for name in file.keys())  # noqa: SIM118 - no dict
        index = {"metadata": {"total_size": total}, "weight_map": where}
        self._write_json(INDEX, index)
        return total

    def publish(self, report: Mapping[str, Any]) -> None:
        """Writes the report and gives the folder its name."""
        self._write_json(REPORT, report)
        try:
            (self.part / _STATE).unlink()
            if self.out.exists():
                self.out.rmdir()
            os.replace(self.part, self.out)
        except OSError as error:
            raise FailureError(f"can't write {self.out}: {error.strerror}") from error

    def _write_json(self, name: str, value: Mapping[str, Any]) -> None:
        try:
            (self.part / name).write_text(json.dumps(value, indent=1) + "\n")
        except OSError as error:
            raise FailureError(f"can't write {self.part / name}: {error.strerror}") from error

    def _path(self, number: int) -> Path:
        return self.part / f"model-{number + 1:05d}.safetensors"

    def _save(self, path: Path, tensors: Mapping[str, Tensor], about: Mapping[str, str]) -> None:
        part = path.with_name(f".{path.name}.part")
        try:
            save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, part, {"format": "pt", **about})
            part.replace(path)
        except (OSError, SafetensorError) as error:
            raise FailureError(f"can't write {path}: {getattr(error, 'strerror', None) or error}") from error


_BYTES = {"F64": 8, "I64": 8, "F32": 4, "I32": 4, "U32": 4, "F16": 2, "BF16": 2, "I16": 2, "U16": 2}


def _nbytes(part: Any) -> int:
    """Returns the bytes of a tensor in a file, from its header."""
    return int(torch.Size(part.get_shape()).numel()) * _BYTES.get(part.get_dtype(), 1)
