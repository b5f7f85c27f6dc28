"""What a pass costs: between the widths that were measured, after longer texts, and kept in the user's cache."""

from __future__ import annotations

import json
import time

import pytest
import torch

from outlay import Budget, kernels
from outlay.models.draft_head import untrained_draft_head
from outlay.models.linear import weight_of
from outlay.speculation import costs
from outlay.speculation.costs import LONG, SHORT, WIDTHS, CostMeter, Measurement, PassCosts, costs_of, known_of
from outlay.testing import tiny_lm, tiny_model


def measure(model, widths=WIDTHS):
    measurement = Measurement(model, widths)
    while not measurement.done:
        measurement.step()
    return measurement.costs()


def measure_now(model):
    return known_of(model).complete(model)


COSTS = PassCosts((1, 2, 4, 8), (0.010, 0.012, 0.013, 0.021), 1e-6)


@pytest.fixture(scope="module")
def measured():
    return measure(tiny_model())


@pytest.fixture
def kept(monkeypatch, tmp_path):
    """An empty cache, and passes that take no time; counts them."""
    monkeypatch.setenv("OUTLAY_CACHE", str(tmp_path))
    monkeypatch.setattr(costs, "_KNOWN", {})
    monkeypatch.setattr(costs, "IN_A_ROW", 1)
    found = []

    def timed(worker, tree, width, clock):
        found.append(width)
        return width * 1e-3

    monkeypatch.setattr(costs, "timed", timed)
    return found


@pytest.fixture
def clock(monkeypatch):
    """Makes passes take what a function of their rows and the text's length says."""

    def set_clock(seconds):
        monkeypatch.setattr(costs, "timed", lambda worker, tree, width, clock: seconds(width, tree.tip.position + 1))

    return set_clock


def forget():
    """As in another process."""
    costs._KNOWN.clear()


def only_file(folder):
    [path] = (folder / "costs").iterdir()
    return path


@pytest.mark.parametrize(
    ("rows", "seconds"),
    [(1, 0.010), (1.5, 0.011), (2, 0.012), (3, 0.0125), (4, 0.013), (6, 0.017), (8, 0.021), (12, 0.029)],
)
def test_between_the_widths_and_beyond_them_it_is_linear(rows, seconds):
    assert COSTS(rows) == pytest.approx(seconds)


def test_each_row_pays_for_the_text_beyond_the_short_one():
    assert COSTS(4, SHORT) == COSTS(4, 1) == COSTS(4)
    assert COSTS(4, SHORT + 1000) - COSTS(4) == pytest.approx(4 * 1000 * 1e-6)
    assert COSTS(1, SHORT + 1000) - COSTS(1) == pytest.approx(1000 * 1e-6)


def test_passes_are_timed_behind_others_of_their_width(kept, monkeypatch):
    monkeypatch.setattr(costs, "IN_A_ROW", 3)
    measure(tiny_model(), (1, 3))
    assert kept == costs.TURNS * [1, 1, 1, 3, 3, 3] + costs.TURNS * [3, 3, 3]


def test_a_pass_is_never_free():
    assert PassCosts((1, 2), (0.0, 0.0), 0.0)(1) > 0
    assert PassCosts((1, 2), (0.1, 0.3), 0.0)(0.1) > 0


def test_fewer_rows_never_cost_more_than_more_rows(measured):
    assert measured.widths == WIDTHS
    assert list(measured.seconds) == sorted(measured.seconds)
    assert measured.seconds[0] > 0
    for context in (SHORT, LONG, 4000):
        seconds = [measured(rows / 2, context) for rows in range(2, 81)]
        assert seconds == sorted(seconds)


def test_what_was_timed_out_of_order_is_put_right(clock):
    """A width that was slow by chance costs no more than the next one."""
    clock(lambda rows, length: {1: 3.0, 2: 5.0, 3: 4.0, 4: 4.5}[rows])
    assert measure(tiny_model(), (1, 2, 3, 4)).seconds == (3.0, 4.0, 4.0, 4.5)


def test_the_slope_is_what_a_row_takes_more_for_each_token_of_text(clock):
    clock(lambda rows, length: rows * (0.1 + 1e-3 * length))
    found = measure(tiny_model(), (1, 4, 8, 16))
    assert found.slope == pytest.approx(1e-3)
    assert found(3, 300) == pytest.approx(3 * (0.1 + 1e-3 * 300))
    clock(lambda rows, length: rows / length)
    assert measure(tiny_model(), (1, 4, 8)).slope == 0, "never less for more text"


def test_the_slope_is_right_where_the_context_is_short(clock):
    clock(lambda rows, length: rows * (0.1 + 1e-3 * length))
    assert measure(tiny_model(context=200), (1, 4, 8)).slope == pytest.approx(1e-3)


def test_a_longer_text_costs_more_in_a_model_that_does_little_else(measured):
    assert measured.slope >= 0
    assert measured(8, 4000) >= measured(8, LONG) >= measured(8, SHORT)


@pytest.mark.parametrize("context", [80, 512])
def test_models_of_any_context_can_be_timed(context):
    found = measure(tiny_model(context=context), (1, 4))
    assert all(seconds > 0 for seconds in found.seconds)


def test_a_head_is_timed_with_the_features_that_it_reads():
    found = measure(untrained_draft_head(tiny_model(), 1, 128), (1, 4, 8))
    assert list(found.seconds) == sorted(found.seconds)


def test_a_head_of_few_tokens_can_be_timed():
    assert measure(untrained_draft_head(tiny_model(), 1, 17), (1, 4)).seconds[0] > 0


