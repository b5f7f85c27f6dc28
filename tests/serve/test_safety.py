"""Safe by default: keys, names, limits, no files, no traces, no host but our own."""

from __future__ import annotations

import http.client
import json

import openai
import pytest
from serve.running import start

from outlay.serve.fields import NOT_HERE
from outlay.serve.hosted import parse_method
from outlay.serve.settings import Limits, Settings

HELLO = [{"role": "user", "content": "Hello"}]


def ask(server, path, body=None, verb=None, **headers):
    """Returns status, headers and body of a bare request."""
    connection = http.client.HTTPConnection(server.url.removeprefix("http://"), timeout=20)
    data = body if isinstance(body, bytes | None) else json.dumps(body).encode()
    sent = {"content-type": "application/json"} | {name.replace("_", "-"): value for name, value in headers.items()}
    connection.request(verb or ("GET" if body is None else "POST"), path, data, sent)
    answer = connection.getresponse()
    content = answer.read()
    connection.close()
    is_json = answer.headers.get("content-type", "").startswith("application/json")
    return answer.status, answer.headers, json.loads(content) if is_json else content.decode()


@pytest.mark.parametrize(
    ("field", "value", "status", "says"),
    [
        ("draft", "/etc/passwd", 400, "it has lookup, small, same"),
        ("draft", "org/name", 400, "it has lookup, small, same"),
        ("draft", "self:int4", 400, "it has lookup, small, same"),
        ("model", "/etc/passwd", 404, "the models are tiny, other"),
        ("method", "aded:table=/etc/passwd", 403, "may not name a file"),
        ("method", "lookup:table=x", 403, "may not name a file"),
        ("method", "auto:table=/dev/zero", 403, "may not name a file"),
        ("method", "superposed:ngram=/etc/passwd", 403, "may not name a file"),
        ("method", "awrs:proposal=/etc/passwd", 403, "may not name a file"),
        ("method", "anchored:safe=/etc/passwd", 403, "may not name a file"),
        ("method", "ppd:prompts=/etc/passwd", 403, "may not name a file"),
        ("method", "lokup", 400, "did you mean 'lookup'"),
        ("budget", {"target_pases": 3}, 400, "did you mean 'target_passes'"),
    ],
)
def test_a_request_names_only_what_was_loaded(server, field, value, status, says):
    body = {"model": "tiny", "messages": HELLO, "temperature": 0} | {field: value}
    code, _, answer = ask(server, "/v1/chat/completions", body)
    assert code == status
    assert says in answer["error"]["message"]
    assert answer["error"]["param"] == field


def test_methods_that_run_code_are_off(checkpoint):
    server = start({"tiny": checkpoint}, allowed=())
    try:
        body = {"model": "tiny", "messages": HELLO, "method": "script"}
        code, _, answer = ask(server, "/v1/chat/completions", body)
        assert code == 403
        assert "turned off" in answer["error"]["message"]
        names = [method["id"] for method in ask(server, "/v1/methods")[2]["data"]]
        assert "script" not in names
        assert "greedy" in names
    finally:
        server.stop()


@pytest.mark.parametrize("field", sorted(set(NOT_HERE) - {"prompt", "modalities"}))
def test_openais_other_fields_are_refused_by_name(server, field):
    body = {"model": "tiny", "messages": HELLO, "max_tokens": 1, field: {"x": 1}}
    code, _, answer = ask(server, "/v1/chat/completions", body)
    assert code == 400
    assert answer["error"]["param"] == field
    assert NOT_HERE[field] in answer["error"]["message"]


@pytest.mark.parametrize(("field", "value"), [("store", False), ("service_tier", "auto"), ("modalities", ["text"])])
def test_what_asks_for_nothing_is_taken(server, field, value):
    body = {"model": "tiny", "messages": HELLO, "max_tokens": 1, field: value, "user": "me", "verbosity": None}
    assert ask(server, "/v1/chat/completions", body)[0] == 200


@pytest.mark.parametrize(
    ("body", "status", "says"),
    [
        (b"", 400, ""),
        (b"{", 400, "not JSON"),
        (b"[]", 400, ""),
        (b'{"model": "tiny", "messages": [{"role": "user", "content": "\\ud800"}]}', 400, "surrogate"),
        (b'{"model": "tiny", "messages": [], "temperature": NaN}', 400, "not a number"),
        (b"[" * 200_000, 400, ""),
        (b'{"model": "tiny", "seed": ' + b"9" * 5000 + b"}", 400, ""),
        (b'{"model": "tiny", "messages": [{"role": "me", "content": "x"}]}', 400, "messages.0.role"),
        (b'{"model": "tiny", "messages": [{"role": "user", "content": ""}], "tmperature": 1}', 400, "'temperature'"),
        (b'{"model": "tiny", "messages": "hi"}', 400, "messages"),
    ],
)
def test_nonsense_is_a_clear_refusal(server, body, status, says):
    code, _, answer = ask(server, "/v1/chat/completions", body)
    assert code == status
    assert says in answer["error"]["message"]
    assert answer["error"]["type"] == "invalid_request_error"


def test_no_trace_leaves_the_server(server, client):
    with pytest.raises(openai.InternalServerError) as error:
        client.chat.completions.create(model="tiny", messages=HELLO, extra_body={"method": "breaks"})
    assert "/secret/path" not in str(error.value.body)
    assert any("/secret/path" in line["error"] for line in server.lines("error"))


