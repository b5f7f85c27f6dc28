"""`outlay train`: what it makes is found by `outlay run`, is the same for the same seed, and goes on after a stop."""

from __future__ import annotations

import json
import shutil

import pytest
from safetensors.torch import load_file, save_file

from outlay.decode.draft.auto.sources import model_table
from outlay.models.load import load_model
from outlay.speculation.ngrams import NgramTable
from outlay.train import corpus, draft_head, prompt_tokens

WORDS = {
    "draft": ("--tokens", 300, "--vocabulary", 60, "--epochs", 4),
    "ppd": ("--tokens", 300, "--m", 2, "--steps", 12),
    "length": ("--texts", 24, "--max-tokens", 60, "--closing", "e", "--width", 16, "--layers", 1, "--heads", 2),
}

pytestmark = pytest.mark.usefixtures("little_text")


@pytest.fixture
def train(outlay, tiny):
    """Trains something small for the tiny model; later words replace earlier ones."""

    def run(what, *words):
        return outlay("train", what, "--model", tiny, *WORDS[what], *words)

    return run


@pytest.fixture
def generated(outlay, tiny):
    """What `outlay run --json` reports of a run of the tiny model, or of another."""

    def run(*words, model=tiny):
        method = () if "--method" in words else ("--method", "greedy")
        status, out, _ = outlay("run", "Hello", "--model", model, "--max-tokens", 40, "--json", *method, *words)
        assert status == 0
        return json.loads(out)

    return run


@pytest.fixture(scope="session")
def other(tiny, tmp_path_factory):
    """The tiny model with other weights."""
    folder = tmp_path_factory.mktemp("models") / "other"
    shutil.copytree(tiny, folder)
    weights = load_file(folder / "model.safetensors")
    weights["model.norm.weight"] = weights["model.norm.weight"] * 1.1
    save_file(weights, folder / "model.safetensors")
    return folder


@pytest.fixture(scope="session")
def renumbered(tiny, tmp_path_factory):
    """The tiny model with two of its tokens exchanged."""
    folder = tmp_path_factory.mktemp("models") / "renumbered"
    shutil.copytree(tiny, folder)
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    vocabulary = tokenizer["model"]["vocab"]
    vocabulary["a"], vocabulary["b"] = vocabulary["b"], vocabulary["a"]
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    return folder


def test_a_head_that_was_trained_is_the_default_draft_of_its_model_wherever_that_lies(
    train, generated, refusal, tiny, tmp_path
):
    status, line = refusal("run", "Hello", "--model", tiny, "--method", "speculative")
    assert status == 2
    assert "outlay train draft --model tiny" in line
    status, out, err = train("draft")
    assert (status, out.count("\n")) == (0, 1)
    assert out.strip().startswith(str(tmp_path / "cache"))
    assert out.endswith(".head.safetensors\n")
    assert err.startswith("hit rates at depth 1, 2, ... on held-out texts: ")
    assert err.count("%") == 3
    found = generated("--method", "speculative")
    assert found["ledger"]["draft_passes"] > 0
    assert found["text"] == generated()["text"]
    shutil.copytree(tiny, tmp_path / "elsewhere")
    assert generated("--method", "speculative", model=tmp_path / "elsewhere")["ledger"]["draft_passes"] > 0


def test_prompt_tokens_that_were_trained_are_found_by_ppd(train, generated, refusal, tiny):
    status, line = refusal("run", "Hello", "--model", tiny, "--method", "ppd")
    assert status == 2
    assert "outlay train ppd --model tiny" in line
    status, out, err = train("ppd")
    assert status == 0
    assert out.endswith(".ppd.safetensors\n")
    assert err.startswith("hit rates of guesses 1, 2, ... ahead on held-out texts: ")
    assert err.count("%") == 2, "as many as there are prompt tokens"
    assert generated("--method", "ppd")["text"] == generated()["text"]


