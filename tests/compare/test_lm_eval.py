"""The model type of `lm_eval`: on tasks of local files it gives what lm_eval's own `hf` type gives."""

from __future__ import annotations

import gc
import json
import sys
from functools import partialmethod
from pathlib import Path

import pytest
from lm_eval import simple_evaluate
from lm_eval.api.instance import Instance
from lm_eval.api.registry import get_model
from lm_eval.tasks import TaskManager

import outlay
from outlay.cli import main
from outlay.compare.lm_eval import OutlayLM, _only_new_garbage
from outlay.engine.engine import Engine
from outlay.errors import UsageError
from outlay.lm import LM
from outlay.models import linear
from outlay.testing import tiny_lm, tiny_model

ROOT = Path(__file__).parents[2]
CHAT = "<|im_start|>user\nName a river.<|im_end|>\n<|im_start|>assistant\n"


@pytest.fixture(scope="module")
def hf(transformers_model, transformers_tokenizer):
    return get_model("hf")(pretrained=transformers_model, tokenizer=transformers_tokenizer, batch_size=4, device="cpu")


@pytest.fixture(scope="module")
def ours(default_path):
    """Over torch's products, which sum in the order in which those of the hf type do."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(linear, "native_kernels", lambda: False)
        lm = outlay.load(default_path, dtype="float32")
    assert lm.model.decoder.layers[0].qkv.format == "float32"
    assert not isinstance(lm.model.decoder.layers[0].qkv, linear.NativeLinear)
    return get_model("outlay").create_from_arg_obj({"model": lm})


@pytest.fixture(scope="module")
def native(default_lm):
    return get_model("outlay").create_from_arg_obj({"model": default_lm})


@pytest.fixture
def tiny():
    return get_model("outlay").create_from_arg_obj({"model": tiny_lm()})


@pytest.fixture
def short_window(hf, ours, monkeypatch):
    """Both models read 24 tokens at most."""
    monkeypatch.setattr(hf, "_max_length", 24)
    monkeypatch.setattr(ours, "max_length", 24)


def test_the_native_kernels_sum_likelihoods_to_the_same_within_float32(ours, native):
    asked = instances(
        "loglikelihood", ("The river", " flows"), ("The capital of France is", " Paris, the city of love")
    )
    found, expected = ([logprob for logprob, _ in lm.loglikelihood(asked, disable_tqdm=True)] for lm in (native, ours))
    assert found == pytest.approx(expected, rel=3e-5)


def instances(kind, *arguments):
    return [Instance(kind, {}, argument, index) for index, argument in enumerate(arguments)]


def check_likelihoods(hf, ours, *pairs):
    asked = instances("loglikelihood", *pairs)
    for (logprob, greedy), (expected, as_greedy) in zip(
        ours.loglikelihood(asked, disable_tqdm=True), hf.loglikelihood(asked, disable_tqdm=True), strict=True
    ):
        assert logprob == pytest.approx(expected, abs=1e-4)
        assert greedy == as_greedy


@pytest.mark.parametrize(
    ("task", "docs"),
    [
        ("story_choices", 1),
        pytest.param("story_letters", 1, marks=pytest.mark.slow),
        ("story_answers", 1),
        ("story_texts", 1),
        pytest.param("story_choices", 2, marks=pytest.mark.slow),
        pytest.param("story_answers", 3, marks=pytest.mark.slow),
        pytest.param("story_texts", 2, marks=pytest.mark.slow),
    ],
)
def test_a_task_of_local_files_gives_what_the_hf_type_gives(hf, ours, task, docs, monkeypatch):
    monkeypatch.chdir(ROOT)
    manager = TaskManager(include_path="benchmarks/tasks", include_defaults=False)
    expected, found = (simple_evaluate(lm, tasks=[task], limit=docs, task_manager=manager) for lm in (hf, ours))
    metrics = {name: value for name, value in expected["results"][task].items() if isinstance(value, float)}
    assert metrics
    assert {name: found["results"][task][name] for name in metrics} == pytest.approx(metrics, abs=1e-4)
    for sample, reference in zip(found["samples"][task], expected["samples"][task], strict=True):
        for (answer,), (wanted,) in zip(sample["resps"], reference["resps"], strict=True):
            assert answer == wanted if isinstance(wanted, str) else answer == pytest.approx(wanted, abs=2e-4)


def test_continuations_of_one_context_are_scored_as_apart(hf, ours):
    context = "The capital of France is"
    ends = [" Paris", " Paris, the city of light", " Paris, the city of love", " Rome", " P", " Paris"]
    check_likelihoods(hf, ours, *((context, end) for end in ends), ("The river", " flows"), (context, " a city."))


def test_an_empty_context_a_space_at_its_end_and_special_tokens_are_read_as_the_hf_type_reads_them(hf, ours):
    check_likelihoods(
        hf, ours, ("", "Once upon a time"), ("Once upon a ", "time"), ("<|im_start|>user", "\nHi"), (CHAT, "The Rhine")
    )


def test_a_context_is_cut_at_its_beginning_where_it_does_not_fit(hf, ours, short_window):
    long = "one two three four five six seven eight nine ten " * 4
    check_likelihoods(hf, ours, (long, "eleven"), (long, "eleven twelve thirteen"), (long[:-1], " e"))


@pytest.mark.parametrize("words", [0, 5, 24, 25, 70])
def test_rolling_windows_are_those_of_the_hf_type(hf, ours, short_window, words):
    asked = instances("loglikelihood_rolling", *(((" word" * count).strip(),) for count in {words, 3}))
    found, expected = (lm.loglikelihood_rolling(asked, disable_tqdm=True) for lm in (ours, hf))
    assert found == pytest.approx(expected, abs=1e-4)


def test_generated_texts_end_and_are_cut_where_those_of_the_hf_type_are(hf, ours, short_window):
    asked = instances(
        "generate_until",
        (CHAT, {"until": ["\n", "."], "max_gen_toks": 8}),
        (CHAT, {"until": [" the"], "max_gen_toks": 8}),
        ("Count: one, two, three, four, five, six, seven, eight, nine, ten,", {"until": [], "max_gen_toks": 8}),
        ("Hello", {"until": "x", "max_gen_toks": 4, "do_sample": False}),
    )
    assert ours.generate_until(asked, disable_tqdm=True) == hf.generate_until(asked, disable_tqdm=True)


def test_a_context_that_fills_the_models_own_window_is_scored(tiny):
    full = tiny.tok_encode("x" * tiny.max_length)
    assert len(full) == tiny.max_length
    (whole,) = tiny._loglikelihood_tokens([(None, full, [5])], disable_tqdm=True)
    assert whole[0] < 0
    (longer,) = tiny._loglikelihood_tokens([(None, [7, *full], [5])], disable_tqdm=True)
    assert longer[0] == pytest.approx(whole[0], abs=1e-5)


def test_the_method_is_the_one_that_was_named_and_repeats_draw_other_texts(tiny, monkeypatch):
    monkeypatch.setattr(tiny, "method", "best_of:n=2")
    request = ("one two", {"until": [], "max_gen_toks": 12, "do_sample": True, "temperature": 1.0})
    texts = tiny.generate_until(instances("generate_until", request, request), disable_tqdm=True)
    assert len(set(texts)) == 2
    assert tiny.generate_until(instances("generate_until", request, request), disable_tqdm=True) == texts
    assert tiny.ledger.extras["texts"] > 0


@pytest.mark.parametrize("method", ["greedy", "beam:width=4"])
def test_requests_that_do_not_fit_the_cache_together_wait_for_each_other(method):
    lm = OutlayLM(LM(tiny_model(), Engine(cache_tokens=500)), method=method)
    texts = [f"text {index} " * 9 for index in range(12)]
    asked = instances("loglikelihood", *((text, " and so on") for text in texts))
    alone = [lm.loglikelihood([request], disable_tqdm=True)[0][0] for request in asked]
    assert [logprob for logprob, _ in lm.loglikelihood(asked, disable_tqdm=True)] == pytest.approx(alone, abs=1e-4)
    asked = instances("generate_until", *((text, {"until": [], "max_gen_toks": 60}) for text in texts))
    assert all(lm.generate_until(asked, disable_tqdm=True))


def test_wrong_arguments_are_refused_in_one_line(tiny):
    with pytest.raises(UsageError, match=r"no argument 'pretrained'.*its arguments are model, method"):
        OutlayLM(pretrained="gpt2")
    with pytest.raises(UsageError, match="outlay takes temperature"):
        tiny.generate_until(instances("generate_until", ("a", {"until": [], "num_beams": 4})), disable_tqdm=True)
    with pytest.raises(UsageError, match="no room"):
        tiny.generate_until(instances("generate_until", ("a", {"max_gen_toks": 10**6})), disable_tqdm=True)
    with pytest.raises(UsageError, match="loglikelihood_rolling"):
        tiny.loglikelihood(instances("loglikelihood", ("a", "b" * 2 * tiny.max_length)), disable_tqdm=True)


@pytest.fixture
def command(monkeypatch, capsys):
    """The command line in this process, from the repository's root, without lm_eval's own thousands of tasks."""
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(sys, "argv", sys.argv)
    every = TaskManager.__init__
    monkeypatch.setattr(TaskManager, "__init__", partialmethod(every, include_defaults=False))

    def run(*words):
        status = main(["lm_eval", *words])
        return status, capsys.readouterr()

    return run


def test_the_command_runs_a_task_and_its_results_say_what_was_spent(command, default_path, tmp_path):
    model = f"model={default_path},method=greedy,budget=tokens_out=5"
    words = ["--include_path", "benchmarks/tasks", "--tasks", "story_answers", "--limit", "2"]
    status, said = command("--model", "outlay", "--model_args", model, *words, "--output_path", str(tmp_path))
    assert status == 0, said.err
    assert "exact_match" in said.out
    (written,) = tmp_path.rglob("results_*.json")
    config = json.loads(written.read_text())["config"]
    assert config["model_format"] == "int4"
    assert config["outlay_ledger"]["tokens_out"] == 10


def test_what_cannot_be_used_reaches_the_user_as_one_line(command):
    words = ["--include_path", "benchmarks/tasks", "--tasks", "story_answers"]
    status, said = command("--model", "outlay", "--model_args", "modle=x", *words)
    assert status == 2
    assert "no argument 'modle' (did you mean 'model'" in said.err.splitlines()[-1]
    status, said = command("--model", "outlay", "--no-such-option", *words)
    assert status == 2


def test_the_command_explains_itself(command):
    for words in ([], ["--help"]):
        status, said = command(*words)
        assert status == 0
        assert "--model_args model=smollm2-135m" in said.out


def test_what_was_there_before_is_searched_for_garbage_again_afterwards():
    before = gc.get_freeze_count()
    with _only_new_garbage():
        assert gc.get_freeze_count() > before
        with _only_new_garbage():
            pass
        assert gc.get_freeze_count() > before, "who froze it unfreezes it"
    assert gc.get_freeze_count() == before
