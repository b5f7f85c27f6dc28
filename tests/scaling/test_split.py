"""`plan_split`: splits of equal budgets, one encoder pass, times that follow from the costs of a layer."""

from __future__ import annotations

import time

import pytest

from outlay.errors import UsageError
from outlay.scaling.split import LayerCosts, SplitTask, measure_layers, plan_split
from outlay.speculation.costs import PassCosts

WIDE = 10_000  # rows up to which the made-up costs are given


def costs(layer=1e-3, per_row=1e-4, head=5e-4, slope=0.0):
    """A layer takes `layer` and `per_row` more for each further row; the rest of a pass `head`."""
    linear = PassCosts((1, WIDE), (layer, layer + (WIDE - 1) * per_row), slope)
    return LayerCosts(linear, PassCosts((1, WIDE), (head, head), 0.0))


TASK = SplitTask(21e6, 256, 125, 40, seconds=10.0)


def test_compared_splits_have_equal_parameters_within_two_percent():
    splits = plan_split(TASK, costs())
    assert len(splits) > 10
    assert all(abs(split.params - 21e6) <= 0.02 * 21e6 for split in splits)
    assert all(split.params == 65536 * (12 * split.encoder + 16 * split.decoder) for split in splits)
    assert {(24, 2), (12, 11)} <= {(split.encoder, split.decoder) for split in splits}


def test_the_encoder_runs_once_and_the_decoder_once_a_token():
    few, many = (plan_split(SplitTask(21e6, 256, 125, outputs, seconds=10.0), costs())[0] for outputs in (1, 100))
    assert few.encode_seconds == many.encode_seconds
    assert many.decode_seconds == pytest.approx(100 * few.decode_seconds)


def test_the_times_are_those_of_the_cost_model_by_hand():
    split = next(each for each in plan_split(TASK, costs()) if each.decoder == 2)
    read = 1e-3 + 124 * 1e-4
    assert split.encode_seconds == pytest.approx((24 + 2 * 2 / 12) * read)
    assert split.decode_seconds == pytest.approx(40 * (2 * 1e-3 * 14 / 12 + 5e-4))
    assert split.rate == pytest.approx(10 / split.seconds)


def test_reading_a_long_memory_costs_each_decoder_layer():
    slope = 1e-6
    plain, sloped = (
        next(each for each in plan_split(TASK, costs(slope=value)) if each.decoder == 2) for value in (0.0, slope)
    )
    assert sloped.decode_seconds - plain.decode_seconds == pytest.approx(40 * 2 * 125 * slope)


def test_where_a_pass_of_one_row_costs_most_shallow_decoders_win_and_where_rows_do_they_lose():
    overhead = plan_split(TASK, costs(layer=1e-3, per_row=1e-6))
    assert max(overhead, key=lambda split: split.rate).decoder == 1
    rows = plan_split(TASK, costs(layer=1e-6, per_row=1e-3, head=0.0))
    assert max(rows, key=lambda split: split.rate).encoder == min(split.encoder for split in rows)


def test_a_batch_counts_all_of_its_inputs():
    one, four = (
        next(each for each in plan_split(SplitTask(21e6, 256, 125, 40, batch, 10.0), costs()) if each.decoder == 2)
        for batch in (1, 4)
    )
    assert four.encode_seconds == pytest.approx(4 * one.encode_seconds)
    assert four.rate == pytest.approx(40 / four.seconds)


def test_quality_is_said_to_be_measured_only_where_it_was_published():
    canary = plan_split(SplitTask((32 * 12 + 4 * 16) * 1024**2, 1024, 125, 40), costs())
    said = {(split.encoder, split.decoder): split.quality for split in canary}
    assert said[32, 4] == "published: canary-1b-flash"
    assert all(quality.startswith("not measured") for shape, quality in said.items() if shape != (32, 4))
    assert all(("fewer than 4" in quality) == (shape[1] < 4) for shape, quality in said.items())


@pytest.mark.parametrize(
    ("task", "says"),
    [
        (lambda: SplitTask(0, 256, 125, 40), "1 or more"),
        (lambda: plan_split(SplitTask(1000, 256, 125, 40), costs()), "1,835,008 weights"),
        (lambda: plan_split(SplitTask(34 * 65536, 256, 1, 1), costs(), 0.001), "no split comes within"),
        (lambda: measure_layers(100, 64, [1]), "multiple of 64"),
    ],
)  # fmt: skip
def test_what_can_not_be_planned_is_refused(task, says):
    with pytest.raises(UsageError, match=says):
        task()


def test_a_layer_takes_half_of_what_two_more_layers_take(monkeypatch):
    def timed(worker, tree, width, clock):
        return 1e-3 + 1e-5 * width + worker.decoder.config.num_layers * (2e-4 + 3e-6 * width)

    monkeypatch.setattr("outlay.speculation.costs.timed", timed)
    found = measure_layers(64, 64, [256])
    assert found.layer.widths == found.head.widths == (1, 2, 4, 8, 32, 256)
    assert found.layer.seconds == pytest.approx([2e-4 + 3e-6 * width for width in found.layer.widths])
    assert found.head.seconds == pytest.approx([1e-3 + 1e-5 * width for width in found.head.widths])


def test_noise_never_makes_more_rows_take_less(monkeypatch):
    def timed(worker, tree, width, clock):
        disturbed = width == 256 and worker.decoder.config.num_layers == 1
        return 1e-3 + worker.decoder.config.num_layers * 1e-4 * width + 100 * disturbed

    monkeypatch.setattr("outlay.speculation.costs.timed", timed)
    found = measure_layers(64, 64, [256])
    assert found.layer(256) == found.layer(32) == pytest.approx(32e-4)


@pytest.mark.slow
def test_measured_layers_take_longer_with_more_rows():
    found = measure_layers(128, 64, [256], clock=time.process_time)
    assert found.layer(256) > found.layer(1) > 0
