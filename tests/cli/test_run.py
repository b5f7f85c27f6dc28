"""`outlay run`: the text, its ledger, JSON, several prompts, and traces."""

from __future__ import annotations

import json
import shutil

import pytest

from outlay.budget import ENTRIES

FIELDS = [
    "text", "tokens", "finish_reason", "method", "model", "cap", "prompt_tokens", "cached_tokens", "timing", "ledger",
]  # fmt: skip


def test_the_text_goes_to_stdout_and_the_ledger_to_stderr(outlay, tiny):
    status, out, err = outlay("run", "Hello", "--model", tiny, "--max-tokens", 12)
    assert status == 0
    assert out.rstrip("\n").isalpha()
    assert len(out) == 12 + 1
    assert err.startswith("tiny · auto · finished: length\n")
    assert "target passes" in err


def test_quiet_leaves_the_text_alone(outlay, tiny):
    status, out, err = outlay("run", "Hello", "--model", tiny, "--max-tokens", 12, "--quiet")
    assert (status, len(out), err) == (0, 13, "")


def test_there_is_no_colour_without_a_terminal(outlay, tiny):
    assert "\x1b" not in "".join(outlay("run", "Hello", "--model", tiny, "--max-tokens", 3)[1:])


def test_json_is_one_object_of_the_documented_shape(outlay, tiny):
    status, out, err = outlay("run", "Hello", "--model", tiny, "--method", "greedy", "--max-tokens", 12, "--json")
    row = json.loads(out)
    assert (status, err, out.count("\n")) == (0, "", 1)
    assert list(row) == FIELDS
    assert len(row["tokens"]) == row["ledger"]["tokens_out"] == 12
    assert (row["finish_reason"], row["method"], row["model"]) == ("length", "greedy", "tiny")
    assert list(row["ledger"]) == [*ENTRIES, "extras", "ran_on"]


def test_json_and_plain_text_agree(outlay, tiny):
    plain = outlay("run", "Hello", "--model", tiny, "--max-tokens", 12)[1]
    row = json.loads(outlay("run", "Hello", "--model", tiny, "--max-tokens", 12, "--json")[1])
    assert row["text"] == plain.removesuffix("\n")


def test_logprobs_are_reported_for_each_token(outlay, tiny):
    row = json.loads(outlay("run", "Hi", "--model", tiny, "--max-tokens", 3, "--json", "--logprobs", 2)[1])
    assert [entry["token"] for entry in row["logprobs"]] == row["tokens"]
    assert "".join(entry["text"] for entry in row["logprobs"]) == row["text"]
    assert [len(entry["top"]) for entry in row["logprobs"]] == [2, 2, 2]
    assert row["logprobs"][0]["top"][0]["logprob"] == row["logprobs"][0]["logprob"] < 0


def test_options_reach_the_run(outlay, tiny):
    words = ("run", "Hi", "--model", tiny, "--json", "--max-tokens", 20, "--temperature", 1.5, "--top-p", 0.9)
    first, second, third = (json.loads(outlay(*words, "--seed", seed)[1]) for seed in (1, 1, 2))
    sampled = json.loads(outlay(*words, "--seed", 1, "--method", "sample")[1])
    assert (first["method"], first["tokens"]) == ("auto", sampled["tokens"])
    assert first["tokens"] == second["tokens"] != third["tokens"]


def test_a_stop_string_ends_the_text_before_it(outlay, tiny):
    text = outlay("run", "Hi", "--model", tiny, "--max-tokens", 12, "--quiet")[1].strip()
    stop = text[4:6]
    row = json.loads(outlay("run", "Hi", "--model", tiny, "--max-tokens", 12, "--stop", stop, "--json")[1])
    assert (row["text"], row["finish_reason"]) == (text[: text.find(stop)], "stop")


def test_a_method_with_options_and_a_budget(outlay, tiny):
    words = ("run", "Hi", "--model", tiny, "--method", "beam:width=2", "--budget", "target_passes=5", "--json")
    row = json.loads(outlay(*words)[1])
    assert (row["method"], row["finish_reason"], row["ledger"]["target_passes"]) == ("beam:width=2", "budget", 5)


def test_a_system_message_and_raw_text_change_what_the_model_reads(outlay, tiny, tmp_path):
    prompts = []
    for more in ([], ["--raw"], ["--system", "Be brief."]):
        trace = tmp_path / "trace"
        outlay("run", "Hi", "--model", tiny, "--max-tokens", 1, "--trace", trace, *more)
        prompts.append(len(json.loads(trace.read_text().splitlines()[0])["prompt"]))
    chat, raw, system = prompts
    assert chat == len("user: Hi\nassistant: ")
    assert raw == len("Hi")
    assert system == len("system: Be brief.\n") + chat


