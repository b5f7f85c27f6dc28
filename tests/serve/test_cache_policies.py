"""Cache policies in requests: the text of the engine under them, refusals by name, and all kinds of runs at once."""

from __future__ import annotations

import asyncio
import itertools
from dataclasses import dataclass
from typing import ClassVar

import openai
import pytest
from models.vision_checkpoints import llava, pictures
from serve.running import start
from serve.test_safety import ask
from serve.test_serve_images import asked, url

from outlay import About, CachePolicy, catalog
from outlay.attend.policy import COUNTS, Everything

HELLO = [{"role": "user", "content": "Tell me of the sea, and of what lies behind it, and then of the way back"}]
POLICY = "zipvl:tau=0.7,every=4"


@dataclass(frozen=True)
class Elsewhere(CachePolicy):
    """A policy of another package, with an option that may name a file."""

    table: str = "none"

    about: ClassVar[About] = About(
        name="elsewhere", summary="", paper="", family="attention", spends="", saves="", exact=True, task="cache",
        counts=COUNTS,
    )  # fmt: skip

    def keeper(self, prompt):
        return Everything()


@pytest.fixture
def elsewhere(monkeypatch):
    for known in (catalog.entries(), catalog.policies()):
        monkeypatch.setitem(known, "elsewhere", Elsewhere)


@pytest.mark.parametrize("how", [{}, {"method": "lookup"}, {"method": "sample", "temperature": 0.9}])
def test_a_text_is_that_of_the_engine_under_the_policy(server, client, how):
    lm = server.service.models.find("tiny").lm
    extra = {"cache": POLICY} | {name: value for name, value in how.items() if name == "method"}
    given = {"temperature": how.get("temperature", 0), "extra_body": extra}
    alone = lm.generate(
        HELLO, cache=POLICY, method=how.get("method"), temperature=given["temperature"], seed=3, max_tokens=12
    )
    answer = client.chat.completions.create(model="tiny", messages=HELLO, max_completion_tokens=12, seed=3, **given)
    assert answer.choices[0].message.content == alone.text
    assert answer.outlay["cache"] == alone.facts["cache"]["policy"]
    assert answer.outlay["ledger"]["extras"]["kv_payload"] == alone.ledger.extras["kv_payload"] > 0
    stream = client.chat.completions.create(
        model="tiny", messages=HELLO, max_completion_tokens=12, seed=3, stream=True, **given
    )
    assert "".join(chunk.choices[0].delta.content or "" for chunk in stream) == alone.text


def test_completions_and_responses_take_a_policy_too(server, client):
    lm = server.service.models.find("tiny").lm
    text = HELLO[0]["content"]
    alone = lm.generate(text, chat=False, cache=POLICY, max_tokens=8)
    completion = client.completions.create(
        model="tiny", prompt=text, temperature=0, max_tokens=8, extra_body={"cache": POLICY}
    )
    assert completion.choices[0].text == alone.text
    chat = lm.generate(text, cache=POLICY, max_tokens=8)
    how = {"model": "tiny", "input": text, "temperature": 0, "max_output_tokens": 8}
    assert client.responses.create(**how, extra_body={"cache": POLICY}).output_text == chat.text


def test_the_servers_own_method_stands_back_where_a_policy_is_named(checkpoint):
    """`auto`, the usual one, runs under no policy."""
    server = start({"tiny": checkpoint}, method="auto")
    try:
        body = {"model": "tiny", "messages": HELLO, "max_tokens": 4, "cache": "zipvl"}
        for temperature, method in ((0, "greedy"), (1, "sample")):
            code, _, answer = ask(server, "/v1/chat/completions", body | {"temperature": temperature})
            assert (code, answer["outlay"]["method"]) == (200, method)
    finally:
        server.stop()


@pytest.mark.parametrize(
    ("value", "status", "says"),
    [
        ("zipvll", 400, "there is no cache policy 'zipvll' (did you mean 'zipvl'?)"),
        ("greedy", 400, "there is no cache policy 'greedy'"),
        ("zipvl:tauu=1", 400, "'tau'"),
        ("zipvl:tau=2", 400, "tau above 0 and at most 1"),
        ("elsewhere", 403, "the cache policy 'elsewhere' is turned off here"),
        (5, 400, "cache"),
    ],
)
@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/chat/completions", {"messages": HELLO}),
        ("/v1/completions", {"prompt": "Hello"}),
        ("/v1/responses", {"input": "Hello"}),
    ],
    ids=["chat", "completions", "responses"],
)
@pytest.mark.usefixtures("elsewhere")
def test_a_policy_that_can_not_be_used_is_refused_in_one_line(server, path, body, value, status, says):
    code, _, answer = ask(server, path, {"model": "tiny", "temperature": 0, "cache": value} | body)
    assert code == status
    assert says in answer["error"]["message"]
    assert "\n" not in answer["error"]["message"]
    assert answer["error"]["param"] == "cache"


