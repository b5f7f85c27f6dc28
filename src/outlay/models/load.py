"""Loads a model: an alias, a folder, a GGUF file or a hub id becomes a decoder and a tokenizer."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from outlay.errors import UsageError, nearest
from outlay.models import hub, names
from outlay.models.build import Builder, Progress
from outlay.models.chat import ChatTemplate, template_source
from outlay.models.checkpoint import Checkpoint, read_json, sampled
from outlay.models.config import DIFFUSION_MASKS, FAMILIES, DecoderConfig, decoder_config, token_ids
from outlay.models.decoder import Decoder
from outlay.models.encoder import Encoder
from outlay.models.encoder_config import ENCODER_DECODERS, encoder_decoder_config
from outlay.models.forms import form_of
from outlay.models.generation import GenerationRules, generation_rules
from outlay.models.linear import FORMATS, NativeLinear, fast_bfloat16, native_kernels, pack
from outlay.models.reward_head import RewardHead, find_head, form_name
from outlay.models.speech_form import SpeechForm, speech_form
from outlay.models.tokenizer import Tokenizer, load_tokenizer_json
from outlay.models.vision import Vision
from outlay.models.vision.forms import VISION_FORMS, image_token_of, load_vision, vision_decoder_config

if TYPE_CHECKING:
    from outlay.models.gguf_file import GgufFile

DTYPES = ("auto", *FORMATS)
# Ends of a turn that some chat models write although their configs do not list them.
_TURN_ENDS = ("<|im_end|>", "<|eot_id|>", "<end_of_turn>", "<|end|>")

INTERLEAVED = ("llama", "granite", "smollm3", "llada")
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
    """A reward model's head, whose first layer stands in place of the LM head. None: the LM head is there."""
    reward_form: str | None = None
    """The form of a reward model, as `outlay.rewards.forms` names it. None: a language model."""
    encoder: Encoder | None = None
    """What reads the input, whose output the decoder reads. None: a decoder alone."""
    speech: SpeechForm | None = None
    """What it hears, where its encoder reads sound and no tokens."""
    vision: Vision | None = None
    """What it sees images with. None: it reads text alone."""
    rules: GenerationRules | None = None
    """What the checkpoint demands of a text, and what its decoder starts with. None where there is no encoder."""
    path: Path | None = None
    """The file or folder that it was loaded from. None: made in memory."""
    make_pass: Callable[[Any], Any] | None = None
    """Makes what runs the model's passes over a cache, where the decoder's layers don't: of exact models."""

    @property
    def writes_canvas(self) -> bool:
        """Whether the model fills masks on a canvas; else it writes from left to right."""
        return self.decoder.config.diffusion is not None


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
    if model.reward_form is None:
        model = replace(model, reward_form=form_name(str(source), {}, None))
    return replace(model, name=_name(source, path), path=path)


def _load_folder(folder: Path, dtype: str, device: torch.device, progress: Progress | None, long: bool) -> Model:
    raw = read_json(folder / "config.json")
    if not raw:
        raise UsageError(f"{folder} holds no config.json, so it is not a model in the hub's layout")
    form = form_of(raw)
    format = (_best_float(device) if form is None else "own") if dtype == "auto" else dtype
    if raw.get("model_type") in ENCODER_DECODERS:
        if form is not None:
            raise UsageError(f"packed weights are read for {', '.join(FAMILIES)}, not for {raw.get('model_type')}")
        return _load_encoder_decoder(folder, raw, format, device, progress)
    if raw.get("model_type") in VISION_FORMS:
        if form is not None:
            raise UsageError(f"packed weights are read for {', '.join(FAMILIES)}, not for {raw.get('model_type')}")
        return _load_seeing(folder, raw, format, device, progress)
    decoder: Decoder
    head: RewardHead | None = None
    if raw.get("model_type") in FAMILIES:
        config = decoder_config(raw, long)
        if config.diffusion is not None:
            _refuse_adapter(folder)
        config, tokenizer = _folder_tokenizer(folder, config)
        store = Checkpoint(folder, form)
        head = find_head(store.shape, store.floats, device)
        if head is not None:
            config = replace(config, logit_softcap=None)
        decoder = _folder_builder(config, store, format, device, head).build(progress)
    else:
        from outlay.models.via_transformers.load import load_decoder, network_class

        kind = network_class(raw)  # a family that does not run is refused as such, whatever else the folder lacks
        if form is not None:
            raise UsageError(f"packed weights are read for {', '.join(FAMILIES)}, not for {raw.get('model_type')}")
        store = Checkpoint(folder)
        decoder = load_decoder(kind, folder, raw, format, device, progress)
        _, tokenizer = _folder_tokenizer(folder, decoder.config)
    canonical = json.dumps(raw, sort_keys=True).encode()
    fingerprint, reward = _fingerprint(canonical, store.identity()), form_name("", raw, head)
    held = _held(decoder) if format == "own" else format
    return Model(folder.name, decoder, tokenizer, fingerprint, held, head=head, reward_form=reward)


