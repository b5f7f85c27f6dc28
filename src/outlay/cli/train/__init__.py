"""`outlay train`: a file here for each kind of training, imported only when it is asked for.

A kind's module has `add_arguments(parser)` and `train(args)`, which returns the exit status.
"""

from __future__ import annotations

import argparse
from importlib import import_module

from outlay.cli.arguments import Parser
from outlay.errors import UsageError, nearest

WHAT = {
    "draft": "a draft head, distilled from text that the model writes itself",
    "ppd": "prompt tokens, at which the model guesses several tokens ahead",
    "table": "a table of n-grams, counted in texts and code",
    "threshold": "the entropy from which adadec looks ahead, from reference code",
    "filter": "a commit filter for a model that fills masks, for learn2pd",
    "length": "a length predictor, by which budget_guidance steers how long a model thinks",
    "nm": "a model whose weights keep N of every M, such as 2:4",
    "circuit": "a circuit of integers: pictures of one size, tables of categories",
    "codec": "a learned picture codec, for `outlay compress --lossy`",
    "diffusion": "a small masked-diffusion model, of texts, of prompts with answers, or of generated problems",
    "distill": "a small encoder-decoder, distilled from a decoder-only model on pairs of yours",
    "reasoner": "outlay/tiny-reasoner and outlay/tiny-verifier, for searches on the problems `chains`",
    "coder": "outlay/tiny-coder, for searches on the problems `minilist`",
    "glyphs": "outlay/glyphs: small vision-language models of pictures of glyphs, in LLaVA's form",
    "crate": "a small CRATE over the bytes of a text, or its twin, a GPT-2 of the same shape",
}
DESCRIPTION = (
    "Trains drafters, thresholds, commit filters and length predictors, which methods find by themselves; sparse "
    "models; circuits; small models that fill masks; picture codecs; a tiny reasoner and its verifier; a tiny coder; a "
    "small vision-language model; CRATE."
)
EXAMPLES = (
    "what can be trained:\n"
    + "\n".join(f"  {name:<9} {what}" for name, what in WHAT.items())
    + """

examples:
  outlay train draft                                  # on what the default model writes, an hour or two
  outlay train draft --tokens 200000 --layers 2 --out draft.safetensors
  outlay train ppd --m 3 --steps 300
  outlay train length --model M --prompts questions.txt    # for a model that thinks; --traces: on texts of yours
  outlay train table --own                            # of what the default model writes, for auto
  outlay train table --out python.tri ~/project/*.py
  outlay run "..." --method aded:table=python.tri
  outlay train threshold ~/project/*.py               # or HumanEval.jsonl.gz, for adadec
  outlay train filter --model tiny-noisy --prompts noisy:count=1000 --length 24 --out filter.safetensors
  outlay train nm --pattern 2:4 --out sparse          # the default model's feed-forward layers, hours
  outlay train nm --model M --data text.txt --pattern 1:16 --recipe mdgf-exp --steps 2000 --out sparse
  outlay train circuit digits.npy --latents 16 --out digits.safetensors
  outlay train codec photos/ --out codec/             # tiny, a minute; --architecture bmshj2018-hyperprior: days
  outlay train diffusion --data answers.jsonl --out mine   # rows with "prompt" and "answer"
  outlay train diffusion --data book.txt --vocabulary 2000 --hidden 256 --layers 6 --out book
  outlay train distill --teacher smollm2-135m --data pairs.jsonl --out student --targets gold
  outlay train reasoner --out tiny                    # the two that come with the package, minutes
  outlay train coder --out tiny-coder                 # the one that comes with the package, a quarter of an hour
  outlay train glyphs --out glyphs                    # the one that comes with the package, ten minutes
  outlay train crate --text war_and_peace.txt --out tiny-crate

What was stopped goes on where it was when the same command is typed again.
"""
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the command's options to `parser`."""
    parser.usage = "outlay train WHAT [...]"
    parser.add_argument("what", nargs="?", metavar="WHAT", help=", ".join(WHAT))
    parser.add_argument("rest", nargs=argparse.REMAINDER, help=argparse.SUPPRESS)


def run(args: argparse.Namespace) -> int:
    """Trains what is asked for; returns the exit status."""
    if args.what is None:
        raise UsageError(f"say what to train: {', '.join(WHAT)}")
    if args.what not in WHAT:
        raise UsageError(f"there is no {args.what!r} to train{nearest(args.what, WHAT)}; there are {', '.join(WHAT)}")
    parser = Parser(prog=f"outlay train {args.what}", description=f"Makes {WHAT[args.what]}.")
    kind = import_module(f"outlay.cli.train.{args.what}")
    kind.add_arguments(parser)
    status: int = kind.train(parser.parse_args(args.rest))
    return status
