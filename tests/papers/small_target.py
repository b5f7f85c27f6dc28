"""A target that is trained in a minute and text that it has read, for the experiments of papers that train drafts.

A Llama-like model of 4 layers and width 128 over 512 BPE tokens of Python's standard library, trained for 500 steps of
16 x 96 tokens.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch

import outlay
from outlay.python_sources import library_sources
from outlay.train.corpus import Harvest, Passage

VOCABULARY, WIDTH, LAYERS = 512, 128, 4
LENGTH, TEXTS, STEPS = 96, 16, 500
LEARNING_RATE = 2e-3
TOKENS = 2_600_000
CONTEXTS, CONTINUED = 192, 24  # held-out beginnings of texts, and the greedy tokens behind each
READ = 4400  # texts that heads are trained on
TOGETHER = 64


@dataclass
class SmallTarget:
    """The target in float32 on one thread, greedy texts behind held-out beginnings, and texts that it has read."""

    lm: outlay.LM
    held: list[Passage]
    read: list[Passage]


def small_target(folder) -> SmallTarget:
    """Trains the target in `folder`, and has it read."""
    tokens = _trained(folder)
    lm = outlay.load(str(folder), dtype="float32", threads=1)
    lm.engine.worker(lm.model).keep_hidden_states()
    starts = torch.randperm(len(tokens) // LENGTH, generator=torch.Generator().manual_seed(1))[: CONTEXTS + READ]
    texts = [tokens[LENGTH * start : LENGTH * (start + 1)].tolist() for start in starts.tolist()]
    held = _harvested(lm, texts[:CONTEXTS], CONTINUED)
    # The texts themselves are learned from, not what the target would write behind them.
    read = [replace(passage, begin=1) for passage in _harvested(lm, texts[CONTEXTS:], 1)]
    return SmallTarget(lm, held, read)


def _trained(folder) -> torch.Tensor:
    """Saves a tokenizer and a model in `folder`; returns the tokens of the text that it was trained on."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    documents = list(library_sources(4 * TOKENS))
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    letters = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=VOCABULARY, initial_alphabet=letters, special_tokens=["<s>"])
    tokenizer.train_from_iterator(documents[::4], trainer)
    tokens = torch.tensor([token for text in documents for token in tokenizer.encode(text[:20_000]).ids][:TOKENS])
    torch.manual_seed(0)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=VOCABULARY, hidden_size=WIDTH, intermediate_size=3 * WIDTH, num_hidden_layers=LAYERS,
            num_attention_heads=4, num_key_value_heads=4, max_position_embeddings=512, bos_token_id=0, eos_token_id=0,
            tie_word_embeddings=False,
        )
    )  # fmt: skip
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, betas=(0.9, 0.95))
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, LEARNING_RATE, total_steps=STEPS)
    draw = torch.Generator().manual_seed(0)
    for _ in range(STEPS):
        starts = torch.randint(0, len(tokens) - LENGTH, (TEXTS,), generator=draw).tolist()
        batch = torch.stack([tokens[start : start + LENGTH] for start in starts])
        model(input_ids=batch, labels=batch).loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
    model.save_pretrained(folder)
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="<s>").save_pretrained(folder)
    return tokens


def _harvested(lm, texts, continued) -> list[Passage]:
    """Has the target read texts and write `continued` greedy tokens behind each."""
    passages = []
    for first in range(0, len(texts), TOGETHER):
        some = texts[first : first + TOGETHER]
        methods = [Harvest() for _ in some]
        with lm.engine.together():
            handles = [
                lm.submit(text, method=method, max_tokens=continued, ignore_eos=True)
                for text, method in zip(some, methods, strict=True)
            ]
        for handle in handles:
            handle.result()
        lm.engine.clear()
        passages += [method.passage for method in methods]
    return passages
