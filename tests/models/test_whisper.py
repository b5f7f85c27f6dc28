"""Whisper gives what `transformers` gives: spectrogram, logits, tokens, timestamps; and long recordings by windows."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
import transformers
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import WhisperFeatureExtractor

from outlay import UsageError
from outlay.engine.engine import Engine
from outlay.lm import LM
from outlay.models.load import load_model
from outlay.models.mel import WhisperMel
from outlay.models.speech_form import Asked
from outlay.transcripts import segments_of

LETTERS = 40
END, START, EN, DE, FR, TRANSLATE, TRANSCRIBE, BEFORE, NO_SPEECH, NO_TIMES = range(LETTERS, LETTERS + 10)
FIRST = NO_TIMES + 1  # the timestamp of 0 seconds
FRAMES = 50  # of a window, 1 second
VOCAB = FIRST + FRAMES + 1
WHISPER = {
    "vocab_size": VOCAB, "num_mel_bins": 16, "d_model": 32, "encoder_layers": 2, "encoder_attention_heads": 4,
    "decoder_layers": 2, "decoder_attention_heads": 4, "encoder_ffn_dim": 48, "decoder_ffn_dim": 40,
    "max_source_positions": FRAMES, "max_target_positions": 48, "decoder_start_token_id": START, "pad_token_id": END,
    "bos_token_id": END, "eos_token_id": END, "init_std": 0.5, "suppress_tokens": None,
    "begin_suppress_tokens": None,
}  # fmt: skip
GENERATION = {
    "is_multilingual": True, "lang_to_id": {"<|en|>": EN, "<|de|>": DE, "<|fr|>": FR},
    "task_to_id": {"transcribe": TRANSCRIBE, "translate": TRANSLATE}, "no_timestamps_token_id": NO_TIMES,
    "max_initial_timestamp_index": 20, "suppress_tokens": [3, 4, 9, START, BEFORE, NO_SPEECH],
    "begin_suppress_tokens": [5, END], "forced_decoder_ids": [[1, None], [2, TRANSCRIBE]], "max_length": 48,
    "prev_sot_token_id": BEFORE,
}  # fmt: skip
NAMES = {
    END: "<|endoftext|>", START: "<|startoftranscript|>", EN: "<|en|>", DE: "<|de|>", FR: "<|fr|>",
    TRANSLATE: "<|translate|>", TRANSCRIBE: "<|transcribe|>", BEFORE: "<|startofprev|>", NO_SPEECH: "<|nospeech|>",
    NO_TIMES: "<|notimestamps|>",
}  # fmt: skip


def tokenizer() -> Tokenizer:
    """Letters, the tokens of a prompt, and timestamps, which the files of Whisper don't call special."""
    inner = Tokenizer(models.BPE(vocab={letter: at for at, letter in enumerate(sorted(
        pre_tokenizers.ByteLevel.alphabet())[:LETTERS])}, merges=[]))  # fmt: skip
    inner.decoder = decoders.ByteLevel()
    inner.add_special_tokens([AddedToken(NAMES[token], special=True) for token in sorted(NAMES)])
    inner.add_tokens([AddedToken(f"<|{place * 0.02:.2f}|>", special=False) for place in range(FRAMES + 1)])
    return inner


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whisper")
    made(folder)
    return loaded(folder), LM(load_model(folder, dtype="float32"), Engine())


def made(folder) -> None:
    """Saves a random checkpoint."""
    torch.manual_seed(7)
    network = transformers.WhisperForConditionalGeneration(transformers.WhisperConfig(**WHISPER)).eval()
    with torch.no_grad():
        for weight in network.parameters():
            if weight.dim() == 1:
                weight += torch.randn_like(weight) * 0.2
    network.save_pretrained(folder)
    path = folder / "generation_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | GENERATION))
    extractor().save_pretrained(folder)
    (folder / "tokenizer.json").write_text(tokenizer().to_str())
    (folder / "tokenizer_config.json").write_text(json.dumps({"eos_token": NAMES[END], "bos_token": NAMES[END]}))


def loaded(folder):
    """The network of `transformers` with all that its generation config says."""
    network = transformers.WhisperForConditionalGeneration.from_pretrained(folder).eval()
    said = json.loads((folder / "generation_config.json").read_text())
    network.generation_config = transformers.GenerationConfig(**{k: v for k, v in said.items() if k[0] != "_"})
    return network


def extractor(bands: int = 16, seconds: int = 1) -> WhisperFeatureExtractor:
    return WhisperFeatureExtractor(feature_size=bands, chunk_length=seconds)


