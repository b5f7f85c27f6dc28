"""The properties that every method has, as tests to inherit, and a tiny model to run them on in a moment.

    from outlay.testing import MethodProperties

    class TestMine(MethodProperties):
        method = Mine(width=3)

The class is collected by pytest. Set `options` for what the method needs of a request, such as a temperature,
and `draft`, `scorer` or `constraint` where it takes one.
"""

from __future__ import annotations

import time
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar

import tokenizers
import torch
from tokenizers import decoders, models, pre_tokenizers
from torch import Tensor

from outlay.budget import Budget, Ledger
from outlay.engine.engine import Engine
from outlay.engine.method import Method
from outlay.lm import LM
from outlay.models import names
from outlay.models.build import Builder
from outlay.models.config import DecoderConfig, decoder_config
from outlay.models.decoder import Decoder
from outlay.models.embedding import Embedding
from outlay.models.linear import pack
from outlay.models.load import Model
from outlay.models.quantized import QuantizedWeight
from outlay.models.reward_head import RewardHead
from outlay.models.tokenizer import Tokenizer

BOOKED = (
    *("target_passes", "draft_passes", "score_passes", "side_passes"),
    *("target_tokens", "draft_tokens", "score_tokens", "side_tokens"),
    *("scores", "checks", "executions", "flops", "weight_bytes", "kv_bytes"),
)  # entries of the ledger that workers count
ENDING = (
    "tokens_out",
    "rounds",
    *(name for name in BOOKED if not name.startswith("draft_")),
)  # at their cap a run ends
PROMPTS = ("The first", "A second prompt, which is longer", "3", "fourth: Ω and 漢字", "five\nlines", "six six six")


class _RandomStore:
    """Weights made up from a seed and their name: the same on every machine."""

    def __init__(self, shapes: Mapping[str, tuple[int, ...]], seed: int) -> None:
        self._shapes, self._seed = shapes, seed

    def shape(self, name: str) -> tuple[int, ...] | None:
        return self._shapes.get(name)

    def is_quantized(self, name: str) -> bool:
        return False

    def integers(self, name: str) -> QuantizedWeight:
        raise AssertionError("these weights are not quantized")

    def floats(self, name: str) -> Tensor:
        shape = self._shapes[name]
        if len(shape) == 1:
            return torch.ones(shape)
        generator = torch.Generator().manual_seed(self._seed + zlib.crc32(name.encode()))
        return torch.randn(shape, generator=generator) * 1.5 / shape[-1] ** 0.5


def tiny_model(
    seed: int = 0,
    *,
    layers: int = 2,
    context: int = 512,
    device: str = "cpu",
    dtype: str = "float32",
) -> Model:
    """Returns a random model of the Llama family over bytes: 257 tokens, the last of which ends a text."""
    hidden, inner, vocab, kv = 32, 64, 257, 16
    config = decoder_config(
        {
            "model_type": "llama", "vocab_size": vocab, "hidden_size": hidden, "intermediate_size": inner,
            "num_hidden_layers": layers, "num_attention_heads": 4, "num_key_value_heads": 2,
            "max_position_embeddings": context, "eos_token_id": vocab - 1, "tie_word_embeddings": False,
        }
    )  # fmt: skip
    shapes: dict[str, tuple[int, ...]] = {
        "model.embed_tokens.weight": (vocab, hidden),
        "lm_head.weight": (vocab, hidden),
        "model.norm.weight": (hidden,),
    }
    for i in range(layers):
        prefix = f"model.layers.{i}."
        for part, shape in {
            "self_attn.q_proj": (hidden, hidden), "self_attn.k_proj": (kv, hidden), "self_attn.v_proj": (kv, hidden),
            "self_attn.o_proj": (hidden, hidden), "mlp.gate_proj": (inner, hidden), "mlp.up_proj": (inner, hidden),
            "mlp.down_proj": (hidden, inner), "input_layernorm": (hidden,), "post_attention_layernorm": (hidden,),
        }.items():  # fmt: skip
            shapes[f"{prefix}{part}.weight"] = shape
    builder = Builder(
        config, _RandomStore(shapes, seed), names.HF[config.names], format=dtype, float_format=dtype,
        device=torch.device(device), interleaved=False, transposed=False, plus_one=False,
    )  # fmt: skip
    return Model(f"tiny-{seed}", builder.build(), _byte_tokenizer(), f"tiny-{seed}-{layers}-{context}", dtype)


