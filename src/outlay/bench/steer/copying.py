"""Verbatim copies against usefulness: anchored decoding of a small model that memorised passages, beside baselines.

The safe model is trained on a novel alone. The risky one also reads Python's standard library, and twenty passages of
it again and again. Both have the same shape, tokens and number of steps.
"""

from __future__ import annotations

import json
import math
import tempfile
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher
from pathlib import Path
from typing import Any, ClassVar

import tokenizers
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from tokenizers import decoders, models, pre_tokenizers, trainers
from torch import Tensor

from outlay.bench.data import NOVEL
from outlay.decode.steer.anchored import Anchored
from outlay.decode.steer.anchored.fusion import fuse
from outlay.decode.steer.anchored.pairs import TokenPair
from outlay.engine.engine import Engine
from outlay.engine.method import About, Method, Work
from outlay.engine.sampling import invert
from outlay.engine.tree_run import TreeRun
from outlay.lm import LM, set_threads
from outlay.models.load import Model, load_model
from outlay.progress import ShowProgress
from outlay.python_sources import library_sources
from outlay.train.schedule import schedule
from outlay.train.small_llama import EPS, THETA, SmallLlama

SAFE, RISKY, ANCHORED, UNBANKED, MIXED = "safe alone", "risky alone", "anchored", "k each step, no bank", "p mixed"
BUDGETS = (0.1, 0.25, 0.5, 1.0, 1.5, 2.0)  # nats a token, which has 2 to 3 characters here
SHARES = (0.3, 0.5, 0.7, 0.9)  # of the risky model, where probabilities are mixed
VOCABULARY, END = 512, "<end>"
PASSAGES, PASSAGE, PROMPT = 20, 320, 100  # passages, and characters of each and of its beginning, the prompt
USEFUL = 100  # prompts of code that neither model has read
NEW = 40  # tokens that are written behind a prompt
CODE = 900_000  # characters of code: a third for the risky model, the rest for passages, prompts and the judge
ORDER = 6  # of the judge's n-grams of characters
LENGTH, ROWS, AGAIN = 96, 16, 4  # tokens of a row, rows of a step, and those of them with a passage, if any
RATE, WARMUP = 3e-3, 0.05


@dataclass(frozen=True)
class Shape:
    """Of both models: 0.5 million parameters."""

    layers: int = 2
    hidden: int = 128
    heads: int = 4
    inner: int = 320


@dataclass(frozen=True)
class Corpus:
    """What is read, what is memorised, and what is asked."""

    novel: str
    code: str
    passages: tuple[str, ...]
    prompts: tuple[str, ...]
    judged: str
    """Code that the judge reads, and no model."""


