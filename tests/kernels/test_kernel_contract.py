"""What an instruction set has to provide is checked by the compiler, which says what is missing."""

import shutil
import subprocess
from pathlib import Path

import pytest

from outlay.kernels import native

NATIVE = Path(__file__).parents[2] / "src/outlay/kernels/native"


def errors_of(source: str, folder: Path) -> str:
    compiler = shutil.which("c++") or shutil.which("g++")
    if compiler is None:
        pytest.skip("no C++ compiler")
    file = folder / "kernels.cpp"
    file.write_text(source)
    command = [compiler, "-std=c++17", "-fsyntax-only", f"-I{NATIVE}", file]
    return subprocess.run(command, capture_output=True, text=True, check=False).stderr


@pytest.mark.parametrize(
    ("correct", "wrong", "message"),
    [
        ("", "", ""),
        ("kTilesOfOneRow = 1", "kTiles = 1", "an instruction set has constants kRows"),
        ("kTilesOfOneRow = 1", "kTilesOfOneRow = 3", "kTilesTogether is a multiple of"),
        ("using UnpackedQ8 = Q8;", "", "an instruction set has types Q4, UnpackedQ4, Q8 and UnpackedQ8"),
        ("kBytes = 640", "kBytes = 639", "UnpackedQ4 is as unpack() writes it"),
        (
            "const uint8_t*, float (*acc)",
            "float (*acc)",
            "an instruction set has template <class Format, int R> static dot",
        ),
        ("static void dot_float", "static void dot_floats", "<class Format, int T, int R> static dot_float"),
        (
            "static void halves_to_floats",
            "static int halves_to_floats",
            "an instruction set has static halves_to_floats",
        ),
    ],
)
def test_the_compiler_says_what_an_instruction_set_lacks(correct, wrong, message, tmp_path):
    source = (NATIVE / "kernels_scalar.cpp").read_text()
    assert correct in source
    errors = errors_of(source.replace(correct, wrong) if correct else source, tmp_path)
    assert message in errors
    assert bool(errors) == bool(message)


def test_a_library_that_was_built_from_another_abi_is_not_loaded(monkeypatch):
    assert native._load.__wrapped__()[0] is not None
    monkeypatch.setattr(native.zlib, "crc32", lambda data: 0)
    assert native._load.__wrapped__() == (None, "none")
