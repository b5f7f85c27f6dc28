"""`outlay run --draft` and `--show-drafts`: where drafts come from, and in which colour their tokens are shown."""

from __future__ import annotations

import json
import re

import pytest

from outlay.cli import terminal

PROMPT = "abc abc abc abc abc"
WORDS = ("run", PROMPT, "--max-tokens", 60)
LOOKUP = ("--method", "lookup")
GREEDY = ("--method", "greedy")
GREEN, CYAN = "\x1b[32m", "\x1b[36m"
RESET = "\x1b[0m"


@pytest.fixture(autouse=True)
def plain_environment(monkeypatch):
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("NO_COLOR", raising=False)


@pytest.fixture
def generated(outlay, tiny):
    """A run as JSON, plain unless words say otherwise."""

    def run(*words):
        return json.loads(outlay(*WORDS, "--model", tiny, "--json", *(words or GREEDY))[1])

    return run


@pytest.fixture
def screen(monkeypatch):
    """Makes the streams of this process terminals."""
    monkeypatch.setattr(terminal, "is_terminal", lambda stream: True)


def painted(run, colour):
    """The text of a run whose tokens are letters, those that were drafted in a colour."""
    letters = zip(run["text"], run["origins"], strict=True)
    return "".join(f"{colour}{letter}{RESET}" if origin else letter for letter, origin in letters)


def test_on_a_terminal_the_tokens_that_were_drafted_are_coloured(on_a_terminal, generated, tiny):
    run = generated(*LOOKUP)
    assert 0 < run["origins"].count("lookup") == run["ledger"]["accepted"] < 60
    written = on_a_terminal(*WORDS, "--model", tiny, *LOOKUP, "--show-drafts")
    text, legend, rule, *_ = written.rpartition("\r\x1b[K")[2].splitlines()
    assert text == painted(run, CYAN)
    assert "─────" in rule
    share = run["origins"].count("lookup") / 60
    assert legend == f"\x1b[2mfrom: {RESET}model {1 - share:.0%}  {CYAN}lookup{RESET} {share:.0%}"


@pytest.mark.parametrize(("words", "colour"), [
    (LOOKUP, CYAN),
    (("--method", "speculative", "--draft", "lookup"), CYAN),
    (("--method", "speculative", "--draft", "self:int4"), GREEN),
])  # fmt: skip
def test_each_source_has_its_colour_in_the_text_and_in_the_legend(outlay, generated, screen, tiny, words, colour):
    run = generated(*words)
    name = next(filter(None, run["origins"]))
    _, out, err = outlay(*WORDS, "--model", tiny, *words, "--show-drafts")
    assert out == painted(run, colour) + "\n"
    assert f"{colour}{name}{RESET} " in err


def test_several_prompts_share_one_legend(outlay, screen, tiny):
    words = ("run", "--lines", "--model", tiny, "--max-tokens", 40, *LOOKUP)
    runs = [json.loads(row) for row in outlay(*words, "--json", stdin=b"abc abc abc\nxyz xyz xyz\n")[1].splitlines()]
    _, out, err = outlay(*words, "--show-drafts", stdin=b"abc abc abc\nxyz xyz xyz\n")
    assert out == "\n\n".join(painted(run, CYAN) for run in runs) + "\n"
    share = sum(run["origins"].count("lookup") for run in runs) / 80
    assert err.count("from: ") == 1
    assert f"lookup{RESET} {share:.0%}" in err


def test_a_text_that_nothing_was_drafted_of_is_as_it_is(outlay, screen, tiny):
    _, out, err = outlay(*WORDS, "--model", tiny, *GREEDY, "--show-drafts")
    assert out.strip().isalpha()
    assert f"from: {RESET}model 100%\n" in err


def test_who_wants_no_colour_gets_the_legend_alone(outlay, generated, screen, tiny, monkeypatch):
    monkeypatch.setenv("NO_COLOR", "1")
    _, out, err = outlay(*WORDS, "--model", tiny, *LOOKUP, "--show-drafts")
    assert out == generated(*LOOKUP)["text"] + "\n"
    assert re.search(r"from: model \d+%  lookup \d+%\n", err)


def test_without_a_terminal_the_text_is_what_it_is_without_the_option(outlay, tiny):
    plain = outlay(*WORDS, "--model", tiny, *LOOKUP)
    shown = outlay(*WORDS, "--model", tiny, *LOOKUP, "--show-drafts")
    assert shown[:2] == plain[:2]
    assert "\x1b" not in shown[1] + shown[2]
    assert "from: " not in plain[2]
    assert re.match(r"from: model \d+%  lookup \d+%\n", shown[2])


def test_json_says_where_tokens_come_from_with_the_option_or_without(outlay, screen, tiny):
    rows = []
    for more in ((), ("--show-drafts",)):
        status, out, err = outlay(*WORDS, "--model", tiny, *LOOKUP, "--json", *more)
        assert status == 0
        assert "from: " not in err
        rows.append(json.loads(out))
    assert rows[0]["origins"] == rows[1]["origins"]
    assert set(rows[0]["origins"]) == {"", "lookup"}
    assert len(rows[0]["origins"]) == len(rows[0]["tokens"])


def test_quiet_leaves_the_colours_and_takes_the_legend(outlay, screen, tiny):
    _, out, err = outlay(*WORDS, "--model", tiny, *LOOKUP, "--show-drafts", "--quiet")
    assert CYAN in out
    assert err == ""


def test_a_small_model_in_a_folder_is_a_draft(generated, tiny):
    run = generated("--method", "speculative", "--draft", tiny)
    assert run["text"] == generated()["text"]
    assert set(run["origins"]) == {"", "draft"}
    assert run["ledger"]["accepted"] == run["ledger"]["drafted"], "it is the model itself"


@pytest.mark.parametrize("draft", ["lookup", "self:int4", "self:skip=1", "self:int4,skip=0"])
def test_any_draft_writes_what_the_model_writes(generated, draft):
    run = generated("--method", "speculative:depth=3", "--draft", draft)
    assert run["text"] == generated()["text"]
    assert run["ledger"]["drafted"] > 0


REFUSED = {
    "head": "there is no draft head for tiny; `outlay train draft --model tiny` trains one",
    "ppd": "there are no prompt tokens for tiny; `outlay train ppd --model tiny` trains one",
    "": "--draft must name a model; `outlay models` lists them",
    "self": "say what to leave out of the model: self:skip=10-19, self:int4",
    "self:int8": "not self:int8",
    "self:skip=2": "skip takes layers from 0 to 1",
    "self:skip=0-1": "self:skip=0-1 leaves no layer of tiny",
    "none.safetensors": "there is no file none.safetensors",
    "smollm": "no model is called 'smollm' (did you mean 'smollm2-135m'?)",
    "./nowhere": "there is no file or folder ./nowhere",
}


@pytest.mark.parametrize("draft", REFUSED)
def test_a_draft_that_cannot_be_had_gets_one_line(refusal, tiny, tmp_path, monkeypatch, draft):
    monkeypatch.setenv("OUTLAY_CACHE", str(tmp_path))
    status, line = refusal("run", "Hi", "--model", tiny, "--method", "speculative", "--draft", draft)
    assert status == 2
    assert REFUSED[draft] in line


def test_a_method_that_needs_a_draft_says_which_there_are(refusal, tiny, tmp_path, monkeypatch):
    monkeypatch.setenv("OUTLAY_CACHE", str(tmp_path))
    status, line = refusal("run", "Hi", "--model", tiny, "--method", "speculative")
    assert status == 2
    assert "speculative needs a draft: a small model of the same tokens, or lookup, table, ppd, self:int4" in line