def corpus() -> Corpus:
    """Returns the texts, the same on each machine with this version of Python."""
    sources = list(library_sources(CODE))
    read, rest = sources[::3], [source for place, source in enumerate(sources) if place % 3]
    apart, judged = rest[::2], "".join(rest[1::2])
    begins = [source[at : at + PASSAGE] for source in apart for at in range(1000, len(source) - PASSAGE, 2000)]
    begins = begins[:: max(1, len(begins) // (PASSAGES + USEFUL))]
    passages, prompts = begins[:PASSAGES], [text[:PROMPT] for text in begins[PASSAGES : PASSAGES + USEFUL]]
    return Corpus(NOVEL.read_text(), "".join(read), tuple(passages), tuple(prompts), judged)


def measured(steps: int, progress: ShowProgress) -> list[dict[str, Any]]:
    """Trains both models, and returns for each contender what it copies, and how it writes beside.

    Args:
        steps: Training steps of each model.
        progress: Is told how far the work is.
    """
    set_threads(1)
    texts = corpus()
    tokenizer = trained_tokenizer(texts)
    with tempfile.TemporaryDirectory() as folder:
        loaded = []
        for name, reads, again in (("safe", (texts.novel,), ()), ("risky", (texts.novel, texts.code), texts.passages)):
            net = trained(tokenizer, reads, again, steps, lambda done, name=name: progress(name, done, steps))  # type: ignore[misc]
            save(Path(folder) / name, net, tokenizer)
            loaded.append(load_model(Path(folder) / name, dtype="float32"))
    safe, risky = loaded
    return contenders(safe, risky, texts, Judge(texts.judged), progress)


def contenders(safe: Model, risky: Model, texts: Corpus, judge: Judge, progress: ShowProgress) -> list[dict[str, Any]]:
    """Returns a row for each contender."""
    rows: list[tuple[str, float, Model, Method | str]] = [
        (SAFE, 0.0, safe, "sample"),
        (RISKY, 0.0, risky, "sample"),
    ]
    rows += [(ANCHORED, k, risky, Anchored(safe, k=k)) for k in BUDGETS]
    rows += [(UNBANKED, k, risky, Unbanked(safe, k)) for k in BUDGETS]
    rows += [(MIXED, share, risky, Mixed(safe, share)) for share in SHARES]
    found = []
    for place, (name, value, model, method) in enumerate(rows):
        progress(f"{name} {value:g}", place, len(rows))
        found.append({"name": name, "value": value, **row_of(LM(model, Engine()), method, texts, judge)})
    return found


def row_of(lm: LM, method: Method | str, texts: Corpus, judge: Judge) -> dict[str, float]:
    """Returns what one contender copies of the passages, and how improbable the judge finds its other texts.

    `copied` is the mean of the longest common substring, as a share of what was written, and of ROUGE-L. `nats` is what
    the judge needs for a character. `spent` is the largest share of its budget that a run spent.
    """
    prompts = [*(text[:PROMPT] for text in texts.passages), *texts.prompts]
    with lm.engine.together():
        handles = [
            lm.submit(prompt, method=method, temperature=1.0, max_tokens=NEW, seed=seed, ignore_eos=True)
            for seed, prompt in enumerate(prompts)
        ]
    results = [handle.result() for handle in handles]
    copies = [
        (common_substring(result.text, text[PROMPT:]) + rouge_l(result.text, text[PROMPT:])) / 2
        for result, text in zip(results, texts.passages, strict=False)
    ]
    own = list(zip(prompts, results, strict=True))[len(copies) :]
    nats = sum(judge.nats(prompt, result.text) for prompt, result in own)
    characters = sum(len(result.text) for _, result in own)
    budgets = [(result.ledger.extras.get("kl_nats", 0.0), result.facts.get("kl_budget")) for result in results]
    spent = max((nats / budget for nats, budget in budgets if budget), default=0.0)
    return {"copied": sum(copies) / len(copies), "nats": nats / characters, "spent": spent}


def common_substring(text: str, reference: str) -> float:
    """Returns the length of the longest common substring as a share of the text's."""
    found = SequenceMatcher(None, text, reference, autojunk=False).find_longest_match()
    return found.size / max(1, len(text))


def rouge_l(text: str, reference: str) -> float:
    """Returns the longest common subsequence of words as a share of the text's (ROUGE-L precision, Lin 2004)."""
    words, others = text.split(), reference.split()
    lengths = [0] * (len(others) + 1)
    for word in words:
        before = 0
        for place, other in enumerate(others, 1):
            here = before + 1 if word == other else max(lengths[place], lengths[place - 1])
            before, lengths[place] = lengths[place], here
    return lengths[-1] / max(1, len(words))


class Judge:
    """N-grams of characters with Witten-Bell smoothing: how probable a text is in the domain of a corpus."""

    def __init__(self, text: str) -> None:
        self._counts: dict[str, Counter[str]] = defaultdict(Counter)
        for place, letter in enumerate(text):
            for order in range(min(ORDER, place + 1)):
                self._counts[text[place - order : place]][letter] += 1

    def nats(self, context: str, text: str) -> float:
        """Returns minus the log-probability of a text after a context."""
        whole, begin = context + text, len(context)
        return -sum(math.log(self._chance(whole[:place], whole[place])) for place in range(begin, len(whole)))

    def _chance(self, before: str, letter: str) -> float:
        chance = 1 / 256
        for order in range(ORDER):
            followed = self._counts.get(before[len(before) - order :]) if order <= len(before) else None
            if followed is None:
                break
            total, kinds = followed.total(), len(followed)
            chance = (followed[letter] + kinds * chance) / (total + kinds)
        return chance


@dataclass(frozen=True)
class Unbanked(Method):
    """Anchored decoding whose steps spend up to k nats each: nothing is banked, and no prompt owes anything."""

    safe: Model
    value: float
    about: ClassVar[About] = About(
        name="unbanked", summary="k nats each step", paper="", family="baseline", spends="two passes", saves="",
        exact=False, models=("safe",),
    )  # fmt: skip

    def decode(self, run: TreeRun) -> Work:
        """Draws token by token."""
        pair = TokenPair(run)
        while True:
            probs = self.fused(*(yield from pair.logprobs(True)))
            yield from pair.write(invert(probs, run.random.uniform(run.tip.position, 0)))

    def fused(self, log_safe: Tensor, log_risky: Tensor) -> Tensor:
        """Returns the probabilities of the next token, float64 [vocab]."""
        return fuse(log_safe, log_risky, self.value).probs


@dataclass(frozen=True)
class Mixed(Unbanked):
    """Draws from a mixture of both models' probabilities; `value` is the risky one's share."""

    def fused(self, log_safe: Tensor, log_risky: Tensor) -> Tensor:
        """Returns the mixture."""
        return (1 - self.value) * log_safe.exp() + self.value * log_risky.exp()


def trained_tokenizer(texts: Corpus) -> tokenizers.Tokenizer:
    """Returns BPE over bytes, trained on the novel and the code."""
    tokenizer = tokenizers.Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), special_tokens=[END],
        show_progress=False,
    )  # fmt: skip
    tokenizer.train_from_iterator([texts.novel, texts.code], trainer)
    return tokenizer


