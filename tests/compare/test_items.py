"""Reading prompts, and the generated sets of problems."""

from __future__ import annotations

import json

import pytest

from outlay import problems
from outlay.compare.items import digest, read_items, written
from outlay.errors import UsageError

ROWS = [
    {"prompt": "One?", "answer": 1},
    {"messages": [{"role": "user", "content": "Two?"}], "answer": "2", "extra": [1, 2]},
]


@pytest.fixture
def file(tmp_path):
    def make(*lines, name="prompts.jsonl"):
        path = tmp_path / name
        path.write_text("\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines) + "\n")
        return str(path)

    return make


def test_rows_are_read_with_all_that_they_hold(file):
    items, skipped = read_items(file(*ROWS))
    assert [item.text for item in items] == ["One?", "Two?"]
    assert [item.answer for item in items] == ["1", "2"]
    assert items[1].row["extra"] == [1, 2]
    assert skipped == []


def test_what_is_written_reads_back_with_the_same_hash(file, tmp_path):
    items, _ = read_items(file(*ROWS))
    again = tmp_path / "again.jsonl"
    again.write_text(written(items))
    assert digest(read_items(str(again))[0]) == digest(items)
    assert digest(items[:1]) != digest(items)


def test_messages_with_parts_tools_and_switches_are_read(file):
    parts = [{"type": "text", "text": "Two"}, {"type": "text", "text": "parts?"}]
    row = {"messages": [{"role": "user", "content": parts}], "tools": [{"name": "f"}], "chat_template_kwargs": {"x": 1}}
    items, _ = read_items(file(row, ROWS[0]))
    assert items[0].text == "Two\nparts?"
    assert [item.encoding for item in items] == [{"tools": [{"name": "f"}], "template": {"x": 1}}, {}]
    assert items[0].row == row


def test_plain_lines_are_prompts(file):
    items, _ = read_items(file("One?", "", "Two?\r", name="prompts.txt"))
    assert [item.prompt for item in items] == ["One?", "Two?"]


def test_a_plain_line_is_written_as_a_row(file):
    items, _ = read_items(file("One?", name="prompts.txt"))
    assert written(items) == '{"prompt": "One?"}\n'


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ('{"prompt": "broken', "is not JSON"),
        ('{"text": "no prompt"}', '"prompt" or "messages"'),
        ('{"prompt": ""}', "must be some text"),
        ('{"prompt": "x", "answer": [1]}', '"answer"'),
        ('{"prompt": "x", "tests": 1}', '"tests"'),
        ('{"messages": [{"role": "user"}]}', "messages"),
        ('{"prompt": "x", "tools": {}, "chat_template_kwargs": 3}', "chat_template_kwargs"),
        ('{"prompt": "x", "tools": ["f"]}', '"tools"'),
        ("not even JSON", "is not JSON"),
    ],
)
def test_a_broken_line_is_named_and_can_be_left_out(file, line, said):
    path = file(ROWS[0], "", line, ROWS[1])
    with pytest.raises(UsageError, match=r"line 3 of ") as refused:
        read_items(path)
    assert said in str(refused.value)
    items, skipped = read_items(path, skip_bad=True)
    assert [item.text for item in items] == ["One?", "Two?"]
    assert len(skipped) == 1
    assert "line 3" in skipped[0]


def test_a_file_without_a_prompt_is_refused(file):
    for path in (file(""), file('{"prompt": "broken')):
        with pytest.raises(UsageError, match="no prompt"):
            read_items(path, skip_bad=True)


def test_an_unknown_name_is_told_the_nearest_set_of_problems():
    with pytest.raises(UsageError, match=r"no file arithmetics .*'arithmetic'"):
        read_items("arithmetics")


@pytest.mark.parametrize("text", ["arithmetic:size=3", "arithmetic:count=0", "arithmetic:count=x", "arithmetic:seed"])
def test_a_set_of_problems_refuses_options_that_it_lacks(text):
    with pytest.raises(UsageError, match="count=N and seed=N"):
        read_items(text)


def test_arithmetic_steps_lead_to_the_answer():
    rows = problems.make("arithmetic:count=200,seed=3")
    assert len(rows) == 200
    for row in rows:
        value = None
        for step in row["steps"]:
            left, right = step.split(" = ")
            assert eval(left) == int(right)
            assert value is None or left.startswith(f"{value} ")
            value = int(right)
            assert 0 <= value <= 99
        assert row["answer"] == str(value)
        assert 3 <= len(row["steps"]) <= 5


def test_a_set_of_problems_is_the_same_each_time_and_grows_at_its_end():
    assert problems.make("arithmetic:count=50") == problems.make("arithmetic")[:50]
    assert problems.make("arithmetic:seed=1") != problems.make("arithmetic")
    assert len({row["prompt"] for row in problems.make("arithmetic")}) > 95
