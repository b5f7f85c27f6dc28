"""What can't be done gets one line that says what is wrong and what would be right, and the right exit status."""

from __future__ import annotations

import shutil

import pytest

USAGE = {
    "command": (["rum"], "no command 'rum' (did you mean 'run'?)"),
    "prompt without run": (["Why is the sky blue?"], "a prompt goes after `run`: outlay run 'Why is the sky blue?'"),
    "top-level option": (["--versoin"], "no option --versoin (did you mean '--version'?)"),
    "option": (["run", "Hi", "--temprature", "1"], "no option --temprature (did you mean '--temperature'"),
    "option with =": (["run", "Hi", "--sed=1"], "no option --sed (did you mean '--seed'"),
    "abbreviated option": (["run", "Hi", "--temp", "1"], "no option --temp"),
    "second prompt": (["run", "Hi", "there"], "'there' is one word too many; put quotes around"),
    "no value": (["run", "Hi", "--seed"], "--seed needs a value"),
    "value for a flag": (["run", "Hi", "--json=1"], "--json takes no value"),
    "no number": (["run", "Hi", "--top-k", "x"], "--top-k must be a whole number, 1 or more, not 'x'"),
    "not whole": (["run", "Hi", "--max-tokens", "1.5"], "--max-tokens must be a whole number, 1 or more, not '1.5'"),
    "max-tokens": (["run", "Hi", "--max-tokens", "0"], "--max-tokens must be a whole number, 1 or more, not '0'"),
    "threads": (["run", "Hi", "--threads", "0"], "--threads must be"),
    "seed": (["run", "Hi", "--seed", "-1"], "--seed must be"),
    "temperature": (["run", "Hi", "--temperature", "-1"], "--temperature must be a number, 0 or more, not '-1'"),
    "infinite": (["run", "Hi", "--temperature", "inf"], "--temperature must be"),
    "nan": (["run", "Hi", "--temperature", "nan"], "--temperature must be"),
    "top-p": (["run", "Hi", "--top-p", "1.2"], "--top-p must be a number, above 0 and at most 1, not '1.2'"),
    "min-p": (["run", "Hi", "--min-p", "2"], "--min-p must be"),
    "penalty": (["run", "Hi", "--repetition-penalty", "0"], "--repetition-penalty must be a number, above 0"),
    "logprobs": (["run", "Hi", "--json", "--logprobs", "-2"], "--logprobs must be"),
    "logprobs without json": (["run", "Hi", "--logprobs", "2"], "--logprobs needs --json"),
    "dtype": (["run", "Hi", "--dtype", "int5"], "(did you mean 'int8' or 'int4'?)"),
    "raw and system": (["run", "Hi", "--raw", "--system", "x"], "--raw leaves no place for --system"),
    "raw and tools": (["run", "Hi", "--raw", "--tools", "x"], "--raw leaves no place for --tools"),
    "special tokens": (["run", "Hi", "--special-tokens"], "--special-tokens needs --raw"),
    "tools": (["run", "Hi", "--tools", "/nowhere/x"], "can't read /nowhere/x: No such file or directory"),
    "switch": (["run", "Hi", "--template", "think"], "KEY=VALUE, such as enable_thinking=false, not 'think'"),
    "n": (["run", "Hi", "--n", "2"], "--n samples differ only at a temperature above 0"),
    "empty stop": (["run", "Hi", "--stop", ""], "--stop must be some text"),
    "empty model": (["run", "Hi", "--model", ""], "--model must name a model"),
    "empty prompt": (["run", ""], "the prompt is empty; give it some text"),
    "blank prompt": (["run", " \n"], "the prompt is empty; give it some text"),
    "empty stdin": (["run"], "the prompt is empty (standard input)"),
    "two prompts": (["run", "Hi", "--file", "x"], "give a prompt or --file, not both"),
    "no file": (["run", "--file", "/nowhere/x"], "can't read /nowhere/x: No such file or directory"),
    "folder": (["run", "--file", "/"], "can't read /: Is a directory"),
    "bytes": (["run", "Hi \udcff"], "the prompt is not UTF-8 text (byte 3)"),
    "method": (["run", "Hi", "--method", "gredy"], "no method 'gredy' (did you mean 'greedy'?)"),
    "method option": (["run", "Hi", "--method", "beam:with=2"], "no option 'with' (did you mean 'width'?)"),
    "method value": (["run", "Hi", "--method", "beam:width=two"], "must be a whole number, not 'two'"),
    "method range": (["run", "Hi", "--method", "beam:width=0"], "a width of 1 or more, not 0"),
    "budget": (["run", "Hi", "--budget", "64"], "a budget is written as name=number"),
    "budget entry": (["run", "Hi", "--budget", "target_pases=3"], "(did you mean 'target_passes'"),
    "zero budget": (["run", "Hi", "--budget", "tokens_out=0"], "must be a number above 0, not 0"),
    "model": (["run", "Hi", "--model", "smollm-135m"], "(did you mean 'smollm2-135m'?)"),
    "no such path": (["run", "Hi", "--model", "./nowhere"], "there is no file or folder ./nowhere"),
    "device": (["run", "Hi", "--device", "abacus"], "device 'abacus' is not available"),
    "pull": (["pull", "smollm-135m"], "(did you mean 'smollm2-135m'?)"),
    "pull nothing": (["pull"], "MODEL is missing; see `outlay pull --help`"),
    "methods": (["methods", "bean"], "no method 'bean' (did you mean 'beam'?)"),
    "suite": (["bench", "sped"], "no suite 'sped' (did you mean 'speed' or 'sparse'?)"),
    "no suite": (
        ["bench"],
        "say which suite to run: accuracy, arch, batching, bits, cache, codec, coupling, detect, diffusion, docs, "
        "drafts, encoders, harness, hydragen, parallel, pictures, search, serve, shrink, sparse, speculation, speed, "
        "steer, vision",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", USAGE)
def test_what_the_user_typed_wrong(refusal, case):
    words, expected = USAGE[case]
    if "run" in words and "--model" not in words and case != "device":
        words = [*words, "--model", "nowhere"]  # all of these are refused before the model is looked for
    status, line = refusal(*words)
    assert status == 2
    assert expected in line


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        ('{"prompt": "Hi"}\n{"prompt": "There"', "line 2 of standard input is not JSON"),
        ('{"promt": "Hi"}', 'line 1 of standard input must be a JSON object with "prompt" or "messages"'),
        ('{"prompt": "Hi"}\n\n["Hi"]', "line 3 of standard input must be a JSON object"),
        ('{"prompt": " "}', '"prompt" in line 1 of standard input must be some text'),
        ('{"messages": []}', "must be a list of messages that is not empty"),
        ('{"messages": [{"role": "user"}]}', '"messages" in line 1 of standard input: message 1 (user) has no content'),
        ("\n \n", "the prompt is empty (standard input)"),
    ],
)
def test_lines_that_are_no_prompts(refusal, rows, expected):
    status, line = refusal("run", "--lines", "--model", "nowhere", stdin=rows.encode())
    assert status == 2
    assert expected in line


