"""Compares methods on the same prompts: runs them in turn, keeps a journal, scores the texts, and sums it all up."""

import shlex

from outlay.bench.table import console
from outlay.compare.summary import summary

TABLES = {"summary": lambda results: console(shlex.join(results["manifest"]["command"]), summary(results))}
