"""VASparse: captions that name less of what the picture does not show, at one pass a token (Zhuang et al., CVPR 2025).

Late in a caption the habits of language win over the picture. Three parts work against that: of the text written so
far each layer keeps the tokens that attention reads or that looked at the picture themselves; the logits are contrasted
with those of a branch that hardly sees the picture; and text tokens that soak up attention are weighted down. What the
paper and its released code leave open is completed as each option says. It is not exact: it is meant to write something
else.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, Literal

from outlay.decode.vasparse.decoding import Decoding, Written, image_positions
from outlay.engine.method import About, Method, Work
from outlay.engine.submission import Submission
from outlay.engine.tree_run import TreeRun
from outlay.engine.views import COUNTS
from outlay.errors import UsageError

CONTRASTS = "embedding, exit:K (K layers) or full"


@dataclass(frozen=True)
class VASparse(Method):
    """Visual-aware token selection, contrast with a branch that sees less of the picture, and calibrated sinks."""

    alpha: float = 0.1
    """How much the logits are moved away from the branch's: (1 + alpha) * logits - alpha * branch. 0: not at all."""
    mask_rate: float = 0.5
    """Share of a picture's tokens that the branch does not see; drawn once a picture."""
    keep: float = 0.9
    """Share of the written tokens whose keys and values a layer keeps."""
    window: int = 16
    """Written tokens after which those are chosen anew."""
    lam: float = 0.1
    """Weight of how much a token looked at the picture, beside its squared attention."""
    gamma: float = 0.1
    """Exponent by which text tokens that soak up attention are weighted down, in layers from the third on; 0: none."""
    contrast: str = "embedding"
    """The branch: `embedding` (the LM head over the last token's embedding, which sees no picture at all), `exit:K`
    (the first K layers and the LM head, over what the mask leaves of the picture) or `full` (all layers: VCD)."""
    prune: Literal["visual", "attention", "merge_oldest"] = "visual"
    """What a layer keeps: by attention and sight of the picture, by attention alone, or all but the oldest, which
    become one by their mean (as the released code does)."""
    plausibility: float = 0.1
    """Only tokens at least this probable relative to the most probable one can be chosen; 0: any."""
    dola: bool = False
    """Whether the log-probabilities of the embedding branch are subtracted from the model's before the contrast."""
    seed: int = 0
    """Seed of the mask, which depends on it and the picture alone."""
    strict: bool = True
    """Whether a prompt without a picture is refused; otherwise it is decoded with lam=0 and without the contrast, as
    the result's facts say."""
    gate: Callable[[Written], bool] | None = None
    """Called with what is written before each token: whether to contrast there. None: everywhere."""

    about: ClassVar[About] = About(
        name="vasparse",
        summary="captions with fewer objects that the picture does not show",
        paper="CVPR 2025, Zhuang et al.",
        family="steering",
        spends="one target pass a token, and a product with the LM head (exit:K: K layers; full: a second pass)",
        saves="keys and values of written tokens",
        takes=("constraint",),
        exact=False,
        texts=("contrast",),
        counts={**COUNTS, "tokens_pruned": "tokens"},
    )

    def __post_init__(self) -> None:
        for name, wanted, holds in (
            ("alpha", "0 or more", 0 <= self.alpha < math.inf),
            ("mask_rate", "from 0 to below 1", 0 <= self.mask_rate < 1),
            ("keep", "above 0 and at most 1", 0 < self.keep <= 1),
            ("window", "1 or more", self.window >= 1),
            ("lam", "0 or more", 0 <= self.lam < math.inf),
            ("gamma", "0 or more", 0 <= self.gamma < math.inf),
            ("plausibility", "from 0 to 1", 0 <= self.plausibility <= 1),
        ):
            if not holds:
                raise UsageError(f"vasparse needs {name} {wanted}, not {getattr(self, name)}")
        kind, _, depth = self.contrast.partition(":")
        if not (self.contrast in ("embedding", "full") or (kind == "exit" and depth.isdecimal())):
            raise UsageError(f"vasparse needs a contrast of {CONTRASTS}, not {self.contrast!r}")

    def depth(self, layers: int) -> int:
        """Returns the layers of the branch, in a model with `layers` of them."""
        if self.contrast == "embedding":
            return 0
        return layers if self.contrast == "full" else int(self.contrast.partition(":")[2])

    def check(self, submission: Submission) -> None:
        decoder = submission.model.decoder
        config, name = decoder.config, submission.model.name
        if self.depth(config.num_layers) > config.num_layers:
            raise UsageError(f"vasparse can't leave {name} after {self.contrast}: it has {config.num_layers} layers")
        if self.strict and not image_positions(submission.prompt):
            raise UsageError(
                "vasparse needs a picture in the prompt, as images= or --image; without one strict=false decodes with "
                "lam=0 and no contrast"
            )
        if decoder.code != "native" or decoder.relative is not None or config.cross_size:
            raise UsageError(
                f"vasparse needs the attention of one row, which {name} gives no one: its layers are not ours, or it "
                "has biases by distance or an encoder; choose a model that `outlay models` calls native"
            )
        if self.keep < 1 and any(window is not None for window in config.windows):
            raise UsageError(f"vasparse can't drop tokens of {name}, whose layers see a window of them; set keep=1")

    def decode(self, run: TreeRun) -> Work:
        decoding = Decoding(self, run)
        logits = yield from decoding.read_prompt()
        for node in decoding.written():  # where the run begins anew, what it wrote is read as it was
            logits = yield from decoding.read(node)
        while True:
            node = run.commit(run.sampler.pick(logits, run.tip))
            if run.finish_reason is not None:
                return
            logits = yield from decoding.read(node)
