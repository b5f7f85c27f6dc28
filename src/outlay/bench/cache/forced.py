"""How probable a given continuation is after a prompt that a policy holds: one pass over it, behind the prompt's."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch

from outlay.engine.method import About, Method, Work
from outlay.engine.tree_run import TreeRun
from outlay.lm import LM


@dataclass(frozen=True)
class Forced(Method):
    """Computes the log-probabilities of given tokens behind the prompt, and writes nothing."""

    tokens: tuple[int, ...] = ()
    """The continuation."""

    about: ClassVar[About] = About(
        name="forced", summary="", paper="", family="", spends="two passes", saves="", takes=("cache",)
    )

    def decode(self, run: TreeRun) -> Work:
        chain = run.tree.extend(range(-1, len(self.tokens) - 2), self.tokens[:-1])
        logits = yield run.target.forward([run.tip, *chain])
        chosen = torch.tensor(self.tokens)[:, None]
        run.facts["nats"] = -float(logits.log_softmax(-1).gather(1, chosen).double().mean())


def measured(lm: LM, tokens: Sequence[int], prompt: int, cache: str | None) -> dict[str, Any]:
    """Returns what holds a text's first `prompt` tokens, and how well the others are told from them.

    Returns:
        `nats` a token; `payload` and `overhead`, bytes that hold the prompt, and `dense`, all of it in 16 bits; the
        `flops` of its attention with the probes' over those of dense attention; the `kept` share of each layer.
    """
    result = lm.generate(list(tokens[:prompt]), method=Forced(tuple(tokens[prompt:])), cache=cache, max_tokens=1)
    extras, nats = result.ledger.extras, result.facts["nats"]
    config = lm.model.decoder.config
    dense = 2 * 2 * config.num_layers * config.num_kv_heads * config.head_dim * prompt
    if cache is None:
        return {"nats": nats, "payload": dense, "overhead": 0, "dense": dense, "flops": 1.0, "kept": [1.0]}
    spent = extras["attention_flops"] + extras["probe_flops"]
    return {
        "nats": nats,
        "payload": extras["kv_payload"],
        "overhead": extras["kv_overhead"],
        "dense": dense,
        "flops": spent / extras["attention_flops_dense"],
        "kept": result.facts["cache"]["important"],
    }
