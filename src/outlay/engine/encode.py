"""Reading an input: the passes of an encoder or a vision tower, and what a decoder reads of them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Generic, TypeVar
from weakref import WeakValueDictionary

import torch
from torch import Tensor

from outlay.budget import Account, Ledger
from outlay.engine.accounting import PassCost, PassRows, split_evenly
from outlay.engine.passes import LogitsWanted, pass_for
from outlay.engine.request import Request
from outlay.models.decoder import Decoder
from outlay.models.encoder import Encoder
from outlay.models.images import Tile
from outlay.models.linear import Linear
from outlay.models.speech import Clip
from outlay.models.vision import Vision
from outlay.tree.encoded import EncoderOutput
from outlay.tree.memory import EncoderInput, Memories, Memory, ScratchCache
from outlay.tree.plan import PassPlan, plan_inputs
from outlay.tree.token_tree import NO_TOKEN
from outlay.tree.visual import Visual

ROWS = 2048  # of a pass over several inputs, at most; one input is never cut, since its rows see each other
NOTHING = LogitsWanted(logits=False)

Read = Memory | Visual
"""What a decoder reads of an input, whose length is that of the encoder's rows."""
Kind = TypeVar("Kind", Memory, Visual)


class EncoderOutputs:
    """What encoders read, as long as someone holds it: models with the same encoder read an input once for all."""

    def __init__(self) -> None:
        self._held: WeakValueDictionary[tuple[str, EncoderInput | Tile], EncoderOutput] = WeakValueDictionary()

    def find(self, fingerprint: str, input: EncoderInput | Tile) -> EncoderOutput | None:
        """Returns what an encoder of these weights made of an input, if anyone still holds it."""
        return self._held.get((fingerprint, input))

    def keep(self, fingerprint: str, input: EncoderInput | Tile, states: Tensor) -> EncoderOutput:
        """Returns what an encoder made of an input, [n, hidden_size], for others to find while it is held."""
        output = self._held[fingerprint, input] = EncoderOutput(states)
        return output


@dataclass(eq=False)
class Encode(Request):
    """Asks that inputs are read; the result are the `inputs`, computed. Whoever asks first pays for one.

    A `Forward` over nodes whose memory or images aren't computed has them computed first, so that methods need not ask.
    """

    inputs: Sequence[Read]


class EncoderPasses(Generic[Kind]):
    """Runs an encoder over inputs, and makes of them what a decoder reads."""

    def __init__(self, encoder: Encoder, fingerprint: str, outputs: EncoderOutputs, limit: int) -> None:
        """Takes an encoder whose longest input has `limit` rows; `fingerprint` is what its outputs are known by."""
        self._encoder, self._fingerprint, self._outputs = encoder, fingerprint, outputs
        self._scratch = ScratchCache(encoder.config, encoder.device, limit=max(ROWS, limit))
        self._pass = pass_for(encoder, self._scratch)
        self._cost = PassCost(encoder, self._scratch, "encoder", self._pass.name)

    def batch(self, inputs: Sequence[Kind]) -> list[Kind]:
        """Returns the first of these that fit into one pass, and at least one."""
        picked, rows = [inputs[0]], len(inputs[0])
        for input in inputs[1:]:
            rows += len(input)
            if rows > ROWS:
                break
            picked.append(input)
        return picked

    def split(self, inputs: Sequence[Kind], accounts: Sequence[Account]) -> dict[Account, Ledger]:
        """Returns what reading inputs costs each account: a pass over those that no one read, and what follows it.

        Args:
            inputs: What is read.
            accounts: Who pays for each.
        """
        paying = list(zip(inputs, accounts, strict=True))
        fresh = [(input, account) for input, account in paying if self._find(input) is None]
        costs = {account: Ledger() for account in accounts}
        if fresh:
            plan = plan_inputs([len(input) for input, _ in fresh], 0, self._encoder.config.windows)
            payers = [account for input, account in fresh for _ in range(len(input))]
            costs |= self._cost.split(PassRows(range(len(payers)), payers, set()), plan)
            self._add_stem(costs, payers)
        self._add_made(costs, paying, [account for _, account in fresh])
        return costs

    def run(self, inputs: Sequence[Kind]) -> list[Kind]:
        """Reads the inputs that no one read in one pass of the encoder, and makes what the decoder reads.

        Returns:
            Those that were read; none where other models had all of them read.
        """
        fresh = [input for input in inputs if self._find(input) is None]
        if fresh:
            for input, states in zip(fresh, self._encoded(fresh), strict=True):
                input.output = self._outputs.keep(self._fingerprint, input.input, self._made(states))
        for input in inputs:
            input.output = input.output or self._find(input)
        return fresh

    def _made(self, states: Tensor) -> Tensor:
        """Returns what is stored of the encoder's output for an input, [rows, hidden_size]."""
        return states

    def _add_made(
        self, costs: dict[Account, Ledger], paying: Sequence[tuple[Kind, Account]], fresh: Sequence[Account]
    ) -> None:
        """Adds what follows the encoder's pass to the costs: `paying` for all inputs, `fresh` for those now read."""

    def _stem_rows(self, input: EncoderInput | Tile) -> list[Tensor]:
        """Returns the first layer's input, row by row, of an input that is no tokens."""
        assert isinstance(input, Clip), "what is no tokens is sound"
        assert self._encoder.stem is not None, "an encoder of sound has a stem"
        return list(self._encoder.stem(input.samples.to(self._encoder.device)).contiguous())

    def _add_stem(self, costs: dict[Account, Ledger], payers: Sequence[Account]) -> None:
        """Adds what making the first layer's input costs to those who pay for the rows of a pass."""
        if self._encoder.stem is not None:
            self._add_rows(costs, payers, self._encoder.stem.multiplies, self._encoder.stem.nbytes)

    def _add_rows(self, costs: dict[Account, Ledger], payers: Sequence[Account], multiplies: int, nbytes: int) -> None:
        """Adds the cost of rows: the multiply-adds of each, and the bytes of the weights in all."""
        weights = split_evenly(nbytes, payers)
        for account, count in Counter(payers).items():
            costs[account].flops += 2 * count * multiplies
            costs[account].weight_bytes += weights[account]

    def _with_inputs(self, plan: PassPlan, inputs: Sequence[Kind]) -> PassPlan:
        """Returns a plan with the tokens that its rows read, or the input embeddings that are made of an input."""
        tokens: list[int] = []
        embeds: list[Tensor] = []
        for input in inputs:
            if isinstance(input.input, tuple):
                tokens += input.input
            else:
                embeds += self._stem_rows(input.input)
        return replace(plan, tokens=tokens or [NO_TOKEN] * len(embeds), inputs_embeds=embeds)

    def _find(self, input: Kind) -> EncoderOutput | None:
        return self._outputs.find(self._fingerprint, input.input)

    def _encoded(self, inputs: Sequence[Kind]) -> Sequence[Tensor]:
        """Returns the encoder's output for each input, float32 [length, hidden_size], from one pass."""
        if not self._encoder.layers:  # the stem is all of it
            return [torch.stack(self._stem_rows(input.input)) for input in inputs]
        lengths = [len(input) for input in inputs]
        region = self._scratch.region(sum(lengths))
        try:
            plan = plan_inputs(lengths, region.start, self._encoder.config.windows)
            plan = self._with_inputs(plan, inputs)
            self._scratch.positions[region.start : region.start + region.size] = plan.positions
            self._pass(plan, [], NOTHING)
            states = self._scratch.hidden_states
            assert states is not None, "the scratch cache keeps them"
            return states[region.start : region.start + region.size].clone().split(lengths)
        finally:
            self._scratch.free(region)


