"""Builds a decoder from stored weights, tensor by tensor, so that no more than one layer is ever held twice."""

from __future__ import annotations

from collections.abc import Callable
from hashlib import sha256
from itertools import groupby
from typing import Protocol

import torch
from torch import Tensor

from outlay.errors import UsageError
from outlay.models.config import DecoderConfig, Ista
from outlay.models.decoder import Cross, Decoder, Layer, by_distance
from outlay.models.embedding import Embedding
from outlay.models.encoder import Encoder
from outlay.models.experts import ExpertMlp, GroupedChoice
from outlay.models.linear import FLOATS, Linear, pack, stack
from outlay.models.mlp import Mlp, Sparsification
from outlay.models.names import Names
from outlay.models.norm import LayerNorm, Norm, RMSNorm
from outlay.models.quantized import QuantizedWeight, fits, quantize, stack_rows
from outlay.models.speech import Stem
from outlay.models.stored import StoredMatrix

Progress = Callable[[str, int, int], None]
OUTPUTS = ("out", "cross_out")  # parts whose inputs are the heads
KEYS = ("k", "cross_k")
HEADS = ("q", "k", "v", "cross_q", "cross_k", "cross_v", *OUTPUTS)
SAMPLED = 4096  # numbers of a tensor, at least, by which it is identified


