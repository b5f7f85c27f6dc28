"""Every form of an encoder-decoder beside `transformers`: random checkpoints that it saves, and what both write.

Mu is in no version of it; its peer is its own torch network, which computes every text anew.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from torch import Tensor, nn

from outlay.lm import LM, load
from outlay.progress import ShowProgress
from outlay.train.distill import Mu, MuConfig

PAD, BOS, EOS, VOCAB = 0, 1, 2, 99
BEAMS, WRITTEN = 3, 12  # width of a beam search, and tokens of a text
BANDS, RATE = 16, 16000  # of a spectrogram; samples a second
INPUTS = ((5, 6, 7, 8, EOS), (11, 12, 13, 11, 12, 13, 14, 15, 9, *range(31, 39), EOS), (90, EOS))
SAMPLES = (9000, 15500, 1700)  # of the recordings
IDS: dict[str, Any] = {"vocab_size": VOCAB, "pad_token_id": PAD, "eos_token_id": EOS}
T5: dict[str, Any] = IDS | {
    "d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 3, "num_decoder_layers": 2, "num_heads": 4,
    "relative_attention_num_buckets": 8, "relative_attention_max_distance": 12, "decoder_start_token_id": PAD,
}  # fmt: skip
GATED = {"feed_forward_proj": "gated-gelu"}
BART: dict[str, Any] = IDS | {
    "d_model": 32, "encoder_layers": 3, "decoder_layers": 2, "encoder_ffn_dim": 48, "decoder_ffn_dim": 40,
    "encoder_attention_heads": 4, "decoder_attention_heads": 2, "max_position_embeddings": 64, "bos_token_id": BOS,
    "decoder_start_token_id": EOS, "forced_eos_token_id": None, "init_std": 0.3,
}  # fmt: skip
GEMMA: dict[str, Any] = IDS | {
    "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4, "head_dim": 16,
    "num_key_value_heads": 2, "max_position_embeddings": 64, "query_pre_attn_scalar": 24, "initializer_range": 0.2,
    "sliding_window": 5, "bos_token_id": BOS,
}  # fmt: skip
MOONSHINE: dict[str, Any] = {
    "vocab_size": VOCAB, "hidden_size": 72, "intermediate_size": 48, "encoder_num_hidden_layers": 2,
    "decoder_num_hidden_layers": 2, "encoder_num_attention_heads": 2, "decoder_num_attention_heads": 2,
    "max_position_embeddings": 64, "initializer_range": 0.15,
}  # fmt: skip
WHISPER: dict[str, Any] = IDS | {
    "num_mel_bins": BANDS, "d_model": 32, "encoder_layers": 2, "encoder_attention_heads": 4, "decoder_layers": 2,
    "decoder_attention_heads": 4, "encoder_ffn_dim": 48, "decoder_ffn_dim": 40, "max_source_positions": 50,
    "max_target_positions": 48, "decoder_start_token_id": BOS, "bos_token_id": BOS, "init_std": 0.5,
    "suppress_tokens": None, "begin_suppress_tokens": None,
}  # fmt: skip
PARAKEET: dict[str, Any] = {
    "model_type": "parakeet_encoder", "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4,
    "intermediate_size": 48, "num_mel_bins": BANDS, "subsampling_conv_channels": 8, "conv_kernel_size": 5,
    "initializer_range": 0.2, "scale_input": False, "layerdrop": 0.0,
}  # fmt: skip
CANARY: dict[str, Any] = IDS | {
    "encoder_config": PARAKEET, "bos_token_id": BOS, "decoder_start_token_id": BOS, "initializer_range": 0.5,
    "decoder_config": IDS | {
        "hidden_size": 32, "intermediate_size": 40, "num_hidden_layers": 2, "num_attention_heads": 2,
        "num_key_value_heads": 2, "head_dim": 16, "max_position_embeddings": 48, "initializer_range": 0.5,
        "bos_token_id": BOS,
    },
}  # fmt: skip
PROMPT = ("<|startofcontext|>", "<|startoftranscript|>", "<|emo:undefined|>", "<|en|>", "<|pnc|>", "<|noitn|>",
          "<|notimestamp|>", "<|nodiarize|>")  # fmt: skip
FORMS: Mapping[str, tuple[str, dict[str, Any]]] = {
    "T5": ("T5ForConditionalGeneration", T5),
    "flan-T5": ("T5ForConditionalGeneration", T5 | GATED | {"tie_word_embeddings": False}),
    "mT5": ("MT5ForConditionalGeneration", T5 | GATED),
    "BART": ("BartForConditionalGeneration", BART),
    "mBART": ("MBartForConditionalGeneration", BART | {"scale_embedding": True}),
    "Marian": (
        "MarianMTModel",
        BART | {"decoder_start_token_id": PAD, "scale_embedding": True, "activation_function": "swish"},
    ),
    "T5Gemma": ("T5GemmaForConditionalGeneration", IDS | {"encoder": GEMMA, "decoder": GEMMA, "bos_token_id": BOS}),
    "Moonshine": ("MoonshineForConditionalGeneration", MOONSHINE),
    "Whisper": ("WhisperForConditionalGeneration", WHISPER),
    "Canary": ("CanaryForConditionalGeneration", CANARY),
}
"""Each form's class in `transformers`, and the shape of its checkpoint."""


