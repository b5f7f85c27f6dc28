"""How far one model's linear layers and logits are from another's."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from outlay.lm import LM
from outlay.models.decoder import Decoder
from outlay.models.experts import ExpertMlp
from outlay.models.linear import Linear
from outlay.models.mlp import Mlp, Sparsification
from outlay.prompt_logits import BLOCK, logits_from
from outlay.shrink.pvq import PVQ


def windows(tokens: Sequence[int], size: int, count: int, prefix: Sequence[int] = ()) -> list[list[int]]:
    """Returns up to `count` windows of `size` tokens, spread evenly over the text.

    The windows to choose from begin half a window apart. Scoring the second half of each then scores every token of the
    text once (but for the first half window), with half a window to a whole one of context.

    Args:
        tokens: the text.
        size: tokens of a window, `prefix` included.
        count: how many windows; fewer where the text has fewer.
        prefix: tokens that every window begins with.
    """
    inner = size - len(prefix)
    starts = range(0, len(tokens) - inner + 1, size // 2)
    count = min(count, len(starts))
    picked = [starts[(2 * i + 1) * len(starts) // (2 * count)] for i in range(count)]
    return [[*prefix, *tokens[start : start + inner]] for start in picked]


def compare(reference: Tensor, logits: Tensor, targets: Tensor) -> dict[str, float]:
    """Compares predictions of n tokens with those of a reference.

    Args:
        reference: the reference's log-probabilities, float32 [n, vocab].
        logits: the predictions, float32 [n, vocab].
        targets: the tokens that follow in the text, int64 [n].

    Returns:
        Sums over the n tokens: `tokens` (n), `nll` and `reference_nll` (negative log-likelihoods of the targets, nats),
        `squares` (of the differences between the two), `kl` (Kullback-Leibler divergence from the reference, nats) and
        `agreed` (where the most probable token is the same).
    """
    sums = dict.fromkeys(("tokens", "nll", "reference_nll", "squares", "kl", "agreed"), 0.0)
    for theirs, ours, following in zip(*(each.split(BLOCK) for each in (reference, logits, targets)), strict=True):
        ours = ours.log_softmax(-1)
        nll, reference_nll = (-each.gather(1, following[:, None])[:, 0].double() for each in (ours, theirs))
        sums["tokens"] += len(following)
        sums["nll"] += float(nll.sum())
        sums["reference_nll"] += float(reference_nll.sum())
        sums["squares"] += float((nll - reference_nll).square().sum())
        sums["agreed"] += int((ours.argmax(-1) == theirs.argmax(-1)).sum())
        sums["kl"] += float((theirs.exp() * (theirs - ours)).sum(dtype=torch.float64))
    return sums


def block_changes(reference: Tensor, logits: Tensor, targets: Tensor) -> list[float]:
    """Returns the mean change of the targets' negative log-likelihood over blocks of tokens that follow each other.

    Args:
        reference: the reference's log-probabilities, float32 [n, vocab].
        logits: the predictions, float32 [n, vocab].
        targets: the tokens that follow in the text, int64 [n].

    Returns:
        Nats a token, for each whole block of 256; for all n together where they are fewer.
    """
    size = min(BLOCK, len(targets))
    changes = []
    for theirs, ours, following in zip(*(each.split(size) for each in (reference, logits, targets)), strict=True):
        if len(following) == size:
            nll, reference_nll = (
                -each.gather(1, following[:, None])[:, 0].double() for each in (ours.log_softmax(-1), theirs)
            )
            changes.append(float((nll - reference_nll).mean()))
    return changes


class Tap(Linear):
    """Wraps a linear layer and keeps its last input, x [n, in], as `seen`."""

    def __init__(self, inner: Linear) -> None:
        self.inner, self.format, self.nbytes = inner, inner.format, inner.nbytes
        self.in_features, self.out_features = inner.in_features, inner.out_features
        self.seen: Tensor | None = None

    def __call__(self, x: Tensor) -> Tensor:
        """x [n, in] -> [n, out], in the dtype of x."""
        self.seen = x
        return self.inner(x)


def tap(decoder: Decoder) -> dict[str, Tap]:
    """Wraps every linear layer of a decoder that no engine runs yet in a `Tap`; returns the taps by name."""
    taps = {name: Tap(linear) for name, linear in linears(decoder).items()}
    _replace(decoder, taps)
    return taps


class CodedInputs(Linear):
    """Wraps a linear layer whose inputs are coded by `pvq`, token by token, and decoded again before it reads them."""

    def __init__(self, inner: Linear, code: PVQ) -> None:
        """Takes the layer and the code; `UsageError` where its groups don't divide the inputs."""
        code.check_inputs(inner.in_features, "a layer")
        self.inner, self.format, self.nbytes, self._code = inner, inner.format, inner.nbytes, code
        self.in_features, self.out_features = inner.in_features, inner.out_features

    def __call__(self, x: Tensor) -> Tensor:
        """x [n, in] -> [n, out], in the dtype of x."""
        return self.inner(self._code.coded(x))


