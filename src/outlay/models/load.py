"""Loads a model: an alias, a folder, a GGUF file or a hub id becomes a decoder and a tokenizer."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from hashlib import sha256
from pathlib import Path
from typing import Any

import torch

from outlay.errors import UsageError, nearest
from outlay.models import hub, names
from outlay.models.build import Builder, Progress
from outlay.models.chat import ChatTemplate, template_source
from outlay.models.checkpoint import Checkpoint, read_json, sampled
from outlay.models.config import FAMILIES, DecoderConfig, decoder_config, token_ids
from outlay.models.decoder import Decoder
from outlay.models.linear import FORMATS, fast_bfloat16, native_kernels
from outlay.models.reward_head import RewardHead, find_head
from outlay.models.tokenizer import Tokenizer, load_tokenizer_json

DTYPES = ("auto", *FORMATS)
# Ends of a turn that some chat models write although their configs do not list them.
_TURN_ENDS = ("<|im_end|>", "<|eot_id|>", "<end_of_turn>", "<|end|>")

INTERLEAVED = ("llama", "granite", "smollm3")
"""Architectures whose GGUF files have the rotated pairs of a head's dimensions side by side."""


@dataclass(frozen=True)
class Model:
    """A network with its tokenizer."""

    name: str
    """What results and messages call it."""
    decoder: Decoder
    """The network."""
    tokenizer: Tokenizer
    """Its tokenizer."""
    fingerprint: str
    """Identifies the weights, wherever they lie."""
    format: str
    """How the weights are held: one of `linear.FORMATS`, or several joined by "+"."""
    vocabulary: torch.Tensor | None = None
    """The tokens that a draft head can write, int64 [decoder.config.vocab_size]. None: all of the tokenizer's."""
    head: RewardHead | None = None
    """A reward model's head, whose first layer stands in place of the LM head. None: a language model."""


def load_model(
    source: str | Path,
    *,
    dtype: str = "auto",
    device: str = "cpu",
    progress: Progress | None = None,
    long_context: bool = False,
) -> Model:
    """Loads a model.

    Args:
        source: an alias, a folder, a `.gguf` file, or `org/name[@revision]` on the hub.
        dtype: one of `DTYPES`. With "auto", quantized files run in their own precision. Others run in bfloat16 if our
            kernels or the processor multiply it quickly, else in float32.
        device: where the model runs, as torch names it.
        progress: told of downloads and of layers: what, how many so far, how many in all.
        long_context: use the frequencies for long sequences, if the model has two sets (Phi-3 128k).

    Raises:
        UsageError: if there is no such model, dtype or device, or the model does not run here.
        FailureError: if the model can't be fetched.
    """
    if dtype not in DTYPES:
        raise UsageError(f"dtype {dtype!r} is not known{nearest(dtype, DTYPES)}; it is one of {', '.join(DTYPES)}")
    where = _device(device)
    path = hub.resolve(source, progress)
    if path.is_dir():
        model = _load_folder(path, dtype, where, progress, long_context)
    else:
        model = _load_gguf(path, dtype, where, progress, long_context)
    return replace(model, name=_name(source, path))


def _load_folder(folder: Path, dtype: str, device: torch.device, progress: Progress | None, long: bool) -> Model:
    raw = read_json(folder / "config.json")
    if not raw:
        raise UsageError(f"{folder} holds no config.json, so it is not a model in the hub's layout")
    _refuse_quantized(raw)
    format = _best_float(device) if dtype == "auto" else dtype
    decoder: Decoder
    head: RewardHead | None = None
    if raw.get("model_type") in FAMILIES:
        config = decoder_config(raw, long)
        tokenizer = _folder_tokenizer(folder, config)
        store = Checkpoint(folder)
        head = find_head(store.shape, store.floats, device)
        if head is not None:
            config = replace(config, logit_softcap=None)
        decoder = _build_folder(config, store, format, device, progress, head)
    else:
        from outlay.models.via_transformers.load import load_decoder, network_class

        kind = network_class(raw)  # a family that does not run is refused as such, whatever else the folder lacks
        store = Checkpoint(folder)
        decoder = load_decoder(kind, folder, raw, format, device, progress)
        tokenizer = _folder_tokenizer(folder, decoder.config)
    canonical = json.dumps(raw, sort_keys=True).encode()
    return Model(folder.name, decoder, tokenizer, _fingerprint(canonical, store.identity()), format, head=head)


def family_of(path: Path) -> str:
    """Returns the family of a model on disk, as `config.json` names it.

    Raises:
        UsageError: if the model cannot be read, its weights are packed, or attention is not its only memory.
    """
    if path.is_dir():
        from outlay.models.via_transformers.families import refuse_other_memory

        raw = read_json(path / "config.json")
        _refuse_quantized(raw)
        refuse_other_memory(raw)
        return str(raw.get("model_type"))
    from outlay.models.gguf_config import hf_config
    from outlay.models.gguf_file import GgufFile

    return str(hf_config(GgufFile(path))["model_type"])


def _build_folder(
    config: DecoderConfig,
    store: Checkpoint,
    format: str,
    device: torch.device,
    progress: Progress | None,
    head: RewardHead | None,
) -> Decoder:
    builder = Builder(
        config,
        store,
        names.HF[config.names],
        format=format,
        float_format=format,
        device=device,
        interleaved=False,
        transposed=config.architecture == "gpt2",
        plus_one=config.norm_plus_one,
        head=None if head is None else head.layers[0],
    )
    return builder.build(progress)


