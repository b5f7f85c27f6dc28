"""Both pages in a real browser, at their full size: in both themes, wide and narrow."""

from __future__ import annotations

import pytest
from viewer.browser import CONTRASTS, Look

VIEWS = [(theme, width) for theme in ("light", "dark") for width in (1280, 360)]
PAGES = ("report", "trace")


@pytest.mark.parametrize("name", PAGES)
@pytest.mark.parametrize(("theme", "width"), VIEWS)
def test_a_page_opens_without_a_complaint_a_request_or_a_sideways_scroll(browser, pages, name, theme, width):
    with Look(browser, pages[name], theme, width) as look:
        page = look.page
        for details in page.locator("details").all():
            details.locator("summary").first.click()
        assert look.complaints == []
        assert look.requests == [pages[name].as_uri()]
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        paper = page.evaluate("getComputedStyle(document.body).backgroundColor")
        assert (paper == "rgb(255, 255, 255)") == (theme == "light")


@pytest.mark.parametrize("name", PAGES)
@pytest.mark.parametrize("theme", ["light", "dark"])
def test_all_text_stands_out_from_what_is_behind_it(browser, small, name, theme):
    with Look(browser, small[name], theme) as look:
        for details in look.page.locator("details").all():
            details.locator("summary").first.click()
        contrasts = look.page.evaluate(CONTRASTS)
        assert len(contrasts) >= 5
        assert [(round(ratio, 2), where) for ratio, where in contrasts if ratio < 4.5] == []


@pytest.mark.parametrize("name", PAGES)
def test_a_page_is_small_and_ready_within_a_second(browser, pages, name):
    assert pages[name].stat().st_size < 5e6
    assert min(seconds_of_a_look(browser, pages[name]) for _ in range(3)) < 1  # of a machine that does more beside it


def seconds_of_a_look(browser, page):
    with Look(browser, page) as look:
        return look.seconds


def test_the_switch_turns_the_theme(report):
    before = report.evaluate("getComputedStyle(document.body).backgroundColor")
    report.click("#theme")
    assert report.evaluate("getComputedStyle(document.body).backgroundColor") != before
    report.click("#theme")
    assert report.evaluate("getComputedStyle(document.body).backgroundColor") == before
