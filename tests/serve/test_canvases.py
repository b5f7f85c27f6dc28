"""Models that fill masks, in one engine with those that write from left to right."""

from __future__ import annotations

import asyncio

import openai
import pytest
from playwright.sync_api import expect, sync_playwright
from serve.running import start
from serve.test_serve_load import ask_all
from viewer.browser import launch

from outlay.models.chat import ChatTemplate

PHRASES = "exact-phrase"


@pytest.fixture(scope="module")
def both(checkpoint):
    running = start({"tiny": checkpoint, "phrases": PHRASES}, keep_alive=0.2)
    tokenizer = running.service.models.find("phrases").lm.model.tokenizer
    tokenizer.template = ChatTemplate("{% for message in messages %}{{ message.content }}{% endfor %}", {})
    yield running
    running.stop()


def completions(**given):
    return {"model": "phrases", "prompt": "^", "max_tokens": 32, "temperature": 1.0} | given


def test_a_canvas_and_texts_share_an_engine_and_each_is_as_it_is_alone(both):
    chats = [
        {"model": "tiny", "messages": [{"role": "user", "content": f"Tell me of {number}"}], "seed": number,
         "max_completion_tokens": 16, "temperature": 1.0, "extra_body": {"method": "lookup"}}
        for number in range(4)
    ]  # fmt: skip
    ways = ["threshold", "threshold:tau=0.5", "factor", "llada"]

    async def everything():
        async with openai.AsyncOpenAI(base_url=f"{both.url}/v1", api_key="none", max_retries=0) as client:
            asked = [
                client.completions.create(**completions(seed=seed, extra_body={"method": way}))
                for seed, way in enumerate(ways)
            ]
            return await asyncio.gather(ask_all(both.url, chats), *asked)

    texts, *canvases = asyncio.run(everything())
    tiny, phrases = (both.service.models.find(name).lm for name in ("tiny", "phrases"))
    assert tiny.engine is phrases.engine
    for text, wish in zip(texts, chats, strict=True):
        alone = tiny.generate(wish["messages"], method="lookup", seed=wish["seed"], max_tokens=16, temperature=1.0)
        assert text == alone.text
    for seed, (way, canvas) in enumerate(zip(ways, canvases, strict=True)):
        alone = phrases.generate("^", chat=False, method=way, seed=seed, max_tokens=32, temperature=1.0)
        assert canvas.choices[0].text == alone.text
        assert canvas.outlay["ledger"]["rounds"] == alone.ledger.rounds


def test_a_canvas_is_streamed_as_far_as_it_has_no_gap_and_its_own_method_is_the_default(both):
    client = openai.OpenAI(base_url=f"{both.url}/v1", api_key="none", max_retries=0)
    whole = client.completions.create(**completions(seed=3))
    pieces = list(client.completions.create(**completions(seed=3), stream=True))
    assert "".join(piece.choices[0].text for piece in pieces if piece.choices) == whole.choices[0].text
    assert whole.outlay["method"].startswith("threshold")
    assert both.idle()


def test_a_stream_tells_what_each_round_filled_where_it_is_asked_to(both):
    client = openai.OpenAI(base_url=f"{both.url}/v1", api_key="none", max_retries=0)
    pieces = list(
        client.completions.create(**completions(seed=3), stream=True, stream_options={"include_outlay": True})
    )
    told = [piece.outlay for piece in pieces if piece.choices and "filled" in (getattr(piece, "outlay", None) or {})]
    cells = {int(place): text for each in told for place, text in each["filled"].items()}
    text = "".join(piece.choices[0].text for piece in pieces if piece.choices)
    assert [each["round"] for each in told] == list(range(1, pieces[-1].outlay["ledger"]["rounds"] + 1))
    assert "".join(cells[place] for place in sorted(cells)).startswith(text)
    plain = client.completions.create(**completions(seed=3), stream=True)
    assert not any("filled" in (getattr(piece, "outlay", None) or {}) for piece in plain)


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_the_page_shows_a_canvas_that_fills(both, theme):
    with sync_playwright() as playwright:
        browser = launch(playwright)
        page = browser.new_page(color_scheme=theme)
        page.goto(both.url)
        page.locator("html[data-ready]").wait_for(state="attached")
        page.select_option("#model", "phrases")
        page.locator("#way-a select").first.select_option("threshold")
        page.locator("#max-tokens").evaluate("(field) => field.value = 24")
        page.locator("#prompt").fill("^")
        page.keyboard.press("Enter")
        expect(page.locator("#again")).to_be_visible(timeout=30_000)
        cells = page.locator(".answer .cells")
        assert page.locator(".answer .cells .token").count() == 24
        assert cells.text_content().startswith(page.locator(".answer .text").text_content())
        assert "24 of 24 positions filled" in cells.get_attribute("aria-label")
        browser.close()


def test_a_method_that_writes_from_left_to_right_is_refused_for_a_canvas(both):
    client = openai.OpenAI(base_url=f"{both.url}/v1", api_key="none", max_retries=0)
    with pytest.raises(openai.BadRequestError) as error:
        client.completions.create(**completions(extra_body={"method": "beam"}))
    assert "phrases" in str(error.value) or "masks" in str(error.value)
    with pytest.raises(openai.BadRequestError):
        client.completions.create(model="tiny", prompt="x", extra_body={"method": "threshold"})
