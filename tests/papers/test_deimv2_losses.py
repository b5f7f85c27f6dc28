"""DEIMv2's matching and losses: term by term those of an independent implementation, and what they guarantee."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from vision.peer import needs, run

from outlay.errors import UsageError
from outlay.train.detect.denoising import noisy_queries
from outlay.train.detect.losses import Denoised, Predictions, Terms, bins_of, losses, mal, right_offsets
from outlay.train.detect.matching import Match, Targets, costs, match, union
from outlay.train.detect.training import predictions
from outlay.vision.detect.boxes import centred, corners, overlap
from outlay.vision.detect.decoder import Answer, edge_offsets, moved_boxes
from outlay.vision.detect.deimv2 import Detector
from outlay.vision.detect.sizes import size_of

PEER = """
import importlib.util
import torchvision.ops.boxes
torchvision.ops.boxes.box_area = lambda x: (x[..., 2] - x[..., 0]) * (x[..., 3] - x[..., 1])
argsort = torch.argsort  # leaves open which of two pairs with as many votes is first; ours takes the first
torch.argsort = lambda x, **options: argsort(x, stable=True, **options)
root = importlib.util.find_spec("libreyolo").submodule_search_locations[0]
for name in ("libreyolo", "libreyolo.models", "libreyolo.models.deimv2", "libreyolo.models.deim"):
    module = sys.modules[name] = types.ModuleType(name)
    module.__path__ = [root + name.removeprefix("libreyolo").replace(".", "/")]
from libreyolo.models.deimv2.loss import DEIMv2Criterion
from libreyolo.models.deimv2.matcher import HungarianMatcher
from safetensors.torch import load_file, save_file

held = load_file(f"{folder}/said.safetensors")
counts = held["counts"].tolist()
targets = [{"boxes": b, "labels": l} for b, l in zip(held["boxes"].split(counts), held["labels"].split(counts))]
weights = {"loss_mal": 1, "loss_bbox": 5, "loss_giou": 2, "loss_fgl": 0.15, "loss_ddf": 1.5}
up, scale = torch.tensor([0.5]), torch.tensor([4.0])
costs = {"cost_class": 2.0, "cost_bbox": 5.0, "cost_giou": 2.0}


def part(name):
    found = {"pred_logits": held[f"{name}.logits"], "pred_boxes": held[f"{name}.boxes"]}
    if f"{name}.edges" in held:
        found |= {"pred_corners": held[f"{name}.edges"], "ref_points": held[f"{name}.references"]}
    for tensor in found.values():
        tensor.requires_grad_()
    return found


def layers(prefix):
    found = [part(f"{prefix}{place}") for place in range(3)]
    teacher = {"teacher_corners": found[-1]["pred_corners"], "teacher_logits": found[-1]["pred_logits"]}
    return found, [each | teacher for each in found]


for case, (terms, late) in {"local": (("mal", "boxes", "local"), 0), "late": (("mal", "boxes", "local"), 5),
                            "lite": (("mal", "boxes"), 0)}.items():
    raw, own = layers("layer")
    noisy, dn = layers("denoised")
    out = raw[-1] | {"up": up, "reg_scale": scale, "aux_outputs": own[:-1], "pre_outputs": part("first"),
                     "enc_aux_outputs": [part("encoder")], "enc_meta": {"class_agnostic": False},
                     "dn_outputs": dn, "dn_pre_outputs": part("denoised_first"),
                     "dn_meta": {"dn_num_group": 2,
                                 "dn_positive_idx": held["positive"].split(held["positives"].tolist())}}
    matcher = HungarianMatcher(costs, change_matcher=True, iou_order_alpha=4.0, matcher_change_epoch=3)
    criterion = DEIMv2Criterion(matcher=matcher, weight_dict=weights, losses=list(terms), alpha=0.75, gamma=1.5,
                                num_classes=6, reg_max=32, use_uni_set="local" in terms, distributed_normalize=False)
    found = criterion(out, targets, epoch=late)
    sum(found.values()).backward()
    kept = {name: loss.detach().reshape(()) for name, loss in found.items()}
    for place, each in enumerate(raw):
        kept |= {f"grad{place}.{what}": each[what].grad for what in ("pred_logits", "pred_boxes", "pred_corners")
                 if each[what].grad is not None}
    save_file(kept, f"{folder}/{case}.safetensors")
    for tensor in held.values():
        tensor.grad = None
