"""The token tree, its cache of keys and values, and attention over it."""