def test_a_threshold_that_was_learned_is_the_default_of_its_model_and_no_others(
    outlay, generated, refusal, tiny, other, tmp_path
):
    status, line = refusal("run", "Hello", "--model", tiny, "--method", "adadec")
    assert (status, "`outlay train threshold --model tiny` trains one" in line) == (2, True)
    body = "".join(f"    {'abcdefghijklm'[at % 13] * 9}\n" for at in range(80))
    (tmp_path / "code.py").write_text(f'def f():\n    """Does it."""\n{body}')
    status, out, err = outlay("train", "threshold", tmp_path / "code.py", "--model", tiny, "--pause-rate", 0.2)
    assert (status, out.startswith(str(tmp_path / "cache")), out.endswith(".threshold.json\n")) == (0, True, True)
    assert "20.0% of 1120 reference steps pause" in err
    learned = json.loads((tmp_path / out.strip()).read_text())
    assert learned["threshold"] > 0
    found = generated("--method", "adadec")
    assert found["ledger"] | {"seconds": 0} == generated("--method", f"adadec:threshold={out.strip()}")["ledger"] | {
        "seconds": 0
    }
    status, line = refusal("run", "Hello", "--model", other, "--method", f"adadec:threshold={out.strip()}")
    assert (status, "was trained for tiny" in line) == (2, True)
    status, line = refusal("train", "threshold", tmp_path / "code.py", "--model", tiny)
    assert (status, "is there already" in line) == (2, True)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--cut", "1.2"), "--cut must lie between 0 and 1, not 1.2"),
        (("--pause-rate", "0"), "--pause-rate must lie between 0 and 1, not 0"),
        (("--cut", "0.3", "--pause-rate", "0.1"), "give --cut or --pause-rate, not both"),
        (("gone.py",), "can't read gone.py"),
    ],
)
def test_a_threshold_that_cannot_be_learned_is_refused(refusal, tiny, words, message):
    status, line = refusal("train", "threshold", "--model", tiny, *words)
    assert (status, message in line) == (2, True)


def test_what_is_put_elsewhere_is_found_only_by_its_name(train, generated, refusal, tiny, tmp_path):
    status, out, _ = train("draft", "--out", tmp_path / "mine.safetensors")
    assert (status, out) == (0, f"{tmp_path / 'mine.safetensors'}\n")
    refusal("run", "Hello", "--model", tiny, "--method", "speculative")
    found = generated("--method", "speculative", "--draft", tmp_path / "mine.safetensors")
    assert found["ledger"]["draft_passes"] > 0
    assert not list(tmp_path.glob("*.work")), "what was kept for going on is gone"


def test_a_table_of_a_text_drafts_that_text(outlay, generated, tiny, tmp_path):
    plain = generated()
    (tmp_path / "text").write_text(plain["text"])
    words = ("train", "table", tmp_path / "text", "--model", tiny)
    assert outlay(*words, "--out", tmp_path / "t.tri") == (0, f"{tmp_path / 't.tri'}\n", "")
    found = generated("--method", f"aded:table={tmp_path / 't.tri'}")
    without = generated("--method", "aded:table=none")
    assert found["text"] == without["text"] == plain["text"]
    assert found["ledger"]["target_passes"] < without["ledger"]["target_passes"]
    assert "table" in found["origins"]
    outlay(*words, "--out", tmp_path / "long", "--order", 5)
    assert NgramTable.load(tmp_path / "long").order == 5


def test_the_same_texts_give_the_same_table(outlay, tiny, tmp_path):
    (tmp_path / "one").write_text("abcabdabcabe" * 9)
    (tmp_path / "two").write_text("xyz" * 9)
    tables = []
    for name, more in (("a", ()), ("b", ()), ("c", ("--successors", 1))):
        out = tmp_path / f"{name}.tri"
        outlay("train", "table", tmp_path / "one", tmp_path / "two", "--model", tiny, "--out", out, *more)
        tables.append({name: tensor.tolist() for name, tensor in load_file(out).items()})
    assert tables[0] == tables[1] != tables[2]


def test_a_table_of_what_the_model_writes_is_made_of_its_answers_alone(outlay, watch, tiny, tmp_path):
    words = ("train", "table", "--own", "--model", tiny, "--tokens", 1000, "--seed", 4)
    watch.stop = "writing text", 8 * 48
    assert outlay(*words) == (130, "", "outlay: stopped\n")
    watch.seen.clear()
    status, out, _ = outlay(*words)
    assert (status, out.endswith(".table.safetensors\n")) == (0, True)
    assert [done for phase, done in watch.seen if phase == "writing text"] == [8 * 48, 2 * 8 * 48], "it went on"
    table = model_table(load_model(tiny))
    assert table.order == 3
    letters = range(ord("A"), ord("z") + 1)
    tokens = [token for token, _ in (pair for letter in letters for pair in table.successors((letter - 33,)))]
    assert tokens
    assert set(load_model(tiny).tokenizer.decode(tokens)) <= set("abcdefghijklmnopqrstuvwxyz"), "no prompt is in it"
    outlay(*words, "--out", tmp_path / "t")
    assert {name: t.tolist() for name, t in load_file(tmp_path / "t").items()} == {
        name: t.tolist() for name, t in load_file(out.strip()).items()
    }
    assert not list(tmp_path.glob("**/*.work"))


