"""Searches over HTTP: a request names a scorer that the operator gave, and gets the text that the library writes."""

from __future__ import annotations

import asyncio
import itertools

import openai
import pytest
from serve.running import SCORERS, start
from serve.test_safety import ask

from outlay.cli.serve import _scorers
from outlay.errors import UsageError
from outlay.rewards.functions import FileScorer
from outlay.testing import tiny_lm

HELLO = [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "Hello there"}]
SEARCHES = (
    "astar:k=2,step_tokens=3", "astar:k=2,step_tokens=3,parallel=2,reopen=0", "particles:n=3,step_tokens=3",
    "step_beam:n=4,width=2,step_tokens=3", "step_beam:n=4,width=2,dvts=true,step=e,step_tokens=6",
    "best_of:n=3,by=score",
)  # fmt: skip
HOT = {"temperature": 1.0, "seed": 3}


def body_of(path, method, scorer, stream):
    """A request at one of the three endpoints, and how a text is read from its answer."""
    body = {"model": "tiny", "method": method, "scorer": scorer, "stream": stream, **HOT}
    if path == "completions":
        return body | {"prompt": "Hello there", "max_tokens": 12}
    if path == "responses":
        return body | {"input": HELLO, "max_output_tokens": 12}
    return body | {"messages": HELLO, "max_completion_tokens": 12}


async def texts_of(url, bodies):
    """The texts of requests that are sent together, by the official client."""
    async with openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0, timeout=60) as client:

        async def text_of(path, body):
            ours = {name: body.pop(name) for name in ("method", "scorer", "seed")}
            if path == "completions":
                answer = await client.completions.create(**body, extra_body=ours)
                if body["stream"]:
                    return "".join([chunk.choices[0].text async for chunk in answer])
                return answer.choices[0].text
            if path == "responses":
                answer = await client.responses.create(**body, extra_body=ours)
                if body["stream"]:
                    kind = "response.output_text.delta"
                    return "".join([event.delta async for event in answer if event.type == kind])
                return answer.output_text
            answer = await client.chat.completions.create(**body, extra_body=ours)
            if body["stream"]:
                return "".join([chunk.choices[0].delta.content or "" async for chunk in answer])
            return answer.choices[0].message.content

        return await asyncio.gather(*(text_of(path, dict(body)) for path, body in bodies))


def test_searches_in_any_mix_write_what_the_library_writes(server):
    asked = list(itertools.product(("chat", "completions", "responses"), SEARCHES, SCORERS, (False, True)))
    asked = asked[::5]  # each search, scorer, endpoint and way of sending, in many pairs
    texts = asyncio.run(texts_of(server.url, [(path, body_of(path, *rest)) for path, *rest in asked]))
    hosted = server.service.models.find("tiny")
    for text, (path, method, scorer, _) in zip(texts, asked, strict=True):
        prompt = "Hello there" if path == "completions" else HELLO
        alone = hosted.lm.generate(
            prompt, method=method, scorer=hosted.scorers[scorer], chat=path != "completions", max_tokens=12, **HOT
        )
        assert text == alone.text, (path, method, scorer)


def test_a_scorer_is_told_what_the_user_asked_last(checkpoint):
    heard = []

    def listening(prompt, texts):
        heard.append(prompt)
        return [0.5] * len(texts)

    server = start({"tiny": checkpoint}, scorers={"listening": listening})
    try:
        for path in ("chat", "completions", "responses"):
            body = body_of(path, "best_of:n=2,by=score", "listening", False)
            asyncio.run(texts_of(server.url, [(path, body)]))
        assert heard == ["Hello there"] * 3
        body = {"model": "tiny", "prompt": ["one", "two"], "n": 2, "method": "best_of:n=2,by=score", "max_tokens": 3}
        heard.clear()
        assert ask(server, "/v1/completions", body | {"scorer": "listening"})[0] == 200
        assert sorted(heard) == ["one", "one", "two", "two"]
    finally:
        server.stop()


def test_programs_are_run_where_the_operator_gave_tests_and_nowhere_else(checkpoint, tmp_path):
    (tmp_path / "public.py").write_text("assert True\n")
    lm = tiny_lm()
    given = _scorers(lm, [f"units=tests:{tmp_path / 'public.py'}"])
    server = start({"tiny": checkpoint}, scorers=given)
    try:
        body = {"model": "tiny", "messages": HELLO, "method": "pgtd:rollouts=3", "temperature": 0, "max_tokens": 4}
        code, _, answer = ask(server, "/v1/chat/completions", body | {"scorer": "units"})
        assert code == 200
        assert 1 <= answer["outlay"]["ledger"]["executions"] <= 3
        named = f"tests:{tmp_path / 'public.py'}"
        code, _, answer = ask(server, "/v1/chat/completions", body | {"scorer": named})
        assert (code, answer["error"]["code"]) == (400, "scorer_not_found")
    finally:
        server.stop()


