"""The page in a real browser, in both themes, on wide and narrow screens, by keyboard alone."""

from __future__ import annotations

import time

import pytest
from playwright.sync_api import expect, sync_playwright
from viewer.browser import CONTRASTS, launch

from outlay.engine.worker import ModelWorker


@pytest.fixture(scope="module")
def browser():
    with sync_playwright() as playwright:
        chromium = launch(playwright)
        yield chromium
        chromium.close()


@pytest.fixture
def visit(browser, server):
    """Opens the page; afterwards nothing may have been complained of, and nothing loaded from elsewhere."""
    contexts, complaints, requests = [], [], []

    def open_page(theme="light", width=1280):
        context = browser.new_context(viewport={"width": width, "height": 860}, color_scheme=theme)
        contexts.append(context)
        page = context.new_page()
        page.on("console", lambda message: complaints.append(message.text))
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("request", lambda request: requests.append(request.url))
        page.goto(server.url)
        page.locator("html[data-ready]").wait_for(state="attached")
        return page

    yield open_page
    for context in contexts:
        context.close()
    refused = "400 (Bad Request)"  # the browser's own word on a request that the page tells of, too
    assert [complaint for complaint in complaints if refused not in complaint] == []
    assert all(url.startswith((server.url, "data:")) for url in requests)


def ask(page, text, tokens=24):
    page.locator("#max-tokens").evaluate(f"(field) => field.value = {tokens}")
    page.locator("#prompt").fill(text)
    page.keyboard.press("Enter")
    expect(page.locator("#again")).to_be_visible(timeout=30_000)


def test_a_chat_by_keyboard_goes_on_from_its_answers(visit, server):
    page = visit()
    page.locator("#way-a select").first.select_option("greedy")
    ask(page, "Hello there")
    lm = server.service.models.find("tiny").lm
    first = lm.generate([{"role": "user", "content": "Hello there"}], max_tokens=24).text
    assert page.locator(".answer .text").text_content() == first
    assert page.locator(".answer .spent dd").first.inner_text() == "24"
    ask(page, "And then?")
    messages = [("user", "Hello there"), ("assistant", first), ("user", "And then?")]
    second = lm.generate([{"role": role, "content": said} for role, said in messages], max_tokens=24).text
    assert page.locator(".answer .text").nth(1).text_content() == second
    assert "greedy is done" in page.locator("#status").text_content()


def test_two_methods_race_and_the_reader_chooses(visit):
    page = visit(theme="dark")
    page.locator("#race").check()
    page.locator("#way-a select").first.select_option("lookup")
    page.locator("#way-b select").first.select_option("sample")
    page.locator("#temperature").evaluate("(field) => field.value = 0.9")
    page.locator("#way-a select").first.select_option("aded")
    ask(page, "aaaa bbbb aaaa bbbb")
    assert page.locator(".answers.two .answer").count() == 2
    assert page.locator(".answer .state.first").count() == 1
    page.locator(".answer summary").first.click()
    assert "target passes" in page.locator(".answer table").first.inner_text()


def test_drafted_tokens_have_a_tint_and_a_legend(visit):
    page = visit()
    page.locator("#way-a select").first.select_option("speculative")
    page.locator("#way-a select").nth(1).select_option("same")
    ask(page, "Hello")
    tinted = page.locator(".answer .token.tinted")
    assert tinted.count() > 0
    assert tinted.first.evaluate("(span) => getComputedStyle(span).boxShadow") != "none"
    assert "the model’s own choice" in page.locator(".answer .legend").inner_text()


def test_a_budget_ends_an_answer_and_an_error_is_told(visit):
    page = visit()
    page.locator("#way-a select").first.select_option("greedy")
    page.locator("#way-a select").nth(2).select_option("target_passes")
    page.locator("#way-a input[type=number]").fill("3")
    ask(page, "Hello")
    assert "budget of target passes spent" in page.locator(".answer .state").inner_text()
    page.locator("#way-a select").first.select_option("rsd")
    ask(page, "Hello")
    assert "draft" in page.locator(".answer .state.failed").inner_text()


def test_a_search_is_offered_the_servers_scorers(visit):
    page = visit()
    method, scorer = page.locator("#way-a select").first, page.get_by_label("Scorer").first
    method.select_option("greedy")
    expect(scorer).to_be_hidden()
    method.select_option("best_of")
    assert scorer.locator("option").all_inner_texts() == ["none", "self", "letters", "prm"]
    method.select_option("step_beam")
    assert scorer.locator("option").all_inner_texts() == ["self", "letters", "prm"]
    scorer.select_option("letters")
    page.locator("#way-a input[type=text]").fill("n=4,width=2,step_tokens=4")
    page.locator("#temperature").evaluate("(field) => field.value = 0.9")
    ask(page, "Hello")
    page.locator(".answer summary").first.click()
    assert "scores" in page.locator(".answer table").first.inner_text()


def test_escape_stops_an_answer_and_its_run(visit, server, monkeypatch):
    advance = ModelWorker.advance

    def slowly(worker, requests):
        time.sleep(0.1)  # or a busy browser presses the key when the answer has ended
        return advance(worker, requests)

    monkeypatch.setattr(ModelWorker, "advance", slowly)
    page = visit()
    page.locator("#way-a select").first.select_option("greedy")
    page.locator("#max-tokens").evaluate("(field) => field.value = 4000")
    page.locator("#prompt").fill("Hello")
    page.keyboard.press("Enter")
    expect(page.locator(".answer .token").nth(3)).to_be_attached(timeout=30_000)
    page.keyboard.press("Escape")
    expect(page.locator(".answer .state")).to_have_text("stopped")
    assert server.idle(5)


@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("width", [360, 1280])
def test_nothing_is_wider_than_the_screen_and_every_field_has_a_name(visit, theme, width):
    page = visit(theme, width)
    if width < 860:
        page.locator("#fold > summary").click()
    page.locator("#race").check()
    page.locator("#way-a select").first.select_option("greedy")
    page.locator("#way-b select").first.select_option("greedy")
    ask(page, "Hello " * 20)
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    contrasts = page.evaluate(CONTRASTS)
    assert len(contrasts) >= 5
    assert [(round(ratio, 2), where) for ratio, where in contrasts if ratio < 4.5] == []
    for field in page.locator("select:visible, input:visible, textarea:visible, button:visible").all():
        assert field.evaluate(
            "(field) => (field.labels?.[0]?.innerText || field.ariaLabel || field.innerText || '').trim()"
        )