@pytest.mark.usefixtures("elsewhere")
def test_a_policy_that_the_operator_allows_is_listed_and_names_no_file(checkpoint):
    server = start({"tiny": checkpoint}, allowed=("elsewhere",))
    try:
        body = {"model": "tiny", "messages": HELLO, "temperature": 0, "max_tokens": 4}
        plain = ask(server, "/v1/chat/completions", body)[2]
        kept = ask(server, "/v1/chat/completions", body | {"cache": "elsewhere"})[2]
        assert kept["choices"][0]["message"] == plain["choices"][0]["message"]
        code, _, answer = ask(server, "/v1/chat/completions", body | {"cache": "elsewhere:table=/etc/passwd"})
        assert (code, answer["error"]["param"]) == (403, "cache")
        assert "may not name a file" in answer["error"]["message"]
        listed = {each["id"]: each["object"] for each in ask(server, "/v1/methods")[2]["data"]}
        assert listed["elsewhere"] == listed["zipvl"] == "cache_policy"
        assert listed["greedy"] == "method"
    finally:
        server.stop()


def test_what_runs_under_no_policy_is_refused_by_name(server):
    for method, says in (("hydragen:n=2", "hydragen does not run under a cache policy"), ("zipvl", "itself")):
        body = {"model": "tiny", "messages": HELLO, "temperature": 1, "method": method, "cache": "zipvl"}
        code, _, answer = ask(server, "/v1/chat/completions", body)
        assert code == 400
        assert says in answer["error"]["message"]


def test_the_document_has_the_field(server):
    schemas = ask(server, "/openapi.json")[2]["components"]["schemas"]
    for name in ("ChatRequest", "CompletionRequest", "ResponseRequest"):
        assert "zipvl" in schemas[name]["properties"]["cache"]["description"]


METHODS = [
    {"temperature": 0.0},
    {"temperature": 0.9},
    {"method": "lookup", "temperature": 0.0},
    {"method": "best_of:n=2", "temperature": 0.9},
    {"method": "beam:width=2", "temperature": 0.0},
]
POLICIES = [None, "zipvl:tau=0.8,every=4", "zipvl:mode=evict,tau=0.7", None, "zipvl:tau=0.9,bits=8x4,full_first=1"]


def test_fifty_requests_of_all_kinds_at_once_are_those_alone_and_leave_nothing(checkpoint, tmp_path_factory):
    """Methods, policies and images in any mix: the texts of the engine alone, and a cache as empty as before."""
    folder = tmp_path_factory.mktemp("mixed") / "llava"
    llava(folder)
    server = start({"llava": folder, "tiny": checkpoint})
    images = pictures()
    mixed = list(itertools.islice(itertools.cycle(itertools.product(METHODS, POLICIES)), 50))
    wishes = []
    for number, (method, policy) in enumerate(mixed):
        sees = number % 2 == 0
        image = images[number % len(images)]
        text = f"Tell me of number {number}, " + "and so on " * (number % 3)
        wishes.append(
            {
                "model": "llava" if sees else "tiny", "image": image if sees else None, "text": text, "seed": number,
                "cache": policy, **method,
            }
        )  # fmt: skip

    async def everything():
        async with openai.AsyncOpenAI(
            base_url=f"{server.url}/v1", api_key="none", max_retries=0, timeout=300
        ) as client:

            async def one(wish):
                pictured = [] if wish["image"] is None else [url(wish["image"])]
                extra = {name: wish[name] for name in ("method", "cache") if wish.get(name) is not None}
                answer = await client.chat.completions.create(
                    model=wish["model"], messages=asked(*pictured, text=wish["text"]), seed=wish["seed"],
                    temperature=wish["temperature"], max_completion_tokens=8, extra_body=extra,
                )  # fmt: skip
                return answer.choices[0].message.content

            return await asyncio.gather(*map(one, wishes))

    try:
        texts = asyncio.run(everything())
        assert server.idle()
        server.engine.clear()
        for worker in server.engine.models:
            assert (worker.cache.in_use, worker.cache.stored_bytes, worker.cache.bytes()) == (0, 0, 0)
        for wish, text in zip(wishes, texts, strict=True):
            lm = server.service.models.find(wish["model"]).lm
            alone = lm.generate(
                wish["text"], images=[] if wish["image"] is None else [wish["image"]], method=wish.get("method"),
                cache=wish["cache"], seed=wish["seed"], temperature=wish["temperature"], max_tokens=8,
            )  # fmt: skip
            assert text == alone.text, wish
    finally:
        server.stop()
