"""`outlay transcribe`: what is said in recordings."""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
import time
from typing import TYPE_CHECKING, Any

from outlay.cli import terminal
from outlay.cli.arguments import number, one_of
from outlay.cli.run import DTYPES
from outlay.cli.trace_file import TraceFile
from outlay.models.speech_form import TASKS
from outlay.subtitles import clock

if TYPE_CHECKING:
    from outlay.lm import LM
    from outlay.transcripts import Transcription

DESCRIPTION = (
    "Writes down what is said in recordings: the text goes to standard output, what it cost to standard error."
)
EXAMPLES = """examples:
  outlay transcribe interview.mp3
  outlay transcribe *.flac --json > transcripts.jsonl
  outlay transcribe talk.wav --method lookup --dtype float32 --trace talk.jsonl
  outlay transcribe rede.ogg --model ./whisper-small --language de --task translate --timestamps

All files are worked on together. One that is longer than the model hears at once is cut at quiet places. It needs
`pip install 'outlay[speech]'`.
"""
DEFAULT_MODEL = "moonshine-tiny"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the command's options to `parser`."""
    parser.add_argument("files", nargs="+", metavar="FILE", help="a recording: WAV, FLAC, MP3, OGG")
    parser.add_argument(
        "--model", default=DEFAULT_MODEL, metavar="M", help=f"a model of speech (default: {DEFAULT_MODEL})"
    )
    parser.add_argument("--language", metavar="L",
                        help="the language that is spoken: de, German (default: what the model hears)")  # fmt: skip
    parser.add_argument("--task", type=one_of(TASKS), default=TASKS[0], metavar="T",
                        help="transcribe (default), or translate into English")  # fmt: skip
    parser.add_argument("--timestamps", action="store_true", help="say when each piece of the text is spoken")
    parser.add_argument("--method", metavar="NAME[:k=v,...]", help="how to decode (default: auto)")
    parser.add_argument("--dtype", type=one_of(DTYPES), default="auto", metavar="D", help=" ".join(DTYPES))
    parser.add_argument("--threads", type=number(1, whole=True), metavar="N", help="threads to compute with")
    parser.add_argument("--max-tokens", type=number(1, whole=True), metavar="N",
                        help="tokens of a clip at most (default: what can be said in its time)")  # fmt: skip
    parser.add_argument("--json", action="store_true", help="one JSON object for each file instead of the text")
    parser.add_argument("--trace", metavar="FILE", help="write every event of each clip's run as JSON lines")
    parser.add_argument("--quiet", action="store_true", help="no progress, and nothing on what it cost")


def run(args: argparse.Namespace) -> int:
    """Runs the command; returns the exit status."""
    from outlay.lm import load

    with terminal.Progress(quiet=args.quiet) as progress:
        lm = load(args.model, dtype=args.dtype, threads=args.threads, progress=progress)
    options: dict[str, Any] = {"method": args.method or lm.usual_method}
    options |= {"language": args.language, "task": args.task, "timestamps": args.timestamps}
    if args.max_tokens is not None:
        options["max_tokens"] = args.max_tokens
    with TraceFile(args.trace) if args.trace else contextlib.nullcontext() as trace:
        _transcribe(lm, args, options | ({"traces": trace.writer} if trace is not None else {}))
    return 0


def _transcribe(lm: LM, args: argparse.Namespace, options: dict[str, Any]) -> None:
    """Writes the texts of all files, and what they cost."""
    from outlay.budget import Ledger

    started = time.perf_counter()
    heard = lm.start_transcripts(args.files, **options)
    try:
        for name, transcription in zip(args.files, heard, strict=True):
            if args.json:
                print(json.dumps(_object(name, transcription)), flush=True)
            else:
                _write(name if len(args.files) > 1 else "", transcription, args.timestamps)
    finally:
        for transcription in heard:
            transcription.cancel()
    if not args.quiet and not args.json:
        results = [transcription.result for transcription in heard]
        total = sum((result.ledger for result in results), start=Ledger())
        total.seconds = time.perf_counter() - started
        spoken = sum(result.seconds for result in results)
        print(f"\n{total}\nseconds of speech per second  {spoken / total.seconds:.1f}", file=sys.stderr)


def _write(name: str, transcription: Transcription, timestamps: bool) -> None:
    """Writes the text of a recording, clip by clip, below its name if there is one."""
    if name:
        print(f"{name}:")
    for part in transcription.parts():
        if not timestamps:
            print(part.result.text.strip(), flush=True)
        for segment in part.segments if timestamps else ():
            print(f"[{clock(segment.start)} - {clock(segment.end)}] {segment.text}", flush=True)


def _object(name: str, transcription: Transcription) -> dict[str, Any]:
    result = transcription.result
    return {
        "file": name,
        "text": result.text,
        "seconds": result.seconds,
        "language": result.language,
        "segments": [
            {"start": segment.start, "end": segment.end, "text": segment.text} for segment in result.segments
        ],
        "parts": [
            {"start": part.start, "end": part.end, "text": part.result.text.strip(), "tokens": part.result.tokens,
             "finish_reason": part.result.finish_reason}
            for part in result.parts
        ],
        "method": result.parts[0].result.method,
        "model": result.parts[0].result.model,
        "ledger": result.ledger.as_dict(),
    }  # fmt: skip