class Pair(NamedTuple):
    """A form as it runs here and there, with the same inputs."""

    lm: LM
    ours: Sequence[Any]
    """Inputs, as `LM.submit` takes them."""
    theirs: Sequence[Mapping[str, Any]]
    """The same inputs, as the peer's network takes them."""
    logits: Callable[[Mapping[str, Any], list[int]], Tensor]
    """The peer's logits after each token of a text, [tokens, vocab]."""
    write: Callable[[Mapping[str, Any], int], list[int]]
    """What the peer writes of an input with a beam of this width, without the tokens that it starts with."""


def measure_forms(peer: Any, folder: Path, progress: ShowProgress) -> list[dict[str, Any]]:
    """Compares every form.

    Args:
        peer: The package `transformers`.
        folder: Where checkpoints are written.
        progress: Is told how far the work is.

    Returns:
        A row for each form: `log_prob`, the greatest difference of a logarithm of a probability; `greedy` and `beam`,
        the inputs of which both write the same tokens; `inputs`; `encoder_passes` of a beam search over one.
    """
    peer.utils.logging.disable_progress_bar()
    peer.utils.logging.set_verbosity_error()
    rows: list[dict[str, Any]] = []
    for name in (*FORMS, "Mu"):
        progress(name, len(rows), len(FORMS) + 1)
        pair = _mu(folder / name) if name == "Mu" else _of_transformers(peer, name, folder / name)
        rows.append({"form": name, "peer": "its torch network" if name == "Mu" else "transformers", **_compared(pair)})
    return rows


def _compared(pair: Pair) -> dict[str, Any]:
    difference = 0.0
    for ours, theirs in zip(pair.ours, pair.theirs, strict=True):
        written = pair.lm.submit(ours, max_tokens=WRITTEN, logprobs=VOCAB, ignore_eos=True).result()
        wanted = pair.logits(theirs, written.tokens[:-1]).log_softmax(-1)
        for row, found in zip(wanted, written.logprobs or (), strict=True):
            difference = max(difference, *(abs(float(row[token]) - logprob) for token, logprob in found.top))
    same = {
        width: sum(ours == theirs for ours, theirs in zip(_texts(pair, width), _peers_texts(pair, width), strict=True))
        for width in (1, BEAMS)
    }
    pair.lm.engine.clear()
    searched = pair.lm.submit(pair.ours[1], method=f"beam:width={BEAMS}", max_tokens=WRITTEN).result()
    return {
        "log_prob": difference, "greedy": same[1], "beam": same[BEAMS], "inputs": len(pair.ours),
        "encoder_passes": searched.ledger.encoder_passes,
    }  # fmt: skip


def _texts(pair: Pair, width: int) -> list[list[int]]:
    """What we write of all inputs together, up to the end token."""
    method = "greedy" if width == 1 else f"beam:width={width}"
    with pair.lm.engine.together():
        handles = [pair.lm.submit(ours, method=method, max_tokens=WRITTEN) for ours in pair.ours]
    return [_ended(handle.result().tokens) for handle in handles]


def _peers_texts(pair: Pair, width: int) -> Iterator[list[int]]:
    return (_ended(pair.write(theirs, width)) for theirs in pair.theirs)


def _ended(tokens: Sequence[int]) -> list[int]:
    """Returns a text without its end token and what is behind it."""
    return list(tokens[: tokens.index(EOS)] if EOS in tokens else tokens)


def _of_transformers(peer: Any, name: str, folder: Path) -> Pair:
    kind, options = FORMS[name]
    torch.manual_seed(3)
    made = getattr(peer, kind)
    network = made(made.config_class(**options)).eval()
    _shake(network)
    network.save_pretrained(folder)
    _write_tokenizer(folder, PROMPT if name == "Canary" else ())
    extractor = _extractor(peer, name)
    if extractor is not None:
        extractor.save_pretrained(folder)
    if name == "Whisper":
        said = json.loads((folder / "generation_config.json").read_text()) | {"no_timestamps_token_id": VOCAB - 1}
        (folder / "generation_config.json").write_text(json.dumps(said))
    network, lm = made.from_pretrained(folder).eval(), load(str(folder), dtype="float32", threads=1)
    assert lm.model.rules is not None
    start = list(lm.model.rules.start)

    def logits(given: Mapping[str, Any], text: list[int]) -> Tensor:
        with torch.inference_mode():
            found: Tensor = network(**given, decoder_input_ids=torch.tensor([[*start, *text]])).logits[
                0, len(start) - 1 :
            ]
        return found

    def write(given: Mapping[str, Any], width: int) -> list[int]:
        with torch.inference_mode():
            tokens: list[int] = peer.GenerationMixin.generate(
                network, **given, decoder_input_ids=torch.tensor([start]), num_beams=width, max_new_tokens=WRITTEN,
                do_sample=False,
            )[0].tolist()  # fmt: skip
        return tokens[len(start) :]

    if lm.model.speech is None:
        texts = [list(each) for each in INPUTS]
        return Pair(lm, texts, [{"input_ids": torch.tensor([text])} for text in texts], logits, write)
    draw = torch.Generator().manual_seed(1)
    sounds = [torch.randn(samples, generator=draw) * 0.2 for samples in SAMPLES]
    clips = [lm.model.speech.clip(sound) for sound in sounds]
    return Pair(lm, clips, [_features(extractor, sound) for sound in sounds], logits, write)


