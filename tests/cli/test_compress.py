"""`outlay compress`, `decompress` and `inspect`: the bytes come back, nothing is lost, nothing is overwritten."""

from __future__ import annotations

import io
import json
import os

import pytest
import torch
from codec.reading import forced

import outlay as package
from outlay import codec, kernels
from outlay.models.load import load_model


@pytest.fixture(autouse=True)
def native():
    if not kernels.available():
        pytest.skip("the native kernels are not built")


@pytest.fixture(scope="module")
def letters(tiny):
    """A text that the tiny model writes itself, of what it finds probable, and so compresses better than xz."""
    lm = package.load(tiny)
    result = lm.generate([256], temperature=0.7, max_tokens=1000, seed=1)
    lm.engine.close()
    return result.text.encode()


@pytest.fixture
def files(tmp_path, letters):
    (tmp_path / "letters.txt").write_bytes(letters)
    (tmp_path / "notes.txt").write_bytes(b"some notes, some notes")
    return tmp_path


def test_a_file_is_compressed_inspected_and_decompressed(outlay, files, tiny, letters):
    file = files / "letters.txt"
    status, out, err = outlay("compress", file, "--model", tiny, "--verify")
    assert (status, out) == (0, "")
    assert f"{len(letters):,} ->" in err
    assert "xz" in err
    packed = files / "letters.txt.olz"
    status, out, _ = outlay("inspect", packed, "--blocks")
    assert status == 0
    assert "text" in out
    assert f"{len(letters):,} symbols" in out
    file.unlink()
    assert outlay("decompress", packed, "--model", tiny)[0] == 0
    assert file.read_bytes() == letters
    assert sorted(path.name for path in files.iterdir()) == ["letters.txt", "letters.txt.olz", "notes.txt"]


def test_the_model_is_named_by_the_user_never_by_the_file(outlay, refusal, files, tiny):
    outlay("compress", files / "letters.txt", "--model", tiny)
    (files / "letters.txt").unlink()
    status, line = refusal("decompress", files / "letters.txt.olz")
    assert status == 2
    assert "name it with --model" in line


def test_folders_and_many_files_at_once(outlay, files, tiny, letters):
    inside = files / "folder" / "deep"
    inside.mkdir(parents=True)
    for name in ("one", "two"):
        (inside / name).write_bytes(letters[:600])
    status, out, _ = outlay("compress", files, "--model", tiny, "--json", "-o", files.parent / "packed")
    rows = [json.loads(line) for line in out.splitlines()]
    assert status == 0
    assert len(rows) == 4
    assert {row["won"] for row in rows} == {"text", "xz"}
    assert all(row["bytes_out"] <= row["sizes"]["xz"] for row in rows)
    assert all(row["ledger"]["extras"]["bytes_in"] == row["bytes_in"] for row in rows)
    back = files.parent / "back"
    assert outlay("decompress", files.parent / "packed", "-o", back, "--model", tiny)[0] == 0
    for path in files.rglob("*"):
        if path.is_file():
            assert (back / path.relative_to(files)).read_bytes() == path.read_bytes()


def test_nothing_is_overwritten_without_force_or_deleted_without_rm(outlay, refusal, files):
    file, packed = files / "notes.txt", files / "notes.txt.olz"
    packed.write_bytes(b"precious")
    assert "--force" in refusal("compress", file, "--model", "none")[1]
    assert packed.read_bytes() == b"precious"
    assert outlay("compress", file, "--model", "none", "--force", "--rm")[0] == 0
    assert not file.exists()
    assert outlay("decompress", packed, "--rm")[0] == 0
    assert file.read_bytes() == b"some notes, some notes"
    assert not packed.exists()


def test_what_does_not_verify_is_not_deleted(refusal, files, monkeypatch):
    from outlay.codec import files as module

    monkeypatch.setattr(module, "whole", lambda container, decoded: _damaged())
    status, line = refusal("compress", files / "notes.txt", "--model", "none", "--rm")
    assert status == 1
    assert "does not give its original back" in line
    assert (files / "notes.txt").exists()
    assert not (files / "notes.txt.olz").exists()


