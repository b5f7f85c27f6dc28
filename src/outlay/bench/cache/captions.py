"""The report of captions under cache policies, made of their results alone."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from statistics import mean
from typing import Any

from outlay import machine
from outlay.bench.cache.glyphs import GlyphSettings
from outlay.bench.captions import points
from outlay.tables import table


def report(found: Mapping[str, Any]) -> str:
    """Returns the report as text; `found` is what the suite writes as JSON of a model that sees."""
    return "\n\n".join(
        (
            brief(found),
            f"4/2 bits by the adaptive rule over these\n{_compared(found)}",
            f"the share of tokens that attend at 0.975, by layer and by objects of a scene\n{_attending(found)}",
        )
    )


def brief(found: Mapping[str, Any]) -> str:
    """Returns the report's first table, with what was measured and where."""
    settings = found["settings"]
    seeds = f"{settings['seeds']} seed{'s' if settings['seeds'] > 1 else ''} of {settings['scenes']} unseen scenes"
    said = (
        f"captions of {settings['kind']} glyphs, {seeds}; differences in points with 95 % intervals over scenes;\n"
        "bytes are over those of the prompt in 16 bits, FLOPs over those of dense attention over it"
    )
    return f"{machine.heading(found['machine'], 1)}\n{said}\n\n{_ways(found)}"


def command(found: Mapping[str, Any]) -> str:
    """Returns what was typed, as far as it is not the default."""
    settings, usual = found["settings"], asdict(GlyphSettings())
    names = {"kind": "glyphs", "seeds": "seeds", "scenes": "scenes"}
    typed = [f" --{names[name]} {settings[name]}" for name, value in usual.items() if settings[name] != value]
    return f"outlay bench cache --model outlay/{found['machine']['model']}" + "".join(typed)


def _ways(found: Mapping[str, Any]) -> str:
    header = [
        "", "exact", "recall", "CHAIR_i", "exact over dense", "recall over dense", "important", "payload",
        "with scales", "attention FLOPs", "with probes",
    ]  # fmt: skip
    rows = [
        [
            row["name"], f"{row['exact']:.3f}", f"{row['recall']:.3f}", f"{row['chair_i']:.3f}",
            points(row["exact_over_dense"]), points(row["recall_over_dense"]), f"{row['important']:.2f}",
            f"1/{1 / row['payload']:.2f}", f"1/{1 / row['with_scales']:.2f}", f"{row['attention_flops'] - 1:+.0%}",
            f"{row['attention_flops'] + row['probe_flops'] - 1:+.0%}",
        ]
        for row in found["captions"]
    ]  # fmt: skip
    return table(header, rows)


def _compared(found: Mapping[str, Any]) -> str:
    rows = [
        [
            each["name"], points(each["exact"]), f"{100 * mean(each['by_seed']):+.1f}",
            ", ".join(f"{100 * value:+.1f}" for value in each["by_seed"]), points(each["recall"]),
        ]
        for each in found["compared"]
    ]  # fmt: skip
    return table(["", "exact", "mean of the seeds", "each seed", "recall"], rows)


def _attending(found: Mapping[str, Any]) -> str:
    groups = found["attending"]
    header = ["objects", "scenes", *(f"layer {layer}" for layer in range(len(groups[0]["layers"]))), "mean"]
    rows = [
        [
            str(group["objects"]) + (" or above" if group is groups[-1] else ""), str(group["scenes"]),
            *(f"{share:.2f}" for share in group["layers"]), f"{mean(group['layers']):.3f}",
        ]
        for group in groups
    ]  # fmt: skip
    return table(header, rows)
