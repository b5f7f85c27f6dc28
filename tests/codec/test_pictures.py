"""Pictures through learned codecs: the codecs of CompressAI, files that open everywhere, damage, and the commands."""

from __future__ import annotations

import os
import random
import subprocess
import sys
from pathlib import Path

import mpmath
import numpy as np
import pytest
import torch
from codec.make_tiny_codec import FOLDER, photos_of_tests
from PIL import Image
from safetensors.torch import load_file
from vision.peer import needs, run

from outlay import kernels
from outlay.codec.container import CorruptStream, unpack
from outlay.codec.files import decompress_all, whole
from outlay.codec.lic import ISCS, Codec, Form, PictureCodec, PictureCoder, load
from outlay.codec.lic.networks import load_codec
from outlay.codec.lic.patches import exact_network
from outlay.codec.lic.tables import NORMALS, SCALES, SHIFTS, WEIGHT_BITS, Table, Tables, scale_index, shifted
from outlay.errors import UsageError
from outlay.pictures import read_picture
from outlay.train.picture_codec import PictureCodecRecipe, train_picture_codec

ARCHIVE = Path(__file__).parent / "archives" / "picture.olz"
STUBS = "torchvision,torch_geometric,pytorch_msssim,einops,pandas"
MODELS = {
    "bmshj2018-factorized": "FactorizedPrior",
    "bmshj2018-hyperprior": "ScaleHyperprior",
    "mbt2018-mean": "MeanScaleHyperprior",
}
PEER = """
import types
found = sys.modules["torch_geometric.data.datapipes"] = types.ModuleType("torch_geometric.data.datapipes")
found.functional_transform = lambda name: lambda cls: cls
from compressai.models import google
from safetensors.torch import save_file
for name, kind in MODELS.items():
    torch.manual_seed(0)
    net = getattr(google, kind)(8, 12).eval()
    with torch.no_grad():
        net.g_a[6].weight *= 30
        if hasattr(net, "h_s"):
            net.h_s[4].bias[:12] += 2
        for tensor in net.entropy_bottleneck.parameters():
            tensor += 0.1 * torch.rand_like(tensor)
        net.entropy_bottleneck._update_quantiles()
    torch.save({"state_dict": net.state_dict()}, f"{folder}/{name}.pth.tar")
    x = torch.rand(1, 3, 128, 192)
    with torch.no_grad():
        out = net(x)
        y = net.g_a(x)
    bits = sum(-each.log2().sum() for each in out["likelihoods"].values())
    save_file({"x": x, "y": y, "x_hat": out["x_hat"].contiguous(), "bits": bits}, f"{folder}/{name}.safetensors")
"""


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


def hyper(architecture="mbt2018-mean"):
    torch.manual_seed(0)
    codec = Codec(Form(architecture, 8, 12)).eval()
    with torch.no_grad():
        codec.last.weight *= 30
        codec.h_s[4].bias += torch.rand_like(codec.h_s[4].bias)
    return PictureCodec.of(codec)


def decoded(coder, packed):
    ((_, container, found),) = decompress_all([(0, unpack(packed))], coder)
    return container, found


@needs("compressai")
def test_compressais_weights_give_compressais_latents_pictures_and_bits(tmp_path):
    run(f"MODELS = {MODELS}\n" + PEER, tmp_path, STUBS)
    for name in MODELS:
        codec, truth = load(tmp_path / f"{name}.pth.tar"), load_file(tmp_path / f"{name}.safetensors")
        assert codec.codec.form == Form(name, 8, 12)
        with torch.no_grad():
            assert torch.allclose(codec.codec.analyse(truth["x"]), truth["y"], rtol=1e-5, atol=1e-5)
        integers, _, code = codec.integers(truth["x"][0])
        assert (codec.picture(integers, code) - truth["x_hat"][0].clamp(0, 1)).abs().max() <= 1e-5
        picture = (truth["x"][0] * 255).round().to(torch.uint8).permute(1, 2, 0)
        written = PictureCoder(codec, name).compress(picture)
        assert written.ideal_bits == pytest.approx(float(truth["bits"]), rel=0.02), name


@pytest.mark.parametrize("architecture", ["bmshj2018-hyperprior", "mbt2018-mean"])
def test_scales_come_from_patches_with_the_same_bits_everywhere_and_near_torchs(architecture, each_isa):
    codec = hyper(architecture).codec
    x = torch.randint(-9, 9, (1, 8, 3, 5)).float()
    found = []
    for isa in each_isa():
        for threads in (1, 2):
            kernels.set_threads(threads)
            found.append((isa, threads, exact_network(codec.h_s)(x)))
    assert len(found) >= 4
    assert all(torch.equal(each[2], found[0][2]) for each in found)
    with torch.no_grad():
        assert (codec.h_s(x) - found[0][2]).abs().max() < 1e-4


