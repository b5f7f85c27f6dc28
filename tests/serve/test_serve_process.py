"""The command as a process: it listens, warms up, drains and ends."""

from __future__ import annotations

import http.client
import json
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from serve.running import until

from outlay.cli import main

SRC = Path(__file__).parents[2] / "src"
HOW = {"model": "tiny", "messages": [{"role": "user", "content": "x"}], "temperature": 0}


class Process:
    """`outlay serve` with a checkpoint."""

    def __init__(self, checkpoint, *words):
        environment = {**os.environ, "PYTHONPATH": str(SRC), "OMP_NUM_THREADS": "1"}
        self.process = subprocess.Popen(
            [sys.executable, "-m", "outlay", "serve", f"tiny={checkpoint}", "--port", "0", "--threads", "1", *words],
            stderr=subprocess.PIPE, text=True, env=environment,
        )  # fmt: skip
        self.rows = []
        self.reader = threading.Thread(target=self._read, daemon=True)
        self.reader.start()
        assert until(lambda: self.events("listening"), 90), self.rows
        self.address = self.events("listening")[0]["url"].removeprefix("http://")

    def _read(self):
        for line in self.process.stderr:
            self.rows.append(json.loads(line))

    def events(self, name):
        return [row for row in self.rows if row["event"] == name]

    def ask(self, path, body=None):
        connection = http.client.HTTPConnection(self.address, timeout=60)
        data = None if body is None else json.dumps(body)
        connection.request("GET" if body is None else "POST", path, data, {"content-type": "application/json"})
        answer = connection.getresponse()
        return answer.status, json.loads(answer.read())

    def signal(self, number=signal.SIGTERM):
        self.process.send_signal(number)

    def status(self):
        status = self.process.wait(60)
        self.reader.join(5)
        return status


def test_sigterm_drains_and_ends_with_status_0(checkpoint):
    server = Process(checkpoint, "--no-warm-up", "--method", "greedy")
    assert until(lambda: server.events("ready"), 30)
    assert server.ask("/ready") == (200, {"status": "ready"})
    found = []
    thread = threading.Thread(
        target=lambda: found.append(server.ask("/v1/chat/completions", HOW | {"max_tokens": 1500}))
    )  # fmt: skip
    thread.start()
    assert until(lambda: b"outlay_texts_running 1.0" in metrics(server), 20)
    server.signal()
    thread.join(60)
    status, answer = found[0]
    assert status == 200
    assert answer["usage"]["completion_tokens"] == 1500
    assert server.status() == 0
    assert server.events("stopping")[0]["running"] == 1


def metrics(server):
    connection = http.client.HTTPConnection(server.address, timeout=60)
    connection.request("GET", "/metrics")
    return connection.getresponse().read()


@pytest.mark.slow
def test_what_does_not_end_in_time_is_cut_off_and_its_client_told(checkpoint):
    server = Process(checkpoint, "--no-warm-up", "--method", "greedy", "--drain-seconds", "0.3", "--max-tokens", "8000")
    assert until(lambda: server.events("ready"), 30)
    connection = http.client.HTTPConnection(server.address, timeout=60)
    body = json.dumps(HOW | {"max_tokens": 7000, "stream": True})
    connection.request("POST", "/v1/chat/completions", body, {"content-type": "application/json"})
    answer = connection.getresponse()
    answer.readline()
    server.signal()
    rest = answer.read().decode()
    assert '"code": "stopping"' in rest
    assert server.status() == 0


@pytest.mark.slow
def test_ready_waits_for_the_warm_up(checkpoint):
    server = Process(checkpoint, "--method", "auto")
    status, answer = server.ask("/ready")
    assert (status, answer["error"]["code"]) == (503, "starting")
    assert server.ask("/health")[0] == 200
    assert server.ask("/v1/chat/completions", HOW)[0] == 503
    assert until(lambda: server.events("ready"), 120)
    assert server.ask("/v1/chat/completions", HOW | {"max_tokens": 3})[0] == 200
    server.signal(signal.SIGINT)
    assert server.status() == 0


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--host", "0.0.0.0"], "give API keys with --keys FILE, or --no-keys"),
        (["--keys", "/nowhere"], "can't read the API keys"),
        (["--method", "gredy"], "did you mean 'greedy'"),
        (["--method", "lookup:table=x"], "may not name a file"),
        (["--draft", "/nowhere.safetensors"], "no file"),
        (["=x"], "must be NAME=MODEL"),
        (["--port", "99999"], "at most 65535"),
    ],
)
def test_what_the_command_refuses(checkpoint, capsys, words, says):
    model = [] if words[0] == "=x" else [str(checkpoint)]
    status = main(["serve", *model, "--no-warm-up", *words])
    assert status == 2
    err = capsys.readouterr().err
    assert says in err
    assert err.count("\n") == 1


def test_a_port_that_is_taken_is_told(checkpoint, server, capsys):
    port = server.url.rpartition(":")[2]
    assert main(["serve", str(checkpoint), "--no-warm-up", "--port", port]) == 2
    assert "can't listen" in capsys.readouterr().err