def _shake(network: nn.Module) -> None:
    """Moves norms, biases and statistics off the values at which they say nothing."""
    with torch.no_grad():
        for name, weight in network.named_parameters():
            if weight.dim() == 1:
                weight.add_(torch.randn_like(weight) * 0.2)
            elif "relative_attention_bias" in name:
                weight.normal_()
        for name, buffer in network.named_buffers():
            if "running_mean" in name:
                buffer.normal_(0, 0.3)
            elif "running_var" in name:
                buffer.uniform_(0.5, 2)


def _extractor(peer: Any, name: str) -> Any:
    """Returns what makes features of sound for a form, None where it reads samples or text."""
    if name == "Whisper":
        return peer.WhisperFeatureExtractor(feature_size=BANDS, chunk_length=1)
    return peer.ParakeetFeatureExtractor(feature_size=BANDS) if name == "Canary" else None


def _features(extractor: Any, sound: Tensor) -> dict[str, Tensor]:
    if extractor is None:
        return {"input_values": sound[None]}
    made = extractor(sound.numpy(), sampling_rate=RATE, return_tensors="pt")
    return {name: made[name] for name in ("input_features", "attention_mask") if name in made}


def _write_tokenizer(folder: Path, names: Sequence[str]) -> None:
    """Writes a tokenizer of letters; `names` are special tokens besides padding, begin and end."""
    special = ["<pad>", "<s>", "</s>"]
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())[: VOCAB - len(special) - len(names)]
    pieces = [*special, *letters, *names]
    inner = Tokenizer(models.BPE(vocab={piece: place for place, piece in enumerate(pieces)}, merges=[]))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    inner.decoder = decoders.ByteLevel()
    inner.add_special_tokens([*special, *names])
    (folder / "tokenizer.json").write_text(inner.to_str())
    named = {"eos_token": "</s>", "pad_token": "<pad>", "bos_token": "<s>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(named))


def _mu(folder: Path) -> Pair:
    torch.manual_seed(3)
    net = Mu(MuConfig(3, 2, 32, 32, 4, 2, 48, VOCAB, 64)).eval()
    with torch.no_grad():
        for weight in net.parameters():
            weight.add_(torch.randn_like(weight) * 0.2)
    folder.mkdir(parents=True)
    marks = {"decoder_start_token_id": BOS, "eos_token_id": EOS, "bos_token_id": BOS, "torch_dtype": "float32"}
    (folder / "config.json").write_text(json.dumps(net.config.as_json() | marks))
    _write_tokenizer(folder, ())
    save_file({name: weight.detach() for name, weight in net.named_parameters()}, folder / "model.safetensors")

    def logits(given: Mapping[str, Any], text: list[int]) -> Tensor:
        source = given["input_ids"]
        with torch.inference_mode():
            found: Tensor = net(source, torch.ones_like(source, dtype=torch.bool), torch.tensor([[BOS, *text]]))[0]
        return found

    def write(given: Mapping[str, Any], width: int) -> list[int]:
        return beam_search(lambda texts: [logits(given, text)[-1].log_softmax(-1) for text in texts], width)

    lm, texts = load(str(folder), dtype="float32", threads=1), [list(each) for each in INPUTS]
    return Pair(lm, texts, [{"input_ids": torch.tensor([text])} for text in texts], logits, write)


def beam_search(after: Callable[[list[list[int]]], list[Tensor]], width: int) -> list[int]:
    """Returns the best text of a beam search as `transformers` searches.

    Each step keeps `width` open texts of the 2 * width best. Those that ended are held, `width` of them at most, by
    their log probability a token; the search ends when no open text, scored by its length now, beats the worst held.

    Args:
        after: Returns the log probabilities [vocab] of the token after each text.
        width: Texts that are kept; 1: the most probable token each time.
    """
    beams, held = [(0.0, list[int]())], list[tuple[float, list[int]]]()
    for length in range(1, WRITTEN + 1):
        scored = [
            (score + value, [*text, token])
            for (score, text), row in zip(beams, after([text for _, text in beams]), strict=True)
            for value, token in zip(*(part.tolist() for part in row.topk(2 * width)), strict=True)
        ]
        best = sorted(scored, key=lambda each: -each[0])[: 2 * width]
        held += [(score / length, text) for score, text in best[:width] if text[-1] == EOS]
        held = sorted(held, key=lambda each: -each[0])[:width]
        beams = [each for each in best if each[1][-1] != EOS][:width]
        if len(held) == width and beams[0][0] / length <= held[-1][0]:
            return held[0][1]
    return max(held + [(score / WRITTEN, text) for score, text in beams], key=lambda each: each[0])[1]
