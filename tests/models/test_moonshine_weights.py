"""Moonshine Tiny with its real weights, on real speech, beside `transformers` and `onnxruntime`."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
import transformers

import outlay
from outlay.models.audio import cut, read_audio
from outlay.models.fetch import ALIASES
from outlay.models.hub import pull

pytestmark = pytest.mark.slow

RATE, WINDOW = 16000, 30.0
DEBIAN = Path("/usr/share/pocketsphinx/test/data/librivox")
PACKAGE = "pocketsphinx-testdata"
BEGIN, END, HEADS, HEAD_DIM, LAYERS = 1, 2, 8, 36, 6


@pytest.fixture(scope="module")
def lm():
    return outlay.load("moonshine-tiny", dtype="float32", threads=1)


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    """The wheel's assets: the models in 8 bits, and two recordings."""
    folder, alias = tmp_path_factory.mktemp("wheel"), ALIASES["moonshine-tiny"]
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--quiet", "--only-binary=:all:", "--platform",
               alias.platform, "--dest", str(folder), alias.requirement]  # fmt: skip
    subprocess.run(command, check=True)
    (file,) = folder.glob("*.whl")
    with zipfile.ZipFile(file) as archive:
        archive.extractall(folder, [name for name in archive.namelist() if "/assets/" in name])
    return folder / "moonshine_voice" / "assets"


@pytest.fixture(scope="module")
def librivox(tmp_path_factory) -> list[tuple[torch.Tensor, str]]:
    """Five utterances of Debian's test data of PocketSphinx, with what is said in them."""
    folder = DEBIAN
    if not folder.exists():
        if shutil.which("apt-get") is None:
            pytest.skip(f"{PACKAGE} is a package of Debian, which this system is not")
        where = tmp_path_factory.mktemp("librivox")
        subprocess.run(["apt-get", "download", PACKAGE], cwd=where, check=True)
        (package,) = where.glob("*.deb")
        subprocess.run(["dpkg-deb", "-x", str(package), str(where)], check=True)
        folder = where / DEBIAN.relative_to("/")
    lines = re.findall(r"<s> (.*) </s> \((.*)\)", (folder / "transcription").read_text())
    return [(read_audio(folder / f"{name}.wav", RATE), said) for said, name in lines]


@pytest.fixture(scope="module")
def clips(wheel, librivox) -> list[torch.Tensor]:
    """All recordings, the long one in cuts."""
    long = [read_audio(wheel / name, RATE) for name in ("beckett.wav", "two_cities.wav")]
    cuts = [sound[begin:end] for sound in long for begin, end in cut(sound, RATE, WINDOW)]
    return [*(sound for sound, _ in librivox), *cuts]


class Original:
    """The models in 8 bits as they lie in the wheel, run by `onnxruntime`, one token after the other."""

    def __init__(self, folder: Path) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        self._encoder, self._decoder = (
            onnxruntime.InferenceSession(str(folder / name), options)
            for name in ("encoder_model.ort", "decoder_model_merged.ort")
        )

    def tokens(self, sound: torch.Tensor, most: int) -> list[int]:
        """Returns what is written greedily, its end included."""
        samples = sound.numpy()[None]
        mask = np.ones(samples.shape, dtype=np.int64)
        (states,) = self._encoder.run(None, {"input_values": samples, "attention_mask": mask})
        nothing = np.zeros((1, HEADS, 0, HEAD_DIM), dtype=np.float32)
        names = [each.name for each in self._decoder.get_inputs() if each.name.startswith("past_key_values")]
        held = dict.fromkeys(names, nothing)
        written, token = list[int](), BEGIN
        while len(written) < most and token != END:
            logits, *present = self._decoder.run(None, {
                "encoder_attention_mask": mask, "encoder_hidden_states": states,
                "use_cache_branch": np.array([bool(written)]), "input_ids": np.array([[token]], dtype=np.int64), **held,
            })  # fmt: skip
            outputs = [each.name.replace("present", "past_key_values") for each in self._decoder.get_outputs()[1:]]
            made = dict(zip(outputs, present, strict=True))
            # Keys and values of the encoder are made in the first pass alone.
            held |= {name: value for name, value in made.items() if not written or ".decoder." in name}
            token = int(logits[0, -1].argmax())
            written.append(token)
        return written


def words(text: str) -> list[str]:
    """The words of a text, without case and marks."""
    return re.findall(r"[a-z']+", text.lower())


def errors(found: list[str], wanted: list[str]) -> int:
    """Words to be put in, left out or replaced (Levenshtein)."""
    row = list(range(len(wanted) + 1))
    for place, word in enumerate(found, 1):
        last, row[0] = row[0], place
        for at, other in enumerate(wanted, 1):
            last, row[at] = row[at], min(row[at] + 1, row[at - 1] + 1, last + (word != other))
    return row[-1]


def test_the_tokens_are_those_of_transformers_on_the_converted_folder(lm, clips):
    network = transformers.MoonshineForConditionalGeneration.from_pretrained(pull("moonshine-tiny")).eval()
    together = lm.start_transcripts(clips, method="greedy")
    for sound, heard in zip(clips, together, strict=True):
        found = heard.result.tokens
        with torch.inference_mode():
            most = max(1, int(len(sound) / RATE * 6.5))
            wanted = network.generate(sound[None], max_new_tokens=most, do_sample=False)[0].tolist()[1:]
        assert found == wanted


def test_the_text_is_that_of_onnxruntime_on_the_original_but_for_one_word(lm, wheel, clips):
    """onnxruntime rounds activations to 8 bits, by which it hears "string of hope" where we hear "spring of hope"."""
    original, different = Original(wheel / "tiny-en"), list[int]()
    for sound in clips:
        most = max(1, int(len(sound) / RATE * 6.5))
        theirs = lm.model.tokenizer.decode(original.tokens(sound, most)).strip()
        ours = lm.transcribe(sound, method="greedy").text
        different.append(errors(words(ours), words(theirs)))
        assert (ours == theirs) == (different[-1] == 0)
    assert not any(different[:6])  # the five utterances, and the shorter one of the wheel's recordings
    assert sum(different) <= 1


def test_no_more_words_are_missed_than_onnxruntime_misses(lm, wheel, librivox):
    original, ours, theirs, total = Original(wheel / "tiny-en"), 0, 0, 0
    for sound, said in librivox:
        tokens = original.tokens(sound, int(len(sound) / RATE * 6.5))
        theirs += errors(words(lm.model.tokenizer.decode(tokens)), words(said))
        ours += errors(words(lm.transcribe(sound).text), words(said))
        total += len(words(said))
    print(f"word errors on {total} words: {ours}, onnxruntime's {theirs}")
    assert ours <= theirs


def test_drafts_write_the_same_transcripts(lm, clips):
    for method in ("lookup", "auto"):
        for sound in clips:
            assert lm.transcribe(sound, method=method).tokens == lm.transcribe(sound, method="greedy").tokens
