"""The results of a comparison as text for a terminal."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from outlay.spread import Spread
from outlay.tables import number, table, times


def summary(results: Mapping[str, Any]) -> str:
    """Returns the table of the contenders, the size of the comparison, the machine, and what went wrong."""
    manifest, contenders = results["manifest"], results["contenders"]
    rated = manifest["metric"]
    marks = [rated.partition(":")[0]] if rated else []
    noun = manifest.get("noun", "prompt")
    of_pictures = noun == "picture"
    rate, told = ("pictures_per_second", "pictures/s") if of_pictures else ("tokens_per_second", "tokens/s")
    header = [
        "",
        *marks,
        told,
        "against the reference",
        *(["ms", "GFLOP"] if of_pictures else ["passes/token", "identical"]),
    ]
    rows = [_row(index, contender, bool(rated), rate) for index, contender in enumerate(contenders)]
    size = [
        (manifest["prompts"]["count"], manifest.get("noun", "prompt")),
        (len(manifest["seeds"]), "seed"),
        (manifest["repeats"], "repeat"),
    ]
    measured = ", ".join(_count(*amount) for amount in size)
    machine, model = manifest["machine"], manifest["model"]
    remarks = [
        f"{measured}; medians over the {noun}s, with 95 % intervals",
        f"{model['name']} ({model['format']}) on {machine['processor']}, {_count(machine['cores'], 'core')}, "
        f"{manifest['created'][:10]}",
    ]
    for contender in contenders:
        label, failed, unsteady = contender["label"], contender["errors"], contender["unsteady"]
        if failed:
            remarks.append(f"{label}: {_count(failed, 'run')} failed, the first at {contender['first_error']}")
        if unsteady:
            other = "found other boxes" if of_pictures else "wrote another text"
            remarks.append(f"{label}: {_count(unsteady, 'repeat')} {other} than the first")
    return "\n".join([table(header, rows), "", *remarks])


def _row(index: int, contender: Mapping[str, Any], rated: bool, rate: str) -> list[str]:
    entries, ratios = contender["entries"], contender["ratios"]
    if not entries:
        return [contender["label"], f"no run came to its end: {contender['first_error']}"]
    quality = contender["quality"]
    cells = [contender["label"]]
    if rated:
        cells.append(f"{quality['mean']:.3g} ({quality['low']:.3g} to {quality['high']:.3g})" if quality else "-")
    ratio = ratios.get(rate)
    own = contender["reference"] == index
    if rate == "pictures_per_second":
        last = [f"{1e3 * entries['seconds']['median']:.1f}", f"{entries['flops']['median'] / 1e9:.2f}"]
    else:
        last = [
            f"{entries['passes_per_token']['median']:.2f}" if "passes_per_token" in entries else "-",
            "-" if own else f"{contender['identical']}/{contender['compared']}",
        ]
    return [
        *cells,
        number(entries[rate]["median"]),
        "reference" if own else times(Spread(**ratio) if ratio else None),
        *last,
    ]


def _count(amount: int, noun: str) -> str:
    return f"{amount} {noun}" if amount == 1 else f"{amount} {noun}s"