def _load_encoder_decoder(
    folder: Path, raw: dict[str, Any], format: str, device: torch.device, progress: Progress | None
) -> Model:
    config, store = encoder_decoder_config(raw), Checkpoint(folder)
    generation = read_json(folder / "generation_config.json")
    speech = speech_form(raw, read_json(folder / "preprocessor_config.json"), generation, lambda: _added_tokens(folder))
    rules = generation_rules(raw, generation, told=speech is not None and speech.prompts is not None)
    _, tokenizer = _folder_tokenizer(folder, config.decoder, () if speech is None else speech.silent)
    head = names.HF[config.decoder.names].get("lm_head")
    tied = head is None or store.shape(f"{head}.weight") is None  # whatever the config says, as in `transformers`
    decoder = _folder_builder(replace(config.decoder, tied_lm_head=tied), store, format, device).build(progress)
    parts = (names.HF[half.names]["embed"] for half in (config.encoder, config.decoder))
    shared = decoder.embed if len({*parts}) == 1 else None
    encoder = _folder_builder(config.encoder, store, format, device).build_encoder(
        shared, progress, None if speech is None else speech.stem
    )
    fingerprint = _fingerprint(json.dumps(raw, sort_keys=True).encode(), store.identity())
    return Model(folder.name, decoder, tokenizer, fingerprint, format, encoder=encoder, rules=rules, speech=speech)


def _load_seeing(
    folder: Path, raw: dict[str, Any], format: str, device: torch.device, progress: Progress | None
) -> Model:
    """Loads a model with a vision tower."""
    store = Checkpoint(folder)
    config, token = vision_decoder_config(raw, store), image_token_of(raw)
    config, tokenizer = _folder_tokenizer(folder, config, control=(token,))
    image_token = tokenizer.name_of(token)
    if not image_token or not 0 <= token < config.vocab_size:
        raise UsageError(f"the tokenizer of {folder} has no token {token}, which stands for images in config.json")
    decoder = _folder_builder(config, store, format, device).build(progress)
    vision = load_vision(
        folder, raw, store, image_token, format=format, device=device, hidden_size=config.hidden_size, progress=progress
    )
    fingerprint = _fingerprint(json.dumps(raw, sort_keys=True).encode(), store.identity())
    return Model(folder.name, decoder, tokenizer, fingerprint, format, vision=vision)


def sees_images(path: Path) -> bool:
    """Tells whether a model on disk has a vision tower that runs here. Its weights are not read."""
    return path.is_dir() and read_json(path / "config.json").get("model_type") in VISION_FORMS


def family_of(path: Path) -> str:
    """Returns the family of a model on disk, as `config.json` names it.

    Raises:
        UsageError: if the model cannot be read, its weights are packed, or attention is not its only memory.
    """
    if path.is_dir():
        from outlay.models.via_transformers.families import refuse_other_memory

        raw = read_json(path / "config.json")
        form_of(raw)
        refuse_other_memory(raw)
        return str(raw.get("model_type"))
    from outlay.models.gguf_config import hf_config
    from outlay.models.gguf_file import GgufFile

    return str(hf_config(GgufFile(path))["model_type"])


