"""CRATE beside transformers of its width: parameters, processor time, the cache of a language model, and digits."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from outlay.bench.arch.nets import write_decoder_only
from outlay.bench.peer import peer
from outlay.errors import FailureError
from outlay.lm import load
from outlay.models import hub
from outlay.progress import ShowProgress
from outlay.train.crate import CrateLM
from outlay.vision import crate
from outlay.vision.crate.blocks import SubspaceAttention

DIM, HEADS, DEPTH, TOKENS = 384, 6, 12, 196  # CRATE-Tiny, and the patches of its picture
SHIPPED, WRITTEN, START = "outlay/tiny-crate", (16, 64, 256), "It was"
DIGITS: dict[str, Any] = {"image_size": 8, "patch": 2, "channels": 1, "classes": 10}
TRAINED, EPOCHS, RATE = 1347, 40, 2e-3  # digits that are trained on; AdamW's learning rate
BATCH = 8  # rates fall while there is an error: larger batches take fewer steps until there is none
EPS2 = (0.01, 0.1)  # squared quantisation errors: that of the released measure, and a coarser one


def measure_white_box(folder: Path, rounds: int, seeds: int, progress: ShowProgress) -> dict[str, Any]:
    """Measures CRATE.

    Args:
        folder: Where the twin is written.
        rounds: How often times are taken, in turns.
        seeds: Networks that are trained on digits.
        progress: Is told how far the work is.

    Returns:
        `parameters` of a block by kind; `cpu`, the processor seconds of each round by kind; `cache`, the bytes by kind
        and length of a text; `same`, the tokens of the longest that are those of the network without a cache; `digits`;
        `missing`: why something was not measured, by name.
    """
    found = {"block": _blocks(rounds, progress), "missing": {}, **_language_model(folder), "digits": []}
    try:
        images, labels = digits()
    except FailureError as error:
        return found | {"missing": {"digits": str(error)}}
    for name in [*(f"CRATE, seed {seed}" for seed in range(seeds)), *(["transformer, seed 0"] if seeds else [])]:
        progress(f"digits, {name}", len(found["digits"]), seeds + 1)
        torch.manual_seed(int(name.split()[-1]))
        net = crate_of_digits() if name.startswith("CRATE") else TransformerOfDigits()
        found["digits"].append({"name": name, **_trained(net, images, labels)})
    return found


def _blocks(rounds: int, progress: ShowProgress) -> dict[str, Any]:
    """Parameters of a block, and processor seconds of the forward of all blocks, by kind."""
    torch.manual_seed(0)
    kinds = {
        "CRATE": nn.Sequential(*(crate.EncoderBlock(DIM, HEADS) for _ in range(DEPTH))).eval(),
        "transformer": nn.Sequential(*(transformer_block(DIM, HEADS) for _ in range(DEPTH))).eval(),
    }
    x, seconds = torch.randn(1, TOKENS, DIM), {name: list[float]() for name in kinds}
    with torch.inference_mode():
        for turn in range(4 * rounds + 1):
            for name, net in kinds.items():
                progress(f"blocks of {name}", turn, 4 * rounds + 1)
                started = time.process_time()
                net(x)
                if turn:  # the first warms up
                    seconds[name].append(time.process_time() - started)
    parameters = {name: sum(p.numel() for p in net[0].parameters()) for name, net in kinds.items()}
    return {"dim": DIM, "tokens": TOKENS, "depth": DEPTH, "parameters": parameters, "cpu": seconds}


def _language_model(folder: Path) -> dict[str, Any]:
    """The bytes that the cache of the shipped model and of its twin reads and holds, and the text without a cache."""
    source = hub.resolve(SHIPPED)
    lm = load(SHIPPED, dtype="float32", threads=1)
    config = lm.model.decoder.config
    longest = config.max_positions
    write_decoder_only(folder / "twin", config.num_layers, config.hidden_size, config.num_heads, 257, longest)
    twin = load(str(folder / "twin"), dtype="float32", threads=1)
    rows = []
    for length in WRITTEN:
        spent = {}
        for name, model in (("CRATE", lm), ("transformer", twin)):
            model.engine.clear()
            result = model.generate(lm.encode(START), method="greedy", max_tokens=length, ignore_eos=True)
            spent[name] = {"read": result.ledger.kv_bytes, "held": result.ledger.kv_held}
        rows.append({"tokens": length, "bytes": spent})
    text = lm.generate(START, method="greedy", max_tokens=max(WRITTEN), ignore_eos=True).tokens
    net = CrateLM(config.vocab_size, config.hidden_size, config.num_heads, config.num_layers, longest).eval()
    net.load_state_dict({name: weight.float() for name, weight in load_file(source / "model.safetensors").items()})
    anew = lm.encode(START)
    with torch.inference_mode():
        for _ in range(max(WRITTEN)):
            anew.append(int(net(torch.tensor([anew]))[0, -1].argmax()))
    same = sum(ours == theirs for ours, theirs in zip(text, anew[-max(WRITTEN) :], strict=True))
    return {"cache": rows, "same": same, "written": len(text)}


def digits() -> tuple[Tensor, Tensor]:
    """Returns scikit-learn's digits in an order of their own: float32 [n, 1, 8, 8] from -1 to 1, and labels [n].

    Raises:
        FailureError: scikit-learn is not installed.
    """
    datasets, _ = peer("sklearn.datasets", "scikit-learn")
    pixels, labels = datasets.load_digits(return_X_y=True)
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))
    return torch.from_numpy(pixels).float().view(-1, 1, 8, 8)[order] / 8 - 1, torch.from_numpy(labels).long()[order]


def crate_of_digits() -> crate.CrateClassifier:
    """Returns the network of the specification's experiment, with new weights.

    Its subspaces begin with orthonormal bases, as the theory has them. Bases drawn as those of linear layers differ by
    layer in the rate that they leave, by more than training changes it.
    """
    net = crate.CrateClassifier(**DIGITS, dim=64, heads=4, depth=4)
    for module in net.modules():
        if isinstance(module, SubspaceAttention):
            nn.init.orthogonal_(module.qkv.weight)
    return net


class TransformerOfDigits(nn.Module):
    """The baseline: the classifier of CRATE with a transformer's blocks."""

    def __init__(self, dim: int = 64, heads: int = 4, depth: int = 4) -> None:
        super().__init__()
        self.outer = crate.CrateClassifier(**DIGITS, dim=dim, heads=heads, depth=1)
        self.outer.transformer = nn.Sequential(*(transformer_block(dim, heads) for _ in range(depth)))  # type: ignore[assignment]

    def forward(self, images: Tensor) -> Tensor:
        """Takes [batch, 1, 8, 8] and returns logits [batch, 10]."""
        out: Tensor = self.outer(images)
        return out


