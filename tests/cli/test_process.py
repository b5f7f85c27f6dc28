"""What only a process of its own shows: signals, pipes, and what is imported."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from outlay.cli.interrupt import Interruption

SRC = Path(__file__).parents[2] / "src"
LONG = ("--max-tokens", 50_000)


def ended(process, timeout=60):
    out, err = process.communicate(timeout=timeout)
    return process.returncode, out.decode(), err.decode()


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_stops_with_the_text_so_far_and_its_ledger(start, tiny, tmp_path, number, status):
    process = start("run", "Hi", "--model", tiny, *LONG, "--trace", tmp_path / "trace")
    first = process.stdout.read(1).decode()
    process.send_signal(number)
    code, rest, err = ended(process)
    text = first + rest
    assert code == status
    assert err.startswith("tiny · auto · finished: cancelled\n")
    assert text.strip().isalpha()
    assert f"{len(text) - 1:,}\n" in err, "the ledger counts the tokens that were written"
    events = [json.loads(line) for line in (tmp_path / "trace").read_text().splitlines()]
    assert "finish" in [event["event"] for event in events]


def test_ctrl_c_prints_json_for_all_prompts(start, tiny, tmp_path):
    trace = tmp_path / "trace"
    os.mkfifo(trace)
    process = start("run", "One\nTwo", "--lines", "--model", tiny, *LONG, "--json", "--trace", trace)
    with trace.open() as events:
        events.readline()
        process.send_signal(signal.SIGINT)
        events.read()
    code, out, err = ended(process)
    rows = [json.loads(line) for line in out.splitlines()]
    assert (code, err) == (130, "")
    assert [row["finish_reason"] for row in rows] == ["cancelled", "cancelled"]


def test_a_signal_while_loading_ends_with_one_line(outlay, monkeypatch):
    def load(*args, **options):
        os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr("outlay.lm.load", load)
    assert outlay("run", "Hi") == (143, "", "outlay: stopped\n")


def test_the_second_signal_is_left_to_the_system():
    stopped = []
    before = signal.getsignal(signal.SIGINT)
    with Interruption(lambda: stopped.append(True)) as interruption:
        os.kill(os.getpid(), signal.SIGINT)
        assert (stopped, interruption.status) == ([True], 130)
        assert signal.getsignal(signal.SIGINT) is signal.SIG_DFL
    assert signal.getsignal(signal.SIGINT) is before


def test_a_closed_pipe_ends_quietly(start, tiny):
    process = start("run", "Hi", "--model", tiny, *LONG)
    process.stdout.read(1)
    process.stdout.close()
    assert process.wait(60) == 141
    assert process.stderr.read() == b""


def test_text_can_be_piped(start, tiny):
    process = start("run", "--model", tiny, "--max-tokens", 5, stdin=subprocess.PIPE)
    out, err = process.communicate(b"Hello\n", timeout=60)
    assert process.returncode == 0
    assert out.strip().isalpha()
    assert b"\x1b" not in out + err


def test_a_full_disk_gets_one_line(start):
    with open("/dev/full", "w") as full:
        process = start("--help", stdout=full)
        err = process.communicate(timeout=60)[1].decode()
    assert process.returncode == 1
    assert err.count("\n") == 1
    assert "No space left on device" in err


@pytest.mark.parametrize("words", [["--help"], ["--version"], ["run", "--help"], ["rum"], ["run", ""]])
def test_what_needs_no_model_does_not_wait_for_torch(words):
    program = "import sys; from outlay.cli import main; main(sys.argv[1:]); sys.exit('torch' in sys.modules)"
    environment = os.environ | {"PYTHONPATH": str(SRC)}
    done = subprocess.run([sys.executable, "-c", program, *words], capture_output=True, timeout=60, env=environment)
    assert done.returncode == 0
