"""Scorers: what they give, what they cost, and what is refused."""

from __future__ import annotations

import json

import pytest
import torch
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from outlay import BestOf, FailureError, Particles, UsageError
from outlay.models.load import load_model
from outlay.rewards.forms import form_of
from outlay.rewards.model import RewardModel
from outlay.testing import tiny_lm, tiny_model, tiny_reward_model

HOT = {"temperature": 0.9, "max_tokens": 8, "ignore_eos": True}
TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
STEPS = ["first a step", "then 2", "so 3"]
SPECIAL = ["<|im_start|>", "<|im_end|>", "<extra_0>"]


def saved(folder, kind, extra, **changes):
    """Saves a tiny random checkpoint of `transformers`, with tensors of its own beside it."""
    torch.manual_seed(3)
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    inner = Tokenizer(models.BPE(vocab={piece: token for token, piece in enumerate(alphabet)}, merges=[]))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    inner.add_special_tokens(SPECIAL)
    config = getattr(transformers, f"{kind.partition('For')[0]}Config")(
        vocab_size=inner.get_vocab_size(), hidden_size=32, intermediate_size=48, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=512, initializer_range=0.2,
        pad_token_id=0, bos_token_id=None, eos_token_id=257, tie_word_embeddings=False, **changes,
    )  # fmt: skip
    network = getattr(transformers, kind)(config).eval()
    tensors = {name: tensor.contiguous() for name, tensor in network.state_dict().items()} | extra
    if any(name.startswith(("score.0", "v_head")) for name in extra):
        tensors.pop("lm_head.weight", None)
    from safetensors.torch import save_file

    config.save_pretrained(folder)
    save_file(tensors, folder / "model.safetensors")
    inner.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps({"chat_template": TEMPLATE}))
    return network, load_model(folder, dtype="float32")


def rewards_of(model, texts, form=None):
    """The rewards of texts, rated together with those of another run."""
    lm, scorer, found = tiny_lm(), RewardModel(model, form), []

    class Listening:
        def begin(self, run, step=""):
            judge = scorer.begin(run, "\n\n")

            class Judge:
                reads_logprobs = False

                def rewards(self, nodes):
                    found.extend((yield from judge.rate(texts)))
                    return [0.5] * len(nodes)

            return Judge()

    lm.generate("What?", method=BestOf(n=1, by="score"), scorer=Listening(), temperature=0.9, max_tokens=1)
    return found


def hidden(network, tokens):
    return network.model(torch.tensor([tokens])).last_hidden_state[0]


@torch.inference_mode()
@pytest.mark.parametrize("form", ["qwen-prm", "skywork", "math-shepherd", "rlhflow", "classifier"])
def test_each_form_gives_the_rewards_of_transformers(form, tmp_path):
    generator = torch.Generator().manual_seed(1)
    drawn = {
        "qwen-prm": {
            "score.0.weight": (32, 32),
            "score.0.bias": (32,),
            "score.2.weight": (2, 32),
            "score.2.bias": (2,),
        },
        "skywork": {"v_head.summary.weight": (1, 32), "v_head.summary.bias": (1,)},
    }.get(form, {})
    extra = {name: torch.randn(shape, generator=generator) * 0.3 for name, shape in drawn.items()}
    classifier = form == "classifier"
    changes = {"num_labels": 1} if classifier else {}
    kind = "LlamaForSequenceClassification" if classifier else "Qwen2ForCausalLM"
    network, model = saved(tmp_path, kind, extra, **changes)
    named = form if form in ("math-shepherd", "rlhflow") else None
    chosen = form_of(model, named)
    assert chosen.name == form
    texts = ["\n\n".join(STEPS[:count]) for count in (1, 2, 3)]
    found = rewards_of(model, texts, named)
    for count, reward in enumerate(found, 1):
        places = chosen.place(model.tokenizer, "What?", [texts[count - 1]] if classifier else STEPS[:count])
        tokens = places[-1]
        if classifier:
            expected = network(torch.tensor([tokens])).logits[0, 0].sigmoid()
        elif form == "qwen-prm":
            first = torch.nn.functional.linear(
                hidden(network, tokens)[-1], extra["score.0.weight"], extra["score.0.bias"]
            )
            expected = torch.nn.functional.linear(first.relu(), extra["score.2.weight"], extra["score.2.bias"]).softmax(
                0
            )[1]
        elif form == "skywork":
            weight, bias = extra["v_head.summary.weight"], extra["v_head.summary.bias"]
            expected = torch.nn.functional.linear(hidden(network, tokens)[-1], weight, bias)[0].sigmoid()
        else:
            right, wrong = chosen.words(model.tokenizer)
            logits = network(torch.tensor([tokens])).logits[0, -1]
            expected = logits[[right, wrong]].softmax(0)[0]
        assert reward == pytest.approx(float(expected), abs=1e-4)


def test_a_reward_model_reads_each_prefix_once_and_is_refused_as_a_writer():
    lm, judge = tiny_lm(prefix_cache=False), tiny_reward_model()
    result = lm.generate("Hello", method=Particles(n=4, step_tokens=2), scorer=judge, **HOT)
    assert 0 < result.ledger.score_tokens < result.ledger.scores * 16
    assert result.ledger.score_passes == 4
    from outlay import LM
    from outlay.engine.engine import Engine

    with pytest.raises(UsageError, match="is a reward model, which rates texts"):
        LM(judge, Engine()).generate("Hello", max_tokens=1)


def test_a_language_model_is_no_reward_model():
    with pytest.raises(UsageError, match="no reward model of a form that we have \\(qwen-prm, skywork"):
        RewardModel(tiny_model())


@pytest.mark.parametrize("wrong", [[1.5], [float("nan")], [], ["good"], None])
def test_rewards_that_are_none_are_refused_with_the_text(wrong):
    with pytest.raises(FailureError, match="score"):
        tiny_lm().generate("Hello", method=BestOf(n=1, by="score"), scorer=lambda prompt, texts: wrong, **HOT)


def test_a_file_scores_in_a_process_and_within_the_tick_alike(tmp_path):
    slow, quick = tmp_path / "slow.py", tmp_path / "quick.py"
    body = "def score(prompt, texts):\n    return [len(text) % 7 / 7 for text in texts]\n"
    slow.write_text(body)
    quick.write_text("quick = True\n" + body)
    results = [
        tiny_lm().generate("Hello", method=Particles(n=3, step_tokens=2), scorer=f"python:{path}", **HOT)
        for path in (slow, quick)
    ]
    assert results[0].tokens == results[1].tokens
    assert results[0].ledger.scores == results[1].ledger.scores > 0


def test_what_is_no_scorer_is_refused(tmp_path):
    empty = tmp_path / "empty.py"
    empty.write_text("")
    for scorer, message in {
        f"python:{empty}": "must have a function score",
        "python": "needs a file",
        3: "a scorer is",
    }.items():
        with pytest.raises(UsageError, match=message):
            tiny_lm().submit("Hello", method="astar", scorer=scorer, temperature=0.9)
