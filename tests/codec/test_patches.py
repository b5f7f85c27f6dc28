"""Photos without loss: the transform is reversible, files come back, damage costs a strip, and the commands."""

from __future__ import annotations

import io

import numpy as np
import pytest
import torch
from codec.reading import ANY, ARCHIVES
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from PIL import Image

from outlay import kernels
from outlay.cli import main
from outlay.codec import CorruptStream
from outlay.codec.circuit.coders import PHOTOS, coder_of
from outlay.codec.circuit.data import read_patches
from outlay.codec.circuit.em import Recipe, fit
from outlay.codec.circuit.latent_tree import LatentTree
from outlay.codec.circuit.patches import BORDER, PATCH, PatchCoder, png, residuals, restored, samples_of
from outlay.codec.container import unpack
from outlay.codec.files import Written, compress_all, decompress_all, whole
from outlay.errors import UsageError


def scene(rows, columns, channels=3, seed=0):
    """A smooth picture with an edge and some noise."""
    draw = np.random.default_rng(seed)
    down, along = np.mgrid[:rows, :columns]
    light = 90 + 60 * np.sin(down / 17) + 40 * np.cos(along / 23) + 50 * (along > columns // 2)
    pixels = light[..., None] * np.linspace(0.7, 1.1, channels) + draw.normal(0, 3, (rows, columns, channels))
    return pixels.round().clip(0, 255).astype(np.uint8)


def netpbm(pixels):
    rows, columns, channels = pixels.shape
    return f"P{6 if channels == 3 else 5}\n# a comment\n{columns} {rows}\n255\n".encode() + pixels.tobytes()


def picture_bytes(pixels):
    file = io.BytesIO()
    Image.fromarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels).save(file, "PNG")
    return file.getvalue()


def pixels_of(data):
    found = np.asarray(Image.open(io.BytesIO(data)))
    return found.reshape(*found.shape[:2], -1)


@pytest.fixture(scope="module")
def circuits():
    """Coarse circuits of patches in grey and in colour."""
    return {
        channels: fit(samples_of(scene(96, 96, channels), 4), 256, Recipe(3, epochs=3, batch=200)).rounded()
        for channels in (1, 3)
    }


def written(coder, data):
    ((_, found),) = coder.write(iter([(0, data, ANY)]), lambda amount: None)
    assert isinstance(found, Written)
    return found


def decoded(coder, packed):
    container = unpack(packed)
    ((_, _, found),) = decompress_all([(0, container)], coder)
    return container, found


@settings(deadline=None, max_examples=60)
@given(
    st.tuples(st.integers(1, 19), st.integers(1, 19), st.sampled_from((1, 3))).flatmap(
        lambda shape: arrays(np.uint8, shape)
    )
)
def test_the_transform_is_reversible(pixels):
    assert np.array_equal(restored(residuals(pixels)), pixels)


@pytest.mark.parametrize("shape", [(1, 1, 3), (8, 8, 1), (13, 31, 3), (270, 24, 1), (9, 300, 1)])
def test_pictures_come_back_byte_for_byte(circuits, shape):
    data, coder = netpbm(scene(*shape, seed=4)), PatchCoder(circuits[shape[2]], "patches")
    file = written(coder, data).container.pack()
    assert whole(*decoded(coder, file)) == data


def test_a_png_comes_back_as_its_pixels_and_only_where_they_are_enough(circuits):
    pixels = scene(20, 33)
    coder = PatchCoder(circuits[3], "patches", pixels=True)
    container, found = decoded(coder, written(coder, picture_bytes(pixels)).container.pack())
    assert np.array_equal(pixels_of(png(container, found)), pixels)
    with pytest.raises(UsageError, match="say --pixels"):
        written(PatchCoder(circuits[3], "patches"), picture_bytes(pixels))


def test_the_coded_length_is_the_circuits(circuits):
    found = written(PatchCoder(circuits[3], "patches"), netpbm(scene(64, 64, seed=1)))
    coded = 8 * sum(block.coded for block in found.container.blocks)
    assert found.ideal_bits < coded <= 1.005 * found.ideal_bits + 64


def test_borders_make_patches_shorter(circuits):
    """What the circuit knows of a patch it learns from the pixels above and to the left as well."""
    data = samples_of(scene(96, 96, 3, seed=2))
    border = torch.zeros(data.shape[1], dtype=torch.bool)
    border[: 3 * BORDER] = True
    circuit = circuits[3]
    beside = circuit.log_prob(data) - circuit.log_prob(data, border)
    assert float(beside.sum()) > float(circuit.log_prob(data, ~border).sum())


def test_a_damaged_strip_costs_itself_alone(circuits):
    pixels = scene(520, 16, 1)
    coder = PatchCoder(circuits[1], "patches")
    container = written(coder, netpbm(pixels)).container
    packed = bytearray(container.pack())
    assert len(container.blocks) == 3
    begin = len(packed) - len(container.body) + container.blocks[0].coded
    packed[begin + 5] ^= 4
    container, found = decoded(coder, bytes(packed))
    assert list(found.missing) == [1]
    assert [len(part) for part in found.blocks] == [
        container.blocks[0].original,
        0,
        8 * 16,
    ]
    with pytest.raises(CorruptStream, match="block 1"):
        whole(container, found)
    shown = pixels_of(png(container, found))
    assert np.array_equal(shown[:256], pixels[:256])
    assert np.array_equal(shown[512:], pixels[512:])
    assert (shown[256:512] == 128).all()


