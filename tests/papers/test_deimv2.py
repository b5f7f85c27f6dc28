"""DEIMv2: the authors' function at all eight sizes, its parts' properties, and what fewer layers and queries do."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import load_file, save_file
from sklearn.datasets import load_sample_images
from vision.peer import needs, run

from outlay.budget import Budget
from outlay.errors import UsageError
from outlay.pictures import read_picture
from outlay.vision import detect
from outlay.vision.detect.boxes import overlap
from outlay.vision.detect.checkpoints import Loaded, averaged, detector_of
from outlay.vision.detect.decoder import (
    DeformableAttention,
    anchor_logits,
    edge_offsets,
    expected_offsets,
    inverse_sigmoid,
    moved_boxes,
)
from outlay.vision.detect.deimv2 import DEVIATION, MEAN, Detector, parameters
from outlay.vision.detect.detections import cost_of_effort, places, resized

PARAMETERS = {
    "atto": (230_344, 80_400, 198_241), "femto": (389_832, 196_352, 397_761), "pico": (749_202, 258_976, 531_361),
    "n": (1_850_396, 638_288, 1_111_737), "s": (5_689_360, 1_367_360, 2_723_118),
}  # fmt: skip
WHOLE = {
    "atto": 508_985, "femto": 983_945, "pico": 1_539_539, "n": 3_600_421, "s": 9_779_838, "m": 18_357_750,
    "l": 32_551_214, "x": 51_211_736,
}  # fmt: skip
STUBS = "torchvision"
PEER = """
import importlib.util
root = importlib.util.find_spec("libreyolo").submodule_search_locations[0]
for name in ("libreyolo", "libreyolo.models", "libreyolo.models.deimv2", "libreyolo.models.deim"):
    module = sys.modules[name] = types.ModuleType(name)
    module.__path__ = [root + name.removeprefix("libreyolo").replace(".", "/")]