class Store(Protocol):
    """A file, or several, of weights: `Checkpoint` and `GgufFile`."""

    def shape(self, name: str) -> tuple[int, ...] | None:
        """Returns the shape of a tensor, or None if the store does not have it."""

    def floats(self, name: str) -> Tensor:
        """Returns a tensor as floats, exactly."""

    def stored(self, name: str) -> StoredMatrix | None:
        """Returns a tensor that is not stored as floats in its form; all dimensions but the last become rows."""


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
        narrow_vocabulary: bool = False,
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
            narrow_vocabulary: whether "own" holds input embeddings and LM head in 8 bits where they are floats.
        """
        self.config, self.store, self.names, self.device = config, store, names, device
        self.format, self.float_format = format, float_format
        self.interleaved, self.transposed, self.plus_one = interleaved, transposed, plus_one
        self.head, self.narrow_vocabulary = head, narrow_vocabulary
        self._digest = sha256()  # of samples of the floats that were read
        self.dtype = torch.float32 if device.type == "cpu" else FLOATS.get(format, torch.bfloat16)

    def build(self, progress: Progress | None = None) -> Decoder:
        """Returns the decoder, and reports every layer to `progress`."""
        config = self.config
        layers = self._layers(progress)
        embed, lm_head = self._embedding_and_lm_head()
        projected = config.embedding_size > 0
        return Decoder(
            config,
            layers,
            embed,
            lm_head,
            final_norm=self._norm("final_norm") if config.final_norm else None,
            positions=self.positions(),
            embed_norm=self._norm("embed_norm") if config.embedding_norm else None,
            relative=self._relative(),
            project_in=self.project_in(),
            project_out=self._linear(["project_out"], config.embedding_size, config.hidden_size) if projected else None,
            dtype=self.dtype,
            device=self.device,
        )

    def build_encoder(
        self,
        embed: Embedding | None = None,
        progress: Progress | None = None,
        stem: Callable[[Callable[[str], Tensor]], Stem] | None = None,
    ) -> Encoder:
        """Returns an encoder, and reports every layer to `progress`.

        Args:
            embed: the decoder's input embeddings, where the encoder shares them.
            progress: told of layers.
            stem: what makes the first layer's input of sound; made of the tensors that it asks for by name.
        """
        config = self.config
        layers = self._layers(progress)
        return Encoder(
            config,
            layers,
            embed if embed is not None else self._embedding(self._vocabulary("embed")),
            final_norm=self._norm("final_norm") if config.final_norm else None,
            positions=self.positions(),
            embed_norm=self._norm("embed_norm") if config.embedding_norm else None,
            relative=self._relative(),
            stem=None if stem is None else stem(self._tensor),
            fingerprint=f"{self._digest.hexdigest()} {config} {self.format} {self.device}",
            dtype=self.dtype,
            device=self.device,
        )

    def _tensor(self, name: str) -> Tensor:
        """Returns a tensor by its name in the store, in float32 on the device."""
        if self.store.shape(name) is None:
            raise UsageError(f"the model's files lack the tensor {name}")
        return self._read(name).float().to(self.device)

    def _layers(self, progress: Progress | None) -> list[Layer]:
        layers = []
        for index in range(self.config.num_layers):
            layers.append(self.layer(index))
            if progress is not None:
                progress("loading", index + 1, self.config.num_layers)
        return layers

    def project_in(self) -> Linear | None:
        """Returns what makes hidden states of embeddings of another size; None where they have the same."""
        config = self.config
        if not config.embedding_size:
            return None
        return self._linear(["project_in"], config.hidden_size, config.embedding_size)

    def layer(self, i: int) -> Layer:
        """Returns one layer of the decoder."""
        config = self.config
        heads = config.num_heads * config.head_dim
        width = heads if config.shared_qkv else heads + 2 * config.num_kv_heads * config.head_dim
        parts = ["qkv"] if "qkv" in self.names else ["q", "k", "v"]
        return Layer(
            attn_norm=self._norm("attn_norm", i) if config.pre_norm or config.sum_norms else None,
            qkv=self._linear(parts, width, config.hidden_size, i, bias=config.qkv_bias, order=self.qkv_order()),
            out=self._linear(["out"], config.hidden_size, heads, i, bias=config.out_bias),
            mlp_norm=self._norm("mlp_norm", i) if config.pre_norm or config.sum_norms else None,
            mlp=self._second_part(i),
            q_norm=self._head_norm("q_norm", i, config.num_heads) if config.qk_norm else None,
            k_norm=self._head_norm("k_norm", i, config.num_kv_heads) if config.qk_norm else None,
            post_attn_norm=self._norm("post_attn_norm", i) if config.post_norms else None,
            post_mlp_norm=self._norm("post_mlp_norm", i) if config.post_norms else None,
            cross=self._cross(i) if config.cross_size else None,
        )

    def _cross(self, i: int) -> Cross:
        config = self.config
        heads, bias = config.num_heads * config.head_dim, config.qkv_bias
        kv = 2 * config.num_kv_heads * config.head_dim
        return Cross(
            norm=self._norm("cross_norm", i) if config.pre_norm or config.sum_norms else None,
            q=self._linear(["cross_q"], heads, config.hidden_size, i, bias=bias),
            kv=self._linear(["cross_k", "cross_v"], kv, config.cross_size, i, bias=bias),
            out=self._linear(["cross_out"], config.hidden_size, heads, i, bias=config.out_bias),
            post_norm=self._norm("post_cross_norm", i) if config.post_norms else None,
        )

    def _second_part(self, i: int) -> Mlp | ExpertMlp | Sparsification:
        experts, ista = self.config.experts, self.config.ista
        if experts is not None and i in experts.layers:
            return self._experts(i)
        return self._mlp(i) if ista is None else self._sparsification(i, ista)

    def _mlp(self, i: int) -> Mlp:
        config = self.config
        inner, hidden, bias = config.intermediate_size, config.hidden_size, config.mlp_bias
        if not config.gated:
            gate_up = self._linear(["up"], inner, hidden, i, bias=bias)
        else:
            parts = ["gate_up"] if "gate_up" in self.names else ["gate", "up"]
            order = torch.arange(2 * inner).roll(inner) if config.up_before_gate else None
            gate_up = self._linear(parts, 2 * inner, hidden, i, bias=bias, order=order)
        down = self._linear(["down"], hidden, inner, i, bias=bias)
        return Mlp(gate_up, down, config.activation, config.gated)

    def _sparsification(self, i: int, ista: Ista) -> Sparsification:
        """x + eta D^T (x - D x) - eta lam is x + W x + b with W = eta (D^T - D^T D): one product in place of two."""
        size = self.config.hidden_size
        dictionary = self._floats("dictionary", (size, size), i).double()
        weight = (ista.eta * (dictionary.T - dictionary.T @ dictionary)).float()
        threshold = torch.full((size,), -ista.eta * ista.lam)
        return Sparsification(pack(weight, self._format_of(weight), threshold, device=self.device))

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
        grouped = None
        if experts.groups is not None:
            bias = self._floats("router", (experts.count,), i, "expert_bias").float().to(self.device)
            grouped = GroupedChoice(bias, experts.groups.count, experts.groups.per_token, experts.groups.scale)
        shared = self._shared(i, experts.shared_size) if experts.shared_size else None
        return ExpertMlp(router, mlps, experts.per_token, experts.normalise, grouped, shared)

    def _shared(self, i: int, inner: int) -> Mlp:
        """Returns the MLP beside a layer's experts."""
        hidden = self.config.hidden_size
        gate_up = self._linear(["shared_gate", "shared_up"], 2 * inner, hidden, i)
        return Mlp(gate_up, self._linear(["shared_down"], hidden, inner, i), self.config.activation, True)

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
        weights = [self._arranged(part, self.matrix(part, i, expert)) for part in parts]
        found = (sum(weight.shape[0] for weight in weights), *{weight.shape[1] for weight in weights})
        if found != (rows, columns):
            name = self._name(parts[0], i, expert)
            raise UsageError(f"{' and '.join(parts)} of {name} have shape {list(found)}; expected {[rows, columns]}")
        biases = None
        if bias:
            biases = torch.cat(
                [self._bias(part, i, weight.shape[0]) for part, weight in zip(parts, weights, strict=True)]
            )
        if order is not None:
            sizes = [weight.shape[0] for weight in weights]
            starts = torch.tensor([0, *sizes[:-1]]).cumsum(0)
            chunks = zip(weights, order.split(sizes), starts, strict=True)
            weights = [_take(weight, chunk - start) for weight, chunk, start in chunks]
            biases = biases[order] if biases is not None else None
        return self._pack_parts(weights, biases)

    def _bias(self, part: str, i: int, rows: int) -> Tensor:
        if part in KEYS and not self.config.key_bias:
            return torch.zeros(rows)
        bias = self._floats(part, None, i, "bias").float()
        arranged = bias if part in OUTPUTS else self._arranged(part, bias)
        assert isinstance(arranged, Tensor), "a bias is floats"
        return arranged

    def _arranged(self, part: str, weight: Tensor | StoredMatrix) -> Tensor | StoredMatrix:
        """Returns a weight or a bias with its heads as the decoder has them, if the file has them otherwise."""
        order = self._head_order(part)
        if order is None:
            return weight
        assert isinstance(weight, Tensor), "heads are rearranged in files of floats"
        rows = weight.T if part in OUTPUTS else weight
        if len(rows) != int(order.max()) + 1:
            raise UsageError(f"{part} of {self._name(part, 0)} has {len(rows)} numbers in its heads; "
                             f"expected {int(order.max()) + 1}")  # fmt: skip
        found = rows[order.clamp(min=0)]
        found[order < 0] = 0
        return (found.T if part in OUTPUTS else found).contiguous()

    def _head_order(self, part: str) -> Tensor | None:
        """Returns where the dimensions of a part's heads lie in the file, -1 for zeros; None if they lie as here."""
        config = self.config
        size = config.stored_head_dim or config.head_dim
        if part not in HEADS or not (config.tiled_heads or config.stored_pairs or size != config.head_dim):
            return None
        dims = torch.full((config.head_dim,), -1)
        dims[:size] = torch.arange(size)
        if config.stored_pairs and part in ("q", "k") and config.rope is not None:
            rotated = config.rope.dim
            dims[:rotated] = torch.arange(rotated).view(-1, 2).T.flatten()
        heads = torch.arange(config.num_kv_heads if part.endswith(("k", "v")) else config.num_heads)
        if config.tiled_heads and len(heads) == config.num_heads:
            heads = heads.view(-1, config.num_kv_heads).T.flatten()
        return torch.where(dims < 0, -1, heads[:, None] * size + dims).flatten()

    def _pack_parts(self, weights: list[Tensor | StoredMatrix], bias: Tensor | None) -> Linear:
        """Packs weights, one below the other; neighbours that are held in one format become one part."""
        packed, rows = [], 0
        for format, run in groupby(weights, self._format_of):
            for weight in _joined_rows(list(run)):
                end = rows + weight.shape[0]
                packed.append(pack(weight, format, None if bias is None else bias[rows:end], device=self.device))
                rows = end
        return stack(packed)

    def _format_of(self, weight: Tensor | StoredMatrix) -> str:
        if self.format != "own":
            return self.format
        return weight.format if isinstance(weight, StoredMatrix) else self.float_format

    def matrix(self, part: str, i: int, expert: int | None = None, format: str | None = None) -> Tensor | StoredMatrix:
        """Returns a weight as it is stored if the format (None: the builder's) can hold that, else as floats."""
        format = format or self.format
        stacked = expert is not None and "experts_" + part.removeprefix("expert_") in self.names
        name = self._name("experts_" + part.removeprefix("expert_") if stacked else part, i, expert) + ".weight"
        shape = self.store.shape(name)
        if shape is None:
            raise UsageError(f"the model's files lack the tensor {name}")
        if len(shape) != (3 if stacked else 2):
            raise UsageError(f"tensor {name} has shape {list(shape)}, which is not a matrix's")
        if format in ("own", "int4", "int8"):
            matrix = self.store.stored(name)
            if matrix is not None and format in ("own", matrix.format):
                return matrix.take(_span(expert, shape[1])) if stacked else matrix
        weight = self._read(name)
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
        return self._read(name)

    def _read(self, name: str) -> Tensor:
        tensor = self.store.floats(name)
        sample = tensor.flatten()[:: max(1, tensor.numel() // SAMPLED)]
        self._digest.update(f"{name} {tuple(tensor.shape)} ".encode() + sample.float().numpy().tobytes())
        return tensor

    def _name(self, part: str, i: int, expert: int | None = None) -> str:
        if part not in self.names:
            raise UsageError(f"this kind of file has no place for the part {part!r} of {self.config.architecture}")
        return self.names[part].format(i=i, e=expert)

    def _norm(self, part: str, i: int = 0, size: int | None = None) -> Norm:
        shape = (size or self.config.hidden_size,)
        weight = self._floats(part, shape, i).float()
        if self.config.layer_norm:
            bias = self._floats(part, shape, i, "bias").float() if self.config.norm_bias else torch.zeros(shape)
            return LayerNorm(weight.to(self.device), bias.to(self.device), self.config.norm_eps)
        if self.plus_one:
            weight = weight + 1
        return RMSNorm(weight.to(self.device), self.config.norm_eps)

    def _head_norm(self, part: str, i: int, heads: int) -> RMSNorm:
        norm = self._norm(part, i, size=self.config.head_dim * (heads if self.config.wide_qk_norms else 1))
        assert isinstance(norm, RMSNorm)
        return norm

    def qkv_order(self) -> Tensor | None:
        """Returns the order of rows that splits a head's rotated pairs into halves; None if the file has them so."""
        if not self.interleaved:
            return None
        config = self.config
        order = torch.arange(config.head_dim).view(-1, 2).T.flatten()
        starts = torch.arange(config.num_heads + config.num_kv_heads) * config.head_dim
        rotated = (starts[:, None] + order).flatten()
        values = torch.arange(config.num_kv_heads * config.head_dim) + rotated.numel()
        return torch.cat((rotated, values))

    def positions(self) -> Tensor | None:
        """Returns the table of learned positions, [positions, hidden_size]; None if there is none."""
        if "positions" not in self.names or self.config.rope is not None:
            return None
        config = self.config
        shape = (config.max_positions + config.position_offset, config.hidden_size)
        if config.fixed_positions and self.store.shape(f"{self._name('positions', 0)}.weight") is None:
            return (sinusoids(*shape) * config.position_scale).to(self.device, self.dtype)
        return self._floats("positions", shape).to(self.device, self.dtype)

    def _relative(self) -> Tensor | None:
        """Returns the attention's bias for each distance, if it has any: see `by_distance`."""
        form = self.config.relative
        if form is None:
            return None
        return by_distance(self._floats("relative", (form.buckets, self.config.num_heads)), form).to(self.device)

    def embedding(self) -> Embedding:
        """Returns the input embeddings."""
        return self._embedding(self._vocabulary("embed"))

    def _embedding(self, table: Tensor | QuantizedWeight) -> Embedding:
        return Embedding(table.to(self.device), self.dtype, self.config.embedding_scale)

    def _embedding_and_lm_head(self) -> tuple[Embedding, Linear]:
        """Returns input embeddings and LM head, which may share one matrix. An integer format holds both as int8."""
        config = self.config
        embed = self.embedding()
        table = embed.table
        if self.head is not None:
            return embed, self._reward_head(self.head)
        weight = table if config.tied_lm_head else self._vocabulary("lm_head")
        form = self._format_of(weight) if self.format == "own" else "int8" if self.format == "int4" else self.format
        return embed, pack(weight, form, self._logit_bias(), device=self.device, exact_output=True)

    def _logit_bias(self) -> Tensor | None:
        """Returns what is added to the logits, [vocab_size], if anything is."""
        name = self._name("logit_bias", 0) if self.config.logit_bias else None
        if name is None or self.store.shape(name) is None:
            return None
        bias = self.store.floats(name).float().flatten()
        if len(bias) != self.config.vocab_size:
            raise UsageError(f"tensor {name} has {len(bias)} numbers; expected {self.config.vocab_size}")
        return bias if bool(bias.any()) else None

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
        weight = self.matrix(part, 0, format="int8" if self.format == "int4" else None)
        shape = (config.vocab_size, config.embedding_size or config.hidden_size)
        if tuple(weight.shape) != shape:
            raise UsageError(f"tensor {self._name(part, 0)} has shape {list(weight.shape)}; expected {list(shape)}")
        if isinstance(weight, StoredMatrix):
            return weight.plain()
        if self.format in ("int4", "int8") or (self.format == "own" and self.narrow_vocabulary and fits(weight)):
            return quantize(weight, "q8") if fits(weight) else weight
        return weight.to(FLOATS[self.float_format if self.format == "own" else self.format])


def sinusoids(positions: int, size: int) -> Tensor:
    """Returns the positions of Vaswani et al. 2017, sines in the first half and cosines in the second, [n, size]."""
    frequencies = 10000.0 ** (-torch.arange(0, size, 2, dtype=torch.float64) / size)
    angles = torch.arange(positions, dtype=torch.float64)[:, None] * frequencies
    return torch.cat((angles.sin(), angles.cos()), dim=1)[:, :size].float()


def _joined_rows(weights: list[Tensor | StoredMatrix]) -> list[Tensor | StoredMatrix]:
    """Joins matrices of one format, one below the other, where their forms can be joined."""
    if len(weights) == 1:
        return weights
    plain = [weight for weight in weights if isinstance(weight, QuantizedWeight)]
    if len(plain) == len(weights) and len({weight.kind for weight in plain}) == 1:
        return [stack_rows(plain)]
    if any(isinstance(weight, StoredMatrix) and not isinstance(weight, QuantizedWeight) for weight in weights):
        return weights
    return [torch.cat([w.dequantize() if isinstance(w, StoredMatrix) else w for w in weights])]


def _take(weight: Tensor | StoredMatrix, index: Tensor) -> Tensor | StoredMatrix:
    return weight.take(index) if isinstance(weight, StoredMatrix) else weight[index]


def _span(expert: int | None, rows: int) -> Tensor:
    return torch.arange(rows) + (expert or 0) * rows
