"""Servers under load: tokens a second, first tokens and gaps, beside the engine alone and other servers."""
