"""Trains a small vision-language model on the glyph world, written in the form of LLaVA-1.5.

A CLIP tower sees the picture, a projector turns its patches into input embeddings of a decoder of the Llama family, and
that writes the words of what is there: `LlavaForConditionalGeneration` of `transformers` opens the folder. One model
knows both kinds of glyphs, each half of every batch. LLaVA's tower comes trained; this one is trained along, to tell
which glyph each patch is of, by a linear layer that is not kept: else most of the time goes by before it sees anything.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import tokenizers
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from outlay.errors import FailureError, UsageError
from outlay.metrics import Chair, chair
from outlay.models import hub
from outlay.problems.glyphs import CELL, GRID, QUESTION, SCALE, SIDE, WORDS, ZERO, GlyphWorld, Kind, Scene
from outlay.progress import ShowProgress
from outlay.train.checkpoint import Checkpoint
from outlay.train.finer_patches import joining_weights
from outlay.train.schedule import schedule
from outlay.train.small_llama import EPS, THETA, SmallLlama
from outlay.train.word_tokenizer import word_tokenizer, words_of

END, IMAGE = "<end>", "<image>"
TEMPLATE = (
    "{% for message in messages %}{{ 'USER: ' if message['role'] == 'user' else 'ASSISTANT: ' }}"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}"
    "{% for part in message['content'] if part['type'] != 'text' %}<image>\n{% endfor %}"
    "{% for part in message['content'] if part['type'] == 'text' %}{{ part['text'] }}{% endfor %}{% endif %}"
    "{{ ' ' if message['role'] == 'user' else '<end>' }}{% endfor %}{% if add_generation_prompt %}ASSISTANT:{% endif %}"
)
KINDS: tuple[Kind, ...] = ("drawn", "digits")
CLASSES = [word for kind in KINDS for word in WORDS[kind]]
COARSE = 64  # visual tokens of a model to start from
LONGEST = 11  # tokens of a caption: ten words and the end
IGNORED = -100  # a place where nothing is learned, as `cross_entropy` knows it
SEED = 1 << 32  # seeds of scenes from here on are for training; those that a user types are smaller
EMBEDDING_STD = 0.02  # at the start, of the tower's patches and positions
MEASURED = 200  # scenes that are captioned at the end, of each kind and prior
KEEP_EVERY = 50  # training steps between checkpoints
WEIGHTS = "model.safetensors"


@dataclass(frozen=True)
class GlyphRecipe:
    """How the model is trained."""

    tokens: int = 64
    """Visual tokens of a picture: 64 (patches of 4 pixels) or 256 (patches of 2)."""
    hidden: int = 96
    """Width of the hidden states, of the tower as of the decoder."""
    heads: int = 4
    """Attention heads of each."""
    tower: int = 2
    """Layers of the vision tower."""
    layers: int = 4
    """Layers of the decoder."""
    inner: int = 192
    """Width within an MLP."""
    batch: int = 48
    """Scenes of a training step, half of each kind."""
    steps: int = 1000
    """Training steps."""
    lr: float = 2e-3
    """The highest learning rate."""
    warmup: float = 0.05
    """Share of the steps over which it rises."""
    seed: int = 0
    """Fixes the weights at the start and the scenes."""
    start: str | None = None
    """A model of 64 visual tokens to start from; with 256, of one layer less in its tower. None: random weights."""

    def __post_init__(self) -> None:
        if self.tokens not in (64, 256):
            raise UsageError(f"a picture has 64 or 256 visual tokens, not {self.tokens}")
        if self.hidden % (2 * self.heads):
            raise UsageError(
                f"hidden must be a multiple of {2 * self.heads}, for {self.heads} heads, not {self.hidden}"
            )
        if (
            self.start is not None
            and self.tokens > COARSE
            and (self.heads != 4 or self.inner < 138 or self.hidden < 80)
        ):
            raise UsageError("finer patches need a start of four heads, of width 80 or more, 138 within an MLP")
        if self.batch % len(KINDS):
            raise UsageError(f"a batch is half drawn glyphs, half digits: an even number, not {self.batch}")

    @property
    def patch(self) -> int:
        """Pixels a side of a patch."""
        return SIDE // int(self.tokens**0.5)


class GlyphNet(nn.Module):
    """A vision tower as CLIP's, a projector and a decoder; its parameters have their names in LLaVA's checkpoints."""

    def __init__(self, recipe: GlyphRecipe, vocab: int) -> None:
        super().__init__()
        self.vision_tower = _Tower(recipe)
        self.multi_modal_projector = _Projector(recipe.hidden)
        self.language_model = SmallLlama(recipe, vocab, max_positions(recipe))

    def forward(self, patches: Tensor, tokens: Tensor, image_at: int) -> Tensor:
        """Returns hidden states after the final norm, [batch, time, hidden].

        Args:
            patches: What the tower makes of the pictures, [batch, patches, hidden].
            tokens: int64 [batch, time], with a placeholder for each visual token.
            image_at: The place of the first of them.
        """
        seen = self.multi_modal_projector(patches)
        embedded = self.language_model.embed_tokens(tokens)
        after = embedded[:, image_at + seen.shape[1] :]
        return self.language_model.decode(torch.cat([embedded[:, :image_at], seen, after], dim=1))


class GlyphTraining:
    """One training run.

    Args:
        recipe: How it is trained.
        out: The folder that is written.
    """

    def __init__(self, recipe: GlyphRecipe, out: Path) -> None:
        torch.manual_seed(recipe.seed)
        self.recipe, self.out, self.tokenizer = recipe, out, glyph_tokenizer()
        self.prompt = prompt_tokens(self.tokenizer, recipe.tokens)
        self.end, image = (self.tokenizer.encode(text).ids[0] for text in (END, IMAGE))
        self.image_at = self.prompt.index(image)
        self.net = GlyphNet(recipe, self.tokenizer.get_vocab_size())
        if recipe.start is not None:
            start_from(self.net, recipe)
        self.patch_head = nn.Linear(recipe.hidden, len(CLASSES) + 1)
        """Tells the class of each patch, the last one where there is none; for training alone."""

    def fit(self, progress: ShowProgress) -> None:
        """Trains and writes the model. What was stopped goes on from its last checkpoint, which lies in `out`."""
        recipe, trained = self.recipe, nn.ModuleList([self.net, self.patch_head])
        optimizer = torch.optim.AdamW(
            [weight for weight in trained.parameters() if weight.requires_grad],
            lr=recipe.lr,
            betas=(0.9, 0.95),
            weight_decay=0.01,
            fused=True,
        )
        self.out.mkdir(parents=True, exist_ok=True)
        kept = Checkpoint(self.out / "glyphs.checkpoint", recipe, trained.state_dict(), optimizer)
        for step in range(kept.resume(), recipe.steps):
            for group in optimizer.param_groups:
                group["lr"] = recipe.lr * schedule(step, recipe.steps, recipe.warmup)
            scenes = self.scenes(step)
            patches = self.net.vision_tower(pixel_values(scenes))
            loss = self.loss(scenes, patches)
            (loss + self.patch_loss(scenes, patches)).backward()
            torch.nn.utils.clip_grad_norm_(trained.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            progress(f"training, loss {loss.item():.3f}", step + 1, recipe.steps)
            if (step + 1) % KEEP_EVERY == 0:
                kept.save(step + 1)
        self.save()
        kept.remove()

    def scenes(self, step: int) -> list[Scene]:
        """Returns the scenes of a training step."""
        each, seed = self.recipe.batch // len(KINDS), SEED * (self.recipe.seed + 1)
        return [
            scene
            for number, kind in enumerate(KINDS)
            for scene in GlyphWorld(kind, training=True).scenes(each, seed + number, each * step)
        ]

    def patch_loss(self, scenes: Sequence[Scene], patches: Tensor) -> Tensor:
        """Returns the cross-entropy of the classes of patches [batch, patches, hidden]."""
        cells = torch.full((len(scenes), GRID * GRID), len(CLASSES))
        for row, scene in enumerate(scenes):
            cells[row, list(scene.cells)] = torch.tensor([CLASSES.index(word) for word in scene.objects])
        side = CELL // self.recipe.patch
        targets = cells.view(-1, GRID, GRID).repeat_interleave(side, 1).repeat_interleave(side, 2)
        return F.cross_entropy(self.patch_head(patches).flatten(0, 1), targets.flatten())

    def loss(self, scenes: Sequence[Scene], patches: Tensor) -> Tensor:
        """Returns the cross-entropy of the captions' tokens and their ends, given patches [batch, patches, hidden]."""
        end = self.end
        captions = [[*self.tokenizer.encode(" " + scene.caption).ids, end] for scene in scenes]
        longest, begin = max(map(len, captions)), len(self.prompt)
        tokens = torch.full((len(scenes), begin + longest - 1), end)
        targets = torch.full((len(scenes), longest), IGNORED)
        tokens[:, :begin] = torch.tensor(self.prompt)
        for row, caption in enumerate(captions):
            tokens[row, begin : begin + len(caption) - 1] = torch.tensor(caption[:-1])
            targets[row, : len(caption)] = torch.tensor(caption)
        states = self.net(patches, tokens, self.image_at)[:, begin - 1 :]
        logits = self.net.language_model.logits(states)
        return F.cross_entropy(logits.flatten(0, 1), targets.flatten())

    @torch.no_grad()
    def captions(self, scenes: Sequence[Scene]) -> list[str]:
        """Returns the captions that the model writes, the most probable token each time."""
        end = self.end
        tokens = torch.tensor(self.prompt).expand(len(scenes), -1)
        patches = self.net.vision_tower(pixel_values(scenes))
        for _ in range(LONGEST):
            states = self.net(patches, tokens, self.image_at)[:, -1]
            tokens = torch.cat([tokens, self.net.language_model.logits(states).argmax(-1, keepdim=True)], dim=1)
        written = [row[: row.index(end)] if end in row else row for row in tokens[:, len(self.prompt) :].tolist()]
        return [text.strip() for text in self.tokenizer.decode_batch(written)]

    def measure(self, kind: Kind, *, reverse: bool) -> tuple[float, Chair]:
        """Returns the share of scenes whose caption is exact, and CHAIR with recall, on scenes not trained on."""
        scenes = GlyphWorld(kind, reversed=reverse).scenes(MEASURED, SEED - 1)
        captions = self.captions(scenes)
        exact = sum(caption == scene.caption for caption, scene in zip(captions, scenes, strict=True)) / len(scenes)
        return exact, chair(captions, [scene.objects for scene in scenes], WORDS[kind])

    def save(self) -> None:
        """Writes the model as a folder in the form of `llava-hf/llava-1.5-7b-hf`."""
        recipe = self.recipe
        side = {"height": SIDE, "width": SIDE}
        files = {
            "config.json": llava_config(recipe, self.tokenizer),
            "tokenizer_config.json": {
                "tokenizer_class": "PreTrainedTokenizerFast", "eos_token": END, "pad_token": END,
                "extra_special_tokens": {"image_token": IMAGE}, "chat_template": TEMPLATE,
            },
            "preprocessor_config.json": {
                "image_processor_type": "CLIPImageProcessor", "do_resize": True, "size": side, "resample": 3,
                "do_center_crop": True, "crop_size": side, "do_rescale": True, "rescale_factor": 1 / 255,
                "do_normalize": True, "image_mean": [ZERO / 255] * 3, "image_std": [SCALE / 255] * 3,
                "do_convert_rgb": True,
            },
            "processor_config.json": {
                "processor_class": "LlavaProcessor", "patch_size": recipe.patch, "image_token": IMAGE,
                "num_additional_image_tokens": 1, "vision_feature_select_strategy": "default",
            },
            "generation_config.json": {"eos_token_id": self.tokenizer.token_to_id(END)},
        }  # fmt: skip
        try:
            self.out.mkdir(parents=True, exist_ok=True)
            for name, content in files.items():
                (self.out / name).write_text(json.dumps(content, indent=1) + "\n")
            (self.out / "chat_template.jinja").write_text(TEMPLATE)
            self.tokenizer.save(str(self.out / "tokenizer.json"), pretty=False)
            weights = {checkpoint_name(name): weight.detach() for name, weight in self.net.named_parameters()}
            save_file(weights, self.out / WEIGHTS, {"format": "pt"})
        except OSError as error:
            raise FailureError(f"can't write {self.out}: {error.strerror}") from error


