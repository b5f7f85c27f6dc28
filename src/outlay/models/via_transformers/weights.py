"""The weights of a network of `transformers`: its linear layers in our formats, and what a pass reads of them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from outlay import kernels
from outlay.models.build import Progress
from outlay.models.linear import Linear, NativeLinear, pack, weight_of


class PackedLinear(nn.Module):
    """A linear layer in one of our formats, in the place of torch's."""

    def __init__(self, linear: Linear) -> None:
        super().__init__()
        self.linear = linear

    @property
    def weight(self) -> Tensor:
        """The weight as floats [out, in], for code that multiplies with it itself: routers, mostly."""
        return weight_of(self.linear)

    def forward(self, x: Tensor) -> Tensor:
        """x [..., in] -> [..., out]"""
        return self.linear(x.reshape(-1, x.shape[-1])).view(*x.shape[:-1], -1)


def pack_linears(network: Any, format: str, device: torch.device, progress: Progress | None) -> None:
    """Puts the weights of all linear layers into a format, and every other into the dtype of activations.

    An LM head in 4 bits is held in 8.
    """
    lm_head = network.get_output_embeddings()
    found = [
        (module, name, child)
        for module in network.modules()
        for name, child in module.named_children()
        if type(child) is nn.Linear
    ]
    for done, (parent, name, child) in enumerate(found):
        is_head = child is lm_head
        kind = "int8" if is_head and format == "int4" else format
        bias = None if child.bias is None else child.bias.detach()
        packed = pack(child.weight.detach(), kind, bias, device=device, exact_output=is_head)
        setattr(parent, name, PackedLinear(packed))
        if progress is not None:
            progress("loading", done + 1, len(found))


@dataclass(frozen=True)
class Costs:
    """What a pass reads and multiplies."""

    fixed_bytes: int
    """Bytes of weights that every pass reads."""
    expert_bytes: int
    """Bytes of the weights of all experts."""
    row_bytes: int
    """Bytes of the tables that a row looks up."""
    experts: int
    """Experts in a layer; 0 if there are none."""
    experts_per_token: int
    """Experts that a row is sent to."""
    row_multiplies: int
    """Multiply-adds of a row's linear layers, without the LM head's."""
    lm_head_multiplies: int
    """Multiply-adds of a row's LM head."""
    runs_on: str
    """The code that computes it."""

    def pass_bytes(self, tokens: int) -> int:
        """Returns the bytes of weights that a pass over `tokens` rows reads, if no two rows share an expert."""
        experts = 0
        if self.experts:
            experts = self.expert_bytes * min(self.experts, tokens * self.experts_per_token) // self.experts
        return self.fixed_bytes + experts + tokens * self.row_bytes


def count_costs(network: Any, config: Any) -> Costs:
    """Returns the costs of a network, given its text's options."""
    experts = next((count for name in _EXPERTS if isinstance(count := getattr(config, name, None), int)), 0)
    chosen = next((count for name in _CHOSEN if isinstance(count := getattr(config, name, None), int)), experts)
    head, native = network.get_output_embeddings(), False
    fixed = in_experts = looked_up = row = expert_row = head_multiplies = 0
    for name, module in network.named_modules():
        if isinstance(module, nn.Embedding):
            looked_up += module.weight[0].nbytes
            continue
        own: list[Any] = [module.linear] if isinstance(module, PackedLinear) else list(module.parameters(recurse=False))
        native |= any(isinstance(part, NativeLinear) for part in own)
        for part in own:
            multiplies = _multiplies(part)
            if module is head:
                fixed, head_multiplies = fixed + part.nbytes, head_multiplies + multiplies
            elif experts and (".experts." in f"{name}." and ".shared" not in name):
                in_experts, expert_row = in_experts + part.nbytes, expert_row + multiplies
            else:
                fixed, row = fixed + part.nbytes, row + multiplies
    row += expert_row * min(chosen, experts) // experts if experts else 0
    products = f" with native {kernels.isa()} products" if native else ""
    return Costs(
        fixed, in_experts, looked_up, experts, min(chosen, experts), row, head_multiplies, "transformers" + products
    )


_EXPERTS = ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts")
_CHOSEN = ("num_experts_per_tok", "num_experts_per_token", "moe_topk", "moe_k", "top_k_experts")


def _multiplies(part: Linear | Tensor) -> int:
    if isinstance(part, Linear):
        return part.in_features * part.out_features
    return part.numel() if part.dim() > 1 else 0
