"""The documentation holds together: links lead somewhere, every page is in the site, methods are described in full."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path

import pytest

from outlay import catalog
from outlay.bench.docs import MADE

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", *sorted(DOCS.rglob("*.md"))]
SECTIONS = ("**When to use it.**", "## Algorithm", "## Options", "## Measured", "## Limits")
FENCE = re.compile(r"^```.*?^```$", re.DOTALL | re.MULTILINE)
LINK = re.compile(r"\]\((?P<target>[^)#\s]*)(#(?P<anchor>[^)\s]+))?\)")
OPTION = re.compile(r"^- `(?P<name>\w+)=(?P<default>[^`]+)`: ", re.MULTILINE)


@pytest.fixture(scope="module")
def site():
    """The hooks of the site, which lie in no package."""
    spec = importlib.util.spec_from_file_location("build_site", DOCS / "build_site.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def name(page):
    return str(page.relative_to(ROOT))


def anchors(page):
    """The anchors of a page's headings, as GitHub and the site make them."""
    headings = re.findall(r"^#+ (.+)$", FENCE.sub("", page.read_text()), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in headings}


def dead_links(page):
    """Links of a page to files and headings that are not there."""
    for link in LINK.finditer(FENCE.sub("", page.read_text())):
        if "://" in link["target"]:
            continue
        target = page.parent / link["target"] if link["target"] else page
        if not target.exists() or (link["anchor"] and link["anchor"] not in anchors(target)):
            yield link[0][1:]


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_links_lead_to_files_and_headings_that_exist(page):
    assert list(dead_links(page)) == []


def test_a_dead_link_and_a_dead_anchor_are_found(tmp_path):
    page = tmp_path / "page.md"
    page.write_text("# A page\n\n[a](page.md#a-page) [b](#a-page) [c](gone.md) [d](page.md#gone) [e](#gone)\n")
    assert list(dead_links(page)) == ["(gone.md)", "(page.md#gone)", "(#gone)"]


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_lines_are_at_most_140_characters(page):
    lines = MADE.sub("", page.read_text()).splitlines()
    assert [line for line in lines if len(line) > 140] == []


def test_every_page_is_in_the_site_and_its_navigation_names_no_other():
    named = re.findall(r"[ :]([\w/-]+\.md)$", (ROOT / "mkdocs.yml").read_text(), re.MULTILINE)
    pages = {str(page.relative_to(DOCS)) for page in DOCS.rglob("*.md")}
    assert {page for page in named if not page.startswith("repository/")} - {"index.md"} == pages
    assert len(named) == len(set(named))


def test_the_lists_of_methods_are_those_of_the_catalogue(site):
    for page, folder in site.LISTS.items():
        text = (ROOT / page).read_text()
        assert site.with_list(text, folder) == text, f"{page} is out of date: run python docs/build_site.py"


@pytest.mark.parametrize("method", catalog.entries())
def test_a_method_has_a_page_of_the_usual_sections(method):
    text = (DOCS / "methods" / f"{method}.md").read_text()
    assert text.startswith(f"# {method}\n")
    places = [text.index(section) for section in SECTIONS]
    assert places == sorted(places)
    command = catalog.find(method).about.command
    assert command in text if command else re.search(rf"outlay run .*--method {method}\b", text) or method == "auto"


@pytest.mark.parametrize("method", catalog.entries())
def test_the_page_of_a_method_describes_each_option_with_its_default(method):
    described = OPTION.findall((DOCS / "methods" / f"{method}.md").read_text())
    assert described == [(option.name, option.default) for option in catalog.options(catalog.find(method))]


def test_the_reference_names_every_public_name(site):
    import outlay

    named = re.findall(r"^::: [\w.]+\.(\w+)$", site.reference("api") + "\n" + site.reference("methods"), re.MULTILINE)
    assert sorted(named) == sorted(outlay.__all__)


def test_the_reference_shows_the_help_of_every_command(site):
    from outlay.cli import COMMANDS

    shown = site.reference("commands")
    for command in COMMANDS:
        assert f"## outlay {command}\n" in shown
        assert f"usage: outlay {command}" in shown
