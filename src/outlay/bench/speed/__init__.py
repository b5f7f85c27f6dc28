"""Tokens a second and the cost of a pass, beside other engines, in one run."""
