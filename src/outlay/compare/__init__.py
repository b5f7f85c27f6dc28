"""Compares methods on the same prompts: runs them in turn, keeps a journal, scores the texts, and sums it all up."""

import shlex

from outlay.compare.summary import summary
from outlay.tables import console

TABLES = {"summary": lambda results: console(shlex.join(results["manifest"]["command"]), summary(results))}
