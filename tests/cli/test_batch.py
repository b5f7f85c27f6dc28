"""`outlay batch`: buckets from files of lengths, batch sizes from each oracle, refusals."""

from __future__ import annotations

import json

import pytest

from outlay.bench.batching.corpus import speech_lengths

FORMULA = ("--layers", "4,2", "--hidden", "64", "--heads", "4", "--vocab", "1000", "--per-input", "12.5")


@pytest.fixture
def lengths(tmp_path):
    """A file of 600 durations and tokens."""
    rows = [f"{input},{output}" for input, output in zip(*speech_lengths(600), strict=True)]
    (tmp_path / "lengths.csv").write_text("\n".join(["duration,tokens", *rows]))
    return tmp_path / "lengths.csv"


@pytest.fixture
def buckets(outlay, lengths, tmp_path):
    """Buckets fitted to them."""
    file = tmp_path / "buckets.json"
    status, out, _ = outlay("batch", "fit", lengths, "--buckets", "5", "--sub", "2", "--out", file)
    assert status == 0
    assert "random, 32 examples" in out
    return file


def test_csv_without_names_and_json_lines_give_the_same_buckets(outlay, lengths, buckets, tmp_path):
    rows = [line.split(",") for line in lengths.read_text().splitlines()[1:]]
    (tmp_path / "plain.csv").write_text("\n".join(map(",".join, rows)))
    (tmp_path / "rows.jsonl").write_text(
        "\n".join(json.dumps({"id": i, "tokens": int(b), "duration": float(a)}) for i, (a, b) in enumerate(rows))
    )
    for name in ("plain.csv", "rows.jsonl"):
        file = tmp_path / "again.json"
        assert outlay("batch", "fit", tmp_path / name, "--buckets", "5", "--sub", "2", "--out", file)[0] == 0
        assert json.loads(file.read_text()) == json.loads(buckets.read_text())


def test_texts_are_counted_by_a_tokenizer_and_what_a_prompt_adds(outlay, tmp_path):
    rows = [{"source": "one two three four", "target": "one"}, {"source": "one two", "target": "one two"}]
    (tmp_path / "pairs.jsonl").write_text("\n".join(map(json.dumps, rows)))
    words = ["--tokenizer", "outlay/tiny-reasoner", "--extra", "2", "--buckets", "1", "--sub", "1"]
    file = tmp_path / "buckets.json"
    assert outlay("batch", "fit", tmp_path / "pairs.jsonl", *words, "--sigma", "9", "--out", file)[0] == 0
    from outlay.models.load import load_model

    encode = load_model("outlay/tiny-reasoner").tokenizer.encode
    edge = json.loads(file.read_text())["bins"][0]
    assert edge[:2] == [len(encode("one two three four")), 2 + len(encode("one two"))]


def test_sizes_by_the_formula_are_written_beside_the_buckets_and_longer_ones_are_smaller(outlay, lengths, buckets):
    status, out, _ = outlay("batch", "profile", buckets, "--memory", "100MB", *FORMULA, "--lengths", lengths)
    assert status == 0
    assert "buckets, these sizes" in out
    held = json.loads(buckets.read_text())
    assert len(held["batch_sizes"]) == len(held["bins"])
    assert held["batch_sizes"][0] > held["batch_sizes"][-1] >= 1


def test_sizes_by_measured_steps(outlay, buckets, tmp_path):
    rows = [f"{b},{s},{t},{1e6 + b * (1e4 * s + 100 * t)}" for b in (1, 2) for s in (5, 20) for t in (10, 50)]
    (tmp_path / "probes.csv").write_text("\n".join(rows))
    words = ["--probes", tmp_path / "probes.csv", "--share", "1", "--gap", "0"]
    assert outlay("batch", "profile", buckets, "--memory", "10MB", *words)[0] == 0
    held = json.loads(buckets.read_text())
    expected = [int(9e6 / (1e4 * input + 100 * output) + 1e-6) for input, output, _ in held["bins"]]
    assert held["batch_sizes"] == pytest.approx(expected, abs=1)


def test_sizes_by_taking_steps(outlay, buckets, tmp_path, monkeypatch):
    (tmp_path / "made_steps.py").write_text(
        "import torch\n\ndef step():\n    def take(batch, input, output):\n"
        "        torch.ones(batch, int(100 * input), 500).sum()\n    return take\n"
    )
    monkeypatch.chdir(tmp_path)  # the memory of this process counts, whatever other tests have left in it
    assert outlay("batch", "profile", buckets, "--step", "made_steps:step", "--memory", "64GiB")[0] == 0
    assert min(json.loads(buckets.read_text())["batch_sizes"]) >= 1


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ((), "say what to do"),
        (("fitt",), "did you mean 'fit'"),
        (("fit", "nowhere.csv"), "can't read nowhere.csv"),
        (("fit", "{lengths}", "--buckets", "601"), "600 examples are too few for 601 buckets"),
        (("fit", "{lengths}", "--input", "seconds"), "has no 'seconds'; it has duration, tokens"),
        (("fit", "{nan}", "--buckets", "1"), "example 1 must be 0 or more, not nan"),
        (("fit", "{text}", "--buckets", "1"), "'source' in line 1"),
        (("profile", "{lengths}", "--memory", "1GB", *FORMULA), "is not JSON"),
        (("profile", "{buckets}", "--memory", "1GB"), "one of --step, --probes and --layers"),
        (("profile", "{buckets}", *FORMULA), "--memory 8GiB"),
        (("profile", "{buckets}", "--memory", "lots", *FORMULA), "an amount of memory"),
        (("profile", "{buckets}", "--memory", "1kB", *FORMULA), "not even one example"),
        (("profile", "{buckets}", "--memory", "1GB", "--step", "no_such:step"), "MODULE:FUNCTION"),
    ],
)  # fmt: skip
def test_what_can_not_be_used_is_refused_in_one_line(refusal, lengths, buckets, tmp_path, words, says):
    (tmp_path / "nan.csv").write_text("1,2\nnan,3\n")
    (tmp_path / "text.jsonl").write_text('{"source": "a text", "target": "another"}\n')
    places = {"lengths": lengths, "buckets": buckets, "nan": tmp_path / "nan.csv", "text": tmp_path / "text.jsonl"}
    status, line = refusal("batch", *(word.format(**places) for word in words))
    assert status == 2
    assert says in line
