"""`results.csv`: a row for each run, every entry of its ledger a column."""

from __future__ import annotations

import csv
import io
from pathlib import Path

from outlay.compare import folder, journal, quality

FIRST = ("method", "budget", "prompt", "seed", "repeat", "quality", "finish_reason", "error", "ran_on")


def write_csv(at: Path) -> None:
    """Writes the table of the comparison in the folder `at`."""
    manifest = folder.read_manifest(at)
    marks = quality.read(at / folder.QUALITY, manifest["metric_key"]) if manifest["metric_key"] else {}
    entries: dict[str, None] = {}
    for row in journal.lines(at / folder.RUNS):
        entries |= dict.fromkeys(row.get("ledger", ()))
    known: dict[tuple[str, str, int, int], float | None] = {}
    text = io.StringIO()
    writer = csv.DictWriter(text, [*FIRST, *entries], lineterminator="\n")
    writer.writeheader()
    for row in journal.lines(at / folder.RUNS):
        answer = (row["method"], row["budget"], row["prompt"], row["seed"])
        if journal.has_output(row):
            known.setdefault(answer, marks.get((row["prompt"], journal.output_of(row))))
        cells = {name: row.get(name) for name in FIRST} | row.get("ledger", {})
        writer.writerow(cells | {"quality": known.get(answer) if row["error"] is None else None})
    folder.write(at / folder.TABLE, text.getvalue())
