"""Fits drafters to a model: draft heads, prompt tokens and tables of n-grams, on text that the model writes itself."""
