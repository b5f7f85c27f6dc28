"""A model at work: it gathers what all runs ask of it and serves it in one forward pass a tick."""

from __future__ import annotations

import time
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from outlay.budget import Account, Ledger
from outlay.engine.accounting import PassCost, PassRows
from outlay.engine.denoise import Denoise
from outlay.engine.encode import Encode, EncoderOutputs, EncoderPasses, MemoryPasses, Read, TowerPasses
from outlay.engine.forward import Forward, uncomputed, wanted_by
from outlay.engine.held import Holdings
from outlay.engine.held_prefix import HeldPrefix
from outlay.engine.passes import ALL_LOGITS, LogitsWanted, PassOutput, output_of, pass_for
from outlay.engine.request import InputsRead, PassReport, Request, Served, Worker
from outlay.engine.schedule import Schedule, Share, group_by_tree
from outlay.engine.sharing import SharingMeter, sharing_of
from outlay.engine.under_policy import Policed, PolicyPasses, under_policy
from outlay.errors import CacheFull, FailureError, UsageError
from outlay.models.images import keys_of, placed_in
from outlay.models.load import Model
from outlay.models.speech import Clip
from outlay.tree.cache import Cache
from outlay.tree.canvas import Canvas, Row
from outlay.tree.memory import Memories, Memory
from outlay.tree.plan import BreakEven, PassPlan, plan_pass
from outlay.tree.prefix import PrefixCache
from outlay.tree.token_tree import NO_TOKEN, Node, Tree
from outlay.tree.visual import Visual, Visuals, VisualToken

Role = Literal["target", "draft", "score", "side"]
"""What a model is to a run, and the ledger's entries that it fills: the one that writes, one that drafts for it, one
that rates texts, any other."""
ROLES: tuple[Role, ...] = get_args(Role)


RunPass = Callable[[PassPlan, list[int], LogitsWanted], PassOutput]
SOME_TEXT = 128  # tokens of text that must fit into the cache for a run to begin beside others


