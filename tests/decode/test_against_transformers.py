"""What we write is what `transformers` writes: greedy on the default model, beam search and sampling on small ones."""

from __future__ import annotations

import pytest
import tokenizers
import torch
import transformers

import outlay
from outlay.engine.sampling import Sampling, distribution, penalize
from outlay.testing import tiny_lm

PROMPTS = [
    "Why is the sky blue?",
    "Write a Python function that reverses a string.",
    "Translate to French: The cat sleeps on the warm stove.",
    "List five fruits, one on each line.",
    "What is 17 times 23?",
    '{"name": "Ada", "born": ',
    "Continue the story: The lighthouse keeper had not spoken to anyone for a year.",
    "Summarise in one sentence: Rivers carry sediment to the sea, where it settles in layers and becomes rock.",
    "Who wrote Pride and Prejudice?",
    "Explain recursion to a child.",
    "Give me a JSON object with the keys city, country and population.",
    "def fibonacci(n):",
    "¿Cuál es la capital de España?",
    "请用中文介绍一下北京。",
    "Was ist der Unterschied zwischen Wetter und Klima?",
    "Write a haiku about rust.",
    "How do I make tea?",
    "Fix the grammar: She don't likes apples and he eat them all.",
    "What are the prime numbers below 30?",
    "Describe the colour red without naming it.",
    "Name three uses for a paperclip 📎.",
    "SELECT name FROM users WHERE",
    "Is it better to rent or to buy? Answer in two sentences.",
    "Tell me a joke about a programmer.",
]
FULL = pytest.mark.slow  # the default model in float32 over long texts


@pytest.fixture(scope="module", params=[(4, 24), pytest.param((1, 64), marks=FULL)], ids=["few", "all"])
def ours(default_lm, request):
    """Prompts, and our greedy answers to them, each computed alone."""
    step, length = request.param
    prompts = PROMPTS[::step]
    answers = [default_lm.generate(prompt, max_tokens=length, ignore_eos=True).tokens for prompt in prompts]
    return dict(zip(prompts, answers, strict=True))


@torch.inference_mode()
def test_greedy_on_the_default_model_is_what_transformers_writes(default_lm, transformers_model, ours):
    """Each of our tokens is the most probable one, to `transformers`, after those before it: its own greedy text."""
    for prompt, tokens in ours.items():
        given = default_lm.encode(prompt)
        logits = transformers_model(torch.tensor([given + tokens])).logits[0]
        assert logits[len(given) - 1 : -1].argmax(-1).tolist() == tokens, prompt


@torch.inference_mode()
def test_generate_of_transformers_agrees_token_by_token(default_lm, transformers_model, ours):
    for prompt, tokens in list(ours.items())[: max(1, len(ours) // 8)]:
        given, length = torch.tensor([default_lm.encode(prompt)]), len(tokens)
        output = transformers_model.generate(given, max_new_tokens=length, min_new_tokens=length, do_sample=False)
        allowed = output[0, given.shape[1] :].tolist()
        # min_new_tokens forbids the end token, where ours may go past it
        end = tokens.index(2) if 2 in tokens else length
        assert allowed[:end] == tokens[:end], prompt


def test_greedy_in_a_batch_is_greedy_alone(default_lm, ours):
    length = len(next(iter(ours.values())))
    together = default_lm.generate_batch(list(ours), max_tokens=length, ignore_eos=True)
    assert [result.tokens for result in together] == list(ours.values())


@pytest.mark.parametrize(("prompts", "length"), [(1, 12), pytest.param(3, 24, marks=FULL)])
@torch.inference_mode()
def test_beam_search_on_the_default_model(default_lm, transformers_model, prompts, length):
    for prompt in PROMPTS[:prompts]:
        given = torch.tensor([default_lm.encode(prompt)])
        output = transformers_model.generate(
            given,
            max_new_tokens=length,
            num_beams=4,
            do_sample=False,
            length_penalty=1.0,
            early_stopping=False,
            eos_token_id=2,
        )
        result = default_lm.generate(prompt, method="beam:width=4", max_tokens=length)
        assert result.tokens == output[0, given.shape[1] :].tolist(), prompt


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """A small random checkpoint that `transformers` saved, with a tokenizer, in both worlds."""
    folder = tmp_path_factory.mktemp("small")
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=64, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=128, eos_token_id=3, bos_token_id=1, pad_token_id=0,
        initializer_range=0.25, tie_word_embeddings=False,
    )  # fmt: skip
    model = transformers.LlamaForCausalLM(config).eval()
    model.save_pretrained(folder)
    alphabet = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())[:64]
    inner = tokenizers.Tokenizer(tokenizers.models.BPE({piece: token for token, piece in enumerate(alphabet)}, []))
    inner.decoder = tokenizers.decoders.ByteLevel()
    inner.save(str(folder / "tokenizer.json"))
    return model, outlay.load(folder, dtype="float32")