def llava_config(recipe: GlyphRecipe, tokenizer: tokenizers.Tokenizer) -> dict[str, Any]:
    """Returns the `config.json` of a model in LLaVA's form."""
    end, vocab = tokenizer.token_to_id(END), tokenizer.get_vocab_size()
    shape = {"hidden_size": recipe.hidden, "num_attention_heads": recipe.heads, "intermediate_size": recipe.inner}
    return {
        "architectures": ["LlavaForConditionalGeneration"], "model_type": "llava",
        "image_token_index": tokenizer.token_to_id(IMAGE), "image_seq_length": recipe.tokens,
        "projector_hidden_act": "gelu", "multimodal_projector_bias": True,
        "vision_feature_layer": -1, "vision_feature_select_strategy": "default", "tie_word_embeddings": True,
        "torch_dtype": "float32",
        "vision_config": {
            **shape, "model_type": "clip_vision_model", "num_hidden_layers": recipe.tower, "image_size": SIDE,
            "patch_size": recipe.patch, "hidden_act": "quick_gelu", "layer_norm_eps": EPS,
            "projection_dim": recipe.hidden,
        },
        "text_config": {
            **shape, "model_type": "llama", "architectures": ["LlamaForCausalLM"], "vocab_size": vocab,
            "num_hidden_layers": recipe.layers, "num_key_value_heads": recipe.heads, "rms_norm_eps": EPS,
            "rope_theta": THETA, "max_position_embeddings": max_positions(recipe), "tie_word_embeddings": True,
            "eos_token_id": end, "bos_token_id": None, "pad_token_id": end, "hidden_act": "silu",
            "torch_dtype": "float32",
        },
    }  # fmt: skip


