"""Recipes of sparse training on a small model of letters: loss above dense training, bytes, FLOPs, gradient noise."""
