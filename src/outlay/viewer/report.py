"""The report of a comparison: cost and quality as a plot and a table, and the texts side by side."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

from outlay.viewer.headline import TEXTS_SPEED, Figure, Part, Speed, headline
from outlay.viewer.page import write_page

STYLES = ("base.css", "report.css")
FIRST, LAST = ("base.js", "report_figures.js", "report_plot.js", "report_table.js"), ("report.js",)


@dataclass(frozen=True)
class Page:
    """How a report shows the answers of a comparison."""

    part: str
    """The part of the page that shows them."""
    scripts: tuple[str, ...]
    """What draws them."""
    speed: Speed
    """The rate by which the headline ranks."""


TEXTS = Page("report_texts.html", ("token_diff.js", "report_texts.js"), TEXTS_SPEED)
PICTURES = Page(
    "report_pictures.html", ("report_pictures.js",), Speed("pictures_per_second", "pictures per second", "looks at")
)


def write_report(results: Mapping[str, Any], path: Path, page: Page = TEXTS) -> None:
    """Writes the report of `results`, the content of a comparison's `results.json`, as one self-contained HTML file.

    Raises `FailureError` where it can't be written.
    """
    scripts = (*FIRST, *page.scripts, *LAST)
    write_page(path, "report.html", STYLES, scripts, report_data(results, page), {"<!-- answers -->": page.part})


def report_data(results: Mapping[str, Any], page: Page = TEXTS) -> dict[str, Any]:
    """Returns the data of the page: the results without repetition. A path in it is the same path in `results`."""
    sentences = headline(results["contenders"], page.speed)
    shown = {"pictures": results["pictures"]} if "pictures" in results else {}
    return {
        "headline": [[_part(part) for part in sentence] for sentence in sentences],
        **shown,
        "manifest": _finite(results["manifest"]),
        "prompts": results["prompts"],
        "contenders": _finite(results["contenders"]),
        "answers": _answers(results.get("runs", ()), results.get("texts", ())),
        **_texts(results.get("texts", ())),
    }


def _part(part: Part) -> str | dict[str, str]:
    return {"path": part.path, "unit": part.unit} if isinstance(part, Figure) else part


def _answers(runs: Sequence[Mapping[str, Any]], texts: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Returns the facts about each text beside its tokens; `run` is its index among the runs."""
    first: dict[tuple[int, int], int] = {}
    for index, run in enumerate(runs):
        first.setdefault((run["contender"], run["prompt"]), index)
    names = ("tokens_out", "quality", "first_difference", "trace")
    rows = []
    for text in texts:
        index = first[text["contender"], text["prompt"]]
        facts = {name: _finite(runs[index][name]) for name in names if runs[index][name] is not None}
        rows.append({"run": index, "finish_reason": text["finish_reason"], **facts})
    return rows


def _texts(texts: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Returns the texts as indices of pieces, each different text and piece once, the commonest pieces first."""
    counts = Counter(piece for text in texts for piece in text["pieces"])
    pieces = [piece for piece, _ in counts.most_common()]
    number = {piece: index for index, piece in enumerate(pieces)}
    origins = list(dict.fromkeys(["", *(origin for text in texts for origin in text["origins"])]))
    written: dict[tuple[int, ...], int] = {}
    proposed: dict[tuple[int, ...], int] = {}
    rows = []
    for text in texts:
        words = tuple(number[piece] for piece in text["pieces"])
        spans = tuple(
            part for origin, run in groupby(text["origins"]) for part in (origins.index(origin), len(list(run)))
        )
        text_number, span_number = written.setdefault(words, len(written)), proposed.setdefault(spans, len(proposed))
        rows.append([text["contender"], text["prompt"], text_number, span_number])
    return {
        "pieces": pieces,
        "origins": origins,
        "texts": rows,
        "written": list(written),
        "proposed": list(proposed),
    }


def _finite(value: Any) -> Any:
    """Returns `value` with None for numbers that JSON does not have."""
    if isinstance(value, Mapping):
        return {name: _finite(each) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
