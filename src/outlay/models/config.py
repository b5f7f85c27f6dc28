"""The shape of a decoder, in names of our own, read from a `config.json` of any family that runs here."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from outlay.errors import UsageError
from outlay.models.rope import Rope, rope_from_hf

Raw = dict[str, Any]

ACTIVATIONS = {
    "silu": "silu",
    "swish": "silu",
    "relu": "relu",
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
    "quick_gelu": "quick_gelu",
}


@dataclass(frozen=True)
class Groups:
    """Experts weighted by the sigmoids of the router's logits and chosen, with a bias of each expert, from the best
    groups of neighbours alone (DeepSeek-V3, arXiv 2412.19437, section 2.1.2).
    """

    count: int
    """Groups of a layer's experts."""
    per_token: int
    """Groups that a token's experts come from: those whose best two experts sum to most."""
    scale: float
    """Multiplies the weights of a token's experts."""


@dataclass(frozen=True)
class Experts:
    """The mixture of experts of some layers."""

    count: int
    """Experts in a layer."""
    per_token: int
    """Experts that the router chooses for a token."""
    intermediate_size: int
    """Inner size of an expert's MLP."""
    normalise: bool
    """Whether the weights of a token's experts are scaled to sum to 1."""
    layers: frozenset[int]
    """The layers that have experts; the others have one MLP."""
    groups: Groups | None = None
    """How experts are chosen by groups; None: the most probable of all."""
    shared_size: int = 0
    """Inner size of an MLP beside the experts that every token goes through; 0: there is none."""


@dataclass(frozen=True)
class Ista:
    """The sparsification of CRATE's layers: a proximal step, in place of an MLP, whose output replaces the stream."""

    eta: float
    """The step size."""
    lam: float
    """The weight of the L1 norm."""


@dataclass(frozen=True)
class MaskedDiffusion:
    """How a masked-diffusion model reads and writes a canvas."""

    mask: int
    """The token that stands for a masked position; -1 until it is found in the tokenizer."""
    shift: bool = False
    """Logits at a position are those of the next token, as of models that were made from autoregressive ones."""
    block: int = 0
    """Block-causal attention: positions see the blocks of this size up to the end of their own. 0: they see all."""


@dataclass(frozen=True)
class RelativeBias:
    """A bias of attention scores by the distance from a query to a key, in buckets that widen with it (T5)."""

    buckets: int
    """Number of buckets; with `both_ways`, half of them are for keys behind the query."""
    longest: int
    """The distance from which on all fall into the last bucket."""
    both_ways: bool
    """Whether keys behind the query have buckets of their own, as in an encoder."""


