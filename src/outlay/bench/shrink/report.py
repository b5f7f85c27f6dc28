"""The report of the shrink suite: a table of the methods, and ratios between some of them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from outlay import machine
from outlay.tables import console, number, table

RATIOS = (
    ("pvq:pulses=27", "gptq:bits=3"),
    ("pvq:feedback=false", "pvq:pulses=27"),
    ("pvq:rotate=false", "pvq:pulses=27"),
    ("vptq:k_res=0", "gptq:bits=2,act_order=true"),
)
"""Pairs of methods whose errors are compared."""


def report(found: Mapping[str, Any]) -> str:
    """Returns the report as text; `found` is what the suite writes as JSON."""
    return "\n\n".join(
        [machine.heading(found["machine"]), _rows(found), *filter(None, (_ratios(found), _bytes(found)))]
    )


def _rows(found: Mapping[str, Any]) -> str:
    """A row for each method, by bits."""
    texts = list(found["rows"][0]["texts"])
    header = ["", "bits", "of the file", "error", "without feedback", *(f"perplexity, {text}" for text in texts), "KL",
              "top-1 %", "CPU s"]  # fmt: skip
    lines = []
    for row in sorted(found["rows"], key=lambda row: -float(row["bits"])):
        first = row["texts"][texts[0]]
        ratios = ["{:.3f} ({:.3f}-{:.3f})".format(*row["texts"][text]["ratio"]) for text in texts]
        lines.append(
            [row["method"], f"{row['bits']:.3f}", f"{row['file_bits']:.3f}", number(row["error"]),
             number(row["unfed_error"]), *ratios, number(first["kl"]), f"{100 * first['agreement']:.1f}",
             f"{row['cpu_seconds']:.0f}"]
        )  # fmt: skip
    lines += [[name, f"not measured: {reason}"] for name, reason in found.get("failures", {}).items()]
    return table(header, lines)


def _ratios(found: Mapping[str, Any]) -> str:
    """Errors over those of other methods, and of VPTQ over plain k-means at the same books."""
    by_method = {row["method"]: row for row in found["rows"]}
    lines = [
        [f"error of {one} over {other}", f"{by_method[one]['error'] / by_method[other]['error']:.3f}"]
        for one, other in RATIOS
        if one in by_method and other in by_method
    ]
    lines += [
        [f"error of {name} over its own without feedback", f"{row['error'] / row['unfed_error']:.3f}"]
        for name, row in by_method.items()
        if name.startswith("vptq")
    ]
    return table(["", "ratio"], lines) if lines else ""


def _bytes(found: Mapping[str, Any]) -> str:
    """The bytes that a pass of one row reads, over those of the same model in 4 bits, embeddings and LM head in 8."""
    if "pass_bytes_int4" not in found:
        return ""
    rows = sorted(found["rows"], key=lambda row: -float(row["bits"]))
    lines = [
        [row["method"], f"{row['pass_bytes'] / 1e6:.1f}", f"{row['pass_bytes'] / found['pass_bytes_int4']:.3f}"]
        for row in rows
        if "pass_bytes" in row
    ]
    return table(["", "MB of a pass", "over int4"], lines)


TABLES = {"report": lambda found: console("outlay bench shrink", report(found))}
