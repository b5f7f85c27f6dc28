"""Runs a program beside a peer package, in a process of its own in which packages that it touches are defined here."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

PROLOGUE = """
import importlib.abc, importlib.machinery, sys, types
import torch


class Anything(type):
    def __getattr__(cls, name):
        if name.startswith("__"):
            raise AttributeError(name)
        return name


class Module(types.ModuleType):
    __path__ = []

    def __getattr__(self, name):
        if name.startswith("__"):
            raise AttributeError(name)
        return Anything(name, (torch.nn.Module,), {})


class Finder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in STUBS:
            return importlib.machinery.ModuleSpec(name, self, is_package=True)

    def create_module(self, spec):
        return Module(spec.name)

    def exec_module(self, module):
        pass


STUBS = sys.argv[2].split(",")
sys.meta_path.insert(0, Finder())
torch.set_num_threads(1)
folder = sys.argv[1]
"""


def needs(*packages: str):
    """Marks a test that is left out where a peer isn't installed."""
    missing = [name for name in packages if find_spec(name) is None]
    return pytest.mark.skipif(bool(missing), reason=f"needs {', '.join(missing)} (tests/vision/peers.txt)")


def run(program: str, folder: Path, stubs: str = "torchvision") -> None:
    """Runs a program, which finds `folder` to write to under that name, with empty packages for these names."""
    script = folder / "peer_program.py"
    script.write_text(PROLOGUE + program)
    path = os.pathsep.join(part for part in sys.path if part)
    environment = os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, str(script), str(folder), stubs], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