@dataclass(frozen=True)
class DecoderConfig:
    """One decoder, or the layers of an encoder. The defaults are the Llama family's."""

    architecture: str
    """The family, as `config.json` names it."""
    vocab_size: int
    """Tokens of input embeddings and LM head."""
    hidden_size: int
    """Size of a hidden state."""
    num_layers: int
    """Decoder layers."""
    num_heads: int
    """Attention heads of queries."""
    num_kv_heads: int
    """Attention heads of keys and values, each shared by a group of query heads."""
    head_dim: int
    """Size of an attention head."""
    intermediate_size: int
    """Inner size of the MLP."""
    max_positions: int
    """Tokens of the longest context."""
    windows: tuple[int | None, ...]
    """For each layer, how many keys a query may see, its own included (None: all before it)."""
    attention_scale: float
    """Multiplies attention scores."""
    attention_softcap: float | None = None
    """Caps attention scores to softcap * tanh(score / softcap)."""
    logit_softcap: float | None = None
    """Caps logits likewise."""
    eos_token_ids: tuple[int, ...] = ()
    """Tokens that end a text."""
    bos_token_id: int | None = None
    """Token that begins a text."""
    rope: Rope | None = None
    """Rotary positions; None if positions are learned."""
    layer_ropes: tuple[Rope | None, ...] = ()
    """Rotary positions of each layer where layers differ (None: not rotated); empty: `rope` in all of them."""
    position_offset: int = 0
    """Index of position 0 in the table of learned positions."""
    layer_norm: bool = False
    """Layer norms with biases in place of RMS norms."""
    norm_eps: float = 1e-6
    """Added to the variance in norms."""
    norm_plus_one: bool = False
    """RMS norms multiply by weight + 1."""
    pre_norm: bool = True
    """Norms come before attention and MLP."""
    sum_norms: bool = False
    """Norms come after the residual sums."""
    final_norm: bool = True
    """A norm precedes the LM head."""
    post_norms: bool = False
    """Norms also follow attention and MLP, before the residual sum."""
    qk_norm: bool = False
    """Queries and keys are normed, head by head."""
    wide_qk_norms: bool = False
    """They are normed over all heads at once."""
    activation: str = "silu"
    """The MLP's activation, a value of `ACTIVATIONS`."""
    gated: bool = True
    """The MLP has a gate."""
    qkv_bias: bool = False
    """Queries, keys and values have biases."""
    key_bias: bool = True
    """Keys have one too, where queries and values do."""
    out_bias: bool = False
    """Attention's output has a bias."""
    mlp_bias: bool = False
    """The MLP's layers have biases."""
    tied_lm_head: bool = False
    """The LM head is the table of input embeddings."""
    embedding_scale: float = 1.0
    """Multiplies input embeddings."""
    residual_scale: float = 1.0
    """Multiplies the outputs of attention and MLP before the residual sums."""
    logit_scale: float = 1.0
    """Multiplies logits, before their cap."""
    embedding_size: int = 0
    """Size of an input embedding that is projected to the hidden size; 0 if none is."""
    experts: Experts | None = None
    """The mixture of experts, if any."""
    shared_qkv: bool = False
    """One projection is queries, keys and values, so that a cache holds one tensor of a layer."""
    ista: Ista | None = None
    """The second part of every layer is a sparsification that replaces the stream; None: an MLP that is added to it."""
    diffusion: MaskedDiffusion | None = None
    """How it fills masks; None: it writes from left to right."""
    relative: RelativeBias | None = None
    """The bias of attention scores by distance, one for all layers, if any."""
    cross_size: int = 0
    """Size of an encoder's output that each layer reads after its attention; 0: it reads none."""
    embedding_norm: bool = False
    """Embeddings are normed, after positions are added."""
    logit_bias: bool = False
    """A bias is added to the logits."""
    norm_bias: bool = True
    """Layer norms have biases."""
    stored_head_dim: int = 0
    """Size of an attention head in the file, whose heads are filled up with zeros; 0: `head_dim`."""
    stored_pairs: bool = False
    """The file has the rotated pairs of a head's dimensions side by side."""
    tiled_heads: bool = False
    """In the file, query head i reads key head i modulo their number, in place of those of its group."""
    up_before_gate: bool = False
    """The file has the MLP's gate behind what it multiplies."""
    fixed_positions: bool = False
    """Positions are sines and cosines that no file needs to hold (Marian)."""
    position_scale: float = 1.0
    """Multiplies these."""
    names: str = "llama"
    """The key of this family's tensor names in `names.HF` and `names.GGUF`."""

    @property
    def ropes(self) -> tuple[Rope | None, ...]:
        """The rotary positions of each layer."""
        return self.layer_ropes or (self.rope,) * self.num_layers


def decoder_config(raw: Raw, long_context: bool = False) -> DecoderConfig:
    """Returns the shape of the decoder that a `config.json` describes.

    Args:
        raw: the content of `config.json`.
        long_context: for longrope models (Phi-3 128k), use the frequencies for long sequences. The default
            frequencies hold within the original context, which is then the limit.

    Raises:
        UsageError: if this family does not run here, or the file is incomplete.
    """
    family = FAMILIES.get(str(raw.get("model_type")))
    if family is None:
        what = raw.get("model_type") or ", ".join(raw.get("architectures") or ()) or "none named"
        raise UsageError(f"architecture {what!r} is not one that outlay runs: it runs {', '.join(FAMILIES)}")
    try:
        config = family(raw, long_context)
    except KeyError as error:
        raise UsageError(f"the model's config.json lacks {error.args[0]!r}, which {raw['model_type']} needs") from None
    except (TypeError, ValueError, ZeroDivisionError) as error:
        if isinstance(error, UsageError):
            raise
        raise UsageError(f"the model's config.json has a value of the wrong type: {error}") from None
    check_config(config)
    return config


