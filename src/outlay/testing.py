"""The properties that every method has, as tests to inherit, and a tiny model to run them on in a moment.

    from outlay.testing import MethodProperties

    class TestMine(MethodProperties):
        method = Mine(width=3)

The class is collected by pytest. Set `options` for what the method needs of a request, such as a temperature,
and `draft`, `scorer` or `constraint` where it takes one.
"""

from __future__ import annotations

import threading
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar

import tokenizers
import torch
from tokenizers import decoders, models, pre_tokenizers
from torch import Tensor

from outlay.budget import Budget, Ledger
from outlay.constrain import constraint_of
from outlay.engine.engine import Engine
from outlay.engine.method import Method
from outlay.lm import LM
from outlay.models import names
from outlay.models.build import Builder
from outlay.models.config import DecoderConfig, MaskedDiffusion, decoder_config
from outlay.models.decoder import Decoder
from outlay.models.embedding import Embedding
from outlay.models.encoder_config import encoder_decoder_config
from outlay.models.generation import GenerationRules
from outlay.models.linear import pack
from outlay.models.load import Model
from outlay.models.reward_head import RewardHead
from outlay.models.tokenizer import Tokenizer
from outlay.models.vision import Vision
from outlay.models.vision.connectors import Projector
from outlay.models.vision.processors import CroppedImage
from outlay.models.vision.stem import NoEmbedding, PatchStem

BOOKED = (
    *("target_passes", "draft_passes", "score_passes", "side_passes"),
    *("target_tokens", "draft_tokens", "score_tokens", "side_tokens"),
    *("encoder_passes", "encoder_tokens"),
    *("scores", "checks", "executions", "flops", "weight_bytes", "kv_bytes", "kv_held"),
)  # entries of the ledger that workers count
ENDING = (
    "tokens_out",
    "rounds",
    *(name for name in BOOKED if not name.startswith("draft_")),
)  # at their cap a run ends
END = 256  # the tiny models' token that ends a text
PROMPTS = ("The first", "A second prompt, which is longer", "3", "fourth: Ω and 漢字", "five\nlines", "six six six")


class _RandomStore:
    """Weights made up from a seed and their name: the same on every machine."""

    def __init__(self, shapes: Mapping[str, tuple[int, ...]], seed: int) -> None:
        self._shapes, self._seed = shapes, seed

    def shape(self, name: str) -> tuple[int, ...] | None:
        return self._shapes.get(name)

    def stored(self, name: str) -> None:
        return None

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
    return _tiny(f"tiny-{seed}", seed, layers, context, device, dtype)


