"""The OpenAPI document, held against the server by `schemathesis`; and the metrics, by Prometheus' own parser."""

from __future__ import annotations

from collections import Counter
from contextlib import suppress

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis.errors import Unsatisfiable
from prometheus_client.parser import text_string_to_metric_families
from serve.test_safety import ask

HELLO = [{"role": "user", "content": "Hello"}]


def fuzz(server, per_operation, model="tiny", paths="/"):
    """Sends requests that fit the document and requests that don't; returns how many of each status came back."""
    schema = schemathesis.openapi.from_url(f"{server.url}/openapi.json").include(path_regex=paths)
    found = {}
    for result in schema.get_all_operations():
        operation = result.ok()
        for mode in (schemathesis.GenerationMode.POSITIVE, schemathesis.GenerationMode.NEGATIVE):
            strategy = operation.as_strategy(generation_mode=mode)
            seen = []

            def send(case):
                if isinstance(case.body, dict):
                    case.body = aimed(case.body, model)
                answer = case.call(base_url=server.url, timeout=60)
                assert answer.status_code < 500, (case.as_curl_command(), answer.text)
                if answer.status_code >= 400:
                    error = answer.json()["error"]
                    assert error["message"]
                    assert set(error) == {"message", "type", "param", "code"}
                seen.append(answer.status_code)  # noqa: B023 - it is called within the turn

            run = settings(
                max_examples=per_operation, deadline=None, database=None, derandomize=True,
                phases=(Phase.generate,), suppress_health_check=list(HealthCheck),
            )  # fmt: skip
            with suppress(Unsatisfiable):  # there is nothing to get wrong
                run(given(case=strategy)(send))()
            found[operation.label, mode.value] = Counter(seen)
    return found


def aimed(body, model):
    """The same body at a model that there is, with few tokens, so that more of it is looked at."""
    if isinstance(body.get("model"), str):
        body = body | {"model": model}
    for name in ("max_tokens", "max_completion_tokens", "max_output_tokens"):
        if isinstance(body.get(name), int) and body[name] > 4:
            body = body | {name: 4}
    if isinstance(body.get("n"), int) and body["n"] > 2:
        body = body | {"n": 2}
    return body if "budget" in body or "file" in body else body | {"budget": {"seconds": 0.5}}


def test_fuzzed_requests_get_a_clear_refusal_or_an_answer(server):
    fuzz(server, 2)
    assert server.idle()


@pytest.mark.slow
def test_a_thousand_fuzzed_requests(server):
    found = fuzz(server, 160)
    assert sum(sum(statuses.values()) for statuses in found.values()) >= 1000
    assert server.idle()


def test_the_document_names_what_is_served(server):
    document = ask(server, "/openapi.json")[2]
    assert set(document["paths"]) == {
        "/v1/chat/completions", "/v1/completions", "/v1/responses", "/v1/models", "/v1/models/{name}", "/v1/methods",
        "/v1/audio/transcriptions", "/v1/audio/translations",
        "/health", "/ready", "/metrics",
    }  # fmt: skip


def test_the_metrics_are_those_of_the_requests(server, client):
    def read():
        families = text_string_to_metric_families(ask(server, "/metrics")[2])
        return {(s.name, *sorted(s.labels.values())): s.value for family in families for s in family.samples}

    before = read()
    client.chat.completions.create(
        model="tiny", messages=HELLO, temperature=0, max_completion_tokens=7, extra_body={"method": "lookup"}
    )
    after = read()

    def grown(*key):
        return after[key] - before.get(key, 0)

    assert grown("outlay_generated_tokens_total", "lookup", "tiny") == 7
    assert grown("outlay_answers_total", "length", "tiny") == 1
    assert grown("outlay_requests_total", "/v1/chat/completions", "200") == 1
    assert grown("outlay_time_to_first_token_seconds_count", "tiny") == 1
    assert after["outlay_passes_total", "target", "tiny"] > 0
    assert after["outlay_pass_rows_total", "target", "tiny"] >= after["outlay_passes_total", "target", "tiny"]
    assert after["outlay_texts_running",] == 0
    assert after["outlay_cache_tokens", "target", "tiny"] > 0
