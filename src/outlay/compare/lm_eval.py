"""The model type `outlay` of the `lm_eval` package (EleutherAI's evaluation harness, `pip install 'outlay[lm-eval]'`).

Importing this module registers the type; `outlay lm_eval ...` imports it and passes its arguments on to `lm_eval`.
Tokens, truncation and rolling windows are those of lm_eval's own `hf` type, so results in float32 are the same. The
engine gets all requests of a task at once and batches them; common prefixes of contexts are computed once.
"""

from __future__ import annotations

import gc
import inspect
from collections import Counter, deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import takewhile
from typing import Any

import lm_eval.models  # noqa: F401 - lm_eval registers its own types only where nothing is registered yet
import torch
from lm_eval import utils
from lm_eval.api.instance import Instance
from lm_eval.api.model import TemplateLM
from lm_eval.api.registry import register_model
from lm_eval.models.utils import handle_stop_sequences, normalize_gen_kwargs
from tqdm import tqdm

import outlay
from outlay import catalog
from outlay.budget import Budget, Ledger
from outlay.engine.handle import Handle, Result
from outlay.engine.method import Method
from outlay.errors import FailureError, UsageError, nearest
from outlay.lm import DEFAULT_MODEL, LM
from outlay.masked_score import DRAWS, TOGETHER, MaskedScore
from outlay.score import Score

SPARE = 64  # slots that a run may hold beyond its tokens, for the rest of its last span
SAMPLING = ("temperature", "top_k", "top_p", "min_p", "repetition_penalty")


@dataclass(frozen=True)
class Job:
    """A run that the engine is given."""

    prompt: list[int]
    grown: int
    """How many tokens may follow the prompt."""
    options: Mapping[str, Any]
    """Arguments of `LM.submit`."""