def _refuse_quantized(raw: Mapping[str, Any]) -> None:
    """Raises `UsageError` if a `config.json` says that the weights are packed, which they are read without."""
    text = raw.get("text_config")
    quantization = raw.get("quantization_config") or (text.get("quantization_config") if text else None)
    if quantization:
        method = quantization.get("quant_method") or "unnamed"
        raise UsageError(
            f"this model's weights are packed ({method} in the quantization_config of config.json), which outlay does "
            "not read; give the model in floats, or a .gguf file of it"
        )


def _load_gguf(path: Path, dtype: str, device: torch.device, progress: Progress | None, long: bool) -> Model:
    # Imported here because the `gguf` package takes a quarter of a second, which other models need not wait for.
    from outlay.models.gguf_config import hf_config
    from outlay.models.gguf_file import GgufFile
    from outlay.models.gguf_tokenizer import gguf_tokenizer

    store = GgufFile(path)
    config = decoder_config(hf_config(store), long)
    metadata = store.metadata

    inner = gguf_tokenizer(metadata)
    template = template_source(metadata.get("tokenizer.chat_template"))
    pieces = metadata["tokenizer.ggml.tokens"]
    special = {
        f"{role}_token": pieces[metadata[key]]
        for role, key in (("bos", "tokenizer.ggml.bos_token_id"), ("eos", "tokenizer.ggml.eos_token_id"))
        if key in metadata
    }
    chat = ChatTemplate(template, special) if template else None
    tokenizer = Tokenizer(
        inner,
        eos_token_ids=_ends(config.eos_token_ids, inner, chat),
        bos_token_id=config.bos_token_id,
        template=chat,
    )

    on_cpu = device.type == "cpu"
    format = ("own" if store.quantized and on_cpu else _best_float(device)) if dtype == "auto" else dtype
    builder = Builder(
        config,
        store,
        names.GGUF[config.names],
        format=format,
        float_format=_best_float(device),
        device=device,
        interleaved=metadata["general.architecture"] in INTERLEAVED,
        transposed=False,
        plus_one=False,
    )
    decoder = builder.build(progress)
    held = _held(decoder) if format == "own" else format
    return Model(path.stem, decoder, tokenizer, _fingerprint(store.identity(), sampled(store.path)), held)


def _held(decoder: Decoder) -> str:
    """Returns the formats in which the layers hold their weights, the narrowest first, joined by "+"."""
    linears = [linear for layer in decoder.layers for linear in (layer.qkv, layer.out, *layer.mlp.linears)]
    held = {format for linear in linears for format in linear.format.split("+")}
    return "+".join(format for format in reversed(FORMATS) if format in held)


def _folder_tokenizer(folder: Path, config: DecoderConfig) -> Tokenizer:
    path = folder / "tokenizer.json"
    if not path.exists():
        raise UsageError(f"{folder} holds no tokenizer.json, without which outlay cannot read or write text")
    inner = load_tokenizer_json(path.read_text(encoding="utf-8"))
    options, generation = read_json(folder / "tokenizer_config.json"), read_json(folder / "generation_config.json")
    named = {key: _content(value) for key, value in options.items() if key.endswith("_token")}
    special = {key: content for key, content in named.items() if content}

    source = template_source(options.get("chat_template"))
    separate = folder / "chat_template.jinja"
    if separate.exists():
        source = separate.read_text(encoding="utf-8")
    chat = ChatTemplate(source, special) if source else None

    eos = inner.token_to_id(special["eos_token"]) if "eos_token" in special else None
    ends = (*token_ids(generation.get("eos_token_id")), *config.eos_token_ids, *token_ids(eos))
    bos = inner.token_to_id(special["bos_token"]) if "bos_token" in special else None
    return Tokenizer(
        inner,
        eos_token_ids=_ends(ends, inner, chat),
        bos_token_id=bos if bos is not None else config.bos_token_id,
        template=chat,
    )


def _content(entry: Any) -> str | None:
    """Returns the text of a special token, which a config gives as a string or in a mapping with options."""
    content = entry.get("content") if isinstance(entry, Mapping) else entry
    return content if isinstance(content, str) else None


def _ends(eos: tuple[int, ...], inner: Any, chat: ChatTemplate | None) -> tuple[int, ...]:
    turns = [inner.token_to_id(mark) for mark in _TURN_ENDS] if chat is not None else []
    return tuple(dict.fromkeys([*eos, *(token for token in turns if token is not None)]))


def _best_float(device: torch.device) -> str:
    quick = device.type != "cpu" or native_kernels() or fast_bfloat16()
    return "bfloat16" if quick else "float32"


def _device(name: str) -> torch.device:
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, NotImplementedError):
        raise UsageError(f"device {name!r} is not available here; 'cpu' always is") from None
    return device


def _name(source: str | Path, path: Path) -> str:
    return str(source) if not Path(source).exists() else path.stem if path.is_file() else path.resolve().name


def _fingerprint(*parts: bytes) -> str:
    digest = sha256()
    for part in parts:
        digest.update(sha256(part).digest())
    return digest.hexdigest()
