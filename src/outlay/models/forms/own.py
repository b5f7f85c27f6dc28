"""Our own forms, for what has no public one: `quant_method` "outlay" with a version and the form's name."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from outlay.errors import UsageError
from outlay.models.forms.form import Form
from outlay.models.forms.nm import NmForm
from outlay.models.forms.pvq import PvqForm

VERSION = 1
OWN: dict[str, Callable[[Mapping[str, Any]], Form]] = {"nm": NmForm, "pvq": PvqForm}
"""What reads each form."""


def own_form(config: Mapping[str, Any]) -> Form:
    """Returns what reads a folder of ours.

    Raises:
        UsageError: The form or its version isn't known.
    """
    name, version = str(config.get("form")), config.get("version")
    if version != VERSION or name not in OWN:
        known = f"version {VERSION} of {', '.join(OWN)}"
        raise UsageError(f"these weights are in version {version} of the form {name!r}; this outlay reads {known}")
    return OWN[name](config)


def own_config(form: str, **options: Any) -> dict[str, Any]:
    """Returns the `quantization_config` of a form of ours."""
    return {"quant_method": "outlay", "version": VERSION, "form": form, **options}
