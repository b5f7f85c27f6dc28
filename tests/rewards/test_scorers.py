"""Scorers: what they give, what they cost, and what is refused."""

from __future__ import annotations

import json

import pytest
import torch
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from outlay import BestOf, FailureError, Particles, UsageError
from outlay.bench.search.rate import Rate
from outlay.bench.search.rate import rewards_of as rated_texts
from outlay.models.load import load_model
from outlay.models.reward_head import form_name
from outlay.rewards import resolve
from outlay.rewards.forms import FORMS, SYSTEM, form_of
from outlay.rewards.functions import FunctionScorer
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
            rated = scorer.begin(run, "\n\n")

            class RunScorer:
                reads_logprobs = False

                def rewards(self, nodes):
                    found.extend((yield from rated.rate(texts)))
                    return [0.5] * len(nodes)

            return RunScorer()

    lm.generate("What?", method=BestOf(n=1, by="score"), scorer=Listening(), temperature=0.9, max_tokens=1)
    return found


def hidden(network, tokens):
    return network.model(torch.tensor([tokens])).last_hidden_state[0]


@torch.inference_mode()
@pytest.mark.parametrize("form", ["qwen-prm", "qwen-rm", "skywork", "math-shepherd", "rlhflow", "classifier"])
def test_each_form_gives_the_rewards_of_transformers(form, tmp_path):
    generator = torch.Generator().manual_seed(1)
    drawn = {
        "qwen-prm": {
            "score.0.weight": (32, 32),
            "score.0.bias": (32,),
            "score.2.weight": (2, 32),
            "score.2.bias": (2,),
        },
        "qwen-rm": {
            "score.0.weight": (32, 32),
            "score.0.bias": (32,),
            "score.2.weight": (1, 32),
            "score.2.bias": (1,),
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
        whole = classifier or form == "qwen-rm"
        places = chosen.place(model.tokenizer, "What?", [texts[count - 1]] if whole else STEPS[:count])
        tokens = places[-1]
        if classifier:
            expected = network(torch.tensor([tokens])).logits[0, 0].sigmoid()
        elif form in ("qwen-prm", "qwen-rm"):
            first = torch.nn.functional.linear(
                hidden(network, tokens)[-1], extra["score.0.weight"], extra["score.0.bias"]
            )
            second = torch.nn.functional.linear(first.relu(), extra["score.2.weight"], extra["score.2.bias"])
            expected = second.softmax(0)[1] if form == "qwen-prm" else second[0].sigmoid()
        elif form == "skywork":
            weight, bias = extra["v_head.summary.weight"], extra["v_head.summary.bias"]
            expected = torch.nn.functional.linear(hidden(network, tokens)[-1], weight, bias)[0].sigmoid()
        else:
            right, wrong = chosen.words(model.tokenizer)
            logits = network(torch.tensor([tokens])).logits[0, -1]
            expected = logits[[right, wrong]].softmax(0)[0]
        assert reward == pytest.approx(float(expected), abs=1e-4)


def test_conversations_are_those_of_the_published_code(tmp_path):
    """As the model cards' own code makes them, with a byte a token."""
    _, model = saved(tmp_path, "Qwen2ForCausalLM", {"v_head.summary.weight": torch.ones(1, 32)})
    tokenizer = model.tokenizer

    def spelled(form):
        last = FORMS[form].place(tokenizer, "What?", ["one\ntwo", "three"])[-1]
        return "".join(tokenizer.name_of(token) or tokenizer.decode([token]) for token in last)

    system = f"<|im_start|>system\n{SYSTEM}<|im_end|>\n<|im_start|>user\nWhat?<|im_end|>\n<|im_start|>assistant\n"
    turn = "<|im_start|>user\n{}<|im_end|>\n<|im_start|>assistant\n"
    assert SYSTEM == "Please reason step by step, and put your final answer within \\boxed{}."
    assert spelled("qwen-prm") == f"{system}one\ntwo<extra_0>three<extra_0>"
    assert spelled("qwen-rm") == f"{system}one\ntwo\n\nthree<|im_end|>\n"
    assert spelled("skywork") == "What?\none\ntwo\nthree\n"
    assert spelled("rlhflow") == turn.format("What? one\ntwo") + "+<|im_end|>\n" + turn.format("three")


@torch.inference_mode()
def test_a_verifier_rewards_a_step_with_its_probability_alone_shared_and_batched(tmp_path):
    network, model = saved(tmp_path, "LlamaForCausalLM", {})
    assert model.reward_form is None
    lm, scorer = tiny_lm(), RewardModel(model, "likelihood", reduce="last")
    texts = ["one\n\n", "one\n\ntwo\n\n", "one\n\nten", "two\n\n"]
    prompt = model.tokenizer.render_chat([{"role": "user", "content": "What?"}])
    expected = []
    for text in texts:
        head, mark, _ = text.removesuffix("\n\n").rpartition("\n\n")
        before = len(prompt) + len(model.tokenizer.encode(head + mark))
        tokens = [*prompt, *model.tokenizer.encode(text)]
        logprobs = network(torch.tensor([tokens])).logits[0].log_softmax(-1)
        expected.append(float(sum(logprobs[at - 1, tokens[at]] for at in range(before, len(tokens))).exp()))
    tokens = [lm.encode(text, chat=False) for text in texts]
    together = rated_texts(lm, "What?", tokens, scorer, "\n\n")
    assert together == pytest.approx(expected, rel=1e-4)
    for one, reward in zip(tokens, together, strict=True):
        assert rated_texts(tiny_lm(), "What?", [one], scorer, "\n\n") == pytest.approx([reward], rel=1e-4)
    with lm.engine.together():
        rates = [Rate([one], "\n\n") for one in tokens]
        handles = [lm.submit("What?", method=rate, scorer=scorer, max_tokens=1) for rate in rates]
    for handle, rate, reward in zip(handles, rates, together, strict=True):
        handle.result(60)
        assert rate.rewards == pytest.approx([reward], rel=1e-4)


def test_a_reward_model_is_known_by_its_name_where_nothing_else_tells():
    known = {
        "peiyi9979/math-shepherd-mistral-7b-prm": "math-shepherd",
        "peiyi9979/math-shepherd-mistral-7b-rl": None,
        "RLHFlow/Llama3.1-8B-PRM-Deepseek-Data": "rlhflow",
        "RLHFlow/LLaMA3-iterative-DPO-final": None,
    }
    assert {name: form_name(name, {}, None) for name in known} == known


def test_a_reward_model_reads_each_prefix_once_and_is_refused_as_a_writer():
    lm, scorer = tiny_lm(prefix_cache=False), tiny_reward_model()
    result = lm.generate("Hello", method=Particles(n=4, step_tokens=2), scorer=scorer, **HOT)
    assert 0 < result.ledger.score_tokens < result.ledger.scores * 16
    assert result.ledger.score_passes == 4
    from outlay import LM
    from outlay.engine.engine import Engine

    with pytest.raises(UsageError, match="is a reward model, which rates texts"):
        LM(scorer, Engine()).generate("Hello", max_tokens=1)


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


def test_other_packages_add_kinds_by_their_entry_points(monkeypatch):
    class Entry:
        name = "letters"

        def load(self):
            return lambda rest: FunctionScorer(lambda prompt, texts: [float(rest in text) for text in texts])

    monkeypatch.setattr(resolve, "entry_points", lambda group: [Entry()] if group == "outlay.scorers" else [])
    result = tiny_lm().generate("Hello", method=BestOf(n=3, by="score"), scorer="letters:e", **HOT)
    assert result.ledger.scores == 3


def test_a_reward_model_is_listed_and_a_verifier_refused_as_a_writer():
    from outlay import load

    with pytest.raises(UsageError, match="tiny-verifier is a reward model, which rates texts"):
        load("outlay/tiny-verifier").generate("Start with 2.", max_tokens=1)
    with pytest.raises(UsageError, match=r"no model is called 'outlay/tiny-verifyer' .did you mean"):
        load("outlay/tiny-verifyer")
