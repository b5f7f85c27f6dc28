"""Tiny random checkpoints on disk: a two-layer Llama over bytes with a chat template that knows tools and thoughts."""

from __future__ import annotations

import json

import tokenizers
import torch
from safetensors.torch import save_file
from tokenizers import decoders, models, pre_tokenizers

HIDDEN, INNER, KV = 32, 64, 16
SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "[TOOL_CALLS]", "<|python_tag|>")
PLAIN = ("<think>", "</think>")
VOCAB = 256 + len(SPECIAL) + len(PLAIN)
CONTEXT = 8192
TEMPLATE = """\
{%- if tools %}<|im_start|>system
Tools:
{% for tool in tools %}{{ tool | tojson }}
{% endfor %}Call one in CALL tags.<|im_end|>
{% endif %}
{%- for message in messages %}<|im_start|>{{ message.role }}
{% if message.tool_calls %}{% for call in message.tool_calls -%}
{{ call.function.name }} {{ call.function.arguments | tojson }}
{% endfor %}{% endif %}{% if message.role == "tool" %}gave {% endif %}{{ message.content }}<|im_end|>
{% endfor %}
{%- if add_generation_prompt %}<|im_start|>assistant
{% if enable_thinking %}<think>
{% endif %}{% endif %}"""


def write_checkpoint(folder, *, seed=0, form="<tool_call>", letters=True, context=CONTEXT):
    """Writes a checkpoint. With `letters` it never ends a text by itself, and writes nothing but letters and spaces."""
    folder.mkdir(parents=True)
    generator = torch.Generator().manual_seed(seed)

    def weight(*shape):
        return torch.randn(shape, generator=generator) * 1.5 / shape[-1] ** 0.5

    tokenizer = byte_tokenizer()
    words = [tokenizer.token_to_id(letter) for letter in "abcdefghijklmnopqrstuvwxyzĠ"]
    head = torch.zeros(VOCAB, HIDDEN)
    if letters:
        head[words] = 1.2 * weight(len(words), HIDDEN)
    else:
        head = 2 * weight(VOCAB, HIDDEN)
    weights = {"model.embed_tokens.weight": weight(VOCAB, HIDDEN), "model.norm.weight": torch.ones(HIDDEN)}
    weights["lm_head.weight"] = head
    for layer in range(2):
        parts = {
            "self_attn.q_proj": weight(HIDDEN, HIDDEN), "self_attn.k_proj": weight(KV, HIDDEN),
            "self_attn.v_proj": weight(KV, HIDDEN), "self_attn.o_proj": weight(HIDDEN, HIDDEN),
            "mlp.gate_proj": weight(INNER, HIDDEN), "mlp.up_proj": weight(INNER, HIDDEN),
            "mlp.down_proj": weight(HIDDEN, INNER), "input_layernorm": torch.ones(HIDDEN),
            "post_attention_layernorm": torch.ones(HIDDEN),
        }  # fmt: skip
        weights |= {f"model.layers.{layer}.{name}.weight": part for name, part in parts.items()}
    save_file(weights, folder / "model.safetensors")
    config = {
        "model_type": "llama", "vocab_size": VOCAB, "hidden_size": HIDDEN, "intermediate_size": INNER,
        "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
        "max_position_embeddings": context, "eos_token_id": tokenizer.token_to_id("<|im_end|>"),
        "tie_word_embeddings": False,
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(config))
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps({"chat_template": TEMPLATE.replace("CALL", form)}))
    return folder


def byte_tokenizer():
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    inner = tokenizers.Tokenizer(models.BPE(vocab={piece: token for token, piece in enumerate(alphabet)}, merges=[]))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    inner.decoder = decoders.ByteLevel()
    inner.add_special_tokens([tokenizers.AddedToken(name, special=True) for name in SPECIAL])
    inner.add_tokens([tokenizers.AddedToken(name, special=False) for name in PLAIN])
    return inner
