"""Forms in which folders hold shrunk matrices, a file for each: `quantization_config` in config.json names the form."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from outlay.errors import UsageError
from outlay.models.forms.bitmask import BitmaskForm
from outlay.models.forms.form import Form
from outlay.models.forms.gptq import GptqForm
from outlay.models.forms.own import own_form
from outlay.models.forms.vptq import VptqForm

FORMS: dict[str, Callable[[Mapping[str, Any]], Form]] = {
    "gptq": GptqForm,
    "vptq": VptqForm,
    "outlay": own_form,
    "compressed-tensors": BitmaskForm,
}
"""What reads each `quant_method`, made of the `quantization_config`."""


def quantization_of(raw: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """Returns the `quantization_config` of a config.json; None where the weights are floats."""
    text = raw.get("text_config")
    found = raw.get("quantization_config") or (text.get("quantization_config") if text else None)
    return found or None


def form_of(raw: Mapping[str, Any]) -> Form | None:
    """Returns what reads a folder's matrices.

    Args:
        raw: Its config.json.

    Returns:
        The form; None where the weights are floats.

    Raises:
        UsageError: Where the form is one that isn't read here.
    """
    quantization = quantization_of(raw)
    if quantization is None:
        return None
    method = str(quantization.get("quant_method") or "unnamed")
    if method not in FORMS:
        raise UsageError(
            f"this model's weights are packed ({method} in the quantization_config of config.json), which outlay does "
            f"not read; it reads {', '.join(FORMS)}, floats, and .gguf files"
        )
    return FORMS[method](quantization)