def test_an_option_that_holds_a_model_may_name_one_that_is_served(checkpoint):
    server = start({"tiny": checkpoint, "aligned": checkpoint})
    try:
        body = {"model": "tiny", "messages": HELLO, "scorer": "letters", "max_tokens": 4, "temperature": 0}
        method = "transfer_q:alpha=0.1,topk=3,rollout_len=2"
        code, _, answer = ask(server, "/v1/chat/completions", body | {"method": f"{method},baseline=aligned"})
        assert code == 200
        hosted = server.service.models.find("tiny")
        alone = hosted.lm.generate(HELLO, method=method, scorer=hosted.scorers["letters"], max_tokens=4)
        assert answer["choices"][0]["message"]["content"] == alone.text
        assert answer["outlay"]["ledger"]["side_passes"] > 0
        code, _, answer = ask(server, "/v1/chat/completions", body | {"method": f"{method},baseline=/etc/passwd"})
        assert (code, answer["error"]["code"]) == (403, "file_refused")
    finally:
        server.stop()


def test_a_budget_of_scores_ends_a_search_with_the_best_so_far(server):
    body = {"model": "tiny", "messages": HELLO, "method": "astar:k=2,step_tokens=2", "scorer": "letters"} | HOT
    code, _, answer = ask(server, "/v1/chat/completions", body | {"budget": {"scores": 7}, "max_tokens": 60})
    assert code == 200
    assert answer["choices"][0]["finish_reason"] == "length"
    assert (answer["outlay"]["finish_reason"], answer["outlay"]["cap"]) == ("budget", "scores")
    assert answer["choices"][0]["message"]["content"]
    assert 0 < answer["outlay"]["ledger"]["scores"] <= 7


@pytest.mark.parametrize(
    ("method", "scorer", "says"),
    [
        ("astar", None, "astar needs a scorer; tiny has self, letters, prm"),
        ("astar", "leters", "did you mean 'letters'"),
        ("astar", "python:/etc/passwd", "it has self, letters, prm"),
        ("astar", "/etc/passwd", "it has self, letters, prm"),
        ("astar", "org/name:form=classifier", "it has self, letters, prm"),
        ("astar", "self:reduce=min", "it has self, letters, prm"),
        ("greedy", "self", "greedy takes no scorer"),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
def test_a_request_names_only_scorers_that_the_operator_gave(server, method, scorer, says, stream):
    body = {"model": "tiny", "messages": HELLO, "method": method, "temperature": 1, "stream": stream}
    code, _, answer = ask(server, "/v1/chat/completions", body | ({"scorer": scorer} if scorer else {}))
    assert code == 400
    assert says in answer["error"]["message"]
    assert answer["error"]["param"] == "scorer"


def test_what_there_is_is_listed(server):
    assert ask(server, "/v1/models/tiny")[2]["outlay"]["scorers"] == list(SCORERS)
    methods = {method["id"]: method for method in ask(server, "/v1/methods")[2]["data"]}
    assert methods["astar"]["needs"] == ["scorer"]
    assert "scorer" in methods["best_of"]["takes"]


def test_the_metrics_count_what_reward_models_read(server):
    body = {
        "model": "tiny",
        "messages": HELLO,
        "method": "best_of:n=2,by=score",
        "scorer": "prm",
        "max_tokens": 3,
    } | HOT
    ledger = ask(server, "/v1/chat/completions", body)[2]["outlay"]["ledger"]
    assert ledger["score_tokens"] > 0
    of_rewards = [line for line in ask(server, "/metrics")[2].splitlines() if 'role="score"' in line]
    rows = next(float(line.split()[-1]) for line in of_rewards if line.startswith("outlay_pass_rows_total"))
    assert rows >= ledger["score_tokens"]


def test_what_a_scorer_says_when_it_fails_stays_in_the_log(checkpoint):
    def breaks(prompt, texts):
        raise RuntimeError("/secret/path is not for clients")

    server = start({"tiny": checkpoint}, scorers={"breaks": breaks})
    try:
        body = {"model": "tiny", "messages": HELLO, "method": "best_of:n=2,by=score", "scorer": "breaks"} | HOT
        code, _, answer = ask(server, "/v1/chat/completions", body | {"max_tokens": 3})
        assert (code, answer["error"]["code"]) == (500, "scorer_failed")
        assert "secret" not in answer["error"]["message"]
        assert any("/secret/path" in line["error"] for line in server.lines("error"))
        assert server.idle()
    finally:
        server.stop()


def test_the_operator_names_scorers_on_the_command_line(tmp_path):
    from outlay.testing import tiny_lm

    file = tmp_path / "units.py"
    file.write_text("quick = True\ndef score(prompt, texts): return [0.5 for _ in texts]\n")
    lm = tiny_lm()
    found = _scorers(lm, [f"python:{file}", f"good=python:{file}", "worst=self:reduce=min"])
    assert list(found) == ["self", "units", "good", "worst"]
    assert isinstance(found["units"], FileScorer)
    assert found["worst"].reduce == "min"
    for given, says in (
        ([f"python:{file}"] * 2, "two scorers are called 'units'"),
        (["self:reduce=min"], "two scorers are called 'self'"),
        (["=self"], "NAME=SCORER"),
        ([f"python:{file}s"], "there is no scorer"),
    ):
        with pytest.raises(UsageError, match=says):
            _scorers(lm, given)
