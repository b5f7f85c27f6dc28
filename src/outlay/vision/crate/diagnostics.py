"""What each layer of a network does to its tokens: coding rate, rate reduction, sparsity (the released `vis_utils`).

The coding rate of a layer is R^c of the coordinates that its heads read, each token scaled to unit length in each head;
the rate reduction is R - R^c, with R the rate of the layer's input tokens, scaled likewise. Any network has both.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

import torch
from torch import Tensor, nn

from outlay.errors import UsageError
from outlay.models.config import DecoderConfig
from outlay.models.decoder import Attend, Decoder
from outlay.tree.attention import attend_reference, beside_sinks
from outlay.vision.crate.blocks import SubspaceAttention, TheoryBlock
from outlay.vision.crate.rates import rate, subspace_rate

EPS2 = 0.01  # of the released measure


@dataclass(frozen=True)
class LayerRates:
    """What a layer does, over a batch of inputs."""

    layer: str
    """The layer's name."""

    rate: float
    """Nats of R, of the tokens that the layer reads: the mean over the batch."""

    coding_rate: float
    """Nats of R^c, of the heads' coordinates: the mean."""

    spread: float
    """The standard deviation of R^c over the batch; 0 for one input."""

    nonzero: float
    """Share of the layer's outputs that are not 0."""

    @property
    def reduction(self) -> float:
        """The rate reduction R - R^c."""
        return self.rate - self.coding_rate

    def as_dict(self) -> dict[str, str | float]:
        """Returns all of it by name."""
        return {**vars(self), "reduction": self.reduction}


@dataclass(frozen=True)
class Heads:
    """Layers whose output is split among heads."""

    pattern: str
    """Their names, with * for any text: "blocks.*.attn.qkv"."""

    count: int
    """The heads of each."""

    part: str = ""
    """Of an output that holds queries, keys and values: "q", "k" or "v"."""

    def of(self, out: Tensor) -> Tensor:
        """Returns an output [batch, n, width] as coordinates [batch, heads, n, width of a head].

        Raises:
            UsageError: Where it can't be split.
        """
        if out.ndim != 3 or out.shape[-1] % (self.count * (3 if self.part else 1)):
            raise UsageError(
                f"layers {self.pattern} write {'x'.join(map(str, out.shape))}, which {self.count} heads don't divide"
            )
        if self.part:
            out = out.chunk(3, -1)["qkv".index(self.part)]
        return out.unflatten(-1, (self.count, -1)).transpose(1, 2)


def parse_heads(text: str) -> Heads:
    """Returns the heads that are written PATTERN=COUNT or PATTERN=COUNT/q. Raises `UsageError` for anything else."""
    found = re.fullmatch(r"([^=]+)=([1-9]\d*)(?:/([qkv]))?", text)
    if found is None:
        raise UsageError(f"heads are given as PATTERN=COUNT, or PATTERN=COUNT/v of three parts, not {text!r}")
    return Heads(found[1], int(found[2]), found[3] or "")


def diagnose(network: nn.Module, inputs: Tensor, heads: Heads | None = None, eps2: float = EPS2) -> list[LayerRates]:
    """Measures every layer of a torch network.

    Args:
        network: CRATE's classifier, autoencoder or language model, or any other.
        inputs: What it reads, [batch, ...]; each of the batch is measured by itself.
        heads: Which layers write what heads read; None: the subspaces of CRATE.
        eps2: The squared quantisation error of both rates.

    Returns:
        The layers in the order in which they ran.

    Raises:
        UsageError: For a network without such layers.
    """
    projections = _projections(network, heads)
    blocks = {_block_of(name, network): split for name, split in projections.items()}
    read: dict[str, Tensor] = {}
    split_of: dict[str, Tensor] = {}
    written: dict[str, Tensor] = {}

    def on_block(name: str) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], None]:
        def hook(module: nn.Module, args: tuple[Tensor, ...], out: Tensor) -> None:
            read[name], written[name] = args[0], out[0] if isinstance(out, tuple) else out

        return hook

    def on_projection(name: str, split: Heads) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], None]:
        def hook(module: nn.Module, args: tuple[Tensor, ...], out: Tensor) -> None:
            split_of[name] = split.of(out)

        return hook

    hooks = []
    for name, split in projections.items():
        block = _block_of(name, network)
        hooks.append(network.get_submodule(name).register_forward_hook(on_projection(block, split)))
        hooks.append(network.get_submodule(block).register_forward_hook(on_block(block)))
    was_training = network.training
    try:
        with torch.no_grad():
            network.eval()(inputs)
    finally:
        network.train(was_training)
        for hook in hooks:
            hook.remove()
    missed = [name for name in blocks if name not in read or name not in split_of]
    if missed:
        raise UsageError(f"the network ran without its layer {missed[0]}, which can't be measured then")
    return [layer_rates(name, read[name], split_of[name], written[name], eps2) for name in split_of]


def layer_rates(name: str, read: Tensor, w: Tensor, written: Tensor, eps2: float = EPS2) -> LayerRates:
    """Measures a layer.

    Args:
        name: The layer's name.
        read: The tokens that it reads, [batch, n, dim].
        w: Their coordinates in each head, [batch, heads, n, width].
        written: What it gives to the next layer.
        eps2: The squared quantisation error.
    """
    coded = subspace_rate(_unit(w), eps2)
    spread = float(coded.std()) if len(coded) > 1 else 0.0
    whole = rate(_unit(read), eps2).mean()
    return LayerRates(name, float(whole), float(coded.mean()), spread, float((written != 0).double().mean()))


