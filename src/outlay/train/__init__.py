"""Fits what drafts: text that a model writes by itself, draft heads, prompt tokens and tables of n-grams."""