def code_inputs(decoder: Decoder, code: PVQ) -> None:
    """Codes the inputs of every linear layer of a decoder that no engine runs yet, all but the LM head's."""
    found = linears(decoder)
    _replace(decoder, {name: CodedInputs(each, code) if name != "head" else each for name, each in found.items()})


def _replace(decoder: Decoder, new: Mapping[str, Linear]) -> None:
    """Puts layers in the places of a decoder's, by the names of `linears`."""
    for index, layer in enumerate(decoder.layers):
        for name, mlp in _mlps(index, layer.mlp):
            mlp.gate_up, mlp.down = new[f"{name}.gate_up"], new[f"{name}.down"]
    decoder.layers = tuple(
        replace(layer, qkv=new[f"{index}.qkv"], out=new[f"{index}.out"]) for index, layer in enumerate(decoder.layers)
    )
    decoder.lm_head = new["head"]


def linears(decoder: Decoder) -> dict[str, Linear]:
    """Returns the linear layers by name: "0.qkv", "0.out", "0.gate_up", "0.down" ... "head"."""
    found: dict[str, Linear] = {}
    for index, layer in enumerate(decoder.layers):
        found |= {f"{index}.qkv": layer.qkv, f"{index}.out": layer.out}
        for name, mlp in _mlps(index, layer.mlp):
            found |= {f"{name}.gate_up": mlp.gate_up, f"{name}.down": mlp.down}
    return found | {"head": decoder.lm_head}


def _mlps(index: int, mlp: Mlp | ExpertMlp | Sparsification) -> Iterator[tuple[str, Mlp]]:
    if isinstance(mlp, ExpertMlp):
        yield from ((f"{index}.{expert}", each) for expert, each in enumerate(mlp.experts))
    elif isinstance(mlp, Mlp):
        yield str(index), mlp


def layer_errors(taps: Mapping[str, Tap], decoder: Decoder) -> dict[str, float]:
    """Returns each linear layer's error, |y - y'| / |y| over all rows and outputs (Frobenius norms), by name.

    Experts that had no input are left out.

    Args:
        taps: the layers of the reference. y is their output on the input that they had last.
        decoder: its layers of the same names give y' on the same input.
    """
    ours, errors = linears(decoder), {}
    for name, each in taps.items():
        if each.seen is not None:
            expected = each.inner(each.seen).double()
            change = ours[name](each.seen).double() - expected
            errors[name] = float(torch.linalg.vector_norm(change) / torch.linalg.vector_norm(expected))
    return errors


def same_tokens(lm: LM, prompts: Sequence[Sequence[int]], written: Sequence[Sequence[int]]) -> list[int]:
    """Returns how many tokens of each text in `written` greedy decoding gives before its first different token.

    Up to that token its input is the text itself, so one pass over the text gives the answer.

    Args:
        lm: the model that decodes.
        prompts: token ids of the prompts.
        written: token ids of the texts after them.
    """
    return [_same_length(lm, *pair) for pair in zip(prompts, written, strict=True)]


def _same_length(lm: LM, prompt: Sequence[int], written: Sequence[int]) -> int:
    choices = logits_from(lm, [*prompt, *written[:-1]], len(prompt) - 1).argmax(-1).tolist()
    different = (index for index, (one, other) in enumerate(zip(choices, written, strict=True)) if one != other)
    return next(different, len(written))
