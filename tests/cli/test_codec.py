"""`outlay codec`, `outlay train codec` and pictures with loss, from the command line."""

from __future__ import annotations

import json

import pytest
from codec.make_tiny_codec import FOLDER, opened, photos_of_tests
from PIL import Image

from outlay import kernels
from outlay.codec.lic import ISCS, PictureCoder, load


@pytest.fixture(autouse=True)
def native():
    if not kernels.available():
        pytest.skip("the native kernels are not built")


@pytest.fixture(scope="module")
def coder():
    return PictureCoder(load(FOLDER).reordered(ISCS("prior", slices=4)), "tiny")


@pytest.fixture(scope="module")
def small():
    """A picture of odd sides, uint8 [61, 83, 3]."""
    return photos_of_tests()[1][40:101, 100:183].contiguous()


def test_the_commands_train_order_fit_compress_and_give_back(outlay, tmp_path, small):
    photos = tmp_path / "photos"
    photos.mkdir()
    for name, picture in zip(("a", "b"), photos_of_tests(), strict=True):
        Image.fromarray(picture.numpy()).save(photos / f"{name}.png")
    trained = tmp_path / "codec"
    assert outlay("train", "codec", photos, "--steps", 3, "--latents", 8, "--inner", 8, "--out", trained)[0] == 0
    status, out, _ = outlay("codec", "rank", FOLDER, "--score", "prior", "--json")
    rows = json.loads(out)
    assert status == 0
    assert [row["channel"] for row in rows] != sorted(row["channel"] for row in rows)
    assert [row["role"] for row in rows].count("core") == 8
    assert outlay("codec", "rank", trained, "--score", "ablation", "--data", photos)[0] == 0
    ordered, fitted = tmp_path / "ordered", tmp_path / "fitted"
    assert outlay("codec", "reorder", FOLDER, "--score", "prior", "--out", ordered)[0] == 0
    assert outlay("codec", "fit", ordered, "--data", photos / "a.png", "--steps", 5, "--out", fitted)[0] == 0
    for channels, least in (("0.75", 28), ("32", 28)):
        status, out, _ = outlay(
            "compress", photos / "b.png", "--lossy", fitted, "--channels", channels, "--json", "--force"
        )
        row = json.loads(out)
        assert (status, row["width"], row["height"]) == (0, 320, 224)
        assert row["psnr"] > least
        packed = photos / "b.png.olz"
        assert packed.stat().st_size == row["bytes_out"]
    assert "picture" in outlay("inspect", packed)[1]
    back = tmp_path / "back.png"
    assert outlay("decompress", packed, "--lossy", fitted, "--out", back)[0] == 0
    assert opened(back, None).shape == (224, 320, 3)
    broken = bytearray(packed.read_bytes())
    broken[-3] ^= 1
    packed.write_bytes(bytes(broken))
    status, _, err = outlay("decompress", packed, "--lossy", fitted, "--out", back, "--partial", "--force")
    assert status == 1
    assert "block 3 is missing" in err
    assert opened(back, None).shape == (224, 320, 3)


def test_the_commands_refuse_in_one_line(refusal, tmp_path, coder, small):
    picture = tmp_path / "photo.png"
    Image.fromarray(small.numpy()).save(picture)
    (tmp_path / "photo.png.olz").write_bytes(coder.compress(small).container.pack())
    (tmp_path / "notes.txt").write_text("no picture")
    for words, line in (
        (("compress", picture, "--channels", 3), "--channels is of --lossy"),
        (("compress", picture, "--lossy", FOLDER, "--rm"), "--lossy gives no picture back exactly"),
        (("compress", picture, "--lossy", FOLDER, "--model", "x"), "leave it out with --lossy"),
        (("compress", picture, "--lossy", FOLDER, "--channels", 33, "--force"), "send 1 to 32"),
        (("compress", tmp_path / "notes.txt", "--lossy", FOLDER), "notes.txt can't be read as a picture"),
        (("decompress", tmp_path / "photo.png.olz", "--out", tmp_path / "x.png"), "name it with --lossy"),
        (("decompress", tmp_path / "photo.png.olz", "--out", tmp_path / "x.png", "--lossy", FOLDER), "are others"),
        (("codec", "rank", FOLDER, "--slices", 9), "at most 8 slices"),
        (("codec", "rank", FOLDER, "--cores", 40), "it can't have 40 cores"),
        (("codec", "fit", FOLDER, "--data", picture, "--out", tmp_path / "y"), "order them first"),
        (("codec", "reorder", FOLDER, "--out", FOLDER), "name another folder"),
        (("codec", "ranks"), "there is no 'ranks'"),
        (("train", "codec", picture, "--out", tmp_path / "z"), "crops have 64 pixels a side"),
    ):
        status, told = refusal(*words)
        assert status == 2, words
        assert line in told, told
