"""Tables of numbers as plain text and as Markdown."""

from __future__ import annotations

from collections.abc import Sequence

from outlay.spread import Spread


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Returns rows under a header: the first column to the left, the others to the right.

    A row of two cells under a longer header is a name with a remark, which may run on over the columns.
    """
    full = [header, *(row for row in rows if len(row) == len(header))]
    names = max(len(row[0]) for row in [header, *rows])
    widths = [max(len(row[index]) for row in full) for index in range(1, len(header))]

    def line(row: Sequence[str]) -> str:
        if len(row) != len(header):
            return f"{row[0]:<{names}}  {row[1]}"
        cells = [f"{cell:>{width}}" for cell, width in zip(row[1:], widths, strict=True)]
        return "  ".join([f"{row[0]:<{names}}", *cells]).rstrip()

    return "\n".join(map(line, [header, *rows]))


def markdown(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Returns a table of Markdown."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("|" + "".join(f" {cell} |" if cell else " |" for cell in line) for line in lines)


def bold(row: Sequence[str]) -> list[str]:
    """Returns the cells of a row of Markdown in bold."""
    return [f"**{cell}**" for cell in row]


def console(command: str, output: str) -> str:
    """Returns what a command prints, as a block of Markdown."""
    return f"```\n$ {command}\n{output.rstrip()}\n```"


def number(value: float | None) -> str:
    """Returns three digits of a number, or "-" where there is none."""
    if value is None:
        return "-"
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:.3g}" if abs(value) < 10 else f"{value:.1f}"


def times(ratio: Spread | None) -> str:
    """Returns a ratio with its range over the rounds: "3.52x (3.40-3.61)"."""
    return "-" if ratio is None else f"{ratio.median:.2f}x ({ratio.low:.2f}-{ratio.high:.2f})"
