"""The cost of networks: counts from shapes, what they cost measured, and the command that shows it."""

from __future__ import annotations

import copy
import json
import math
import types

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from outlay import Budget, Ledger, UsageError, cli
from outlay.budget import Account
from outlay.vision import EnergyModel, Metered, VoVNetModel, count, profile, profiler, profiles


class Mixer(nn.Module):
    """Attention, a recurrence, a transform, and a `cat` that only moves bytes."""

    def __init__(self):
        super().__init__()
        self.attend = nn.MultiheadAttention(16, 4, batch_first=True)
        self.recur = nn.GRU(16, 16, batch_first=True)
        self.table = nn.Embedding(7, 16)

    def forward(self, ids):
        x = self.table(ids)
        x, _ = self.attend(x, x, x)
        x, _ = self.recur(x)
        return torch.cat([x, x.transpose(1, 2).reshape(x.shape)], dim=1)


def small():
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
        nn.Linear(8, 10),
    ).eval()  # fmt: skip


def counted(module, *inputs):
    """The FLOPs that torch's own counter sees, attention not fused."""
    torch.backends.mha.set_fastpath_enabled(False)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        module(*inputs)
    torch.backends.mha.set_fastpath_enabled(True)
    return counter.get_total_flops()


@pytest.mark.parametrize(
    ("module", "inputs"),
    [
        (small(), (torch.rand(2, 3, 16, 12),)),
        (Mixer().eval(), (torch.randint(7, (2, 5)),)),
        (nn.ConvTranspose2d(4, 6, 3, stride=2, groups=2), (torch.rand(1, 4, 5, 7),)),
        (VoVNetModel("hgnetv2-atto").eval(), (torch.rand(1, 3, 64, 64),)),
        (VoVNetModel("ese_vovnet19b_slim_dw").train(), (torch.rand(2, 3, 64, 64),)),
    ],
    ids=["small", "mixer", "transposed", "hgnet", "vovnet"],
)
def test_flops_equal_those_of_torchs_counter(module, inputs):
    cost = count(module, *inputs)
    assert cost.total.flops == counted(module, *inputs) > 0
    assert cost.total.flops == sum(layer.flops for layer in cost.layers.values())
    assert cost.total.parameters == sum(parameter.numel() for parameter in module.parameters())


