"""A browser for the tests of the pages: Chromium without a window, whichever this machine has."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
from playwright.sync_api import Error

from outlay.viewer.trace_page import write_trace_page

NAMES = ("chromium-headless-shell", "chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
CONTRASTS = (Path(__file__).parent / "contrasts.js").read_text(encoding="utf-8")


def launch(playwright):
    """Starts the browser. Without one the tests are left out; they fail where OUTLAY_NEEDS_BROWSER is set, as in CI."""
    path = next(filter(None, map(shutil.which, NAMES)), None)  # None is Playwright's own
    as_root = ["--no-sandbox"] if os.geteuid() == 0 else []
    try:
        return playwright.chromium.launch(executable_path=path, args=as_root)
    except Error as error:
        if path is not None or os.environ.get("OUTLAY_NEEDS_BROWSER"):
            raise
        pytest.skip(f"there is no Chromium to look at pages with; `make browser` fetches one ({error.message[:80]})")


def trace_page(folder, lines):
    """Writes a trace and its page; returns the page's path."""
    (folder / "trace.jsonl").write_text(lines, encoding="utf-8")
    write_trace_page(folder / "trace.jsonl", folder / "trace.html")
    return folder / "trace.html"


class Look:
    """One page opened in one theme at one width, with all that went wrong noted."""

    def __init__(self, browser, path, theme="light", width=1280):
        self.context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=theme)
        self.page = self.context.new_page()
        self.complaints, self.requests = [], []
        self.page.on("console", lambda message: self.complaints.append(message.text))
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.on("request", lambda request: self.requests.append(request.url))
        self._devtools = self.context.new_cdp_session(self.page)
        self._devtools.send("Performance.enable", {"timeDomain": "threadTicks"})
        self.page.goto(path.as_uri())
        self.page.wait_for_selector("html[data-ready]", state="attached")  # a function would be evaluated: the CSP

    @property
    def seconds(self):
        """Seconds that the page's process has computed for so far: what else the machine does is not in them."""
        metrics = self._devtools.send("Performance.getMetrics")["metrics"]
        return next(metric["value"] for metric in metrics if metric["name"] == "ProcessTime")

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self.context.close()