def check_config(config: DecoderConfig) -> None:
    """Raises `UsageError` for a shape that no network has."""
    for name in ("vocab_size", "hidden_size", "num_layers", "num_heads", "num_kv_heads", "head_dim", "max_positions"):
        size = getattr(config, name)
        if not isinstance(size, int) or size < 1:
            raise UsageError(f"the model's {name} must be a positive whole number, not {size!r}")
    if config.num_heads % config.num_kv_heads:
        raise UsageError(f"{config.num_heads} query heads cannot share {config.num_kv_heads} key heads evenly")
    if config.rope is not None and config.rope.dim % 2:
        raise UsageError(f"rotary positions need an even number of dimensions, not {config.rope.dim}")


def _rotary(raw: Raw, long_context: bool, **changes: Any) -> DecoderConfig:
    """Returns the Llama family's shape; `changes` are other fields, and the defaults `theta`, `head_dim` and `eps`."""
    heads, layers = raw["num_attention_heads"], raw["num_hidden_layers"]
    head_dim = raw.get("head_dim") or changes.pop("head_dim", None) or raw["hidden_size"] // heads
    changes.pop("head_dim", None)
    rope = rope_from_hf(raw, head_dim, changes.pop("theta", 10000.0), long_context)
    max_positions = raw.get("max_position_embeddings", 2048)
    if rope.kind == "longrope" and not long_context:
        max_positions = min(max_positions, rope.original_max_positions)
    fields = {
        "architecture": raw["model_type"],
        "vocab_size": raw["vocab_size"],
        "hidden_size": raw["hidden_size"],
        "num_layers": layers,
        "num_heads": heads,
        "num_kv_heads": raw.get("num_key_value_heads") or heads,
        "head_dim": head_dim,
        "intermediate_size": raw["intermediate_size"],
        "max_positions": max_positions,
        "windows": (None,) * layers,
        "attention_scale": head_dim**-0.5,
        "eos_token_ids": token_ids(raw.get("eos_token_id")),
        "bos_token_id": next(iter(token_ids(raw.get("bos_token_id"))), None),
        "rope": rope,
        "norm_eps": raw.get("rms_norm_eps", changes.pop("eps", 1e-6)),
        "activation": _activation(raw.get("hidden_act", "silu")),
        "qkv_bias": bool(raw.get("attention_bias")),
        "out_bias": bool(raw.get("attention_bias")),
        "tied_lm_head": bool(raw.get("tie_word_embeddings", False)),
    }
    changes.pop("eps", None)
    return DecoderConfig(**(fields | changes))


def _llama(raw: Raw, long_context: bool) -> DecoderConfig:
    return _rotary(raw, long_context, mlp_bias=bool(raw.get("mlp_bias")))


def _mistral(raw: Raw, long_context: bool) -> DecoderConfig:
    return _rotary(raw, long_context, windows=_everywhere(raw, raw.get("sliding_window", 4096)))


def _qwen2(raw: Raw, long_context: bool) -> DecoderConfig:
    return _rotary(raw, long_context, windows=_upper_windows(raw), qkv_bias=True, out_bias=False)


def _qwen3(raw: Raw, long_context: bool) -> DecoderConfig:
    return _rotary(raw, long_context, windows=_upper_windows(raw), qk_norm=True, head_dim=128)


def _phi3(raw: Raw, long_context: bool) -> DecoderConfig:
    windows = _everywhere(raw, raw.get("sliding_window"))
    return _rotary(raw, long_context, windows=windows, names="phi3", eps=1e-5)


def _gemma(raw: Raw, long_context: bool) -> DecoderConfig:
    return _rotary(
        raw,
        long_context,
        head_dim=256,
        norm_plus_one=True,
        embedding_scale=raw["hidden_size"] ** 0.5,
        activation=_activation(raw.get("hidden_activation") or "gelu_pytorch_tanh"),
        tied_lm_head=raw.get("tie_word_embeddings", True),
    )


def _gemma2(raw: Raw, long_context: bool) -> DecoderConfig:
    if raw.get("use_bidirectional_attention"):
        raise UsageError("this Gemma 2 reads in both directions; outlay runs models that write from left to right")
    kinds = raw.get("layer_types") or ["sliding_attention", "full_attention"] * raw["num_hidden_layers"]
    window = raw.get("sliding_window", 4096)
    return _rotary(
        raw,
        long_context,
        head_dim=256,
        windows=_by_kind(kinds[: raw["num_hidden_layers"]], window),
        attention_scale=raw.get("query_pre_attn_scalar", 256) ** -0.5,
        attention_softcap=raw.get("attn_logit_softcapping", 50.0),
        logit_softcap=raw.get("final_logit_softcapping", 30.0),
        norm_plus_one=True,
        post_norms=True,
        embedding_scale=raw["hidden_size"] ** 0.5,
        activation=_activation(raw.get("hidden_activation") or "gelu_pytorch_tanh"),
        tied_lm_head=raw.get("tie_word_embeddings", True),
        names="gemma2",
    )