"""
NAMES = {"": "layer 3", "_aux_0": "layer 1", "_aux_1": "layer 2", "_pre": "first", "_enc_0": "encoder",
         "_dn_0": "denoised layer 1", "_dn_1": "denoised layer 2", "_dn_2": "denoised layer 3",
         "_dn_pre": "denoised first"}  # fmt: skip
UP, SCALE = torch.tensor([0.5]), torch.tensor([4.0])


def boxes(*shape, draw):
    middle = torch.rand(*shape, 2, generator=draw) * 0.6 + 0.2
    return torch.cat([middle, torch.rand(*shape, 2, generator=draw) * 0.3 + 0.05], -1)


@pytest.fixture(scope="module")
def said():
    """Random predictions of three layers with two groups of denoised queries, and the right boxes."""
    draw = torch.Generator().manual_seed(3)
    counts, queries, classes = (3, 0, 5, 1), 12, 6
    targets = Targets(boxes(sum(counts), draw=draw), torch.randint(classes, (sum(counts),), generator=draw), counts)
    most, groups = max(counts), 2

    def answer(count, references):
        logits = torch.randn(len(counts), count, classes, generator=draw)
        edges = torch.randn(len(counts), count, 132, generator=draw)
        return Answer(logits, boxes(len(counts), count, draw=draw), edges, references)

    plain, noisy = boxes(len(counts), queries, draw=draw), boxes(len(counts), 2 * most * groups, draw=draw)
    layers = [answer(queries, plain) for _ in range(3)]
    denoised = [answer(2 * most * groups, noisy) for _ in range(3)]
    first, encoder, other = answer(queries, plain), answer(queries, plain), answer(2 * most * groups, noisy)
    bare = [Answer(each.logits, each.boxes) for each in (first, encoder, other)]
    rows = [
        (picture, group * 2 * most + place, start + place)
        for picture, (start, count) in enumerate(zip(targets.starts, counts, strict=True))
        for group in range(groups)
        for place in range(count)
    ]
    near = Match(*torch.tensor(rows).T)
    return Predictions(bare[1], bare[0], layers, Denoised(denoised, bare[2], near, groups)), targets


@needs("libreyolo")
def test_every_term_and_gradient_is_the_peers(said, tmp_path):
    found, targets = said
    near = found.denoised.match
    held = {"boxes": targets.boxes, "labels": targets.labels, "counts": torch.tensor(targets.counts),
            "positive": near.queries, "positives": near.pictures.bincount(minlength=len(targets.counts))}  # fmt: skip
    parts = {"first": found.first, "encoder": found.encoder, "denoised_first": found.denoised.first}
    parts |= {f"layer{place}": each for place, each in enumerate(found.layers)}
    parts |= {f"denoised{place}": each for place, each in enumerate(found.denoised.layers)}
    for name, each in parts.items():
        given = {"logits": each.logits, "boxes": each.boxes, "edges": each.edges, "references": each.references}
        held |= {f"{name}.{what}": tensor for what, tensor in given.items() if tensor is not None}
    save_file(
        {name: tensor.detach().clone().contiguous() for name, tensor in held.items()}, tmp_path / "said.safetensors"
    )
    run(PEER, tmp_path)
    for case, (terms, late) in {
        "local": (Terms(), False), "late": (Terms(), True), "lite": (Terms(local=False, union=False), False),
    }.items():  # fmt: skip
        truth = load_file(tmp_path / f"{case}.safetensors")
        leaves = [
            {"pred_logits": each.logits.clone().requires_grad_(), "pred_boxes": each.boxes.clone().requires_grad_(),
             "pred_corners": each.edges.clone().requires_grad_()}
            for each in found.layers
        ]  # fmt: skip
        layers = [
            Answer(leaf["pred_logits"], leaf["pred_boxes"], leaf["pred_corners"], each.references)
            for leaf, each in zip(leaves, found.layers, strict=True)
        ]
        ours = losses(
            Predictions(found.encoder, found.first, layers, found.denoised), targets, UP, SCALE, terms, late=late
        )
        sum(ours.values()).backward()
        compared = 0
        for name, loss in truth.items():
            if name.startswith("loss_"):
                kind, _, suffix = name.removeprefix("loss_").partition("_")
                own = ours.get(f"{kind} {NAMES['_' + suffix if suffix else '']}", torch.zeros(()))
                assert abs(own - loss) < 1e-5, (case, name)
                compared += 1
        assert compared >= (27 if case == "lite" else 35)
        assert {name.partition(" ")[0] for name in ours} == (
            {"mal", "bbox", "giou"} | ({"fgl", "ddf"} if terms.local else set())
        )
        for place, leaf in enumerate(leaves):
            for what, tensor in leaf.items():
                wanted = truth.get(f"grad{place}.{what}")
                if wanted is not None:
                    assert (tensor.grad - wanted).abs().max() < 1e-6, (case, place, what)


def test_matching_finds_the_cheapest_of_all_and_every_box_once():
    draw = torch.Generator().manual_seed(0)
    targets = Targets(boxes(3, draw=draw), torch.tensor([0, 1, 1]), (3,))
    logits, said = torch.randn(1, 5, 2, generator=draw), boxes(1, 5, draw=draw)
    for late in (False, True):
        found = match(logits, said, targets, late=late)
        assert sorted(found.boxes.tolist()) == [0, 1, 2]
        assert len(set(found.queries.tolist())) == 3
        every = costs(logits, said, targets, late=late)[0]
        best = min(sum(every[q, b] for b, q in enumerate(order)) for order in itertools.permutations(range(5), 3))
        assert torch.isclose(every[found.queries, found.boxes].sum(), best)


def test_the_late_cost_is_the_score_times_the_fourth_power_of_the_overlap():
    targets = Targets(torch.tensor([[0.5, 0.5, 0.2, 0.2]]), torch.tensor([1]), (1,))
    said = torch.tensor([[[0.5, 0.5, 0.2, 0.2], [0.5, 0.5, 0.2, 0.1]]])
    logits = torch.tensor([[[0.0, 0.0], [0.0, 2.0]]])
    wanted = torch.tensor([-0.5, -(torch.tensor(2.0).sigmoid() * 0.5**4)])
    assert torch.allclose(costs(logits, said, targets, late=True)[0, :, 0], wanted)


def test_a_union_gives_each_query_the_box_that_most_layers_give_it():
    one = Match(*torch.tensor([[0, 3, 7], [0, 4, 8], [1, 3, 9]]).T)
    other = Match(*torch.tensor([[0, 3, 8], [0, 5, 7]]).T)
    third = Match(*torch.tensor([[0, 3, 8]]).T)
    rows = sorted(zip(*(each.tolist() for each in union([one, other, third])), strict=True))
    assert rows == [(0, 3, 8), (0, 4, 8), (0, 5, 7), (1, 3, 9)]


def test_a_matched_score_rests_where_it_is_the_overlap_to_the_power_of_gamma_and_wrong_ones_cost_more_the_surer():
    targets = Targets(torch.tensor([[0.5, 0.5, 0.4, 0.4]]), torch.tensor([0]), (1,))
    said = torch.tensor([[[0.5, 0.5, 0.4, 0.3], [0.1, 0.1, 0.1, 0.1]]])
    matched = Match(*torch.tensor([[0, 0, 0]]).T)
    goal = 0.75**1.5
    logits = torch.tensor([[[np.log(goal / (1 - goal))], [0.0]]], requires_grad=True)
    mal(Answer(logits, said), targets, matched).backward()
    assert abs(logits.grad[0, 0, 0]) < 1e-6
    assert logits.grad[0, 1, 0] > 0.1
    values = []
    for score in (-2.0, 0.0, 2.0):
        with torch.no_grad():
            values.append(float(mal(Answer(torch.tensor([[[0.0], [score]]]), said), targets, matched)))
    assert values == sorted(set(values))


def test_offsets_of_a_box_lead_to_it_and_two_bins_give_them_back():
    draw = torch.Generator().manual_seed(1)
    references, wanted = boxes(50, draw=draw), boxes(50, draw=draw)
    offsets = right_offsets(references, wanted, SCALE)
    assert (moved_boxes(references, offsets, SCALE) - wanted).abs().max() < 1e-5
    table = edge_offsets(UP, SCALE)
    left, share = bins_of(offsets, table)
    back = table[left] * (1 - share) + table[left + 1] * share
    assert (back - offsets.clamp(-4, 4)).abs().max() < 1e-5


def test_overlaps_of_boxes():
    one = torch.tensor([[0.0, 0, 2, 2], [0, 0, 1, 1], [0, 0, 1, 1]])
    other = torch.tensor([[1.0, 1, 3, 3], [2, 0, 3, 1], [0, 0, 1, 1]])
    iou, giou = overlap(one, other)
    assert torch.allclose(iou, torch.tensor([1 / 7, 0, 1]))
    assert torch.allclose(giou, torch.tensor([1 / 7 - 2 / 9, -1 / 3, 1]))
    assert torch.allclose(corners(centred(one)), one)


def test_noisy_queries_are_near_or_far_and_seen_by_no_other():
    draw = torch.Generator().manual_seed(0)
    targets = Targets(boxes(6, draw=draw).float(), torch.randint(3, (6,), generator=draw), (4, 0, 2))
    embed = torch.nn.Embedding(4, 8, padding_idx=3)
    noisy = noisy_queries(targets, embed, 20, draw)
    assert (noisy.groups, noisy.contents.shape) == (5, (3, 40, 8))
    assert len(noisy.match.queries) == 6 * 5
    own, _ = targets.padded()
    moved = (corners(noisy.boxes.sigmoid()) - corners(own).repeat(1, 10, 1)).abs()
    share = moved / own[..., 2:].repeat(1, 10, 2).clamp_min(1e-9)
    near = torch.arange(40) // 4 % 2 == 0
    assert share[0, near].max() <= 0.5 + 1e-4
    assert share[0, ~near].max() > 0.5
    hidden = noisy.mask(7)
    assert hidden[40:, :40].all()
    assert not hidden[:40, 40:].any()
    assert not hidden[40:, 40:].any()
    group = torch.arange(40) // 8
    assert torch.equal(hidden[:40, :40], group[:, None] != group)
    assert noisy_queries(Targets(torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64), (0, 0)), embed, 20, draw) is None


def test_denoising_changes_no_answer_of_the_detectors_own_queries():
    torch.manual_seed(0)
    detector = Detector(size_of("atto", classes=3, queries=20)).eval()
    draw = torch.Generator().manual_seed(0)
    targets = Targets(boxes(3, draw=draw).float(), torch.tensor([0, 1, 2]), (2, 1))
    pixels = torch.rand(2, 3, 128, 128)
    with torch.no_grad():
        noisy = predictions(detector, pixels, targets, 10, draw)
        plain = predictions(detector, pixels, targets, 0, draw)
    assert noisy.denoised is not None
    assert plain.denoised is None
    for one, other in zip([*noisy.layers, noisy.first], [*plain.layers, plain.first], strict=True):
        assert torch.allclose(one.logits, other.logits, atol=1e-5)
        assert torch.allclose(one.boxes, other.boxes, atol=1e-6)


def test_pictures_without_boxes_have_losses_and_too_many_boxes_are_refused(said):
    found, _ = said
    none = Targets(torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64), (0, 0, 0, 0))
    for terms in (Terms(), Terms(local=False, union=False)):
        ours = losses(Predictions(found.encoder, found.first, found.layers), none, UP, SCALE, terms)
        assert all(torch.isfinite(loss) for loss in ours.values())
        assert ours["mal layer 1"] > 0
        assert ours["bbox layer 1"] == 0
    many = Targets(torch.rand(13, 4), torch.zeros(13, dtype=torch.int64), (13, 0, 0, 0))
    with pytest.raises(UsageError, match="13 boxes, and 12 queries"):
        match(found.first.logits, found.first.boxes, many)
