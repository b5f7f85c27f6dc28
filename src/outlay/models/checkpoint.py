"""A folder in the hub's layout: its JSON files, and its safetensors read by memory map."""

from __future__ import annotations

import json
from hashlib import sha256
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from outlay.errors import UsageError
from outlay.models.forms.form import Form
from outlay.models.stored import StoredMatrix

INDEX = "model.safetensors.index.json"
_FLOATS = (torch.float32, torch.float16, torch.bfloat16, torch.float64)


def read_json(path: Path) -> dict[str, Any]:
    """Returns the object in a JSON file; {} if there is no such file."""
    if not path.exists():
        return {}
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, OSError) as error:
        raise UsageError(f"{path} is not valid JSON: {' '.join(str(error).split())}") from None
    if not isinstance(value, dict):
        raise UsageError(f"{path} is not valid: it should hold an object")
    return value


class Checkpoint:
    """The tensors of a folder's safetensors files, opened when they are asked for."""

    def __init__(self, folder: Path, form: Form | None = None) -> None:
        """Finds the tensors.

        Args:
            folder: The folder.
            form: What reads matrices that aren't stored as floats; None: all are.
        """
        self.folder, self.form = folder, form
        self._files: dict[Path, Any] = {}
        self._where = {name: path for path in self._paths() for name in sorted(self._open(path).keys())}

    @property
    def names(self) -> list[str]:
        """The names of all tensors, as they are stored."""
        return list(self._where)

    def stored_name(self, name: str) -> str | None:
        """Returns the name under which a tensor is stored, as wrappers and base models have others; None: nowhere."""
        where = self._find(name)
        return where[1] if where else None

    def shape(self, name: str) -> tuple[int, ...] | None:
        """Returns the shape of a tensor, or of a matrix that is stored in the folder's form; None if there is none."""
        where = self._find(name)
        if where is not None:
            return tuple(self._files[where[0]].get_slice(where[1]).get_shape())
        module = self._module_of(name)
        return None if module is None or self.form is None else self.form.shape(module, self)

    def stored(self, name: str) -> StoredMatrix | None:
        """Returns a matrix that is stored in the folder's form; None for one of floats."""
        module = self._module_of(name)
        return None if module is None or self.form is None else self.form.matrix(module, self)

    def floats(self, name: str) -> Tensor:
        """Returns a tensor in its stored dtype, as a view of the file if possible, or a stored matrix in float32."""
        if self._find(name) is None and (matrix := self.stored(name)) is not None:
            return matrix.dequantize()
        tensor = self.tensor(name)
        if tensor.dtype not in _FLOATS:
            raise UsageError(f"{name} is stored as {tensor.dtype}, a packing that outlay does not read")
        return tensor

    def tensor(self, name: str) -> Tensor:
        """Returns a tensor as it is stored."""
        where = self._find(name)
        assert where is not None
        try:
            tensor: Tensor = self._files[where[0]].get_tensor(where[1])
        except (SafetensorError, OSError, ValueError) as error:
            raise UsageError(f"{where[0]} cannot be read: {' '.join(str(error).split())}") from None
        return tensor

    def release(self) -> None:
        """Gives up the pages that were read, but for those of tensors that are still held: files are mapped anew."""
        for path in list(self._files):
            self._open(path)

    def modules(self) -> list[str]:
        """Returns the modules that are stored in the folder's form."""
        mark = "" if self.form is None else f".{self.form.mark}"
        return [name.removesuffix(mark) for name in self._where if mark and name.endswith(mark)]

    def _module_of(self, name: str) -> str | None:
        """Returns the module of a weight that is stored in the folder's form."""
        module = name.removesuffix(".weight")
        if self.form is None or module == name or self._find(f"{module}.{self.form.mark}") is None:
            return None
        return module

    def identity(self) -> bytes:
        """Returns bytes that identify these weights: digests of headers, sizes and samples of the values."""
        return b"".join(sampled(path) for path in sorted(self._files))

    def _find(self, name: str) -> tuple[Path, str] | None:
        # Base models are saved without the prefix ("model.", "transformer.") that they have inside a causal model.
        # Models that also read images hold a whole causal model as their "language_model", or its base, under this name
        # or that of the "text_model".
        base = name.partition(".")[2]
        inside = (f"language_model.{name}", f"model.language_model.{base}", f"model.text_model.{base}")
        for candidate in (name, base, *inside):
            if candidate in self._where:
                return self._where[candidate], candidate
        return None

    def _paths(self) -> list[Path]:
        if (self.folder / INDEX).exists():
            listed = read_json(self.folder / INDEX).get("weight_map", {}).values()
            paths = [self.folder / name for name in dict.fromkeys(listed)]
            missing = [path.name for path in paths if not path.exists()]
            if missing:
                raise UsageError(f"{self.folder} is incomplete: its index names {missing[0]}, which is not there")
            return paths
        paths = sorted(self.folder.glob("*.safetensors"))
        if not paths:
            other = next(iter([*self.folder.glob("*.bin"), *self.folder.glob("*.gguf")]), None)
            hint = f"; {other.name} is of another kind" if other else ""
            raise UsageError(f"{self.folder} holds no *.safetensors weights{hint}")
        single = self.folder / "model.safetensors"
        return [single] if single in paths else paths

    def _open(self, path: Path) -> Any:
        try:
            self._files[path] = safe_open(path, framework="pt", device="cpu")
        except (SafetensorError, OSError, ValueError) as error:
            why = " ".join(str(error).split())
            raise UsageError(f"{path} is truncated or not a safetensors file: {why}") from None
        return self._files[path]


def sampled(path: Path, blocks: int = 64, size: int = 4096) -> bytes:
    """Returns a digest of a file's size and of `blocks` samples of `size` bytes spread over it."""
    length = path.stat().st_size
    digest = sha256(str(length).encode())
    with path.open("rb") as file:
        digest.update(file.read(1 << 16))
        for block in range(blocks):
            file.seek(max(0, length - size) * block // max(1, blocks - 1))
            digest.update(file.read(size))
    return digest.digest()