def checkpoint_name(name: str) -> str:
    """Returns the name of a parameter of `GlyphNet` in the checkpoints of LLaVA-1.5."""
    part, _, rest = name.partition(".")
    middle = {"vision_tower": "vision_model.", "language_model": "model.", "multi_modal_projector": ""}[part]
    return f"{part}.{middle}{rest}"


def max_positions(recipe: GlyphRecipe) -> int:
    """Returns the tokens of the longest context: a picture, and as much again for texts, or 256."""
    return recipe.tokens + 256


def glyph_tokenizer() -> tokenizers.Tokenizer:
    """Returns a tokenizer with a token for each word of prompt and captions, for the picture's patches and the end."""
    words = [f" {word}" for kind in KINDS for word in WORDS[kind]]
    return word_tokenizer(words_of(["USER: \n", QUESTION, " ASSISTANT:", *words]), [END, IMAGE])


def prompt_tokens(tokenizer: tokenizers.Tokenizer, patches: int) -> list[int]:
    """Returns the tokens before a caption, a placeholder for each patch."""
    ids: list[int] = tokenizer.encode(f"USER: {IMAGE * patches}\n{QUESTION} ASSISTANT:").ids
    return ids


def pixel_values(scenes: Sequence[Scene]) -> Tensor:
    """Returns pictures as the tower reads them, float32 [batch, 3, 32, 32]."""
    images = torch.from_numpy(np.stack([scene.image for scene in scenes])).permute(0, 3, 1, 2)
    return (images.float() - ZERO) / SCALE


