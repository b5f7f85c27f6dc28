"""The one part of the build that pyproject.toml cannot describe: the optional native kernels.

They need a C++17 compiler. Where there is none, or it fails, the package installs without them and torch does the work.
"""

import zlib
from pathlib import Path

from setuptools import Extension, setup

NATIVE = Path("src/outlay/kernels/native")

setup(
    package_dir={"": "src"},
    ext_modules=[
        Extension(
            "outlay.kernels._native",
            sources=[source.as_posix() for source in sorted(NATIVE.glob("*.cpp"))],
            depends=[header.as_posix() for header in sorted(NATIVE.glob("*.h"))],
            language="c++",
            # A library built from another abi.h than lies beside it is not loaded: see kernels/native.py.
            define_macros=[("OUTLAY_ABI", f"{zlib.crc32((NATIVE / 'abi.h').read_bytes())}u")],
            # No contraction and no fast math: the same operations, so the same bits, on every processor.
            extra_compile_args=[
                "-std=c++17",
                "-O3",
                "-g0",
                "-fvisibility=hidden",
                "-ffp-contract=off",
                "-fno-math-errno",
                "-fno-trapping-math",
                "-Wno-maybe-uninitialized",
                "-pthread",
            ],
            extra_link_args=["-pthread"],
            optional=True,
        )
    ],
)