def _damaged():
    raise codec.CorruptStream("it is damaged", 0)


def test_damage_is_one_line_and_partial_gives_the_rest(outlay, refusal, files, tiny, letters):
    file, packed = files / "letters.txt", files / "letters.txt.olz"
    data = bytearray(forced(letters, load_model(tiny), block=600))
    data[-1] ^= 1
    packed.write_bytes(data)
    file.unlink()
    status, line = refusal("decompress", packed, "--model", tiny)
    assert status == 1
    assert "block 1" in line
    assert not file.exists()
    status, _, err = outlay("decompress", packed, "--model", tiny, "--partial")
    assert status == 1
    assert f"bytes 600 to {len(letters):,} of the original, is missing" in err
    assert file.read_bytes() == letters[:600]


def test_a_stop_leaves_nothing_behind(outlay, files, tiny, monkeypatch):
    from outlay.codec import text

    def stop(*arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr(text.TextCodec, "write", stop)
    assert outlay("compress", files / "letters.txt", "--model", tiny)[0] == 130
    assert sorted(path.name for path in files.iterdir()) == ["letters.txt", "notes.txt"]


def test_standard_input_and_output(start, outlay, files, monkeypatch):
    data = os.urandom(300)
    process = start("compress", "-", "-o", "-", "--model", "none", "--quiet", stdin=-1)
    packed, err = process.communicate(data)
    assert err == b""
    assert codec.decompress(packed) == data
    pipe = io.TextIOWrapper(io.BytesIO())
    monkeypatch.setattr("sys.stdout", pipe)
    assert outlay("decompress", "-", "-o", "-", stdin=packed)[0] == 0
    assert pipe.buffer.getvalue() == data


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("compress", "missing.txt"), "no file missing.txt"),
        (("compress", "notes.txt", "notes.txt"), "named twice"),
        (("compress", "notes.txt", "--model", "none", "--block", "9"), "--block is for a model"),
        (("compress", "notes.txt", "letters.txt", "-o", "-"), "--out DIR"),
        (("compress", "-", "--rm", "-o", "x"), "--rm deletes files"),
        (("decompress", "notes.txt"), "no name that ends with .olz"),
        (("decompress", "notes.txt", "-o", "x", "--partial", "--rm"), "--rm deletes"),
        (("decompress", "notes.txt", "-o", "x"), "no file that outlay compressed"),
        (("inspect", "notes.txt"), "no file that outlay compressed"),
    ],
)
def test_what_can_not_be_done_is_said_in_one_line(refusal, files, monkeypatch, words, message):
    monkeypatch.chdir(files)
    assert message in refusal(*words)[1]


def test_a_large_original_is_refused(outlay, refusal, files):
    outlay("compress", files / "notes.txt", "--model", "none")
    status, line = refusal("decompress", files / "notes.txt.olz", "-o", files / "x", "--max-size", 5)
    assert status == 2
    assert "--max-size" in line


def test_a_receipt_is_written_and_replayed(outlay, files, tiny):
    receipt = files / "receipt.json"
    words = ("run", "Hello", "--model", tiny, "--max-tokens", 12, "--receipt", receipt, "--quiet")
    assert outlay(*words)[0] == 0
    status, out, _ = outlay("replay", receipt, "--model", tiny, "--method", "forced", "--beside", 2)
    assert status == 0
    assert "12 tokens, the same bits" in out
    changed = json.loads(receipt.read_text())
    changed["links"][4] = "0" * 16
    receipt.write_text(json.dumps(changed))
    status, out, err = outlay("replay", receipt, "--model", tiny)
    assert status == 1
    assert "at token 4 the logits differ" in err
    torch.set_num_threads(1)