@pytest.mark.parametrize("words", [["-"], ["--file", "-"], []])
def test_the_prompt_comes_from_standard_input(outlay, tiny, words):
    expected = outlay("run", "Hello", "--model", tiny, "--max-tokens", 5)[1]
    assert outlay("run", *words, "--model", tiny, "--max-tokens", 5, stdin=b"Hello\n")[1] == expected


def test_the_prompt_comes_from_a_file(outlay, tiny, tmp_path):
    (tmp_path / "prompt").write_text("Hello\n")
    expected = outlay("run", "Hello", "--model", tiny, "--max-tokens", 5)[1]
    assert outlay("run", "--file", tmp_path / "prompt", "--model", tiny, "--max-tokens", 5)[1] == expected


def test_each_line_is_answered_as_it_would_be_alone(outlay, tiny):
    words = ("--model", tiny, "--max-tokens", 9, "--json")
    alone = [json.loads(outlay("run", prompt, *words)[1])["text"] for prompt in ("One", "Two", "Three")]
    status, out, _ = outlay("run", "--lines", *words, stdin=b"One\n\nTwo\r\nThree\n")
    assert status == 0
    assert [json.loads(line)["text"] for line in out.splitlines()] == alone


def test_several_texts_have_an_empty_line_between_them_and_one_ledger(outlay, tiny):
    _, out, err = outlay("run", "--lines", "--model", tiny, "--max-tokens", 9, stdin=b"One\nTwo\n")
    assert [len(line) for line in out.split("\n")] == [9, 0, 9, 0]
    assert "2 prompts" in err
    assert err.count("tokens out") == 1


def test_json_lines_hold_prompts_and_messages(outlay, tiny):
    rows = [{"prompt": "One"}, {"messages": [{"role": "user", "content": "One"}]}, {"prompt": "Two"}]
    stdin = "\n".join(map(json.dumps, rows)).encode()
    _, out, _ = outlay("run", "--lines", "--model", tiny, "--max-tokens", 9, "--json", stdin=stdin)
    one, same, two = (json.loads(line)["text"] for line in out.splitlines())
    assert one == same != two


def test_the_trace_holds_every_event_of_every_run(outlay, tiny, tmp_path):
    path = tmp_path / "trace.jsonl"
    outlay("run", "--lines", "--model", tiny, "--max-tokens", 4, "--trace", path, stdin=b"One\nTwo\n")
    events = [json.loads(line) for line in path.read_text().splitlines()]
    for run in (0, 1):
        kinds = [event["event"] for event in events if event["run"] == run]
        assert kinds[0] == "start"
        assert kinds.count("pass") == 4
        assert kinds.count("finish") == 1


def test_a_run_that_fails_leaves_no_trace_and_an_old_one_as_it_was(refusal, tmp_path):
    refusal("run", "Hi", "--model", "nowhere", "--trace", tmp_path / "new")
    assert not (tmp_path / "new").exists()
    (tmp_path / "old").write_text("kept")
    refusal("run", "Hi", "--model", "nowhere", "--trace", tmp_path / "old")
    assert (tmp_path / "old").read_text() == "kept"


def test_a_full_disk_costs_the_trace_but_not_the_text(outlay, tiny):
    status, out, err = outlay("run", "Hi", "--model", tiny, "--max-tokens", 4, "--quiet", "--trace", "/dev/full")
    assert (status, len(out)) == (1, 5)
    assert err == "outlay: the trace /dev/full is not complete: No space left on device\n"


def prompt_tokens(outlay, tmp_path, *words, stdin=b""):
    """How many tokens the model reads."""
    trace = tmp_path / "trace"
    status, _, err = outlay("run", *words, "--max-tokens", 1, "--trace", trace, "--quiet", stdin=stdin)
    assert status == 0, err
    return len(json.loads(trace.read_text().splitlines()[0])["prompt"])


def test_special_tokens_in_a_raw_prompt_are_text_unless_asked_for(outlay, tiny, tmp_path):
    words = ("Hi<end>", "--model", tiny, "--raw")
    assert prompt_tokens(outlay, tmp_path, *words) == len("Hi<end>")
    assert prompt_tokens(outlay, tmp_path, *words, "--special-tokens") == len("Hi") + 1


@pytest.fixture
def switched(tiny, tmp_path):
    """The tiny model with a template that has tools and a switch."""
    folder = tmp_path / "switched"
    shutil.copytree(tiny, folder)
    template = (
        "{{ tools | length if tools else '' }}{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
        "{% if add_generation_prompt %}assistant: {{ '?' * (think or 0) }}{% endif %}"
    )
    (folder / "tokenizer_config.json").write_text(json.dumps({"chat_template": template}))
    return folder


