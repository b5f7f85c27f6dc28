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
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mkdocs.config.defaults import MkDocsConfig
    from mkdocs.structure.files import Files
    from mkdocs.structure.pages import Page

    from outlay import About

ROOT = Path(__file__).parents[1]
DOCS = "docs/"
HOME, HOME_SOURCE = "index.md", "README.md"
COPIES = "repository/"  # where the site has the files outside of this folder
LISTS = {"README.md": "docs/methods/", "docs/methods/index.md": ""}  # pages that list the methods, and where these lie
LIST = re.compile(r"(?<=<!-- methods -->\n).*?(?=<!-- end of methods -->)", re.DOTALL)
LINK = re.compile(r"(?<=\]\()(?P<target>[^)#\s]+)(?=[)#])")
REFERENCE = re.compile(r"<!-- reference: (?P<what>\w+) -->")
METHODS = ("outlay.decode", "outlay.diffuse")
OURS = (*METHODS, "outlay.attend", "outlay.vision", "outlay.codec")


# The catalogue, as a list of pages.


def method_list(folder: str) -> str:
    """Returns the catalogue as a Markdown table; pages are linked in `folder`, which ends with "/" or is empty."""
    from outlay import catalog

    ours = [item for item in catalog.entries().items() if item[1].__module__.startswith(OURS)]
    rows = [
        f"| [`{name}`]({folder}{name}.md) | {method.about.summary} | {method.about.family} | "
        f"{_lossless(method.about)} |\n"
        for name, method in sorted(ours, key=lambda item: (item[1].about.family, item[0]))
    ]
    return "| method | what it does | family | lossless |\n| --- | --- | --- | --- |\n" + "".join(rows)


def _lossless(about: About) -> str:
    return ("yes" if about.exact else "no") if about.task == "text" else ""


def with_list(text: str, folder: str) -> str:
    """Returns a page with its list of methods made anew."""
    return LIST.sub(lambda _: method_list(folder), text)


# The reference, made from the code.


def public_names() -> dict[str, str]:
    """Returns the public names of the package with the modules that define them, in the order of `__init__`."""
    tree = ast.parse((ROOT / "src" / "outlay" / "__init__.py").read_text())
    blocks = (node for node in tree.body if isinstance(node, ast.If))
    imports = (node for block in blocks for node in block.body if isinstance(node, ast.ImportFrom))
    return {alias.name: str(node.module) for node in imports for alias in node.names}


def reference(what: str) -> str:
    """Returns one part of the reference: "methods", "api" or "commands"."""
    if what == "commands":
        return "\n".join(_commands())
    wanted = {
        name: module for name, module in public_names().items() if module.startswith(METHODS) == (what == "methods")
    }
    order = sorted(wanted, key=str.lower) if what == "methods" else reversed(wanted)  # `load` first
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

    files.append(File.generated(config, HOME, content=(ROOT / HOME_SOURCE).read_text()))
    texts = [(_source(page.src_uri), page.content_string) for page in files.documentation_pages()]
    known = set[str]()
    while texts:
        source, text = texts.pop()
        for path in set(_linked(source, text)) - known:
            known.add(path)
            if not path.startswith(DOCS):
                content = (ROOT / path).read_text()
                files.append(File.generated(config, _place(path), content=content))
                texts += [(path, content)] if path.endswith(".md") else []
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Fills in the reference, and leads links between files of the repository to their places in the site."""
    if page.is_homepage:
        page.meta["hide"] = ["navigation"]
    source, folder = _source(page.file.src_uri), posixpath.dirname(page.file.src_uri)

    def led(link: re.Match[str]) -> str:
        target = link["target"]
        return posixpath.relpath(_place(_path(source, target)), folder or ".") if _local(target) else target

    return REFERENCE.sub(lambda mark: reference(mark["what"]), LINK.sub(led, markdown))


def _source(page: str) -> str:
    """Returns the path in the repository of the file that a page shows."""
    if page == HOME:
        return HOME_SOURCE
    return page.removeprefix(COPIES) if page.startswith(COPIES) else DOCS + page


def _place(path: str) -> str:
    """Returns the place in the site of a file of the repository."""
    if path == HOME_SOURCE:
        return HOME
    return path.removeprefix(DOCS) if path.startswith(DOCS) else COPIES + path


def _linked(source: str, text: str) -> Iterator[str]:
    """Yields the files that a file links to, all as paths in the repository."""
    return (_path(source, link["target"]) for link in LINK.finditer(text) if _local(link["target"]))


def _path(source: str, target: str) -> str:
    return posixpath.normpath(posixpath.join(posixpath.dirname(source), target))


def _local(target: str) -> bool:
    return "://" not in target


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
