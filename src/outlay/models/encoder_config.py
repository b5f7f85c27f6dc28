"""The shape of an encoder-decoder, read from a `config.json` of any family that runs here."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from outlay.errors import UsageError
from outlay.models.config import (
    ACTIVATIONS,
    DecoderConfig,
    Raw,
    RelativeBias,
    check_config,
    decoder_config,
    token_ids,
)
from outlay.models.rope import Rope, rope_from_hf

UNLIMITED = 16384
"""Tokens of an input or a text where positions are relative, so that the network has no limit of its own."""


@dataclass(frozen=True)
class EncoderDecoderConfig:
    """The two halves of a network."""

    encoder: DecoderConfig
    """What reads the input. Its vocabulary is that of the decoder."""
    decoder: DecoderConfig
    """What writes the text."""


def encoder_decoder_config(raw: Raw) -> EncoderDecoderConfig:
    """Returns the shape of the encoder-decoder that a `config.json` describes.

    Args:
        raw: the content of `config.json`, whose `model_type` is one of `ENCODER_DECODERS`.

    Raises:
        UsageError: if the file is incomplete, or asks for what does not run here.
    """
    try:
        config = ENCODER_DECODERS[raw["model_type"]](raw)
    except KeyError as error:
        raise UsageError(f"the model's config.json lacks {error.args[0]!r}, which {raw['model_type']} needs") from None
    except (TypeError, ValueError, ZeroDivisionError, AttributeError) as error:
        if isinstance(error, UsageError):
            raise
        raise UsageError(f"the model's config.json has a value of the wrong type: {error}") from None
    if config.encoder.num_layers:  # else the stem is all of it
        check_config(config.encoder)
    check_config(config.decoder)
    return config


def _t5(raw: Raw) -> EncoderDecoderConfig:
    act, gated = _t5_activation(raw.get("feed_forward_proj", "relu"))
    hidden, heads, layers = raw["d_model"], raw["num_heads"], raw["num_layers"]
    relative = RelativeBias(
        raw.get("relative_attention_num_buckets", 32), raw.get("relative_attention_max_distance", 128), both_ways=True
    )
    encoder = DecoderConfig(
        architecture=raw["model_type"],
        vocab_size=raw["vocab_size"],
        hidden_size=hidden,
        num_layers=layers,
        num_heads=heads,
        num_kv_heads=heads,
        head_dim=raw["d_kv"],
        intermediate_size=raw["d_ff"],
        max_positions=UNLIMITED,
        windows=(None,) * layers,
        attention_scale=1.0,
        eos_token_ids=token_ids(raw.get("eos_token_id")),
        norm_eps=raw.get("layer_norm_epsilon", 1e-6),
        activation=act,
        gated=gated,
        relative=relative,
        names="t5-encoder" if gated else "t5-plain-encoder",
    )
    # Files of T5 1.1 say that their LM head is not tied; newer ones say whether the output is scaled.
    scaled = raw.get("scale_decoder_outputs", raw.get("tie_word_embeddings") is not False) and raw["model_type"] == "t5"
    return EncoderDecoderConfig(
        encoder,
        _decoder_of(
            encoder,
            layers=raw.get("num_decoder_layers") or layers,
            relative=replace(relative, both_ways=False),
            logit_scale=hidden**-0.5 if scaled else 1.0,
            tied_lm_head=True,
            names="t5-decoder" if gated else "t5-plain-decoder",
        ),
    )


def _t5_activation(form: str) -> tuple[str, bool]:
    """Returns the activation that T5's `feed_forward_proj` names, and whether the MLP is gated."""
    gate, _, name = form.rpartition("-")
    if gate not in ("", "gated") or name not in ACTIVATIONS:
        raise UsageError(f"feed_forward_proj {form!r} is not one that outlay runs; it runs relu and gated-gelu")
    return ACTIVATIONS["gelu_new" if form == "gated-gelu" else name], gate == "gated"


def _bart(raw: Raw) -> EncoderDecoderConfig:
    for key, runs in {
        "normalize_before": False,
        "static_position_embeddings": False,
        "normalize_embedding": True,
    }.items():
        if raw.get(key, runs) is not runs:
            raise UsageError(f"this BART has {key} {raw[key]!r}, which outlay does not run; it runs {runs!r}")
    return _fairseq(raw, pre_norm=False, names="bart")


def _mbart(raw: Raw) -> EncoderDecoderConfig:
    return _fairseq(raw, pre_norm=True, names="mbart")


def _marian(raw: Raw) -> EncoderDecoderConfig:
    own = raw.get("decoder_vocab_size") or raw["vocab_size"]
    if own != raw["vocab_size"]:
        raise UsageError(
            f"this Marian has vocabularies of {raw['vocab_size']} and {own} tokens; outlay runs one for both"
        )
    shared = raw.get("share_encoder_decoder_embeddings", True)
    config = _fairseq(raw, pre_norm=False, names="marian" if shared else "marian-apart")

    def half(part: DecoderConfig) -> DecoderConfig:
        return replace(part, embedding_norm=False, fixed_positions=True, position_offset=0)

    return EncoderDecoderConfig(half(config.encoder), half(config.decoder))


