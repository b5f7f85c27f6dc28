"""Makes the picture of the README: the trace page of a run that drafts, looked at in a headless Chromium."""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
from pathlib import Path

from playwright.sync_api import Browser, Playwright, sync_playwright

from outlay.cli import main as outlay

PROMPT = "Write a Python class Vector with the methods add, sub, mul and div."
PICTURE = Path(__file__).parent / "images" / "trace.png"
SIZE = {"width": 1200, "height": 780}
BROWSERS = ("chromium-headless-shell", "chromium", "chromium-browser", "google-chrome", "google-chrome-stable")


def main() -> int:
    """Runs the example with a trace, turns the trace into a page, and takes a picture of it."""
    with tempfile.TemporaryDirectory() as folder:
        trace, page = Path(folder, "run.jsonl"), Path(folder, "run.html")
        status = outlay(["run", PROMPT, "--max-tokens", "160", "--show-drafts", "--trace", str(trace)])
        status = status or outlay(["trace", str(trace), "--out", str(page)])
        if status == 0:
            with sync_playwright() as playwright:
                take(playwright, page)
    return status


def take(playwright: Playwright, page: Path) -> None:
    """Writes the picture of a page."""
    browser = launch(playwright)
    view = browser.new_page(viewport=SIZE, color_scheme="light")
    view.goto(page.as_uri())
    view.wait_for_timeout(1000)
    view.screenshot(path=PICTURE)
    browser.close()


def launch(playwright: Playwright) -> Browser:
    """Starts the Chromium that is installed, else Playwright's own."""
    path = next(filter(None, map(shutil.which, BROWSERS)), None)
    return playwright.chromium.launch(executable_path=path, args=["--no-sandbox"] if os.geteuid() == 0 else [])


if __name__ == "__main__":
    sys.exit(main())