def test_a_file_is_the_same_in_every_instruction_set(coder, small, each_isa):
    files = []
    for each in (coder, PictureCoder(hyper(), "hyper")):
        bodies = set()
        for _ in each_isa():
            packed = each.compress(small).container
            bodies.add(packed.body)
            assert not decoded(each, packed.pack())[1].missing
        files.append(len(bodies))
    assert files == [1, 1]


def test_the_archive_opens(coder):
    container, found = decoded(coder, ARCHIVE.read_bytes())
    coder.fits(container)
    whole(container, found)
    assert coder.render(container, found).shape == (61, 83, 3)


def test_tables_of_normal_distributions_are_the_nearest_whole_numbers_with_room_to_spare():
    """No weight is so near a half that another library's erfc could round it otherwise."""
    with mpmath.workdps(40):
        for scale in (0, 9, 21):
            for shift in range(SHIFTS):
                table = Tables([])[scale * SHIFTS + shift]
                mean, deviation = mpmath.mpf(shift - SHIFTS // 2) / SHIFTS, mpmath.mpf(float(SCALES[scale]))
                for place, weight in enumerate(table.weights[:-1].tolist()):
                    at = table.first + place - mean
                    mass = mpmath.ncdf((at + 0.5) / deviation) - mpmath.ncdf((at - 0.5) / deviation)
                    exact = mass * (1 << WEIGHT_BITS)
                    assert weight == max(1, int(mpmath.nint(exact)))
                    assert abs(exact - mpmath.floor(exact) - 0.5) > 1e-6


def test_integers_come_back_also_those_outside_their_table():
    generator = torch.Generator().manual_seed(0)
    numbers = torch.randint(0, NORMALS + 1, (3000,), generator=generator)
    values = (torch.randn(3000, generator=generator) * 40).round().long()
    values[:4] = torch.tensor([8388607, -8388607, 0, -1])
    tables = Tables([Table.of(torch.tensor([0.25, 0.5, 0.25], dtype=torch.float64), -1)])
    words, bits = tables.encode(values, numbers)
    assert torch.equal(tables.decode(words, numbers), values)
    assert 32 * len(words) <= bits * 1.005 + 64
    with pytest.raises(UsageError, match="latents beyond 8,388,607"):
        tables.encode(torch.tensor([1 << 23]), numbers[:1])
    few = torch.full((9,), NORMALS)
    words, _ = tables.encode(few - NORMALS, few)
    with pytest.raises(CorruptStream, match="other symbols"):
        tables.decode(words, few[:-1])


def test_scales_and_shifts_find_their_tables():
    scales = torch.tensor([0.01, 0.11, 0.1101, 256.0, 1e9])
    assert scale_index(scales).tolist() == [0, 0, 1, 63, 63]
    numbers, whole_part = shifted(torch.tensor([0, 1, 2]), torch.tensor([0.0, 0.5, -3.3]))
    assert whole_part.tolist() == [0, 1, -3]
    assert (numbers - torch.tensor([0, 1, 2]) * SHIFTS).tolist() == [4, 0, 2]


def test_damage_is_told(coder, small):
    packed = coder.compress(small).container.pack()
    draw = random.Random(0)
    places = [draw.randrange(len(packed)) for _ in range(150)]
    for place in places:
        broken = bytearray(packed)
        broken[place] ^= 1 << draw.randrange(8)
        with pytest.raises(CorruptStream):
            whole(*decoded(coder, bytes(broken)))
    for end in range(0, len(packed), 97):
        with pytest.raises(CorruptStream):
            whole(*decoded(coder, packed[:end]))


def test_damaged_scales_cost_all_slices_and_are_told():
    coder, picture = PictureCoder(hyper(), "hyper"), torch.randint(0, 255, (70, 130, 3), dtype=torch.uint8)
    written = coder.compress(picture).container
    body = bytearray(written.body)
    body[0] ^= 1
    container, found = decoded(coder, written.pack()[: -len(body)] + bytes(body))
    assert sorted(found.missing) == [0, 1]
    assert coder.render(container, found).shape == (70, 130, 3)


def test_a_codec_that_is_saved_and_loaded_writes_the_same_file(tmp_path, small):
    codec = hyper().reordered(ISCS(slices=2)).fitted([small.permute(2, 0, 1).float() / 255], steps=5)
    codec.save(tmp_path / "codec")
    files = [PictureCoder(each, "codec").compress(small).container.pack() for each in (codec, load(tmp_path / "codec"))]
    assert files[0] == files[1]
    other = PictureCoder(load(FOLDER), "tiny")
    with pytest.raises(UsageError, match="weights of tiny are others"):
        other.fits(unpack(files[0]))


def test_what_is_no_codec_is_refused_in_one_line(tmp_path):
    weights = load(FOLDER).codec.state_dict()
    with pytest.raises(UsageError, match=r"the codec lacks 1 tensors, among them prior\.mean"):
        load_codec({name: tensor for name, tensor in weights.items() if name != "prior.mean"})
    with pytest.raises(UsageError, match="context model"):
        load_codec(weights | {"context_prediction.weight": torch.zeros(1)})
    with pytest.raises(UsageError, match=r"one convolution gives: g_a\.0\.conv1\.weight"):
        load_codec({"g_a.0.conv1.weight": torch.zeros(4, 3, 3, 3), "g_s.0.weight": torch.zeros(1)})
    with pytest.raises(UsageError, match=r"g_a\.0\.bias has values that are not finite"):
        load_codec(weights | {"g_a.0.bias": torch.full((32,), float("nan"))})
    with pytest.raises(UsageError, match=r"g_s\.0\.bias has shape"):
        load_codec(weights | {"g_s.0.bias": torch.zeros(31)})
    (tmp_path / "code.pth").write_bytes(b"cos\nsystem\n(S'true'\ntR.")
    with pytest.raises(UsageError, match="can't be read as tensors"):
        load(tmp_path / "code.pth")
    with pytest.raises(UsageError, match="there is no picture codec"):
        load(tmp_path / "nothing")
    with pytest.raises(UsageError, match=r"its config\.json can't be read"):
        load(tmp_path)


def test_pictures_are_turned_as_their_exif_says_and_laid_on_white(tmp_path):
    exif = Image.Exif()
    exif[274] = 6  # turned by 90 degrees
    Image.new("RGB", (20, 10), "red").save(tmp_path / "turned.jpg", exif=exif)
    assert read_picture(tmp_path / "turned.jpg").shape == (20, 10, 3)
    Image.new("RGBA", (5, 4), (9, 9, 9, 0)).save(tmp_path / "clear.png")
    assert np.unique(read_picture(tmp_path / "clear.png")).tolist() == [255]
    Image.new("L", (5, 4), 77).save(tmp_path / "grey.png")
    assert np.unique(read_picture((tmp_path / "grey.png").read_bytes())).tolist() == [77]
    (tmp_path / "cut.jpg").write_bytes((tmp_path / "turned.jpg").read_bytes()[:200])
    for name in ("cut.jpg", "none.png"):
        (tmp_path / "none.png").write_text("no picture")
        with pytest.raises(UsageError, match="can't be read as a picture"):
            read_picture(tmp_path / name)


def test_a_training_that_was_stopped_ends_with_the_same_weights(tmp_path):
    pictures = [torch.rand(3, 80, 70, generator=torch.Generator().manual_seed(0))]
    recipe = PictureCodecRecipe("bmshj2018-factorized", 4, 6, steps=252, batch=1, crop=16)

    class Stopped(Exception):
        pass

    def stop(_what, done, _steps):
        if done == 251:
            raise Stopped

    with pytest.raises(Stopped):
        train_picture_codec(pictures, recipe, stop, tmp_path / "training.pt")
    resumed = train_picture_codec(pictures, recipe, lambda *told: None, tmp_path / "training.pt")
    straight = train_picture_codec(pictures, recipe, lambda *told: None)
    assert not (tmp_path / "training.pt").exists()
    assert resumed.digest == straight.digest


@pytest.mark.parametrize("capability", ["default", "avx2"])
def test_a_file_does_not_depend_on_torchs_instruction_set(coder, small, tmp_path, capability):
    """The reader's half: torch makes latents with other last bits, but reads what was written."""
    (tmp_path / "x.olz").write_bytes(coder.compress(small).container.pack())
    program = (
        "import sys\nfrom pathlib import Path\nfrom outlay.codec.container import unpack\n"
        "from outlay.codec.files import decompress_all, whole\n"
        "from outlay.codec.lic import ISCS, PictureCoder, load\n"
        "coder = PictureCoder(load(sys.argv[1]).reordered(ISCS('prior', slices=4)), 'tiny')\n"
        "((_, container, found),) = decompress_all([(0, unpack(Path(sys.argv[2]).read_bytes()))], coder)\n"
        "coder.fits(container)\nprint(whole(container, found) != b'')\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, str(FOLDER), str(tmp_path / "x.olz")],
        env=os.environ | {"ATEN_CPU_CAPABILITY": capability, "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.stdout == "True\n", done.stderr[-500:]
