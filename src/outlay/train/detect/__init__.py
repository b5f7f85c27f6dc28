"""DEIMv2 trained: matching, losses, denoising, changed pictures, and the loop around them."""

from __future__ import annotations

from outlay.train.detect.recipe import AUGMENTS, DetectorRecipe, recipe_for
from outlay.train.detect.training import Trained, Training, with_classes

__all__ = ["AUGMENTS", "DetectorRecipe", "Trained", "Training", "recipe_for", "with_classes"]
