"""Trains a masked-diffusion model from nothing, and writes it in LLaDA's public form (Nie et al. 2025, LLaDA).

A step masks a random number of an answer's tokens, at random places, and asks for them. The mean of their cross-entropy
times the answer's length is, over all steps, an upper bound of minus the log-probability of the answer. Drawing the
number first, in place of masking each token with a probability, has the same mean and a lower variance.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor

from outlay.errors import FailureError, UsageError
from outlay.progress import ShowProgress
from outlay.train.checkpoint import Checkpoint
from outlay.train.masked_data import END, MASK, MaskedBatch, MaskedData
from outlay.train.schedule import schedule
from outlay.train.small_llama import EPS, THETA, SmallLlama

TEMPLATE = "{% for m in messages %}{{ m['content'] }}\n{% endfor %}"
NAMES = {
    "embed_tokens": "model.transformer.wte",
    "norm": "model.transformer.ln_f",
    "layers": "model.transformer.blocks",
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "q_proj",
    "self_attn.k_proj": "k_proj",
    "self_attn.v_proj": "v_proj",
    "self_attn.o_proj": "attn_out",
    "post_attention_layernorm": "ff_norm",
    "mlp.gate_proj": "ff_proj",
    "mlp.up_proj": "up_proj",
    "mlp.down_proj": "ff_out",
}
KEEP_EVERY = 200  # training steps
DRAWS = 4  # of masks, for each text that the bound is measured on


@dataclass(frozen=True)
class DiffusionRecipe:
    """How a model is trained."""

    data: str
    """What it is trained on: a file, or a set of problems."""
    context: int = 0
    """Tokens of the longest text; 0: as many as the data need."""
    vocabulary: int = 0
    """Tokens of the vocabulary; 0: bytes, the end and the mask."""
    layers: int = 3
    """Decoder layers."""
    hidden: int = 64
    """Width of the hidden states."""
    heads: int = 4
    """Attention heads."""
    inner: int = 192
    """Width within an MLP."""
    batch: int = 64
    """Texts of a training step."""
    steps: int = 3000
    """Training steps; the learning rate falls over them."""
    lr: float = 3e-3
    """The highest learning rate."""
    warmup: float = 0.03
    """Share of the steps over which it rises."""
    bfloat16: bool = False
    """Whether products are computed in bfloat16, which some processors do faster; sums and weights are float32."""
    seed: int = 0
    """Fixes the weights at the start, the order of the data and the masks."""

    def __post_init__(self) -> None:
        if self.hidden % (2 * self.heads):
            raise UsageError(
                f"hidden must be a multiple of {2 * self.heads}, for {self.heads} heads, not {self.hidden}"
            )


class DiffusionTraining:
    """One training run.

    Args:
        recipe: How it is trained.
        data: What on.
        out: The folder that is made.
    """

    def __init__(self, recipe: DiffusionRecipe, data: MaskedData, out: Path) -> None:
        torch.manual_seed(recipe.seed)
        self.recipe, self.data, self.out = recipe, data, out
        self.vocab = data.tokenizer.get_vocab_size()
        mask = data.tokenizer.token_to_id(MASK)
        assert mask is not None, "the tokenizer was made with it"
        self.mask = mask
        self.net = SmallLlama(recipe, self.vocab, data.context, causal=False)

    def fit(self, progress: ShowProgress) -> float | None:
        """Trains and writes the model; what was stopped goes on from its last checkpoint, which lies in `out`.

        Returns:
            The bound on nats a token of texts that were kept apart; None where the data are too few for that.
        """
        recipe = self.recipe
        optimizer = torch.optim.AdamW(self.net.parameters(), lr=recipe.lr, weight_decay=0.01, fused=True)
        try:
            self.out.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise FailureError(f"can't write {self.out}: {error.strerror}") from error
        kept = Checkpoint(self.out / "diffusion.checkpoint", recipe, self.net.state_dict(), optimizer)
        for step in range(kept.resume(), recipe.steps):
            for group in optimizer.param_groups:
                group["lr"] = recipe.lr * schedule(step, recipe.steps, recipe.warmup)
            loss = self.loss(self.data.batch(recipe.batch, recipe.seed, step), self._draw(step))
            loss.backward()
            torch.nn.utils.clip_grad_norm_(self.net.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            progress(f"training, {loss.item():.3f} nats a token", step + 1, recipe.steps)
            if (step + 1) % KEEP_EVERY == 0:
                kept.save(step + 1)
        bound = self.bound()
        self.save()
        kept.remove()
        return bound

    def loss(self, batch: MaskedBatch, draw: torch.Generator) -> Tensor:
        """Returns the bound on nats a token: the mean over texts of the mean over their masked tokens."""
        masked = masks(batch.answer, draw)
        with torch.autocast("cpu", torch.bfloat16, enabled=self.recipe.bfloat16):
            hidden = self.net(batch.tokens.masked_fill(masked, self.mask), batch.seen)
            logits = self.net.logits(hidden[masked]).float()
        logits = logits.index_fill(1, torch.tensor([self.mask]), -torch.inf)
        nats = F.cross_entropy(logits, batch.tokens[masked], reduction="none")
        weights = 1 / masked.sum(1, keepdim=True).expand_as(masked)[masked]
        return (nats * weights).sum() / len(masked)

    @torch.no_grad()
    def bound(self) -> float | None:
        """Returns the bound on nats a token of texts that were kept apart, if there are."""
        held = self.data.held_out()
        if held is None:
            return None
        return sum(self.loss(held, self._draw(-1 - number)).item() for number in range(DRAWS)) / DRAWS

    def _draw(self, step: int) -> torch.Generator:
        return torch.Generator().manual_seed((self.recipe.seed << 40) + (1 << 39) + step)

    def save(self) -> None:
        """Writes the model, in bfloat16, as a folder in LLaDA's public form."""
        recipe, tokenizer = self.recipe, self.data.tokenizer
        config = {
            "architectures": ["LLaDAModelLM"], "model_type": "llada", "d_model": recipe.hidden,
            "n_heads": recipe.heads, "n_kv_heads": recipe.heads, "n_layers": recipe.layers,
            "mlp_hidden_size": recipe.inner, "vocab_size": self.vocab, "embedding_size": self.vocab,
            "max_sequence_length": self.data.context, "rope": True, "rope_theta": THETA, "alibi": False,
            "block_type": "llama", "layer_norm_type": "rms", "rms_norm_eps": EPS, "activation_type": "silu",
            "include_bias": False, "weight_tying": True, "eos_token_id": tokenizer.token_to_id(END),
            "mask_token_id": self.mask, "torch_dtype": "bfloat16",
        }  # fmt: skip
        options = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": END, "mask_token": MASK}
        if self.data.prompted:
            options["chat_template"] = TEMPLATE
        try:
            (self.out / "config.json").write_text(json.dumps(config, indent=1) + "\n")
            (self.out / "tokenizer_config.json").write_text(json.dumps(options, indent=1) + "\n")
            tokenizer.save(str(self.out / "tokenizer.json"), pretty=False)
            weights = {llada_name(name): weight.bfloat16() for name, weight in self.net.named_parameters()}
            save_file(weights, self.out / "model.safetensors", {"format": "pt"})
        except OSError as error:
            raise FailureError(f"can't write {self.out}: {error.strerror}") from error


def masks(answer: Tensor, draw: torch.Generator) -> Tensor:
    """Draws which tokens are masked: of each text a number of them that is uniform from 1 on, at random places.

    Args:
        answer: bool [batch, time], what may be masked, at least one place in each text.
        draw: What it is drawn with.

    Returns:
        bool [batch, time].
    """
    counts = answer.sum(1)
    wanted = (torch.rand(len(answer), generator=draw) * counts).long() + 1
    scores = torch.rand(answer.shape, generator=draw).masked_fill(~answer, 2.0)
    return scores.argsort(1).argsort(1) < wanted[:, None]


def llada_name(name: str) -> str:
    """Returns what LLaDA calls a parameter that has the Llama family's name."""
    name = f".{name}"
    for ours, theirs in NAMES.items():
        name = name.replace(f".{ours}.", f".{theirs}.")
    return name[1:]
