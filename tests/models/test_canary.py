"""Canary gives what `transformers` gives: spectrogram, FastConformer, logits and tokens, alone and together."""

from __future__ import annotations

import json

import pytest
import torch
import transformers
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import ParakeetFeatureExtractor

from outlay import UsageError
from outlay.engine.engine import Engine
from outlay.lm import LM
from outlay.models.load import load_model
from outlay.models.mel import ParakeetMel
from outlay.models.speech_form import Asked

LETTERS, BANDS = 40, 16
SPECIAL = ["<pad>", "<|endoftext|>", "<|startofcontext|>", "<|startoftranscript|>", "<|emo:undefined|>", "<|en|>",
           "<|de|>", "<|pnc|>", "<|noitn|>", "<|notimestamp|>", "<|nodiarize|>"]  # fmt: skip
PAD, END, BEGIN, _, _, EN, DE, *_ = range(LETTERS, LETTERS + len(SPECIAL))
VOCAB = LETTERS + len(SPECIAL)
ENCODER = {
    "model_type": "parakeet_encoder", "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4,
    "intermediate_size": 48, "num_mel_bins": BANDS, "subsampling_conv_channels": 8, "conv_kernel_size": 5,
    "initializer_range": 0.2, "scale_input": False, "layerdrop": 0.0,
}  # fmt: skip
DECODER = {
    "vocab_size": VOCAB, "hidden_size": 32, "intermediate_size": 40, "num_hidden_layers": 2, "num_attention_heads": 2,
    "num_key_value_heads": 2, "head_dim": 16, "max_position_embeddings": 48, "initializer_range": 0.5,
    "pad_token_id": PAD, "bos_token_id": BEGIN, "eos_token_id": END,
}  # fmt: skip


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    folder = tmp_path_factory.mktemp("canary")
    torch.manual_seed(7)
    config = transformers.CanaryConfig(
        encoder_config=ENCODER, decoder_config=DECODER, vocab_size=VOCAB, pad_token_id=PAD, bos_token_id=BEGIN,
        eos_token_id=END, decoder_start_token_id=BEGIN, initializer_range=0.5,
    )  # fmt: skip
    network = transformers.CanaryForConditionalGeneration(config).eval()
    with torch.no_grad():
        for weight in network.parameters():
            if weight.dim() == 1:
                weight += torch.randn_like(weight) * 0.2
        for name, buffer in network.named_buffers():
            if "running_mean" in name:
                buffer.normal_(0, 0.3)
            elif "running_var" in name:
                buffer.uniform_(0.5, 2)
    network.save_pretrained(folder)
    extractor().save_pretrained(folder)
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())[:LETTERS]
    inner = Tokenizer(models.BPE(vocab={letter: at for at, letter in enumerate(letters)}, merges=[]))
    inner.decoder = decoders.ByteLevel()
    inner.add_special_tokens([AddedToken(name, special=True) for name in SPECIAL])
    (folder / "tokenizer.json").write_text(inner.to_str())
    (folder / "tokenizer_config.json").write_text(json.dumps({"eos_token": "<|endoftext|>"}))
    network = transformers.CanaryForConditionalGeneration.from_pretrained(folder).eval()
    return network, LM(load_model(folder, dtype="float32"), Engine())


def extractor() -> ParakeetFeatureExtractor:
    return ParakeetFeatureExtractor(feature_size=BANDS)


def sounds() -> list[torch.Tensor]:
    """Noises of several lengths."""
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(length, generator=generator) * 0.2 for length in (9000, 30000, 1700)]


def features(sound: torch.Tensor) -> dict[str, torch.Tensor]:
    made = extractor()(sound.numpy(), sampling_rate=16000, return_tensors="pt")
    return {"input_features": made.input_features, "attention_mask": made.attention_mask}


@pytest.mark.parametrize("bands", [BANDS, 80, 128])
def test_the_log_mel_is_that_of_the_feature_extractor(bands):
    mel, theirs = ParakeetMel(bands), ParakeetFeatureExtractor(feature_size=bands)
    for sound in sounds():
        made = theirs(sound.numpy(), sampling_rate=16000, return_tensors="pt")
        frames = int(made.attention_mask.sum())
        assert mel.frames(len(sound)) == frames
        assert (mel(sound) - made.input_features[0, :frames]).abs().max() < 1e-5


def test_the_logits_are_those_of_transformers(pair):
    network, lm = pair
    for sound in sounds():
        result = lm.submit(lm.model.speech.clip(sound), max_tokens=8, logprobs=VOCAB, ignore_eos=True).result()
        text = torch.tensor([[BEGIN, *result.tokens[:-1]]])
        with torch.inference_mode():
            wanted = network(**features(sound), decoder_input_ids=text).logits[0].log_softmax(-1)
        for row, found in zip(wanted, result.logprobs, strict=True):
            for token, logprob in found.top:
                assert abs(float(row[token]) - logprob) < 1e-4


@pytest.mark.parametrize("beams", [1, 3])
@pytest.mark.parametrize("asked", [{}, {"language": "German"}, {"language": "de", "task": "translate"}])
def test_greedy_and_beams_write_what_transformers_writes_alone_and_together(pair, beams, asked):
    network, lm = pair
    ours = asked | {"method": "greedy" if beams == 1 else f"beam:width={beams}", "max_tokens": 20}
    start = list(lm.model.speech.prompts.start(Asked(**asked)))
    together = [each.result for each in lm.start_transcripts(sounds(), **ours)]
    for sound, transcript in zip(sounds(), together, strict=True):
        with torch.inference_mode():
            wanted = network.generate(
                **features(sound), decoder_input_ids=torch.tensor([start]), num_beams=beams, max_new_tokens=20,
                do_sample=False,
            )[0].tolist()  # fmt: skip
        found = [*start, *transcript.tokens]
        assert wanted[: len(found)] == found
        assert set(wanted[len(found) :]) <= {PAD}
        assert lm.transcribe(sound, **ours).tokens == transcript.tokens
        assert transcript.ledger.encoder_passes == 1
        assert transcript.ledger.encoder_tokens == lm.model.speech.frames(len(sound))


def test_the_prompt_says_both_languages_and_what_is_to_be_written(pair):
    _, lm = pair
    names = [SPECIAL[token - LETTERS] for token in lm.model.speech.prompts.start(Asked("de", "translate"))]
    assert names == [*SPECIAL[2:5], "<|de|>", "<|en|>", *SPECIAL[7:]]


def test_drafts_write_the_same_transcript(pair):
    _, lm = pair
    for method in ("lookup", "auto"):
        assert lm.transcribe(sounds()[1], method=method, max_tokens=20).tokens == lm.transcribe(
            sounds()[1], max_tokens=20
        ).tokens  # fmt: skip


def test_what_is_not_done_is_refused_in_one_line(pair):
    _, lm = pair
    for options, said in [
        ({"language": "fr"}, "knows no language 'fr'; it knows de, en"),
        ({"timestamps": True}, "timestamps of Canary are not read"),
    ]:
        with pytest.raises(UsageError, match=said):
            lm.transcribe(sounds()[0], **options)
    with pytest.raises(UsageError, match="is too short"):
        lm.transcribe([0.1] * 200)