def test_timing_leaves_the_model_as_it_was(measured):
    model = tiny_model()
    before = [weight_of(layer.qkv).clone() for layer in model.decoder.layers]
    measure(model, (1, 2))
    assert all(torch.equal(a, weight_of(layer.qkv)) for a, layer in zip(before, model.decoder.layers, strict=True))


PIECES = costs.TURNS * (len(WIDTHS) + 1)
MEASURED = PassCosts(WIDTHS, tuple(width * 1e-3 for width in WIDTHS), 0.0)


def test_before_they_are_measured_costs_are_estimated_in_no_time(kept):
    found = costs_of(tiny_model())
    assert list(found.seconds) == sorted(found.seconds)
    assert found(32) > found(1) > 0
    assert not kept


def test_what_was_measured_is_kept_and_read_back(kept, tmp_path, monkeypatch):
    monkeypatch.setattr(costs, "PROCESSES", 1)
    assert measure_now(tiny_model()) == costs_of(tiny_model()) == MEASURED
    forget()
    assert measure_now(tiny_model()) == costs_of(tiny_model()) == MEASURED
    assert len(kept) == PIECES
    held = json.loads(only_file(tmp_path).read_text())
    assert held == {"widths": list(WIDTHS), "measured": [[list(MEASURED.seconds), 0.0]], "begun": []}


def test_the_first_three_processes_measure_and_the_least_of_each_width_counts(kept, monkeypatch):
    """The machine may have been busy with something else when the first did."""
    for factor, least in ((3.0, 3.0), (2.0, 2.0), (4.0, 2.0), (1.0, 2.0)):
        monkeypatch.setattr(costs, "timed", lambda worker, tree, width, clock, factor=factor: factor * width)
        assert measure_now(tiny_model()).seconds == tuple(least * width for width in WIDTHS)
        forget()


def test_what_one_process_has_begun_the_next_one_goes_on_with(kept):
    meter = CostMeter(tiny_model())
    for _ in range(5):
        assert meter.spare()
    assert costs_of(tiny_model()) == costs.estimate(tiny_model()), "a part is not used"
    forget()
    meter, left = CostMeter(tiny_model()), 0
    while meter.spare():
        left += 1
    assert left == PIECES - 5
    assert costs_of(tiny_model()) == MEASURED


def test_what_cannot_be_measured_stays_estimated(kept, monkeypatch):
    monkeypatch.setattr(costs, "timed", lambda *_: (_ for _ in ()).throw(RuntimeError("no memory")))
    meter = CostMeter(tiny_model())
    assert not meter.spare()
    assert not meter.spare()
    assert costs_of(tiny_model()) == costs.estimate(tiny_model())


def test_another_model_or_number_of_threads_is_measured_anew(kept):
    for model in (tiny_model(), tiny_model(1), tiny_model(dtype="bfloat16"), tiny_model()):
        measure_now(model)
    assert len(kept) == 3 * PIECES
    before, ours = torch.get_num_threads(), kernels.threads() if kernels.available() else 1
    try:
        torch.set_num_threads(before + 1)
        if kernels.available():
            kernels.set_threads(ours + 1)
        measure_now(tiny_model())
    finally:
        torch.set_num_threads(before)
        if kernels.available():
            kernels.set_threads(ours)
    assert len(kept) == 4 * PIECES


@pytest.mark.parametrize("damage", [
    b"", b"{", b"\xff\xfe", b"[]", b"null", b'{"widths": [1, 2]}',
    b'{"widths": [], "measured": [[[], 0.0]], "begun": []}',
    b'{"widths": [1, 2], "measured": [[["a", "b"], 0.0]], "begun": []}',
    b'{"widths": [1, 2], "measured": [[[1.0, 2.0], null]], "begun": []}',
    b'{"widths": [1, 2], "measured": [], "begun": [null]}',
])  # fmt: skip
def test_a_damaged_file_is_measured_again_and_replaced(kept, tmp_path, monkeypatch, damage):
    monkeypatch.setattr(costs, "PROCESSES", 1)
    measure_now(tiny_model())
    path = only_file(tmp_path)
    path.write_bytes(damage)
    forget()
    assert measure_now(tiny_model()) == MEASURED
    assert len(kept) == 2 * PIECES
    forget()
    assert costs_of(tiny_model()) == MEASURED
    assert only_file(tmp_path) == path, "nothing else is left in the folder"


def test_a_cache_that_cannot_be_written_is_no_failure(kept, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("OUTLAY_CACHE", str(tmp_path / "file"))
    assert measure_now(tiny_model()) == MEASURED


def test_no_run_waits_for_measuring(kept, monkeypatch):
    """Not for its first token, nor where its seconds are limited; afterwards it takes a share of the time."""
    seen = []

    def timed(worker, tree, width, clock):
        seen.append([len(live.session.tokens) for live in lm.engine._runs.live])
        return width * 1e-3

    monkeypatch.setattr(costs, "timed", timed)
    lm = tiny_lm()
    lm.generate("a" * 100, method="auto", max_tokens=300, ignore_eos=True, budget=Budget(seconds=60.0))
    while not costs.known_of(lm.model).settled:
        time.sleep(0.01)
    assert seen == [[]] * PIECES
    forget()
    seen.clear()
    lm.engine._workers.close()
    lm.generate("a" * 100, method="auto", max_tokens=300, ignore_eos=True)
    assert seen
    assert all(0 not in tokens for tokens in seen)


def test_what_further_rows_cost_is_the_difference_of_two_passes():
    assert COSTS.marginal(1, 3) == pytest.approx([0.0, 0.002, 0.0025, 0.003])
    assert COSTS.marginal(4, 2) == pytest.approx([0.0, 0.002, 0.004])
    assert COSTS.marginal(4, 2, SHORT + 1000) == pytest.approx([0.0, 0.003, 0.006])