def reward_form_of(source: str, path: Path) -> str | None:
    """Returns the form of a reward model on disk; None for a language model. Its weights are not read, or needed.

    Args:
        source: What it is called.
        path: Its folder or file.
    """
    raw, head = read_json(path / "config.json") if path.is_dir() else {}, None
    if raw and any(path.glob("*.safetensors")):
        store = Checkpoint(path)
        head = find_head(store.shape, store.floats, torch.device("cpu"))
    return form_name(source, raw, head)


def _folder_builder(
    config: DecoderConfig, store: Checkpoint, format: str, device: torch.device, head: RewardHead | None = None
) -> Builder:
    return Builder(
        config,
        store,
        names.HF[config.names],
        format=format,
        float_format=_best_float(device) if format == "own" else format,
        device=device,
        interleaved=False,
        transposed=config.architecture == "gpt2",
        plus_one=config.norm_plus_one,
        head=None if head is None else head.layers[0],
        narrow_vocabulary=format == "own",
    )


def _load_gguf(path: Path, dtype: str, device: torch.device, progress: Progress | None, long: bool) -> Model:
    # Imported here because the `gguf` package takes a quarter of a second, which other models need not wait for.
    from outlay.models.gguf_config import hf_config
    from outlay.models.gguf_file import GgufFile

    store = GgufFile(path)
    config, tokenizer = _gguf_tokenizer(decoder_config(hf_config(store), long), store.metadata)
    on_cpu = device.type == "cpu"
    format = ("own" if store.quantized and on_cpu else _best_float(device)) if dtype == "auto" else dtype
    decoder = _gguf_builder(config, store, format, device).build(progress)
    held = _held(decoder) if format == "own" else format
    return Model(path.stem, decoder, tokenizer, _fingerprint(store.identity(), sampled(store.path)), held)


def _gguf_builder(config: DecoderConfig, store: GgufFile, format: str, device: torch.device) -> Builder:
    return Builder(
        config,
        store,
        names.GGUF[config.names],
        format=format,
        float_format=_best_float(device),
        device=device,
        interleaved=store.metadata["general.architecture"] in INTERLEAVED,
        transposed=False,
        plus_one=False,
    )


def _gguf_tokenizer(config: DecoderConfig, metadata: Mapping[str, Any]) -> tuple[DecoderConfig, Tokenizer]:
    """Returns the tokenizer, and the config with the mask that only the tokenizer may tell."""
    from outlay.models.gguf_tokenizer import gguf_tokenizer

    inner = gguf_tokenizer(metadata)
    template = template_source(metadata.get("tokenizer.chat_template"))
    pieces = metadata["tokenizer.ggml.tokens"]
    special = {
        f"{role}_token": pieces[metadata[key]]
        for role, key in (("bos", "tokenizer.ggml.bos_token_id"), ("eos", "tokenizer.ggml.eos_token_id"))
        if key in metadata
    }
    chat = ChatTemplate(template, special) if template else None
    config = _with_mask(config, inner, entry="tokenizer.ggml.mask_token_id")
    return config, Tokenizer(
        inner,
        eos_token_ids=_ends(config.eos_token_ids, inner, chat),
        bos_token_id=config.bos_token_id,
        template=chat,
        control=() if config.diffusion is None else (config.diffusion.mask,),
    )


@dataclass(frozen=True)
class Opened:
    """A model on disk whose weights are read layer by layer."""

    path: Path
    """Its folder or file."""
    raw: dict[str, Any]
    """Its config.json, or what a GGUF file's metadata stand for."""
    builder: Builder
    """Builds its parts in float32."""
    tokenizer: Tokenizer
    """Its tokenizer."""
    fingerprint: str
    """Identifies the weights, as `Model.fingerprint` does."""

    @property
    def config(self) -> DecoderConfig:
        """The shape of its decoder."""
        return self.builder.config


