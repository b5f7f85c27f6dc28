"""What `scorer=` and `--scorer` mean: an object, a function, or a name."""

from __future__ import annotations

from importlib.metadata import entry_points
from typing import Any

from outlay.errors import FailureError, UsageError, one_line
from outlay.models.load import Model, load_model
from outlay.rewards.functions import FileScorer, FunctionScorer
from outlay.rewards.model import RewardModel
from outlay.rewards.own import OwnProbability
from outlay.rewards.programs.scorer import PythonTests
from outlay.rewards.scorer import Scorer

ENTRY_POINTS = "outlay.scorers"
OPTIONS = ("form", "reduce")
TEST_OPTIONS = ("seconds", "memory", "prompt")


def resolve(given: Any, model: Model) -> Any:
    """Returns the scorer that is meant.

    Args:
        given: A scorer, a function `score(prompt, texts)`, a loaded reward model, or a name: `self`, `python:FILE`,
            `tests:FILE` with `:seconds=N,memory=N,prompt=true` behind it if need be, a kind of another package, or a
            reward model's, with `:form=NAME,reduce=last|min|prod`.
        model: The target model.

    Raises:
        UsageError: Where it can't be had.
    """
    if isinstance(given, str):
        return _named(given, model)
    if isinstance(given, Model):
        return RewardModel(given)
    if hasattr(given, "begin"):
        return given
    if callable(given):
        return FunctionScorer(given)
    raise UsageError(f"a scorer is a name, a function score(prompt, texts) or a Scorer, not {given!r}")


def _named(name: str, model: Model) -> Any:
    kind, _, rest = name.partition(":")
    if kind == "self":
        return OwnProbability(**_options(rest, ("reduce",)))
    if kind == "python":
        if not rest:
            raise UsageError("the scorer python needs a file: python:FILE, with a function score(prompt, texts)")
        return FileScorer(rest)
    if kind == "tests":
        path, options = _split(rest, TEST_OPTIONS)
        if not path:
            raise UsageError("the scorer tests needs a file: tests:FILE, with assertions, or with inputs and outputs")
        return PythonTests.of_file(path, options)
    for entry in entry_points(group=ENTRY_POINTS):
        if entry.name == kind:
            return _loaded(entry, rest)
    source, options = _split(name, OPTIONS)
    return RewardModel(load_model(source, device=str(model.decoder.device)), **options)


def _loaded(entry: Any, rest: str) -> Scorer:
    """Returns a scorer of another package: its entry point is called with what stands after the colon."""
    try:
        scorer: Scorer = entry.load()(rest)
    except UsageError:
        raise
    except Exception as error:  # somebody else's package
        raise FailureError(f"the scorer {entry.name!r} can't be made: {one_line(error)}") from error
    return scorer


def _split(name: str, known: tuple[str, ...]) -> tuple[str, dict[str, str]]:
    source, colon, written = name.rpartition(":")
    if not colon or "=" not in written:
        return name, {}
    return source, _options(written, known)


def _options(written: str, known: tuple[str, ...]) -> dict[str, str]:
    options = {}
    for part in filter(None, written.split(",")):
        option, equals, value = (word.strip() for word in part.partition("="))
        if option not in known or not equals:
            raise UsageError(f"a scorer has no option {part!r}; it takes {', '.join(f'{each}=' for each in known)}")
        options[option] = value
    return options
