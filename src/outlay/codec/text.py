"""Lossless compression with a language model (Deletang et al. 2024, https://arxiv.org/abs/2309.10668), read anywhere.

A text is cut into blocks of symbols (`symbols.py`), each with a fresh context. `WriteBlock` reads a block in wide
passes, as `score.py` does, and keeps the interval of each symbol. `ReadBlock` decodes: its next token comes from the
coder in place of the sampler. Many blocks are read at a time, and any drafter can run ahead. Both work because our
kernels give a row the same bits at any width, on any number of threads and in every instruction set. What the coder
reads of the logits are whole numbers, made by the kernels' own exp (`kernels.coder_weights`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from itertools import pairwise
from typing import Any, ClassVar, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from outlay import kernels
from outlay.codec.coder import Words, refuse_without_kernels
from outlay.engine.engine import Engine
from outlay.engine.handle import Handle, Result
from outlay.engine.method import About, Method, Work
from outlay.engine.passes import pass_for, runs_whole
from outlay.engine.submission import DraftSource, RunOptions, Submission
from outlay.engine.tree_run import TreeRun
from outlay.errors import UsageError
from outlay.models.digest import weights_digest
from outlay.models.load import Model
from outlay.speculation.rounds import ROOT, Drafter, Drafting, DraftLimits, DraftTree, Proposer, plant
from outlay.speculation.trees import topk_tree
from outlay.tree.cache import KV_DTYPES, Cache
from outlay.tree.plan import plan_pass
from outlay.tree.token_tree import Node, Tree

RAW = 256  # symbols behind the vocabulary: the bytes
RARE, LIKELY = 20, 8
"""Each byte has 2^-20 of the weight of the vocabulary, and 2^-8 right behind another byte."""
MOST = 1 << 30  # weight of a byte, at most
BLOCK = 1024  # tokens of a block
LANES = 32  # blocks that are read at a time, at most
CACHE_BYTES = 1 << 30  # of keys and values, at most, unless one block takes more
LOGITS_BYTES = 1 << 26  # of the logits that a block holds while it is written
WRITERS = 2  # blocks that are written at a time: a wide pass is shared
DRAFT = DraftLimits(max_nodes=8, max_depth=8)
PROBE_TOKENS = 16


class Coded(NamedTuple):
    """A block of symbols as the coder takes it."""

    intervals: Words
    """uint32 [symbols, 2]"""
    ideal_bits: float
    """Bits of the symbols under the model's own probabilities."""


def symbol_weights(logits: Tensor, after_byte: Tensor) -> kernels.CoderWeights:
    """Returns the weights of the symbols after some texts.

    Args:
        logits: The model's logits after its last token, float32 [rows, vocab].
        after_byte: Whether a byte is the last symbol, bool [rows].

    Returns:
        Weights int32 [rows, vocab + 256], of which `totals` adds up those of the vocabulary.
    """
    found = kernels.coder_weights(logits, RAW)
    shifts = torch.where(after_byte, LIKELY, RARE)
    found.weights[:, -RAW:] = (found.totals >> shifts).clamp(1, MOST)[:, None]
    return found


