"""What networks cost, measured: counts from `outlay.vision.cost` with the time, the rate and the energy of real calls.

FLOPs alone don't tell the time (Lee et al. 2019): a network that moves more bytes, or cuts its work into small pieces,
reaches fewer FLOP/s. So networks are ranked by the time that they take, and the report says where FLOPs rank otherwise.
A large matrix product, timed in the same rounds, is the machine's own limit: a network near it is bound by arithmetic.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from outlay.budget import Ledger
from outlay.spread import Spread, paired_ratio
from outlay.vision.cost import Cost, cost_of

ROUNDS = 7
PEAK_SIDE = 1024  # of the matrix product: its three matrices, 12 MB in float32, are read once for 171 FLOPs a byte
ENERGY_SECONDS = 2.0  # a meter's counter is renewed some times a second, so a window must be much longer


@dataclass(frozen=True)
class EnergyModel:
    """Coefficients of an estimate of the energy, from the user: pJ a FLOP and pJ a byte that is moved."""

    pj_per_flop: float
    pj_per_byte: float

    def joules(self, cost: Cost) -> float:
        """Returns the estimate for one call."""
        return 1e-12 * (self.pj_per_flop * cost.total.flops + self.pj_per_byte * cost.total.moved_bytes)


@dataclass(frozen=True)
class Profile:
    """One call of a network: what it costs, and what it took here."""

    name: str
    """What the network was called."""

    cost: Cost
    """The counts, which hold on any machine."""

    cpu_rounds: tuple[float, ...]
    """Processor seconds of each round, all threads together."""

    wall_rounds: tuple[float, ...]
    """Seconds of each round."""

    layer_seconds: Mapping[str, float]
    """Processor seconds by layer: the least of some rounds that are timed apart, with what timing itself takes."""

    threads: int
    """Threads that computed."""

    peak_flops_per_second: float
    """The rate of a large matrix product in the same rounds, on the same device, in the same number format."""

    joules: float | None = None
    """What the machine's meter read for a call, what it reads at rest subtracted; None without a meter."""

    est_joules: float | None = None
    """What the user's coefficients say; None without them."""

    @property
    def cpu_seconds(self) -> float:
        """The least of the rounds: other work on the machine only adds to it."""
        return min(self.cpu_rounds)

    @property
    def seconds(self) -> float:
        """The least of the rounds."""
        return min(self.wall_rounds)

    @property
    def flops_per_second(self) -> float:
        """The rate reached: by the processor's time for one thread, by the clock for several."""
        return _rate(self.cost.total.flops, self.cpu_rounds, self.wall_rounds, self.threads)

    @property
    def share_of_peak(self) -> float:
        """The rate reached over that of the matrix product."""
        return self.flops_per_second / self.peak_flops_per_second

    def ledger(self) -> Ledger:
        """Returns one call as a ledger."""
        spent = self.cost.ledger()
        spent.seconds = self.seconds
        spent.extras["cpu_seconds"] = self.cpu_seconds
        return spent

    def as_dict(self) -> dict[str, Any]:
        """Returns everything as JSON can hold it."""
        layers = {
            name: asdict(amounts) | {"kind": self.cost.kinds[name], "cpu_seconds": self.layer_seconds.get(name)}
            for name, amounts in self.cost.layers.items()
        }
        return {
            "name": self.name,
            **asdict(self.cost.total),
            "peak_activation_bytes": self.cost.peak_activation_bytes,
            "cpu_seconds": self.cpu_seconds,
            "seconds": self.seconds,
            "flops_per_second": self.flops_per_second,
            "peak_flops_per_second": self.peak_flops_per_second,
            "threads": self.threads,
            "joules": "unavailable" if self.joules is None else self.joules,
            "est_joules": self.est_joules,
            "layers": layers,
        }


def profile(
    module: nn.Module, *inputs: Any, threads: int = 1, rounds: int = ROUNDS, energy: EnergyModel | None = None
) -> Profile:
    """Counts and times one call of a network.

    Args:
        module: the network; it is called as it is, in training or in evaluation mode, without gradients.
        inputs: what it is called with.
        threads: threads that compute.
        rounds: calls that are timed, after one that is not.
        energy: coefficients for `est_joules`.

    Raises:
        UsageError: if the network can't be called with such inputs.
    """
    return profiles({type(module).__name__: (module, inputs)}, threads=threads, rounds=rounds, energy=energy)[0]


def profiles(
    networks: Mapping[str, tuple[nn.Module, Sequence[Any]]],
    *,
    threads: int = 1,
    rounds: int = ROUNDS,
    energy: EnergyModel | None = None,
) -> list[Profile]:
    """Profiles networks side by side: each round times all of them in turn, so a slow moment of the machine is shared.

    Args:
        networks: by name, each with what it is called with.
        threads: threads that compute.
        rounds: calls of each that are timed, after one that is not.
        energy: coefficients for `est_joules`.

    Returns:
        the profiles in the order of `networks`; `ranked` sorts them.

    Raises:
        UsageError: if a network can't be called with such inputs.
    """
    costs = {name: cost_of(module, *inputs) for name, (module, inputs) in networks.items()}
    timed = [*networks.values(), _product(networks)]
    cpu: list[list[float]] = [[] for _ in timed]
    wall: list[list[float]] = [[] for _ in timed]
    with _threads(threads), torch.inference_mode():
        for number in range(rounds + 1):
            for place, (module, inputs) in enumerate(timed):
                took = _timed(module, inputs)
                if number:
                    cpu[place].append(took[0])
                    wall[place].append(took[1])
        peak = _rate(2 * PEAK_SIDE**3, cpu[-1], wall[-1], threads)
        found = [
            Profile(
                name, costs[name], tuple(cpu[place]), tuple(wall[place]), _layer_seconds(module, inputs), threads, peak
            )
            for place, (name, (module, inputs)) in enumerate(networks.items())
        ]
        joules = _joules(networks, {profile.name: profile.seconds for profile in found})
    return [
        replace(
            profile, joules=joules.get(profile.name), est_joules=None if energy is None else energy.joules(profile.cost)
        )
        for profile in found
    ]


