"""`outlay serve`: an OpenAI-compatible server, and a page to try it on."""

from __future__ import annotations

import argparse
import os
import warnings
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from outlay.cli import terminal
from outlay.cli.arguments import number, one_of
from outlay.errors import FailureError, OutlayWarning, UsageError
from outlay.models.load import DTYPES
from outlay.tree.cache import KV_DTYPES

if TYPE_CHECKING:
    from outlay.engine.submission import DraftSource
    from outlay.lm import LM
    from outlay.serve.hosted import Hosted, Models
    from outlay.serve.settings import Settings

DESCRIPTION = "Serves models with OpenAI's API: any method, draft and budget in any request, and a page at `/`."
EXAMPLES = """examples:
  outlay serve
  outlay serve small=smollm2-135m ~/models/Qwen3-0.6B --draft lookup
  outlay serve --scorer good=python:score.py --scorer ~/models/my-prm
  outlay serve --host 0.0.0.0 --keys keys.txt
  curl http://127.0.0.1:8000/v1/chat/completions -H 'content-type: application/json' \\
    -d '{"model": "smollm2-135m", "method": "lookup", "messages": [{"role": "user", "content": "Hello"}]}'
"""
KEYS_VARIABLE = "OUTLAY_API_KEYS"
ALWAYS = ("lookup", "head")  # drafts that are offered wherever they can be had
OWN_SCORER = "self"  # which costs nothing and is always offered


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the command's options to `parser`."""
    parser.add_argument(
        "models", nargs="*", metavar="[NAME=]MODEL", help="alias, folder, .gguf file or hub id (default: smollm2-135m)"
    )
    what = parser.add_argument_group("models")
    what.add_argument("--draft", action="append", default=[], metavar="[NAME=]D",
                      help="a draft for the models that it fits, as `outlay run` takes it; repeatable")  # fmt: skip
    what.add_argument("--scorer", action="append", default=[], metavar="[NAME=]S",
                      help="what rates texts for searches, as `outlay run` takes it; repeatable")  # fmt: skip
    what.add_argument("--method", default="auto", metavar="M", help="of requests that name none (default: auto)")
    what.add_argument("--allow", action="append", default=[], metavar="M",
                      help="turn on a method that runs code or is another package's; repeatable")  # fmt: skip
    what.add_argument(
        "--closing-words", metavar="TEXT", help="what ends reasoning whose thinking_token_budget is used up"
    )
    what.add_argument("--dtype", type=one_of(DTYPES), default="auto", metavar="D", help=" ".join(DTYPES))
    what.add_argument("--kv-dtype", type=one_of(("auto", *KV_DTYPES)), default="auto", metavar="D",
                      help="how keys and values are held: auto " + " ".join(KV_DTYPES))  # fmt: skip
    what.add_argument("--cache-tokens", type=number(1, whole=True), metavar="N",
                      help="tokens whose keys and values each model holds")  # fmt: skip
    what.add_argument("--device", default="cpu", metavar="D", help="a device of torch (default: cpu)")
    what.add_argument("--threads", type=number(1, whole=True), metavar="N", help="threads to compute with")

    where = parser.add_argument_group("access")
    where.add_argument("--host", default="127.0.0.1", metavar="H", help="address to listen on (default: 127.0.0.1)")
    where.add_argument(
        "--port", type=number(0, most=65535, whole=True), default=8000, metavar="N", help="(default: 8000)"
    )
    where.add_argument("--keys", type=Path, metavar="FILE",
                       help=f"API keys, a line each: NAME:KEY or KEY; or in the variable {KEYS_VARIABLE}")  # fmt: skip
    where.add_argument("--no-keys", action="store_true", help="let anyone in who reaches the server")
    where.add_argument("--name", action="append", default=[], metavar="HOST",
                       help="a name that a proxy on this machine knows the server by; repeatable")  # fmt: skip
    where.add_argument("--no-page", action="store_true", help="serve no page at `/`")

    limits = parser.add_argument_group("limits")
    for name, help in (
        ("max-tokens", "new tokens of a request"), ("prompt-tokens", "tokens of a prompt"),
        ("choices", "texts of a request"), ("body-bytes", "bytes of a request's body"),
        ("running", "texts that are worked on at a time"), ("waiting", "requests that wait"),
        ("waiting-per-key", "requests of one API key that wait"),
    ):  # fmt: skip
        limits.add_argument(f"--{name}", type=number(1, whole=True), metavar="N", help=f"{help}, at most")
    limits.add_argument(
        "--audio-seconds", type=number(above=0), metavar="S", help="seconds of a recording, at most (1800)"
    )
    limits.add_argument(
        "--seconds", type=number(above=0), metavar="S", help="from a request's arrival to its end, at most"
    )
    limits.add_argument("--drain-seconds", type=number(0), metavar="S",
                        help="for running requests after SIGTERM (default: 30)")  # fmt: skip
    limits.add_argument("--log-prompts", action="store_true", help="write prompts and texts into the log")
    limits.add_argument("--no-warm-up", action="store_true", help="measure and try nothing before the server is ready")


def run(args: argparse.Namespace) -> int:
    """Runs the command; returns the exit status."""
    try:
        from outlay.serve.app import Service
        from outlay.serve.server import serve
    except ModuleNotFoundError as error:
        if error.name in ("fastapi", "uvicorn", "prometheus_client", "starlette", "pydantic"):
            raise FailureError(f"outlay serve needs {error.name}: pip install 'outlay[serve]'") from error
        raise
    from outlay.serve.log import Log

    settings = settings_of(args)
    warnings.simplefilter("ignore", OutlayWarning)  # of what clients wrote, which is not for the log
    with terminal.Progress(quiet=False) as progress:
        models = load(args, settings, progress)
    return serve(Service(models, settings, Log()))


