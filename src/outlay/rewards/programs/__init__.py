"""Rewards of programs: the share of a user's tests that they pass, each in a process of its own with limits."""
