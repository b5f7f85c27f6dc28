"""The browser of one module of tests, and the pages to look at: at their full size, and small ones."""

from __future__ import annotations

import pytest
from playwright.sync_api import sync_playwright
from viewer.browser import Look, launch, trace_page
from viewer.made_results import made_results
from viewer.made_traces import as_lines, drafted_run

from outlay.viewer.report import write_report


@pytest.fixture(scope="module")
def browser():
    with sync_playwright() as playwright:  # ends with this module: other tests have event loops of their own
        chromium = launch(playwright)
        yield chromium
        chromium.close()


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    """The pages at their full size: ten methods and 200 prompts, ten thousand nodes."""
    return written(tmp_path_factory.mktemp("large"), made_results(10, 200, 200), drafted_run(nodes=10_000))


@pytest.fixture(scope="module")
def results():
    return made_results(10, 30, 60)


@pytest.fixture(scope="module")
def small(tmp_path_factory, results):
    return written(tmp_path_factory.mktemp("small"), results, drafted_run(nodes=300))


def written(folder, results, events):
    """Writes both pages into a folder and returns their paths by name."""
    write_report(results, folder / "report.html")
    return {"report": folder / "report.html", "trace": trace_page(folder, as_lines(events))}


@pytest.fixture
def report(browser, small):
    with Look(browser, small["report"]) as look:
        yield look.page
        assert look.complaints == []


@pytest.fixture
def trace(browser, small):
    with Look(browser, small["trace"]) as look:
        yield look.page
        assert look.complaints == []
