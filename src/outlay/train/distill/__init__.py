"""`outlay train distill`: an encoder-decoder student of the Mu architecture, learned from a decoder-only teacher.

Elfeki et al. 2025, "Return of the Encoder: Maximizing Parameter Efficiency for SLMs": below about 1B parameters an
encoder-decoder with two thirds of its layers in the encoder answers sooner and cheaper than a decoder of its size, and
forward KL to a larger decoder-only teacher, over aligned layouts, makes it as good.
"""

from outlay.train.distill.net import Mu, MuConfig
from outlay.train.distill.pairs import read_pairs
from outlay.train.distill.training import Distillation, Distilled, DistillRecipe, EngineTeacher, Pair

__all__ = ["DistillRecipe", "Distillation", "Distilled", "EngineTeacher", "Mu", "MuConfig", "Pair", "read_pairs"]
