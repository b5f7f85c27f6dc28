"""Training the tiny reasoner: its tokens, what it learns from, what it writes and what it refuses."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file

from outlay import FailureError, UsageError
from outlay.models.load import load_model
from outlay.problems import arithmetic, chains
from outlay.rewards.forms import form_of
from outlay.train.reasoner import IGNORED, Chains, ReasonerRecipe, ReasonerTraining, reasoner_tokenizer
from outlay.train.small_llama import SmallLlama

TINY = {
    "layers": 1,
    "hidden": 16,
    "heads": 2,
    "inner": 16,
    "batch": 4,
    "steps": 25,
    "reasoner": 0.0,
    "verifier": 1e-300,
}


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A reasoner and a verifier of 25 training steps, which know nothing."""
    out = tmp_path_factory.mktemp("reasoner")
    return out, ReasonerTraining(ReasonerRecipe(**TINY), out).fit(lambda phase, done, total: None)


def test_each_number_and_each_word_of_the_chains_is_one_token():
    tokenizer = reasoner_tokenizer()
    assert tokenizer.encode("57 - 20 = 37\n").tokens == ["57", "\u0120-", "\u012020", "\u0120=", "\u012037", "\u010a"]
    for row in chains.make(20, 5):
        text = row["prompt"] + "\n" + "\n".join(row["steps"])
        assert tokenizer.decode(tokenizer.encode(text).ids) == text
        assert len(tokenizer.encode(text).ids) < 120
    assert tokenizer.decode(tokenizer.encode("caf\u00e9, 123456 \U0001f600").ids) == "caf\u00e9, 123456 \U0001f600"


def test_what_is_learned_is_the_solution_with_its_end_line_by_line():
    tokenizer = reasoner_tokenizer()
    rows = arithmetic.make(3, 1, (2, 4))
    problems = Chains(tokenizer).encode(rows)
    for row, targets, lines in zip(rows, problems.targets, problems.lines, strict=True):
        own = targets != IGNORED
        assert tokenizer.decode(targets[own].tolist(), skip_special_tokens=False) == "\n".join(row["steps"]) + "<end>"
        assert lines[own].unique().tolist() == list(range(len(row["steps"])))


def test_both_are_models_that_outlay_loads_and_one_of_them_is_a_verifier(trained):
    out, reached = trained
    assert set(reached) == {"tiny-reasoner", "tiny-verifier"}
    assert not (out / "reasoner.checkpoint").exists()
    reasoner, verifier = (load_model(out / name, dtype="float32") for name in reached)
    assert reasoner.reward_form is None
    assert form_of(verifier).name == "likelihood"
    net = SmallLlama(ReasonerRecipe(**TINY), reasoner_tokenizer().get_vocab_size(), 256)
    tensors = load_file(out / "tiny-reasoner" / "model.safetensors")
    net.load_state_dict({name.removeprefix("model."): tensor.float() for name, tensor in tensors.items()}, strict=True)
    prompt = reasoner.tokenizer.render_chat([{"role": "user", "content": chains.make(1, 0)[0]["prompt"]}])
    from outlay import LM
    from outlay.engine.engine import Engine

    first = LM(reasoner, Engine()).generate(prompt, max_tokens=1, logprobs=3).logprobs[0]
    with torch.no_grad():
        expected = net.logits(net(torch.tensor([prompt])))[0, -1].log_softmax(-1)
    assert [logprob for _, logprob in first.top] == pytest.approx(expected.topk(3).values.tolist(), abs=1e-4)


def test_a_training_that_ends_too_early_says_so(tmp_path):
    with pytest.raises(FailureError, match=r"after 25 steps .* give more --steps"):
        ReasonerTraining(ReasonerRecipe(**TINY | {"verifier": 0.9}), tmp_path).fit(lambda *told: None)


def test_a_training_that_was_stopped_goes_on_and_keeps_the_reasoner_that_it_had(tmp_path):
    class Stop(Exception):
        pass

    def stop(phase, done, total):
        if done == 40:
            raise Stop

    recipe = ReasonerRecipe(**TINY | {"steps": 50, "verifier": 0.9})
    with pytest.raises(Stop):
        ReasonerTraining(recipe, tmp_path).fit(stop)
    kept = (tmp_path / "tiny-reasoner" / "model.safetensors").read_bytes()
    steps = []
    with pytest.raises(FailureError):
        ReasonerTraining(recipe, tmp_path).fit(lambda phase, done, total: steps.append(done))
    assert steps == list(range(26, 51))
    assert (tmp_path / "tiny-reasoner" / "model.safetensors").read_bytes() == kept


def test_recipes_that_make_no_sense_are_refused():
    with pytest.raises(UsageError, match="multiple of 8"):
        ReasonerRecipe(hidden=100)
    with pytest.raises(UsageError, match="more steps right than the reasoner"):
        ReasonerRecipe(reasoner=0.9, verifier=0.8)
