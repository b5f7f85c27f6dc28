"""A decoder whose layers are the modeling code of `transformers`, and whose attention and cache are ours."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NoReturn

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from outlay.errors import UsageError
from outlay.models.config import DecoderConfig
from outlay.models.decoder import Attend, Decoder, InputsEmbeds, Read, Resting, Watch
from outlay.models.via_transformers.attention import LayerCall, serving
from outlay.models.via_transformers.weights import Costs


@dataclass(frozen=True)
class LayerShape:
    """What one call of attention looks like, in a cache that is as wide as the widest of them."""

    num_kv_heads: int
    """Its heads of keys and values."""
    head_dim: int
    """Size of its queries and keys."""
    value_dim: int
    """Size of its values."""
    scale: float
    """Multiplies its scores."""


class _Given(nn.Module):
    """Stands in for a network's body: returns hidden states that are computed already."""

    hidden_states: Tensor

    def forward(self, *inputs: Any, **options: Any) -> Any:
        return _output_class()(last_hidden_state=self.hidden_states)


class TransformersDecoder(Decoder):
    """A network of `transformers`. A pass is one text of n rows for it, whose attention reads what our plan says.

    It has no layers of ours: what takes a decoder apart (drafts of the model itself, trained draft heads) refuses it.
    """

    code = "transformers"

    def __init__(
        self,
        network: Any,
        config: DecoderConfig,
        shapes: Sequence[LayerShape],
        sinks: Sequence[Tensor | None],
        costs: Costs,
        *,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        """Takes a network apart into its body and its LM head.

        Args:
            network: a causal language model of `transformers` whose attention is ours.
            config: its shape; `num_layers` counts its calls of attention.
            shapes: each call of attention in order, [num_layers].
            sinks: its attention sinks, [num_layers] or empty.
            costs: what its passes read and multiply.
            dtype: dtype of activations.
            device: where it runs.
        """
        self.config, self.dtype, self.device = config, dtype, device
        self.sinks = tuple(sinks)
        self.relative: Tensor | None = None
        self._shapes, self._costs = tuple(shapes), costs
        self._body, self._head, self._given = split(network)
        self._embed = network.get_input_embeddings()

    @torch.inference_mode()
    def last_hidden(
        self,
        tokens: Tensor,
        positions: Tensor,
        attend: Attend,
        inputs_embeds: InputsEmbeds | None = None,
        watch: Watch | None = None,
        read: Read | None = None,
        resting: Resting | None = None,
    ) -> Tensor:
        """As `Decoder.last_hidden`; after the final norm, which is part of the body. Nothing rests here."""
        inputs: dict[str, Tensor] = {"input_ids": tokens[None]}
        if inputs_embeds is not None:
            x = self.embeddings(tokens).clone()
            x[torch.tensor(inputs_embeds.rows, device=x.device)] = inputs_embeds.stacked(x)
            inputs = {"inputs_embeds": x[None]}
        layers = _Layers(self._shapes, self.config, attend)
        with serving(layers), self._watched(watch):
            out = self._body(**inputs, position_ids=positions[None], use_cache=False).last_hidden_state[0]
        assert layers.done == len(self._shapes), "the network called attention another number of times than before"
        return out

    @contextmanager
    def _watched(self, watch: Watch | None) -> Iterator[None]:
        """Calls `watch` as `Decoder.hidden` does, while the body runs."""
        if watch is None:
            yield
            return
        lists = [part for part in self._body.modules() if isinstance(part, nn.ModuleList)]
        layers = next((part for part in lists if len(part) == len(self._shapes)), None)
        if layers is None:
            raise UsageError(f"the hidden states between {self.config.architecture}'s layers cannot be read")

        def before(layer: nn.Module, args: tuple[Any, ...], options: dict[str, Any]) -> None:
            watch((args[0] if args else options["hidden_states"])[0])

        def after(layer: nn.Module, args: tuple[Any, ...], out: Any) -> None:
            watch((out[0] if isinstance(out, tuple) else out)[0])

        hooks = [layers[0].register_forward_pre_hook(before, with_kwargs=True)]
        hooks += [layer.register_forward_hook(after) for layer in layers]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()

    def embeddings(self, tokens: Tensor) -> Tensor:
        """As `Decoder.embeddings`; a scale that the body applies is not in them."""
        return self._embed(tokens)

    def hidden_states(self, x: Tensor) -> Tensor:
        """As `Decoder.hidden_states`: the body's output is what the LM head reads."""
        return x

    @torch.inference_mode()
    def logits(self, x: Tensor) -> Tensor:
        """As `Decoder.logits`, with the network's own scales and caps."""
        if not len(x):
            return x.new_empty((0, self.config.vocab_size), dtype=torch.float32)
        self._given.hidden_states = x[None]
        placeholder = torch.zeros((1, len(x)), dtype=torch.int64, device=x.device)
        return self._head(input_ids=placeholder, use_cache=False).logits[0].float()

    @property
    def layers(self) -> NoReturn:  # type: ignore[override]
        """Raises `UsageError`: the layers are not ours."""
        raise UsageError(
            f"{self.config.architecture} runs through transformers' code, which can't be taken apart; "
            "this needs one of the families that outlay runs natively (`outlay models`)"
        )

    embed = lm_head = final_norm = layers

    @property
    def runs_on(self) -> str:
        """As `Decoder.runs_on`."""
        return self._costs.runs_on

    def pass_weight_bytes(self, tokens: int) -> int:
        """As `Decoder.pass_weight_bytes`."""
        return self._costs.pass_bytes(tokens)

    def linear_flops(self, n_rows: int, n_lm_head_rows: int) -> int:
        """As `Decoder.linear_flops`."""
        return 2 * (n_rows * self._costs.row_multiplies + n_lm_head_rows * self._costs.lm_head_multiplies)


class _Layers:
    """The calls of attention of one pass, each fitted into the cache's shape."""

    def __init__(self, shapes: Sequence[LayerShape], config: DecoderConfig, attend: Attend) -> None:
        self._shapes, self._config, self._attend = shapes, config, attend
        self.done = 0

    def __call__(self, call: LayerCall) -> Tensor:
        layer, shape, config = self.done, self._shapes[self.done], self._config
        self.done += 1
        q = call.q if shape.scale == config.attention_scale else call.q * (shape.scale / config.attention_scale)
        k, v = (fit(x, config.num_kv_heads, config.head_dim) for x in (call.k, call.v))
        q = fit(q, config.num_heads, config.head_dim)
        return self._attend(layer, q, k, v)[..., : shape.value_dim]


def fit(x: Tensor, heads: int, width: int) -> Tensor:
    """Repeats heads and adds zeros, so that x [n, some heads, some width] becomes [n, heads, width].

    Zeros change no score, and fall off the output. Query heads share the repeated key heads as they shared those.
    """
    if x.shape[1] != heads:
        x = x.repeat_interleave(heads // x.shape[1], dim=1)
    return x if x.shape[2] == width else F.pad(x, (0, width - x.shape[2]))


def split(network: Any) -> tuple[Any, Any, _Given]:
    """Returns a network's body, the network with a stand-in for its body, and the stand-in."""
    from transformers import PreTrainedModel

    bodies = [name for name, child in network.named_children() if isinstance(child, PreTrainedModel)]
    name = network.base_model_prefix if network.base_model_prefix in network._modules else bodies[0]
    given, head = _Given(), copy.copy(network)
    head._modules = dict(network._modules) | {name: given}
    return network._modules[name], head, given


def _output_class() -> Any:
    from transformers.modeling_outputs import BaseModelOutputWithPast

    class Output(BaseModelOutputWithPast):
        """What any body returns; the parts that only some have (losses of routers, states) are None."""

        def __getattr__(self, name: str) -> None:
            return None

    return Output