def _unit(x: Tensor) -> Tensor:
    """Returns the tokens [..., width] at unit length, in float64: the determinants need it; a token of zeros stays."""
    x = x.double()
    return x / torch.linalg.vector_norm(x, dim=-1, keepdim=True).clamp_min(1e-30)


def _projections(network: nn.Module, heads: Heads | None) -> dict[str, Heads]:
    """Returns the layers that write coordinates, each with its heads."""
    if heads is not None:
        names = [name for name, _ in network.named_modules() if fnmatchcase(name, heads.pattern)]
        if not names:
            raise UsageError(f"no layer of the network is called {heads.pattern}; give a pattern of its layers' names")
        return dict.fromkeys(names, heads)
    found = {
        f"{name}.qkv".lstrip("."): Heads(name, module.heads)
        for name, module in network.named_modules()
        if isinstance(module, SubspaceAttention | TheoryBlock)
    }
    if not found:
        raise UsageError(
            f"{type(network).__name__} is not CRATE: say which of its layers write heads, and how many, such as "
            "blocks.*.attn.qkv=12/v"
        )
    return found


def _block_of(name: str, network: nn.Module) -> str:
    """Returns the layer that a projection belongs to: the nearest of its owners that has a number, and that runs.

    What runs is no plain list of modules: in CRATE `transformer.layers.3`, not the parts 0 and 1 of it.
    """
    parts = name.split(".")
    numbered = [place for place, part in enumerate(parts) if part.isdecimal()]
    for place in numbered:
        owner = ".".join(parts[: place + 1])
        if type(network.get_submodule(owner)).forward is not nn.ModuleList.forward:
            return owner
    return name


# Decoders that the engine runs


def diagnose_decoder(decoder: Decoder, texts: Sequence[Sequence[int]], eps2: float = EPS2) -> list[LayerRates]:
    """Measures every layer of a decoder that `load_model` loaded; the heads' values are what is coded.

    Args:
        decoder: The network.
        texts: Tokens, [batch] of n each.
        eps2: The squared quantisation error.

    Raises:
        UsageError: For texts of several lengths, or longer than the context.
    """
    lengths = {len(text) for text in texts}
    if len(lengths) != 1 or not 0 < min(lengths) <= decoder.config.max_positions:
        raise UsageError(
            f"texts have one length, from 1 to {decoder.config.max_positions} tokens, not {sorted(lengths)}"
        )
    passes = [_watched(decoder, text) for text in texts]
    found = []
    for layer in range(decoder.config.num_layers):
        read, written = (torch.stack([states[layer + later] for states, _ in passes]) for later in (0, 1))
        w = torch.stack([values[layer].transpose(0, 1) for _, values in passes])
        found.append(layer_rates(f"layer {layer}", read, w, written, eps2))
    return found


def _watched(decoder: Decoder, text: Sequence[int]) -> tuple[list[Tensor], list[Tensor]]:
    """Returns what each layer reads and writes for one text, [n, hidden_size], and its values, [n, heads, width]."""
    states: list[Tensor] = []
    values: list[Tensor] = []
    tokens, positions = torch.tensor(text, device=decoder.device), torch.arange(len(text), device=decoder.device)
    attend = _reading(decoder, len(text), values)
    decoder.last_hidden(tokens, positions, attend, watch=lambda x: states.append(x.clone()))
    return states, values


def _reading(decoder: Decoder, n: int, coded: list[Tensor]) -> Attend:
    """Returns the attention of one text of n tokens, which adds each layer's values [n, heads, width] to `coded`."""
    config, masks = decoder.config, {window: _bias(decoder.config, window, n) for window in decoder.config.windows}

    def attend(layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        coded.append(v.clone())
        group = config.num_heads // config.num_kv_heads
        k, v = (part.transpose(0, 1).repeat_interleave(group, 0) for part in (k, v))
        bias = masks[config.windows[layer]].to(q.device)
        out, lse = attend_reference(q.transpose(0, 1), k, v, bias, config.attention_scale, config.attention_softcap)
        out, lse = out.transpose(0, 1), lse.T
        sinks = decoder.sinks[layer] if decoder.sinks else None
        return out if sinks is None else beside_sinks(out, lse, sinks)

    return attend


def _bias(config: DecoderConfig, window: int | None, n: int) -> Tensor:
    """Returns what is added to scores [n, n]: -inf where a row does not see a key."""
    rows, keys = torch.arange(n)[:, None], torch.arange(n)
    seen = keys <= rows
    if config.diffusion is not None:
        block = config.diffusion.block or n
        seen = keys // block <= rows // block
    if window is not None:
        seen &= keys > rows - window
    return torch.zeros(n, n).masked_fill(~seen, -torch.inf)


def passages(tokens: Sequence[int], length: int, count: int) -> list[list[int]]:
    """Returns up to `count` passages of `length` tokens, spread evenly over a text; all of a short one."""
    if len(tokens) <= length:
        return [list(tokens)]
    count = min(count, len(tokens) // length)
    starts = [place * (len(tokens) - length) // max(1, count - 1) for place in range(count)]
    return [list(tokens[start : start + length]) for start in starts]
