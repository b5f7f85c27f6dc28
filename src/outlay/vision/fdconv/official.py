"""The checkpoints of the authors' code."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from torch import Tensor, nn

from outlay.errors import UsageError
from outlay.vision import weights
from outlay.vision.fdconv.layer import FDConv2d
from outlay.vision.fdconv.options import FDConv

_OFFICIAL = {
    "dft_weight": "coefficients",
    "KSM_Global.fc": "global_gains.squeeze",
    "KSM_Global.bn": "global_gains.norm",
    "KSM_Global.relu": "global_gains.act",
    "KSM_Global.channel_fc": "global_gains.channels",
    "KSM_Global.filter_fc": "global_gains.filters",
    "KSM_Global.spatial_fc": "global_gains.positions",
    "KSM_Global.kernel_fc": "global_gains.groups",
    "KSM_Local.conv": "local_gains.conv",
    "KSM_Local.norm": "local_gains.norm",
    "FBM.freq_weight_conv_list": "band_gains.convs",
}


def official_options(groups: int = 64) -> FDConv:
    """Returns the options of the authors' code: its order of the coefficients, and batch normalisation."""
    return replace(FDConv(groups), order="official", norm="batch")


def load_official(net: nn.Module, state: Mapping[str, Tensor], where: str = "the checkpoint") -> None:
    """Loads weights that the authors' code saved.

    Args:
        net: a network whose layers were converted with `official_options`; all other names are the checkpoint's.
        state: the weights by name: `layer1.0.conv2.dft_weight`, `layer1.0.conv2.KSM_Global.fc.weight`, ...
        where: what they come from, for the errors.

    Raises:
        UsageError: for weights that are missing, left over or of another shape, and for layers in another order.
    """
    layers = {name: layer for name, layer in net.named_modules() if isinstance(layer, FDConv2d)}
    for name, layer in layers.items():
        if layer.how.order != "official":
            raise UsageError(f"{name} has order={layer.how.order!r}; convert with official_options() for {where}")
    renamed = {}
    for name, value in state.items():
        for theirs, mine in _OFFICIAL.items():
            name = name.replace(theirs, mine)
        if ".global_gains." in f".{name}" and name.endswith("weight") and value.dim() == 4:
            value = value.flatten(1)  # their heads are 1x1 convolutions
        renamed[name] = value
    renamed |= {f"{name}.order".lstrip("."): layer.order for name, layer in layers.items()}
    weights.put(net, renamed, where)
