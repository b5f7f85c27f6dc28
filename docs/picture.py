"""Makes the pictures of traces: the page of a run that drafts, and the canvas of one that fills masks."""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
from pathlib import Path

from playwright.sync_api import Browser, Playwright, sync_playwright

from outlay.cli import main as outlay

PROMPT = "Write a Python class Vector with the methods add, sub, mul and div."
IMAGES = Path(__file__).parent / "images"
DRAFTED = ["run", PROMPT, "--max-tokens", "160", "--show-drafts"]
EXACT = ["--model", "exact-phrase:alpha=0.3", "--method", "ete"]
FILLED = ["run", "^", *EXACT, "--max-tokens", "64", "--temperature", "1"]
SIZE = {"width": 1200, "height": 780}
BROWSERS = ("chromium-headless-shell", "chromium", "chromium-browser", "google-chrome", "google-chrome-stable")


def main() -> int:
    """Runs both examples with a trace, turns the traces into pages, and takes a picture of each."""
    status = picture(DRAFTED, IMAGES / "trace.png")
    return status or picture(FILLED, IMAGES / "canvas.png", "#canvas-part")


def picture(command: list[str], image: Path, part: str = "") -> int:
    """Writes the picture of the trace page of a command, or of the `part` of it that a selector names."""
    with tempfile.TemporaryDirectory() as folder:
        trace, page = Path(folder, "run.jsonl"), Path(folder, "run.html")
        status = outlay([*command, "--trace", str(trace)]) or outlay(["trace", str(trace), "--out", str(page)])
        if status == 0:
            with sync_playwright() as playwright:
                take(playwright, page, image, part)
    return status


def take(playwright: Playwright, page: Path, image: Path, part: str) -> None:
    """Writes the picture of a page, or of a part of it, whose first filled square is pointed at."""
    browser = launch(playwright)
    view = browser.new_page(viewport=SIZE, color_scheme="light")
    view.goto(page.as_uri())
    view.wait_for_timeout(1000)
    if part:
        view.locator("#canvas").press("Home")
        view.locator(part).screenshot(path=image)
    else:
        view.screenshot(path=image)
    browser.close()


def launch(playwright: Playwright) -> Browser:
    """Starts the Chromium that is installed, else Playwright's own."""
    path = next(filter(None, map(shutil.which, BROWSERS)), None)
    return playwright.chromium.launch(executable_path=path, args=["--no-sandbox"] if os.geteuid() == 0 else [])


if __name__ == "__main__":
    sys.exit(main())
