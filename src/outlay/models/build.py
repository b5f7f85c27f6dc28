"""Builds a decoder from stored weights, tensor by tensor, so that no more than one layer is ever held twice."""

from __future__ import annotations

from collections.abc import Callable
from itertools import groupby
from typing import Protocol

import torch
from torch import Tensor

from outlay.errors import UsageError
from outlay.models.config import DecoderConfig
from outlay.models.decoder import Decoder, Layer
from outlay.models.embedding import Embedding
from outlay.models.experts import ExpertMlp
from outlay.models.linear import FLOATS, Linear, pack, stack
from outlay.models.mlp import Mlp
from outlay.models.names import Names
from outlay.models.norm import LayerNorm, Norm, RMSNorm
from outlay.models.quantized import FORMAT_OF_KIND, QuantizedWeight, fits, quantize, stack_rows

Progress = Callable[[str, int, int], None]


class Store(Protocol):
    """A file, or several, of weights: `Checkpoint` and `GgufFile`."""

    def shape(self, name: str) -> tuple[int, ...] | None:
        """Returns the shape of a tensor, or None if the store does not have it."""

    def is_quantized(self, name: str) -> bool:
        """Tells whether a tensor is stored in blocks of small integers."""

    def floats(self, name: str) -> Tensor:
        """Returns a tensor as floats, exactly."""

    def integers(self, name: str) -> QuantizedWeight:
        """Returns a quantized matrix as a `QuantizedWeight`."""


