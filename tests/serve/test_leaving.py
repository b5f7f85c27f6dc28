"""Clients that leave: before, in and without a stream, while they wait, in a prompt. Their runs end at once."""

from __future__ import annotations

import json
import socket
import time

import pytest
from serve.running import start, until

HELLO = [{"role": "user", "content": "Hello"}]
ENDLESS = {"model": "tiny", "messages": HELLO, "temperature": 0, "max_completion_tokens": 4000}


class Client:
    """A bare connection that has sent a request."""

    def __init__(self, server, path="/v1/chat/completions", **body):
        host, port = server.url.removeprefix("http://").split(":")
        self.socket = socket.create_connection((host, int(port)))
        data = json.dumps(body).encode()
        head = f"POST {path} HTTP/1.1\r\nhost: 127.0.0.1\r\ncontent-type: application/json\r\n"
        self.socket.sendall(f"{head}content-length: {len(data)}\r\n\r\n".encode() + data)

    def read_until(self, mark):
        data = b""
        while mark not in data:
            piece = self.socket.recv(65536)
            assert piece, data
            data += piece
        return data

    def leave(self):
        self.socket.close()


def passes(server):
    return sum(worker.passes for worker in server.engine.workers)


def running(server):
    return len(server.engine._runs.live)


def assert_gone(server, before=0):
    left_at = passes(server)
    assert until(lambda: running(server) <= before)
    assert passes(server) - left_at < 2000 or before, "the run goes on after its client has left"
    assert until(lambda: server.service.turns.running <= before)
    held = passes(server)
    time.sleep(0.05)
    assert before or passes(server) == held


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/completions", "/v1/responses"])
@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_leaves_ends_its_run(server, path, stream):
    text = {"messages": HELLO} if "chat" in path else {"prompt": "x"} if "completions" in path else {"input": "x"}
    tokens = "max_output_tokens" if "responses" in path else "max_tokens"
    answered = len(server.lines("request"))
    client = Client(server, path, model="tiny", temperature=0, stream=stream, **text, **{tokens: 4000})
    if stream:
        client.read_until(b"delta" if "chat" in path or "responses" in path else b"text")
    assert until(lambda: running(server) == 1)
    client.leave()
    assert_gone(server)
    assert until(lambda: len(server.lines("request")) > answered)
    line = server.lines("request")[-1]
    assert (line["left"], line["status"]) == (True, 200 if stream else 499)


def test_all_texts_of_a_request_end_with_its_client(server):
    client = Client(server, **ENDLESS | {"temperature": 1.0}, n=8, method="silent:passes=2000,nap=0.001")
    assert until(lambda: running(server) == 8)
    client.leave()
    assert_gone(server)


def test_a_client_may_leave_before_its_prompt_was_read(server):
    client = Client(server, **ENDLESS | {"messages": [{"role": "user", "content": "x" * 6000}]}, stream=True)
    client.leave()
    assert_gone(server)


def test_a_client_may_leave_in_a_long_prompt(server):
    client = Client(server, **ENDLESS | {"messages": [{"role": "user", "content": "long" * 1800}]})
    assert until(lambda: running(server) == 1)
    client.leave()
    assert_gone(server)


def test_clients_may_leave_while_nothing_is_certain(server):
    client = Client(server, **ENDLESS, stream=True, method="silent:passes=2000")
    client.read_until(b": nothing is certain yet")
    client.leave()
    assert_gone(server)


@pytest.mark.parametrize("stream", [False, True])
def test_at_most_one_pass_follows_a_client_that_left(server, stream):
    """After each pass comes a second in which the server has the time to see that the connection is closed."""
    client = Client(server, **ENDLESS, stream=stream, method="silent:passes=2000,nap=1.0")
    before = passes(server)
    assert until(lambda: passes(server) > before)
    client.leave()
    after = passes(server)
    assert until(lambda: running(server) == 0)
    assert passes(server) <= after + 1
    server.engine.clear()
    assert not any(worker.cache.in_use for worker in server.engine.models)


def test_clients_leave_the_queue_at_once(checkpoint):
    from outlay.serve.settings import Queue

    server = start({"tiny": checkpoint}, queue=Queue(running=1, waiting=10, waiting_per_key=10))
    try:
        first = Client(server, **ENDLESS)
        assert until(lambda: running(server) == 1)
        others = [Client(server, **ENDLESS) for _ in range(3)]
        assert until(lambda: server.service.turns.waiting == 3)
        for client in others[:2]:
            client.leave()
        assert until(lambda: server.service.turns.waiting == 1)
        first.leave()
        assert until(lambda: server.service.turns.waiting == 0)
        assert until(lambda: running(server) == 1)
        others[2].leave()
        assert_gone(server)
    finally:
        server.stop()