# What a text's options leave out when a checkpoint reads images too.
_GEMMA3: Raw = {
    "vocab_size": 262208,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "max_position_embeddings": 131072,
    "eos_token_id": 1,
    "bos_token_id": 2,
}


def _gemma3(raw: Raw, long_context: bool) -> DecoderConfig:
    own = {key: raw[key] for key in ("model_type", "eos_token_id", "bos_token_id") if key in raw}
    raw = _GEMMA3 | raw.get("text_config", raw) | own
    if raw.get("use_bidirectional_attention"):
        raise UsageError("this Gemma 3 reads in both directions; outlay runs models that write from left to right")
    layers, every = raw["num_hidden_layers"], raw.get("sliding_window_pattern") or 6
    kinds = raw.get("layer_types") or [
        "full_attention" if i % every == 0 else "sliding_attention" for i in range(1, layers + 1)
    ]
    options = raw.get("rope_parameters") or {}
    local = options.get("sliding_attention") or {"rope_theta": raw.get("rope_local_base_freq", 10000.0)}
    full = options.get("full_attention") or options or raw.get("rope_scaling") or {}
    config = _rotary(
        raw | {"rope_parameters": full},
        long_context,
        theta=1e6,
        head_dim=256,
        windows=_by_kind(kinds[:layers], raw.get("sliding_window", 4096)),
        attention_scale=raw.get("query_pre_attn_scalar", 256) ** -0.5,
        logit_softcap=raw.get("final_logit_softcapping"),
        norm_plus_one=True,
        post_norms=True,
        qk_norm=True,
        embedding_scale=raw["hidden_size"] ** 0.5,
        activation=_activation(raw.get("hidden_activation") or "gelu_pytorch_tanh"),
        tied_lm_head=raw.get("tie_word_embeddings", True),
        names="gemma2",
    )
    near = rope_from_hf({"rope_parameters": local}, config.head_dim)
    return replace(config, layer_ropes=tuple(near if window else config.rope for window in config.windows))


def _smollm3(raw: Raw, long_context: bool) -> DecoderConfig:
    layers, every = raw["num_hidden_layers"], raw.get("no_rope_layer_interval", 4)
    rotated = raw.get("no_rope_layers") or [int((i + 1) % every != 0) for i in range(layers)]
    kinds = raw.get("layer_types") or ["full_attention" if flag else "sliding_attention" for flag in rotated]
    window = raw.get("sliding_window") if raw.get("use_sliding_window") else None
    config = _rotary(
        raw, long_context, theta=2e6, windows=_by_kind(kinds, window), mlp_bias=bool(raw.get("mlp_bias")),
        tied_lm_head=raw.get("tie_word_embeddings", True),
    )  # fmt: skip
    return replace(config, layer_ropes=tuple(config.rope if flag else None for flag in rotated))


def _olmo2(raw: Raw, long_context: bool) -> DecoderConfig:
    return _rotary(
        raw, long_context, eps=1e-5, pre_norm=False, post_norms=True, qk_norm=True, wide_qk_norms=True, names="olmo2"
    )


def _granite(raw: Raw, long_context: bool) -> DecoderConfig:
    return _rotary(
        raw,
        long_context,
        mlp_bias=bool(raw.get("mlp_bias")),
        attention_scale=raw.get("attention_multiplier", 1.0),
        embedding_scale=raw.get("embedding_multiplier", 1.0),
        residual_scale=raw.get("residual_multiplier", 1.0),
        logit_scale=1 / raw.get("logits_scaling", 1.0),
    )


def _mixtral(raw: Raw, long_context: bool) -> DecoderConfig:
    layers = frozenset(range(raw["num_hidden_layers"]))
    count, per_token = raw.get("num_local_experts", 8), raw.get("num_experts_per_tok", 2)
    return _rotary(
        raw,
        long_context,
        theta=1e6,
        eps=1e-5,
        windows=_everywhere(raw, raw.get("sliding_window")),
        experts=Experts(count, per_token, raw["intermediate_size"], True, layers),
        names="mixtral",
    )


