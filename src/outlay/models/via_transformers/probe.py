"""Examines a network: what each of its calls of attention looks like, and whether attention is its only memory.

The network reads two short texts. Each call of attention shows its shape, scale, sliding window and sinks. Then the
rows of both texts, which share a beginning, are read as one tree in a mixed order: if the logits are those that
`transformers` computes for each text alone, rows meet in attention only.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from outlay.errors import UsageError
from outlay.models.config import DecoderConfig, token_ids
from outlay.models.via_transformers.attention import NAME, LayerCall, MaskFunction, mask_function, serving
from outlay.models.via_transformers.decoder import LayerShape, TransformersDecoder
from outlay.models.via_transformers.families import other_memory
from outlay.models.via_transformers.weights import Costs

LENGTH, SHARED = 7, 3  # tokens of each text, and of their common beginning
LONGEST = 1 << 20  # positions up to which masks are looked at
_POSITIONS = ("max_position_embeddings", "n_positions", "max_seq_len", "max_sequence_length", "n_ctx", "seq_length")


class Found(NamedTuple):
    """What the calls of attention of one pass showed."""

    calls: list[LayerCall]
    vocab_size: int


class Window(NamedTuple):
    """The keys that a call of attention lets a query see."""

    window: int | None
    """As in `DecoderConfig.windows`."""
    context: int
    """Up to how many positions that is so."""


def examine(network: Any, options: Any, costs: Costs, dtype: torch.dtype, device: torch.device) -> TransformersDecoder:
    """Returns the decoder of a network whose attention is ours.

    Args:
        network: the network.
        options: its text's options.
        costs: what its passes read and multiply.
        dtype: dtype of activations.
        device: where it runs.

    Raises:
        UsageError: if attention is not its only memory, or not such that the token tree can stand in for it.
    """
    family = options.model_type
    texts = _texts(options.vocab_size, device)
    try:
        found = _first_pass(network, texts[0])
        config = _config(options, found)
        shapes = [LayerShape(c.k.shape[1], c.q.shape[2], c.v.shape[2], c.scale) for c in found.calls]
        decoder = TransformersDecoder(network, config, shapes, _sinks(found.calls), costs, dtype=dtype, device=device)
        expected = _alone(network, texts)
        got = _as_a_tree(decoder, texts)
    except UsageError:
        raise
    except Exception as error:
        raise UsageError(
            f"{family} does not run through transformers' attention interface: {type(error).__name__}: {error}"
        ) from error
    if not _alike(got, expected, dtype, costs):
        raise other_memory(family, "or reads positions in its own way")
    return decoder


def _texts(vocab_size: int, device: torch.device) -> Tensor:
    """Returns two texts that begin alike, int64 [2, LENGTH]."""
    texts = (torch.arange(2 * LENGTH, device=device).view(2, LENGTH) * 37 + 11) % vocab_size
    texts[1, :SHARED] = texts[0, :SHARED]
    return texts


def _first_pass(network: Any, text: Tensor) -> Found:
    """Has the network read one text, and returns its calls of attention."""
    calls: list[LayerCall] = []

    def serve(call: LayerCall) -> Tensor:
        calls.append(call)
        return call.q.new_zeros((*call.q.shape[:2], call.v.shape[2]))

    positions = torch.arange(LENGTH, device=text.device)
    with torch.inference_mode(), serving(serve, with_masks=True):
        logits = network(input_ids=text[None], position_ids=positions[None], use_cache=False).logits
    if not calls:
        raise own_attention(network.config.model_type)
    return Found(calls, logits.shape[-1])


def own_attention(family: str) -> UsageError:
    """Returns the refusal of a family that does without the attention interface."""
    return UsageError(
        f"{family} computes attention in its own code, not through transformers' attention interface, so outlay cannot "
        "run it"
    )


def _config(options: Any, found: Found) -> DecoderConfig:
    calls, family = found.calls, options.model_type
    heads = {call.q.shape[1] for call in calls}
    kv_heads = max(call.k.shape[1] for call in calls)
    softcaps = {call.options.get("softcap") or None for call in calls}
    if len(heads) > 1 or any(kv_heads % call.k.shape[1] for call in calls) or max(heads) % kv_heads:
        raise UsageError(f"{family} has layers with different numbers of attention heads, which outlay does not run")
    if len(softcaps) > 1:
        raise UsageError(f"{family} caps the scores of its layers differently, which outlay does not run")
    context = _context(options)
    windows = [_window(call, layer, options, context) for layer, call in enumerate(calls)]
    return DecoderConfig(
        architecture=family,
        vocab_size=found.vocab_size,
        hidden_size=options.hidden_size,
        num_layers=len(calls),
        num_heads=max(heads),
        num_kv_heads=kv_heads,
        head_dim=max(max(call.q.shape[2], call.v.shape[2]) for call in calls),
        intermediate_size=getattr(options, "intermediate_size", None) or 4 * options.hidden_size,
        max_positions=min(window.context for window in windows),
        windows=tuple(window.window for window in windows),
        attention_scale=calls[0].scale,
        attention_softcap=softcaps.pop(),
        eos_token_ids=token_ids(getattr(options, "eos_token_id", None)),
        bos_token_id=next(iter(token_ids(getattr(options, "bos_token_id", None))), None),
    )


def _context(options: Any) -> int:
    """Returns the longest context. Frequencies that depend on the length of the text end it where they change."""
    context = next((value for name in _POSITIONS if isinstance(value := getattr(options, name, None), int)), 2048)
    rope = getattr(options, "rope_parameters", None) or {}
    for kind in [rope, *(part for part in rope.values() if isinstance(part, dict))]:
        if kind.get("rope_type") == "longrope":
            original = kind.get("original_max_position_embeddings") or getattr(
                options, "original_max_position_embeddings", None
            )
            context = min(context, original or context)
    return context


def _sinks(calls: Sequence[LayerCall]) -> list[Tensor | None]:
    """Returns the attention sinks of each call, float32 [num_heads]; [] if there are none."""
    sinks = [call.options.get("s_aux") for call in calls]
    if not any(sink is not None for sink in sinks):
        return []
    return [None if sink is None else sink.detach().float().flatten() for sink in sinks]


def _window(call: LayerCall, layer: int, options: Any, context: int) -> Window:
    """Returns the keys that a call lets its queries see: as its mask tells, else as its arguments and options do."""
    family = options.model_type
    if call.mask is not None:
        function = mask_function(call.mask)
        if function is None:
            raise UsageError(f"{family} hides keys by masks of its own, which outlay cannot follow")
        return window_of(function, context, family, call.mask.device)
    kinds = getattr(options, "layer_types", None) or ()
    window = call.options.get("sliding_window")
    if window is None and layer < len(kinds) and kinds[layer] == "sliding_attention":
        window = options.sliding_window
    return Window(window, context)


def window_of(function: MaskFunction, context: int, family: str, device: torch.device) -> Window:
    """Returns the keys that a mask function shows.

    A mask that is neither causal nor a sliding window (attention in chunks) holds as far as it is causal.

    Raises:
        UsageError: if a query sees keys after it, or not all keys of a short text.
    """
    span = min(context, LONGEST)
    places = torch.arange(span, device=device)
    if bool(function(0, 0, places[:1], places[1:2]).any()):
        raise UsageError(f"{family} reads in both directions; outlay runs models that write from left to right")

    def seen(query: int) -> Tensor:
        return function(0, 0, torch.tensor(query, device=device), places).expand(span)

    first = function(0, 0, places, torch.tensor(0, device=device)).expand(span)  # who sees the first key
    window = span if bool(first.all()) else int(first.logical_not().nonzero()[0])
    probes = {0, 1, window - 1, window, 3 * window // 2, span // 2, span - 1} & set(range(span))

    def holds(limit: int | None, query: int) -> bool:
        shown = places <= query
        return torch.equal(seen(query), shown if limit is None else shown & (places > query - limit))

    if window == span and all(holds(None, query) for query in probes):
        return Window(None, context if span == context else span)
    if all(holds(window, query) for query in probes):
        return Window(window, context)
    if window > 1 and all(holds(None, query) for query in probes if query < window):
        return Window(None, window)
    raise UsageError(f"{family} hides keys in a way that is neither causal nor a sliding window")


def _alone(network: Any, texts: Tensor) -> Tensor:
    """Returns the logits of each text read alone with the attention of `transformers`, [2, LENGTH, vocab]."""
    network.set_attn_implementation("eager")
    try:
        with torch.inference_mode():
            return torch.cat([network(input_ids=text[None], use_cache=False).logits for text in texts]).float()
    finally:
        network.set_attn_implementation(NAME)


def _as_a_tree(decoder: TransformersDecoder, texts: Tensor) -> Tensor:
    """Returns the same logits, computed by two passes: the common beginning, then both ends row by row in turn."""
    attend = _TreeAttention(decoder)
    start = torch.arange(SHARED, device=texts.device)
    beginning = decoder.forward(texts[0, :SHARED], start, attend)

    order = [(text, place) for place in range(SHARED, LENGTH) for text in (1, 0)]
    which, places = (torch.tensor(part, device=texts.device) for part in zip(*order, strict=True))
    attend.see(which, places)
    ends = decoder.forward(texts[which, places], places, attend)
    logits = torch.stack([torch.cat([beginning, ends[which == text]]) for text in (0, 1)])
    return logits


class _TreeAttention:
    """The plainest attention over the tree of the two texts."""

    def __init__(self, decoder: TransformersDecoder) -> None:
        self._config, self._sinks = decoder.config, decoder.sinks
        self._kept: dict[int, tuple[Tensor, Tensor]] = {}
        self._visible = torch.ones(SHARED, SHARED, dtype=torch.bool, device=decoder.device).tril()

    def see(self, which: Tensor, places: Tensor) -> None:
        """Makes rows see the common beginning, and their own text before them: both int64 [rows]."""
        mine = (which[:, None] == which) & (places[:, None] >= places)
        self._visible = torch.cat([mine.new_ones(len(which), SHARED), mine], dim=1)

    def __call__(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        if layer in self._kept:
            k, v = (torch.cat(pair) for pair in zip(self._kept[layer], (k, v), strict=True))
        self._kept[layer] = k, v
        config, group = self._config, self._config.num_heads // self._config.num_kv_heads
        keys, values = (x.float().repeat_interleave(group, dim=1) for x in (k, v))
        scores = torch.einsum("qhd,khd->hqk", q.float(), keys) * config.attention_scale
        if config.attention_softcap is not None:
            scores = torch.tanh(scores / config.attention_softcap) * config.attention_softcap
        visible = self._visible
        if config.windows[layer] is not None:
            visible = visible & self._near(config.windows[layer])
        scores = scores.masked_fill(~visible, -torch.inf)
        out = torch.einsum("hqk,khd->qhd", scores.softmax(-1), values)
        sinks = self._sinks[layer] if self._sinks else None
        if sinks is not None:
            out = out * torch.sigmoid(scores.logsumexp(-1).T - sinks)[..., None]
        return out.to(q.dtype)

    def _near(self, window: int | None) -> Tensor:
        """Returns which keys lie within the window of which queries, as they see them: their places follow."""
        assert window is not None
        behind = self._visible.flip(1).cumsum(1).flip(1)  # how many seen keys lie from this one on
        return behind <= window


def _alike(got: Tensor, expected: Tensor, dtype: torch.dtype, costs: Costs) -> bool:
    exact = dtype == torch.float32 and "native" not in costs.runs_on
    difference = (got - expected).norm() / expected.norm()
    return bool(difference < (1e-3 if exact else 0.05))