class ModelWorker(Worker):
    """Holds one model's KV cache and serves `Forward` and `Denoise` requests, all of a tick's in one pass.

    `ledger` sums what the worker did; it equals the sum of the ledgers of the runs that it worked for. `passes` counts
    physical passes, in which several runs take part, and `last` is the last of them. `holdings` are what
    the runs that have a seat here hold; `promised` tokens of cache are left to them when another one begins. `memories`
    hold what an encoder read, for a model that has one; `visuals` what its vision tower made of images. `shared_state`
    is what runs share from one to the next.
    """

    def __init__(
        self,
        model: Model,
        *,
        role: Role,
        cache_tokens: int | None = None,
        prefix_cache: bool = True,
        kv_dtype: torch.dtype | None = None,
        outputs: EncoderOutputs | None = None,
    ) -> None:
        decoder = model.decoder
        self.model, self.decoder, self.role = model, decoder, role
        self.stage = "draft" if role == "draft" else "pass"
        limit = cache_tokens or max(decoder.config.max_positions, 16384)
        self.cache = Cache(decoder.config, kv_dtype or decoder.dtype, decoder.device, limit=limit)
        self.prefixes = PrefixCache() if prefix_cache else None
        self.memories: Memories | None = None
        self.visuals: Visuals | None = None
        self._encoder: EncoderPasses[Any] | None = None
        if model.encoder is not None:
            reach = cache_tokens or max(model.encoder.config.max_positions, 16384)
            self.memories = Memories(
                decoder.config, self.cache.dtype, decoder.device, limit=reach, keep_prefixes=prefix_cache
            )
            self._encoder = MemoryPasses(model.encoder, decoder, self.memories, outputs or EncoderOutputs())
        if model.vision is not None:
            self.visuals = Visuals(model.vision.rows, model.vision.count, limit if prefix_cache else 0)
            self._encoder = TowerPasses(model.vision, outputs or EncoderOutputs())
        if self.prefixes is not None:
            self.cache.reclaim = self.prefixes.evict if self.memories is None else self.memories.evict
        self._schedule = Schedule()
        if model.make_pass is None:
            self._pass = pass_for(decoder, self.cache, self.memories)
        else:
            self._pass = model.make_pass(self.cache)
        # A draft head reads more tokens than it writes.
        self._vocab = decoder.embed.table.shape[0] if decoder.reads_hidden_states else decoder.config.vocab_size
        memory = None if self.memories is None else self.memories.cache
        self._cost = PassCost(decoder, self.cache, role, self._pass.name, memory)
        self._policies: PolicyPasses | None = None
        self._sharing = sharing_of(decoder, self.cache.dtype)
        self.shared_state: dict[Hashable, Any] = {}
        self._last_logits: dict[Node, Tensor] = {}  # of the ends of prefixes that are held
        self.last = PassReport(0, 0, 0, 0.0, 0)
        self._input_passes = 0
        self.holdings = Holdings(self.cache, self.memories)
        self.promised = 0
        self.ledger = Ledger()
        self.pass_seconds = 0.0

    @property
    def seated(self) -> int:
        """How many seats there are here at present."""
        return self.holdings.seats

    @property
    def passes(self) -> int:
        """How many physical passes there were."""
        return self.last.number

    @property
    def sharing(self) -> BreakEven:
        """When rows read apart what they share: measured, as far as that was done, or assumed."""
        return self._sharing.break_even

    def sharing_meter(self) -> SharingMeter | None:
        """Returns what measures `sharing` in time to spare; None where that was done."""
        return None if self._sharing.settled else SharingMeter(self._sharing, self.decoder, self.cache.dtype)

    @torch.inference_mode()
    def measure_sharing(self) -> None:
        """Measures `sharing` at once, where it still should be."""
        meter = self.sharing_meter()
        while meter is not None and meter.spare():
            pass

    def keep_hidden_states(self) -> None:
        """Has the cache keep what the head reads, for drafts that start from it: see `Seat.hidden_states`."""
        self.cache.keep_hidden_states()

    def plant(
        self,
        prompt: Sequence[int],
        reserve: int,
        own: PrefixCache | None = None,
        block: int = 1,
        held: HeldPrefix | None = None,
        memory: Memory | None = None,
    ) -> tuple[Tree, int]:
        """Returns a tree that holds the prompt, and how many of its tokens are shared, being in the cache already.

        The prompt's last token is always the tree's own, because its logits are wanted, unless they are held. Beside
        other runs it needs room for some text as well.

        Args:
            prompt: Token ids; whole blocks of them. An `ImagePrompt` has its images planted with it.
            reserve: Tokens of text for which the cache makes room at once.
            own: What is shared where requests share nothing.
            block: Positions that see each other; 1 is causal.
            held: What is held of the prompt's beginning.
            memory: What the tree's nodes read beside their path; prompts are shared below the same one alone.

        Raises:
            CacheFull: When the cache has no room for it at present.
        """
        shared_prefixes = self.prefixes if memory is None else memory.prefixes
        prefixes = shared_prefixes if shared_prefixes is not None else own
        keys = keys_of(prompt)
        known = held.node_in(prompt) if held is not None else None
        if prefixes is not None:
            known = prefixes.match(keys[known.position + 1 if known else 0 : -1], block, known)
        shared = known.position + 1 if known else 0
        tree = Tree(self.cache, after=known, reserve=len(prompt) - shared + reserve, block=block, memory=memory)
        needed = len(prompt) - shared + (min(reserve, SOME_TEXT) + self.promised if self.seated else 1)
        try:
            self._make_room(needed)
            tree.append(prompt[shared:], self._visual_tokens(prompt, shared))
        except FailureError:
            tree.release()
            raise
        if prefixes is not None and tree.tip is not None:
            prefixes.insert(tree.tip)
        return tree, shared

    def _visual_tokens(self, prompt: Sequence[int], shared: int) -> dict[int, VisualToken]:
        """Returns what nodes of images read, by their place behind the first `shared` tokens of a prompt.

        Where the model sees nothing, the image tokens of a prompt are tokens.
        """
        if self.visuals is None:
            return {}
        tokens: dict[int, VisualToken] = {}
        for start, length, tile in placed_in(prompt):
            if start + length > shared:
                visual = self.visuals.open(tile)
                tokens.update((start + row - shared, VisualToken(visual, row)) for row in range(length))
        return tokens

    def plant_policed(self, tokens: Sequence[int], prompt: int, reserve: int, policed: Policed) -> Tree:
        """Returns a tree whose prompt a cache policy holds, and shares nothing with other requests.

        Args:
            tokens: Token ids of the prompt, and of what follows it already.
            prompt: How many of them are the prompt's.
            reserve: Tokens of text for which the cache makes room at once.
            policed: The policy, and what it may know.

        Raises:
            CacheFull: When the cache has no room for it at present.
        """
        if self._policies is None:
            self._policies = PolicyPasses(self.decoder, self.cache, self.role)
        tree = Tree(self.cache, reserve=len(tokens) - prompt + reserve)
        self._make_room(len(tokens) + (min(reserve, SOME_TEXT) + self.promised if self.seated else 1))
        tree.append_stored(tokens[:prompt], self._visual_tokens(tokens, 0))
        self._policies.add(tree, policed)
        try:
            tree.append(tokens[prompt:])
        except FailureError:
            tree.release()
            raise
        return tree

    def open_memory(self, input: Sequence[int] | Clip) -> Memory:
        """Returns the memory of an input, which `close_memory` gives up.

        Raises:
            UsageError: Where the encoder can't read that many tokens.
            CacheFull: When there is no room for it at present.
        """
        assert self.memories is not None, "the model has an encoder"
        assert self.model.encoder is not None, "the model has an encoder"
        limit = self.model.encoder.config.max_positions
        if not 1 <= len(input) <= limit:
            raise UsageError(f"the encoder of {self.model.name} reads an input of 1 to {limit}, not of {len(input)}")
        while True:
            try:
                return self.memories.open(input)
            except CacheFull:
                if self.cache.rescue is None or not self.cache.rescue():
                    raise

    def close_memory(self, memory: Memory) -> None:
        """Gives up a memory; its last reader frees it."""
        assert self.memories is not None, "the model has an encoder"
        self.memories.close(memory)

    def canvas(self, tree: Tree, tokens: Sequence[int], *, mask: int, block: int = 0) -> Canvas:
        """Returns a canvas of these tokens behind the trunk of a tree; see `Canvas`.

        Raises:
            CacheFull: When the cache has no room for it at present.
        """
        self._make_room(len(tokens))
        return Canvas(tree, tokens, mask=mask, block=block)

    def _make_room(self, needed: int) -> None:
        while not self.cache.has_room(needed):
            if self.cache.rescue is None or not self.cache.rescue():
                raise CacheFull(f"{self.model.name} has no room for {needed} more tokens in its cache")

    def hold(self, node: Node, logits: Tensor) -> HeldPrefix:
        """Holds the path to a computed node, and its logits [vocab], until the prefix is released."""
        held = HeldPrefix(self.cache, node, self._last_logits)
        self._last_logits[node] = logits.float().clone()
        return held

    def remember(self, node: Node, memory: Memory | None = None) -> None:
        """Keeps the path to `node` for requests to come: those with the same memory."""
        prefixes = self.prefixes if memory is None else memory.prefixes
        if prefixes is not None:
            prefixes.insert(node)

    def clear(self) -> None:
        """Forgets all cached prefixes and inputs."""
        for kept in (self.prefixes, self.memories, self.visuals):
            if kept is not None:
                kept.clear()

    def advance(self, requests: Sequence[Forward | Denoise | Encode]) -> Served | None:
        """Does one pass for these requests and finishes those whose rows are all computed.

        Requests whose share of the pass is above their budget are refused, and the pass is planned without them. Inputs
        that a request needs and nobody read yet are read by the encoder first. Runs under a cache policy have
        passes of their own.
        """
        if self._encoder is None:
            return self._advance_read(requests)
        read = self._encode(requests, self._encoder)
        served = self._advance_read([request for request in requests if not request.done])
        if not read:
            return served
        return Served(self.last, {}, read) if served is None else served._replace(read=read)

    def _advance_read(self, requests: Sequence[Forward | Denoise | Encode]) -> Served | None:
        """As `advance`, for requests whose inputs are read."""
        policed = [request for request in requests if isinstance(request, Forward) and under_policy(request)]
        if not policed:
            return self._advance_plain(requests)
        plain = [request for request in requests if not (isinstance(request, Forward) and under_policy(request))]
        passes = [self._advance_plain(plain) if plain else None, *self._advance_policed(policed)]
        done = [each for each in passes if each is not None]
        return (
            Served(self.last, {account: nodes for each in done for account, nodes in each.nodes.items()})
            if done
            else None
        )

    def _advance_policed(self, forwards: Sequence[Forward]) -> list[Served | None]:
        """Reads the prompt of the first run that waits for it, and does a step of all that have theirs."""
        policies = self._policies
        assert policies is not None, "a run under a policy was planted"
        for forward in forwards:
            self._begin_or_update(forward)
            if not forward.done:
                policies.begin(forward)
        live = [forward for forward in forwards if not forward.done]
        steps = [forward for forward in live if not policies.waits(forward)]
        unread = [forward for forward in live if policies.waits(forward)]
        return [
            self._step(steps, policies) if steps else None,
            self._read_prompt(unread[0], policies) if unread else None,
        ]

    def _step(self, forwards: list[Forward], policies: PolicyPasses) -> Served | None:
        """Does one pass over what runs under policies ask for."""
        rewrites = policies.prepare(forwards)
        while True:
            shares = self._schedule.pick([forward for forward in forwards if not forward.done])
            if not shares:
                return None
            planned = _Planned(shares, (), self.cache, self.decoder.config.windows, self.sharing)
            costs = policies.cost.split(planned.rows, planned.plan)
            for account, cost in costs.items():
                if rewrites.get(account):
                    cost.extras["rewrites"] = rewrites[account]
            self.holdings.add_to(costs)
            if not self._refused(costs, forwards):
                run = partial(policies.run, list(planned.groups.items()))
                return self._run_pass(planned, costs, run)

    def _read_prompt(self, forward: Forward, policies: PolicyPasses) -> Served | None:
        """Reads the prompt of a run under a policy, whole."""
        account, count = forward.account, policies.prompt_length(forward)
        cost = self._prompt_cost(count)
        most = replace(cost, flops=cost.flops + policies.most_flops(forward))
        if self._refused({account: most}, [forward]):
            return None
        started = time.perf_counter()
        try:
            read = policies.read(forward)
        except (RuntimeError, MemoryError) as error:
            forward.fail(FailureError(f"a pass of {self.model.name} over a prompt of {count} tokens failed: {error}"))
            return None
        except Exception as error:  # a policy's own mistake fails this run, and no other
            forward.fail(error)
            return None
        cost += read.cost
        self.holdings.add_to({account: cost})
        if cap := account.first_over(cost):
            cost.kv_held = 0  # nothing is kept
            forward.refuse(cap)
        self._book({account: cost}, count, time.perf_counter() - started)
        return Served(self.last, {account: read.nodes})

    def _prompt_cost(self, count: int) -> Ledger:
        """Returns what a pass over the `count` tokens of a prompt costs, without its attention."""
        passes: dict[str, Any] = {f"{self.role}_passes": 1, f"{self.role}_tokens": count}
        flops, weights = self.decoder.linear_flops(count, 1), self.decoder.pass_weight_bytes(count)
        return Ledger(flops=flops, weight_bytes=weights, **passes)

    def _refused(self, costs: Mapping[Account, Ledger], requests: Sequence[Request]) -> bool:
        """Refuses the requests of accounts that can't pay; tells whether there are any."""
        over = {account: cap for account, cost in costs.items() if (cap := account.first_over(cost))}
        for request in requests:
            if request.account in over:
                request.refuse(over[request.account])
        return bool(over)

    def _advance_plain(self, requests: Sequence[Forward | Denoise | Encode]) -> Served | None:
        """As `_advance_read`, for requests of runs without a policy."""
        forwards = [request for request in requests if isinstance(request, Forward)]
        denoises = [request for request in requests if isinstance(request, Denoise)]
        for request in requests:
            if isinstance(request, Denoise):
                self._begin_canvas(request)
            elif isinstance(request, Forward):
                self._begin_or_update(request)
        while True:
            canvases = self._schedule.pick_canvases([denoise for denoise in denoises if not denoise.done])
            waiting = [forward for forward in forwards if not forward.done]
            shares = self._schedule.pick(waiting, canvases=bool(canvases))
            if not shares and not canvases:
                return None
            planned = _Planned(shares, canvases, self.cache, self.decoder.config.windows, self.sharing)
            costs = self._cost.split(planned.rows, planned.plan)
            self.holdings.add_to(costs)
            if not self._refused(costs, requests):
                return self._run_pass(planned, costs, self._pass)

    def _encode(self, requests: Sequence[Forward | Denoise | Encode], encoder: EncoderPasses[Any]) -> list[InputsRead]:
        """Reads the inputs that requests need, each in a pass with others, for who asked first and can pay."""
        done: list[InputsRead] = []
        needed = {request: self._inputs_of(request) for request in requests}
        while True:
            due: dict[Read, Request] = {}
            for request, inputs in needed.items():
                for input in inputs:
                    if not input.computed and not request.done:
                        due.setdefault(input, request)
            if not due:
                break
            batch = encoder.batch(list(due))
            costs = encoder.split(batch, [due[input].account for input in batch])
            over = {account: cap for account, cost in costs.items() if (cap := account.first_over(cost))}
            for request in requests:
                if request.account in over and not request.done:
                    request.refuse(over[request.account])
            if over:
                continue
            started = time.perf_counter()
            try:
                fresh = encoder.run(batch)
            except (RuntimeError, MemoryError) as error:
                rows = sum(map(len, batch))
                for request, inputs in needed.items():
                    if not {*inputs}.isdisjoint(batch):
                        request.fail(FailureError(f"{self.model.name} failed to read {rows} tokens: {error}"))
                continue
            for account, cost in costs.items():
                account.charge(cost)
                self.ledger += cost
            if fresh:
                done.append(self._input_pass(fresh, due, time.perf_counter() - started))
        if self.visuals is not None:
            read = {input for inputs in needed.values() for input in inputs if isinstance(input, Visual)}
            self.visuals.keep({visual for visual in read if visual.computed})
        for request in requests:
            if isinstance(request, Encode) and not request.done:
                request.finish(request.inputs)
        return done

    def _input_pass(self, fresh: Sequence[Read], due: Mapping[Read, Request], seconds: float) -> InputsRead:
        """Reports a pass over inputs that nobody had read, each due to a request."""
        rows: dict[Account, int] = {}
        for input in fresh:
            account = due[input].account
            rows[account] = rows.get(account, 0) + len(input)
        self._input_passes += 1
        return InputsRead(
            PassReport(self._input_passes, sum(rows.values()), len(rows), seconds, self.cache.bytes()), rows
        )

    def _inputs_of(self, request: Forward | Denoise | Encode) -> Sequence[Read]:
        """Returns what a request needs an encoder or a vision tower to have read."""
        if isinstance(request, Encode):
            return request.inputs
        if not isinstance(request, Forward) or not request.nodes:
            return ()
        if self.visuals is None:
            memory = request.nodes[0].tree.memory
            return () if memory is None else (memory,)
        rows = request.pending or [*request.owed, *uncomputed(request.nodes)]
        embeds = [node.input_embed for node in rows]
        return list(dict.fromkeys(embed.visual for embed in embeds if isinstance(embed, VisualToken)))

    def _begin_or_update(self, forward: Forward) -> None:
        if forward.begun:
            forward.update_pending()
        else:
            self._begin(forward)

    def _begin(self, forward: Forward) -> None:
        """Finds out what a request computes; fails it where that can't be computed, so that no other fails with it."""
        if any(forward.tree_of(node) is None for node in forward.nodes):
            forward.fail(ValueError("a pass is asked over a node that no tree of the run holds any more"))
            return
        if self._answer(forward):
            return
        forward.update_pending()
        self._refuse_unreadable(forward, forward.pending)

    def _answer(self, forward: Forward) -> bool:
        """Answers a request whose logits are all held, without a pass; tells whether they were."""
        known = self._last_logits
        more = forward.owed or forward.layer_states or forward.attention
        if more or not forward.nodes or not all(node in known for node in forward.nodes):
            return False
        forward.update_pending()
        nodes = forward.pending
        output = output_of(torch.stack([known[node] for node in nodes]), wanted_by([forward], nodes))
        forward.settle(nodes, output, {node: row for row, node in enumerate(nodes)})
        return True

    def _begin_canvas(self, denoise: Denoise) -> None:
        """As `_begin`, for a canvas."""
        try:
            denoise.begin()
        except ValueError as error:
            denoise.fail(error)
        else:
            self._refuse_unreadable(denoise, denoise.cells)

    def _refuse_unreadable(self, request: Forward | Denoise, rows: Sequence[Row]) -> None:
        """Fails a request with a row whose position or token the model can't read."""
        reach, vocab = self.decoder.config.max_positions, self._vocab
        for row in rows:
            if row.position >= reach:
                request.fail(FailureError(f"{self.model.name} reads at most {reach} tokens of a text"))
                return
            if not NO_TOKEN <= row.token < vocab:
                request.fail(ValueError(f"token {row.token} is not among the {vocab} that {self.model.name} reads"))
                return

    def _run_pass(self, planned: _Planned, costs: dict[Account, Ledger], run: RunPass) -> Served | None:
        started = time.perf_counter()
        shares, order = planned.shares, planned.order
        forwards = [forward for forward, _ in shares]
        heads = [row for row, node in enumerate(order) if node in planned.rows.wanted]
        wanted = wanted_by(forwards, [order[row] for row in heads]) if forwards else ALL_LOGITS
        try:
            output = run(planned.plan, heads, wanted._replace(logits=wanted.logits or bool(planned.canvases)))
        except (RuntimeError, MemoryError) as error:
            for request in (*forwards, *planned.canvases):
                request.fail(FailureError(f"a pass of {self.model.name} over {len(order)} tokens failed: {error}"))
            return None
        elapsed = time.perf_counter() - started
        self._schedule.observe(shares, elapsed)
        self._book(costs, len(order), elapsed)
        keeps_states = self.cache.hidden_states is not None
        for row in order:
            row.computed = True
            row.has_state = keeps_states

        places: dict[Row, int] = {order[row]: index for index, row in enumerate(heads)}
        computed: dict[Account, list[Row]] = {account: [] for account in costs}
        for forward, nodes in shares:
            forward.settle(nodes, output, places)
            computed[forward.account] += nodes
        for denoise in planned.canvases:
            denoise.settle(output, places)
            computed[denoise.account] += denoise.cells
        return Served(self.last, computed)

    def _book(self, costs: Mapping[Account, Ledger], rows: int, seconds: float) -> None:
        """Charges what a pass cost, and reports it."""
        self.pass_seconds += seconds
        self.last = PassReport(self.passes + 1, rows, len(costs), seconds, self.cache.bytes())
        for account, cost in costs.items():
            account.charge(cost)
            self.ledger += cost
        self.holdings.settle(costs)


