"""Benchmarks: suites that anyone can run with one command, and the parts that they are made of.

Each folder here is a suite. The docstring of its `__init__` says what it measures, its `suite.py` has the `SUITE`, and
its `report.py` makes tables of what the suite wrote as JSON: `TABLES` by name, for the documentation.
"""