def test_an_error_after_the_stream_began_is_an_event(client):
    stream = client.chat.completions.create(
        model="tiny", messages=HELLO, stream=True, temperature=0, extra_body={"method": "breaks:tokens=4"}
    )
    chunks = []
    with pytest.raises(openai.APIError, match="the server failed"):
        chunks += list(stream)


def test_other_names_and_sites_stay_out(server):
    assert ask(server, "/health", host="evil.example")[0] == 403
    assert ask(server, "/health", host="localhost:1")[0] == 200
    code, headers, _ = ask(
        server, "/v1/chat/completions", {"model": "tiny", "messages": HELLO}, content_type="text/plain"
    )
    assert code == 400, "a site's own script can send plain text without asking"
    assert "access-control-allow-origin" not in headers


def test_answers_have_safe_headers(server):
    _, headers, _ = ask(server, "/")
    assert "default-src 'none'" in headers["content-security-policy"]
    assert "unsafe" not in headers["content-security-policy"]
    assert headers["x-content-type-options"] == "nosniff"
    assert "server" not in headers
    assert ask(server, "/nothing")[2]["error"]["code"] == "not_found"
    assert ask(server, "/page/..%2f..%2fsettings.py")[0] == 404
    assert ask(server, "/v1/models", verb="DELETE")[0] == 405


def test_large_bodies_are_refused_with_and_without_their_length(checkpoint):
    server = start({"tiny": checkpoint}, limits=Limits(body_bytes=1000, choices=4, max_tokens=8, prompt_tokens=50))
    try:
        body = {"model": "tiny", "messages": [{"role": "user", "content": "x" * 2000}]}
        code, _, answer = ask(server, "/v1/chat/completions", body)
        assert (code, answer["error"]["code"]) == (413, "body_too_large")
        connection = http.client.HTTPConnection(server.url.removeprefix("http://"))
        pieces = (b"x" * 400 for _ in range(5))
        connection.request("POST", "/v1/chat/completions", pieces, {"content-type": "application/json"})
        assert connection.getresponse().status == 413
        for field, value, says in (
            ("n", 5, "at most 4"),
            ("max_completion_tokens", 9, "at most 8"),
            ("messages", [{"role": "user", "content": "x" * 60}], "at most 50"),
        ):
            code, _, answer = ask(server, "/v1/chat/completions", {"model": "tiny", "messages": HELLO, field: value})
            assert code == 400
            assert says in answer["error"]["message"]
        code, _, answer = ask(server, "/v1/chat/completions", {"model": "tiny", "messages": HELLO, "temperature": 0})
        assert answer["usage"]["completion_tokens"] == 8
    finally:
        server.stop()


def test_keys_are_asked_for_where_there_are_some(checkpoint):
    server = start({"tiny": checkpoint}, keys={"ann": "secret-1", "bob": "secret-2"})
    try:
        body = {"model": "tiny", "messages": HELLO, "max_tokens": 1}
        for path in ("/health", "/ready", "/", "/page/base.css"):
            assert ask(server, path)[0] == 200
        for path in ("/v1/models", "/metrics", "/openapi.json"):
            assert ask(server, path)[0] == 401
        code, _, answer = ask(server, "/v1/chat/completions", body, authorization="Bearer wrong")
        assert (code, answer["error"]["code"]) == (401, "invalid_api_key")
        code, headers, _ = ask(server, "/v1/chat/completions", body, authorization="Bearer secret-2")
        assert code == 200
        assert server.line_of(headers)["key"] == "bob"
        assert "secret" not in server.log.getvalue()
        with pytest.raises(openai.AuthenticationError):
            openai.OpenAI(base_url=f"{server.url}/v1", api_key="no").models.list()
    finally:
        server.stop()


def test_prompts_stay_out_of_the_log_unless_asked_for(server, checkpoint):
    body = {"model": "tiny", "messages": [{"role": "user", "content": "my secret"}], "max_tokens": 3}
    line = server.line_of(ask(server, "/v1/chat/completions", body)[1])
    assert "my secret" not in server.log.getvalue()
    assert line["tokens_out"] == 3
    assert line["id"].startswith("req_")
    telling = start({"tiny": checkpoint}, log_prompts=True)
    try:
        headers = ask(telling, "/v1/chat/completions", body)[1]
        assert "my secret" in telling.line_of(headers)["prompt"][0]
    finally:
        telling.stop()


def test_what_is_loopback():
    assert all(Settings(host=host).loopback for host in ("127.0.0.1", "::1", "localhost", "127.8.8.8"))
    assert not any(Settings(host=host).loopback for host in ("0.0.0.0", "::", "10.0.0.1", "example.org"))


@pytest.mark.parametrize(
    "text", [r"particles:step=\n,resample=stratified", "awrs:resample=systematic", r"best_of:step=;"]
)
def test_options_that_hold_a_text_or_a_choice_name_no_file(text):
    assert parse_method(text, ()).about.name == text.partition(":")[0]


def test_the_servers_own_method_may_name_a_model_which_no_request_may(checkpoint, other_checkpoint):
    server = start({"tiny": checkpoint}, method=f"anchored:k=0.5,safe={other_checkpoint}", warm_up=True)
    try:
        code, _, answer = ask(server, "/v1/chat/completions", {"model": "tiny", "messages": HELLO, "max_tokens": 5})
        assert code == 200
        assert answer["outlay"]["ledger"]["side_passes"] >= 5
        assert "kl_nats" in answer["outlay"]["ledger"]["extras"]
        body = {"model": "tiny", "messages": HELLO, "method": f"anchored:safe={other_checkpoint}"}
        assert ask(server, "/v1/chat/completions", body)[0] == 403
    finally:
        server.stop()