def _qwen3_moe(raw: Raw, long_context: bool) -> DecoderConfig:
    step, dense = raw.get("decoder_sparse_step", 1), set(raw.get("mlp_only_layers") or ())
    layers = frozenset(i for i in range(raw["num_hidden_layers"]) if i not in dense and (i + 1) % step == 0)
    count = raw.get("num_experts") or raw["num_local_experts"]
    normalise = bool(raw.get("norm_topk_prob", False))
    window = raw.get("sliding_window") if raw.get("use_sliding_window") else None
    return _rotary(
        raw,
        long_context,
        windows=_everywhere(raw, window),
        qk_norm=True,
        experts=Experts(count, raw.get("num_experts_per_tok", 8), raw["moe_intermediate_size"], normalise, layers),
        names="qwen3_moe",
    )


def _gpt2(raw: Raw, long_context: bool) -> DecoderConfig:
    if raw.get("scale_attn_by_inverse_layer_idx"):
        raise UsageError("this GPT-2 scales attention by the layer's index, which outlay does not run")
    hidden, heads, layers = raw["n_embd"], raw["n_head"], raw["n_layer"]
    return DecoderConfig(
        architecture="gpt2",
        vocab_size=raw["vocab_size"],
        hidden_size=hidden,
        num_layers=layers,
        num_heads=heads,
        num_kv_heads=heads,
        head_dim=hidden // heads,
        intermediate_size=raw.get("n_inner") or 4 * hidden,
        max_positions=raw.get("n_positions") or raw["n_ctx"],
        windows=(None,) * layers,
        attention_scale=(hidden // heads) ** -0.5 if raw.get("scale_attn_weights", True) else 1.0,
        eos_token_ids=token_ids(raw.get("eos_token_id")),
        bos_token_id=next(iter(token_ids(raw.get("bos_token_id"))), None),
        layer_norm=True,
        norm_eps=raw.get("layer_norm_epsilon", 1e-5),
        activation=_activation(raw.get("activation_function", "gelu_new")),
        gated=False,
        qkv_bias=True,
        out_bias=True,
        mlp_bias=True,
        tied_lm_head=raw.get("tie_word_embeddings", True),
        names="gpt2",
    )


def _opt(raw: Raw, long_context: bool) -> DecoderConfig:
    if not raw.get("layer_norm_elementwise_affine", True):
        raise UsageError("this OPT has layer norms without weights, which outlay does not run")
    hidden, heads, layers = raw["hidden_size"], raw["num_attention_heads"], raw["num_hidden_layers"]
    embedding, bias = raw.get("word_embed_proj_dim") or hidden, raw.get("enable_bias", True)
    pre_norm = raw.get("do_layer_norm_before", True)
    return DecoderConfig(
        architecture="opt",
        vocab_size=raw["vocab_size"],
        hidden_size=hidden,
        num_layers=layers,
        num_heads=heads,
        num_kv_heads=heads,
        head_dim=hidden // heads,
        intermediate_size=raw["ffn_dim"],
        max_positions=raw["max_position_embeddings"],
        windows=(None,) * layers,
        attention_scale=(hidden // heads) ** -0.5,
        eos_token_ids=token_ids(raw.get("eos_token_id")),
        bos_token_id=next(iter(token_ids(raw.get("bos_token_id"))), None),
        position_offset=2,
        layer_norm=True,
        norm_eps=1e-5,
        pre_norm=pre_norm,
        sum_norms=not pre_norm,
        final_norm=pre_norm and not raw.get("_remove_final_layer_norm", False),
        activation=_activation(raw.get("activation_function", "relu")),
        gated=False,
        qkv_bias=bias,
        out_bias=bias,
        mlp_bias=bias,
        tied_lm_head=raw.get("tie_word_embeddings", True),
        embedding_size=0 if embedding == hidden else embedding,
        names="opt",
    )


def _crate(raw: Raw, long_context: bool) -> DecoderConfig:
    hidden, heads, layers = raw["hidden_size"], raw["num_attention_heads"], raw["num_hidden_layers"]
    if heads < 2 or hidden % heads:
        raise UsageError(f"a CRATE of width {hidden} can't have {heads} heads: give a divisor of {hidden}, 2 or more")
    ista = Ista(raw["ista_eta"], raw["ista_lambda"])
    if not ista.eta > 0 or not ista.lam >= 0:
        raise UsageError(f"a CRATE's ista_eta is above 0 and its ista_lambda 0 or more, not {ista.eta} and {ista.lam}")
    return DecoderConfig(
        architecture="crate",
        vocab_size=raw["vocab_size"],
        hidden_size=hidden,
        num_layers=layers,
        num_heads=heads,
        num_kv_heads=heads,
        head_dim=hidden // heads,
        intermediate_size=hidden,
        max_positions=raw["max_position_embeddings"],
        windows=(None,) * layers,
        attention_scale=(hidden // heads) ** -0.5,
        eos_token_ids=token_ids(raw.get("eos_token_id")),
        bos_token_id=next(iter(token_ids(raw.get("bos_token_id"))), None),
        layer_norm=True,
        norm_eps=raw.get("layer_norm_eps", 1e-5),
        activation="relu",
        gated=False,
        out_bias=True,
        tied_lm_head=bool(raw.get("tie_word_embeddings", False)),
        shared_qkv=True,
        ista=ista,
        names="crate",
    )


LLADA_RUNS = {
    "alibi": False, "rope": True, "block_type": "llama", "layer_norm_type": "rms", "attention_layer_norm": False,
    "input_emb_norm": False, "bias_for_layer_norm": False,
}  # fmt: skip


def _llada(raw: Raw, long_context: bool) -> DecoderConfig:
    for key, runs in LLADA_RUNS.items():
        if raw.get(key) not in (None, runs):
            raise UsageError(f"this LLaDA has {key} {raw[key]!r}, which outlay does not run; it runs {runs!r}")
    hidden, heads, bias = raw["d_model"], raw["n_heads"], bool(raw.get("include_bias"))
    config = _rotary(
        {
            "model_type": raw["model_type"],
            "vocab_size": raw.get("embedding_size") or raw["vocab_size"],
            "hidden_size": hidden,
            "num_hidden_layers": raw["n_layers"],
            "num_attention_heads": heads,
            "num_key_value_heads": raw.get("n_kv_heads") or (1 if raw.get("multi_query_attention") else heads),
            "intermediate_size": raw.get("mlp_hidden_size") or raw["mlp_ratio"] * hidden,
            "max_position_embeddings": raw["max_sequence_length"],
            "rope_theta": raw.get("rope_theta", 10000.0),
            "rms_norm_eps": raw.get("rms_norm_eps", 1e-5),
            "hidden_act": raw.get("activation_type", "silu"),
            "eos_token_id": raw.get("eos_token_id"),
            "bos_token_id": raw.get("bos_token_id"),
            "tie_word_embeddings": bool(raw.get("weight_tying")),
        },
        long_context,
        diffusion=MaskedDiffusion(_mask(raw), shift=bool(raw.get("shift_logits", False))),
        names="llada",
    )
    scale = hidden**-0.5 if raw.get("scale_logits") else 1.0
    qkv_bias = bias or bool(raw.get("include_qkv_bias"))
    return replace(config, qkv_bias=qkv_bias, out_bias=bias, mlp_bias=bias, logit_scale=scale)


DREAM_CONTEXT = 2048  # that its authors document; its config has the longer one of the model that it was made from


def _dream(raw: Raw, long_context: bool) -> DecoderConfig:
    diffusion = MaskedDiffusion(_mask(raw), shift=bool(raw.get("shift_logits", True)))
    config = replace(_qwen2(raw, long_context), diffusion=diffusion)
    return replace(config, max_positions=min(config.max_positions, DREAM_CONTEXT))


def _sdar(raw: Raw, long_context: bool) -> DecoderConfig:
    return replace(_qwen3(raw, long_context), diffusion=MaskedDiffusion(_mask(raw), block=_block(raw, "block_size")))


LLADA2_BLOCK = 32  # of the authors' own sampler; their config does not say


def _llada2(raw: Raw, long_context: bool) -> DecoderConfig:
    """LLaDA2 (Bie et al. 2025, arXiv 2512.15745): Ling 2.0's mixture of experts, which reads blocks at once."""
    if raw.get("score_function", "sigmoid") != "sigmoid":
        raise UsageError(f"this LLaDA2 weights its experts by {raw['score_function']}; outlay runs sigmoids")
    layers = frozenset(range(raw.get("first_k_dense_replace", 0), raw["num_hidden_layers"]))
    per_token, inner = raw["num_experts_per_tok"], raw["moe_intermediate_size"]
    groups = Groups(raw.get("n_group") or 1, raw.get("topk_group") or 1, raw.get("routed_scaling_factor", 1.0))
    if raw["num_experts"] % groups.count or per_token > groups.per_token * (raw["num_experts"] // groups.count):
        raise UsageError(
            f"{groups.per_token} of {groups.count} groups of {raw['num_experts']} experts have fewer than {per_token}"
        )
    return _rotary(
        raw,
        long_context,
        qk_norm=True,
        qkv_bias=bool(raw.get("use_qkv_bias")),
        out_bias=bool(raw.get("use_bias")),
        experts=Experts(
            raw["num_experts"], per_token, inner, per_token > 1, layers, groups,
            shared_size=inner * (raw.get("num_shared_experts") or 0),
        ),
        diffusion=MaskedDiffusion(_mask(raw), block=_block({"block_size": LLADA2_BLOCK} | raw, "block_size")),
        names="llada2_moe",
    )  # fmt: skip


def _fast_dllm(raw: Raw, long_context: bool) -> DecoderConfig:
    diffusion = MaskedDiffusion(_mask(raw), shift=True, block=_block(raw, "bd_size"))
    return replace(_qwen2(raw, long_context), diffusion=diffusion)


def _mask(raw: Raw) -> int:
    """Returns the mask's token; -1 where only the tokenizer tells."""
    mask = raw.get("mask_token_id")
    return -1 if mask is None else int(mask)


def _block(raw: Raw, key: str) -> int:
    block = raw[key]
    if not isinstance(block, int) or block < 1:
        raise UsageError(f"the model's {key} must be a positive whole number, not {block!r}")
    return block


DIFFUSION_MASKS = {"llada": "<|mdm_mask|>", "Dream": "<|mask|>", "sdar": "<|MASK|>", "Fast_dLLM_Qwen": "|<MASK>|",
                   "llada2_moe": "<|mask|>"}  # fmt: skip
"""What families that fill masks call the mask in their tokenizers."""

FAMILIES: dict[str, Callable[[Raw, bool], DecoderConfig]] = {
    "llama": _llama,
    "mistral": _mistral,
    "qwen2": _qwen2,
    "qwen3": _qwen3,
    "phi3": _phi3,
    "gemma": _gemma,
    "gemma2": _gemma2,
    "gemma3": _gemma3,
    "gemma3_text": _gemma3,
    "smollm3": _smollm3,
    "olmo2": _olmo2,
    "granite": _granite,
    "gpt2": _gpt2,
    "opt": _opt,
    "crate": _crate,
    "mixtral": _mixtral,
    "qwen3_moe": _qwen3_moe,
    "llada": _llada,
    "Dream": _dream,
    "sdar": _sdar,
    "Fast_dLLM_Qwen": _fast_dllm,
    "llada2_moe": _llada2,
}


def token_ids(value: Any) -> tuple[int, ...]:
    """Returns token ids from a config's entry, which may be absent, one id or a list of ids."""
    return () if value is None else tuple(value) if isinstance(value, (list, tuple)) else (int(value),)


def _activation(name: str) -> str:
    if name not in ACTIVATIONS:
        raise UsageError(f"activation {name!r} is not one that outlay runs ({', '.join(ACTIVATIONS)})")
    return ACTIVATIONS[name]


def _everywhere(raw: Raw, window: int | None) -> tuple[int | None, ...]:
    return (window,) * raw["num_hidden_layers"]


def _by_kind(kinds: list[str], window: int | None) -> tuple[int | None, ...]:
    return tuple(window if kind == "sliding_attention" else None for kind in kinds)


def _upper_windows(raw: Raw) -> tuple[int | None, ...]:
    """Returns Qwen's windows: none, or those of the layers that `layer_types` or `max_window_layers` names."""
    if not raw.get("use_sliding_window"):
        return _everywhere(raw, None)
    first = raw.get("max_window_layers", 28)
    kinds = ["full_attention" if i < first else "sliding_attention" for i in range(raw["num_hidden_layers"])]
    return _by_kind(raw.get("layer_types") or kinds, raw.get("sliding_window", 4096))
