"""The report of the vision suite, made of its results alone."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from outlay import machine
from outlay.bench.captions import points
from outlay.tables import console, table


def report(found: Mapping[str, Any]) -> str:
    """Returns the report as text; `found` is what the suite writes as JSON."""
    prior = "the prior reversed" if found["reversed"] else "the prior of the training"
    seeds = f"{found['seeds']} seed{'s' if found['seeds'] > 1 else ''} of scenes"
    rows = [
        [
            row["name"], f"{row['exact']:.3f}", f"{row['chair_i']:.4f}", f"{row['chair_s']:.3f}",
            f"{row['recall']:.3f}", _ratio(row["over_greedy"]), points(row["recall_over_greedy"]),
            f"{row['passes']:.2f}",
        ]
        for row in found["rows"]
    ]  # fmt: skip
    header = ["", "exact", "CHAIR_i", "CHAIR_s", "recall", "CHAIR_i over greedy", "recall, points", "passes a token"]
    between = [
        [f"keep {each['keep']}", _ratio(each["ratio"]), _verdict(each["ratio"])]
        for each in found["attention_over_visual"]
    ]
    speeds = found["speeds"]
    return "\n\n".join(
        [
            machine.heading(found["machine"]),
            f"{found['glyphs']}, {prior}: {seeds}, {found['scenes']} scenes each; ratios and differences with 95 % "
            "intervals over scenes",
            table(header, rows),
            *([table(["attention alone over visual", "CHAIR_i", ""], between)] if between else []),
            verdicts(found),
            table(
                ["decoding, processor time", "tokens/s"],
                [[name, f"{rate:.0f}"] for name, rate in speeds["tokens_per_second"].items()],
            ),
            "\n".join(f"{name}: {_ratio(ratio)}" for name, ratio in speeds["ratios"].items())
            + "\nratios are medians of the rounds, with the least and the greatest",
        ]
    )


def command(found: Mapping[str, Any]) -> str:
    """Returns what was typed, as far as it is not the default."""
    options = {"glyphs": found["glyphs"], "seeds": found["seeds"], "scenes": found["scenes"]}
    usual = {"glyphs": "digits", "seeds": 1, "scenes": 100}
    typed = [f" --{name} {value}" for name, value in options.items() if value != usual[name]]
    methods = found.get("methods", [])
    typed += [" --methods ", " ".join(methods)] if methods else []
    return "outlay bench vision" + "".join(typed) + ("" if found["reversed"] else " --prior training")


def verdicts(found: Mapping[str, Any]) -> str:
    """Returns, of each method, whether it names less or more that is not there than greedy does."""
    groups: dict[str, list[str]] = {"less": [], "more": [], "no difference shown": []}
    for row in found["rows"][1:]:
        groups[_verdict(row["over_greedy"])].append(row["name"])
    return "\n".join(
        f"CHAIR_i beside greedy, {verdict}: {'; '.join(names) or 'none'}" for verdict, names in groups.items()
    )


def _verdict(ratio: Mapping[str, float]) -> str:
    if ratio["low"] <= 1 <= ratio["high"]:
        return "no difference shown"
    return "less" if ratio["high"] < 1 else "more"


def _ratio(ratio: Mapping[str, float]) -> str:
    return f"{ratio['value']:.3f} ({ratio['low']:.3f}-{ratio['high']:.3f})"


TABLES = {"report": lambda found: console(command(found), report(found))}