def test_a_convolution_costs_what_the_papers_formula_says():
    for c_in, c_out, kernel, groups, stride in [(3, 8, 3, 1, 1), (8, 12, 5, 4, 2), (16, 16, 1, 1, 1)]:
        conv = nn.Conv2d(c_in, c_out, kernel, stride, kernel // 2, groups=groups, bias=False)
        amounts = count(conv, torch.empty(1, c_in, 20, 14)).total
        inner, outer = 20 * 14, math.ceil(20 / stride) * math.ceil(14 / stride)
        weights = kernel**2 * c_in * c_out // groups
        assert amounts.flops == 2 * outer * weights
        assert amounts.mem_elements == inner * c_in + outer * c_out + weights
        assert amounts.moved_bytes == 4 * amounts.mem_elements
        assert amounts.weight_bytes == 4 * weights


def test_mem_elements_are_least_at_equal_widths():
    pairs = [(2**i, 2 ** (12 - i)) for i in range(13)]
    amounts = {
        pair: count(nn.Conv2d(*pair, 1, bias=False), torch.empty(1, pair[0], 7, 9)).total.mem_elements for pair in pairs
    }
    assert min(amounts, key=amounts.get) == (64, 64)
    area, product = 63, 63 * 4096
    bound = 2 * math.sqrt(area * product) + product / area
    assert amounts[(64, 64)] == bound
    assert all(amount >= bound for amount in amounts.values())


def test_concatenation_moves_bytes_and_has_no_memory_access_cost():
    class Cat(nn.Module):
        def forward(self, x):
            return torch.cat([x, x], dim=1)

    amounts = count(Cat(), torch.empty(1, 4, 5, 5)).total
    assert (amounts.flops, amounts.mem_elements) == (0, 0)
    assert amounts.moved_bytes == 4 * (100 + 100 + 200)


def test_views_are_free_and_weights_behind_them_are_counted():
    linear = nn.Sequential(nn.Flatten(), nn.Linear(12, 5))
    amounts = count(linear, torch.empty(2, 3, 4)).total
    assert amounts.weight_bytes == 4 * (60 + 5)
    assert amounts.mem_elements == 24 + 60 + 10
    assert count(nn.Flatten(), torch.empty(2, 3, 4)).total.moved_bytes == 0


def test_a_fourier_transform_counts_five_n_log_n():
    class Transform(nn.Module):
        def forward(self, x):
            return torch.fft.irfft2(torch.fft.rfft2(x), s=x.shape[-2:])

    assert count(Transform(), torch.empty(3, 8, 16)).total.flops == 2 * 3 * 5 * 128 * 7


def test_the_peak_is_what_lives_at_one_time():
    chain = nn.Sequential(*[nn.Conv2d(4, 4, 1, bias=False) for _ in range(5)])
    x = torch.empty(1, 4, 10, 10)
    assert count(chain, x).peak_activation_bytes == 3 * 4 * 400  # the image, a map and the next


def test_counting_computes_nothing_and_changes_nothing():
    net = small().train()
    before = copy.deepcopy(net.state_dict())
    count(net, torch.empty(2, 3, 8, 8, device="meta"))
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    assert not any(part._forward_hooks or part._forward_pre_hooks for part in net.modules())
    with torch.device("meta"):
        huge = nn.Linear(10**6, 10**6, bias=False)
    assert count(huge, torch.empty(1, 10**6)).total.flops == 2 * 10**12


def test_an_input_that_does_not_fit_is_refused_in_one_line():
    with pytest.raises(UsageError, match="Sequential can't be counted for an input of 1x4x8x8: ") as caught:
        count(small(), torch.empty(1, 4, 8, 8))
    assert "\n" not in str(caught.value)


def test_the_budget_is_asked_before_the_work_is_done_and_the_ledger_adds_up():
    from outlay.vision.vovnet import VoVNet

    calls = []
    net, x = small(), torch.rand(1, 3, 8, 8)
    net.register_forward_hook(lambda *_: calls.append(1))
    one = count(net, x).ledger()
    calls.clear()
    budget = Budget(moved_bytes=2.5 * one.extras["moved_bytes"])
    budget.check("vovnet", VoVNet.about.counts)
    account = Account(budget, Ledger())
    metered = Metered(net, account)
    answers = [metered(x) for _ in range(4)]
    assert [answer is not None for answer in answers] == [True, True, False, False]
    assert len(calls) - 1 == 2  # one more on fake tensors
    assert account.ledger.flops == 2 * one.flops
    assert account.ledger.amount("moved_bytes") == 2 * one.extras["moved_bytes"]
    assert account.ledger.amount("cpu_seconds") > 0


def test_a_profile_has_times_rates_and_layers():
    net, x = small(), torch.rand(1, 3, 32, 32)
    found = profile(net, x, rounds=3)
    assert len(found.cpu_rounds) == 3
    assert found.flops_per_second == found.cost.total.flops / found.cpu_seconds
    assert found.share_of_peak == found.flops_per_second / found.peak_flops_per_second
    assert {"0", "1", "5"} <= found.layer_seconds.keys()
    assert found.ledger().flops == count(net, x).total.flops
    row = found.as_dict()
    assert row["joules"] == "unavailable"
    assert row["layers"]["0"]["kind"] == "Conv2d"
    json.dumps(row)


def test_energy_is_read_from_a_meter_or_estimated_by_the_users_coefficients(monkeypatch):
    net, x = small(), torch.rand(1, 3, 16, 16)
    cost = count(net, x)
    model = EnergyModel(pj_per_flop=2.0, pj_per_byte=100.0)
    expected = 1e-12 * (2 * cost.total.flops + 100 * cost.total.moved_bytes)
    assert profile(net, x, rounds=1, energy=model).est_joules == pytest.approx(expected)

    class Monitor:
        """100 W at rest, 150 W at work, a window takes a second."""

        def begin_window(self, name):
            pass

        def end_window(self, name):
            watts = 100.0 if name == "at rest" else 150.0
            return types.SimpleNamespace(time=1.0, gpu_energy={}, cpu_energy={0: watts - 10}, dram_energy={0: 10.0})

    monkeypatch.setattr(profiler, "_monitor", Monitor)
    monkeypatch.setattr(profiler, "ENERGY_SECONDS", 0.01)
    found = profile(net, x, rounds=1)
    calls = max(1, round(0.01 / found.seconds))
    assert found.joules == pytest.approx(50.0 / calls)


def test_networks_are_timed_in_turn():
    order = []
    one, other = small(), small()
    one.register_forward_hook(lambda *_: order.append("one"))
    other.register_forward_hook(lambda *_: order.append("other"))
    x = torch.rand(1, 3, 8, 8)
    for net in (one, other):
        net(x)
    order.clear()
    profiles({"one": (one, (x,)), "other": (other, (x,))}, rounds=2)
    timed = order[2:8]  # after a call of each on fake tensors
    assert timed == ["one", "other"] * 3


def test_the_peak_of_a_profile_is_of_the_inputs_number_format():
    class Half(torch.nn.Module):
        def forward(self, x):
            return x

    module, inputs = profiler._product({"net": (Half(), (torch.ones(3, dtype=torch.long), torch.ones(3).bfloat16()))})
    made = module(*inputs)
    assert made.dtype == torch.bfloat16
    assert made.shape == (profiler.PEAK_SIDE, profiler.PEAK_SIDE)
    assert profiler._product({"net": (Half(), ())})[1][0].dtype == torch.float32


def test_the_command_compares_and_shows_layers(capsys):
    words = ["vision", "profile", "hgnetv2-atto", "--compare", "hgnetv2-femto", "--input", "3x32x32", "--rounds", "1"]
    assert cli.main([*words, "--layers", "2"]) == 0
    shown = capsys.readouterr().out
    assert "GFLOP/s" in shown
    assert "of peak" in shown
    assert "energy: unavailable" in shown
    assert "classifier Linear" in shown
    assert cli.main([*words, "--json", "--pj-per-flop", "1", "--pj-per-byte", "10"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert [row["name"] for row in rows] == ["hgnetv2-atto", "hgnetv2-femto"]
    assert all(row["est_joules"] > 0 for row in rows)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["profil"], "there is no 'profil' (did you mean 'profile'?)"),
        ([], "say what to do: profile"),
        (["profile"], "MODEL is missing"),
        (["profile", "vovnet-93"], "there is no network 'vovnet-93' (did you mean 'vovnet-39'"),
        (["profile", "eca_vovnet39b"], "eca_vovnet39b can't be built: its gate is a 1-D convolution"),
        (["profile", "nowhere:net"], "'nowhere:net' can't be imported"),
        (["profile", "os:getpid"], "returned a int, not a torch module"),
        (["profile", "vovnet-39", "--input", "224"], "must be CHANNELSxHEIGHTxWIDTH"),
        (["profile", "vovnet-39", "--input", "3x16x64"], "needs sides of 32 or more, not 16x64"),
        (["profile", "vovnet-39", "--input", "1x64x64"], "vovnet-39 reads 3 channels, not 1"),
        (["profile", "vovnet-39", "--pj-per-flop", "1"], "needs both"),
        (["profile", "vovnet-39", "--compare", "vovnet-39"], "named twice"),
    ],
)
def test_a_bad_command_is_refused_in_one_line(capsys, words, message):
    assert cli.main(["vision", *words]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_attention_is_counted_alike_on_a_processor_and_by_shapes_alone():
    class Attention(nn.Module):
        def forward(self, x):
            return nn.functional.scaled_dot_product_attention(x, x, x)

    shape = (1, 2, 50, 16)
    on_cpu, by_shape = (count(Attention(), torch.zeros(shape, device=device)) for device in ("cpu", "meta"))
    assert on_cpu.total.flops == 2 * 2 * 2 * 50 * 50 * 16
    layer = nn.Linear(16, 16, device="meta")
    assert count(nn.Sequential(layer, Attention()), torch.zeros(shape, device="meta")).total.flops == (
        on_cpu.total.flops + 2 * 100 * 16 * 16
    )
    assert by_shape.total.flops == on_cpu.total.flops