def test_tools_and_switches_reach_the_chat_template(outlay, switched, tmp_path):
    chat, tools = len("user: Hi\nassistant: "), tmp_path / "tools.json"
    tools.write_text(json.dumps([{"name": "f"}, {"name": "g"}]))
    words = ("Hi", "--model", switched)
    assert prompt_tokens(outlay, tmp_path, *words) == chat
    assert prompt_tokens(outlay, tmp_path, *words, "--tools", tools) == len("2") + chat
    assert prompt_tokens(outlay, tmp_path, *words, "--template", "think=3") == chat + len("???")
    row = {"messages": [{"role": "user", "content": "Hi"}], "tools": [{}], "chat_template_kwargs": {"think": 2}}
    lines = ("--lines", "--model", switched)
    assert prompt_tokens(outlay, tmp_path, *lines, stdin=json.dumps(row).encode()) == 1 + chat + 2
    row = {"messages": [*row["messages"], {"role": "assistant", "content": [{"type": "text", "text": "Well"}]}]}
    words = (*lines, "--continue-final-message")
    assert prompt_tokens(outlay, tmp_path, *words, stdin=json.dumps(row).encode()) == chat + len("Well")


def test_a_warning_is_one_line_and_the_run_goes_on(outlay, tiny, tmp_path):
    folder = tmp_path / "gap"
    shutil.copytree(tiny, folder)
    state = json.loads((folder / "tokenizer.json").read_text())
    letter = chr(256 + 4)  # GPT-2's name of byte 4
    state["model"]["vocab"]["??"] = state["model"]["vocab"].pop(letter)
    (folder / "tokenizer.json").write_text(json.dumps(state))
    status, out, err = outlay("run", "a\x04b", "--model", folder, "--max-tokens", 3, "--quiet")
    assert (status, len(out)) == (0, 4)
    assert err == "outlay: gap has no tokens for '\\x04' (U+0004); it reads the prompt without\n"


def test_n_samples_are_texts_of_their_own_and_alternatives_in_json(outlay, tiny):
    words = ("run", "--lines", "--model", tiny, "--max-tokens", 9, "--temperature", 1.5)
    stdin = b"One\nTwo\n"
    alone = [outlay(*words, "--seed", seed, "--quiet", stdin=stdin)[1].split("\n")[::2] for seed in (3, 4)]
    _, out, err = outlay(*words, "--seed", 3, "--n", 2, stdin=stdin)
    assert out.split("\n")[:-1:2] == [alone[0][0], alone[1][0], alone[0][1], alone[1][1]]
    assert "2 prompts" in err
    rows = [json.loads(line) for line in outlay(*words, "--seed", 3, "--n", 2, "--json", stdin=stdin)[1].splitlines()]
    assert [[each["text"] for each in row["alternatives"]] for row in rows] == [
        [alone[0][0], alone[1][0]], [alone[0][1], alone[1][1]]
    ]  # fmt: skip
    assert {each["finish_reason"] for row in rows for each in row["alternatives"]} == {"length"}
    assert [row["ledger"]["tokens_out"] for row in rows] == [18, 18]


def test_a_line_may_name_a_scorer_of_its_own(outlay, tiny, tmp_path):
    for name, reward in (("one", 1), ("half", 0.5)):
        (tmp_path / f"{name}.py").write_text(
            f"quick = True\ndef score(prompt, texts):\n    return [{reward}] * len(texts)\n"
        )
    rows = [{"prompt": "One"}, {"prompt": "One", "scorer": f"python:{tmp_path / 'one.py'}"}]
    stdin = "\n".join(map(json.dumps, rows)).encode()
    words = ("run", "--lines", "--json", "--model", tiny, "--max-tokens", 6, "--temperature", 0.9)
    words += ("--method", "particles:n=2,potential=ratio,odds=false,step_tokens=3")
    status, out, error = outlay(*words, "--scorer", f"python:{tmp_path / 'half.py'}", stdin=stdin)
    assert status == 0, error
    found = [json.loads(line)["facts"]["log_normaliser"] for line in out.splitlines()]
    assert found == [pytest.approx(-0.6931, abs=1e-3), pytest.approx(0, abs=1e-3)]
    status, _, error = outlay(*words, stdin=b'{"prompt": "One", "scorer": 3}')
    assert (status, "must be a name" in error) == (2, True)


def test_questions_about_one_document_are_one_tree_of_prompts(outlay, tiny, tmp_path):
    """Each question gets the texts that it gets after the document alone."""
    (tmp_path / "doc.txt").write_text("A document.\n")
    (tmp_path / "questions.txt").write_text("Who?\nWhen was that?\n")
    given = ("run", "--prefix-file", tmp_path / "doc.txt", "--file", tmp_path / "questions.txt", "--lines")
    how = ("--model", tiny, "--temperature", 0.8, "--max-tokens", 6, "--json")
    (tree,) = map(json.loads, outlay(*given, *how, "--method", "hydragen:n=2")[1].splitlines())
    apart = map(json.loads, outlay(*given, *how, "--method", "sample", "--n", 2)[1].splitlines())
    assert [each["leaf"] for each in tree["alternatives"]] == [0, 0, 1, 1]
    assert [each["text"] for each in tree["alternatives"]] == [
        each["text"] for row in apart for each in row["alternatives"]
    ]
