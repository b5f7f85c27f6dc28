"""A model whose matrices are read one by one and written under the hub's names, whatever file they come from."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from outlay.errors import UsageError
from outlay.models import names
from outlay.models.checkpoint import INDEX, Checkpoint
from outlay.models.load import Opened
from outlay.models.stored import StoredMatrix

ATTENTION = ("q", "k", "v", "qkv", "out")
MLP = ("gate", "up", "gate_up", "down", "expert_gate", "expert_up", "expert_down")
_TRANSPOSED = ("qkv", "out", "up", "down")  # of GPT-2, as [in, out]


@dataclass(frozen=True)
class Place:
    """A matrix of a layer."""

    layer: int
    """The layer's index."""
    part: str
    """What it is, as `names` calls it: "q", "down"."""
    expert: int | None
    """Its expert, if it is one's."""
    module: str
    """Its module in the hub's layout."""
    reads: str
    """Which of the layer's inputs it reads: "qkv", "out", "gate_up", "down", of an expert with its number before."""


class Source:
    """The matrices of a model, and all else that its folder holds."""

    def __init__(self, opened: Opened) -> None:
        """Takes a model that was opened.

        Raises:
            UsageError: Its family has no layout on the hub.
        """
        self.opened, self.config, self.builder = opened, opened.config, opened.builder
        if self.config.names not in names.HF:
            raise UsageError(f"{self.config.architecture} has no layout on the hub to be written in")
        if self.config.ista is not None:
            raise UsageError("outlay shrink needs layers with an MLP, which a CRATE's are not")
        self._hub = names.HF[self.config.names]

    def places(self, i: int) -> list[Place]:
        """Returns the matrices of a layer in the order of its computation."""
        own, config = self.builder.names, self.config
        attention = ["qkv"] if "qkv" in own else ["q", "k", "v"]
        found = [self._place(i, part, None, "qkv") for part in attention] + [self._place(i, "out", None, "out")]
        if config.experts is not None and i in config.experts.layers:
            for expert in range(config.experts.count):
                for part in ("expert_gate", "expert_up", "expert_down"):
                    reads = "down" if part == "expert_down" else "gate_up"
                    found.append(self._place(i, part, expert, f"{expert}.{reads}"))
            return found
        inner = ["up"] if not config.gated else ["gate_up"] if "gate_up" in own else ["gate", "up"]
        return [
            *found,
            *(self._place(i, part, None, "gate_up") for part in inner),
            self._place(i, "down", None, "down"),
        ]

    def _place(self, i: int, part: str, expert: int | None, reads: str) -> Place:
        return Place(i, part, expert, self._stored(self._hub[part].format(i=i, e=expert)), reads)

    def _stored(self, module: str) -> str:
        """Returns a module's name in the folder that is read, where it has one of its own."""
        store = self.builder.store
        if isinstance(store, Checkpoint) and (stored := store.stored_name(f"{module}.weight")) is not None:
            return stored.removesuffix(".weight")
        return module

    def matrix(self, place: Place) -> Tensor:
        """Returns a matrix, float32 [out, in], its rows in the hub's order."""
        found = self.builder.matrix(place.part, place.layer, place.expert)
        weight = found.dequantize() if isinstance(found, StoredMatrix) else found.float()
        return weight[order] if (order := self._order(place.part)) is not None else weight

    def release(self) -> None:
        """Gives up the memory of what was read of a folder, where nobody holds it any more."""
        if isinstance(self.builder.store, Checkpoint):
            self.builder.store.release()

    def norms(self, i: int) -> tuple[str, str]:
        """Returns the modules of the norms before attention and MLP of a layer."""
        attn, mlp = (self._stored(self._hub[part].format(i=i)) for part in ("attn_norm", "mlp_norm"))
        return attn, mlp

    def rest(self, shrunk: set[str]) -> Iterator[tuple[str, Tensor]]:
        """Yields all other tensors by name, as they are stored or, from a GGUF file, in float16 and float32.

        Args:
            shrunk: The modules whose matrices are stored otherwise.
        """
        store = self.builder.store
        if isinstance(store, Checkpoint):
            for name in store.names:
                if name.removesuffix(".weight") not in shrunk:
                    yield name, store.tensor(name)
            return
        for part, expert, i in self._parts():
            own = self.builder.names.get(part) or self.builder.names["experts_" + part.removeprefix("expert_")]
            for kind in ("weight", "bias"):
                if store.shape(f"{own.format(i=i, e=expert)}.{kind}") is None:
                    continue
                name = f"{self._hub[part].format(i=i, e=expert)}.{kind}"
                if name.removesuffix(".weight") not in shrunk:
                    yield name, self._converted(part, expert, i, kind)

    def _parts(self) -> Iterator[tuple[str, int | None, int]]:
        """Yields each part that both layouts name: the part, the expert, the layer."""
        own, experts = self.builder.names, self.config.experts
        for part, name in self._hub.items():
            if part not in own and "experts_" + part.removeprefix("expert_") not in own:
                continue
            for i in range(self.config.num_layers if "{i}" in name else 1):
                for expert in range(experts.count) if "{e}" in name and experts is not None else (None,):
                    yield part, expert, i

    def _converted(self, part: str, expert: int | None, i: int, kind: str) -> Tensor:
        """Returns a tensor of a GGUF file as the hub's layout has it."""
        builder = self.builder
        if kind == "bias" or part.endswith("norm"):
            tensor = builder.store.floats(f"{builder.names[part].format(i=i)}.{kind}").float()
            if kind == "weight" and self.config.norm_plus_one:
                tensor = tensor - 1
            return tensor[order] if kind == "bias" and (order := self._order(part)) is not None else tensor
        tensor = self.matrix(Place(i, part, expert, "", ""))
        if self.config.architecture == "gpt2" and part in _TRANSPOSED:
            tensor = tensor.T.contiguous()
        return tensor.half() if float(tensor.abs().amax()) < 60000 else tensor

    def _order(self, part: str) -> Tensor | None:
        """Returns the order of a part's rows, where its file has another than the hub."""
        order = self.builder.qkv_order()
        if order is None or part not in ("q", "k"):
            return None
        heads, kv = self.config.num_heads * self.config.head_dim, self.config.num_kv_heads * self.config.head_dim
        return order[:heads] if part == "q" else order[heads : heads + kv] - heads

    def write_about(self, folder: Path, quantization: dict[str, Any] | None) -> None:
        """Writes config.json with the form of the matrices (None: floats), and the tokenizer, into a folder."""
        raw = self.opened.raw if quantization is None else {**self.opened.raw, "quantization_config": quantization}
        (folder / "config.json").write_text(json.dumps(raw, indent=1) + "\n")
        path = self.opened.path
        if path.is_dir():
            for pattern in ("*.json", "*.jinja", "*.model", "merges.txt"):
                for file in path.glob(pattern):
                    if file.name not in ("config.json", INDEX):
                        shutil.copyfile(file, folder / file.name)
            return
        tokenizer = self.opened.tokenizer
        tokenizer.inner.save(str(folder / "tokenizer.json"), pretty=False)
        options: dict[str, Any] = {"tokenizer_class": "PreTrainedTokenizerFast"}
        if tokenizer.template is not None:
            options |= {"chat_template": tokenizer.template.source, **tokenizer.template.special_tokens}
        (folder / "tokenizer_config.json").write_text(json.dumps(options, indent=1) + "\n")
