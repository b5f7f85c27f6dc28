"""The models that a server has loaded, each with its drafts and scorers. A request can name these and nothing else."""

from __future__ import annotations

import math
import re
import time
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field, fields, replace
from functools import cached_property
from typing import Any, cast

from outlay import catalog, kernels
from outlay.about import Entry
from outlay.attend.policy import CachePolicy
from outlay.engine.canvas_run import CanvasRun
from outlay.engine.engine import Engine
from outlay.engine.method import Method
from outlay.engine.submission import DraftSource
from outlay.errors import OutlayError, UsageError, nearest
from outlay.lm import LM
from outlay.models.load import Model
from outlay.models.reasoning import Tags, tags_of
from outlay.serve.errors import ApiError
from outlay.serve.tools import Form, form_of
from outlay.speculation.costs import known_of

OUR_PACKAGE = "outlay"
WORDS = ("default", "none")  # values of an option that may name a file, which name none
WARM_UP_TOKENS = 8
KINDS = {"method": "method", "cache": "cache policy"}  # what a field of a request names


@dataclass(frozen=True, eq=False)
class Hosted:
    """A model under the name that requests use."""

    name: str
    lm: LM
    drafts: Mapping[str, DraftSource] = field(default_factory=dict)
    scorers: Mapping[str, Any] = field(default_factory=dict)
    created: int = field(default_factory=lambda: int(time.time()))

    @cached_property
    def fingerprint(self) -> str:
        """Names what the bits of a text depend on: weights, format and kernels."""
        model = self.lm.model
        code = kernels.isa() if kernels.available() else "torch"
        return f"{model.fingerprint[:16]}-{model.format}-{code}"

    @cached_property
    def form(self) -> Form | None:
        """How the model writes tool calls; None where its template knows no tools."""
        template = self.lm.model.tokenizer.template
        return form_of(template.source) if template is not None else None

    @cached_property
    def tags(self) -> Tags | None:
        """What the model thinks between; None for one that does not think."""
        return tags_of(self.lm.model.tokenizer)

    def draft(self, name: str | None, method: Method) -> DraftSource | None:
        """Returns the draft of a request. Raises `ApiError` for one that was not loaded."""
        if name is None:
            return self.lm.draft(None, method)
        if name not in self.drafts:
            known = ", ".join(self.drafts) or "none"
            message = f"{self.name} has no draft {name!r} here{nearest(name, self.drafts)}; it has {known}"
            raise ApiError(400, message, param="draft", code="draft_not_found")
        return self.drafts[name]

    def scorer(self, name: str | None, method: Method) -> Any:
        """Returns the scorer of a request; None for a request without.

        Raises `ApiError` for one that the server was not given, and where a method needs one or takes none.
        """
        about, known = method.about, ", ".join(self.scorers) or "none"
        if name is None:
            if "scorer" in about.needs:
                raise ApiError(400, f"{about.name} needs a scorer; {self.name} has {known}", param="scorer")
            return None
        if "scorer" not in (*about.needs, *about.takes):
            raise ApiError(400, f"{about.name} takes no scorer; leave it out", param="scorer")
        if name not in self.scorers:
            message = f"{self.name} has no scorer {name!r} here{nearest(name, self.scorers)}; it has {known}"
            raise ApiError(400, message, param="scorer", code="scorer_not_found")
        return self.scorers[name]