def test_a_prompt_longer_than_the_context(refusal, tiny):
    status, line = refusal("run", "--model", tiny, stdin=b"x" * 70_000)
    assert status == 2
    assert "tokens, but tiny reads at most 60000" in line


def test_one_prompt_of_several_that_is_too_long_is_named(refusal, tiny):
    status, line = refusal("run", "--model", tiny, "--lines", stdin=b"One\n" + b"x" * 70_000)
    assert status == 2
    assert line.startswith("outlay: prompt 2: the prompt has")


def test_a_method_that_does_not_fit_the_request(refusal, tiny):
    status, line = refusal("run", "Hi", "--model", tiny, "--method", "greedy", "--temperature", 1)
    assert status == 2
    assert "method 'sample' draws tokens" in line


@pytest.mark.parametrize("content", [b"", b"GGUF", b"GGUF\x03\x00\x00\x00" + 40 * b"\xff", b"not a model" * 9])
def test_a_file_that_is_not_a_model(refusal, tmp_path, content):
    path = tmp_path / "broken.gguf"
    path.write_bytes(content)
    status, line = refusal("run", "Hi", "--model", path)
    assert status == 2
    assert "broken.gguf" in line


def test_weights_that_are_truncated(refusal, tiny, tmp_path):
    folder = shutil.copytree(tiny, tmp_path / "cut")
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1000])
    status, line = refusal("run", "Hi", "--model", folder)
    assert status == 2
    assert "model.safetensors" in line


def test_a_folder_that_is_not_a_model(refusal, tmp_path):
    status, line = refusal("run", "Hi", "--model", tmp_path)
    assert status == 2
    assert "config.json" in line


@pytest.mark.parametrize(
    ("family", "expected"),
    [
        ("mamba", "mamba remembers a text by more than attention's keys and values (recurrent"),
        ("nonesuch", "'nonesuch' is not one that outlay runs natively (llama"),
    ],
)
def test_an_architecture_that_does_not_run_is_refused_as_such_without_weights_too(refusal, tmp_path, family, expected):
    (tmp_path / "config.json").write_text(f'{{"model_type": "{family}"}}')
    status, line = refusal("run", "Hi", "--model", tmp_path)
    assert status == 2
    assert expected in line


@pytest.mark.parametrize("path", ["/nowhere/trace", "/"])
def test_a_trace_that_cannot_be_written_is_refused_before_the_model_is_loaded(refusal, path):
    status, line = refusal("run", "Hi", "--model", "nowhere", "--trace", path)
    assert status == 2
    assert f"can't write the trace to {path}" in line


def test_an_unexpected_error_is_one_line(refusal, monkeypatch):
    def load(*args, **options):
        raise RuntimeError("it broke\nin the middle")

    monkeypatch.setattr("outlay.lm.load", load)
    status, line = refusal("run", "Hi")
    assert status == 1
    assert line == "outlay: RuntimeError: it broke in the middle (OUTLAY_DEBUG=1 shows where)\n"


def test_the_traceback_is_there_for_those_who_ask(outlay, monkeypatch):
    monkeypatch.setenv("OUTLAY_DEBUG", "1")
    status, _, err = outlay("run", "Hi", "--model", "nowhere")
    assert status == 2
    assert err.startswith("Traceback")
    assert err.splitlines()[-1].startswith("outlay: no model is called 'nowhere'")