def _whisper(raw: Raw) -> EncoderDecoderConfig:
    """Whisper (Radford et al. 2022): speech as a log-mel spectrogram, through two convolutions."""
    config = _fairseq(raw | {"max_position_embeddings": raw["max_target_positions"]}, pre_norm=True, names="whisper")

    def half(part: DecoderConfig, **changes: Any) -> DecoderConfig:
        plain = {"embedding_norm": False, "embedding_scale": 1.0, "position_offset": 0, "key_bias": False}
        return replace(part, logit_bias=False, **(plain | changes))

    return EncoderDecoderConfig(half(config.encoder, max_positions=raw["max_source_positions"]), half(config.decoder))


def _canary(raw: Raw) -> EncoderDecoderConfig:
    """Canary (Zelasko et al. 2025), whose encoder is a FastConformer: what makes frames of sound is all of it."""
    own, encoder = raw["decoder_config"], raw["encoder_config"]["hidden_size"]
    hidden, heads, layers = own["hidden_size"], own["num_attention_heads"], own["num_hidden_layers"]
    bias, head_dim = own.get("attention_bias", True), own.get("head_dim") or _divided(hidden, heads)
    decoder = DecoderConfig(
        architecture="canary",
        vocab_size=own["vocab_size"],
        hidden_size=hidden,
        num_layers=layers,
        num_heads=heads,
        num_kv_heads=own.get("num_key_value_heads") or heads,
        head_dim=head_dim,
        intermediate_size=own["intermediate_size"],
        max_positions=own["max_position_embeddings"],
        windows=(None,) * layers,
        attention_scale=head_dim**-0.5,
        eos_token_ids=token_ids(raw.get("eos_token_id")),
        bos_token_id=raw.get("bos_token_id"),
        layer_norm=True,
        norm_eps=1e-5,
        activation=_activation(own.get("hidden_act", "relu")),
        gated=False,
        qkv_bias=bias,
        out_bias=bias,
        mlp_bias=True,
        tied_lm_head=True,
        embedding_norm=True,
        logit_bias=True,
        fixed_positions=True,
        position_scale=hidden**-0.5,
        cross_size=encoder,
        names="canary-decoder",
    )
    nothing = replace(decoder, num_layers=0, windows=(), final_norm=False, embedding_norm=False, cross_size=0)
    return EncoderDecoderConfig(
        replace(nothing, hidden_size=encoder, max_positions=UNLIMITED, fixed_positions=False, names="canary-encoder"),
        decoder,
    )


def _t5gemma(raw: Raw) -> EncoderDecoderConfig:
    encoder, decoder = (
        decoder_config(
            raw[stack] | {"model_type": "gemma2", "tie_word_embeddings": raw.get("tie_word_embeddings", True)}
        )
        for stack in ("encoder", "decoder")
    )
    return EncoderDecoderConfig(
        replace(encoder, architecture="t5gemma", names="t5gemma-encoder"),
        replace(decoder, architecture="t5gemma", names="t5gemma-decoder", cross_size=encoder.hidden_size),
    )


