"""A draft head as a model: a few decoder layers over a target's features (EAGLE, Li et al. 2024, section 4.1).

It reads, for each token, the target's embedding of it beside the feature of the token before: what the target's head
read there. Both are fused to one vector, which goes through the layers; the rows of the target's own head for the
tokens that are drafted make logits of what comes out. At prompt tokens of its own behind the newest token (PPD, Chen et
al. 2024) it guesses several tokens ahead in one pass. A token outside of these is never drafted. That costs acceptance
and nothing else: verification asks only that a drafted token was drawn from the law that it is verified with, and the
law of a head is 0 for the tokens that it leaves out.
"""

from __future__ import annotations

from dataclasses import replace
from hashlib import sha256
from pathlib import Path

import torch
from torch import Tensor

from outlay.errors import UsageError
from outlay.models import fitted
from outlay.models.config import DecoderConfig
from outlay.models.decoder import Decoder, Given, Layer, stacked
from outlay.models.embedding import Embedding
from outlay.models.linear import FloatLinear, Linear, NativeLinear, native_kernels, pack
from outlay.models.load import Model
from outlay.models.mlp import Mlp
from outlay.models.norm import RMSNorm
from outlay.models.quantized import QuantizedWeight

KIND = "head"
AHEAD = 3  # prompt tokens of a head


class HeadDecoder(Decoder):
    """A decoder whose inputs are fused from features and embeddings."""

    reads_features = True

    def __init__(
        self,
        config: DecoderConfig,
        layers: list[Layer],
        embed: Embedding,
        head: Linear,
        fuse: Linear,
        *,
        final_norm: RMSNorm,
        prompts: Tensor,
        device: torch.device,
    ) -> None:
        """`prompts` [ahead, hidden_size]: the vectors of its prompt tokens, float32."""
        self.fuse: Linear = fuse
        self.prompts = tuple(prompts)
        super().__init__(config, layers, embed, head, final_norm=final_norm, dtype=embed.dtype, device=device)
        self._fixed_bytes += fuse.nbytes
        self._row_multiplies += fuse.in_features * fuse.out_features

    def inputs(self, tokens: Tensor, positions: Tensor, given: Given | None = None) -> Tensor:
        """As `Decoder.inputs`. `given` are the features before the tokens, zeros where there are none; a vector without
        a token is a prompt token's, and stands as it is.
        """
        embeddings = self.embed(tokens)
        if given is None:
            return self.fuse(torch.cat([torch.zeros_like(embeddings), embeddings], dim=-1))
        rows = torch.tensor(given.rows, device=embeddings.device)
        before = torch.zeros_like(embeddings).index_put_((rows,), stacked(given.vectors, embeddings))
        without = [row for row, is_alone in zip(given.rows, given.alone, strict=True) if is_alone]
        bare = torch.tensor(without, dtype=torch.int64, device=rows.device)
        fused = self.fuse(torch.cat([before, embeddings], dim=-1))
        return fused.index_put((bare,), before[bare])


def head_config(config: DecoderConfig, layers: int, vocabulary: int) -> DecoderConfig:
    """Returns the config of a head for a model: layers of the model's shape, over tokens of its own."""
    return replace(
        config,
        architecture="head",
        vocab_size=vocabulary,
        num_layers=layers,
        windows=(None,) * layers,
        attention_softcap=None,
        logit_softcap=None,
        layer_norm=False,
        norm_plus_one=False,
        pre_norm=True,
        final_norm=True,
        post_norms=False,
        qk_norm=False,
        activation="silu",
        gated=True,
        qkv_bias=False,
        out_bias=False,
        mlp_bias=False,
        tied_head=False,
        experts=None,
    )


def head_rows(model: Model, tokens: Tensor) -> Tensor:
    """Returns the rows of a model's head for some tokens, float32 [tokens, hidden_size]."""
    table = model.decoder.embed.table
    head = model.decoder.head
    if isinstance(head, NativeLinear):
        return head.packed.rows(tokens)
    if isinstance(head, FloatLinear):
        return head.weight[tokens].float()
    if model.decoder.config.tied_head:
        return table.rows(tokens) if isinstance(table, QuantizedWeight) else table[tokens].float()
    raise UsageError(f"the head of {model.name} is held as {head.format}, which no draft head can be cut from")


def load_head(path: Path, target: Model) -> Model:
    """Returns the draft head in a file. Raises `UsageError` for what is none, and for another model's."""
    tensors, about = fitted.read(path, KIND, target)
    return _build(tensors, int(about["layers"]), target, path.stem, sha256(path.read_bytes()).hexdigest())


def untrained_head(target: Model, layers: int, vocabulary: int) -> Model:
    """Returns a head that drafts nothing of use at the cost of one that does: what a head of some size would cost."""
    config = target.decoder.config
    hidden, heads = config.hidden_size, config.num_heads + 2 * config.num_kv_heads
    shapes = {
        "qkv": (heads * config.head_dim, hidden),
        "out": (hidden, config.num_heads * config.head_dim),
        "gate_up": (2 * config.intermediate_size, hidden),
        "down": (hidden, config.intermediate_size),
    }
    draw = torch.Generator().manual_seed(0)
    tensors = {
        "vocabulary": torch.arange(min(vocabulary, config.vocab_size)),
        "prompts": torch.zeros(AHEAD, hidden),
        "final_norm.weight": torch.ones(hidden),
        "fuse.weight": torch.randn(hidden, 2 * hidden, generator=draw) / hidden**0.5,
        "fuse.bias": torch.zeros(hidden),
    }
    for i in range(layers):
        tensors |= {f"layers.{i}.{norm}.weight": torch.ones(hidden) for norm in ("attn_norm", "mlp_norm")}
        for name, (out, into) in shapes.items():
            tensors[f"layers.{i}.{name}.weight"] = torch.randn(out, into, generator=draw) / into**0.5
    name = f"untrained-{layers}x{vocabulary}"
    return _build(tensors, layers, target, name, f"{name} of {target.fingerprint}")


def _build(tensors: dict[str, Tensor], layers: int, target: Model, name: str, fingerprint: str) -> Model:
    config = head_config(target.decoder.config, layers, len(tensors["vocabulary"]))
    device = target.decoder.device
    held = "int4" if native_kernels() and device.type == "cpu" else "bfloat16" if device.type != "cpu" else "float32"

    def linear(name: str) -> Linear:
        return pack(tensors[f"{name}.weight"].float(), held, tensors.get(f"{name}.bias"), device=device)

    def norm(name: str) -> RMSNorm:
        return RMSNorm(tensors[f"{name}.weight"].float().to(device), config.norm_eps)

    stack = [
        Layer(
            attn_norm=norm(f"layers.{i}.attn_norm"),
            qkv=linear(f"layers.{i}.qkv"),
            out=linear(f"layers.{i}.out"),
            mlp_norm=norm(f"layers.{i}.mlp_norm"),
            mlp=Mlp(linear(f"layers.{i}.gate_up"), linear(f"layers.{i}.down"), "silu", gated=True),
        )
        for i in range(layers)
    ]
    vocabulary = tensors["vocabulary"].long()
    decoder = HeadDecoder(
        config,
        stack,
        target.decoder.embed,
        pack(head_rows(target, vocabulary), held, device=device, exact_output=True),
        linear("fuse"),
        final_norm=norm("final_norm"),
        prompts=tensors["prompts"].float(),
        device=device,
    )
    return Model(name, decoder, target.tokenizer, fingerprint, held, vocabulary)
