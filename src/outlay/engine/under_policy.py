"""The passes of runs under a cache policy: prompts that are read whole, and steps that read what the policy holds.

They are passes of their own, layer by layer, so that no other run's bits depend on them. In each tick one prompt is
read at most, beside a step of all runs that write already.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, NamedTuple
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from outlay.attend.policy import CachePolicy, Hold, Keeper, Prompt, Rewrite, Step
from outlay.attend.quantizer import HELD, PlainPart, QuantizedPart
from outlay.budget import Account, Ledger
from outlay.engine.accounting import PassCost
from outlay.engine.forward import Forward, wanted_by
from outlay.engine.passes import ALL_LOGITS, LayeredPass, LogitsWanted, PassOutput, output_of
from outlay.engine.prompt_attention import PromptAttention
from outlay.errors import UsageError
from outlay.models.decoder import Decoder
from outlay.tree.cache import Cache
from outlay.tree.canvas import Row
from outlay.tree.plan import PassPlan, embed_of
from outlay.tree.stored import NOWHERE, HeldKeys, Part, Segment, StoredTrunk
from outlay.tree.token_tree import Node, Tree

if TYPE_CHECKING:
    from outlay.models.load import Model


@dataclass(frozen=True)
class Policed:
    """A policy over one prompt, and what it may know of the run."""

    policy: CachePolicy
    account: Account
    max_tokens: int


class PromptRead(NamedTuple):
    """What the pass over a prompt did."""

    nodes: Sequence[Node]
    """The prompt's tokens, which it computed."""
    cost: Ledger
    """What it cost, without its linear layers and what is held."""