class _Planned:
    """The rows of a pass, and its plan: those of trees first, then those of canvases."""

    def __init__(
        self,
        shares: Sequence[Share],
        canvases: Sequence[Denoise],
        cache: Cache,
        windows: Sequence[int | None],
        sharing: BreakEven,
    ) -> None:
        self.shares, self.canvases = shares, canvases
        groups = self.groups = dict(group_by_tree(shares))
        owner: dict[Row, Account] = {node: forward.account for forward, nodes in shares for node in nodes}
        wanted: set[Row] = {node for forward, _ in shares for node in forward.nodes}
        for denoise in canvases:
            wanted.update(denoise.heads)
            for head in denoise.heads:
                if isinstance(head, Node) and head not in owner:  # the trunk's last, which is computed once more
                    groups.setdefault(denoise.canvas.tree, []).append(head)
                    owner[head] = denoise.account
            owner.update((cell, denoise.account) for cell in denoise.cells)
        cells = [(denoise.canvas, denoise.cells) for denoise in canvases if denoise.cells]
        self.plan: PassPlan = plan_pass(list(groups.items()), cache.positions, windows, cells, sharing)
        self.order: list[Row] = [node for nodes in groups.values() for node in nodes]
        self.order += [cell for _, row in cells for cell in row]
        self.rows = PassRows(self.order, [owner[row] for row in self.order], wanted)
