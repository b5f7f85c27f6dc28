"""The contenders of a comparison: each method under each budget, with the sampling options that it runs with."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from outlay import catalog
from outlay.budget import Budget
from outlay.compare.comparison import Key
from outlay.compare.declaration import Declaration
from outlay.compare.items import Item
from outlay.constrain import constraint_of
from outlay.engine.method import Method
from outlay.errors import FailureError, UsageError, nearest, one_line
from outlay.lm import LM

SAMPLING = {"temperature": float, "top_k": int, "top_p": float, "min_p": float}
PROBE_TOKENS = 16
EXTRAS = ("constraint", "image")


@dataclass(frozen=True)
class Contender:
    """A method with its sampling options and its budget."""

    name: str
    """The method as it is typed."""
    method: Method
    sampling: Mapping[str, float] = field(default_factory=dict)
    """Sampling options by name."""
    budget: str = ""
    """Caps on the ledger, "" for none."""

    @property
    def label(self) -> str:
        """The name and the budget, as tables show them."""
        return f"{self.name} [{self.budget}]" if self.budget else self.name

    @property
    def key(self) -> Key:
        """Identifies its runs in a journal."""
        return self.name, self.budget

    @property
    def takes_scorer(self) -> bool:
        """Whether the method asks the comparison's scorer."""
        about, by = self.method.about, getattr(self.method, "by", "score")
        return "scorer" in about.needs or ("scorer" in about.takes and by in ("score", "weighted"))

    def options(self, declaration: Declaration, item: Item | None = None) -> dict[str, Any]:
        """Returns the arguments of `LM.submit`. A prompt's own scorer, if it names one, goes before the declared."""
        scorer = declaration.scorer if item is None or item.scorer is None else item.scorer
        return {
            "method": self.method,
            "draft": declaration.draft,
            "scorer": scorer if self.takes_scorer else None,
            "question": "" if item is None else item.text,
            "budget": Budget.parse(self.budget) if self.budget else None,
            "max_tokens": declaration.max_tokens,
            "stop": declaration.stop,
            **self.sampling,
        }


def contenders(declaration: Declaration) -> list[Contender]:
    """Returns every method under every budget. Raises `UsageError` for a method that can't be read or occurs twice."""
    methods = [_parse(text, declaration) for text in declaration.methods]
    refuse_names([method.name for method in methods], declaration.reference)
    budgets = [canonical(budget) for budget in declaration.budgets]
    return [Contender(method.name, method.method, method.sampling, budget) for method in methods for budget in budgets]


def refuse_names(names: Sequence[str], reference: str | None) -> None:
    """Raises `UsageError` where a method is named twice, or the reference is none of them."""
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise UsageError(f"{twice} is among the methods twice; leave one of them out")
    if reference is not None and reference not in names:
        raise UsageError(
            f"the reference {reference!r} is not among the methods{nearest(reference, names)}; "
            f"they are {', '.join(names)}"
        )


def references(keys: Sequence[Key], reference: str | None) -> list[int]:
    """Returns for each contender the index of its reference, which runs under the same budget."""
    named = reference or keys[0][0]
    at = {budget: index for index, (name, budget) in enumerate(keys) if name == named}
    return [at[budget] for _, budget in keys]


def refuse_extras(items: Sequence[Item], every: Sequence[Contender]) -> None:
    """Raises `UsageError` where a prompt comes with a constraint or an image that a method can't take, or with a
    constraint that can't be read.
    """
    for number, item in enumerate(items, 1):
        for extra in EXTRAS:
            if item.row.get(extra) is None:
                continue
            for contender in every:
                if extra not in (*contender.method.about.needs, *contender.method.about.takes):
                    raise UsageError(f"prompt {number} has {_a(extra)} {extra}, which {contender.name} can't take")
            if extra == "constraint":
                try:
                    constraint_of(item.row[extra])
                except UsageError as error:
                    raise UsageError(f"prompt {number}: {error}") from None


def tried(
    contender: Contender, lm: LM, declaration: Declaration, prompt: Sequence[int], item: Item | None = None
) -> Contender:
    """Runs a few tokens, which warms up.

    Returns:
        The contender; at temperature 0 where its method refuses the temperature of the comparison but takes 0.

    Raises:
        UsageError: the contender can't run with these options.
        FailureError: it failed. Both messages begin with its name.
    """
    cold = replace(contender, sampling={**contender.sampling, "temperature": 0.0})
    try:
        _probe(contender, lm, declaration, prompt, item)
        return contender
    except UsageError as error:
        if not contender.sampling["temperature"]:
            raise UsageError(f"{contender.name}: {error}") from error
        try:
            _probe(cold, lm, declaration, prompt, item)
        except UsageError:
            raise UsageError(f"{contender.name}: {error}") from error
        return cold
    except Exception as error:  # whatever a method raises
        raise FailureError(f"{contender.name}: {one_line(error)}") from error


def _probe(contender: Contender, lm: LM, declaration: Declaration, prompt: Sequence[int], item: Item | None) -> None:
    options = contender.options(declaration, item)
    lm.generate(prompt, **options | {"max_tokens": min(PROBE_TOKENS, declaration.max_tokens)})


def _parse(text: str, declaration: Declaration) -> Contender:
    """Makes a contender of `"name:option=value,..."`, where sampling options may stand among the method's own."""
    name, colon, written = text.partition(":")
    own, sampling = [], {option: getattr(declaration, option) for option in SAMPLING}
    given = []
    for part in filter(None, written.split(",")):
        option, _, value = (word.strip() for word in part.partition("="))
        if option not in SAMPLING:
            own.append(part)
            continue
        try:
            sampling[option] = SAMPLING[option](value)
        except ValueError:
            raise UsageError(f"{option} of {name} must be a number, not {value!r}") from None
        given.append(f"{option}={sampling[option]:.12g}")
    method = catalog.parse(name + (colon + ",".join(own) if own else ""))
    label = method.label
    if given:
        label += ("," if ":" in label else ":") + ",".join(given)
    return Contender(label, method, sampling)


def canonical(budget: str) -> str:
    """Returns a budget as all are written."""
    if not budget:
        return ""
    return ",".join(f"{name}={cap}" for name, cap in Budget.parse(budget).caps.items())


def _a(noun: str) -> str:
    return "an" if noun[0] in "aeiou" else "a"
