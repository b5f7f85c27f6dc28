"""What the site adds to the pages in this folder, as hooks of mkdocs: the home page, which is the README, the reference
pages, which are made from the code, and the files of the repository that pages link to.

Run as a program it renews the list of methods in README.md and in docs/methods/index.md from the catalogue; with
`--check` it changes nothing and fails where a list is out of date.
"""

from __future__ import annotations

import ast
import contextlib
import io
import os
import posixpath
import re
import sys
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mkdocs.config.defaults import MkDocsConfig
    from mkdocs.structure.files import Files
    from mkdocs.structure.pages import Page

ROOT = Path(__file__).parents[1]
HOME = "index.md"
LISTS = {"README.md": "docs/methods/", "docs/methods/index.md": ""}  # pages that list the methods, and where these lie
LIST = re.compile(r"(?<=<!-- methods -->\n).*?(?=<!-- end of methods -->)", re.DOTALL)
LINK = re.compile(r"(?<=\]\()(?P<target>[^)#:\s]+)(?=[)#])")
REFERENCE = re.compile(r"<!-- reference: (?P<what>\w+) -->")
METHODS = "outlay.decode"


# The catalogue, as a list of pages.


def method_list(folder: str) -> str:
    """Returns the catalogue as a Markdown table; pages are linked in `folder`, which ends with "/" or is empty."""
    from outlay import catalog

    rows = [
        f"| [`{name}`]({folder}{name}.md) | {method.about.summary} | {method.about.spends} | "
        f"{'yes' if method.about.exact else 'no'} |\n"
        for name, method in catalog.methods().items()
        if method.__module__.startswith(METHODS)
    ]
    return "| method | what it does | spends | lossless |\n| --- | --- | --- | --- |\n" + "".join(rows)


def with_list(text: str, folder: str) -> str:
    """Returns a page with its list of methods made anew."""
    return LIST.sub(lambda _: method_list(folder), text)


# The reference, made from the code.


def public_names() -> dict[str, str]:
    """Returns the public names of the package with the modules that define them, in the order of `__init__.py`."""
    tree = ast.parse((ROOT / "src" / "outlay" / "__init__.py").read_text())
    blocks = (node for node in tree.body if isinstance(node, ast.If))
    imports = (node for block in blocks for node in block.body if isinstance(node, ast.ImportFrom))
    return {alias.name: str(node.module) for node in imports for alias in node.names}


def reference(what: str) -> str:
    """Returns one part of the reference: "methods", "api" or "commands"."""
    if what == "commands":
        return "\n".join(_commands())
    wanted = {name: module for name, module in public_names().items() if module.startswith(METHODS) == (what == "methods")}
    order = sorted(wanted, key=str.lower) if what == "methods" else list(wanted)
    return "\n\n".join(f"::: {wanted[name]}.{name}" for name in order)


def _commands() -> Iterator[str]:
    """Yields the help of every command under a heading."""
    from outlay.cli import COMMANDS

    os.environ["COLUMNS"] = "100"
    for name, purpose in COMMANDS.items():
        yield f"## outlay {name}\n\n{purpose[0].upper()}{purpose[1:]}.\n\n```text\n{_help(name)}\n```\n"


def _help(command: str) -> str:
    """Returns the help that a command prints."""
    main = import_module("outlay.cli").main
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        main([command, "--help"])
    return printed.getvalue().strip()


# Hooks of mkdocs.


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Adds the README as the home page, and each file of the repository that a page links to."""
    from mkdocs.structure.files import File

    files.append(File.generated(config, HOME, content=_home()))
    linked = {path for page in files.documentation_pages() for path in _outside(page.content_string, page.src_uri)}
    for path in sorted(linked):
        files.append(File.generated(config, _copied(path), content=_shown(path)))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Fills in the reference, and leads links out of this folder to the copies of the files."""
    folder = posixpath.dirname(page.file.src_uri)

    def led(link: re.Match[str]) -> str:
        path = _repository_path(link["target"], page.file.src_uri)
        return posixpath.relpath(_copied(path), folder or ".") if path else link["target"]

    return REFERENCE.sub(lambda mark: reference(mark["what"]), LINK.sub(led, markdown))


def _home() -> str:
    return LINK.sub(lambda link: link["target"].removeprefix("docs/"), (ROOT / "README.md").read_text()).replace(
        "](CONTRIBUTING.md)", "](../CONTRIBUTING.md)"
    ).replace("](CHANGELOG.md)", "](../CHANGELOG.md)").replace("](benchmarks/", "](../benchmarks/")


def _outside(text: str, page: str) -> Iterator[str]:
    """Yields the files outside of this folder that a page links to, as paths in the repository."""
    for link in LINK.finditer(text):
        if path := _repository_path(link["target"], page):
            yield path


def _repository_path(target: str, page: str) -> str:
    """Returns the path in the repository of a link's target, or nothing where it lies in this folder."""
    path = posixpath.normpath(posixpath.join("docs", posixpath.dirname(page), target))
    return "" if path.startswith("docs/") or path.startswith("..") else path


def _copied(path: str) -> str:
    """Returns where a file of the repository lies in the site: Markdown as a page, anything else as it is."""
    return f"repository/{path}"


def _shown(path: str) -> str | bytes:
    text: Any = (ROOT / path).read_text()
    return text


def main(words: list[str]) -> int:
    """Renews the lists of methods, or checks them; returns the exit status."""
    stale = []
    for name, folder in LISTS.items():
        page = ROOT / name
        text = page.read_text()
        fresh = with_list(text, folder)
        if fresh != text:
            stale.append(name)
            if "--check" not in words:
                page.write_text(fresh)
    for name in stale:
        print(f"{name}: the list of methods is out of date" if "--check" in words else f"renewed the list of {name}")
    return 1 if stale and "--check" in words else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