def sounds() -> list[torch.Tensor]:
    """Tones and noises of several lengths, up to a window."""
    generator = torch.Generator().manual_seed(1)
    noise = [torch.randn(length, generator=generator) * 0.2 for length in (9000, 16000, 1100, 12345)]
    time = torch.arange(9000) / 16000
    return [*noise, 0.4 * torch.sin(2 * torch.pi * 440 * time) * torch.linspace(0, 1, 9000)]


def features(sound: torch.Tensor) -> torch.Tensor:
    return extractor()(sound.numpy(), sampling_rate=16000, return_tensors="pt").input_features


@pytest.mark.parametrize(("bands", "seconds"), [(80, 30), (128, 30), (16, 1)])
def test_the_log_mel_is_that_of_the_feature_extractor(bands, seconds):
    mel, theirs = WhisperMel(bands, seconds * 16000), extractor(bands, seconds)
    for sound in [*sounds(), torch.zeros(400), torch.ones(70)]:
        wanted = theirs(sound.numpy(), sampling_rate=16000, return_tensors="np").input_features[0]
        assert np.abs(mel(sound).numpy() - wanted).max() < 1e-5


def test_the_logits_are_those_of_transformers(pair):
    network, lm = pair
    for sound in sounds():
        clip, rules = lm.model.speech.clip(sound), lm.model.rules
        assert rules is not None
        result = lm.submit(clip, max_tokens=10, logprobs=VOCAB, ignore_eos=True).result()
        text = torch.tensor([[START, *result.tokens[:-1]]])
        with torch.inference_mode():
            wanted = network(input_features=features(sound), decoder_input_ids=text).logits[0].log_softmax(-1)
        for row, found in zip(wanted, result.logprobs, strict=True):
            for token, logprob in found.top:
                assert abs(float(row[token]) - logprob) < 1e-4


def written(network, sound, *, beams=1, most=20, **asked):
    """What `transformers` writes of a clip."""
    with torch.inference_mode():
        out = network.generate(
            features(sound), num_beams=beams, max_new_tokens=most, do_sample=False, **{"task": "transcribe"} | asked,
            return_dict_in_generate=True, force_unique_generate_call=True,
        ).sequences[0].tolist()  # fmt: skip
    return out


@pytest.mark.parametrize("beams", [1, 3])
@pytest.mark.parametrize("asked", [
    {"language": "de"}, {"language": "english", "task": "translate"}, {"language": "fr", "return_timestamps": True},
    {}, {"return_timestamps": True},
])  # fmt: skip
def test_greedy_and_beams_write_what_transformers_writes_alone_and_together(pair, beams, asked):
    network, lm = pair
    ours = {"timestamps" if name == "return_timestamps" else name: value for name, value in asked.items()}
    ours |= {"method": "greedy" if beams == 1 else f"beam:width={beams}", "max_tokens": 20}
    together = [each.result for each in lm.start_transcripts(sounds(), **ours)]
    for sound, transcript in zip(sounds(), together, strict=True):
        wanted = written(network, sound, beams=beams, **asked)
        start = list(lm.model.speech.prompts.start(Asked(transcript.language, ours.get("task", "transcribe"),
                                                         ours.get("timestamps", False))))  # fmt: skip
        found = [*start, *transcript.tokens]
        assert wanted[: len(found)] == found
        assert set(wanted[len(found) :]) <= {END}
        assert lm.transcribe(sound, **ours).tokens == transcript.tokens
        assert transcript.ledger.encoder_passes == 1


def test_the_texts_differ_by_what_is_asked(pair):
    _, lm = pair
    texts = {
        tuple(lm.transcribe(sounds()[1], max_tokens=20, **asked).tokens)
        for asked in ({"language": "en"}, {"language": "de"}, {"language": "de", "task": "translate"},
                      {"language": "de", "timestamps": True})
    }  # fmt: skip
    assert len(texts) == 4


def test_the_language_is_heard_as_transformers_hears_it_and_costs_no_second_reading(pair):
    network, lm = pair
    for sound in sounds():
        heard = lm.transcribe(sound, max_tokens=5)
        wanted = int(network.detect_language(features(sound))[0])
        assert {"en": EN, "de": DE, "fr": FR}[heard.language] == wanted
        assert heard.ledger.encoder_passes == 1
        told = lm.transcribe(sound, language=heard.language, max_tokens=5)
        assert told.tokens == heard.tokens
        assert heard.ledger.target_passes == told.ledger.target_passes + 1