@torch.no_grad()
def start_from(net: GlyphNet, recipe: GlyphRecipe) -> None:
    """Sets the weights of `net` to those of a model of 64 visual tokens, `recipe.start`.

    A tower over finer patches has one layer more, the first, which joins them (`finer_patches`); neither it nor what
    is before it is trained.

    Raises:
        UsageError: That is no model of the glyph world, or of another shape.
    """
    start = str(recipe.start)
    path = hub.resolve(start) / WEIGHTS
    held = load_file(path) if path.is_file() else {}
    fine = recipe.tokens > COARSE
    coarse = GlyphNet(
        replace(recipe, tokens=COARSE, tower=recipe.tower - fine), net.language_model.embed_tokens.num_embeddings
    )
    for name, weight in coarse.named_parameters():
        found = held.get(checkpoint_name(name))
        if found is None or found.shape != weight.shape:
            raise UsageError(f"can't start from {start}: it has no {checkpoint_name(name)} of {list(weight.shape)}")
        weight.copy_(found)
    weights = dict(coarse.named_parameters())
    made: dict[str, Tensor] = {}
    if fine:
        world = GlyphWorld(training=True)
        embedded = coarse.vision_tower.embeddings(pixel_values(world.scenes(recipe.batch, SEED)))
        made = joining_weights(weights, recipe.heads, recipe.inner, float(embedded[:, 1:].std(-1, correction=0).mean()))
    for name, weight in net.named_parameters():
        weight.copy_(made[name] if name in made else weights[_behind(name) if fine else name])
        weight.requires_grad_(name not in made)