@pytest.mark.parametrize("width", [1, 2, 4, 7])
@pytest.mark.parametrize("penalty", [-0.5, 0.0, 1.0, 2.0])
@pytest.mark.parametrize("early", [True, False, "never"])
@pytest.mark.parametrize("seeds", [range(1), pytest.param(range(1, 4), marks=pytest.mark.slow)], ids=["one", "more"])
@torch.inference_mode()
def test_beam_search_gives_the_same_sequences(small, width, penalty, early, seeds):
    model, lm = small
    for seed in seeds:
        prompt = torch.randint(4, 64, (1, 6), generator=torch.Generator().manual_seed(seed))
        output = model.generate(
            prompt, max_new_tokens=20, num_beams=width, do_sample=False, length_penalty=penalty, early_stopping=early
        )
        expected = output[0, 6:].tolist()
        if width == 1:  # `transformers` runs greedy search then, which the first beam alone is
            method = outlay.Greedy()
        else:
            method = outlay.Beam(width=width, length_penalty=penalty, early_stopping=early)
        assert lm.generate(prompt[0].tolist(), method=method, max_tokens=20).tokens == expected


@pytest.mark.parametrize(
    "options",
    [
        {"temperature": 0.7},
        {"temperature": 1.0, "top_k": 5},
        {"temperature": 1.3, "top_p": 0.7},
        {"temperature": 0.9, "min_p": 0.1},
        {"temperature": 0.8, "top_k": 20, "top_p": 0.8, "min_p": 0.05},
        {"temperature": 1.0, "repetition_penalty": 1.4},
        {"temperature": 0.6, "top_p": 0.5, "repetition_penalty": 0.8},
    ],
)
def test_the_distribution_is_that_of_transformers(options):
    """The same logits processors, in the same order, on random logits."""
    logits = torch.randn(16, 500, generator=torch.Generator().manual_seed(1)) * 3
    history = torch.randint(0, 500, (16, 12), generator=torch.Generator().manual_seed(2))
    processors = transformers.LogitsProcessorList()
    if "repetition_penalty" in options:
        processors.append(transformers.RepetitionPenaltyLogitsProcessor(options["repetition_penalty"]))
    processors.append(transformers.TemperatureLogitsWarper(options["temperature"]))
    for name, warper in (
        ("top_k", transformers.TopKLogitsWarper),
        ("top_p", transformers.TopPLogitsWarper),
        ("min_p", transformers.MinPLogitsWarper),
    ):
        if name in options:
            processors.append(warper(options[name]))
    expected = processors(history, logits.clone()).softmax(-1)
    sampling = Sampling(**options)
    for row in range(16):
        penalized = penalize(logits[row], sampling, history[row, :5].tolist(), history[row, 5:].tolist())
        torch.testing.assert_close(distribution(penalized, sampling), expected[row], rtol=1e-5, atol=1e-7)


def test_logit_bias_is_the_sequence_bias_of_transformers():
    logits = torch.randn(1, 50, generator=torch.Generator().manual_seed(1))
    bias = {3: 2.0, 7: -5.5}
    expected = transformers.SequenceBiasLogitsProcessor([[[token], value] for token, value in bias.items()])(
        torch.zeros(1, 1, dtype=torch.int64), logits.clone()
    )
    torch.testing.assert_close(penalize(logits[0], Sampling(logit_bias=bias), [], []), expected[0])


def test_presence_penalty_is_subtracted_once_from_tokens_of_the_text():
    logits = torch.zeros(10)
    assert penalize(logits, Sampling(presence_penalty=0.5), [1, 2], [3, 3, 4]).tolist() == [
        0,
        0,
        0,
        -0.5,
        -0.5,
        0,
        0,
        0,
        0,
        0,
    ]


def test_frequency_penalty_is_subtracted_as_often_as_a_token_stands_in_the_text():
    """OpenAI's rule: logits[t] -= count(t) * frequency_penalty + (count(t) > 0) * presence_penalty."""
    logits = torch.zeros(6)
    sampling = Sampling(presence_penalty=0.5, frequency_penalty=0.25)
    assert penalize(logits, sampling, [1, 2], [3, 3, 4]).tolist() == [0, 0, 0, -1.0, -0.75, 0]
    assert logits.tolist() == [0] * 6


@pytest.mark.parametrize("n", [800, pytest.param(4000, marks=pytest.mark.slow)])
def test_draws_follow_the_distribution(n):
    """Chi-square over many draws, 5 degrees of freedom; false alarm about once in 10^5."""
    lm = tiny_lm()
    first = lm.generate("Once", max_tokens=1, logprobs=257, temperature=1.0, top_k=6, ignore_eos=True).logprobs[0]
    top = dict(first.top[:6])
    total = sum(torch.tensor(list(top.values())).exp()).item()
    counts = dict.fromkeys(top, 0)
    for seed in range(n):
        counts[lm.generate("Once", max_tokens=1, temperature=1.0, top_k=6, seed=seed, ignore_eos=True).tokens[0]] += 1
    expected = {token: n * torch.tensor(value).exp().item() / total for token, value in top.items()}
    chi2 = sum((counts[token] - expected[token]) ** 2 / expected[token] for token in top)
    assert chi2 < 31.8
