"""A draft model made of the target without training: some layers skipped, the weights of others in 4 bits.

Skipping layers is self-speculative decoding (Draft & Verify, Zhang et al. 2024): the residual stream bridges a skipped
layer. The choice of layers sets both the acceptance rate and the cost of drafting.
"""

from __future__ import annotations

from dataclasses import replace

from torch import Tensor

from outlay.errors import UsageError
from outlay.models.decoder import Decoder, Layer
from outlay.models.linear import FloatLinear, Linear, NativeLinear, pack
from outlay.models.load import Model
from outlay.models.mlp import Mlp

EXAMPLE = "self:skip=10-19, self:int4 or self:int4,skip=4+6-9"


def layer_skip_draft(model: Model, options: str) -> Model:
    """Returns a draft model made of `model`, sharing its other weights.

    Args:
        model: the target.
        options: "int4", "skip" (the middle half of the layers), "skip=4+6-9", or several with commas between.

    Raises:
        UsageError: if the options are of another form, or leave no layer.
    """
    kept, narrow = list(range(len(model.decoder.layers))), False
    for option in filter(None, options.split(",")):
        name, _, value = option.strip().partition("=")
        if name == "int4" and not value:
            narrow = True
        elif name == "skip":
            kept = [layer for layer in kept if layer not in skipped_layers(value, len(kept))]
        else:
            raise UsageError(f"a draft of the model itself is written as {EXAMPLE}, not self:{options}")
    if not kept:
        raise UsageError(f"self:{options} leaves no layer of {model.name}")
    if not options:
        raise UsageError(f"say what to leave out of the model: {EXAMPLE}")
    layers = [model.decoder.layers[layer] for layer in kept]
    decoder = _with_layers(model.decoder, [_narrowed(layer) for layer in layers] if narrow else layers, kept)
    return replace(
        model, decoder=decoder, name=f"{model.name} ({options})", fingerprint=f"{model.fingerprint}:{options}"
    )


def skipped_layers(text: str, count: int) -> set[int]:
    """Returns the layers that a text such as "4+6-9" names, or the middle half for "".

    Raises:
        UsageError: if the text is of another form, or names a layer from `count` on.
    """
    if not text:
        kept = max(1, count // 4)  # some layers stay
        return set(range(kept, max(kept + 1, count - kept)))
    found: set[int] = set()
    for part in text.split("+"):
        first, _, last = part.partition("-")
        if not first.isdecimal() or not (last or first).isdecimal() or int(last or first) >= count:
            raise UsageError(f"skip takes layers from 0 to {count - 1}, as in {EXAMPLE}, not {text!r}")
        found |= set(range(int(first), int(last or first) + 1))
    return found


def _with_layers(decoder: Decoder, layers: list[Layer], kept: list[int]) -> Decoder:
    """Returns a decoder of the layers `kept`, given as `layers`, sharing everything else with `decoder`."""
    windows = tuple(decoder.config.windows[layer] for layer in kept)
    ropes = tuple(decoder.config.ropes[layer] for layer in kept)
    return Decoder(
        replace(decoder.config, num_layers=len(layers), windows=windows, layer_ropes=ropes),
        layers,
        decoder.embed,
        decoder.lm_head,
        final_norm=decoder.final_norm,
        positions=decoder.positions,
        embed_norm=decoder.embed_norm,
        relative=decoder.relative,
        project_in=decoder.project_in,
        project_out=decoder.project_out,
        dtype=decoder.dtype,
        device=decoder.device,
    )


def _narrowed(layer: Layer) -> Layer:
    """Returns a layer with its weights in 4 bits."""
    mlp = layer.mlp
    if isinstance(mlp, Mlp):
        mlp = Mlp(_int4(mlp.gate_up), _int4(mlp.down), mlp.activation_name, mlp.gated)
    cross = layer.cross
    if cross is not None:
        cross = replace(cross, q=_int4(cross.q), kv=_int4(cross.kv), out=_int4(cross.out))
    return replace(layer, qkv=_int4(layer.qkv), out=_int4(layer.out), mlp=mlp, cross=cross)


def _int4(linear: Linear) -> Linear:
    weight: Tensor
    if isinstance(linear, NativeLinear):
        if linear.format == "int4":
            return linear
        weight, bias = linear.packed.dequantize(), linear.bias
        return pack(weight, "int4", bias)
    if isinstance(linear, FloatLinear):
        return pack(linear.weight.float(), "int4", linear.bias, device=linear.weight.device)
    return linear