class PolicyPasses:
    """The passes of one model for the trees that policies hold."""

    def __init__(self, decoder: Decoder, cache: Cache, role: str) -> None:
        """`role`: what the model is to the runs, which names the ledger's entries."""
        self._decoder, self._cache = decoder, cache
        self._pass = LayeredPass(decoder, cache)
        self.cost = PassCost(decoder, cache, role, self._pass.name)
        self._policed: WeakKeyDictionary[Segment, Policed] = WeakKeyDictionary()
        self._logits: WeakKeyDictionary[Segment, dict[Node, Tensor]] = WeakKeyDictionary()

    def add(self, tree: Tree, policed: Policed) -> None:
        """Has a policy hold the prompt of a tree, from its first pass on."""
        self._policed[_stored(tree).segments[0]] = policed

    def begin(self, forward: Forward) -> None:
        """Answers what a request asks of stored tokens, whose logits alone are kept, and those of the prompt's end.

        The request fails where it asks for more of them: their keys may be gone, so they can't be computed again.
        """
        stored = [node for node in forward.nodes if node.region is NOWHERE and node.computed]
        if not stored:
            return
        known = self._logits.get(prompt_of(forward), {})
        if forward.attention or forward.layer_states or not all(node in known for node in stored):
            forward.fail(ValueError("a pass is asked over tokens that a cache policy holds, which are computed once"))
            return
        forward.update_pending()
        nodes = list(dict.fromkeys(stored))
        output = output_of(torch.stack([known[node] for node in nodes]), wanted_by([forward], nodes))
        forward.settle(nodes, output, {node: row for row, node in enumerate(nodes)})

    def waits(self, forward: Forward) -> bool:
        """Tells whether the prompt of a request's run is to be read."""
        return prompt_of(forward).layers is None

    def prompt_length(self, forward: Forward) -> int:
        """Returns how many tokens the prompt of a request's run has."""
        return len(prompt_of(forward).nodes)

    def most_flops(self, forward: Forward) -> int:
        """Returns what attention over a prompt costs at most, in FLOPs: every token attends, and all of them probe."""
        n, config = len(prompt_of(forward).nodes), self._decoder.config
        wide = config.num_heads * config.head_dim
        return config.num_layers * wide * (2 * n * (n + 1) + 2 * n * n)

    def read(self, forward: Forward) -> PromptRead:
        """Reads the prompt of a request's run whole, and holds what its policy says."""
        segment = prompt_of(forward)
        policed, nodes = self._policed[segment], segment.nodes
        prompt = self._prompt(policed, nodes)
        keeper = policed.policy.keeper(prompt)
        heads = [node.position for node in dict.fromkeys(forward.nodes) if node in segment]
        rows = sorted({*heads, len(nodes) - 1})
        wanted = wanted_by([forward], [nodes[row] for row in rows])._replace(logits=True)
        plan = _plan_prompt(nodes, self._decoder.config.windows)
        watched = [row for row, asked in zip(rows, wanted.attention, strict=False) if asked]
        make = partial(part_of, cache=self._cache, segment=segment)
        attend = PromptAttention(self._decoder, self._cache, keeper, make, watched)
        native = self._decoder.code == "native"  # other code adds a bias of the attention's output to every row
        output = self._pass.run(plan, rows, wanted, attend, attend.resting if native else None)
        logits = output.logits
        assert logits is not None, "the logits of the prompt's end are kept"
        if watched:
            means = dict(zip(watched, attend.attention, strict=True))
            output = output._replace(attention=[means.get(row) for row in rows])

        segment.fill(attend.layers())
        self._logits[segment] = {nodes[-1]: logits[-1].clone()}
        for node in nodes:
            node.computed = True
        trees = [tree for tree in forward.trees if tree.stored is not None and segment in tree.stored.segments]
        for tree in trees:
            _stored(tree).keeper = keeper if tree is trees[0] else keeper.fork()
        places: dict[Row, int] = {nodes[row]: place for place, row in enumerate(rows)}
        forward.settle(nodes, output, places)
        return PromptRead(nodes, self._attention_cost(segment, attend, keeper))

    def _prompt(self, policed: Policed, nodes: Sequence[Node]) -> Prompt:
        account = policed.account
        return Prompt(
            [node.token for node in nodes],
            torch.tensor([node.input_embed is None for node in nodes]),
            self._decoder.config,
            self._cache.dtype,
            account.budget.caps.get("kv_held", float("inf")),
            policed.max_tokens,
        )

    def _attention_cost(self, segment: Segment, attend: PromptAttention, keeper: Keeper) -> Ledger:
        config, n, probes = self._decoder.config, len(segment.nodes), keeper.probe_flops()
        per_key = 4 * config.num_heads * config.head_dim
        flops, dense = (per_key * sum(pairs) for pairs in (attend.pairs, attend.dense_pairs))
        extras: dict[str, float] = {
            "attention_flops": flops,
            "attention_flops_dense": dense,
            "probe_flops": probes,
            "kv_payload": segment.payload,
            "kv_overhead": segment.bytes - segment.payload,
            "kv_dense": 2 * 2 * config.num_layers * config.num_kv_heads * config.head_dim * n,
        }
        slot = self._cache.bytes_per_slot // config.num_layers
        return Ledger(
            flops=flops + probes, kv_bytes=sum(attend.attending) * slot, ran_on=(self._pass.name,), extras=extras
        )

    def prepare(self, forwards: Sequence[Forward]) -> dict[Account, int]:
        """Holds anew what policies asked for since the last pass; returns how often, by account.

        A request of a run whose policy made a mistake fails.
        """
        counts: dict[Account, int] = {}
        for forward in forwards:
            try:
                counts[forward.account] = counts.get(forward.account, 0) + self._rewrites(forward.trees)
            except Exception as error:
                forward.fail(error)
        return counts

    def _rewrites(self, trees: Sequence[Tree]) -> int:
        """Holds anew what is due in the trees of a run; returns how often."""
        count = 0
        for tree in trees:
            due = None if tree.stored is None else tree.stored.due
            if due is None or tree.tip is None or tree.tip.computed:
                continue
            _stored(tree).due = None
            rewrite, last = due
            if isinstance(rewrite, Exception):
                raise rewrite
            self._rewrite(tree, rewrite, last)
            count += 1
        for tree in trees if count else ():
            if tree.stored is not None and tree.tip is not None:
                tree.free_stored(trees)
        return count

    def run(
        self,
        groups: Sequence[tuple[Tree, Sequence[Node]]],
        plan: PassPlan,
        heads: list[int],
        wanted: LogitsWanted = ALL_LOGITS,
    ) -> PassOutput:
        """Runs a step, and tells each tree's keeper where the tree's tip is computed.

        Args:
            groups: The nodes of each tree, in the order of the plan's rows.
            plan: What each row reads.
            heads: The rows that go through the LM head.
            wanted: What is computed of their logits.
        """
        tips: dict[int, Tree] = {}
        first = 0
        for tree, nodes in groups:
            tips.update((first + place, tree) for place, node in enumerate(nodes) if node is tree.tip)
            first += len(nodes)
        watching = {row for row, tree in tips.items() if _watches(tree)}
        asked = list(wanted.attention) or [False] * len(heads)
        if watching:
            wanted = wanted._replace(attention=[own or row in watching for own, row in zip(asked, heads, strict=True)])
        output = self._pass(plan, heads, wanted)
        rows = {row: place for place, row in enumerate(heads)}
        for row, tree in tips.items():
            attention = output.attention[rows[row]] if row in watching and row in rows else None
            self._tell(tree, attention)
        return output

    def _tell(self, tree: Tree, attention: Tensor | None) -> None:
        """Tells a keeper of a step. An error of it is due as a rewrite is: it fails this run, and no other."""
        stored, tip = _stored(tree), _tip(tree)
        step = Step(tip.position, _tail(tree), attention, lambda layer: self._held(tree, layer, tip))
        try:
            rewrite: Rewrite | Exception | None = _keeper(tree).step(step)
        except Exception as error:
            rewrite = error
        if rewrite is not None:
            stored.due = (rewrite, tip)

    def _held(self, tree: Tree, layer: int, last: Node, since: int = 0) -> HeldKeys:
        """Returns what a layer holds of a trunk, in float32 in the order of the text.

        Args:
            tree: The tree.
            layer: The layer.
            last: The last node of the trunk that is looked at, which is computed.
            since: The first position: that of a segment, or of the first plain token.
        """
        segments, device = _stored(tree).segments, self._cache.device
        parts = [segment.read(layer, torch.float32) for segment in segments if segment.base >= since]
        plain = last.path(segments[-1].nodes[-1])
        if plain:
            slots = torch.tensor([node.slot for node in plain], device=device)
            at = torch.tensor([node.position for node in plain], device=device)
            parts.append(HeldKeys(at, *self._cache.read(layer, slots, torch.float32)))
        found = [part for part in parts if part is not None]
        positions = torch.cat([part.positions for part in found])
        order = positions.argsort()
        keys, values = torch.cat([part.keys for part in found], 1), torch.cat([part.values for part in found], 1)
        return HeldKeys(positions[order], keys[:, order], values[:, order])

    def _rewrite(self, tree: Tree, rewrite: Rewrite, last: Node) -> None:
        stored = _stored(tree)
        if rewrite.since not in (stored.end, *(segment.base for segment in stored.segments[1:])):
            raise ValueError(f"a policy holds tokens anew from position {rewrite.since} on, where no segment begins")
        nodes = [node for node in last.path() if node.position >= rewrite.since]
        segment = Segment(self._cache, rewrite.since, nodes)
        layers: list[list[Part]] = []
        for layer, holds in enumerate(rewrite.layers):
            held = self._held(tree, layer, last, rewrite.since)
            layers.append([part_of(hold, held, self._cache, segment) for hold in holds if len(hold.positions)])
        segment.fill(layers)
        tree.store(segment)