def tiny_reward_model(seed: int = 7, *, context: int = 512) -> Model:
    """Returns `tiny_model` with a random head of one output in place of its LM head: a reward model of whole texts."""
    model = tiny_model(seed, context=context)
    old = model.decoder
    weight = torch.randn(1, old.config.hidden_size, generator=torch.Generator().manual_seed(seed))
    decoder = Decoder(old.config, old.layers, old.embed, pack(weight, "float32"), final_norm=old.final_norm)
    head = RewardHead(("score",), 1)
    return replace(model, name=f"tiny-reward-{seed}", decoder=decoder, fingerprint=f"reward-{seed}", head=head)


def markov_model(transitions: Tensor, name: str = "markov") -> Model:
    """Returns a model whose next token depends on the last one only, so that all probabilities are known.

    It is a decoder without layers: its embedding tells the last token, and its LM head holds log-probabilities.

    Args:
        transitions: The distribution of the next token, a row for each token, [vocab, vocab].
        name: The model's name.
    """
    size = len(transitions)
    config = DecoderConfig(
        architecture="markov", vocab_size=size, hidden_size=size, num_layers=0, num_heads=1, num_kv_heads=1, head_dim=8,
        intermediate_size=8, max_positions=512, windows=(), attention_scale=1.0, final_norm=False,
    )  # fmt: skip
    head = pack(transitions.float().clamp_min(1e-30).log().T.contiguous(), "float32")
    decoder = Decoder(config, [], Embedding(torch.eye(size), torch.float32), head, final_norm=None)
    return Model(name, decoder, _byte_tokenizer(), f"{name}-{hash(tuple(transitions.flatten().tolist()))}", "float32")


def _byte_tokenizer() -> Tokenizer:
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    inner = tokenizers.Tokenizer(models.BPE(vocab={piece: token for token, piece in enumerate(alphabet)}, merges=[]))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    inner.decoder = decoders.ByteLevel()
    inner.add_special_tokens([tokenizers.AddedToken("<end>", special=True)])
    return Tokenizer(inner, eos_token_ids=(256,))


def tiny_lm(seed: int = 0, *, prefix_cache: bool = True, max_runs: int = 64, context: int = 512) -> LM:
    """Returns `tiny_model` with an engine of its own."""
    return LM(tiny_model(seed, context=context), Engine(prefix_cache=prefix_cache, max_runs=max_runs))