def settings_of(args: argparse.Namespace) -> Settings:
    """Returns the server's settings. Raises `UsageError` for options that don't go together."""
    from outlay.serve.errors import ApiError
    from outlay.serve.hosted import parse_method
    from outlay.serve.settings import Limits, Queue, Settings

    keys = _keys(args.keys)
    try:
        parse_method(args.method, args.allow)
    except ApiError as error:
        raise UsageError(error.message) from None
    chosen: dict[str, Any] = {"closing_words": args.closing_words, "drain_seconds": args.drain_seconds}
    settings = Settings(
        host=args.host,
        port=args.port,
        keys=keys,
        hosts=tuple(name.lower() for name in args.name),
        limits=_given(args, Limits),
        queue=_given(args, Queue),
        method=args.method,
        allowed=tuple(args.allow),
        warm_up=not args.no_warm_up,
        log_prompts=args.log_prompts,
        page=not args.no_page,
        **{name: value for name, value in chosen.items() if value is not None},
    )
    if not settings.loopback and not keys and not args.no_keys:
        raise UsageError(f"others can reach {args.host}: give API keys with --keys FILE, or --no-keys to let anyone in")
    return settings


def load(args: argparse.Namespace, settings: Settings, progress: Any) -> Models:
    """Loads the models into one engine, their drafts, and scorers, which rate the texts of any model."""
    import outlay
    from outlay.lm import DEFAULT_MODEL
    from outlay.serve.hosted import Hosted, Models

    loaded: list[tuple[str, LM]] = []
    for given in args.models or [DEFAULT_MODEL]:
        name, source = _named(given)
        how: dict[str, Any] = {
            "dtype": args.dtype,
            "device": args.device,
            "threads": args.threads,
            "progress": progress,
        }
        if loaded:
            how["engine"] = loaded[0][1].engine
        else:
            how |= {"cache_tokens": args.cache_tokens, "kv_dtype": args.kv_dtype, "max_runs": settings.queue.running}
        lm = outlay.load(source, **how)
        loaded.append((name or lm.name, lm))
    names = [name for name, _ in loaded]
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise UsageError(f"two models are called {twice!r}; name one of them otherwise: NAME=MODEL")
    scorers = _scorers(loaded[0][1], args.scorer)
    hosted = [Hosted(name, lm, _drafts(lm, args.draft), scorers) for name, lm in loaded]
    _refuse_useless(args.draft, hosted)
    return Models(hosted, loaded[0][1].engine, settings.allowed)


def _drafts(lm: LM, wanted: Sequence[str]) -> dict[str, DraftSource]:
    """Returns the drafts that fit a model, by the names that requests use."""
    found: dict[str, DraftSource] = {}
    for given in [*ALWAYS, *wanted]:
        name, source = _named(given)
        try:
            draft = lm.draft(source)
        except UsageError:
            continue  # it is another model's, or there is none of its kind
        if draft is not None:
            found[name or _short(source)] = draft
    return found


def _scorers(lm: LM, wanted: Sequence[str]) -> dict[str, Any]:
    """Returns the scorers by the names that requests use. Raises `UsageError` for two of one name."""
    found: dict[str, Any] = {OWN_SCORER: lm.scorer(OWN_SCORER)}
    for given in wanted:
        name, source = _named(given, "SCORER")
        name = name or _short(source.removeprefix("python:").partition(":")[0]).removesuffix(".py")
        if name in found:
            raise UsageError(f"two scorers are called {name!r}; name one of them otherwise: NAME=SCORER")
        found[name] = lm.scorer(source)
    return found


def _refuse_useless(wanted: Sequence[str], hosted: Sequence[Hosted]) -> None:
    """Raises `UsageError` for a draft that fits no model, with the reason that the first model gives."""
    for given in wanted:
        name, source = _named(given)
        if not any((name or _short(source)) in each.drafts for each in hosted):
            hosted[0].lm.draft(source)


def _named(given: str, what: str = "MODEL") -> tuple[str, str]:
    """Parts NAME=SOURCE; the name is empty where none was given, as with a path or with options behind a colon."""
    name, equals, source = given.partition("=")
    if not equals or "/" in name or ":" in name:
        return "", given
    if not name or not source:
        raise UsageError(f"{given!r} must be NAME={what}, both with some text")
    return name, source


def _short(source: str) -> str:
    """The name of a draft or scorer that was given none: a file's or folder's own, without the folders above it."""
    return Path(source).name.removesuffix(".safetensors").removesuffix(".gguf") if "/" in source else source


def _keys(file: Path | None) -> dict[str, str]:
    """Returns the API keys by name. Raises `UsageError` for a file that can't be read or holds none."""
    if file is None:
        text = os.environ.get(KEYS_VARIABLE, "").replace(",", "\n")
    else:
        try:
            text = file.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise UsageError(f"can't read the API keys in {file}: {error}") from error
    lines = [line.strip() for line in text.splitlines() if line.strip() and not line.startswith("#")]
    keys = {}
    for place, line in enumerate(lines, 1):
        name, colon, key = line.partition(":")
        keys[name.strip() if colon else f"key {place}"] = key.strip() if colon else line
    if file is not None and not keys:
        raise UsageError(f"{file} holds no API key; write one a line: NAME:KEY")
    if any(not key for key in keys.values()):
        raise UsageError("an API key is empty; write NAME:KEY")
    return keys


def _given(args: argparse.Namespace, kind: type[Any]) -> Any:
    """Makes a dataclass of the options that were given; the others keep their defaults."""
    values = {each.name: getattr(args, each.name, None) for each in fields(kind)}
    return kind(**{name: value for name, value in values.items() if value is not None})
