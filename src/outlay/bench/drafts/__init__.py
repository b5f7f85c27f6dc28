"""Acceptance rate of each verifier, tokens a target pass of each tree, and superposed drafts."""