class MethodProperties:
    """What holds for every method, whoever wrote it. Inherit, set `method`, and `options` where it needs some."""

    method: ClassVar[Method | str]
    options: ClassVar[Mapping[str, Any]] = {}
    draft: ClassVar[str | Model | None] = None
    scorer: ClassVar[Any] = None
    constraint: ClassVar[Any] = None

    @property
    def given(self) -> dict[str, Any]:
        """What every request gives beside its prompt and its limits."""
        beside = {"draft": self.draft, "scorer": self.scorer, "constraint": self.constraint}
        return {"method": self.method, "ignore_eos": True} | beside | dict(self.options)

    def run(self, lm: LM, prompts: Sequence[str], **options: Any) -> list[Any]:
        """Runs all prompts together, the i-th with seed i."""
        every = {"max_tokens": 24} | self.given | options
        handles = [lm.submit(prompt, seed=seed, **every) for seed, prompt in enumerate(prompts)]
        return [handle.result(60) for handle in handles]

    def test_the_same_seed_gives_the_same_tokens_alone_and_in_a_batch(self) -> None:
        """Random draws depend on the seed and the place in the tree, not on what else runs."""
        together = self.run(tiny_lm(), PROMPTS)
        lm = tiny_lm()
        for seed, prompt in enumerate(PROMPTS):
            alone = lm.generate(prompt, seed=seed, **{"max_tokens": 24} | self.given)
            assert alone.tokens == together[seed].tokens
            assert alone.text == together[seed].text

    def test_it_commits_at_most_max_tokens(self) -> None:
        """`max_tokens` is kept exactly and named as the reason."""
        for limit in (1, 2, 7):
            for result in self.run(tiny_lm(), PROMPTS[:2], max_tokens=limit):
                assert len(result.tokens) == result.ledger.tokens_out == limit
                assert result.finish_reason == "length"

    def test_every_budget_is_kept_exactly(self) -> None:
        """No entry of the ledger goes past its cap, and the text so far is valid."""
        lm = tiny_lm()
        whole = self.run(lm, PROMPTS[:1])[0]
        spent = whole.ledger.as_dict()
        for name in ENDING:
            for share in (0.2, 0.6):
                cap = int(spent[name] * share)
                if cap == 0:
                    continue
                result = self.run(tiny_lm(), PROMPTS[:1], budget=Budget(**{name: cap}))[0]
                assert getattr(result.ledger, name) <= cap
                assert result.cap == name, f"{name} capped at {cap} of {spent[name]}"
                if result.finish_reason != "budget":  # a search may offer a whole text, which keeps its own reason
                    assert spent["scores"] > 0
                    assert result.finish_reason in ("length", "stop")
                assert result.text == lm.model.tokenizer.decode(result.tokens)
        for name in ("drafted", "accepted"):  # a run whose drafts are used up goes on without
            cap = int(spent[name] * 0.4)
            if cap:
                result = self.run(tiny_lm(), PROMPTS[:1], budget=Budget(**{name: cap}))[0]
                assert getattr(result.ledger, name) <= cap

    def test_a_budget_of_seconds_ends_the_run(self) -> None:
        """Time is looked at before each pass."""
        result = self.run(tiny_lm(), PROMPTS[:1], max_tokens=400, budget=Budget(seconds=1e-9))[0]
        assert result.finish_reason == "budget"
        assert result.ledger.target_passes <= 1

    def test_streamed_pieces_join_to_the_text(self) -> None:
        """What is streamed is what is returned."""
        lm = tiny_lm()
        stream = lm.stream(PROMPTS[3], **{"max_tokens": 40} | self.given)
        pieces = list(stream)
        assert "".join(pieces) == stream.result.text

    def test_cancelling_frees_all_slots(self) -> None:
        """A cancelled run ends with the text so far and leaves nothing in the cache."""
        lm = tiny_lm(prefix_cache=False)
        handles = [lm.submit(prompt, **{"max_tokens": 400} | self.given) for prompt in PROMPTS]
        time.sleep(0.02)
        for handle in handles:
            handle.cancel()
        for handle in handles:
            result = handle.result(60)
            assert result.finish_reason in ("cancelled", "length")
            assert result.text == lm.model.tokenizer.decode(result.tokens)
        assert all(worker.cache.in_use == 0 for worker in lm.engine.models)

    def test_the_ledgers_of_the_runs_add_up_to_what_the_engine_did(self) -> None:
        """Every pass is booked once, to the byte."""
        lm = tiny_lm()
        total = sum((result.ledger for result in self.run(lm, PROMPTS)), start=Ledger())
        work = sum((worker.ledger for worker in lm.engine.workers), start=Ledger())
        for name in BOOKED:
            assert getattr(total, name) == getattr(work, name)
        passes = sum(worker.passes for worker in lm.engine.models)
        assert passes <= total.target_passes + total.draft_passes + total.score_passes + total.side_passes

    def test_nothing_is_computed_twice(self) -> None:
        """Every position is computed at most once: the cache never holds fewer tokens than were computed and kept."""
        lm = tiny_lm(prefix_cache=False)
        events: list[dict[str, Any]] = []
        lm.submit(PROMPTS[1], trace=events.append, **{"max_tokens": 24} | self.given).result(60)
        target = [
            node
            for event in events
            if event["event"] == "pass" and event["model"] == "target"
            for node in event["nodes"]
        ]
        assert len(target) == len(set(target))
