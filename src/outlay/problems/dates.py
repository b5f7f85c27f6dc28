"""Dates in many forms, to be written in one: 3 March 2021, March 3rd, 2021 and 03.03.2021 are 2021-03-03."""

from __future__ import annotations

import datetime
import random
from typing import Any

SUMMARY = "a date in one of five forms, to be written as year-month-day"
FIRST, DAYS = datetime.date(1900, 1, 1), 55_000
MONTHS = (
    "January", "February", "March", "April", "May", "June", "July", "August", "September", "October", "November",
    "December",
)  # fmt: skip


def make(count: int, seed: int) -> list[dict[str, Any]]:
    """Returns `count` rows with `prompt` and `answer`."""
    return [_date(random.Random(f"{seed}/{index}")) for index in range(count)]


def _date(draw: random.Random) -> dict[str, Any]:
    date = FIRST + datetime.timedelta(days=draw.randrange(DAYS))
    month = MONTHS[date.month - 1]
    forms = (
        f"{date.day} {month} {date.year}",
        f"{month} {date.day}{_ordinal(date.day)}, {date.year}",
        f"{date.day:02d}.{date.month:02d}.{date.year}",
        f"{month[:3]} {date.day}, {date.year}",
        f"{date.year}/{date.month}/{date.day}",
    )
    return {"prompt": draw.choice(forms), "answer": date.isoformat()}


def _ordinal(day: int) -> str:
    return "th" if 11 <= day <= 13 else {1: "st", 2: "nd", 3: "rd"}.get(day % 10, "th")
