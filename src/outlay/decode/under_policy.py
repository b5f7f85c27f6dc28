"""Greedy decoding or sampling under a cache policy that is named as a method: `--method zipvl` is `--cache zipvl`."""

from __future__ import annotations

from dataclasses import dataclass, replace

from outlay.attend.policy import CachePolicy
from outlay.engine.method import Method, Work
from outlay.engine.tree_run import TreeRun


@dataclass(frozen=True)
class UnderPolicy(Method):
    """Takes the most probable token at temperature 0, and draws each token above, with what the policy keeps."""

    policy: CachePolicy
    """The policy, by whose name and options this method is known."""

    def __post_init__(self) -> None:
        about = replace(self.policy.about, takes=("constraint", "cache"))
        for name, value in (("about", about), ("cache_policy", self.policy)):
            object.__setattr__(self, name, value)

    @property
    def label(self) -> str:
        return self.policy.label

    def decode(self, run: TreeRun) -> Work:
        node = run.tip
        while True:
            node = run.commit((yield from run.next_token(node)))
