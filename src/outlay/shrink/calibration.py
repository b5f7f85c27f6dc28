"""Calibration: what the linear layers of a model read, layer by layer, with one layer in memory at a time.

The second moments of a layer's inputs are sums in float64 over all tokens, the first of each sequence included: its
keys draw much of the attention, and its hidden states are a hundred times as large as others. Layers that read the same
input share its moments.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from outlay.errors import UsageError
from outlay.lm import LM, load
from outlay.models import hub
from outlay.models.build import Builder
from outlay.models.config import DecoderConfig
from outlay.models.decoder import Decoder, Layer
from outlay.models.experts import ExpertMlp
from outlay.models.linear import FloatLinear, Linear
from outlay.models.load import Opened
from outlay.models.mlp import Mlp
from outlay.progress import ShowProgress, silent
from outlay.shrink.block import Batch, Block
from outlay.shrink.shrinker import Moment
from outlay.train.corpus import Corpus
from outlay.train.frozen import require_llama
from outlay.tree.attention import attend

LONGEST = 1024  # tokens of a sequence that is cut from a file
TOGETHER = 2048  # tokens that a layer computes at once


def own_text(source: str | Path, opened: Opened, tokens: int, seed: int, progress: ShowProgress) -> list[list[int]]:
    """Returns sequences that the model wrote itself, as its users would see them: prompts with its answers.

    They are kept in the user's cache, so that the next run finds them.

    Args:
        source: The model, as for `outlay.load`.
        opened: The same model.
        tokens: How many, prompts included.
        seed: Seed of all draws.
        progress: Told how far it is.
    """
    lm: LM = load(source, prefix_cache=False)
    folder = hub.cache_folder().parent / "calibration" / f"{opened.fingerprint[:16]}-{seed}"
    corpus = Corpus(folder, lm.model, seed)
    try:
        while (total := sum(len(passage.tokens) for passage in corpus.passages())) < tokens:
            progress("writing text", total, tokens)
            corpus.grow(lm, corpus.tokens + 1, None, silent)
    finally:
        lm.engine.close()
    return _first([passage.tokens.tolist() for passage in corpus.passages()], tokens)


def text_of(file: Path, opened: Opened, tokens: int) -> list[list[int]]:
    """Returns sequences of a text, spread evenly over it, each beginning as the model's texts begin.

    Args:
        file: The text.
        opened: The model.
        tokens: How many.

    Raises:
        UsageError: There is no such text, or it is too short.
    """
    if not file.is_file():
        raise UsageError(f"there is no text {file} to calibrate with")
    ids = opened.tokenizer.encode(file.read_text(encoding="utf-8", errors="replace"))
    prefix = opened.tokenizer.encode_prompt("")
    size = min(LONGEST, opened.config.max_positions) - len(prefix)
    if len(ids) < 2:
        raise UsageError(f"{file} has {len(ids)} tokens, which is no text to calibrate with")
    pieces = [ids[at : at + size] for at in range(0, len(ids), size)]
    wanted = min(len(pieces), -(-tokens // (size + len(prefix))))
    picked = [pieces[index * len(pieces) // wanted] for index in range(wanted)]
    return _first([[*prefix, *piece] for piece in picked], tokens)


def _first(sequences: Sequence[list[int]], tokens: int) -> list[list[int]]:
    """Returns the first sequences, the last one cut, up to a number of tokens in all."""
    found, left = [], tokens
    for sequence in sequences:
        if left > 0:
            found.append(sequence[:left])
            left -= len(found[-1])
    return found


class Hidden:
    """The residual streams of all calibration sequences in front of one layer, and what that layer's parts read."""

    def __init__(self, builder: Builder, sequences: Sequence[Sequence[int]]) -> None:
        """Looks up the embeddings of the sequences' tokens."""
        self._builder, self._config = builder, builder.config
        self._embed, self._project, self._positions = builder.embedding(), builder.project_in(), builder.positions()
        self._chunks = _chunks([len(sequence) for sequence in sequences])
        self.streams: list[Tensor] = []
        """Hidden states in front of the next layer, [tokens, hidden_size] each, of sequences that go together."""
        begin = 0
        decoder = self._decoder(0, [])
        for lengths in self._chunks:
            tokens = torch.tensor([token for ids in sequences[begin : begin + len(lengths)] for token in ids])
            begin += len(lengths)
            self.streams.append(decoder.inputs(tokens, _positions(lengths)))

    @property
    def tokens(self) -> int:
        """How many there are."""
        return sum(len(stream) for stream in self.streams)

    def block(
        self,
        index: int,
        layer: Layer,
        after: Sequence[Tensor],
        modules: Mapping[str, Sequence[str]],
        floats: Mapping[str, Tensor],
        configs: Mapping[str, Mapping[str, Any]],
    ) -> Block:
        """Returns a layer with what it reads and gives, for a method that tunes it.

        Args:
            index: The layer's index.
            layer: Its weights.
            after: The residual streams after it.
            modules: The modules that read each of its inputs, as `Block` takes them.
            floats: The weights of modules that were not shrunk.
            configs: What the form says of those that were.
        """
        require_llama(self._config)
        batches = [
            Batch(x.clone().float(), y.clone().float(), lengths)
            for x, y, lengths in zip(self.streams, after, self._chunks, strict=True)
        ]
        rope = self._decoder(index, [layer]).rope_tables[0]
        return Block(layer, self._config, index, rope, modules, floats, configs, batches)

    @torch.inference_mode()
    def moments(self, index: int, layer: Layer) -> tuple[dict[str, Moment], list[Tensor]]:
        """Runs a layer.

        Args:
            index: The layer's index.
            layer: Its weights.

        Returns:
            The second moments of its inputs by name: "qkv", "out", "gate_up", "down", an expert's with its number and a
            dot before; and the residual streams after the layer, which `advance` takes.
        """
        watched: dict[str, Watched] = {}

        def watch(name: str, linear: Linear) -> Linear:
            watched[name] = Watched(linear)
            return watched[name]

        def watched_mlp(prefix: str, mlp: Mlp) -> Mlp:
            gate_up, down = watch(f"{prefix}gate_up", mlp.gate_up), watch(f"{prefix}down", mlp.down)
            return Mlp(gate_up, down, mlp.activation_name, mlp.gated)

        inner = layer.mlp
        if isinstance(inner, ExpertMlp):
            mlps = [watched_mlp(f"{expert}.", mlp) for expert, mlp in enumerate(inner.experts)]
            mlp: Mlp | ExpertMlp = ExpertMlp(inner.router, mlps, inner.per_token, inner.normalise)
        elif isinstance(inner, Mlp):
            mlp = watched_mlp("", inner)
        else:
            raise UsageError("outlay shrink needs layers with an MLP, which a CRATE's are not")
        seen = replace(layer, qkv=watch("qkv", layer.qkv), out=watch("out", layer.out), mlp=mlp)
        after = self._run(index, seen)
        return {name: Moment(each.sum / max(each.tokens, 1), each.tokens, f"layer {index}, {name}")
                for name, each in watched.items()}, after  # fmt: skip

    @torch.inference_mode()
    def after(self, index: int, layer: Layer) -> list[Tensor]:
        """Returns the residual streams after a layer, which `advance` takes."""
        return self._run(index, layer)

    def advance(self, streams: list[Tensor]) -> None:
        """Goes on to the next layer with what the last one gave."""
        self.streams = streams

    def _run(self, index: int, layer: Layer) -> list[Tensor]:
        decoder, config, streams = self._decoder(index, [layer]), self._config, []
        window = config.windows[index]
        for lengths, x in zip(self._chunks, self.streams, strict=True):

            def attention(_: int, q: Tensor, k: Tensor, v: Tensor, lengths: Sequence[int] = lengths) -> Tensor:
                parts = zip(q.split(lengths), k.split(lengths), v.split(lengths), strict=True)
                return torch.cat([_attention(*part, config, window) for part in parts])

            streams.append(decoder.hidden(x.clone(), _positions(lengths), attention))
        return streams

    def _decoder(self, index: int, layers: list[Layer]) -> Decoder:
        """Returns a decoder of one layer, which stands in the place of another."""
        config = replace(
            self._config,
            num_layers=1,
            windows=(self._config.windows[index],),
            layer_ropes=(self._config.ropes[index],),
        )
        table = self._embed.table
        head = FloatLinear(table if isinstance(table, Tensor) else table.rows(torch.zeros(1, dtype=torch.int64)), None)
        return Decoder(
            config, layers, self._embed, head, final_norm=None, positions=self._positions, project_in=self._project
        )


