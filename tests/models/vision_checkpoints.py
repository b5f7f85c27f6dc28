"""Tiny random models that see, saved by `transformers` in the public forms, with their processors."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.models.idefics3.image_processing_pil_idefics3 import Idefics3ImageProcessorPil
from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

SPECIAL = ["<s>", "</s>", "<pad>", "<image>", "<fake_token_around_image>", "<global-img>", "<end_of_utterance>"]
PLACES = [f"<row_{row}_col_{column}>" for row in range(1, 5) for column in range(1, 5)]
VOCAB = 256 + len(SPECIAL) + len(PLACES)
IMAGE = 256 + SPECIAL.index("<image>")
TEXT = {
    "vocab_size": VOCAB, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 1024, "bos_token_id": 256, "eos_token_id": 257,
    "initializer_range": 0.15,
}  # fmt: skip
TOWER = {
    "hidden_size": 48, "intermediate_size": 64, "num_hidden_layers": 3, "num_attention_heads": 2, "image_size": 32,
    "patch_size": 8, "initializer_range": 0.15,
}  # fmt: skip
LLAVA_TEMPLATE = (
    "{% for message in messages %}{% if message['role'] != 'system' %}{{ message['role'].upper() + ': '}}{% endif %}"
    "{% for content in message['content'] | selectattr('type', 'equalto', 'image') %}{{ '<image>\n' }}{% endfor %}"
    "{% for content in message['content'] | selectattr('type', 'equalto', 'text') %}{{ content['text'] + ' '}}"
    "{% endfor %}{% endfor %}{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}"
)
SMOLVLM_TEMPLATE = (
    "<s>{% for message in messages %}{{message['role'] | capitalize}}{% if message['content'][0]['type'] == 'image' %}"
    "{{':'}}{% else %}{{': '}}{% endif %}{% for line in message['content'] %}{% if line['type'] == 'text' %}"
    "{{line['text']}}{% elif line['type'] == 'image' %}{{ '<image>' }}{% endif %}{% endfor %}<end_of_utterance>\n"
    "{% endfor %}{% if add_generation_prompt %}{{ 'Assistant:' }}{% endif %}"
)


class PathlessLlavaProcessor(transformers.LlavaProcessor):
    """Takes the processor of images that needs no torchvision, whatever it was saved as."""


def tokenizer() -> Any:
    """A byte-level tokenizer with the special tokens of all forms, which begins a text with <s>."""
    pieces = [*sorted(pre_tokenizers.ByteLevel.alphabet())]
    inner = Tokenizer(models.BPE(vocab={piece: place for place, piece in enumerate(pieces)}, merges=[]))
    inner.pre_tokenizer, inner.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    inner.add_special_tokens([AddedToken(name, special=True, normalized=False) for name in [*SPECIAL, *PLACES]])
    inner.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 256)])
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=inner, bos_token="<s>", eos_token="</s>", pad_token="<pad>", extra_special_tokens=["<image>"]
    )


def _moved(network: Any) -> Any:
    """The network with its norms and biases moved off one and zero."""
    with torch.no_grad():
        for weight in network.parameters():
            if weight.dim() == 1:
                weight += torch.randn_like(weight) * 0.2
    return network.eval()


def llava(folder: Path, *, tower: str = "clip", seed: int = 1, text: Any = None, **options: Any) -> tuple[Any, Any]:
    """Saves a LLaVA-1.5; returns network and processor."""
    torch.manual_seed(seed)
    config = transformers.LlavaConfig(
        vision_config=transformers.CLIPVisionConfig(**TOWER)
        if tower == "clip"
        else transformers.SiglipVisionConfig(**TOWER),
        text_config=text or transformers.LlamaConfig(**TEXT),
        image_token_index=IMAGE,
        **options,
    )
    network = _moved(transformers.LlavaForConditionalGeneration(config))
    images = (
        CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})
        if tower == "clip"
        else SiglipImageProcessorPil(size={"height": 32, "width": 32})
    )
    strategy = config.vision_feature_select_strategy
    processor = transformers.LlavaProcessor(
        images, tokenizer(), patch_size=8, vision_feature_select_strategy=strategy, chat_template=LLAVA_TEMPLATE,
        num_additional_image_tokens=int(tower == "clip"),
    )  # fmt: skip
    network.save_pretrained(folder)
    processor.save_pretrained(folder)
    return network, processor


def idefics3(folder: Path, *, kind: str = "Idefics3", tile: int = 32, seed: int = 2) -> tuple[Any, Any]:
    """Saves an Idefics3, or a SmolVLM, whose tiles have `tile` pixels a side; returns network and processor."""
    torch.manual_seed(seed)
    config = getattr(transformers, f"{kind}Config")(
        vision_config=dict(TOWER), text_config={"model_type": "llama", **TEXT}, image_token_id=IMAGE, scale_factor=2
    )
    network = _moved(getattr(transformers, f"{kind}ForConditionalGeneration")(config))
    images = Idefics3ImageProcessorPil(size={"longest_edge": 4 * tile}, max_image_size={"longest_edge": tile})
    processor = transformers.Idefics3Processor(
        images, tokenizer(), image_seq_len=(tile // 16) ** 2, chat_template=SMOLVLM_TEMPLATE
    )
    network.save_pretrained(folder)
    processor.save_pretrained(folder)
    return network, processor


def pictures() -> list[np.ndarray]:
    """Pictures of several shapes."""
    random = np.random.default_rng(3)
    shapes = [(40, 60), (33, 21), (32, 32), (90, 50), (7, 100)]
    return [random.integers(0, 256, (height, width, 3), dtype=np.uint8) for height, width in shapes]