def open_model(source: str | Path, progress: Progress | None = None) -> Opened:
    """Opens a model without reading its weights.

    Args:
        source: as for `load_model`.
        progress: told of a download.

    Raises:
        UsageError: if there is no such model, its weights are packed already, or it has no native layers here.
    """
    path, device = hub.resolve(source, progress), torch.device("cpu")
    if path.is_dir():
        raw = read_json(path / "config.json")
        if not raw:
            raise UsageError(f"{path} holds no config.json, so it is not a model in the hub's layout")
        if form_of(raw) is not None:
            raise UsageError(f"the weights of {source} are packed already; give the model in floats")
        if raw.get("model_type") not in FAMILIES:
            raise UsageError(f"{raw.get('model_type')} is none of the families {', '.join(FAMILIES)}")
        config, tokenizer = _folder_tokenizer(path, decoder_config(raw))
        store = Checkpoint(path)
        builder = _folder_builder(config, store, "float32", device, None)
        fingerprint = _fingerprint(json.dumps(raw, sort_keys=True).encode(), store.identity())
        return Opened(path, raw, builder, tokenizer, fingerprint)
    from outlay.models.gguf_config import hf_config
    from outlay.models.gguf_file import GgufFile

    file = GgufFile(path)
    raw = hf_config(file)
    config, tokenizer = _gguf_tokenizer(decoder_config(raw), file.metadata)
    fingerprint = _fingerprint(file.identity(), sampled(file.path))
    return Opened(path, raw, _gguf_builder(config, file, "float32", device), tokenizer, fingerprint)


def _held(decoder: Decoder) -> str:
    """Returns the formats in which the layers hold their weights, the narrowest first, joined by "+"."""
    linears = [linear for layer in decoder.layers for linear in (layer.qkv, layer.out, *layer.mlp.linears)]
    held = {format for linear in linears for format in linear.format.split("+")}
    return "+".join(format for format in reversed(FORMATS) if format in held)


def held_in_passes(folder: Path) -> Counter[str]:
    """Returns how many matrices of a shrunk folder passes hold in each format; empty where its weights are floats.

    Args:
        folder: The folder; every matrix is read, one at a time.
    """
    raw = read_json(folder / "config.json") if folder.is_dir() else {}
    form, found = form_of(raw) if raw else None, Counter[str]()
    if form is None:
        return found
    store = Checkpoint(folder, form)
    for module in store.modules():
        matrix = form.matrix(module, store)
        linear = pack(matrix, matrix.format)
        found[linear.packed.parts[0].format if isinstance(linear, NativeLinear) else linear.format] += 1
    return found


def _refuse_adapter(folder: Path) -> None:
    if (folder / "adapter_config.json").exists():
        raise UsageError(
            f"{folder} is an adapter (adapter_config.json), which outlay does not add; give merged weights"
        )


def _folder_tokenizer(
    folder: Path, config: DecoderConfig, control: Iterable[int] = ()
) -> tuple[DecoderConfig, Tokenizer]:
    """Returns the tokenizer, and the config with the mask that only the tokenizer may tell.

    Args:
        folder: The model's folder.
        config: Of its decoder.
        control: Tokens that no text spells out, whatever the tokenizer's file says.
    """
    path = folder / "tokenizer.json"
    if path.exists():
        inner = load_tokenizer_json(path.read_text(encoding="utf-8"))
    elif config.diffusion is not None and (folder / "vocab.json").exists() and (folder / "merges.txt").exists():
        inner = _qwen_tokenizer(folder)
    else:
        raise UsageError(f"{folder} holds no tokenizer.json, without which outlay cannot read or write text")
    options, generation = read_json(folder / "tokenizer_config.json"), read_json(folder / "generation_config.json")
    named = {key: _content(value) for key, value in options.items() if key.endswith("_token")}
    special = {key: content for key, content in named.items() if content}

    older = read_json(folder / "chat_template.json")  # of processors
    source = template_source(options.get("chat_template") or older.get("chat_template"))
    separate = folder / "chat_template.jinja"
    if separate.exists():
        source = separate.read_text(encoding="utf-8")
    chat = ChatTemplate(source, special) if source else None

    eos = inner.token_to_id(special["eos_token"]) if "eos_token" in special else None
    ends = (*token_ids(generation.get("eos_token_id")), *config.eos_token_ids, *token_ids(eos))
    bos = inner.token_to_id(special["bos_token"]) if "bos_token" in special else None
    config = _with_mask(config, inner, special.get("mask_token"))
    return config, Tokenizer(
        inner,
        eos_token_ids=_ends(ends, inner, chat),
        bos_token_id=bos if bos is not None else config.bos_token_id,
        template=chat,
        control=control if config.diffusion is None else (*control, config.diffusion.mask),
    )


