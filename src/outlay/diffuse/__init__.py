"""Masked diffusion: the rounds in which a canvas is filled, and a file for each commit rule."""
