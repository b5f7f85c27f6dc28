"""A prefix that a program holds: computed once, with its last logits, for as many requests as come while it is held."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from outlay.budget import Ledger
from outlay.engine.handle import Handle, Result
from outlay.engine.held_prefix import HeldPrefix
from outlay.engine.method import About, Method, Work
from outlay.engine.tree_run import TreeRun
from outlay.errors import UsageError
from outlay.prompt_tree import Part, PromptTree

if TYPE_CHECKING:
    from outlay.lm import LM, Stream


@dataclass(frozen=True)
class Prefill(Method):
    """Computes a prompt and writes nothing; `keep` is called with what is then held."""

    keep: Callable[[HeldPrefix], None]
    """What takes the prefix."""

    about: ClassVar[About] = About(
        name="prefill",
        summary="computes a prompt and writes nothing",
        paper="",
        family="sharing",
        spends="the prompt's passes",
        saves="them, for all that begins alike",
    )

    def decode(self, run: TreeRun) -> Work:
        logits = yield run.target.forward([run.tip])
        self.keep(run.target.worker.hold(run.tip, logits[0]))


class SharedPrefix:
    """A prefix that is held until `close`, or the end of its `with` block; `LM.shared` makes one.

    Requests keep it as it is (Hydragen's "preserve"): what they add is theirs. `extend` makes it longer for all that
    follow, `wipe` puts another in its place. What a request shares of it ends at the last token in which both agree.
    """

    def __init__(self, lm: LM, prefix: Part, *, separator: str = "\n\n", **encoding: Any) -> None:
        """Computes a prefix.

        Args:
            lm: The model.
            prefix: A text, chat messages or token ids.
            separator: What stands between two texts.
            **encoding: How prompts are read: options of `LM.encode`.

        Raises:
            UsageError: For a prefix that is empty or can't be read, and a model that can't hold one.
            FailureError: Where it does not fit into the cache.
        """
        if lm.model.writes_canvas:
            raise UsageError(
                f"{lm.name} fills masks on a canvas; a shared prefix is for models that write from left to right"
            )
        self._lm, self._separator, self._encoding = lm, separator, encoding
        self.ledger = Ledger()
        self._held: HeldPrefix | None = None
        self._prefix = prefix
        self._hold(prefix)

    def __enter__(self) -> SharedPrefix:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def tokens(self) -> list[int]:
        """The prefix's token ids, -1 where it has an image."""
        return list(self._open().tokens)

    def generate(self, prompt: Part | PromptTree | None = None, **options: Any) -> Result:
        """Answers a prompt after the prefix, as `LM.generate` answers both together.

        Args:
            prompt: What follows the prefix: a text, messages, token ids, or a tree of them; None where nothing does, so
                that the first tokens come from the prefix's last logits without a pass.
            **options: Those of `LM.generate`.
        """
        return self._lm.generate(self._whole(prompt), prefix=self._open(), **self._encoding, **options)

    async def agenerate(self, prompt: Part | PromptTree | None = None, **options: Any) -> Result:
        """As `generate`, without blocking the event loop."""
        return await self._lm.agenerate(self._whole(prompt), prefix=self._open(), **self._encoding, **options)

    def submit(self, prompt: Part | PromptTree | None = None, **options: Any) -> Handle:
        """Starts a run after the prefix and returns its handle at once; see `LM.submit`."""
        return self._lm.submit(self._whole(prompt), prefix=self._open(), **self._encoding, **options)

    def stream(self, prompt: Part | PromptTree | None = None, **options: Any) -> Stream:
        """Answers a prompt after the prefix piece by piece; see `LM.stream`."""
        return self._lm.stream(self._whole(prompt), prefix=self._open(), **self._encoding, **options)

    def extend(self, part: Part) -> SharedPrefix:
        """Adds to the prefix; what is held of it is not computed again. Returns the prefix."""
        whole = self._whole(part)
        if isinstance(whole, PromptTree):
            raise UsageError("a prefix is extended by one text, by messages or by token ids, not by a tree of prompts")
        self._hold(whole)
        return self

    def wipe(self, prefix: Part) -> SharedPrefix:
        """Gives up the prefix, and holds another one in its place. Returns it."""
        self.close()
        self._hold(prefix)
        return self

    def close(self) -> None:
        """Gives up what is held; what running requests hold of it stays theirs."""
        held, self._held = self._held, None
        if held is not None:
            self._lm.engine.release(held)

    def _hold(self, prefix: Part) -> None:
        """Computes a prefix, as far as the one before is not its beginning, and holds it in that one's place."""
        kept: list[HeldPrefix] = []
        run = self._lm.submit(prefix, method=Prefill(kept.append), prefix=self._held, **self._encoding)
        self.ledger += run.result().ledger
        self.close()
        self._held, self._prefix = kept[0], prefix

    def _open(self) -> HeldPrefix:
        if self._held is None:
            raise UsageError("this prefix is no longer held; use it inside its `with` block, or make another")
        return self._held

    def _whole(self, prompt: Part | PromptTree | None) -> Part | PromptTree:
        """Returns a prompt with the prefix before it."""
        self._open()
        if prompt is None:
            return self._prefix
        tree = PromptTree(self._prefix, [prompt], self._separator)
        leaves = tree.leaves()
        return tree if isinstance(prompt, PromptTree) or len(leaves) > 1 else leaves[0]