class Models:
    """The loaded models by name, in one engine."""

    def __init__(self, models: Iterable[Hosted], engine: Engine, allowed: Iterable[str] = ()) -> None:
        self._models = {each.name: each for each in models}
        self.engine, self._allowed = engine, frozenset(allowed)

    def __iter__(self) -> Any:
        return iter(self._models.values())

    def find(self, name: str) -> Hosted:
        """Returns a model. Raises `ApiError` for one that was not loaded."""
        if name not in self._models:
            known = ", ".join(self._models)
            message = f"there is no model {name!r} here{nearest(name, self._models)}; the models are {known}"
            raise ApiError(404, message, param="model", code="model_not_found")
        return self._models[name]

    def methods(self) -> list[str]:
        """Returns the names of the methods that requests may use."""
        return self._usable(catalog.methods())

    def policies(self) -> list[str]:
        """Returns the names of the cache policies that requests may use."""
        return self._usable(catalog.policies())

    def _usable(self, entries: Mapping[str, type[Entry]]) -> list[str]:
        return [name for name, entry in entries.items() if _may_be_used(name, entry, self._allowed)]

    def method(self, text: str, *, own: bool = False) -> Method:
        """Returns the method that a request names, or, its `own`, the server. Raises `ApiError` as `parse_method`."""
        served = {name: hosted.lm.model for name, hosted in self._models.items()}
        return parse_method(text, self._allowed, served, files=own)

    def policy(self, text: str | None) -> CachePolicy | None:
        """Returns the cache policy that a request names, if it does. Raises `ApiError` as `parse_method` does."""
        return None if text is None else parse_policy(text, self._allowed)

    def warm_up(self, method: str | None) -> None:
        """Measures the passes of models and drafts, and has each decode a few tokens, before requests come."""
        chosen = self.method(method or "greedy", own=True)
        for hosted in self:
            known_of(hosted.lm.model).complete(hosted.lm.model)
            hosted.lm.engine.worker(hosted.lm.model).measure_sharing()
            for draft in [*hosted.drafts.values(), hosted.lm.draft(None, chosen)]:
                if draft is not None and draft.model is not None:
                    known_of(draft.model).complete(draft.model)
            for each in (self.method("greedy"), chosen):
                fits = not hosted.lm.model.writes_canvas or issubclass(each.run_type, CanvasRun)
                self._try(hosted, each if fits else self.method(hosted.lm.usual_method))

    @staticmethod
    def _try(hosted: Hosted, method: Method) -> None:
        speech = hosted.lm.model.speech
        tokens = hosted.lm.model.tokenizer.encode_prompt("Hello") or [0]
        try:
            if speech is not None:
                tone = [0.1 * math.sin(0.17 * place) for place in range(speech.rate)]
                hosted.lm.transcribe(tone, method=method, max_tokens=WARM_UP_TOKENS)
                return
            given: dict[str, Any] = {
                "method": method,
                "draft": hosted.draft(None, method),
                "max_tokens": WARM_UP_TOKENS,
            }
            try:
                hosted.lm.generate(tokens, **given)
            except UsageError:  # a method that draws alone
                hosted.lm.generate(tokens, temperature=1.0, **given)
        except OutlayError as error:
            raise type(error)(f"{hosted.name} can't decode with the method {method.label!r}: {error}") from error


def parse_method(
    text: str, allowed: Collection[str], served: Mapping[str, Model] | None = None, *, files: bool = False
) -> Method:
    """Returns the method that a request names.

    Args:
        text: its name, with options if need be.
        allowed: the methods that are off by default and turned on.
        served: the models that options may name, by the names that requests use.
        files: whether options may name files, which those of a request may not.

    Raises:
        ApiError: for one that is unknown or off, or whose options name a file.
    """
    try:
        _refuse_off("method", text, allowed)
        method = _with_served(catalog.parse(text), served or {})
    except UsageError as error:
        raise ApiError(400, str(error), param="method", code="invalid_value") from None
    if not files:
        _refuse_files("method", method.cache_policy or method)
    return method


def parse_policy(text: str, allowed: Collection[str]) -> CachePolicy:
    """Returns the cache policy that a request names; arguments and errors are those of `parse_method`."""
    try:
        if text.partition(":")[0].strip() in catalog.policies():
            _refuse_off("cache", text, allowed)
        policy = catalog.parse_policy(text)
    except UsageError as error:
        raise ApiError(400, str(error), param="cache", code="invalid_value") from None
    _refuse_files("cache", policy)
    return policy


def _with_served(method: Method, served: Mapping[str, Model]) -> Method:
    """Returns a method whose options hold the served models that they name."""
    named = {option: getattr(method, option) for option in method.about.models}
    found = {option: served[name] for option, name in named.items() if isinstance(name, str) and name in served}
    return replace(cast(Any, method), **found) if found else method


def _refuse_off(param: str, text: str, allowed: Collection[str]) -> None:
    """Raises `ApiError` for an entry that requests may not use, and `UsageError` for one that there is not."""
    name = text.partition(":")[0].strip()
    if not _may_be_used(name, catalog.find(name), allowed):
        message = f"the {KINDS[param]} {name!r} is turned off here; `outlay serve --allow {name}` turns it on"
        raise ApiError(403, message, param=param, code="method_off")


def _may_be_used(name: str, entry: type[Entry], allowed: Collection[str]) -> bool:
    ours = entry.__module__.partition(".")[0] == OUR_PACKAGE
    return name in allowed or (ours and not entry.about.runs_code)


def _refuse_files(param: str, entry: Entry) -> None:
    """Raises `ApiError` where an option may name a file: only its words are taken from a request."""
    for option in fields(cast(Any, entry)):
        value = getattr(entry, option.name)
        may_name = re.search(r"\bstr\b", str(option.type)) and option.name not in entry.about.texts
        if isinstance(value, str) and may_name and value not in (option.default, *WORDS):
            message = f"option {option.name!r} of {KINDS[param]} {entry.about.name!r} may not name a file in a request"
            raise ApiError(403, message, param=param, code="file_refused")
