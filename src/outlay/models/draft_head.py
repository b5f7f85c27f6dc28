"""A draft head as a model: a few decoder layers over a target's hidden states (EAGLE, Li et al. 2024, section 4.1).

With each token it reads the target's hidden state before the token: what the target's LM head read there. A linear
layer fuses hidden state and embedding to one input for the layers. The LM head is the target's, cut to the tokens of a
vocabulary. At prompt tokens after the newest token it guesses several tokens ahead in one pass (PPD, Chen et al. 2024).

A token outside its vocabulary is never drafted. That lowers the acceptance rate and changes no output: verification
only asks that a drafted token was drawn from `draft_probs`, which are 0 there.
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
from outlay.models.decoder import Decoder, InputsEmbeds, Layer
from outlay.models.embedding import Embedding
from outlay.models.linear import FloatLinear, Linear, NativeLinear, native_kernels, pack
from outlay.models.load import Model
from outlay.models.mlp import Mlp
from outlay.models.norm import RMSNorm
from outlay.models.quantized import QuantizedWeight

KIND = "head"  # of its file
PROMPT_TOKENS = 3


class DraftHeadDecoder(Decoder):
    """A decoder whose inputs are fused from hidden states and embeddings."""

    reads_hidden_states = True

    def __init__(
        self,
        config: DecoderConfig,
        layers: list[Layer],
        embed: Embedding,
        lm_head: Linear,
        fuse: Linear,
        *,
        final_norm: RMSNorm,
        prompts: Tensor,
        device: torch.device,
    ) -> None:
        """Makes a decoder of its parts.

        Args:
            config: from `draft_head_config`.
            layers: its layers.
            embed: the target's input embeddings.
            lm_head: the rows of the target's LM head for the vocabulary.
            fuse: [hidden_size, 2 * hidden_size], of a hidden state and an embedding.
            final_norm: the norm before the LM head.
            prompts: the input embeddings of its prompt tokens, float32 [prompt tokens, hidden_size].
            device: where it runs.
        """
        self.fuse: Linear = fuse
        self.prompts = tuple(prompts)
        super().__init__(config, layers, embed, lm_head, final_norm=final_norm, dtype=embed.dtype, device=device)
        self._fixed_bytes += fuse.nbytes
        self._row_multiplies += fuse.in_features * fuse.out_features

    def inputs(self, tokens: Tensor, positions: Tensor, inputs_embeds: InputsEmbeds | None = None) -> Tensor:
        """As `Decoder.inputs`, but `inputs_embeds` are the hidden states before the tokens, zeros for other rows.

        One without a token is a prompt token's embedding, and is not fused.
        """
        embeddings = self.embed(tokens)
        if inputs_embeds is None:
            return self.fuse(torch.cat([torch.zeros_like(embeddings), embeddings], dim=-1))
        rows = torch.tensor(inputs_embeds.rows, device=embeddings.device)
        before = torch.zeros_like(embeddings).index_put_((rows,), inputs_embeds.stacked(embeddings))
        without_token = [row for row, alone in zip(inputs_embeds.rows, inputs_embeds.alone, strict=True) if alone]
        bare = torch.tensor(without_token, dtype=torch.int64, device=rows.device)
        fused = self.fuse(torch.cat([before, embeddings], dim=-1))
        return fused.index_put((bare,), before[bare])


def draft_head_config(config: DecoderConfig, layers: int, vocabulary: int) -> DecoderConfig:
    """Returns the config of a draft head: `layers` layers of the target's shape, `vocabulary` tokens."""
    return replace(
        config,
        architecture="draft head",
        vocab_size=vocabulary,
        num_layers=layers,
        windows=(None,) * layers,
        layer_ropes=(),
        attention_softcap=None,
        logit_softcap=None,
        layer_norm=False,
        norm_plus_one=False,
        pre_norm=True,
        sum_norms=False,
        final_norm=True,
        post_norms=False,
        qk_norm=False,
        wide_qk_norms=False,
        shared_qkv=False,
        ista=None,
        residual_scale=1.0,
        logit_scale=1.0,
        activation="silu",
        gated=True,
        qkv_bias=False,
        out_bias=False,
        mlp_bias=False,
        tied_lm_head=False,
        experts=None,
    )


def lm_head_rows(model: Model, tokens: Tensor) -> Tensor:
    """Returns the rows of a model's LM head for some tokens, float32 [tokens, hidden_size].

    Raises:
        UsageError: if the LM head's format does not give its rows.
    """
    lm_head, table = model.decoder.lm_head, model.decoder.embed.table
    if isinstance(lm_head, NativeLinear):
        return lm_head.packed.rows(tokens)
    if isinstance(lm_head, FloatLinear):
        return lm_head.weight[tokens].float()
    if model.decoder.config.tied_lm_head:
        return table.rows(tokens) if isinstance(table, QuantizedWeight) else table[tokens].float()
    raise UsageError(f"the LM head of {model.name} is held as {lm_head.format}, which no draft head can be cut from")


def load_draft_head(path: Path, target: Model) -> Model:
    """Returns the draft head in a file.

    Raises:
        UsageError: if the file holds no draft head, or one of another model.
    """
    tensors, about = fitted.read(path, KIND, target)
    return _build(tensors, int(about["layers"]), target, path.stem, sha256(path.read_bytes()).hexdigest())


def untrained_draft_head(target: Model, layers: int, vocabulary: int) -> Model:
    """Returns a draft head of random weights, to measure what one of this size costs.

    Args:
        target: the model that it would draft for.
        layers: its layers.
        vocabulary: how many tokens it can draft.
    """
    config = target.decoder.config
    hidden, heads = config.hidden_size, config.num_heads + 2 * config.num_kv_heads
    shapes = {
        "qkv": (heads * config.head_dim, hidden),
        "out": (hidden, config.num_heads * config.head_dim),
        "gate_up": (2 * config.intermediate_size, hidden),
        "down": (hidden, config.intermediate_size),
    }
    random = torch.Generator().manual_seed(0)
    tensors = {
        "vocabulary": torch.arange(min(vocabulary, config.vocab_size)),
        "prompts": torch.zeros(PROMPT_TOKENS, hidden),
        "final_norm.weight": torch.ones(hidden),
        "fuse.weight": torch.randn(hidden, 2 * hidden, generator=random) / hidden**0.5,
        "fuse.bias": torch.zeros(hidden),
    }
    for i in range(layers):
        tensors |= {f"layers.{i}.{norm}.weight": torch.ones(hidden) for norm in ("attn_norm", "mlp_norm")}
        for name, (rows, columns) in shapes.items():
            tensors[f"layers.{i}.{name}.weight"] = torch.randn(rows, columns, generator=random) / columns**0.5
    name = f"untrained-{layers}x{vocabulary}"
    return _build(tensors, layers, target, name, f"{name} of {target.fingerprint}")


def _build(tensors: dict[str, Tensor], layers: int, target: Model, name: str, fingerprint: str) -> Model:
    """Returns the draft head of `tensors`, in 4 bits where they multiply natively, over the target's embeddings."""
    config = draft_head_config(target.decoder.config, layers, len(tensors["vocabulary"]))
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
    decoder = DraftHeadDecoder(
        config,
        stack,
        target.decoder.embed,
        pack(lm_head_rows(target, vocabulary), held, device=device, exact_output=True),
        linear("fuse"),
        final_norm=norm("final_norm"),
        prompts=tensors["prompts"].float(),
        device=device,
    )
    return Model(name, decoder, target.tokenizer, fingerprint, held, vocabulary)