def _added_tokens(folder: Path) -> dict[str, int]:
    """Returns the tokens that a tokenizer's file adds to its model, by what they are called."""
    added = read_json(folder / "tokenizer.json").get("added_tokens", ())
    return {str(entry["content"]): int(entry["id"]) for entry in added}


def _qwen_tokenizer(folder: Path) -> Any:
    """Returns the tokenizer of a folder of Dream, SDAR or Fast-dLLM v2 that has the files of Qwen2's slow tokenizer.

    Raises:
        UsageError: Where ids are missing between others.
    """
    from outlay.models.gguf_tokenizer import CONTROL, NORMAL, USER_DEFINED, gguf_tokenizer

    ids = {piece: int(token) for piece, token in read_json(folder / "vocab.json").items()}
    added = {str(piece): int(token) for piece, token in read_json(folder / "added_tokens.json").items()}
    entries = read_json(folder / "tokenizer_config.json").get("added_tokens_decoder", {})
    special = {str(entry["content"]) for entry in entries.values() if entry.get("special", False)}
    added |= {str(entry["content"]): int(token) for token, entry in entries.items()}
    pieces = {token: piece for piece, token in (ids | added).items()}
    if sorted(pieces) != list(range(len(pieces))):
        raise UsageError(f"the ids of vocab.json and of the added tokens in {folder} leave some out")
    named = [pieces[token] for token in range(len(pieces))]
    lines = (folder / "merges.txt").read_text(encoding="utf-8").splitlines()
    return gguf_tokenizer(
        {
            "tokenizer.ggml.model": "gpt2",
            "tokenizer.ggml.pre": "qwen2",
            "tokenizer.ggml.tokens": named,
            "tokenizer.ggml.token_type": [
                NORMAL if piece not in added else CONTROL if piece in special else USER_DEFINED for piece in named
            ],
            "tokenizer.ggml.merges": [line for line in lines if line and not line.startswith("#version")],
        }
    )


def _with_mask(
    config: DecoderConfig, inner: Any, name: str | None = None, entry: str = "mask_token_id in config.json"
) -> DecoderConfig:
    """Returns the config of a model that fills masks with its mask.

    Args:
        config: The config, whose mask is -1 where it doesn't tell.
        inner: The tokenizer.
        name: What the tokenizer's options call the mask, if they do.
        entry: Where the model's files would tell.

    Raises:
        UsageError: Where nothing tells which token the mask is, or it isn't in the vocabulary.
    """
    diffusion = config.diffusion
    if diffusion is None:
        return config
    mask = diffusion.mask
    if mask < 0:
        usual = DIFFUSION_MASKS.get(config.architecture)
        found = [inner.token_to_id(each) for each in (name, usual) if each is not None]
        mask = next((token for token in found if token is not None), -1)
    if not 0 <= mask < config.vocab_size:
        raise UsageError(
            f"nothing tells which token is the mask of this {config.architecture}: there is no {entry} that is in the "
            f"vocabulary, and the tokenizer names none; add {entry}"
        )
    return replace(config, diffusion=replace(diffusion, mask=mask))


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