def transformer_block(dim: int, heads: int) -> nn.Module:
    """Returns a block of a ViT: norms first, an MLP of four times the width."""
    return nn.TransformerEncoderLayer(dim, heads, 4 * dim, 0.0, "gelu", batch_first=True, norm_first=True)


def fit(net: nn.Module, images: Tensor, labels: Tensor) -> float:
    """Trains on the first digits as the specification's experiment does; returns processor seconds."""
    draw, started = torch.Generator().manual_seed(0), time.process_time()
    optimizer = torch.optim.AdamW(net.parameters(), lr=RATE)
    for _ in range(EPOCHS):
        for batch in torch.randperm(TRAINED, generator=draw).split(BATCH):
            loss = nn.functional.cross_entropy(net(images[batch]), labels[batch])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return time.process_time() - started


def rates(net: nn.Module, images: Tensor) -> dict[str, list[float]]:
    """Returns the coding rate of each layer on the digits that are held out, by squared quantisation error."""
    held = images[TRAINED:]
    return {str(eps2): [layer.coding_rate for layer in crate.diagnose(net, held, eps2=eps2)] for eps2 in EPS2}


def accuracy(net: nn.Module, images: Tensor, labels: Tensor) -> float:
    """Returns the share of the digits that are held out whose class is right."""
    with torch.inference_mode():
        right = net.eval()(images[TRAINED:]).argmax(1) == labels[TRAINED:]
    return float(right.double().mean())


def _trained(net: nn.Module, images: Tensor, labels: Tensor) -> dict[str, Any]:
    """Trains a network; returns its rates by layer before and after, where it is CRATE, and the share that is right."""
    is_crate = isinstance(net, crate.CrateClassifier)
    before = rates(net, images) if is_crate else None
    seconds = fit(net, images, labels)
    after = rates(net, images) if is_crate else None
    return {"before": before, "after": after, "accuracy": accuracy(net, images, labels), "cpu": seconds}
