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
}


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


@dataclass(frozen=True)
class DecoderConfig:
    """One decoder. The defaults are the Llama family's."""

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
    _check(config)
    return config


def _check(config: DecoderConfig) -> None:
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
    "mixtral": _mixtral,
    "qwen3_moe": _qwen3_moe,
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
