"""The page at `/`: plain modules of ours, and the parts that it shares with the pages of traces and reports."""

from __future__ import annotations

import re
from importlib.resources import files

from fastapi import FastAPI
from starlette.responses import Response

from outlay.serve.errors import ApiError
from outlay.viewer.page import ASSETS

OWN = files("outlay.serve") / "assets"
SHARED = ("base.css", "base.js")
TYPES = {"js": "text/javascript", "css": "text/css", "html": "text/html"}
DECLARED = re.compile(r"^(?:function|const) ([\w$]+)", re.MULTILINE)


def add(app: FastAPI) -> None:
    """Adds the page's routes."""
    found = {
        file.name: file.read_text(encoding="utf-8") for file in OWN.iterdir() if file.name.rpartition(".")[2] in TYPES
    }
    found |= {name: (ASSETS / name).read_text(encoding="utf-8") for name in SHARED}
    found["base.js"] = as_module(found["base.js"])

    @app.get("/", include_in_schema=False)
    async def page() -> Response:
        return _file("serve.html", found["serve.html"])

    @app.get("/page/{name}", include_in_schema=False)
    async def part(name: str) -> Response:
        if name not in found:
            raise ApiError(404, f"the page has no part {name!r}", code="not_found")
        return _file(name, found[name])


def as_module(script: str) -> str:
    """Returns a script that declares names as a module that exports them."""
    return f"{script}\nexport {{ {', '.join(DECLARED.findall(script))} }};\n"


def _file(name: str, text: str) -> Response:
    return Response(text, media_type=TYPES[name.rpartition(".")[2]], headers={"cache-control": "no-cache"})
