"""Networks that see: backbones and layers, each with its cost."""

from __future__ import annotations

from outlay.vision.cost import Cost, Metered, count
from outlay.vision.fdconv import FDConv, FDConv2d, convert_fdconv, freeze_fdconv
from outlay.vision.fold import fold
from outlay.vision.networks import Network, open_network, save_folder
from outlay.vision.profiler import EnergyModel, Profile, profile, profiles
from outlay.vision.vovnet import VoVNetModel, under_budget

__all__ = [
    "Cost",
    "EnergyModel",
    "FDConv",
    "FDConv2d",
    "Metered",
    "Network",
    "Profile",
    "VoVNetModel",
    "convert_fdconv",
    "count",
    "fold",
    "freeze_fdconv",
    "open_network",
    "profile",
    "profiles",
    "save_folder",
    "under_budget",
]  # fmt: skip
