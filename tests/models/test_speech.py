"""Speech: Moonshine gives what `transformers` gives, and recordings are cut where it is quiet."""

from __future__ import annotations

import json
from itertools import pairwise

import pytest
import torch
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from outlay import UsageError
from outlay.engine.engine import Engine
from outlay.errors import FailureError
from outlay.lm import LM
from outlay.models.audio import at_rate, cut
from outlay.models.load import load_model
from outlay.models.moonshine_files import read_pieces
from outlay.models.ort_file import OrtFile
from outlay.models.speech import moonshine_frames
from outlay.testing import tiny_lm

VOCAB, RATE = 90, 16000
MOONSHINE = {
    "vocab_size": VOCAB, "hidden_size": 72, "intermediate_size": 48, "encoder_num_hidden_layers": 2,
    "decoder_num_hidden_layers": 2, "encoder_num_attention_heads": 2, "decoder_num_attention_heads": 2,
    "max_position_embeddings": 64, "initializer_range": 0.15,
}  # fmt: skip


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    folder = tmp_path_factory.mktemp("moonshine")
    torch.manual_seed(5)
    network = transformers.MoonshineForConditionalGeneration(transformers.MoonshineConfig(**MOONSHINE)).eval()
    with torch.no_grad():
        for weight in network.parameters():
            if weight.dim() == 1:
                weight += torch.randn_like(weight) * 0.2
    network.save_pretrained(folder)
    pieces = ["<unk>", "<s>", "</s>", *sorted(pre_tokenizers.ByteLevel.alphabet())[: VOCAB - 3]]
    inner = Tokenizer(models.BPE(vocab={piece: place for place, piece in enumerate(pieces)}, merges=[]))
    inner.decoder = decoders.ByteLevel()
    (folder / "tokenizer.json").write_text(inner.to_str())
    (folder / "tokenizer_config.json").write_text(json.dumps({"eos_token": "</s>", "bos_token": "<s>"}))
    return network, LM(load_model(folder, dtype="float32"), Engine())


def sounds() -> list[torch.Tensor]:
    """Noises of several lengths."""
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(length, generator=generator) * 0.2 for length in (9000, 30000, 1100)]


def test_moonshine_writes_what_transformers_writes_alone_and_together(pair):
    network, lm = pair
    heard = [each.result for each in lm.start_transcripts(sounds(), method="greedy", max_tokens=12)]
    for samples, transcript in zip(sounds(), heard, strict=True):
        with torch.inference_mode():
            wanted = network.generate(samples[None], max_new_tokens=12, do_sample=False)[0].tolist()[1:]
        assert transcript.tokens == wanted
        assert lm.transcribe(samples, max_tokens=12).tokens == wanted
        assert transcript.ledger.encoder_tokens == moonshine_frames(len(samples))


def test_the_logits_of_moonshine_are_those_of_transformers(pair):
    network, lm = pair
    samples = sounds()[1]
    result = lm.submit(lm.model.speech.clip(samples), max_tokens=8, logprobs=VOCAB, ignore_eos=True).result()
    text = torch.tensor([[1, *result.tokens[:-1]]])
    with torch.inference_mode():
        wanted = network(input_values=samples[None], decoder_input_ids=text).logits[0].log_softmax(-1)
    for row, found in zip(wanted, result.logprobs, strict=True):
        for token, logprob in found.top:
            assert abs(float(row[token]) - logprob) < 1e-4


def test_drafts_write_the_same_transcript(pair):
    _, lm = pair
    samples = sounds()[1]
    wanted = lm.transcribe(samples, method="greedy", max_tokens=20).tokens
    for method in ("lookup", "auto"):
        assert lm.transcribe(samples, method=method, max_tokens=20).tokens == wanted


def test_a_trace_tells_of_the_memory_and_of_the_pass_that_made_it(pair):
    _, lm = pair
    lm.engine.clear()
    events = [[], [], []]
    same = [sounds()[1], sounds()[0], sounds()[1]]
    for each in lm.start_transcripts(same, method="lookup", max_tokens=6, traces=lambda number: events[number].append):
        assert each.result.tokens
    rows = [moonshine_frames(len(samples)) for samples in same]
    read = []
    for mine, length in zip(events, rows, strict=True):
        (memory,) = (event for event in mine if event["event"] == "memory")
        assert (memory["rows"], memory["kind"]) == (length, "sound")
        assert memory["bytes"] == length * 2 * 2 * 80 * 4  # keys and values of two layers, heads of 36 padded to 40
        read.append([event["inputs"] for event in mine if event["event"] == "pass" and event["model"] == "encoder"])
    assert read == [[rows[0]], [rows[1]], []], "the third has the memory of the first"


def test_a_text_ends_at_what_can_be_said_in_its_time(pair):
    _, lm = pair
    transcript = lm.transcribe(sounds()[1], ignore_eos=True)
    assert len(transcript.tokens) == int(30000 / RATE * 6.5)
    assert transcript.seconds == 30000 / RATE


def test_a_long_recording_is_cut_at_the_quietest_place_of_the_windows_last_third():
    generator = torch.Generator().manual_seed(2)
    samples = torch.randn(5 * RATE, generator=generator) * 0.3
    samples[int(1.7 * RATE) : int(1.9 * RATE)] = 0  # within the last third of the first two seconds
    samples[int(0.5 * RATE) : int(0.9 * RATE)] = 0  # before it
    cuts = cut(samples, RATE, 2.0)
    assert cuts[0][0] == 0
    assert cuts[-1][1] == len(samples)
    assert all(end == begin for (_, end), (begin, _) in pairwise(cuts))
    assert all(end - begin <= 2 * RATE for begin, end in cuts)
    assert abs(cuts[0][1] / RATE - 1.8) < 0.05


def test_what_is_no_sound_is_refused_in_one_line(pair):
    _, lm = pair
    for wrong, said in [
        (lambda: lm.transcribe("nowhere.wav"), "nowhere.wav|outlay.speech."),
        (lambda: lm.transcribe([0.0] * RATE), "the recording holds no sound"),
        (lambda: lm.transcribe([0.5] * 500), "the recording is too short: 0.031 seconds hold no word"),
        (lambda: lm.transcribe([float("nan")]), "one channel of finite numbers"),
        (lambda: at_rate("text", RATE, RATE), "must be a file or numbers"),
        (lambda: lm.generate("What?"), "reads no text; give `outlay transcribe`"),
        (lambda: tiny_lm().transcribe([0.5] * RATE), "hears nothing; give a model of speech"),
    ]:
        with pytest.raises(UsageError, match=said):
            wrong()


def test_pieces_stand_behind_their_lengths():
    long = b"x" * 200
    assert read_pieces(b"\x03<s>\x00" + bytes([128 + 72, 1]) + long + b"\x01a") == [b"<s>", b"", long, b"a"]


def test_a_file_of_another_kind_is_refused(tmp_path):
    path = tmp_path / "model.ort"
    path.write_bytes(b"0123ONNX" + bytes(100))
    with pytest.raises(FailureError, match="not a file of onnxruntime"):
        OrtFile(path)
