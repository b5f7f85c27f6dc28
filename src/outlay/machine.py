"""Where and when numbers were measured: the processor, the system, the versions of packages."""

from __future__ import annotations

import os
import platform
from collections.abc import Mapping
from datetime import UTC, datetime
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

EXTENSIONS = ("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "amx_tile")
"""Instruction sets that matter to a matrix product, as /proc/cpuinfo names them."""


def describe(packages: tuple[str, ...]) -> dict[str, Any]:
    """Describes this machine at this moment.

    Args:
        packages: distributions whose versions are recorded where they are installed.

    Returns:
        `processor` with its extensions, `cores` this process may use, `memory_bytes`, `system`, `python`, `versions`
        by package and `date`; JSON can hold all of it.
    """
    flags = _cpuinfo().get("flags", "").split()
    return {
        "processor": " ".join([processor() or platform.processor() or platform.machine(), *_known(flags)]),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "system": platform.platform(),
        "python": platform.python_version(),
        "versions": {name: found for name in packages if (found := _version(name))},
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def heading(machine: Mapping[str, Any], threads: int | None = None) -> str:
    """Returns the two lines that head a report.

    Args:
        machine: what `describe` returned, with `model`, and with `seconds` where the run was timed.
        threads: how many threads computed, where that is the same for the whole report.
    """
    used = "" if threads is None else f", {_count(threads, 'thread')}"
    took = f", in {machine['seconds']:.0f} s" if "seconds" in machine else ""
    versions = ", ".join(f"{name} {version}" for name, version in machine["versions"].items())
    return (
        f"{machine['model']} on {machine['processor']}, {_count(machine['cores'], 'core')}{used}; "
        f"{machine['date']}{took}\n{versions}"
    )


@cache
def processor() -> str:
    """Returns the processor's name, "" where the system doesn't tell it."""
    return _cpuinfo().get("model name", "")


@cache
def _cpuinfo() -> dict[str, str]:
    """The fields of the last core that /proc/cpuinfo lists."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    return {name.strip(): value.strip() for name, _, value in (line.partition(":") for line in lines)}


def _count(amount: int, noun: str) -> str:
    return f"{amount} {noun}" if amount == 1 else f"{amount} {noun}s"


def _known(flags: list[str]) -> list[str]:
    return [name for name in EXTENSIONS if name in flags]


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None