from libreyolo.models.deimv2.nn import LibreDEIMv2Model
from safetensors.torch import save_file
for name, side in SIZES.items():
    torch.manual_seed(0)
    net = LibreDEIMv2Model(name, CLASSES).eval()
    net.decoder.eval_spatial_size = net.encoder.eval_spatial_size = None
    with torch.no_grad():
        for key, tensor in net.state_dict().items():
            if key.endswith("running_var"):
                tensor.uniform_(0.5, 1.5)
            elif key.endswith("running_mean"):
                tensor.normal_(0, 0.1)
            elif key.endswith("bias_mask"):
                tensor.fill_(1)
                tensor[len(tensor) // 3 : 2 * len(tensor) // 3] = 0
            elif tensor.dtype.is_floating_point and key.startswith("decoder") and key.endswith(("weight", "bias")):
                if "norm" not in key:
                    tensor.add_(0.05 * torch.randn_like(tensor))
    state = {key: tensor.clone() for key, tensor in net.state_dict().items()}
    x = torch.rand(2, 3, side, side)
    out = {}
    for form in ("trained", "deployed"):
        if form == "deployed":
            net.deploy()
            net.decoder.decoder.project = net.decoder.decoder.project.double()
        with torch.no_grad():
            found = net.double()(x.double())
        out |= {f"{form}-{what}": found[f"pred_{what}"].contiguous() for what in ("logits", "boxes")}
    torch.save({"model": {"decoder.up": torch.zeros(1)}, "ema": {"module": state}}, f"{folder}/{name}.pth")
    save_file(out | {"x": x}, f"{folder}/{name}.safetensors")
"""


@pytest.fixture(scope="module")
def atto():
    """A detector of random weights whose heads say something."""
    torch.manual_seed(0)
    detector = Detector(detect.size_of("atto", classes=3)).eval()
    with torch.no_grad():
        for head in (*detector.decoder.dec_bbox_head, detector.decoder.pre_bbox_head, detector.decoder.enc_bbox_head):
            head.layers[-1].weight.normal_(0, 0.2)
        detector.decoder.enc_score_head.weight.normal_(0, 1)
    return detector


@pytest.fixture(scope="module")
def pictures():
    return [np.ascontiguousarray(each) for each in load_sample_images().images]


def compare_with_the_peer(folder, sides):
    run(f"SIZES = {sides}\nCLASSES = 7\n" + PEER, folder, STUBS)
    for name in sides:
        loaded, truth = detect.load(folder / f"{name}.pth"), load_file(folder / f"{name}.safetensors")
        assert loaded.detector.size.name == name
        assert loaded.names == tuple("0123456")
        pixels = truth["x"].double()
        if loaded.detector.normalised:  # the peer is given pictures that are normalised already
            mean, deviation = (torch.tensor(each, dtype=torch.float64)[:, None, None] for each in (MEAN, DEVIATION))
            pixels = pixels * deviation + mean
        for form, detector in (("trained", loaded.detector), ("deployed", loaded.detector.deploy())):
            with torch.no_grad():  # in float64, so that no two places swap their ranks
                answer = detector.double()(pixels)
            assert (answer.logits - truth[f"{form}-logits"]).abs().max() < 1e-4, (name, form)
            assert (answer.boxes - truth[f"{form}-boxes"]).abs().max() < 1e-4, (name, form)
            detector.float()


@needs("libreyolo")
def test_atto_and_n_are_the_peers_function_as_trained_and_deployed(tmp_path):
    compare_with_the_peer(tmp_path, {"atto": 320, "n": 352})


@pytest.mark.slow
@needs("libreyolo")
def test_all_sizes_are_the_peers_function_as_trained_and_deployed(tmp_path):
    compare_with_the_peer(
        tmp_path, {"atto": 320, "femto": 416, "pico": 320, "n": 352, "s": 320, "m": 320, "l": 320, "x": 320}
    )


@pytest.mark.parametrize("name", WHOLE)
def test_parameters_are_the_authors_to_the_unit(name):
    with torch.device("meta"):
        detector = Detector(name)
    assert parameters(detector) == WHOLE[name]
    if name in PARAMETERS:
        assert tuple(map(parameters, (detector.backbone, detector.encoder, detector.decoder))) == PARAMETERS[name]


def test_the_weighting_function_is_odd_increasing_and_fine_near_zero():
    table = edge_offsets(torch.tensor([0.5]), torch.tensor([4.0]))
    assert table.shape == (33,)
    assert torch.allclose(table, -table.flip(0), atol=1e-6)
    assert (table.diff() > 0).all()
    assert (table[16], table[-1]) == (0, 4)
    assert table[17] < table[-1] - table[-2]


def test_two_neighbouring_bins_give_back_any_offset_between_the_ends():
    table = edge_offsets(torch.tensor([0.5]), torch.tensor([4.0]))
    wanted = torch.linspace(-3.99, 3.99, 41)
    left = torch.searchsorted(table, wanted).sub(1).clamp(0, 31)
    share = (wanted - table[left]) / (table[left + 1] - table[left])
    probs = (
        torch.zeros(41, 33).scatter(1, left[:, None], 1 - share[:, None]).scatter(1, left[:, None] + 1, share[:, None])
    )
    logits = probs.log().repeat(1, 4)
    assert (expected_offsets(logits, table) - wanted[:, None]).abs().max() < 1e-5


def test_at_the_beginning_every_layers_box_is_the_reference():
    torch.manual_seed(0)
    detector = Detector("atto").eval()
    maps = detector.maps(torch.rand(1, 3, 320, 320))
    contents, boxes, _ = detector.decoder.choose(maps, 50)
    found, first = detector.decoder.refine(maps, contents, boxes, every=True)
    assert len(found) == 3
    assert (first.boxes - boxes.sigmoid()).abs().max() < 1e-5
    for answer in found:
        assert (answer.boxes - first.boxes).abs().max() < 1e-6


def test_offsets_move_edges_outwards_in_units_of_the_size():
    box = torch.tensor([[0.5, 0.5, 0.2, 0.4]])
    moved = moved_boxes(box, torch.tensor([[1.0, 0, 0, 0]]), torch.tensor([4.0]))
    assert torch.allclose(moved, torch.tensor([[0.475, 0.5, 0.25, 0.4]]))


def test_one_point_without_an_offset_reads_the_centre():
    attention = DeformableAttention(16, (1,))
    with torch.no_grad():
        attention.sampling_offsets.bias.zero_()
    value = torch.rand(8, 2, 9, 7)
    boxes = torch.rand(1, 5, 4)
    found = attention(torch.zeros(1, 5, 16), boxes, [value])
    grid = (2 * boxes[..., :2] - 1).expand(8, 5, 2)[:, :, None]
    expected = F.grid_sample(value, grid, align_corners=False)[..., 0].flatten(0, 1).T[None]
    assert torch.allclose(found, expected, atol=1e-6)


def test_places_near_the_border_are_not_read():
    logits, inside = anchor_logits([(64, 64), (2, 2)])
    assert logits.shape == (64 * 64 + 4, 4)
    assert not inside[0]
    assert torch.isinf(logits[0]).all()
    assert inside[-4:].all()
    assert torch.allclose(logits[-4:].sigmoid()[:, 2:], torch.full((4, 2), 0.1))
    assert torch.allclose(inverse_sigmoid(torch.tensor([0.0, 0.3, 1.0])).sigmoid(), torch.tensor([1e-5, 0.3, 1 - 1e-5]))


def test_queries_are_answered_alike_in_any_order_and_masked_ones_are_not_seen(atto):
    maps = atto.maps(torch.rand(1, 3, 320, 320))
    contents, boxes, _ = atto.decoder.choose(maps, 20)
    order = torch.randperm(20, generator=torch.Generator().manual_seed(0))
    plain, _ = atto.decoder.refine(maps, contents, boxes)
    turned, _ = atto.decoder.refine(maps, contents[:, order], boxes[:, order])
    assert torch.allclose(turned[-1].boxes, plain[-1].boxes[:, order], atol=1e-5)
    beside = torch.cat([torch.randn(1, 7, 64), contents], 1), torch.cat([torch.randn(1, 7, 4), boxes], 1)
    mask = torch.zeros(27, 27, dtype=torch.bool)
    mask[7:, :7] = True
    seen, _ = atto.decoder.refine(maps, *beside, mask=mask)
    assert torch.allclose(seen[-1].logits[:, 7:], plain[-1].logits, atol=1e-4)


def test_leaving_at_the_last_layer_is_the_whole_detector_and_earlier_layers_are_prefixes(atto):
    pixels = torch.rand(2, 3, 320, 320)
    with torch.no_grad():
        maps = atto.maps(pixels)
        contents, boxes, _ = atto.decoder.choose(maps, 100)
        every, _ = atto.decoder.refine(maps, contents, boxes, every=True)
        whole = atto(pixels)
        assert torch.equal(every[-1].boxes, whole.boxes)
        assert torch.equal(every[-1].logits, whole.logits)
        for layers in (1, 2):
            assert torch.equal(atto(pixels, layers).boxes, every[layers - 1].boxes)
            early = atto(pixels, go_on=lambda done, layers=layers: done < layers)
            assert torch.equal(early.boxes, every[layers - 1].boxes)
            assert early.layer == layers


def test_deploying_changes_no_answer_and_drops_parameters(atto):
    pixels = torch.rand(1, 3, 320, 320)
    deployed = atto.deploy()
    assert not any(part.training for part in atto.modules())
    with torch.no_grad():
        maps = [each.maps(pixels) for each in (atto, deployed)]
        assert all(torch.allclose(*pair, atol=1e-4) for pair in zip(*maps, strict=True))
    assert parameters(deployed) < parameters(atto)


def test_boxes_are_in_the_pictures_own_pixels_alone_and_together(atto, pictures):
    loaded = Loaded(atto, ("a", "b", "c"), 320)
    small = pictures[1][:300, :200]
    together = detect.detect(loaded, [pictures[0], small], threshold=0.0)
    for picture, found in zip((pictures[0], small), together, strict=True):
        (alone,) = detect.detect(loaded, [picture], threshold=0.0)
        assert torch.allclose(alone.scores, found.scores, atol=1e-5)
        height, width = picture.shape[:2]
        assert (found.boxes >= 0).all()
        assert (found.boxes[:, [0, 2]] <= width).all()
        assert (found.boxes[:, [1, 3]] <= height).all()
        assert found.boxes[:, 2].max() > width / 2
        assert (found.scores.diff() <= 0).all()
    assert len(detect.detect(loaded, [small], threshold=1.0)[0].boxes) == 0


def test_suppression_leaves_no_two_boxes_of_a_class_that_overlap_more(atto, pictures):
    loaded = Loaded(atto, ("a", "b", "c"), 320)
    (whole,) = detect.detect(loaded, pictures[:1], threshold=0.0)
    (left,) = detect.detect(loaded, pictures[:1], threshold=0.0, nms=0.05)
    assert 0 < len(left.scores) < len(whole.scores)
    iou = overlap(left.boxes[:, None], left.boxes[None])[0].fill_diagonal_(0)
    assert iou[left.labels[:, None] == left.labels[None]].max() <= 0.05
    assert left.scores[0] == whole.scores[0]


def test_a_budget_chooses_the_most_layers_and_queries_that_it_has_room_for(atto, pictures):
    loaded = Loaded(atto, ("a", "b", "c"), 320)
    whole, least = (cost_of_effort(loaded, detect.Effort(*how)) for how in ((3, 100), (1, 25)))
    assert detect.chosen_effort(loaded, Budget(flops=whole.flops)) == detect.Effort(3, 100)
    chosen = detect.chosen_effort(loaded, Budget(flops=(whole.flops + least.flops) / 2))
    spent = cost_of_effort(loaded, chosen).flops
    assert least.flops < spent <= (whole.flops + least.flops) / 2
    with pytest.raises(UsageError, match=r"the closest, 1 layers of 25 places, needs 2\.00 times as much"):
        detect.chosen_effort(loaded, Budget(flops=least.flops / 2))
    (found,) = detect.detect(loaded, pictures[:1], budget=Budget(seconds=1e-9))
    assert found.ledger.extras == {"layers": 1, "queries": 100}


def test_costs_grow_with_layers_and_queries(atto):
    loaded = Loaded(atto, ("a", "b", "c"), 320)
    by_layers = [cost_of_effort(loaded, detect.Effort(layers, 100)).flops for layers in (1, 2, 3)]
    by_queries = [cost_of_effort(loaded, detect.Effort(3, queries)).flops for queries in (25, 50, 100)]
    assert by_layers == sorted(set(by_layers))
    assert by_queries == sorted(set(by_queries))


def test_what_does_not_fit_is_refused_in_one_line(atto, tmp_path):
    loaded = Loaded(atto, ("a", "b", "c"), 128)
    assert places(loaded) == 80
    for options, message in (
        ({"queries": 81}, "refines 1 to 80 places here, not 81"),
        ({"layers": 4}, "has 3 layers; run 1 to 3, not 4"),
        ({"threshold": 1.5}, "from 0 to 1"),
        ({"nms": 7.0}, "nms is an IoU"),
        ({"budget": Budget(target_passes=3)}, "target_passes"),
    ):
        with pytest.raises(UsageError, match=message):
            detect.detect(loaded, [np.zeros((40, 40, 3), np.uint8)], **options)
    with pytest.raises(UsageError, match="sides that 32 divides"):
        atto(torch.rand(1, 3, 100, 96))
    with pytest.raises(UsageError, match=r"there is no DEIMv2 of size 'attoo' \(did you mean 'atto'\?\)"):
        detect.size_of("attoo")
    with pytest.raises(UsageError, match="holds no DEIMv2"):
        detector_of({"a": torch.zeros(1)}, "it")
    state = {name: tensor for name, tensor in atto.state_dict().items() if "swish_ffn.w3.weight" not in name}
    with pytest.raises(UsageError, match="lacks decoder"):
        detector_of(state, "it")
    (tmp_path / "code.pth").write_bytes(b"cos\nsystem\n(S'true'\ntR.")
    with pytest.raises(UsageError):
        detect.load(tmp_path / "code.pth")
    save_file({k: v.clone() for k, v in atto.state_dict().items()}, tmp_path / "a.safetensors")
    with pytest.raises(UsageError, match="3 classes, and there are 2 names"):
        detect.load(tmp_path / "a.safetensors", ["x", "y"])


def test_a_saved_detector_is_loaded_again_and_the_average_is_taken_first(atto, tmp_path):
    loaded = Loaded(atto, ("a", "b", "c"), 192)
    detect.save(tmp_path / "mine", loaded)
    again = detect.load(tmp_path / "mine")
    assert (again.names, again.side, again.detector.size) == (loaded.names, 192, atto.size)
    pixels = torch.rand(1, 3, 192, 192)
    for name, tensor in atto.state_dict().items():
        assert torch.equal(again.detector.state_dict()[name], tensor)
    with torch.no_grad():  # kernels lie otherwise in memory, so sums are rounded otherwise
        assert torch.allclose(again.detector(pixels, queries=40).boxes, atto(pixels, queries=40).boxes, atol=1e-5)
    torch.save({"model": {"x": torch.zeros(1)}, "ema": {"module": {"x": torch.ones(1)}}}, tmp_path / "both.pth")
    assert averaged(tmp_path / "both.pth")["x"] == 1


def test_any_picture_is_read(tmp_path):
    exif = Image.Exif()
    exif[274] = 6  # turned by 90 degrees
    Image.new("RGB", (20, 10), "red").save(tmp_path / "turned.jpg", exif=exif)
    assert read_picture(tmp_path / "turned.jpg").shape == (20, 10, 3)
    assert read_picture(np.zeros((5, 4), np.uint8)).shape == (5, 4, 3)
    assert read_picture(Image.new("RGBA", (5, 4), (9, 9, 9, 0))).min() == 255
    assert resized(np.full((7, 9, 3), 255, np.uint8), 64).unique().tolist() == [1]
    with pytest.raises(UsageError, match="there is no file"):
        read_picture(tmp_path / "none.png")
    (tmp_path / "cut.jpg").write_bytes((tmp_path / "turned.jpg").read_bytes()[:100])
    with pytest.raises(UsageError, match="can't be read as a picture"):
        read_picture(tmp_path / "cut.jpg")


def test_the_command_tells_and_draws(atto, tmp_path, pictures, capsys):
    from outlay import cli

    detect.save(tmp_path / "mine", Loaded(atto, ("a", "b", "c"), 192))
    Image.fromarray(pictures[0]).save(tmp_path / "china.png")
    words = ["vision", "detect", str(tmp_path / "china.png"), "--model", str(tmp_path / "mine"), "--threshold", "0"]
    assert cli.main([*words, "--queries", "30", "--json", "--draw", str(tmp_path / "drawn")]) == 0
    row = json.loads(capsys.readouterr().out)
    assert (row["width"], row["height"], len(row["detections"])) == (640, 427, 30)
    assert row["ledger"]["extras"] == {"layers": 3, "queries": 30}
    assert Image.open(tmp_path / "drawn" / "china.png").size == (640, 427)
    assert cli.main([*words, "--layers", "2"]) == 0
    assert "2 layers, 100 queries" in capsys.readouterr().out
    assert cli.main([*words, "--layers", "9"]) == 2
    assert capsys.readouterr().err == "outlay: the detector has 3 layers; run 1 to 3, not 9\n"
    assert cli.main([*words, "--draw", str(tmp_path / "china.png")]) == 2
    assert "--draw is a folder for pictures" in capsys.readouterr().err


def test_the_command_measures_as_choose_does(atto, tmp_path, pictures, capsys, monkeypatch):
    from outlay import cli
    from outlay.vision.detect import timing

    calls = []
    times = iter([timing.Times(9, 9), timing.Times(0.012, 0.011), *6 * [timing.Times(0.01, 0.009, 0.5)]])
    monkeypatch.setattr(timing, "timed_call", lambda run: calls.append(run()) or next(times))
    detect.save(tmp_path / "mine", Loaded(atto, ("a", "b", "c"), 192))
    Image.fromarray(pictures[0]).save(tmp_path / "china.png")
    words = ["vision", "detect", str(tmp_path / "china.png"), "--model", str(tmp_path / "mine"), "--measure"]
    assert cli.main(words) == 0
    last = capsys.readouterr().out.splitlines()[-1]
    assert last == "10.0 ms, 9.0 ms of the processor; without 500.0 ms in which other work held it"
    assert len(calls) == 7
