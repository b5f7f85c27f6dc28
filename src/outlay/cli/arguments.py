"""Command lines: argparse with errors of one line that name what was probably meant, and types that say their range."""

from __future__ import annotations

import argparse
import math
import re
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

from outlay.errors import UsageError, nearest


class Parser(argparse.ArgumentParser):
    """An `ArgumentParser` that raises `UsageError` where argparse would print its usage and leave."""

    def __init__(self, **options: Any) -> None:
        super().__init__(allow_abbrev=False, add_help=False, formatter_class=_Formatter, **options)
        self.add_argument("-h", "--help", action="help", help="show this help and leave")

    def parse_args(self, args: Any = None, namespace: Any = None) -> Any:
        """Returns the arguments. Raises `UsageError` for what it does not know, with the nearest names."""
        known, unknown = super().parse_known_args(args, namespace)
        if unknown:
            self._refuse(unknown[0])
        return known

    def error(self, message: str) -> NoReturn:
        """Raises `UsageError` with argparse's message in our words."""
        message = re.sub(r"^argument (\S+?)(/\S+)?: must", r"\1 must", message)
        message = re.sub(r"^argument (\S+?)(/\S+)?: expected.*", r"\1 needs a value", message)
        message = re.sub(r"^the following arguments are required: (.*)", r"\1 is missing", message)
        message = re.sub(r"^argument (\S+?)(/\S+)?: ignored explicit.*", r"\1 takes no value", message)
        message = re.sub(r"^argument ", "", message)
        raise UsageError(f"{message}; see `{self.prog} --help`")

    def _refuse(self, word: str) -> NoReturn:
        if word.startswith("-"):
            option = word.partition("=")[0]
            self.error(f"there is no option {option}{nearest(option, self._option_string_actions)}")
        self.error(f"{word!r} is one word too many; put quotes around a text with spaces")


class _Formatter(argparse.RawDescriptionHelpFormatter):
    """Keeps examples as they are written, and options in one column that fits 100 characters."""

    def __init__(self, prog: str) -> None:
        super().__init__(prog, max_help_position=30)
        self._width = min(self._width, 98)


def number(
    least: float | None = None, *, above: float | None = None, most: float | None = None, whole: bool = False
) -> Callable[[str], float]:
    """Returns a type for numbers in a range, whose error says the range."""
    wanted = "a whole number" if whole else "a number"
    limits = [(least, "{:g} or more"), (above, "above {:g}"), (most, "at most {:g}")]
    wanted += ", " * (least is not None or above is not None or most is not None)
    wanted += " and ".join(text.format(limit) for limit, text in limits if limit is not None)

    def convert(text: str) -> float:
        try:
            value = int(text) if whole else float(text)
        except ValueError:
            value = float("nan")
        low_enough = most is None or value <= most
        high_enough = (least is None or value >= least) and (above is None or value > above)
        if not math.isfinite(value) or not (low_enough and high_enough):
            raise argparse.ArgumentTypeError(f"must be {wanted}, not {text!r}")
        return value

    return convert


def one_of(names: Sequence[str]) -> Callable[[str], str]:
    """Returns a type for one of some names, whose error says the nearest."""

    def convert(text: str) -> str:
        if text not in names:
            raise argparse.ArgumentTypeError(f"must be one of {', '.join(names)}, not {text!r}{nearest(text, names)}")
        return text

    return convert