@register_model("outlay")
class OutlayLM(TemplateLM):
    """A model of `outlay` with the interface of `lm_eval`.

    Args:
        model: what `outlay.load` takes, or an `LM`.
        method: for `generate_until`, a name with options (`"beam:width=8"`) or an object; by default greedy at
            temperature 0 and `sample` above.
        draft: what the method drafts with.
        budget: caps on the ledger, as on the command line (`"target_passes=64"`).
        seed: of `generate_until`; repeats of a prompt get the seeds after it.
        dtype: as in `outlay.load`.
        device: as in `outlay.load`.
        threads: as in `outlay.load`.
        cache_tokens: as in `outlay.load`.
        max_length: the context window in tokens; by default the model's.
        max_gen_toks: new tokens of a task that names no number.
        mc_num: masks that are drawn for each likelihood of a model that fills masks, which is then an estimate.
        batch_size: ignored, lm_eval passes it to every type; the engine batches by itself.
        max_batch_size: ignored too.

    Raises:
        UsageError: an argument is unknown or can't be used.
    """

    def __init__(
        self,
        model: str | LM = DEFAULT_MODEL,
        method: str | Method | None = None,
        draft: str | None = None,
        budget: str | None = None,
        seed: int = 0,
        dtype: str = "auto",
        device: str | None = None,
        threads: int | None = None,
        cache_tokens: int | None = None,
        max_length: int | None = None,
        max_gen_toks: int = 256,
        mc_num: int = DRAWS,
        batch_size: int | str | None = None,
        max_batch_size: int | None = None,
        **unknown: Any,
    ) -> None:
        if unknown:
            strange = next(iter(unknown))
            raise UsageError(
                f"the outlay model has no argument {strange!r}{nearest(strange, ARGUMENTS)}; "
                f"its arguments are {', '.join(ARGUMENTS)}"
            )
        super().__init__()
        if device is None or not torch.cuda.is_available():
            device = "cpu"  # lm_eval says "cuda:0" wherever the user says nothing
        self.lm = (
            model
            if isinstance(model, LM)
            else outlay.load(model, dtype=dtype, device=device, threads=threads, cache_tokens=cache_tokens)
        )
        self.method = catalog.parse(method) if isinstance(method, str) else method
        self.draft, self.seed = draft, seed
        self.budget = Budget.parse(budget) if budget is not None else None
        if mc_num < 1:
            raise UsageError(f"mc_num must be 1 or more, not {mc_num}")
        self.max_gen_toks, self.mc_num = max_gen_toks, mc_num
        context = self.lm.model.decoder.config.max_positions
        if max_length is not None and not 1 < max_length <= context:
            raise UsageError(f"max_length must be from 2 to {context}, the model's context, not {max_length}")
        self.max_length = max_length or context
        self._longest_prompt = context - 1
        self.ledger = Ledger()

    @property
    def eot_token_id(self) -> int:
        """The token that ends a text."""
        return self.lm.model.tokenizer.eos_token_ids[0]

    @property
    def prefix_token_id(self) -> int:
        """The token before a rolling text, and in place of an empty context: BOS, or EOS where there is no BOS."""
        bos = self.lm.model.tokenizer.bos_token_id
        return self.eot_token_id if bos is None else bos

    @property
    def tokenizer_name(self) -> str:
        """Names the tokenizer in the names of cached requests."""
        return self.lm.name

    def chat_template(self, chat_template: bool | str = False) -> str | None:
        """Returns the source of the model's template, for the records."""
        template = self.lm.model.tokenizer.template
        return template.source if chat_template and template is not None else None

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        """Returns the conversation in the model's own format."""
        template = self.lm.model.tokenizer.template
        if template is None:
            raise UsageError(f"{self.lm.name} has no chat template: leave --apply_chat_template out")
        return str.__str__(template.render(chat_history, add_generation_prompt))

    def get_model_info(self) -> dict[str, Any]:
        """Returns what lm_eval records with its results: the weights, the version, and the ledger of all requests."""
        model = self.lm.model
        return {
            "model_fingerprint": model.fingerprint,
            "model_format": model.format,
            "outlay_version": outlay.__version__,
            "outlay_ledger": {name: amount for name, amount in self.ledger.as_dict().items() if amount},
        }

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **_: Any) -> list[int]:
        """Returns the tokens of a text, with the tokenizer's special tokens unless the text begins with them."""
        tokenizer = self.lm.model.tokenizer
        if add_special_tokens is None:
            add_special_tokens = not string.startswith(self._text_of(self.prefix_token_id))
        return tokenizer.inner.encode(string, add_special_tokens=add_special_tokens).ids

    def loglikelihood_rolling(self, requests: list[Instance], disable_tqdm: bool = False) -> list[float]:
        """Returns the log-probability of each whole text, in windows of `max_length` tokens that do not overlap."""
        scored, owners = [], []
        for owner, request in enumerate(requests):
            windows = utils.get_rolling_token_windows(
                self.tok_encode(request.args[0]), self.prefix_token_id, self._longest_text - 1, context_len=1
            )
            for context, continuation in map(utils.make_disjoint_window, windows):
                scored.append((None, context, continuation))
                owners.append(owner)
        totals = [0.0] * len(requests)
        for owner, (logprob, _) in zip(
            owners, self._loglikelihood_tokens(scored, disable_tqdm, apart=True), strict=True
        ):
            totals[owner] += logprob
        for request, total in zip(requests, totals, strict=True):
            self.cache_hook.add_partial("loglikelihood_rolling", request.args, total)
        return totals

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        """Returns each text up to the first of its stop strings."""
        seen: Counter[str] = Counter()
        jobs = []
        for context, options in (request.args for request in requests):
            jobs.append(self._generation(context, options, seen[context]))
            seen[context] += 1
        texts = [""] * len(jobs)
        for index, result in self._run(jobs, "Running generate_until requests", disable_tqdm):
            texts[index] = result.text
            self.cache_hook.add_partial("generate_until", requests[index].args, result.text)
        return texts

    def _loglikelihood_tokens(
        self,
        requests: Sequence[tuple[Any, list[int], list[int]]],
        disable_tqdm: bool = False,
        apart: bool = False,
        **unused: Any,
    ) -> list[tuple[float, bool]]:
        """Scores (strings, context, continuation) triples.

        All continuations of one context are one tree in one run. With `apart` each has a run of its own, for long texts
        that begin alike by chance.
        """
        groups: dict[tuple[tuple[int, ...], int], list[int]] = {}
        for index, (_, context, continuation) in enumerate(requests):
            groups.setdefault((self._window(context, continuation), index if apart else 0), []).append(index)
        scores: list[Score | MaskedScore] = []
        jobs = []
        for (shared, _), indices in groups.items():
            score, job = self._scoring(list(shared), [requests[index][2] for index in indices])
            scores.append(score)
            jobs.append(job)
        for _ in self._run(jobs, "Running loglikelihood requests", disable_tqdm):
            pass
        answers = [(0.0, True)] * len(requests)
        for indices, score in zip(groups.values(), scores, strict=True):
            for index, (logprob, greedy) in zip(indices, score.likelihoods, strict=True):
                answers[index] = logprob, greedy
                if requests[index][0] is not None:
                    self.cache_hook.add_partial("loglikelihood", requests[index][0], answers[index])
        return answers

    @property
    def _longest_text(self) -> int:
        """Tokens of the longest text: its last one is only predicted, but what fills a mask stands on the canvas."""
        return self.max_length + (0 if self.lm.model.writes_canvas else 1)

    def _text_of(self, token: int) -> str:
        return self.lm.model.tokenizer.inner.decode([token], skip_special_tokens=False)

    def _window(self, context: Sequence[int], continuation: Sequence[int]) -> tuple[int, ...]:
        """Returns the end of the context that fits in the window."""
        free = self._longest_text - len(continuation)
        if free < 1:
            raise UsageError(
                f"a continuation has {len(continuation)} tokens, but the context window is {self.max_length}: "
                "set a longer max_length, or score the text by loglikelihood_rolling"
            )
        return tuple(context[-free:])

    def _scoring(self, context: list[int], continuations: Sequence[list[int]]) -> tuple[Score | MaskedScore, Job]:
        """A context that fills the window is too long for a prompt, so its last tokens precede each continuation."""
        if self.lm.model.writes_canvas:
            masked = MaskedScore(continuations, self.mc_num)
            grown = max(TOGETHER, len(context) + max(map(len, continuations)))
            return masked, Job(context, grown, {"method": masked, "max_tokens": 1, "seed": self.seed})
        prompt, rest = context[: self._longest_prompt], context[self._longest_prompt :]
        score = Score([rest + tokens for tokens in continuations], given=len(rest))
        return score, Job(prompt, sum(map(len, score.continuations)), {"method": score, "max_tokens": 1})

    def _generation(self, context: str, options: Mapping[str, Any], repeat: int) -> Job:
        """Turns a task's generation options into a job, as the `hf` type does. Each repeat has another seed."""
        given = dict(normalize_gen_kwargs(dict(options), self.max_gen_toks))
        count = int(given.pop("max_gen_toks"))
        stop = tuple(text for text in handle_stop_sequences(given.pop("until", None), None) if text)
        sampling = {name: given.pop(name) for name in SAMPLING if given.get(name) is not None}
        given.pop("do_sample", None)
        if given:
            known = ", ".join((*SAMPLING, "do_sample", "until", "max_gen_toks"))
            raise UsageError(f"the task sets {next(iter(given))!r} for its texts, but outlay takes {known}")
        free = self.max_length - count
        if free < 1:
            raise UsageError(f"{count} new tokens leave no room in a context window of {self.max_length}")
        prompt = self.tok_encode(context)[-free:] or [self.prefix_token_id]
        run = {"method": self.method, "draft": self.draft, "budget": self.budget, "seed": self.seed + repeat}
        return Job(prompt, count, run | sampling | {"max_tokens": count, "stop": stop})

    def _run(self, jobs: Sequence[Job], what: str, quiet: bool) -> Iterator[tuple[int, Result]]:
        """Runs jobs and yields their indices with their results.

        A job that finds the cache full, because its method tries many texts at once, runs again when it is alone.
        """
        again: list[int] = []
        with _only_new_garbage(), tqdm(total=len(jobs), desc=what, disable=quiet) as bar:
            for index, handle in self._submitted(jobs):
                try:
                    result = handle.result()
                except FailureError:
                    again.append(index)
                    continue
                self.ledger += result.ledger
                bar.update()
                yield index, result
            for index in again:
                result = self._submit(jobs[index]).result()
                self.ledger += result.ledger
                bar.update()
                yield index, result

    def _submitted(self, jobs: Sequence[Job]) -> Iterator[tuple[int, Handle]]:
        """Submits as many jobs at a time as fit in the cache, and yields each to be waited for.

        Jobs with a common prefix follow each other, so that it is in the cache once.
        """
        slots = self.lm.engine.worker(self.lm.model).cache.limit
        running: deque[tuple[int, int, Handle]] = deque()
        before: list[int] = []
        for index in sorted(range(len(jobs)), key=lambda index: jobs[index].prompt):
            job = jobs[index]
            size = len(job.prompt) - _common_prefix(before, job.prompt) + job.grown + SPARE
            while running and size + sum(size for _, size, _ in running) > slots:
                first, _, handle = running.popleft()
                yield first, handle
            running.append((index, size, self._submit(job)))
            before = job.prompt
        yield from ((index, handle) for index, _, handle in running)

    def _submit(self, job: Job) -> Handle:
        return self.lm.submit(job.prompt, **job.options)


@contextmanager
def _only_new_garbage() -> Iterator[None]:
    """Lets Python collect garbage only among objects that are made meanwhile.

    Every token is an object, so it collects often; to go through all that was loaded would take a tenth of a second.
    """
    if gc.get_freeze_count():  # the caller has frozen it for good
        yield
        return
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


def _common_prefix(one: Sequence[int], other: Sequence[int]) -> int:
    """Returns the length of the common prefix."""
    same = (a == b for a, b in zip(one, other, strict=False))
    return sum(takewhile(bool, same))


ARGUMENTS = tuple(name for name in inspect.signature(OutlayLM).parameters if name != "unknown")
