"""The kernels for Arm, where a cross compiler and an emulator are found (Debian: g++-aarch64-linux-gnu, qemu-user)."""

import shutil
import subprocess
from pathlib import Path

import pytest

NATIVE = Path(__file__).parents[2] / "src/outlay/kernels/native"
# Choosing kernels compares them with the portable ones, bit for bit.
PROGRAM = """
#include <cstdio>
extern "C" const char* outlay_choose(const char* limit);
int main(int, char** argv) { std::puts(outlay_choose(argv[1])); }
"""


@pytest.fixture(scope="module")
def program(tmp_path_factory):
    compiler = shutil.which("aarch64-linux-gnu-g++")
    if compiler is None or shutil.which("qemu-aarch64") is None:
        pytest.skip("no cross compiler or no emulator for Arm")
    folder = tmp_path_factory.mktemp("arm")
    (folder / "main.cpp").write_text(PROGRAM)
    flags = ["-std=c++17", "-O2", "-static", "-pthread", "-ffp-contract=off", "-fno-math-errno", "-Wall", "-Werror"]
    sources = [folder / "main.cpp", *sorted(NATIVE.glob("*.cpp"))]
    subprocess.run([compiler, *flags, "-o", folder / "program", *sources], check=True)
    return folder / "program"


@pytest.mark.parametrize(
    ("cpu", "limit", "expected"),
    [
        ("neoverse-n1", "", "neon"),
        ("neoverse-n1", "scalar", "scalar"),
        ("neoverse-n1", "none", "none"),
        ("cortex-a72", "", "none"),  # has no dot products
    ],
)
def test_arm_runs_what_the_processor_has_and_it_agrees_with_scalar(program, cpu, limit, expected):
    result = subprocess.run(["qemu-aarch64", "-cpu", cpu, program, limit], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == expected
