"""The names that published weight files give to what `outlay.vision.vovnet` builds, turned into ours."""

from __future__ import annotations

import re
from collections.abc import Mapping

from torch import Tensor

from outlay.errors import UsageError
from outlay.vision.vovnet import DESIGNS

OFFICIAL, TIMM, OURS = "the authors' code", "timm", "outlay"

_OFFICIAL = [
    (r"^stem\.stem_(\d)/", lambda m: f"stem.{int(m[1]) - 1}."),
    (r"^stage(\d)\.OSA\d_(\d+)\.", lambda m: f"stages.{int(m[1]) - 2}.blocks.{int(m[2]) - 1}."),
    (r"\.layers\.(\d+)\.[^/]*/", lambda m: f".layers.{m[1]}."),
    (r"\.concat\.[^/]*/", lambda m: ".aggregate.0."),
    (r"\.conv_reduction\.[^/]*/", lambda m: ".reduce."),
    (r"\.ese\.", lambda m: ".gate."),
    (r"\.dw_conv3x3\.", lambda m: ".depthwise."),
    (r"\.pw_conv1x1\.", lambda m: ".conv."),
    (r"\.pw_norm\.", lambda m: ".norm."),
]
_HG_STEM = {"1": "first", "2a": "narrow", "2b": "widen", "3": "merge", "4": "last"}
_TIMM = [
    (r"\.conv_mid\.", lambda m: ".layers."),
    (r"\.conv_concat\.", lambda m: ".aggregate.0."),
    (r"\.conv_reduction\.", lambda m: ".reduce."),
    (r"\.attn\.", lambda m: ".gate."),
    (r"\.conv_dw\.", lambda m: ".depthwise."),
    (r"\.conv_pw\.", lambda m: ".conv."),
    (r"\.bn\.", lambda m: ".norm."),
    (r"\.lab\.", lambda m: ".affine."),
    (r"^stem\.stem(\w+)\.", lambda m: f"stem.{_HG_STEM[m[1]]}."),
    (r"\.downsample\.", lambda m: ".down."),
    (r"\.layers\.(\d+)\.conv([12])\.", lambda m: f".layers.{m[1]}.{int(m[2]) - 1}."),
    (r"\.aggregation\.", lambda m: ".aggregate."),
    (r"^head\.last_conv\.", lambda m: "expand."),
    (r"^head\.fc\.", lambda m: "classifier."),
]
_RULES = {OFFICIAL: _OFFICIAL, TIMM: _TIMM, OURS: []}


def form(weights: Mapping[str, Tensor]) -> str:
    """Returns whose names these are: `OFFICIAL`, `TIMM` or `OURS`."""
    if any("/" in name for name in weights):
        return OFFICIAL
    return TIMM if any(".bn." in name for name in weights) else OURS


def ours(weights: Mapping[str, Tensor], design: str, where: str) -> dict[str, Tensor]:
    """Returns the weights under our names.

    Args:
        weights: by name, as a file has them.
        design: the name of the network that they are for.
        where: the file, for the errors.

    Raises:
        UsageError: if the file's names are those of a code which computes something else with these shapes.
    """
    found = form(weights)
    if found != OURS and not design.startswith("hgnetv2") and found != origin(design):
        kin = [name for name in DESIGNS if origin(name) == found and not name.startswith("hgnetv2")]
        raise UsageError(
            f"{where} has the names of {found}, which computes something else than {design} with the same shapes; "
            f"say which of its designs it is: {', '.join(kin)}"
        )
    renamed = {}
    for name, value in weights.items():
        for pattern, replacement in _RULES[found]:
            name = re.sub(pattern, replacement, name)
        renamed[name] = value
    return renamed


def origin(design: str) -> str:
    """Returns whose code has a VoVNet of that name."""
    return OFFICIAL if design.startswith(("vovnet-", "V-")) else TIMM