def _moonshine(raw: Raw) -> EncoderDecoderConfig:
    """Moonshine (Jeffries et al. 2024): speech as samples, through three convolutions."""
    hidden = raw["hidden_size"]

    def half(stack: str, **changes: Any) -> DecoderConfig:
        heads, layers = raw[f"{stack}_num_attention_heads"], raw[f"{stack}_num_hidden_layers"]
        size = _divided(hidden, heads)
        rotary = raw if "partial_rotary_factor" in (raw.get("rope_parameters") or raw) else raw | ROTATED
        fields = {
            "architecture": "moonshine",
            "vocab_size": raw["vocab_size"],
            "hidden_size": hidden,
            "num_layers": layers,
            "num_heads": heads,
            "num_kv_heads": raw.get(f"{stack}_num_key_value_heads") or heads,
            "head_dim": -(-size // 8) * 8,  # a multiple of 8, as the kernels take it
            "stored_head_dim": size,
            "stored_pairs": True,
            "intermediate_size": raw["intermediate_size"],
            "windows": (None,) * layers,
            "attention_scale": size**-0.5,
            "eos_token_ids": token_ids(raw.get("eos_token_id")),
            "bos_token_id": raw.get("bos_token_id"),
            "rope": rope_from_hf(rotary, size),
            "layer_norm": True,
            "norm_bias": False,
            "norm_eps": 1e-5,
            "activation": _activation(raw.get(f"{stack}_hidden_act", "gelu" if stack == "encoder" else "silu")),
            "gated": stack == "decoder",
            "up_before_gate": stack == "decoder",
            "qkv_bias": bool(raw.get("attention_bias")),
            "mlp_bias": True,
            "names": f"moonshine-{stack}",
        }
        return DecoderConfig(**(fields | changes))

    return EncoderDecoderConfig(
        half("encoder", max_positions=UNLIMITED),
        half("decoder", max_positions=raw["max_position_embeddings"], cross_size=hidden, tied_lm_head=True),
    )


ROTATED = {"partial_rotary_factor": 0.9}


def _mu(raw: Raw) -> EncoderDecoderConfig:
    """The architecture of Mu (Elfeki et al. 2025); `is_interleaved` says in which order its heads share keys."""
    if raw.get("rope_factor", 1.0) != 1.0:
        raise UsageError(f"this Mu scales positions by rope_factor {raw['rope_factor']!r}, which outlay does not run")
    hidden, heads, layers = raw["n_embd"], raw["n_head"], raw["n_encoder_layer"]
    head_dim = _divided(raw.get("qkv_embd") or hidden, heads)
    encoder = DecoderConfig(
        architecture="mu",
        vocab_size=raw["vocab_size"],
        hidden_size=hidden,
        num_layers=layers,
        num_heads=heads,
        num_kv_heads=raw["n_kv_head"],
        head_dim=head_dim,
        intermediate_size=raw["hidden_dim"],
        max_positions=raw["block_size"],
        windows=(None,) * layers,
        attention_scale=head_dim**-0.5,
        eos_token_ids=token_ids(raw.get("eos_token_id")),
        bos_token_id=raw.get("bos_token_id"),
        rope=Rope(raw.get("rope_theta", 10000.0), head_dim),
        activation="gelu_tanh",
        gated=False,
        qkv_bias=True,
        out_bias=True,
        mlp_bias=True,
        tiled_heads=not raw.get("is_interleaved", False),
        names="mu-encoder",
    )
    return EncoderDecoderConfig(
        encoder, _decoder_of(encoder, layers=raw["n_decoder_layer"], tied_lm_head=True, names="mu-decoder")
    )


def _fairseq(raw: Raw, *, pre_norm: bool, names: str) -> EncoderDecoderConfig:
    """Returns the shape of BART and of what was made of it: learned positions, layer norms, biases everywhere."""
    hidden, layers, heads = raw["d_model"], raw["encoder_layers"], raw["encoder_attention_heads"]
    encoder = DecoderConfig(
        architecture=raw["model_type"],
        vocab_size=raw["vocab_size"],
        hidden_size=hidden,
        num_layers=layers,
        num_heads=heads,
        num_kv_heads=heads,
        head_dim=_divided(hidden, heads),
        intermediate_size=raw["encoder_ffn_dim"],
        max_positions=raw["max_position_embeddings"],
        windows=(None,) * layers,
        attention_scale=(hidden // heads) ** -0.5,
        eos_token_ids=token_ids(raw.get("eos_token_id")),
        bos_token_id=raw.get("bos_token_id"),
        position_offset=2,
        layer_norm=True,
        norm_eps=1e-5,
        pre_norm=pre_norm,
        sum_norms=not pre_norm,
        final_norm=pre_norm,
        activation=_activation(raw.get("activation_function", "gelu")),
        gated=False,
        qkv_bias=True,
        out_bias=True,
        mlp_bias=True,
        embedding_scale=hidden**0.5 if raw.get("scale_embedding") else 1.0,
        embedding_norm=True,
        names=f"{names}-encoder",
    )
    decoder_heads = raw["decoder_attention_heads"]
    return EncoderDecoderConfig(
        encoder,
        _decoder_of(
            encoder,
            layers=raw["decoder_layers"],
            num_heads=decoder_heads,
            num_kv_heads=decoder_heads,
            head_dim=_divided(hidden, decoder_heads),
            attention_scale=(hidden // decoder_heads) ** -0.5,
            intermediate_size=raw["decoder_ffn_dim"],
            tied_lm_head=True,
            logit_bias=True,
            names=f"{names}-decoder",
        ),
    )


def _decoder_of(encoder: DecoderConfig, *, layers: int, **changes: Any) -> DecoderConfig:
    """Returns a decoder that differs from its encoder by `changes`, and reads it in every layer."""
    own = replace(encoder, num_layers=layers, windows=(None,) * layers, cross_size=encoder.hidden_size)
    return replace(own, **changes)


def _activation(name: str) -> str:
    if name not in ACTIVATIONS:
        raise UsageError(f"activation {name!r} is not one that outlay runs ({', '.join(ACTIVATIONS)})")
    return ACTIVATIONS[name]


def _divided(hidden: int, heads: int) -> int:
    if hidden % heads:
        raise UsageError(f"{hidden} dimensions cannot be divided among {heads} attention heads evenly")
    return hidden // heads


ENCODER_DECODERS: dict[str, Callable[[Raw], EncoderDecoderConfig]] = {
    "t5": _t5,
    "mt5": _t5,
    "bart": _bart,
    "mbart": _mbart,
    "marian": _marian,
    "t5gemma": _t5gemma,
    "mu": _mu,
    "moonshine": _moonshine,
    "whisper": _whisper,
    "canary": _canary,
}