def _tiny(name: str, seed: int, layers: int, context: int, device: str, dtype: str, *, vocab: int = END + 1) -> Model:
    hidden, inner, kv = 32, 64, 16
    config = decoder_config(
        {
            "model_type": "llama", "vocab_size": vocab, "hidden_size": hidden, "intermediate_size": inner,
            "num_hidden_layers": layers, "num_attention_heads": 4, "num_key_value_heads": 2,
            "max_position_embeddings": context, "eos_token_id": END, "tie_word_embeddings": False,
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
    return Model(name, builder.build(), _byte_tokenizer(), f"{name}-{layers}-{context}", dtype)


def tiny_encoder_decoder(seed: int = 0, *, layers: int = 2, device: str = "cpu", dtype: str = "float32") -> Model:
    """Returns a random model of the T5 family over bytes: its encoder reads a prompt, its decoder starts with byte 0.

    Args:
        seed: What its weights are drawn from.
        layers: Of the encoder, and of the decoder.
        device: Where it runs.
        dtype: How its weights are held.
    """
    hidden, inner, vocab = 32, 64, END + 1
    config = encoder_decoder_config(
        {
            "model_type": "t5", "vocab_size": vocab, "d_model": hidden, "d_kv": 8, "d_ff": inner, "num_heads": 4,
            "num_layers": layers, "feed_forward_proj": "gated-gelu", "eos_token_id": END, "tie_word_embeddings": False,
        }
    )  # fmt: skip
    shapes: dict[str, tuple[int, ...]] = {"shared.weight": (vocab, hidden)}
    for stack, parts in (("encoder", ("SelfAttention",)), ("decoder", ("SelfAttention", "EncDecAttention"))):
        shapes[f"{stack}.final_layer_norm.weight"] = (hidden,)
        shapes[f"{stack}.block.0.layer.0.SelfAttention.relative_attention_bias.weight"] = (32, 4)
        for layer in (f"{stack}.block.{i}.layer" for i in range(layers)):
            for at, part in enumerate(parts):
                shapes |= {f"{layer}.{at}.{part}.{name}.weight": (hidden, hidden) for name in "qkvo"}
            mlp = f"{layer}.{len(parts)}.DenseReluDense"
            shapes |= {f"{mlp}.wi_0.weight": (inner, hidden), f"{mlp}.wi_1.weight": (inner, hidden)}
            shapes |= {f"{mlp}.wo.weight": (hidden, inner)}
            shapes |= {f"{layer}.{at}.layer_norm.weight": (hidden,) for at in range(len(parts) + 1)}
    store = _RandomStore(shapes, seed)

    def builder(part: DecoderConfig) -> Builder:
        return Builder(
            part, store, names.HF[part.names], format=dtype, float_format=dtype, device=torch.device(device),
            interleaved=False, transposed=False, plus_one=False,
        )  # fmt: skip

    decoder = builder(config.decoder).build()
    encoder = builder(config.encoder).build_encoder(decoder.embed)
    name, rules = f"tiny-encoder-decoder-{seed}", GenerationRules(start=(0,))
    return Model(name, decoder, _byte_tokenizer(), f"{name}-{layers}", dtype, encoder=encoder, rules=rules)


def tiny_vision_model(seed: int = 0, *, layers: int = 2, context: int = 512, dtype: str = "float32") -> Model:
    """Returns `tiny_model` with a random vision tower: images of any size in 4 visual tokens, whose token is 257.

    Args:
        seed: What its weights are drawn from.
        layers: Of the decoder.
        context: Tokens of its context.
        dtype: How its weights are held.
    """
    hidden, side, patch, token = 32, 16, 8, END + 1
    model = _tiny(f"tiny-vision-{seed}", seed, layers, context, "cpu", dtype, vocab=token + 1)
    rows = (side // patch) ** 2 + 1
    config = DecoderConfig(
        architecture="tower", vocab_size=1, hidden_size=hidden, num_layers=2, num_heads=2, num_kv_heads=2, head_dim=16,
        intermediate_size=48, max_positions=rows, windows=(None, None), attention_scale=0.25, layer_norm=True,
        norm_bias=False, activation="quick_gelu", gated=False,
    )  # fmt: skip
    sizes: dict[str, tuple[int, ...]] = {part: (hidden, hidden) for part in ("q", "k", "v", "out")}
    sizes |= {"up": (48, hidden), "down": (hidden, 48), "attn_norm": (hidden,), "mlp_norm": (hidden,)}
    shapes = {f"tower.{i}.{part}.weight": shape for i in range(2) for part, shape in sizes.items()}
    shapes |= {"tower.final_norm.weight": (hidden,), "tower.patches": (hidden, 3 * patch * patch)}
    shapes |= {"tower.positions": (rows, hidden), "first": (hidden, hidden), "second": (hidden, hidden)}
    store = _RandomStore(shapes, seed)
    parts = {part: "tower.{i}." + part for part in sizes} | {"final_norm": "tower.final_norm"}
    builder = Builder(
        config, store, parts, format=dtype, float_format=dtype, device=torch.device("cpu"), interleaved=False,
        transposed=False, plus_one=False,
    )  # fmt: skip
    stem = PatchStem(
        patch, pack(store.floats("tower.patches"), dtype), store.floats("tower.positions"), class_token=True, norm=None,
        scale=1 / 255, mean=torch.tensor([0.5] * 3), std=torch.tensor([0.5] * 3),
    )  # fmt: skip
    projector = Projector(pack(store.floats("first"), dtype), pack(store.floats("second"), dtype), "gelu", skips=1)
    tower, count = builder.build_encoder(NoEmbedding(hidden)), rows - 1
    vision = Vision(
        tower, stem, projector, CroppedImage((side, side), None, resample=3),
        lambda image: "<image>" * count * len(image.tiles), "<image>", token, rows, count, f"tower-{seed}",
    )  # fmt: skip
    return replace(model, tokenizer=_byte_tokenizer("<image>"), vision=vision)


def tiny_diffusion_model(
    seed: int = 0,
    *,
    shift: bool = False,
    block: int = 0,
    context: int = 512,
    dtype: str = "float32",
    device: str = "cpu",
) -> Model:
    """Returns `tiny_model` with a mask, its token 257: a model that fills masks on a canvas.

    Args:
        seed: What its weights are drawn from.
        shift: Whether its logits are those of the next position.
        block: The block of block-causal attention; 0 for full attention.
        context: Tokens of its context.
        dtype: How its weights are held.
        device: Where it runs.
    """
    mask = 257
    model = _tiny(f"tiny-diffusion-{seed}-{shift}-{block}", seed, 2, context, device, dtype, vocab=mask + 1)
    decoder = model.decoder
    decoder.config = replace(decoder.config, diffusion=MaskedDiffusion(mask, shift, block))
    return model


def tiny_reward_model(seed: int = 7, *, context: int = 512) -> Model:
    """Returns `tiny_model` with a random head of one output in place of its LM head: a reward model of whole texts."""
    model = tiny_model(seed, context=context)
    old = model.decoder
    weight = torch.randn(1, old.config.hidden_size, generator=torch.Generator().manual_seed(seed))
    decoder = Decoder(old.config, old.layers, old.embed, pack(weight, "float32"), final_norm=old.final_norm)
    head = RewardHead(("score",), 1)
    name, fingerprint = f"tiny-reward-{seed}", f"reward-{seed}"
    return replace(model, decoder=decoder, head=head, name=name, fingerprint=fingerprint, reward_form="classifier")


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


def _byte_tokenizer(*special: str) -> Tokenizer:
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    inner = tokenizers.Tokenizer(models.BPE(vocab={piece: token for token, piece in enumerate(alphabet)}, merges=[]))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    inner.decoder = decoders.ByteLevel()
    inner.add_special_tokens([tokenizers.AddedToken(name, special=True) for name in ("<end>", *special)])
    return Tokenizer(inner, eos_token_ids=(END,))


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
    cancelled_at: ClassVar[str] = "pass"  # the event of a trace after which runs are cancelled: "start" without passes
    ending: ClassVar[Sequence[str]] = ENDING  # entries of the ledger at whose cap a run ends

    @property
    def given(self) -> dict[str, Any]:
        """What every request gives beside its prompt and its limits."""
        beside = {"draft": self.draft, "scorer": self.scorer, "constraint": self.constraint}
        return {"method": self.method, "ignore_eos": True} | beside | dict(self.options)

    def lm(self, **options: Any) -> LM:
        """Returns a tiny model with an engine of its own, on which the properties are tested."""
        return tiny_lm(**options)

    def run(self, lm: LM, prompts: Sequence[str], **options: Any) -> list[Any]:
        """Runs all prompts together, the i-th with seed i."""
        every = {"max_tokens": 24} | self.given | options
        handles = [lm.submit(prompt, seed=seed, **every) for seed, prompt in enumerate(prompts)]
        return [handle.result(60) for handle in handles]

    def test_the_same_seed_gives_the_same_tokens_alone_and_in_a_batch(self) -> None:
        """Random draws depend on the seed and the place in the tree, not on what else runs."""
        together = self.run(self.lm(), PROMPTS)
        lm = self.lm()
        for seed, prompt in enumerate(PROMPTS):
            alone = lm.generate(prompt, seed=seed, **{"max_tokens": 24} | self.given)
            assert alone.tokens == together[seed].tokens
            assert alone.text == together[seed].text

    def test_it_commits_at_most_max_tokens(self) -> None:
        """`max_tokens` is kept exactly and named as the reason."""
        for limit in (1, 2, 7):
            for result in self.run(self.lm(), PROMPTS[:2], max_tokens=limit):
                assert len(result.tokens) == result.ledger.tokens_out == limit
                assert result.finish_reason == "length"

    def test_every_budget_is_kept_exactly(self) -> None:
        """No entry of the ledger goes past its cap, and the text so far is valid."""
        lm = self.lm()
        whole = self.run(lm, PROMPTS[:1])[0]
        spent = whole.ledger.as_dict()
        for name in self.ending:
            for share in (0.2, 0.6):
                cap = int(spent[name] * share)
                if cap == 0:
                    continue
                result = self.run(self.lm(), PROMPTS[:1], budget=Budget(**{name: cap}))[0]
                assert getattr(result.ledger, name) <= cap
                assert result.cap == name, f"{name} capped at {cap} of {spent[name]}"
                if result.finish_reason != "budget":  # a search may offer a whole text, which keeps its own reason
                    assert spent["scores"] > 0
                    assert result.finish_reason in ("length", "stop")
                assert result.text == lm.model.tokenizer.decode(result.tokens)
        for name in ("drafted", "accepted"):  # a run whose drafts are used up goes on without
            cap = int(spent[name] * 0.4)
            if cap:
                result = self.run(self.lm(), PROMPTS[:1], budget=Budget(**{name: cap}))[0]
                assert getattr(result.ledger, name) <= cap

    def test_a_budget_of_seconds_ends_the_run(self) -> None:
        """Time is looked at before each pass."""
        result = self.run(self.lm(), PROMPTS[:1], max_tokens=400, budget=Budget(seconds=1e-9))[0]
        assert result.finish_reason == "budget"
        assert result.ledger.target_passes <= 1

    def test_streamed_pieces_join_to_the_text(self) -> None:
        """What is streamed is what is returned."""
        lm = self.lm()
        stream = lm.stream(PROMPTS[3], **{"max_tokens": 40} | self.given)
        pieces = list(stream)
        assert "".join(pieces) == stream.result.text

    def test_cancelling_frees_all_slots(self) -> None:
        """A cancelled run ends with the text so far and leaves nothing in the cache."""
        lm = self.lm(prefix_cache=False)
        for result in _cancelled(lm, {"max_tokens": 400} | self.given, self.cancelled_at):
            assert result.finish_reason == "cancelled"
            assert result.text == lm.model.tokenizer.decode(result.tokens)
        assert all(worker.cache.in_use == 0 for worker in lm.engine.models)

    def test_the_ledgers_of_the_runs_add_up_to_what_the_engine_did(self) -> None:
        """Every pass is booked once, to the byte."""
        lm = self.lm()
        total = sum((result.ledger for result in self.run(lm, PROMPTS)), start=Ledger())
        work = sum((worker.ledger for worker in lm.engine.workers), start=Ledger())
        for name in BOOKED:
            assert getattr(total, name) == getattr(work, name)
        passes = sum(worker.passes for worker in lm.engine.models)
        assert passes <= total.target_passes + total.draft_passes + total.score_passes + total.side_passes

    def test_nothing_is_computed_twice(self) -> None:
        """Every position is computed at most once: the cache never holds fewer tokens than were computed and kept."""
        lm = self.lm(prefix_cache=False)
        events: list[dict[str, Any]] = []
        lm.submit(PROMPTS[1], trace=events.append, **{"max_tokens": 24} | self.given).result(60)
        target = [
            node
            for event in events
            if event["event"] == "pass" and event["model"] == "target"
            for node in event["nodes"]
        ]
        assert len(target) == len(set(target))


class ConstraintProperties:
    """What holds for every method under a constraint. Inherit, and set `method` and what it needs beside."""

    method: ClassVar[Method | str]
    options: ClassVar[Mapping[str, Any]] = {}
    draft: ClassVar[str | Model | None] = None
    scorer: ClassVar[Any] = None
    constraint: ClassVar[Any] = "regex:[0-9]{2}-[ab]{2,3}"

    def run(self, lm: LM, **options: Any) -> list[Any]:
        """Runs three prompts together, the i-th with seed i."""
        beside = {"method": self.method, "draft": self.draft, "scorer": self.scorer, "constraint": self.constraint}
        every = {"max_tokens": 24} | beside | dict(self.options) | options
        handles = [lm.submit(prompt, seed=seed, **every) for seed, prompt in enumerate(PROMPTS[:3])]
        return [handle.result(60) for handle in handles]

    def test_every_text_is_valid_and_is_said_to_be(self) -> None:
        """The independent check agrees with what the result says."""
        constraint = constraint_of(self.constraint)
        for result in self.run(tiny_lm()):
            assert result.finish_reason == "stop"
            assert result.facts["valid"] is True
            assert constraint.check(result.text)

    def test_the_same_seed_gives_the_same_text(self) -> None:
        """Also where the constraint is asked by others at the same time."""
        first = self.run(tiny_lm())
        lm = tiny_lm()
        for seed, prompt in enumerate(PROMPTS[:3]):
            beside = {"method": self.method, "draft": self.draft, "scorer": self.scorer, "constraint": self.constraint}
            alone = lm.generate(prompt, seed=seed, **{"max_tokens": 24} | beside | dict(self.options))
            assert alone.tokens == first[seed].tokens

    def test_a_text_that_is_cut_is_not_called_valid(self) -> None:
        """At a limit that no valid text keeps, and where the budget ends the run."""
        for options in ({"max_tokens": 3}, {"budget": Budget(target_passes=1)}):
            for result in self.run(tiny_lm(), **options):
                assert result.facts["valid"] is constraint_of(self.constraint).check(result.text)
                assert result.finish_reason in ("length", "budget", "no_valid_output", "stop")
                assert result.facts["valid"] or result.finish_reason != "stop"


class DiffusionLaws:
    """What holds for every commit rule, whoever wrote it. Inherit, set `method`, and `options` where it needs some."""

    method: ClassVar[Method | str]
    options: ClassVar[Mapping[str, Any]] = {}
    model: ClassVar[Mapping[str, Any]] = {}
    """Arguments of `tiny_diffusion_model`."""

    def lm(self, **options: Any) -> LM:
        """Returns a tiny model that fills masks, with an engine of its own."""
        return LM(tiny_diffusion_model(**self.model), Engine(**options))

    @property
    def given(self) -> dict[str, Any]:
        """What every request gives beside its prompt and its limits."""
        return {"method": self.method, "ignore_eos": True, "max_tokens": 20} | dict(self.options)

    def run(self, lm: LM, prompts: Sequence[str], **options: Any) -> list[Any]:
        """Runs all prompts together, the i-th with seed i."""
        handles = [lm.submit(prompt, seed=seed, **self.given | options) for seed, prompt in enumerate(prompts)]
        return [handle.result(60) for handle in handles]

    def test_the_same_tokens_alone_in_a_batch_and_beside_runs_from_left_to_right(self) -> None:
        """What is written depends on the seed and the prompt alone."""
        engine = Engine()
        lm, other = LM(tiny_diffusion_model(**self.model), engine), LM(tiny_model(), engine)
        beside = [other.submit(prompt, method="sample", temperature=0.9, ignore_eos=True) for prompt in PROMPTS]
        together = self.run(lm, PROMPTS)
        for handle in beside:
            handle.result(60)
        for seed, prompt in enumerate(PROMPTS):
            alone = self.lm().generate(prompt, seed=seed, **self.given)
            assert alone.tokens == together[seed].tokens
            assert alone.text == together[seed].text
            assert alone.facts["filled_in_round"] == together[seed].facts["filled_in_round"]

    def test_every_round_fills_and_every_position_is_filled_once(self) -> None:
        """The rounds in which positions were filled are all rounds that there were."""
        for result in self.run(self.lm(), PROMPTS[:3]):
            rounds = result.facts["filled_in_round"]
            assert len(rounds) == len(result.tokens) == 20
            assert {*rounds} == {*range(1, result.ledger.rounds + 1)}
            assert result.ledger.rounds <= 20

    def test_it_fills_max_tokens(self) -> None:
        """`max_tokens` is the length of the canvas, and named as the reason."""
        for limit in (1, 2, 7):
            for result in self.run(self.lm(), PROMPTS[:2], max_tokens=limit):
                assert len(result.tokens) == result.ledger.tokens_out == limit
                assert result.finish_reason == "length"

    def test_every_budget_is_kept_exactly_and_fills_the_rest(self) -> None:
        """No entry of the ledger goes past its cap; what is masked then is filled by the pass that was kept back."""
        whole = self.run(self.lm(), PROMPTS[:1])[0].ledger
        for name in ("target_passes", "rounds", "target_tokens", "nats"):
            for share in (0.3, 0.7):
                cap = whole.amount(name) * share if name == "nats" else int(whole.amount(name) * share)
                if cap == 0:
                    continue
                result = self.run(self.lm(), PROMPTS[:1], budget=Budget(**{name: cap}))[0]
                assert result.ledger.amount(name) <= cap
                assert (result.finish_reason, result.cap) == ("budget", name)
                if name == "rounds" or (name == "target_passes" and cap > 1 and not self.model.get("block")):
                    assert len(result.tokens) == 20
        for name in ("flops", "weight_bytes", "kv_bytes"):
            cap = int(whole.amount(name) * 0.6)
            if cap:
                result = self.run(self.lm(), PROMPTS[:1], budget=Budget(**{name: cap}))[0]
                assert result.ledger.amount(name) <= cap

    def test_streamed_pieces_join_to_the_text(self) -> None:
        """What is streamed is what is returned."""
        stream = self.lm().stream(PROMPTS[3], **self.given | {"max_tokens": 40})
        pieces = list(stream)
        assert "".join(pieces) == stream.result.text

    def test_cancelling_frees_all_slots(self) -> None:
        """A cancelled run leaves nothing in the cache."""
        lm = self.lm(prefix_cache=False)
        for result in _cancelled(lm, self.given | {"max_tokens": 300}, "pass"):
            assert result.finish_reason == "cancelled"
            assert result.text == lm.model.tokenizer.decode(result.tokens)
        assert all(worker.cache.in_use == 0 for worker in lm.engine.models)

    def test_the_ledgers_of_the_runs_add_up_to_what_the_engine_did(self) -> None:
        """Every pass is booked once, to the byte."""
        lm = self.lm()
        total = sum((result.ledger for result in self.run(lm, PROMPTS)), start=Ledger())
        work = sum((worker.ledger for worker in lm.engine.workers), start=Ledger())
        for name in BOOKED:
            assert getattr(total, name) == getattr(work, name)


def _cancelled(lm: LM, given: Mapping[str, Any], after: str) -> list[Any]:
    """Returns the results of runs of all prompts that are cancelled together, at the first event of a kind."""
    begun, go_on = threading.Event(), threading.Event()

    def hold(event: Mapping[str, Any]) -> None:  # in the engine's thread, which does nothing else meanwhile
        if event["event"] == after:
            begun.set()
            go_on.wait(60)

    handles = [lm.submit(prompt, trace=hold, **given) for prompt in PROMPTS]
    assert begun.wait(60)
    for handle in handles:
        handle.cancel()
    go_on.set()
    return [handle.result(60) for handle in handles]