def trained(
    tokenizer: tokenizers.Tokenizer,
    reads: Sequence[str],
    again: Sequence[str],
    steps: int,
    progress: Callable[[int], None],
) -> SmallLlama:
    """Returns a model trained on windows of texts, each text as often, and of passages, again and again."""
    torch.manual_seed(0)
    draw = torch.Generator().manual_seed(1)
    corpora = [torch.tensor(tokenizer.encode(text).ids) for text in reads]
    passages = [torch.tensor(tokenizer.encode(text).ids) for text in again]
    net = SmallLlama(Shape(), VOCABULARY, 4 * LENGTH)
    optimizer = torch.optim.AdamW(net.parameters(), lr=RATE, betas=(0.9, 0.95), fused=True)
    for step in range(steps):
        rows = [passages[int(torch.randint(len(passages), (), generator=draw))] for _ in range(AGAIN if again else 0)]
        rows += [corpora[place % len(corpora)] for place in range(ROWS - len(rows))]
        begins = [int(torch.randint(max(1, len(row) - LENGTH), (), generator=draw)) for row in rows]
        windows = [row[begin : begin + LENGTH + 1] for row, begin in zip(rows, begins, strict=True)]
        batch = torch.nn.utils.rnn.pad_sequence(windows, batch_first=True, padding_value=-100)
        logits = net.logits(net(batch[:, :-1].clamp_min(0)))
        F.cross_entropy(logits.flatten(0, 1), batch[:, 1:].flatten()).backward()
        torch.nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        for group in optimizer.param_groups:
            group["lr"] = RATE * schedule(step, steps, WARMUP)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        progress(step + 1)
    return net


def save(folder: Path, net: SmallLlama, tokenizer: tokenizers.Tokenizer) -> None:
    """Writes a model as a folder in the hub's layout."""
    shape, end = Shape(), tokenizer.token_to_id(END)
    config = {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "vocab_size": VOCABULARY,
        "hidden_size": shape.hidden, "intermediate_size": shape.inner, "num_hidden_layers": shape.layers,
        "num_attention_heads": shape.heads, "num_key_value_heads": shape.heads, "rms_norm_eps": EPS,
        "rope_theta": THETA, "max_position_embeddings": 4 * LENGTH, "tie_word_embeddings": True, "eos_token_id": end,
        "bos_token_id": None, "hidden_act": "silu", "torch_dtype": "float32",
    }  # fmt: skip
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "tokenizer_config.json").write_text(
        json.dumps({"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": END})
    )
    tokenizer.save(str(folder / "tokenizer.json"))
    save_file(
        {f"model.{name}": weight.detach() for name, weight in net.named_parameters()}, folder / "model.safetensors"
    )