class MemoryPasses(EncoderPasses[Memory]):
    """Makes the memories that the decoder of an encoder-decoder reads."""

    def __init__(self, encoder: Encoder, decoder: Decoder, memories: Memories, outputs: EncoderOutputs) -> None:
        super().__init__(encoder, encoder.fingerprint, outputs, memories.cache.limit)
        self._decoder, self._memories = decoder, memories

    def run(self, inputs: Sequence[Memory]) -> list[Memory]:
        fresh = super().run(inputs)
        encoded = torch.cat([memory.output.states for memory in inputs if memory.output is not None])
        slots = torch.tensor([slot for memory in inputs for slot in memory.slots], device=encoded.device)
        for layer in range(self._decoder.config.num_layers):
            k, v = self._decoder.memory_of(layer, encoded.to(self._decoder.dtype))
            self._memories.cache.write(layer, slots, k, v)
        for memory in inputs:
            memory.computed = True
        return fresh

    def _add_made(
        self, costs: dict[Account, Ledger], paying: Sequence[tuple[Memory, Account]], fresh: Sequence[Account]
    ) -> None:
        rows = [account for memory, account in paying for _ in range(len(memory))]
        linears = self._decoder.memory_linears
        self._add_rows(costs, rows, _multiplies(linears), sum(linear.nbytes for linear in linears))


class TowerPasses(EncoderPasses[Visual]):
    """Makes the input embeddings of images: the passes of a vision tower, and what connects it to the decoder."""

    def __init__(self, vision: Vision, outputs: EncoderOutputs) -> None:
        super().__init__(vision.tower, vision.fingerprint, outputs, vision.rows)
        self._vision = vision

    def _stem_rows(self, input: EncoderInput | Tile) -> list[Tensor]:
        assert isinstance(input, Tile), "a vision tower reads tiles"
        return list(self._vision.stem(torch.from_numpy(input.pixels).to(self._encoder.device)))

    def _made(self, states: Tensor) -> Tensor:
        return self._vision.connector(states)

    def _add_stem(self, costs: dict[Account, Ledger], payers: Sequence[Account]) -> None:
        stem = self._vision.stem
        self._add_rows(costs, payers, _multiplies([stem.patches]), stem.nbytes)

    def _add_made(
        self, costs: dict[Account, Ledger], paying: Sequence[tuple[Visual, Account]], fresh: Sequence[Account]
    ) -> None:
        if fresh:
            linears = self._vision.connector.linears
            rows = [account for account in fresh for _ in range(self._vision.count)]
            self._add_rows(costs, rows, _multiplies(linears), sum(linear.nbytes for linear in linears))


def _multiplies(linears: Sequence[Linear]) -> int:
    """Returns the multiply-adds that one row takes in all of these layers."""
    return sum(linear.in_features * linear.out_features for linear in linears)