class WriteBlock(Method):
    """Reads a block of symbols in wide passes and keeps their intervals. It is for programs: no catalogue lists it.

    Attributes:
        coded: The intervals, once the run has ended.
    """

    about: ClassVar[About] = About(
        name="write_block",
        summary="the intervals of a block of symbols, for an entropy coder",
        paper="Deletang et al. 2024, https://arxiv.org/abs/2309.10668",
        family="codec",
        spends="one position for each token",
        saves="passes",
    )

    def __init__(self, symbols: Sequence[int], vocab: int) -> None:
        self._symbols, self._vocab = np.asarray(symbols, np.int64), vocab
        self.coded = Coded(np.empty((0, 2), np.uint32), 0.0)

    def decode(self, run: TreeRun) -> Work:
        """Computes the rows of the block in order, some at a time."""
        symbols, is_byte = self._symbols, self._symbols >= self._vocab
        rows: npt.NDArray[np.int64] = np.cumsum(~is_byte) - ~is_byte  # tokens before each symbol: the row that tells it
        after_byte = np.concatenate([[False], is_byte[:-1]])
        run.tree.append(symbols[~is_byte][: rows[-1]].tolist())
        nodes = run.tip.path()[-1 - int(rows[-1]) :]
        step = max(32, min(256, LOGITS_BYTES // (4 * self._vocab)))
        found, ideal = [], 0.0
        for begin in range(0, len(nodes), step):
            logits = yield run.target.forward(nodes[begin : begin + step])
            here = np.flatnonzero((rows >= begin) & (rows < begin + step))
            for part in np.array_split(here, -(-len(here) // step)):
                picked = (
                    logits if np.array_equal(rows[part], begin + np.arange(len(logits))) else logits[rows[part] - begin]
                )
                intervals, bits = coded(picked, torch.from_numpy(after_byte[part]), torch.from_numpy(symbols[part]))
                found.append(intervals)
                ideal += bits
        self.coded = Coded(np.concatenate(found), ideal)


def coded(logits: Tensor, after_byte: Tensor, symbols: Tensor) -> Coded:
    """Returns the intervals of symbols, int64 [rows], after texts with these logits, and their ideal bits."""
    vocab = logits.shape[1]
    found = symbol_weights(logits, after_byte)
    intervals = kernels.intervals(found.weights, symbols)
    is_token = symbols < vocab
    picked = logits.gather(1, symbols.clamp(max=vocab - 1)[:, None])[:, 0]
    of_tokens = (found.exact.log2() - 23) - (picked - found.maxima).double() / np.log(2)
    of_bytes = 24 - torch.from_numpy(np.log2(intervals[:, 1].astype(np.float64)))
    return Coded(intervals, float(torch.where(is_token, of_tokens, of_bytes).sum()))


class ReadBlock(Method):
    """Decodes a block: each next symbol comes from the coder. It is for programs: no catalogue lists it.

    A draft may run ahead; the symbols are the same with any draft and with none.

    Attributes:
        symbols: What was decoded so far.
        whole: Whether the words end with the last symbol, once the run has ended.
    """

    about: ClassVar[About] = About(
        name="read_block",
        summary="a block of symbols from an entropy coder's words",
        paper="Deletang et al. 2024, https://arxiv.org/abs/2309.10668",
        family="codec",
        spends="a position for each token and each drafted one",
        saves="target passes, where a draft runs ahead",
        takes=("draft",),
    )

    def __init__(self, words: Words, count: int, vocab: int) -> None:
        self._reader, self._count, self._vocab = kernels.AnsReader([words]), count, vocab
        self.symbols: list[int] = []
        self.whole = False

    def decode(self, run: TreeRun) -> Work:
        """Drafts, asks for a pass over the drafted tree, and walks down it as far as the coder goes."""
        source = run.submission.draft
        drafter = source.drafter(run) if source is not None else None
        while len(self.symbols) < self._count:
            tree = DraftTree() if drafter is None else (yield from draft(run, drafter, self._count - len(self.symbols)))
            nodes = plant(run, tree)
            logits = yield run.target.forward([run.tip, *nodes])
            path, token = self._walk(tree, logits)
            run.accept(nodes[path[-1]] if path else run.tip)
            if token is not None:
                run.commit(token)
            run.count(rounds=1, drafted=len(tree), accepted=len(path))
        self.whole = self._reader.ended(0)

    def _walk(self, tree: DraftTree, logits: Tensor) -> tuple[list[int], int | None]:
        """Decodes as long as the next token was drafted; returns the accepted nodes, and the token that was not.

        Args:
            tree: What was drafted.
            logits: float32 [1 + nodes, vocab], after the tip and after each node.
        """
        at, path = ROOT, list[int]()
        while len(self.symbols) < self._count:
            after_byte = bool(self.symbols) and self.symbols[-1] >= self._vocab
            weights = symbol_weights(logits[at + 1][None], torch.tensor([after_byte])).weights
            symbol = int(self._reader.decode(weights, torch.zeros(1, dtype=torch.int64)))
            self.symbols.append(symbol)
            if symbol >= self._vocab:
                continue
            child = tree.child(at, symbol)
            if child is None:
                return path, symbol
            path.append(child)
            at = child
        return path, None


def draft(run: TreeRun, drafter: Drafter | Proposer, left: int) -> Drafting:
    """Asks a drafter for what comes next, of at most `left` symbols."""
    limits = DRAFT.within(run)
    limits = limits._replace(max_depth=min(limits.max_depth, left - 1))
    if limits.max_depth <= 0:
        return DraftTree()
    if isinstance(drafter, Proposer):
        return drafter.propose(limits)
    if not drafter.sync():
        return DraftTree()
    depth = limits.max_depth if drafter.max_depth is None else min(limits.max_depth, drafter.max_depth)
    return (yield from topk_tree(drafter, (1,) * depth, limits._replace(max_depth=depth)))


class TextModel:
    """A language model as a `coder.SequentialModel` of symbols: its vocabulary, then the 256 bytes.

    Each lane's tokens are one path of a tree; a step is one pass over all lanes.
    """

    def __init__(self, model: Model, kv_dtype: str = "int8", lanes: int = LANES, block: int = BLOCK) -> None:
        """Takes a model, with room for lanes of `block` symbols. Raises `UsageError` as `TextCodec` does."""
        refuse_other_arithmetic(model)
        self.model, self._vocab = model, model.decoder.config.vocab_size
        decoder = model.decoder
        self._cache = Cache(decoder.config, KV_DTYPES[kv_dtype], decoder.device, limit=lanes * (block + 64))
        self._pass = pass_for(decoder, self._cache)

    @property
    def fingerprint(self) -> str:
        """The SHA-256 of the weights, in hexadecimal."""
        return weights_digest(self.model).hex()

    def begin(self, lanes: int) -> TextState:
        """Returns `lanes` texts that hold the start token alone."""
        trees = [Tree(self._cache) for _ in range(lanes)]
        state = TextState(trees, torch.zeros(lanes, dtype=torch.bool))
        self._grow(state, dict.fromkeys(range(lanes), start_token(self.model)))
        return state

    def next_pmf(self, state: TextState) -> Tensor:
        """Returns the weights of the next symbols, int32 [lanes, vocab + 256]."""
        return symbol_weights(state.logits, state.after_byte).weights

    def push(self, state: TextState, symbols: Tensor) -> None:
        """Tells the next symbol of each lane."""
        state.after_byte = symbols >= self._vocab
        self._grow(state, {lane: symbol for lane, symbol in enumerate(symbols.tolist()) if symbol < self._vocab})

    def _grow(self, state: TextState, tokens: Mapping[int, int]) -> None:
        """Adds a token to some lanes and computes their logits in one pass."""
        if not tokens:
            return
        work: list[tuple[Tree, list[Node]]] = []
        for lane, token in tokens.items():
            state.trees[lane].append([token])
            tip = state.trees[lane].tip
            assert tip is not None
            work.append((state.trees[lane], [tip]))
        plan = plan_pass(work, self._cache.positions, self.model.decoder.config.windows)
        logits = self._pass(plan, list(range(len(work)))).logits
        assert logits is not None
        for _, (tip,) in work:
            tip.computed = True
        if state.logits.shape[0] == 0:
            state.logits = logits
        else:
            state.logits[list(tokens)] = logits


@dataclass
class TextState:
    """Texts side by side, and the logits after each."""

    trees: list[Tree]
    after_byte: Tensor
    """bool [lanes]"""
    logits: Tensor
    """float32 [lanes, vocab]"""

    def __init__(self, trees: list[Tree], after_byte: Tensor) -> None:
        self.trees, self.after_byte, self.logits = trees, after_byte, torch.empty(0, 0)


def probe(model: Model, kv_dtype: str) -> bytes:
    """Returns a digest of the weights that a model gives the coder after each of 16 fixed tokens, 16 bytes."""
    sequential = TextModel(model, kv_dtype, lanes=1, block=PROBE_TOKENS)
    state, digest, vocab = sequential.begin(1), sha256(), model.decoder.config.vocab_size
    for place in range(PROBE_TOKENS):
        sequential.push(state, torch.tensor([7919 * (place + 1) % vocab]))
        digest.update(sequential.next_pmf(state).numpy().astype("<i4").tobytes())
    return digest.digest()[:16]


def start_token(model: Model) -> int:
    """Returns the token that every block begins after: the one that begins a text, else one that ends one."""
    tokenizer = model.tokenizer
    ends = tokenizer.eos_token_ids
    return tokenizer.bos_token_id if tokenizer.bos_token_id is not None else ends[0] if ends else 0


def refuse_other_arithmetic(model: Model) -> None:
    """Raises `UsageError` for a model that our kernels don't run whole: its passes have other bits elsewhere."""
    refuse_without_kernels()
    if not runs_whole(model.decoder):
        raise UsageError(
            f"{model.name} does not run in our kernels whole, which alone give the same bits on every machine; "
            "compress with another model, such as the default one, or without one (xz)"
        )


class TextCodec:
    """A language model at work on blocks, many at a time. Close it, or use it in a `with`."""

    def __init__(self, model: Model, *, kv_dtype: str = "int8", block: int = BLOCK, lanes: int | None = None) -> None:
        """Makes an engine for blocks of up to `block` symbols.

        Args:
            model: The model.
            kv_dtype: How keys and values are held; it changes the bits.
            block: Symbols of a block, at most; below the model's context.
            lanes: Blocks that are read at a time; None: as many as fit into 1 GB of keys and values, at most 32.

        Raises:
            UsageError: For a model that does not run in our kernels whole, or a block that it can't read.
        """
        refuse_other_arithmetic(model)
        context = model.decoder.config.max_positions
        if kv_dtype not in KV_DTYPES:
            raise UsageError(f"keys and values are held in {', '.join(KV_DTYPES)}, not {kv_dtype!r}")
        if not 1 <= block < context:
            raise UsageError(f"a block has 1 to {context - 1} tokens with {model.name}, not {block}")
        self.model, self.kv_dtype, self.block = model, kv_dtype, block
        self.vocab = model.decoder.config.vocab_size
        size = Cache(model.decoder.config, KV_DTYPES[kv_dtype], model.decoder.device, limit=1).bytes_per_slot
        room = block + 1 + 2 * DRAFT.max_nodes + 128
        self.lanes = lanes or max(1, min(LANES, CACHE_BYTES // max(1, size * room)))
        self._engine = Engine(
            cache_tokens=room * max(self.lanes, WRITERS),
            prefix_cache=False,
            max_runs=self.lanes,
            kv_dtype=KV_DTYPES[kv_dtype],
        )

    def __enter__(self) -> TextCodec:
        return self

    def __exit__(self, *failure: object) -> None:
        self.close()

    def close(self) -> None:
        """Ends the engine; what is at work is cancelled."""
        self._engine.close()

    def write(self, blocks: Iterator[Sequence[int]]) -> Iterator[tuple[WriteBlock, Result]]:
        """Yields written blocks of symbols, in order, a few of them at work at a time."""
        for method, handle in self._each(WriteBlock(symbols, self.vocab) for symbols in blocks):
            yield method, handle.result()

    def read(
        self, blocks: Iterator[tuple[Words, int]], draft: DraftSource | None = None
    ) -> Iterator[tuple[ReadBlock, Result]]:
        """Yields decoded blocks, given as words and the number of symbols, in order, `lanes` of them at a time."""
        for method, handle in self._each((ReadBlock(*block, self.vocab) for block in blocks), self.lanes, draft):
            yield method, handle.result()

    def _each(
        self, methods: Iterator[Any], lanes: int = WRITERS, draft: DraftSource | None = None
    ) -> Iterator[tuple[Any, Handle]]:
        """Keeps `lanes` runs at work and yields them in order."""
        waiting: list[tuple[Any, Handle]] = []
        try:
            for method in methods:
                waiting.append((method, self._submit(method, draft)))
                if len(waiting) >= lanes:
                    yield waiting.pop(0)
            while waiting:
                yield waiting.pop(0)
        finally:
            for _, handle in waiting:
                handle.cancel()

    def _submit(self, method: Method, draft: DraftSource | None) -> Handle:
        options = RunOptions(max_tokens=self.block, ignore_eos=True)
        return self._engine.submit(method, Submission(self.model, [start_token(self.model)], options, draft))


def cut(symbols: Sequence[int], block: int) -> Iterator[Sequence[int]]:
    """Yields the blocks of some symbols, `block` each but the last."""
    bounds = [*range(0, len(symbols), block), len(symbols)]
    for begin, end in pairwise(bounds):
        yield symbols[begin:end]
