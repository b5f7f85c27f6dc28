"""Benchmarks: suites that anyone can run with one command, and the parts that they are made of."""