@pytest.mark.parametrize("method", ["lookup", "auto", "aded"])
def test_drafts_write_the_same_transcript_with_timestamps(pair, method):
    _, lm = pair
    for sound in sounds()[:2]:
        options = {"language": "de", "timestamps": True, "max_tokens": 25}
        assert lm.transcribe(sound, method=method, **options).tokens == lm.transcribe(sound, **options).tokens


def test_timestamps_begin_come_in_pairs_and_never_go_back(pair):
    _, lm = pair
    for sound in sounds():
        for seed in range(4):
            tokens = lm.transcribe(
                sound, language="en", timestamps=True, method="sample", temperature=1.5, seed=seed, max_tokens=30
            ).tokens
            assert FIRST <= tokens[0] <= FIRST + 20
            stamps = [token for token in tokens if token >= FIRST]
            assert stamps == sorted(stamps)
            assert NO_TIMES not in tokens
            assert not any(
                a >= FIRST and b >= FIRST and c >= FIRST
                for a, b, c in zip(tokens, tokens[1:], tokens[2:], strict=False)
            )


def test_segments_are_cut_at_timestamps(pair):
    _, lm = pair
    times = lm.model.speech.prompts.timestamps
    tokens = [FIRST + 5, 10, 11, FIRST + 20, FIRST + 20, 12, FIRST + 30, FIRST + 40, 13, END]
    found = segments_of(tokens, times, 2.0, 3.0, lm.model.tokenizer)
    assert [(round(each.start, 2), round(each.end, 2), each.tokens) for each in found] == [
        (2.1, 2.4, [10, 11]), (2.4, 2.6, [12]), (2.8, 3.0, [13]),
    ]  # fmt: skip
    assert lm.model.tokenizer.decode(tokens) == lm.model.tokenizer.decode([10, 11, 12, 13])


def test_a_long_recording_is_heard_by_windows(pair):
    network, lm = pair
    long = torch.cat([sounds()[0], sounds()[1], sounds()[3], sounds()[1]])
    transcript = lm.transcribe(long, language="en", timestamps=True, max_tokens=12)
    assert len(transcript.parts) > 3
    assert transcript.parts[0].start == 0
    assert transcript.seconds == len(long) / 16000
    for part in transcript.parts:
        clip = long[round(part.start * 16000) : round(part.end * 16000)]
        assert len(clip) <= 16000
        wanted = written(network, clip, most=12, language="en", return_timestamps=True)[3:]
        assert wanted[: len(part.result.tokens)] == part.result.tokens
        assert all(part.start <= each.start <= each.end <= part.end for each in part.segments)


def test_the_text_ends_with_the_decoders_context(pair):
    _, lm = pair
    transcript = lm.transcribe(sounds()[0], language="en", ignore_eos=True)
    assert len(transcript.tokens) == 48 - 4


def test_what_is_not_done_is_refused_in_one_line(pair):
    _, lm = pair
    for options, said in [
        ({"language": "klingon"}, "knows no language 'klingon'; it knows en, de, fr"),
        ({"task": "sing"}, "a task is transcribe or translate, not 'sing'"),
        ({"language": " "}, "the language is empty"),
    ]:
        with pytest.raises(UsageError, match=said):
            lm.transcribe(sounds()[0], **options)


def test_a_whisper_of_english_alone_has_no_languages(pair, tmp_path):
    network, _ = pair
    network.save_pretrained(tmp_path)
    (tmp_path / "tokenizer.json").write_text(tokenizer().to_str())
    path = tmp_path / "generation_config.json"
    raw = json.loads(path.read_text()) | GENERATION
    path.write_text(json.dumps(raw | {"is_multilingual": False, "forced_decoder_ids": [[1, NO_TIMES]]}))
    english = LM(load_model(tmp_path, dtype="float32"), Engine())
    alone = loaded(tmp_path)
    sound = sounds()[1]
    wanted = written(alone, sound, most=10, task=None)
    found = [START, NO_TIMES, *english.transcribe(sound, max_tokens=10).tokens]
    assert wanted[: len(found)] == found
    with pytest.raises(UsageError, match="hears English alone"):
        english.transcribe(sound, task="translate")
    (tmp_path / "preprocessor_config.json").write_text(json.dumps({"feature_size": 80}))
    with pytest.raises(UsageError, match="makes 80 mel bands, but the encoder reads 16"):
        load_model(tmp_path)
