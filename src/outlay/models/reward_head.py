"""What a reward model has in place of an LM head: linear layers that make numbers of a hidden state.

The first layer runs where another model's LM head does, so a pass gives its outputs as "logits"; the rest is here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import PurePath
from typing import Any

import torch
from torch import Tensor

FORM_KEY = "outlay_reward_form"
"""In `config.json`: the form of a reward model that neither its head nor its name tells."""
LAYERS = (("score.0", "score.2"), ("v_head.summary",), ("score",))
"""The layers of each head that we know, by their names in a checkpoint: two layers with a ReLU between them (Qwen's
reward models), a value head, and the head of `transformers` for sequence classification."""


OF_HEAD = {"v_head.summary": "skywork", "score": "classifier"}
OF_NAME = {"math-shepherd": "math-shepherd", "rlhflow": "rlhflow", "llama3.1-8b": "rlhflow"}
"""Parts of the names of reward models that have no head of their own; the names say `prm` besides."""


@dataclass(frozen=True, eq=False)
class RewardHead:
    """A head of one layer or two.

    Args:
        layers: The layers' names in the checkpoint.
        outputs: How many numbers it gives.
        weight: The second layer's weight, float32 [outputs, hidden_size]; None if there is only one layer.
        bias: The second layer's bias, float32 [outputs].
    """

    layers: tuple[str, ...]
    outputs: int
    weight: Tensor | None = None
    bias: Tensor | None = None

    def __call__(self, first: Tensor) -> Tensor:
        """Returns the head's outputs, float32 [n, outputs], from those of its first layer, [n, width]."""
        if self.weight is None:
            return first
        return torch.nn.functional.linear(first.float().relu(), self.weight, self.bias)


def find_head(
    shape: Callable[[str], tuple[int, ...] | None], floats: Callable[[str], Tensor], device: torch.device
) -> RewardHead | None:
    """Returns the head that a checkpoint has; None for a language model.

    Args:
        shape: Returns the shape of a tensor, None if the checkpoint lacks it.
        floats: Returns a tensor.
        device: Where the model runs.
    """
    for layers in LAYERS:
        found = shape(f"{layers[-1]}.weight")
        if found is None or shape(f"{layers[0]}.weight") is None:
            continue
        if len(layers) == 1:
            return RewardHead(layers, found[0])
        weight, bias = (floats(f"{layers[1]}.{kind}").to(device, torch.float32) for kind in ("weight", "bias"))
        return RewardHead(layers, found[0], weight, bias)
    return None


def form_name(source: str, raw: Mapping[str, Any], head: RewardHead | None) -> str | None:
    """Returns the form of a reward model, as `outlay.rewards.forms` names it; None for a language model.

    Args:
        source: The name or path that the model was loaded by.
        raw: The content of its `config.json`, in which `FORM_KEY` may say it.
        head: Its head.
    """
    if raw.get(FORM_KEY):
        return str(raw[FORM_KEY])
    if head is not None:
        if len(head.layers) == 2:
            return "qwen-prm" if head.outputs == 2 else "qwen-rm"
        return OF_HEAD[head.layers[-1]]
    name = "/".join(PurePath(source).parts[-2:]).lower()  # the model and who made it
    return next((form for part, form in OF_NAME.items() if part in name and "prm" in name), None)