def part_of(hold: Hold, held: HeldKeys, cache: Cache, segment: Segment) -> Part:
    """Returns tokens of a layer as a policy wants them held.

    Args:
        hold: What it wants.
        held: Keys and values of the layer, by ascending position.
        cache: The cache, whose format `HELD` is.
        segment: The segment that they go into.

    Raises:
        ValueError: Where the layer lacks one of the tokens.
    """
    at = torch.searchsorted(held.positions, hold.positions)
    if not torch.equal(held.positions[at.clamp_max(len(held.positions) - 1)], hold.positions):
        raise ValueError("a policy holds tokens that the layer doesn't have any more")
    keys = held.keys[:, at] if hold.keys is None else hold.keys
    values = held.values[:, at] if hold.values is None else hold.values
    taken = HeldKeys(hold.positions, keys, values)
    count = len(segment.nodes)
    if hold.bits == HELD:
        return PlainPart(taken, cache.dtype, cache.group, segment.base, count)
    return QuantizedPart(taken, hold.bits, segment.base, count, separable=hold.separable)


def under_policy(forward: Forward) -> bool:
    """Tells whether a request is of a run under a policy."""
    return bool(forward.nodes) and forward.nodes[0].tree.stored is not None


def prompt_of(forward: Forward) -> Segment:
    """Returns the prompt of a request's run."""
    for node in forward.nodes:
        tree = forward.tree_of(node)
        if tree is not None and tree.stored is not None:
            return tree.stored.segments[0]
    raise ValueError("a request of a run under a policy is over its trees")


def refuse_model(model: Model, policy: CachePolicy) -> None:
    """Raises `UsageError` for a model whose cache no policy can hold."""
    config, name = model.decoder.config, policy.about.name
    why = None
    if model.encoder is not None:
        why = "reads its input by an encoder"
    elif model.writes_canvas:
        why = "fills masks on a canvas"
    elif model.make_pass is not None or not config.num_layers:
        why = "attends to nothing"
    elif config.shared_qkv:
        why = "has one tensor for keys and values"
    elif model.decoder.relative is not None:
        why = "adds a bias by distance to its attention"
    if why is not None:
        raise UsageError(f"{model.name} {why}, for which there is no cache policy; leave out {name}")


def _stored(tree: Tree) -> StoredTrunk:
    assert tree.stored is not None, "a policy holds the tree's beginning"
    return tree.stored


def _tip(tree: Tree) -> Node:
    assert tree.tip is not None, "a tree holds its prompt"
    return tree.tip


def _keeper(tree: Tree) -> Keeper:
    keeper = _stored(tree).keeper
    assert isinstance(keeper, Keeper), "the prompt was read"
    return keeper


def _watches(tree: Tree) -> bool:
    try:
        return _keeper(tree).watches(_tail(tree))
    except Exception as error:
        _stored(tree).due = (error, _tip(tree))
        return False


def _tail(tree: Tree) -> int:
    """Returns how many tokens of the trunk stand behind what is stored."""
    return _tip(tree).position + 1 - _stored(tree).end


def _plan_prompt(nodes: Sequence[Node], windows: Sequence[int | None]) -> PassPlan:
    """Plans the pass over a prompt whose attention is given to it, and which writes into no slots."""
    embeds = [embed_of(node) for node in nodes]
    n = len(nodes)
    return PassPlan(
        tokens=[node.token for node in nodes],
        positions=list(range(n)),
        slots=[],
        kv_spans={window: [] for window in {*windows}},
        keys_seen=list(range(1, n + 1)),
        inputs_embeds=embeds if any(embed is not None for embed in embeds) else (),
    )
