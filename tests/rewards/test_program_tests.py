"""The scorer `tests:FILE`: what programs may do, how tests are read, and what it counts."""

from __future__ import annotations

import json

import pytest

from outlay import FailureError, PythonTests, UsageError
from outlay.bench.search.rate import rewards_of
from outlay.rewards import resolve
from outlay.rewards.programs import execute
from outlay.rewards.programs.child import same_output
from outlay.rewards.programs.execute import Limits, run_tests
from outlay.rewards.programs.scorer import program_of
from outlay.rewards.programs.tests import Test, read_tests
from outlay.testing import tiny_lm, tiny_model

LIMITS = Limits(seconds=1, memory=256)
TRUE = Test(code="assert True")


def passed(program, *tests):
    tests = [Test(code=test) if isinstance(test, str) else test for test in tests]
    return run_tests(program, tests, LIMITS)


def test_each_assertion_is_a_test_of_its_own():
    program = "def double(x):\n    return 2 * x"
    assert passed(program, "assert double(2) == 4", "assert double(2) == 5", "assert double('a') == 'aa'") == [
        True, False, True,
    ]  # fmt: skip


def test_a_script_is_tested_by_its_output_up_to_white_space():
    program = "if __name__ == '__main__':\n    a, b = map(int, input().split())\n    print(a + b, '\\n')\n    exit()"
    tests = [Test(input="2 3", output="5\n"), Test(input="2 3", output="6"), Test(input="", output="")]
    assert passed(program, *tests) == [True, False, False]
    assert same_output(" 1  2\n\n3\n", "1 2 3")
    assert not same_output("12", "1 2")


@pytest.mark.parametrize(
    "program",
    [
        "def broken(",
        "raise ValueError",
        "exit(0)",
        "import os\nos._exit(0)",
        "import os\nos.fork()",
        "import subprocess\nsubprocess.run(['true'])",
        "import socket\nsocket.socket()",
        "import os\nos.kill(os.getppid(), 9)",
        "memory = bytearray(10 * 2**30)",
        "import resource\nresource.setrlimit(resource.RLIMIT_AS, (2**40, 2**40))",
    ],
)
def test_what_goes_wrong_or_does_more_than_compute_passes_nothing(program):
    assert passed(program, TRUE, TRUE) == [False, False]


@pytest.mark.parametrize("program", ["while True:\n    pass", "import time\ntime.sleep(1000)"])
def test_a_program_that_does_not_end_is_stopped(program):
    assert passed(program, TRUE) == [False]


def test_output_without_end_is_cut():
    assert passed("while True:\n    print('x' * 1000)", Test(output="x")) == [False]


def test_a_program_changes_no_file_and_its_folder_is_gone_afterwards(tmp_path, monkeypatch):
    monkeypatch.setattr(execute.tempfile, "tempdir", str(tmp_path))
    (tmp_path / "kept").write_text("here")
    made = str(tmp_path / "made")
    writing = f"import os\nassert not os.listdir()\ntry:\n    open({made!r}, 'w')\nexcept OSError:\n    pass"
    assert passed(writing, TRUE) == [True]
    removing = f"import os\ntry:\n    os.remove({str(tmp_path / 'kept')!r})\nexcept OSError:\n    pass"
    assert passed(removing, TRUE) == [True]
    assert [path.name for path in tmp_path.iterdir()] == ["kept"]


def test_the_environment_of_a_program_holds_nothing_of_ours_and_sets_have_one_order(monkeypatch):
    monkeypatch.setenv("SECRET", "42")
    wanted = "assert 'SECRET' not in os.environ and os.environ['PYTHONHASHSEED'] == '0'"
    assert passed("import os", wanted) == [True]


def test_a_process_that_can_not_run_is_an_error_and_no_reward(monkeypatch):
    monkeypatch.setattr(execute.sys, "executable", "/bin/false")
    with pytest.raises(FailureError, match="the process that tests programs failed"):
        passed("pass", TRUE)


@pytest.mark.parametrize(
    ("name", "text", "count"),
    [
        ("a.py", "import math\nassert area(1) == math.pi\nassert area(0) == 0\n", 2),
        ("b.py", "BIG = 9\ndef test_big():\n    assert f(BIG)\ndef helper(x):\n    return x\n", 1),
        ("c.json", json.dumps(["assert f(1) == 1", "assert f(2) == 2"]), 2),
        ("d.json", json.dumps({"tests": ["assert f(1) == 1"]}), 1),
        ("e.json", json.dumps({"inputs": ["1\n", "2\n"], "outputs": ["1\n", ["2", "3"]]}), 2),
        ("f.json", json.dumps({"fn_name": "f", "inputs": [[1, 2]], "outputs": [3]}), 1),
    ],
)
def test_tests_are_read_from_python_mbpp_and_apps(name, text, count, tmp_path):
    (tmp_path / name).write_text(text)
    assert len(read_tests(tmp_path / name)) == count


