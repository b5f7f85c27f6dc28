"""Families that run through the modeling code of `transformers`, with our attention and our cache."""