class Watched(Linear):
    """A linear layer that sums up the second moments of what it reads."""

    def __init__(self, inner: Linear) -> None:
        self.inner, self.format, self.nbytes = inner, inner.format, inner.nbytes
        self.in_features, self.out_features = inner.in_features, inner.out_features
        self.sum = torch.zeros(inner.in_features, inner.in_features, dtype=torch.float64)
        self.tokens = 0

    def __call__(self, x: Tensor) -> Tensor:
        """x [n, in] -> [n, out], in the dtype of x."""
        wide = x.double()
        self.sum.addmm_(wide.T, wide)
        self.tokens += len(x)
        return self.inner(x)


def _chunks(lengths: Sequence[int]) -> list[list[int]]:
    """Groups the lengths of sequences into chunks that are computed together."""
    chunks: list[list[int]] = []
    for length in lengths:
        if chunks and sum(chunks[-1]) + length <= TOGETHER:
            chunks[-1].append(length)
        else:
            chunks.append([length])
    return chunks


def _positions(lengths: Sequence[int]) -> Tensor:
    return torch.cat([torch.arange(length) for length in lengths])


def _attention(q: Tensor, k: Tensor, v: Tensor, config: DecoderConfig, window: int | None) -> Tensor:
    """Returns what one sequence attends to: q [n, heads, dim], k and v [n, kv heads, dim] -> [n, heads, dim]."""
    group = config.num_heads // config.num_kv_heads
    q, k, v = (each.transpose(0, 1).contiguous() for each in (q, k, v))
    k, v = k.repeat_interleave(group, 0), v.repeat_interleave(group, 0)
    bias = None
    if config.diffusion is None:
        at = torch.arange(q.shape[1])
        hidden = at[None] > at[:, None]
        if window is not None:
            hidden |= at[None] <= at[:, None] - window
        bias = torch.zeros(hidden.shape).masked_fill_(hidden, -torch.inf)
    out, _ = attend(q, k, v, bias, config.attention_scale, config.attention_softcap)
    return out.transpose(0, 1)