def ranked(profiles: Sequence[Profile]) -> list[Profile]:
    """Returns the profiles by processor time, the least first."""
    return sorted(profiles, key=lambda profile: profile.cpu_seconds)


def slowdown(one: Profile, other: Profile) -> Spread:
    """Returns how many times the processor time of `other` the first takes, paired by round."""
    ratio = paired_ratio(one.cpu_rounds, other.cpu_rounds)
    assert ratio is not None
    return ratio


def _rate(flops: float, cpu: Sequence[float], wall: Sequence[float], threads: int) -> float:
    return flops / min(cpu if threads == 1 else wall)


class _Product(nn.Module):
    def forward(self, one: Tensor, other: Tensor) -> Tensor:
        return one @ other


def _product(networks: Mapping[str, tuple[nn.Module, Sequence[Any]]]) -> tuple[nn.Module, Sequence[Any]]:
    """Returns the matrix product that tells the machine's limit, with matrices like the networks' first input."""
    first = next((value for _, inputs in networks.values() for value in tree_leaves(inputs)
                  if isinstance(value, Tensor) and value.is_floating_point()), torch.empty(0))  # fmt: skip
    one, other = (torch.ones(PEAK_SIDE, PEAK_SIDE, dtype=first.dtype, device=first.device) for _ in range(2))
    return _Product(), (one, other)


@contextmanager
def _threads(threads: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _timed(module: nn.Module, inputs: Sequence[Any]) -> tuple[float, float]:
    """Returns the processor seconds and the seconds of a call."""
    wall, cpu = time.perf_counter(), time.process_time()
    module(*inputs)
    _finish(inputs)
    return time.process_time() - cpu, time.perf_counter() - wall


def _finish(inputs: Any) -> None:
    if any(isinstance(value, Tensor) and value.is_cuda for value in tree_leaves(inputs)):
        torch.cuda.synchronize()


def _layer_seconds(module: nn.Module, inputs: Sequence[Any], rounds: int = 3) -> dict[str, float]:
    """Returns the processor seconds that each module takes itself, without the modules that it calls."""
    best: dict[str, float] = {}
    took: dict[str, float] = {}
    stack: list[str] = [""]
    since = 0.0

    def turn(to: str | None) -> None:
        nonlocal since
        _finish(inputs)
        now = time.process_time()
        took[stack[-1]] = took.get(stack[-1], 0.0) + now - since
        if to is None:
            stack.pop()
        else:
            stack.append(to)
        since = time.process_time()

    hooks = []
    for name, part in module.named_modules():
        hooks.append(part.register_forward_pre_hook(lambda *_, name=name: turn(name)))
        hooks.append(part.register_forward_hook(lambda *_: turn(None)))
    try:
        for _ in range(rounds):
            took.clear()
            since = time.process_time()
            module(*inputs)
            best = {name: min(seconds, best.get(name, seconds)) for name, seconds in took.items()}
    finally:
        for hook in hooks:
            hook.remove()
    return best


def _joules(networks: Mapping[str, tuple[nn.Module, Sequence[Any]]], seconds: Mapping[str, float]) -> dict[str, float]:
    """Returns what a meter reads for a call of each network beyond the machine at rest; nothing without a meter."""
    monitor = _monitor()
    if monitor is None:
        return {}
    at_rest = _watts_at_rest(monitor)
    if at_rest is None:
        return {}
    found = {}
    for name, (module, inputs) in networks.items():
        calls = max(1, round(ENERGY_SECONDS / seconds[name]))
        monitor.begin_window(name)
        for _ in range(calls):
            module(*inputs)
        window = monitor.end_window(name)
        found[name] = max(0.0, _total(window) - at_rest * window.time) / calls
    return found


def _watts_at_rest(monitor: Any) -> float | None:
    monitor.begin_window("at rest")
    time.sleep(ENERGY_SECONDS)
    window = monitor.end_window("at rest")
    read = _total(window)
    return read / window.time if read else None


def _total(window: Any) -> float:
    """Joules of the processors, their memory and the GPUs in a window of the meter."""
    parts = (window.gpu_energy, window.cpu_energy, window.dram_energy)
    return float(sum(sum((part or {}).values()) for part in parts))


def _monitor() -> Any:
    """Returns `zeus`' meter of this machine (RAPL, NVML); None where there is none, or no leave to read it."""
    try:
        from zeus.monitor import ZeusMonitor

        return ZeusMonitor()
    except Exception:  # not installed, or whatever the drivers of meters raise
        return None