def test_what_stands_beside_assertions_in_a_file_is_there_for_each(tmp_path):
    (tmp_path / "t.py").write_text(
        "import math\nONE = 1\nassert area(ONE) == math.pi\ndef test_two():\n    assert area(0) == 0\n"
    )
    tests = read_tests(tmp_path / "t.py")
    assert passed("def area(r):\n    return 3.141592653589793 * r * r", *tests) == [True, True]


@pytest.mark.parametrize(
    "program", ["def f(a, b):\n    return (a, b)", "class Solution:\n    def f(self, a, b):\n        return [a, b]"]
)
def test_functions_are_called_as_in_apps(program, tmp_path):
    (tmp_path / "t.json").write_text(
        json.dumps({"fn_name": "f", "inputs": [[1, 2], [1, 2]], "outputs": [[[1, 2]], [3]]})
    )
    assert passed(program, *read_tests(tmp_path / "t.json")) == [True, False]


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.py", "x = 1\n", "there are no tests in"),
        ("a.py", "assert f(\n", "can't be read because of line 1"),
        ("a.json", "[1", "can't be read because of line 1"),
        ("a.json", "3", "because of its form: give a Python file"),
        ("a.json", '{"inputs": ["1"], "outputs": []}', "because of its form"),
        ("a.json", '{"fn_name": "f(", "inputs": [[1]], "outputs": [1]}', "because of its form"),
        ("a.json", '["assert ("]', "because of line 1"),
        ("a.json", "[]", "there are no tests"),
    ],
)
def test_a_file_of_another_form_is_refused_in_one_line(name, text, message, tmp_path):
    (tmp_path / name).write_text(text)
    with pytest.raises(UsageError, match=message) as caught:
        resolve.resolve(f"tests:{tmp_path / name}", tiny_model())
    assert "\n" not in str(caught.value)


def test_names_and_options_of_the_scorer(tmp_path):
    (tmp_path / "t.py").write_text("assert True\n")
    found = resolve.resolve(f"tests:{tmp_path / 't.py'}:seconds=2,memory=64,prompt=true", tiny_model())
    assert (found.seconds, found.memory, found.prompt, len(found.tests)) == (2, 64, True, 1)
    for wrong, message in {
        "tests:": "needs a file",
        "tests:nowhere.py": "can't read the tests",
        f"tests:{tmp_path / 't.py'}:seconds=0": "seconds of 1 or more",
        f"tests:{tmp_path / 't.py'}:seconds=x": "seconds of the scorer tests is a whole number",
        f"tests:{tmp_path / 't.py'}:prompt=maybe": "prompt of the scorer tests is true or false",
        f"tests:{tmp_path / 't.py'}:form=x": "a scorer has no option",
    }.items():
        with pytest.raises(UsageError, match=message):
            resolve.resolve(wrong, tiny_model())
    with pytest.raises(UsageError, match="has no tests"):
        PythonTests(())
    with pytest.raises(UsageError, match="is not Python"):
        PythonTests(("assert f(",))


def test_the_program_of_a_text_is_its_first_block_or_all_of_it():
    assert program_of("Here:\n```python\nx = 1\n```\nand\n```\ny\n```") == "x = 1"
    assert program_of("```py\nx = 1\n") == "x = 1"
    assert program_of("x = 1\n\n") == "x = 1"
    assert program_of("    return 1\n", "def f():\n") == "def f():\n    return 1"


def test_rewards_are_pass_rates_and_a_program_runs_once():
    lm = tiny_lm()
    texts = ["x = 1", "x = 2", "y", "```\nx = 1\n```", "x = 1\n"]
    tokens = [lm.model.tokenizer.encode(text) for text in texts]
    scorer = PythonTests(("assert x > 0", "assert x == 1"))
    assert rewards_of(lm, "p", tokens, scorer, "") == [1.0, 0.5, 0.0, 1.0, 1.0]
    (worker,) = [each for each in lm.engine.workers if each.ledger.executions]
    assert worker.ledger.executions == 3
