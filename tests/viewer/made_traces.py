"""Traces made up for the tests of their page: drafted trees of any size, with marks, in the form that runs write."""

from __future__ import annotations

import json
import random

WORDS = [
    " the",
    " river",
    " runs",
    ",",
    " and",
    " so",
    "\n",
    " water",
    " falls",
    " </script>",
    " &amp;",
    " é",
    " 漢字",
    ".",
]


def drafted_run(run=0, nodes=200, prompt=12, seed=0, branching=(3, 2, 1), model="tiny", method="made", memory=0):
    """Returns the events of a run that drafts trees until it has grown about `nodes` nodes, over a memory's rows."""
    chance = random.Random(seed)
    events = [{"event": "start", "method": method, "model": model, "prompt": list(range(prompt))}]
    if memory:
        events.append({"event": "memory", "rows": memory, "kind": "sound", "bytes": 640 * memory})
        events.append(_pass("encoder", 1, [], memory, 0) | {"inputs": memory})
    events.append({"event": "grow", "nodes": [_row(n + 1, n or None, n, n) for n in range(prompt)]})
    events.append({"event": "keep", "nodes": list(range(1, prompt + 1))})
    grown, tip, position, tokens, passes = prompt, prompt, prompt, [], 0

    def grow(parent, at, origin):
        nonlocal grown
        grown += 1
        token = chance.randrange(len(WORDS))
        return grown, _row(grown, parent, token, at, **({"origin": origin} if origin else {}))

    events.append(_pass("target", passes, list(range(1, prompt + 1)), prompt, grown))
    while grown < nodes + prompt:
        level, rows, origin = [tip], [], chance.choice(["draft", "draft", "lookup"])
        for depth, width in enumerate(branching):
            fresh = [grow(parent, position + depth, origin) for parent in level for _ in range(width)]
            rows += [row for _, row in fresh]
            level = [node for node, _ in fresh]
        events.append({"event": "grow", "nodes": rows})
        events += [
            {"event": "mark", "node": row["node"], "score": round(chance.gauss(0, 1), 3), "round": passes}
            for row in rows
        ]
        passes += 1
        events.append(_pass("draft", passes, [10**6 + passes], 1, grown))
        events.append(_pass("target", passes, [tip, *(row["node"] for row in rows)], 2 + len(rows), grown))
        by_node = {row["node"]: row for row in rows}
        kept, at = [], chance.choice([None, *by_node])
        while at in by_node:
            kept.insert(0, at)
            at = by_node[at]["parent"]
        events.append({"event": "free", "nodes": [node for node in by_node if node not in kept]})
        events.append({"event": "keep", "nodes": kept})
        tip = kept[-1] if kept else tip
        position += len(kept)
        node, row = grow(tip, position, "")
        events += [{"event": "grow", "nodes": [row]}, {"event": "keep", "nodes": [node]}]
        tokens += [by_node[each]["token"] for each in kept] + [row["token"]]
        tip, position = node, position + 1
    events.append({"event": "finish", "reason": "length", "tokens": tokens})
    return [{"run": run, **event, "time": round(0.004 * i, 6)} for i, event in enumerate(events)]


def _row(node, parent, token, position, **more):
    return {
        "node": node,
        "parent": parent,
        "token": token,
        "text": WORDS[token % len(WORDS)],
        "position": position,
    } | more


def _pass(model, number, nodes, width, held):
    cost = {"seconds": 0.003, "cache_bytes": 1000 * held}
    return {"event": "pass", "model": model, "number": number, "nodes": nodes, "width": width, "runs": 2, **cost}


def as_lines(events):
    """Returns events as the text of a trace file."""
    return "".join(json.dumps(event) + "\n" for event in events)
