"""Captions of glyph scenes under cache policies: exact matches, recall, bytes and FLOPs, beside the dense cache."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import mean
from typing import Any, NamedTuple

from outlay.bench.cache.chosen import Told
from outlay.bench.captions import captions_of, recall_difference, share_difference
from outlay.catalog import parse_policy
from outlay.engine.handle import Result
from outlay.lm import LM
from outlay.metrics import CaptionCounts, Chair, caption_counts
from outlay.problems.glyphs import WORDS, GlyphWorld, Kind, Scene
from outlay.progress import ShowProgress

DENSE = "dense"
TAUS = (0.99, 0.975, 0.96, 0.9, 0.8, 0.6)
ALL_ROWS = "probes=100000x0"  # more than a prompt has: every row is a probe
MIXED, FIXED, EVICT = "4/2 bits", "4/2 bits, a fixed share", "4 bits, evict"
LINES: Mapping[str, str] = {
    MIXED: "zipvl:tau={tau}{more}",
    FIXED: "zipvl:tau={tau},ratio={ratio}{more}",
    EVICT: "zipvl:mode=evict,tau={tau}{more}",
}
"""The ways that are measured at each tau, `{ratio}` being the share of tokens that the first held there."""
MAIN = 0.975
SHOWN = 3  # scenes of which the results say what attended
MANY = 5  # objects from which on scenes are counted together


@dataclass(frozen=True)
class GlyphSettings:
    """What is captioned."""

    kind: Kind = "drawn"
    seeds: int = 3
    scenes: int = 80
    """Of each seed."""


class Way(NamedTuple):
    """A row of the report."""

    line: str
    tau: float
    cache: str
    probes: str = "few"

    @property
    def name(self) -> str:
        """What the report calls it."""
        return f"{self.line}, {self.tau:g}" + (", all probes" if self.probes == "all" else "")


def ways() -> list[Way]:
    """Returns what is measured beside the dense cache, in its order."""
    apart = [
        Way("4/2 bits, dense prefill", MAIN, f"zipvl:tau={MAIN},sparse=false"),
        Way("16 bits, sparse prefill", MAIN, f"zipvl:tau={MAIN},bits=16x16"),
    ]
    lines = [Way(line, tau, cache) for tau in TAUS for line, cache in LINES.items()]
    return [*apart, *lines, *(Way(line, 0.9, cache, "all") for line, cache in LINES.items())]


def measured(lm: LM, settings: GlyphSettings, progress: ShowProgress) -> dict[str, Any]:
    """Returns what each way makes of the same scenes, and what the main one lets attend."""
    world = GlyphWorld(settings.kind)
    scenes = [scene for seed in range(settings.seeds) for scene in world.scenes(settings.scenes, seed)]
    everything = ways()
    progress(DENSE, 0, len(everything) + 2)
    rows = {DENSE: _captioned(lm, scenes, settings, None)}
    for place, way in enumerate(everything, 1):
        progress(way.name, place, len(everything) + 2)
        ratio = _adaptive(rows, way)["important"] if way.line == FIXED else None
        more = f",{ALL_ROWS}" if way.probes == "all" else ""
        rows[way.name] = _captioned(lm, scenes, settings, way.cache.format(tau=way.tau, more=more, ratio=ratio))
    progress("what attends", len(everything) + 1, len(everything) + 2)
    told = Told(parse_policy(f"zipvl:tau={MAIN}"))
    chosen = [result.facts["cache"] for result in captions_of(lm, scenes, "greedy", told)[1]]
    return {
        "captions": [_row(name, row, rows[DENSE]) for name, row in rows.items()],
        "lines": {line: [way.name for way in everything if (way.line, way.probes) == (line, "few")] for line in LINES},
        "compared": _compared(rows, everything),
        "attending": attending(scenes, chosen),
        "across": math.isqrt(len(chosen[0]["image"])),
        "shown": [
            {"number": number, "attending": _cells(chosen[number]), "caption": rows[DENSE]["captions"][number]}
            for number in range(min(SHOWN, settings.scenes))
        ],
    }


def _captioned(lm: LM, scenes: Sequence[Scene], settings: GlyphSettings, cache: str | None) -> dict[str, Any]:
    captions, results = captions_of(lm, scenes, "greedy", cache)
    exact = [caption == scene.caption for caption, scene in zip(captions, scenes, strict=True)]
    held = _held(results, lm) if cache else {"important": 1.0, "payload": 1.0, "with_scales": 1.0}
    flops = {name: _share(results, name) if cache else share for name, share in (("attention", 1.0), ("probe", 0.0))}
    size = settings.scenes
    return {
        "cache": cache,
        "captions": captions,
        "exact": exact,
        "exact_by_seed": [mean(exact[seed * size : (seed + 1) * size]) for seed in range(settings.seeds)],
        "counts": caption_counts(captions, [scene.objects for scene in scenes], WORDS[settings.kind]),
        "attention_flops": flops["attention"],
        "probe_flops": flops["probe"],
        **held,
    }


def _held(results: Sequence[Result], lm: LM) -> dict[str, float]:
    """Returns the bytes that hold the prompts over those of all their tokens in 16 bits, and the important share."""
    payload, overhead, dense = (
        sum(result.ledger.extras[name] for result in results) for name in ("kv_payload", "kv_overhead", "kv_dense")
    )
    important = mean(result.facts["cache"]["mean_important"] for result in results)
    return {"important": important, "payload": payload / dense, "with_scales": (payload + overhead) / dense}


def _share(results: Sequence[Result], kind: str) -> float:
    """Returns a kind of FLOPs over those of dense attention over the same prompts."""
    return sum(result.ledger.extras[f"{kind}_flops"] for result in results) / sum(
        result.ledger.extras["attention_flops_dense"] for result in results
    )


def _row(name: str, row: Mapping[str, Any], dense: Mapping[str, Any]) -> dict[str, Any]:
    """Returns a row of the results, with its differences to the dense cache."""
    chair = Chair.of(row["counts"])
    kept = ("cache", "exact_by_seed", "important", "payload", "with_scales", "attention_flops", "probe_flops")
    return {
        "name": name,
        "exact": mean(row["exact"]),
        "recall": chair.recall,
        "chair_i": chair.chair_i,
        "exact_over_dense": share_difference(dense["exact"], row["exact"]),
        "recall_over_dense": recall_difference(dense["counts"], row["counts"]),
    } | {each: row[each] for each in kept}


def _adaptive(rows: Mapping[str, dict[str, Any]], way: Way) -> dict[str, Any]:
    """Returns the row of the adaptive rule at the same tau."""
    return rows[way._replace(line=MIXED).name]


def _compared(rows: Mapping[str, dict[str, Any]], everything: Sequence[Way]) -> list[dict[str, Any]]:
    """Returns how 4/2 bits under the adaptive rule differ from a fixed share, and from eviction, at each tau."""
    found = []
    for way in everything:
        if way.line not in (FIXED, EVICT):
            continue
        ours, other = _adaptive(rows, way), rows[way.name]
        counts: tuple[list[CaptionCounts], list[CaptionCounts]] = other["counts"], ours["counts"]
        pairs = zip(ours["exact_by_seed"], other["exact_by_seed"], strict=True)
        found.append(
            {
                "name": way.name,
                "exact": share_difference(other["exact"], ours["exact"]),
                "recall": recall_difference(*counts),
                "by_seed": [one - two for one, two in pairs],
            }
        )
    return found


def attending(scenes: Sequence[Scene], chosen: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Returns the mean share of tokens that attend in each layer, by how many objects a scene has."""
    groups: dict[int, list[Sequence[float]]] = {}
    for scene, facts in zip(scenes, chosen, strict=True):
        groups.setdefault(min(MANY, len(scene.objects)), []).append(facts["important"])
    return [
        {"objects": objects, "scenes": len(shares), "layers": [mean(layer) for layer in zip(*shares, strict=True)]}
        for objects, shares in sorted(groups.items())
    ]


def _cells(facts: Mapping[str, Any]) -> list[list[int]]:
    """Returns which visual tokens attend in each layer, by their place in the image."""
    places = {position: place for place, position in enumerate(facts["image"])}
    return [[places[each] for each in layer if each in places] for layer in facts["attending"]]