@pytest.mark.parametrize("what", WORDS)
def test_the_same_seed_gives_the_same_file_and_another_one_another(train, tmp_path, what):
    files = []
    for number, seed in enumerate((1, 1, 2)):
        out = tmp_path / f"{number}.safetensors"
        assert train(what, "--out", out, "--seed", seed)[0] == 0
        files.append(out.read_bytes())
    assert files[0] == files[1] != files[2]


def test_a_length_predictor_that_was_trained_is_found_by_budget_guidance(train, generated, refusal, tiny, tmp_path):
    guided = ("--method", "budget_guidance:tokens=9", "--temperature", 1, "--seed", 4)
    status, line = refusal("run", "Hello", "--model", tiny, *guided)
    assert status == 2
    assert "no length predictor for tiny; `outlay train length --model tiny` trains one" in line
    status, out, err = train("length")
    assert (status, out.count("\n")) == (0, 1)
    assert out.endswith(".length.safetensors\n")
    assert err.startswith("rank correlation with the true remaining length on held-out texts: ")
    found = generated(*guided)
    assert "e" in found["text"][:9]
    assert found["ledger"]["extras"]["predictor_calls"] == 1
    assert found["ledger"]["extras"]["thinking_tokens"] <= 9
    capped = generated("--method", "budget_guidance", "--budget", "thinking_tokens=9", *guided[2:])
    assert capped["text"] == found["text"]