def _behind(name: str) -> str:
    """Returns the name of a parameter in a tower with one layer less at its beginning."""
    return re.sub(r"(?<=^vision_tower\.encoder\.layers\.)\d+", lambda found: str(int(found[0]) - 1), name)


class _Projector(nn.Module):
    def __init__(self, hidden: int) -> None:
        super().__init__()
        self.linear_1, self.linear_2 = nn.Linear(hidden, hidden), nn.Linear(hidden, hidden)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.linear_2(F.gelu(self.linear_1(x)))
        return out


class _Tower(nn.Module):
    """CLIP's vision transformer up to its last layer; patches alone are returned, without the class token."""

    def __init__(self, recipe: GlyphRecipe) -> None:
        super().__init__()
        self.embeddings = _Embeddings(recipe)
        self.pre_layrnorm = nn.LayerNorm(recipe.hidden, eps=EPS)
        self.encoder = nn.Module()
        self.encoder.layers = nn.ModuleList(_TowerLayer(recipe) for _ in range(recipe.tower))
        self.post_layernorm = nn.LayerNorm(recipe.hidden, eps=EPS)  # of the class token, which nobody reads

    def forward(self, pixels: Tensor) -> Tensor:
        x = self.pre_layrnorm(self.embeddings(pixels))
        for layer in self.encoder.layers:  # type: ignore[union-attr]  # a list of modules
            x = layer(x)
        out: Tensor = x[:, 1:]
        return out


class _Embeddings(nn.Module):
    def __init__(self, recipe: GlyphRecipe) -> None:
        super().__init__()
        self.class_embedding = nn.Parameter(EMBEDDING_STD * torch.randn(recipe.hidden))
        self.patch_embedding = nn.Conv2d(3, recipe.hidden, recipe.patch, recipe.patch, bias=False)
        self.position_embedding = nn.Embedding(recipe.tokens + 1, recipe.hidden)
        nn.init.normal_(self.position_embedding.weight, std=EMBEDDING_STD)

    def forward(self, pixels: Tensor) -> Tensor:
        patches = self.patch_embedding(pixels).flatten(2).transpose(1, 2)
        first = self.class_embedding.expand(len(pixels), 1, -1)
        out: Tensor = torch.cat([first, patches], dim=1) + self.position_embedding.weight
        return out


class _TowerAttention(nn.Module):
    def __init__(self, recipe: GlyphRecipe) -> None:
        super().__init__()
        self.heads = recipe.heads
        hidden = recipe.hidden
        self.q_proj, self.k_proj = nn.Linear(hidden, hidden), nn.Linear(hidden, hidden)
        self.v_proj, self.out_proj = nn.Linear(hidden, hidden), nn.Linear(hidden, hidden)

    def forward(self, x: Tensor) -> Tensor:
        batch, time, hidden = x.shape
        q, k, v = (
            project(x).view(batch, time, self.heads, -1).transpose(1, 2)
            for project in (self.q_proj, self.k_proj, self.v_proj)
        )
        attended = F.scaled_dot_product_attention(q, k, v)
        out: Tensor = self.out_proj(attended.transpose(1, 2).reshape(batch, time, hidden))
        return out


class _TowerMlp(nn.Module):
    def __init__(self, recipe: GlyphRecipe) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(recipe.hidden, recipe.inner), nn.Linear(recipe.inner, recipe.hidden)

    def forward(self, x: Tensor) -> Tensor:
        inner = self.fc1(x)
        out: Tensor = self.fc2(inner * torch.sigmoid(1.702 * inner))  # CLIP's `quick_gelu`
        return out


class _TowerLayer(nn.Module):
    def __init__(self, recipe: GlyphRecipe) -> None:
        super().__init__()
        self.layer_norm1 = nn.LayerNorm(recipe.hidden, eps=EPS)
        self.self_attn = _TowerAttention(recipe)
        self.layer_norm2 = nn.LayerNorm(recipe.hidden, eps=EPS)
        self.mlp = _TowerMlp(recipe)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.self_attn(self.layer_norm1(x))
        out: Tensor = x + self.mlp(self.layer_norm2(x))
        return out
