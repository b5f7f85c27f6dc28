"""The `outlay` command: one module here for each of its commands, imported only when it is asked for.

A command's module has a `DESCRIPTION`, `EXAMPLES`, `add_arguments(parser)` and `run(args)`, which returns the exit
status: 0, 1 for what failed, 2 for what the user typed, 128 + the signal for what a signal ended.
"""

from __future__ import annotations

import io
import os
import signal
import sys
import traceback
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib import import_module
from types import ModuleType
from typing import Any

from outlay.cli import terminal
from outlay.cli.arguments import Parser
from outlay.cli.interrupt import Terminated, terminable
from outlay.errors import OutlayError, OutlayWarning, UsageError, nearest

COMMANDS = {
    "run": "answer a prompt and show what it cost",
    "transcribe": "what is said in recordings",
    "serve": "an OpenAI-compatible server, and a page to try it on",
    "trace": "turn the trace of a run into a page to look at",
    "compare": "the same prompts under several methods, side by side",
    "constraint": "what of a constraint is masked, what only checked, and an example",
    "methods": "the catalogue of methods; one method in detail",
    "models": "what can be loaded, what is on disk, what runs here",
    "pull": "fetch a model",
    "train": "make a draft head, prompt tokens or a table for a model",
    "shrink": "weights made smaller: a folder of two to eight bits a weight",
    "batch": "buckets and batch sizes for examples of two lengths",
    "plan": "predict what a draft would gain, and which to train",
    "replay": "make the logits of a receipt again, bit for bit",
    "reveal": "the message that a text of the method mecb carries",
    "couple": "two distributions coupled through a code of few bits",
    "mcg": "the Markov coding game: messages in a player's actions",
    "compress": "files made smaller with a model, or xz",
    "decompress": "the bytes that were compressed",
    "inspect": "what is in a compressed file",
    "codec": "the channels of a learned picture codec, ranked and ordered",
    "vision": "what networks that see cost, and how to change their layers",
    "diagnose": "what each layer of a network does: coding rate, sparsity",
    "bench": "run a benchmark",
    "lm_eval": "run the tasks of the lm_eval package",
}
CLOSED_PIPE = 128 + 13  # what a shell reports for a program that SIGPIPE ended


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command in `argv` (by default what the user typed) and returns its exit status. Raises nothing."""
    words = list(sys.argv[1:] if argv is None else argv)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # a terminal that lacks a character must not end a run
    try:
        with terminable(), _warnings_in_one_line():
            try:
                status = _dispatch(words)
            except SystemExit:  # argparse has shown a help
                status = 0
            sys.stdout.flush()
            return status
    except BrokenPipeError:
        _discard_stdout()
        return CLOSED_PIPE
    except Terminated:
        return _report("stopped", 128 + signal.SIGTERM)
    except KeyboardInterrupt:
        return _report("stopped", 128 + signal.SIGINT)
    except UsageError as error:
        return _report(str(error), 2)
    except OutlayError as error:
        return _report(str(error), 1)
    except Exception as error:  # a user never sees a traceback, whatever a method, a model file or a disk comes up with
        return _report(f"{type(error).__name__}: {error} (OUTLAY_DEBUG=1 shows where)", 1)


@contextmanager
def _warnings_in_one_line() -> Iterator[None]:
    """Shows our own warnings as errors are shown, without the line of code that they come from."""
    with warnings.catch_warnings():
        warnings.simplefilter("always", OutlayWarning)
        show = warnings.showwarning

        def show_ours(message: Warning | str, category: type[Warning], *where: Any, **more: Any) -> None:
            if issubclass(category, OutlayWarning):
                _report(str(message), 0)
            else:
                show(message, category, *where, **more)

        warnings.showwarning = show_ours
        yield


def _dispatch(words: list[str]) -> int:
    name = words[0] if words else "--help"
    if name.startswith("-"):
        return _top_level(words)
    if name not in COMMANDS:
        if " " in name:
            raise UsageError(f"there is no command {name!r}; a prompt goes after `run`: outlay run {name!r}")
        known = ", ".join(COMMANDS)
        raise UsageError(f"there is no command {name!r}{nearest(name, COMMANDS)}; the commands are {known}")
    command = import_module(f"outlay.cli.{name}")
    return _run_command(f"outlay {name}", command, words[1:])


def _run_command(name: str, command: ModuleType, words: list[str]) -> int:
    parser = Parser(prog=name, description=command.DESCRIPTION, epilog=command.EXAMPLES)
    command.add_arguments(parser)
    return int(command.run(parser.parse_args(words)))


def _top_level(words: list[str]) -> int:
    commands = "\n".join(f"  {name:<10} {what}" for name, what in COMMANDS.items())
    parser = Parser(
        prog="outlay",
        usage="outlay COMMAND [...]",
        description="Decodes more for less: many published methods, one engine, one ledger.",
        epilog=f"commands:\n{commands}\n\n`outlay COMMAND --help` explains each. For a start:\n"
        '  outlay run "Why is the sky blue?"\n',
    )
    parser.add_argument("--version", action="store_true", help="show the version and leave")
    args = parser.parse_args(words or ["--help"])
    if args.version:
        import outlay

        print(f"outlay {outlay.__version__}")
    return 0


def _report(message: str, status: int) -> int:
    """Writes one line about what went wrong, below the traceback if that is asked for; returns `status`."""
    if os.environ.get("OUTLAY_DEBUG", "0") not in ("", "0"):
        traceback.print_exc()
    try:
        sys.stdout.flush()
    except OSError:
        _discard_stdout()
    print(terminal.bold("outlay:", sys.stderr), " ".join(message.split()), file=sys.stderr)
    return status


def _discard_stdout() -> None:
    """Sends what is still buffered nowhere, so that the interpreter does not complain about it at its end."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, sys.stdout.fileno())
    os.close(nowhere)