def test_a_strip_has_the_same_bits_in_every_instruction_set_and_beside_any_others(circuits, each_isa):
    pixels = scene(300, 24, 1)
    files = set()
    for _ in each_isa():
        coder = PatchCoder(circuits[1], "patches")
        container = written(coder, netpbm(pixels)).container
        files.add((container.body, container.decoder.probe))
        alone = written(coder, netpbm(pixels[:256])).container
        assert container.body.startswith(alone.body)
    assert len(files) == 1


def test_the_archive_of_patches_opens(circuits):
    coder = PatchCoder(LatentTree.load(ARCHIVES / "patches.safetensors"), "patches")
    packed = (ARCHIVES / "patches.olz").read_bytes()
    if unpack(packed).decoder.arithmetic != kernels.ARITHMETIC:
        with pytest.raises(UsageError, match="arithmetic"):
            decoded(coder, packed)
    else:
        assert whole(*decoded(coder, packed)).startswith(b"P5\n24 11\n255\n")


def test_rounded_circuits_take_half_the_bytes_and_lose_little(circuits, tmp_path):
    data = samples_of(scene(96, 96, 1), 4)
    circuit = fit(data, 256, Recipe(3, epochs=3, batch=200))
    circuit.save(tmp_path / "whole.safetensors")
    circuit.rounded().save(tmp_path / "rounded.safetensors")
    sizes = [(tmp_path / f"{name}.safetensors").stat().st_size for name in ("rounded", "whole")]
    assert sizes[0] < 0.55 * sizes[1]
    again = LatentTree.load(tmp_path / "rounded.safetensors")
    assert again.digest == circuit.rounded().digest
    bits = [-float(each.log_prob(data).mean()) / data.shape[1] for each in (circuit, again)]
    assert bits[1] < bits[0] + 0.02


def test_the_circuit_for_photos_beats_png_on_photos():
    """Two photographs that it was not fitted to, a corner of each."""
    from sklearn.datasets import load_sample_images

    coder = coder_of(None, pixels=True)
    for photo in load_sample_images().images:
        small = np.asarray(Image.fromarray(photo).resize((320, 224), Image.Resampling.LANCZOS))[80:176, 100:228]
        data = picture_bytes(small)
        ((_, found),) = compress_all([(0, data)], [coder])
        assert found.container.kind == "patches"
        assert found.container.decoder.model == PHOTOS
        assert len(found.data) < 0.95 * len(data)


def test_the_commands(tmp_path, capsys):
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    for number, channels in enumerate((3, 3, 1)):  # a PNG says the same in each channel anew
        pixels = scene(72, 72, 1, seed=number).repeat(channels, axis=2)
        (pictures / f"{number}.png").write_bytes(picture_bytes(pixels))
    (pictures / "3.png").write_bytes(b"none")
    model = str(tmp_path / "mine.safetensors")
    assert main(["train", "circuit", str(pictures), "--patches", "rgb", "--latents", "2", "--epochs", "6",
                 "--batch", "50", "--out", model]) == 0  # fmt: skip
    assert "left out, in grey or not to be read: 2.png, 3.png" in capsys.readouterr().err
    photo = tmp_path / "photo.png"
    photo.write_bytes(picture_bytes(scene(48, 48, 1, seed=9).repeat(3, axis=2)))
    assert main(["compress", str(photo), "--model", model]) == 2
    assert "say --pixels" in capsys.readouterr().err
    assert main(["compress", str(photo), "--model", model, "--pixels", "--verify"]) == 0
    again = tmp_path / "again.png"
    assert main(["decompress", f"{photo}.olz", "--model", model, "-o", str(again)]) == 0
    assert np.array_equal(pixels_of(again.read_bytes()), pixels_of(photo.read_bytes()))
    assert main(["inspect", f"{photo}.olz"]) == 0
    assert "patches" in capsys.readouterr().out
    assert main(["decompress", f"{photo}.olz", "--force"]) == 2
    assert "mine.safetensors; name it with --model" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("pixels", "says"),
    [
        (np.zeros((4, 4, 4), np.uint8), "this one is RGBA"),
        (np.zeros((4, 4, 1), np.uint8), "has 1 channels, and patches 3"),
    ],
)
def test_what_the_circuit_does_not_compress_is_refused(circuits, pixels, says):
    with pytest.raises(UsageError, match=says):
        written(PatchCoder(circuits[3], "patches", pixels=True), picture_bytes(pixels))


@pytest.mark.parametrize("data", [b"", b"P6\n4 4\n255\n" + bytes(47), b"P6\n4 4\n65535\n" + bytes(96), b"GIF89a"])
def test_other_files_are_refused(circuits, data):
    with pytest.raises(UsageError, match=r"circuit of patches compresses|should have 48 bytes"):
        written(PatchCoder(circuits[3], "patches", pixels=True), data)


def test_a_circuit_of_arrays_takes_no_pixels(tmp_path, circuits):
    circuits[1].save(tmp_path / "arrays.safetensors")
    with pytest.raises(UsageError, match="one of arrays"):
        coder_of(tmp_path / "arrays.safetensors", pixels=True)


def test_grey_pictures_are_no_pictures_in_colour(tmp_path):
    (tmp_path / "a.png").write_bytes(picture_bytes(scene(40, 40, 1)))
    with pytest.raises(UsageError, match="in colour"):
        read_patches(tmp_path, 3)
    assert read_patches(tmp_path, 1)[1] == []


def test_every_patch_has_each_pixel_once():
    samples = samples_of(scene(33, 33, 1))
    assert samples.shape == (16, BORDER + PATCH**2)
    first, second = samples.view(4, 4, -1)[0, :2]
    body = first[BORDER:].view(PATCH, PATCH)
    assert torch.equal(second[PATCH + 1 : BORDER], body[:, -1])
