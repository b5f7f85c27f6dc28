"""Shared by all tests: the tests' folder on the path, one thread by default, the default model where it is needed, and
the CPU seconds that each family of tests takes.
"""

from __future__ import annotations

import os
import signal
import sys
from collections import Counter
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch

TESTS = Path(__file__).parent
sys.path.insert(0, str(TESTS))
torch.set_num_threads(1)
os.environ.setdefault("OMP_NUM_THREADS", "1")  # of the processes that tests start: two workers share the cores
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # as in a shell's background
    signal.signal(signal.SIGINT, signal.default_int_handler)
SLOW_SECONDS = 3600  # that a slow test may take
SLOWEST_PROCESSOR = 4  # times the seconds that a test may take where others compute too
CPU_SECONDS = "cpu_seconds"  # the property of a report


def pytest_addoption(parser):
    parser.addini("family_seconds", "CPU seconds that a family of tests may take: a folder, or a file of tests/papers")


def pytest_configure(config):
    config.pluginmanager.register(FamilyClock(float(config.getini("family_seconds"))), "family-clock")


def pytest_collection_modifyitems(items):
    """Gives slow tests their time, however they are run; leaves out what needs a GPU where there is none."""
    for item in items:
        if item.get_closest_marker("slow"):
            item.add_marker(pytest.mark.timeout(SLOW_SECONDS))
    if not torch.cuda.is_available():
        items[:] = [item for item in items if item.get_closest_marker("gpu") is None]


class FamilyClock:
    """Names the families whose tests take more than their CPU seconds: a warning, and in CI an error from 4 times that.

    It counts the seconds that the processes compute for, those that they started included, so what else the machine
    does is not in them. Slow tests don't count. Each test's seconds travel in its reports, for `pytest -n`.
    """

    def __init__(self, limit):
        self._limit = limit
        self._seconds = Counter()
        self._before = 0.0

    @property
    def _excess(self):
        return {family: seconds for family, seconds in self._seconds.most_common() if seconds > self._limit}

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_logstart(self):
        self._before = cpu_seconds()

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_makereport(self):
        report = yield
        now = cpu_seconds()
        report.user_properties.append((CPU_SECONDS, now - self._before))
        self._before = now
        return report

    def pytest_runtest_logreport(self, report):
        if "slow" not in report.keywords:
            self._seconds[family(report.nodeid)] += dict(report.user_properties).get(CPU_SECONDS, 0.0)

    @pytest.hookimpl(trylast=True)
    def pytest_sessionfinish(self, session, exitstatus):
        is_worker = hasattr(session.config, "workerinput")
        far = any(seconds > SLOWEST_PROCESSOR * self._limit for seconds in self._excess.values())
        if far and os.environ.get("CI") and not is_worker and exitstatus == pytest.ExitCode.OK:
            session.exitstatus = pytest.ExitCode.TESTS_FAILED

    def pytest_terminal_summary(self, terminalreporter):
        for name, seconds in self._excess.items():
            line = f"{name} took {seconds:.0f} CPU seconds, more than the {self._limit:.0f} of family_seconds"
            terminalreporter.write_line(line, red=True)
        if terminalreporter.config.get_verbosity() >= 0:  # -v beside the -q of the configuration
            for name, seconds in self._seconds.most_common():
                terminalreporter.write_line(f"{seconds:8.1f} CPU seconds  {name}")


def cpu_seconds():
    """Seconds that this process and the ended ones among its children have computed for."""
    return sum(os.times()[:4])


def family(nodeid):
    """A folder of tests; of tests/papers, and of what lies in no folder, each file."""
    path = nodeid.partition("::")[0]
    folder = str(Path(path).parent)
    return path if folder in ("tests", "tests/papers") else folder


@pytest.fixture
def each_isa():
    """Goes through the instruction sets that run here: `for isa in each_isa():` computes with each in turn."""
    from outlay import kernels

    def go_through():
        for name in ("scalar", "avx2", "avx512vnni", "amx-emulated", "amx", "neon"):
            if kernels.choose(name):
                yield name

    yield go_through
    kernels.choose(kernels.isa())


@pytest.fixture(scope="session")
def default_path():
    """The default model's file, fetched once into the user's cache."""
    from outlay.models import hub

    return hub.resolve("smollm2-135m")


@pytest.fixture(scope="session")
def default_lm(default_path):
    """The default model in float32, the reference."""
    import outlay

    return outlay.load(default_path, dtype="float32")


@pytest.fixture(scope="session")
def transformers_model(default_path):
    """`transformers` on the default model's file, its weights expanded to float32."""
    import gguf
    import transformers

    with pytest.MonkeyPatch.context() as patch:
        # It makes this map anew for every tensor and reads the file byte by byte through a memmap: most of a minute.
        patch.setattr(gguf, "get_tensor_name_map", cache(gguf.get_tensor_name_map))
        patch.setattr(np, "memmap", lambda path, mode="r", dtype=np.uint8: np.fromfile(path, dtype))
        return transformers.AutoModelForCausalLM.from_pretrained(
            default_path.parent, gguf_file=default_path.name, dtype=torch.float32
        ).eval()


@pytest.fixture(scope="session")
def transformers_tokenizer(default_path):
    """`transformers`' tokenizer of the default model's file."""
    import transformers

    return transformers.AutoTokenizer.from_pretrained(default_path.parent, gguf_file=default_path.name)
