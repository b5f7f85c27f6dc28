"""Networks that see: backbones and layers, each with its cost."""

from __future__ import annotations

from outlay.vision.cost import Cost, Metered, count
from outlay.vision.fold import fold
from outlay.vision.networks import Network, open_network, save_folder
from outlay.vision.profiler import EnergyModel, Profile, profile, profiles
from outlay.vision.vovnet import VoVNetModel, under_budget

__all__ = [
    "Cost", "EnergyModel", "Metered", "Network", "Profile", "VoVNetModel", "count", "fold", "open_network", "profile",
    "profiles", "save_folder", "under_budget",
]  # fmt: skip