def test_a_length_predictor_learns_from_texts_of_the_user(train, refusal, tiny, tmp_path):
    rows = [{"prompt": "Q", "answer": f"<t>{'a' * size}</t> {size}"} for size in range(2, 20)]
    (tmp_path / "traces.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    words = ("--traces", tmp_path / "traces.jsonl", "--out", tmp_path / "p")
    status, out, _ = train("length", "--opening", "<t>", "--closing", "</t>", *words)
    assert (status, out) == (0, f"{tmp_path / 'p'}\n")
    refused = ("train", "length", "--model", tiny, "--traces", tmp_path / "traces.jsonl", "--out", tmp_path / "q")
    assert "say what ends it: --closing TEXT" in refusal(*refused)[1]
    assert "an opening needs what closes" in refusal(*refused, "--opening", "<t>")[1]
    assert "can't be split among 4 heads" in refusal(*refused, "--closing", "</t>", "--width", 10)[1]
    status, line = refusal(*refused, "--opening", "<x>", "--closing", "</x>")
    assert (status, line) == (1, "outlay: 0 texts think up to '</x>' and end, of which 2 or more are needed\n")
    (tmp_path / "traces.jsonl").write_text('{"prompt": "Q"}\n')
    assert 'needs an "answer", with the thinking' in refusal(*refused, "--closing", "</t>")[1]


@pytest.mark.parametrize(("what", "step"), [("draft", 3), ("ppd", 11)])
def test_a_training_that_was_stopped_goes_on_where_it_was_and_ends_the_same(
    train, watch, tmp_path, monkeypatch, what, step
):
    monkeypatch.setattr(draft_head, "KEEP_EVERY", 1)
    monkeypatch.setattr(prompt_tokens, "KEEP_EVERY", 10)
    whole, halved = tmp_path / "whole.safetensors", tmp_path / "halved.safetensors"
    train(what, "--out", whole)
    steps = len([phase for phase, _ in watch.seen if phase == "training"])
    watch.seen.clear()
    watch.stop = "training", step
    assert train(what, "--out", halved) == (130, "", "outlay: stopped\n")
    assert not halved.exists()
    watch.seen.clear()
    assert train(what, "--out", halved)[0] == 0
    phases = [phase for phase, _ in watch.seen]
    assert "writing text" not in phases
    assert 0 < phases.count("training") < steps
    assert halved.read_bytes() == whole.read_bytes()
    assert not list(tmp_path.glob("*.work"))


def test_texts_that_were_written_before_a_stop_are_kept_and_answer_the_prompts_that_were_given(
    train, watch, tiny, tmp_path
):
    (tmp_path / "prompts.txt").write_text("One\nTwo\n")
    words = ("draft", "--out", tmp_path / "head", "--tokens", 1000, "--prompts", tmp_path / "prompts.txt")
    watch.stop = "writing text", 8 * 48
    assert train(*words)[0] == 130
    model = load_model(tiny)
    kept = corpus.Corpus(tmp_path / "head.work" / "corpus", model, 0)
    asked = {model.tokenizer.decode(passage.tokens[: passage.begin].tolist()) for passage in kept.passages()}
    assert asked == {"user: One\nassistant: ", "user: Two\nassistant: "}
    watch.seen.clear()
    assert train(*words)[0] == 0
    assert [done for phase, done in watch.seen if phase == "writing text"] == [8 * 48, 2 * 8 * 48]


def test_a_checkpoint_of_other_options_is_refused(train, watch, refusal, tiny, tmp_path, monkeypatch):
    monkeypatch.setattr(draft_head, "KEEP_EVERY", 1)
    watch.stop = "training", 3
    train("draft", "--out", tmp_path / "head")
    status, line = refusal(
        "train", "draft", "--model", tiny, *WORDS["draft"], "--out", tmp_path / "head", "--layers", 2
    )
    assert status == 2
    assert "head.checkpoint is of another recipe; remove it, or train into another file" in line
    status, line = refusal("train", "draft", "--model", tiny, *WORDS["draft"], "--out", tmp_path / "head", "--seed", 2)
    assert status == 2
    assert "another model or seed; choose another folder" in line


@pytest.mark.parametrize("what", list(WORDS))
def test_what_is_there_is_not_trained_again(train, refusal, tiny, tmp_path, what):
    out = tmp_path / "out"
    train(what, "--out", out)
    before = out.read_bytes()
    status, line = refusal("train", what, "--model", tiny, *WORDS[what], "--out", out, "--seed", 7)
    assert (status, line) == (
        2,
        f"outlay: {out} is there already: remove it to train it anew, or name another file with --out\n",
    )
    assert out.read_bytes() == before


def test_what_was_trained_for_another_model_is_refused(train, refusal, other, tmp_path):
    for what, words in (
        ("draft", "--method speculative --draft {}"),
        ("ppd", "--method ppd:prompts={}"),
        ("length", "--method budget_guidance:tokens=9,predictor={}"),
    ):
        path = tmp_path / f"{what}.safetensors"
        train(what, "--out", path)
        status, line = refusal("run", "Hello", "--model", other, *words.format(path).split())
        assert status == 2
        assert f"{path} was trained for tiny, whose weights are not those of other" in line
        assert f"`outlay train {what} --model other` trains one for it" in line


def test_a_table_of_another_tokenizer_is_refused(outlay, refusal, tiny, renumbered, tmp_path):
    (tmp_path / "text").write_text("abcabd" * 9)
    outlay("train", "table", tmp_path / "text", "--model", renumbered, "--out", tmp_path / "t.tri")
    method = f"aded:table={tmp_path / 't.tri'}"
    assert outlay("run", "Hello", "--model", renumbered, "--method", method, "--max-tokens", 4)[0] == 0
    status, line = refusal("run", "Hello", "--model", tiny, "--method", method)
    assert status == 2
    assert "was made with another tokenizer; make one for this model with `outlay train table" in line


def test_a_head_can_be_trained_on_answers_too_short_to_measure_it_on(train, monkeypatch):
    monkeypatch.setattr(corpus, "LONGEST", 4)
    status, out, err = train("draft", "--tokens", 20)
    assert (status, out.count("\n")) == (0, 1)
    assert err.endswith("not known, they are too short\n")


def test_files_without_an_ngram_give_an_empty_table_and_a_warning(outlay, tiny, tmp_path):
    (tmp_path / "text").write_text("a")
    status, out, err = outlay("train", "table", tmp_path / "text", "--model", tiny, "--out", tmp_path / "t")
    assert (status, out) == (0, f"{tmp_path / 't'}\n")
    assert err == "outlay: there is no n-gram in these files; the table is empty\n"


WRONG = {
    "nothing": ("", "say what to train: draft, ppd, table"),
    "what": ("drat", "there is no 'drat' to train (did you mean 'draft' or 'crate'?); there are draft, ppd, table"),
    "option": ("draft --tokns 3", "no option --tokns (did you mean '--tokens'"),
    "option of another": ("ppd --layers 2", "no option --layers"),
    "tokens": ("draft --tokens 0", "--tokens must be a whole number, 1 or more, not '0'"),
    "steps": ("ppd --steps 1.5", "--steps must be a whole number"),
    "seed": ("ppd --seed -1", "--seed must be"),
    "order": ("table --out x --order 1", "--order must be a whole number, 2 or more"),
    "no place": ("table text", "say where the table goes: --out FILE"),
    "own and files": ("table text --own --out x", "give files or --own, not both"),
    "model": ("draft --model nowhere", "no model is called 'nowhere'"),
    "dtype": ("draft --dtype int5 --model {tiny}", "dtype 'int5' is not known (did you mean 'int8'"),
    "no prompts": ("draft --model {tiny} --prompts none.txt", "there is no file none.txt"),
    "empty prompts": ("draft --model {tiny} --prompts empty", "there is no prompt in empty"),
    "bad prompts": (
        "ppd --model {tiny} --prompts bad.jsonl",
        'line 1 of bad.jsonl must be a JSON object with "prompt"',
    ),
    "no text": ("table none --model {tiny} --out x", "can't read none: No such file or directory"),
    "folder": ("table . --model {tiny} --out x", "can't read .: Is a directory"),
    "bytes": ("table latin --model {tiny} --out x", "latin is not UTF-8 text (byte 3)"),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_cannot_be_trained_is_said_in_a_line(refusal, tiny, tmp_path, monkeypatch, case):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").write_text("\n")
    (tmp_path / "bad.jsonl").write_text('{"promt": "Hi"}\n')
    (tmp_path / "latin").write_bytes(b"caf\xe9")
    words, expected = WRONG[case]
    status, line = refusal("train", *words.format(tiny=tiny).split())
    assert status == 2
    assert expected in line
    assert not (tmp_path / "x").exists()


def test_a_table_that_cannot_be_written_is_a_failure(refusal, tiny, tmp_path):
    (tmp_path / "text").write_text("abcabc")
    status, line = refusal("train", "table", tmp_path / "text", "--model", tiny, "--out", tmp_path)
    assert status == 1
    assert f"can't write {tmp_path}: Is a directory" in line


def test_each_kind_has_a_help_of_its_own(outlay):
    for what, option in (("draft", "--epochs"), ("ppd", "--copies"), ("table", "--successors")):
        status, out, err = outlay("train", what, "--help")
        assert (status, err) == (0, "")
        assert out.startswith(f"usage: outlay train {what}")
        assert option in out


def test_a_coder_is_trained(outlay, tmp_path):
    words = ("--layers", 1, "--hidden", 32, "--batch", 4, "--steps", 5)
    status, out, error = outlay("train", "coder", "--out", tmp_path / "coder", *words)
    assert status == 0
    assert out.split() == [str(tmp_path / "coder")]
    assert "cross-entropy of a token of a held-out program" in error
    status, out, _ = outlay("run", "1 2 -> 2 3", "--model", tmp_path / "coder", "--max-tokens", 2, "--quiet")
    assert status == 0


def test_a_reasoner_is_trained_with_its_verifier(outlay, tmp_path):
    words = ("--layers", 1, "--hidden", 32, "--batch", 4, "--steps", 25, "--reasoner", 0, "--verifier", 1e-300)
    status, out, error = outlay("train", "reasoner", "--out", tmp_path, *words)
    assert status == 0
    assert out.split() == [str(tmp_path / "tiny-reasoner"), str(tmp_path / "tiny-verifier")]
    assert "right steps of tiny-verifier" in error
    assert json.loads((tmp_path / "tiny-verifier" / "config.json").read_text())["outlay_reward_form"] == "likelihood"
    status, out, _ = outlay("models", tmp_path / "tiny-verifier", "--json")
    assert "a reward model (form likelihood)" in json.loads(out)["kind"]
    status, _, error = outlay("run", "Start with 2.", "--model", tmp_path / "tiny-verifier", "--max-tokens", 2)
    assert status == 2
    assert "is a reward model, which rates texts and writes none" in error


def test_a_crate_and_its_twin_are_trained_on_the_bytes_of_a_text(outlay, refusal, tmp_path):
    (tmp_path / "text").write_text("It was in July, 1805, and the speaker was Anna Pavlovna. " * 20)
    words = ("--text", tmp_path / "text", "--quiet", "--steps", 2)
    shape = ("--layers", 1, "--hidden", 32, "--heads", 4, "--positions", 32, "--batch", 64)
    for twin in ((), ("--twin",)):
        out = tmp_path / f"model{len(twin)}"
        status, said, error = outlay("train", "crate", *words, *shape, "--out", out, *twin)
        assert (status, said.strip()) == (0, str(out))
        assert "bits a byte on the held-out text" in error
        status, said, _ = outlay("run", "It was", "--model", out, "--max-tokens", 3, "--json")
        assert (status, json.loads(said)["ledger"]["tokens_out"]) == (0, 3)
    assert "is there already" in refusal("train", "crate", *words, *shape, "--out", tmp_path / "model0")[1]
    assert "passages of 512 need 10,241 or more" in refusal("train", "crate", *words, "--out", tmp_path / "new")[1]
    assert "can't be split among 5 heads" in refusal(
        "train", "crate", *words, *shape, "--heads", 5, "--out", tmp_path / "new"
    )[1]  # fmt: skip