class Builder:
    """Builds one decoder."""

    def __init__(
        self,
        config: DecoderConfig,
        store: Store,
        names: Names,
        *,
        format: str,
        float_format: str,
        device: torch.device,
        interleaved: bool,
        transposed: bool,
        plus_one: bool,
        head: str | None = None,
    ) -> None:
        """Says what to build.

        Args:
            config: the decoder's shape.
            store: where its weights are.
            names: the store's names of its parts.
            format: how weights are held: one of `linear.FORMATS`, or "own" to hold each matrix as it is stored.
            float_format: how "own" holds matrices of floats.
            device: where the decoder runs.
            interleaved: whether the file has the rotated pairs of a head's dimensions side by side.
            transposed: whether the file has layers as [in, out].
            plus_one: whether RMS norms multiply by weight + 1.
            head: the layer that stands in place of the LM head, by its name in the store: a reward model's.
        """
        self.config, self.store, self.names, self.device = config, store, names, device
        self.format, self.float_format = format, float_format
        self.interleaved, self.transposed, self.plus_one = interleaved, transposed, plus_one
        self.head = head
        self.dtype = torch.float32 if device.type == "cpu" else FLOATS.get(format, torch.bfloat16)

    def build(self, progress: Progress | None = None) -> Decoder:
        """Returns the decoder, and reports every layer to `progress`."""
        config = self.config
        layers = []
        for index in range(config.num_layers):
            layers.append(self._layer(index))
            if progress is not None:
                progress("loading", index + 1, config.num_layers)
        embed, lm_head = self._embedding_and_lm_head()
        projected = config.embedding_size > 0
        return Decoder(
            config,
            layers,
            embed,
            lm_head,
            final_norm=self._norm("final_norm") if config.final_norm else None,
            positions=self._positions(),
            project_in=self._linear(["project_in"], config.hidden_size, config.embedding_size) if projected else None,
            project_out=self._linear(["project_out"], config.embedding_size, config.hidden_size) if projected else None,
            dtype=self.dtype,
            device=self.device,
        )

    def _layer(self, i: int) -> Layer:
        config = self.config
        heads = config.num_heads * config.head_dim
        width = heads + 2 * config.num_kv_heads * config.head_dim
        parts = ["qkv"] if "qkv" in self.names else ["q", "k", "v"]
        moe = config.experts is not None and i in config.experts.layers
        return Layer(
            attn_norm=self._norm("attn_norm", i) if config.pre_norm or config.sum_norms else None,
            qkv=self._linear(parts, width, config.hidden_size, i, bias=config.qkv_bias, order=self._qkv_order()),
            out=self._linear(["out"], config.hidden_size, heads, i, bias=config.out_bias),
            mlp_norm=self._norm("mlp_norm", i) if config.pre_norm or config.sum_norms else None,
            mlp=self._experts(i) if moe else self._mlp(i),
            q_norm=self._head_norm("q_norm", i, config.num_heads) if config.qk_norm else None,
            k_norm=self._head_norm("k_norm", i, config.num_kv_heads) if config.qk_norm else None,
            post_attn_norm=self._norm("post_attn_norm", i) if config.post_norms else None,
            post_mlp_norm=self._norm("post_mlp_norm", i) if config.post_norms else None,
        )

    def _mlp(self, i: int) -> Mlp:
        config = self.config
        inner, hidden, bias = config.intermediate_size, config.hidden_size, config.mlp_bias
        if not config.gated:
            gate_up = self._linear(["up"], inner, hidden, i, bias=bias)
        else:
            parts = ["gate_up"] if "gate_up" in self.names else ["gate", "up"]
            gate_up = self._linear(parts, 2 * inner, hidden, i, bias=bias)
        down = self._linear(["down"], hidden, inner, i, bias=bias)
        return Mlp(gate_up, down, config.activation, config.gated)

    def _experts(self, i: int) -> ExpertMlp:
        config, experts = self.config, self.config.experts
        assert experts is not None
        router = pack(self._floats("router", (experts.count, config.hidden_size), i), "float32", device=self.device)
        mlps = []
        for expert in range(experts.count):
            inner, hidden = experts.intermediate_size, config.hidden_size
            gate_up = self._linear(["expert_gate", "expert_up"], 2 * inner, hidden, i, expert=expert)
            down = self._linear(["expert_down"], hidden, inner, i, expert=expert)
            mlps.append(Mlp(gate_up, down, config.activation, True))
        return ExpertMlp(router, mlps, experts.per_token, experts.normalise)

    def _linear(
        self,
        parts: list[str],
        rows: int,
        columns: int,
        i: int = 0,
        *,
        bias: bool = False,
        order: Tensor | None = None,
        expert: int | None = None,
    ) -> Linear:
        """Packs `parts`, concatenated by rows, into one layer [rows, columns]; `order` rearranges its rows."""
        weights = [self._matrix(part, i, expert) for part in parts]
        found = (sum(weight.shape[0] for weight in weights), *{weight.shape[1] for weight in weights})
        if found != (rows, columns):
            name = self._name(parts[0], i, expert)
            raise UsageError(f"{' and '.join(parts)} of {name} have shape {list(found)}; expected {[rows, columns]}")
        biases = torch.cat([self._floats(part, None, i, "bias").float() for part in parts]) if bias else None

        if order is not None:
            sizes = [weight.shape[0] for weight in weights]
            starts = torch.tensor([0, *sizes[:-1]]).cumsum(0)
            chunks = zip(weights, order.split(sizes), starts, strict=True)
            weights = [_take(weight, chunk - start) for weight, chunk, start in chunks]
            biases = biases[order] if biases is not None else None
        return self._pack_parts(weights, biases)

    def _pack_parts(self, weights: list[Tensor | QuantizedWeight], bias: Tensor | None) -> Linear:
        """Packs weights, one below the other; neighbours that are held in one format become one part."""
        packed, rows = [], 0
        for format, run in groupby(weights, self._format_of):
            weight = _joined_rows(list(run))
            end = rows + weight.shape[0]
            packed.append(pack(weight, format, None if bias is None else bias[rows:end], device=self.device))
            rows = end
        return stack(packed)

    def _format_of(self, weight: Tensor | QuantizedWeight) -> str:
        if self.format != "own":
            return self.format
        return FORMAT_OF_KIND[weight.kind] if isinstance(weight, QuantizedWeight) else self.float_format

    def _matrix(
        self, part: str, i: int, expert: int | None = None, format: str | None = None
    ) -> Tensor | QuantizedWeight:
        """Returns a weight as it is stored if the format (None: the builder's) can hold that, else as floats."""
        format = format or self.format
        stacked = expert is not None and "experts_" + part.removeprefix("expert_") in self.names
        name = self._name("experts_" + part.removeprefix("expert_") if stacked else part, i, expert) + ".weight"
        shape = self.store.shape(name)
        if shape is None:
            raise UsageError(f"the model's files lack the tensor {name}")
        if len(shape) != (3 if stacked else 2):
            raise UsageError(f"tensor {name} has shape {list(shape)}, which is not a matrix's")
        if self.store.is_quantized(name) and format in ("own", "int4", "int8"):
            blocks = self.store.integers(name)
            if format in ("own", FORMAT_OF_KIND[blocks.kind]):
                return blocks.take(_span(expert, shape[1])) if stacked else blocks
        weight = self.store.floats(name)
        if stacked:
            return weight[expert]
        return weight.T if self.transposed and part in ("qkv", "out", "up", "down") else weight

    def _floats(self, part: str, shape: tuple[int, ...] | None, i: int = 0, kind: str = "weight") -> Tensor:
        name = f"{self._name(part, i)}.{kind}"
        found = self.store.shape(name)
        if found is None:
            raise UsageError(f"the model's files lack the tensor {name}")
        if shape is not None and found != shape:
            raise UsageError(f"tensor {name} has shape {list(found)}; expected {list(shape)}")
        return self.store.floats(name)

    def _name(self, part: str, i: int, expert: int | None = None) -> str:
        if part not in self.names:
            raise UsageError(f"this kind of file has no place for the part {part!r} of {self.config.architecture}")
        return self.names[part].format(i=i, e=expert)

    def _norm(self, part: str, i: int = 0, size: int | None = None) -> Norm:
        shape = (size or self.config.hidden_size,)
        weight = self._floats(part, shape, i).float()
        if self.config.layer_norm:
            bias = self._floats(part, shape, i, "bias").float()
            return LayerNorm(weight.to(self.device), bias.to(self.device), self.config.norm_eps)
        if self.plus_one:
            weight = weight + 1
        return RMSNorm(weight.to(self.device), self.config.norm_eps)

    def _head_norm(self, part: str, i: int, heads: int) -> RMSNorm:
        norm = self._norm(part, i, size=self.config.head_dim * (heads if self.config.wide_qk_norms else 1))
        assert isinstance(norm, RMSNorm)
        return norm

    def _qkv_order(self) -> Tensor | None:
        """Returns the order of rows that splits a head's rotated pairs into halves; None if the file has them so."""
        if not self.interleaved:
            return None
        config = self.config
        order = torch.arange(config.head_dim).view(-1, 2).T.flatten()
        starts = torch.arange(config.num_heads + config.num_kv_heads) * config.head_dim
        rotated = (starts[:, None] + order).flatten()
        values = torch.arange(config.num_kv_heads * config.head_dim) + rotated.numel()
        return torch.cat((rotated, values))

    def _positions(self) -> Tensor | None:
        if "positions" not in self.names or self.config.rope is not None:
            return None
        config = self.config
        shape = (config.max_positions + config.position_offset, config.hidden_size)
        return self._floats("positions", shape).to(self.device, self.dtype)

    def _embedding_and_lm_head(self) -> tuple[Embedding, Linear]:
        """Returns input embeddings and LM head, which may share one matrix. An integer format holds both as int8."""
        config = self.config
        table = self._vocabulary("embed")
        embed = Embedding(table.to(self.device), self.dtype, config.embedding_scale)
        if self.head is not None:
            return embed, self._reward_head(self.head)
        weight = table if config.tied_lm_head else self._vocabulary("lm_head")
        form = self._format_of(weight) if self.format == "own" else "int8" if self.format == "int4" else self.format
        return embed, pack(weight, form, device=self.device, exact_output=True)

    def _reward_head(self, name: str) -> Linear:
        """Packs the layer of a reward head, in float32, since a few numbers rest on it."""
        weight, bias = self.store.floats(f"{name}.weight"), None
        if weight.shape[1] != self.config.hidden_size:
            raise UsageError(
                f"tensor {name}.weight has shape {list(weight.shape)}; expected {self.config.hidden_size} columns"
            )
        if self.store.shape(f"{name}.bias") is not None:
            bias = self.store.floats(f"{name}.bias").float()
        return pack(weight.float(), "float32", bias, device=self.device, exact_output=True)

    def _vocabulary(self, part: str) -> Tensor | QuantizedWeight:
        config = self.config
        weight = self._matrix(part, 0, format="int8" if self.format == "int4" else None)
        shape = (config.vocab_size, config.embedding_size or config.hidden_size)
        if tuple(weight.shape) != shape:
            raise UsageError(f"tensor {self._name(part, 0)} has shape {list(weight.shape)}; expected {list(shape)}")
        if isinstance(weight, QuantizedWeight):
            return weight
        if self.format in ("int4", "int8"):
            return quantize(weight, "q8") if fits(weight) else weight
        return weight.to(FLOATS[self.float_format if self.format == "own" else self.format])


def _joined_rows(weights: list[Tensor | QuantizedWeight]) -> Tensor | QuantizedWeight:
    if len(weights) == 1:
        return weights[0]
    quantized = [weight for weight in weights if isinstance(weight, QuantizedWeight)]
    if len(quantized) == len(weights) and len({weight.kind for weight in quantized}) == 1:
        return stack_rows(quantized)
    return torch.cat([w.dequantize() if isinstance(w, QuantizedWeight) else w for w in weights])


def _take(weight: Tensor | QuantizedWeight, index: Tensor) -> Tensor | QuantizedWeight:
    return weight.take(index) if isinstance(weight, QuantizedWeight) else weight[index]


def _span(expert: int | None, rows: int) -> Tensor:
    return torch.arange(rows) + (expert or 0) * rows
